#![allow(clippy::unwrap_used)]
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::parquet::arrow::ArrowWriter;
use arrow::array::*;
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Int64Type, Schema};
use image::ExtendedColorType::{L8, Rgb8};
use serde_json::{Value, json};

use super::*;
use crate::testing::{Ran, folder, png, run};

/// These columns as a Parquet file.
fn file(columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let fields: Vec<Field> = columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    file_of(Schema::new(fields), columns.into_iter().map(|(_, array)| array).collect())
}

fn file_of(schema: Schema, arrays: Vec<ArrayRef>) -> Vec<u8> {
    let batch = RecordBatch::try_new(Arc::new(schema), arrays).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn one(bytes: &[u8], config: Value) -> Ran {
    run::<Parquet>(config, folder(&[("user.parquet", bytes)]).path())
}

#[track_caller]
fn table(ran: &Ran) -> RecordBatch {
    assert!(ran.result.is_ok(), "{:?}", ran.result);
    let (schema, batches) = dataset::table::read_table(&ran.data()).unwrap();
    arrow::compute::concat_batches(&schema, &batches).unwrap()
}

fn decimals() -> ArrayRef {
    Arc::new(Decimal128Array::from(vec![150, 275]).with_precision_and_scale(10, 2).unwrap())
}

fn sample() -> Vec<u8> {
    file(vec![
        ("x", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]))),
        ("kind", Arc::new(StringArray::from(vec!["a", "b", "a"]))),
        ("y", Arc::new(Float64Array::from(vec![0.5, 1.5, 2.5]))),
    ])
}

#[test]
fn a_table_keeps_its_columns_in_the_order_asked_for() {
    let all = one(&sample(), json!({ "label": "kind" }));
    assert_eq!((table(&all).num_rows(), all.profile().classes["a"][""]), (3, 2));
    let some = table(&one(&sample(), json!({ "columns": ["y", "x"] })));
    assert_eq!(some.schema().fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>(), ["y", "x"]);
    assert_eq!(some.column(1).as_primitive::<Int64Type>().iter().collect::<Vec<_>>(), [Some(1), None, Some(3)]);
}

#[test]
fn types_that_lose_nothing_are_converted() {
    let words: DictionaryArray<arrow::datatypes::Int32Type> = vec!["a", "b"].into_iter().collect();
    let halves = arrow::compute::cast(&Float32Array::from(vec![0.5, 2.0]), &DataType::Float16).unwrap();
    let bytes = file(vec![
        ("d", Arc::new(words)),
        ("v", Arc::new(StringViewArray::from(vec!["x", "y"]))),
        ("l", Arc::new(LargeStringArray::from(vec!["x", "y"]))),
        ("h", halves),
        ("b", Arc::new(BooleanArray::from(vec![true, false]))),
        ("t", Arc::new(TimestampMillisecondArray::from(vec![0, 1]).with_timezone("UTC"))),
        ("u", Arc::new(UInt8Array::from(vec![0, 255]))),
    ]);
    let rows = table(&one(&bytes, json!({})));
    for name in ["d", "v", "l"] {
        assert_eq!(rows.column_by_name(name).unwrap().data_type(), &DataType::Utf8, "{name}");
    }
    assert_eq!(rows.column_by_name("h").unwrap().as_primitive::<Float32Type>().values(), &[0.5, 2.0]);
    assert!(matches!(rows.column_by_name("t").unwrap().data_type(), DataType::Timestamp(..)));
    assert_eq!(rows.column_by_name("u").unwrap().data_type(), &DataType::UInt8);
}

#[test]
fn columns_that_cannot_be_handled_are_all_refused_by_name_and_type() {
    let lists = ListArray::from_iter_primitive::<Int64Type, _, _>(vec![Some(vec![Some(1)]), None]);
    let bytes = file(vec![
        ("ok", Arc::new(Int64Array::from(vec![1, 2]))),
        ("price", decimals()),
        ("tags", Arc::new(lists)),
        ("raw", Arc::new(BinaryArray::from_vec(vec![b"a", b"b"]))),
    ]);
    one(&bytes, json!({})).fails_naming(&[
        "user.parquet",
        "3 columns",
        "`price` (Decimal128(10, 2))",
        "`tags` (List(",
        "`raw` (Binary)",
        "`types`",
        "`image`",
    ]);
    assert_eq!(table(&one(&bytes, json!({ "columns": ["ok"] }))).num_columns(), 1);
}

#[test]
fn decimals_are_converted_when_a_type_is_declared() {
    let rows = table(&one(&file(vec![("price", decimals())]), json!({ "types": { "price": "float64" } })));
    assert_eq!(rows.column(0).as_primitive::<Float64Type>().values(), &[1.5, 2.75]);
}

#[test]
fn extension_types_are_refused_by_name() {
    let field = Field::new("where", DataType::Utf8, true)
        .with_metadata(HashMap::from([("ARROW:extension:name".to_owned(), "geoarrow.wkt".to_owned())]));
    let bytes = file_of(Schema::new(vec![field]), vec![Arc::new(StringArray::from(vec!["POINT (0 0)"]))]);
    one(&bytes, json!({})).fails_naming(&["`where` (extension type geoarrow.wkt)"]);
    assert_eq!(table(&one(&bytes, json!({ "types": { "where": "utf8" } }))).num_rows(), 1);
}

#[test]
fn a_value_that_has_no_such_type_is_named_with_its_row() {
    let bytes = file(vec![("age", Arc::new(StringArray::from(vec!["31", "old"])))]);
    one(&bytes, json!({ "types": { "age": "int64" } })).fails_naming(&["`age`", "Utf8 to Int64", "user.parquet, row 1: `old`"]);
}

#[test]
fn columns_that_are_not_there_are_suggested() {
    one(&sample(), json!({ "columns": ["kidn"] })).fails_naming(&["`kidn`", "did you mean `kind`?"]);
    one(&sample(), json!({ "label": "knid" })).fails_naming(&["`label`", "did you mean `kind`?"]);
    one(&sample(), json!({ "image": { "column": "kind" } })).fails_naming(&["image column `kind` has type Utf8"]);
}

#[test]
fn files_with_the_same_columns_become_one_table_with_their_splits() {
    let other = file(vec![("x", Arc::new(Int64Array::from(vec![9])))]);
    let first = file(vec![("x", Arc::new(Int64Array::from(vec![1, 2])))]);
    let input = folder(&[("train.parquet", &first), ("test.parquet", &other), ("notes.md", b"x")]);
    let ran = run::<Parquet>(json!({ "splits": { "train.parquet": "train", "test.parquet": "test" } }), input.path());
    assert_eq!(table(&ran).column(0).as_primitive::<Int64Type>().values(), &[9, 1, 2]);
    assert_eq!(ran.profile().splits["train"], 2);
    let input = folder(&[("a.parquet", &sample()), ("b.parquet", &other)]);
    run::<Parquet>(json!({}), input.path()).fails_naming(&["b.parquet", "1 columns here and 3 in a.parquet"]);
}

fn raw_images() -> Vec<u8> {
    file(vec![
        ("pixels", Arc::new(BinaryArray::from_opt_vec(vec![Some(&[1, 2, 3, 4]), Some(&[5, 6, 7, 8]), None]))),
        ("class", Arc::new(Int64Array::from(vec![Some(1), Some(0), None]))),
        ("part", Arc::new(StringArray::from(vec!["Train", "val", "test"]))),
        ("key", Arc::new(StringArray::from(vec!["k1", "k2", "k3"]))),
    ])
}

#[test]
fn raw_pixels_become_images_with_label_id_and_split() {
    let image = json!({ "column": "pixels", "height": 2, "width": 2, "channels": 1, "on_corrupt": "null" });
    let config = json!({ "image": image, "label": "class", "classes": ["cat", "dog"], "id": "key", "split": "part" });
    let ran = one(&raw_images(), config);
    let data = ran.images();
    let rows: Vec<_> = (0..3).map(|row| (data.id(row), data.label(row), data.split(row), data.pixels(row).map(<[u8]>::to_vec))).collect();
    assert_eq!(
        rows,
        [
            ("k1", Some("dog"), Some(Split::Train), Some(vec![1, 2, 3, 4])),
            ("k2", Some("cat"), Some(Split::Validation), Some(vec![5, 6, 7, 8])),
            ("k3", None, Some(Split::Test), None)
        ]
    );
    ran.says("1 of 3 images cannot be decoded and are kept without pixels; the first is k3: there is none");
}

#[test]
fn raw_pixels_of_another_shape_and_without_one_are_explained() {
    let image = json!({ "column": "pixels", "height": 3, "width": 2, "channels": 1 });
    one(&raw_images(), json!({ "image": image })).fails_naming(&["image-00000", "4 bytes", "3×2×1", "6"]);
    one(&raw_images(), json!({ "image": { "column": "pixels" } })).fails_naming(&["neither PNG nor JPEG", "4 bytes", "height ="]);
    one(&raw_images(), json!({ "image": { "column": "pixels", "height": 2, "width": 2, "channels": 1 }, "split": "key" }))
        .fails_naming(&["`k1` is no split", "user.parquet, row 0"]);
}

#[test]
fn encoded_images_in_a_struct_are_read_as_hugging_face_writes_them() {
    let (red, grey) = (png(2, 1, Rgb8, &[255, 0, 0, 255, 0, 0]), png(2, 1, L8, &[9, 9]));
    let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![&red, &grey]));
    let paths: ArrayRef = Arc::new(StringArray::from(vec!["a.png", "b.png"]));
    let fields = vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)];
    let images = StructArray::new(fields.clone().into(), vec![bytes, paths], None);
    let about = json!({ "info": { "features": { "label": { "names": ["cat", "dog"], "_type": "ClassLabel" } } } });
    let schema = Schema::new(vec![Field::new("image", DataType::Struct(fields.into()), true), Field::new("label", DataType::Int64, true)])
        .with_metadata(HashMap::from([("huggingface".to_owned(), about.to_string())]));
    let file = file_of(schema, vec![Arc::new(images), Arc::new(Int64Array::from(vec![1, -1]))]);
    for column in ["image", "image.bytes"] {
        let data = one(&file, json!({ "image": { "column": column }, "label": "label", "splits": { "user.parquet": "test" } })).images();
        assert_eq!((data.id(0), data.label(0), data.label(1)), ("test-00000", Some("dog"), None));
        assert_eq!((data.pixels(0).unwrap(), data.pixels(1).unwrap()), (&[255, 0, 0, 255, 0, 0][..], &[9; 6][..]));
    }
    one(&file, json!({ "image": { "column": "image.path" } })).fails_naming(&["has type Utf8"]);
    one(&file, json!({ "image": { "column": "image.file" } })).fails_naming(&["without a field `file`", "bytes, path"]);
}

#[test]
fn a_file_that_is_no_parquet_or_breaks_off_is_named() {
    one(b"a,b\n1,2\n", json!({})).fails_naming(&["user.parquet", "no Parquet file"]);
    one(b"", json!({})).fails_naming(&["user.parquet", "the file is empty"]);
    let whole = sample();
    one(&whole[..whole.len() / 2], json!({})).fails_naming(&["user.parquet", "breaks off"]);
    one(b"PAR1 this is not the Parquet you are looking for PAR1", json!({})).fails_naming(&["user.parquet", "damaged"]);
}

#[test]
fn wrong_settings_are_problems_of_the_config() {
    let paths = |config: Value| -> Vec<String> {
        let stage: Parquet = serde_json::from_value(config).unwrap();
        stage.check().iter().map(|problem| problem.path.join(".")).collect()
    };
    let image = json!({ "column": "x", "height": 2, "channels": 7, "format": "raw" });
    assert_eq!(paths(json!({ "input": "raw", "image": image, "columns": ["a"] })), ["image.channels", "image", "image", "columns"]);
    assert_eq!(paths(json!({ "input": "raw", "id": "a", "split": "b", "splits": { "c": "test" } })), ["splits", "id"]);
}

/// Property: whatever is damaged, the stage ends soon with a dataset or an error that names the file.
#[test]
fn damage_of_any_kind_gives_an_error_that_names_the_file_or_a_dataset_and_never_hangs() {
    let many = file(vec![
        ("i", Arc::new(Int64Array::from_iter_values(0..500))),
        ("s", Arc::new(StringArray::from_iter_values((0..500).map(|row| format!("value {}", row % 9))))),
        ("f", Arc::new(Float64Array::from_iter((0..500).map(|row| (row % 7 != 0).then_some(f64::from(row) / 3.0))))),
        ("b", Arc::new(BooleanArray::from_iter((0..500).map(|row| Some(row % 2 == 0))))),
    ]);
    let image = json!({ "image": { "column": "pixels", "height": 2, "width": 2, "channels": 1, "on_corrupt": "null" }, "label": "class" });
    let cases = [(many, json!({})), (raw_images(), image), (sample(), json!({ "types": { "x": "utf8" } }))];
    let mut random = 11u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let mut failed = 0;
    for round in 0..1500 {
        let (whole, config) = &cases[round % cases.len()];
        let mut damaged = whole.clone();
        for _ in 0..=next(3) {
            // Half of the damage in the footer, where the reader trusts most.
            let at = if next(2) == 0 { next(whole.len()) } else { whole.len() - 1 - next(whole.len().min(800)) };
            damaged[at] = next(256) as u8;
        }
        let clock = Instant::now();
        let ran = one(&damaged, config.clone());
        assert!(clock.elapsed() < Duration::from_secs(10), "round {round} took {:?}", clock.elapsed());
        if let Err(error) = &ran.result {
            failed += 1;
            let all = format!("{error}");
            assert!(
                all.contains("user.parquet") || all.contains("image-0") || all.contains("images can be decoded"),
                "round {round}: {all}"
            );
        }
    }
    assert!(failed > 300, "only {failed} of 1500 damaged files were noticed");
}
