#![allow(clippy::unwrap_used)]
use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Date32Type, Float64Type, Int64Type, Schema};
use serde_json::{Value, json};

use super::*;
use crate::testing::{Ran, folder, gzip, mirrored, run};

fn one(text: impl AsRef<[u8]>, config: Value) -> Ran {
    run::<Csv>(config, folder(&[("table.csv", text.as_ref())]).path())
}

#[track_caller]
fn table(ran: &Ran) -> (Schema, arrow::array::RecordBatch) {
    assert!(ran.result.is_ok(), "{:?}", ran.result);
    let (schema, batches) = dataset::table::read_table(&ran.data()).unwrap();
    (schema.as_ref().clone(), arrow::compute::concat_batches(&schema, &batches).unwrap())
}

fn types(schema: &Schema) -> Vec<(&str, DataType)> {
    schema.fields().iter().map(|field| (field.name().as_str(), field.data_type().clone())).collect()
}

#[test]
fn types_are_inferred_from_all_rows_and_missing_values_are_null() {
    let ran = one(
        "\u{feff}id,x,ok,name,day\n1,2,true,\"a, b\",2020-01-02\n2,NA,,ü,\n3,1.5,false, padded ,1970-01-02\n",
        json!({ "label": "name" }),
    );
    let (schema, rows) = table(&ran);
    assert_eq!(
        types(&schema),
        [("id", DataType::Int64), ("x", DataType::Float64), ("ok", DataType::Boolean), ("name", DataType::Utf8), ("day", DataType::Date32)]
    );
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().values(), &[1, 2, 3]);
    assert_eq!(rows.column(1).as_primitive::<Float64Type>().iter().collect::<Vec<_>>(), [Some(2.0), None, Some(1.5)]);
    assert_eq!(rows.column(2).as_boolean().iter().collect::<Vec<_>>(), [Some(true), None, Some(false)]);
    assert_eq!(rows.column(3).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["a, b", "ü", "padded"]);
    assert_eq!(rows.column(4).as_primitive::<Date32Type>().iter().collect::<Vec<_>>(), [Some(18_263), None, Some(1)]);
    let outcome = ran.result.as_ref().unwrap();
    assert_eq!((outcome.rows, &outcome.schema["kind"]), (Some(3), &json!("table")));
    assert_eq!(outcome.schema["columns"][1], json!({ "name": "x", "type": "Float64", "nullable": true }));
    let profile = ran.profile();
    assert_eq!((profile.columns[1].nulls, profile.classes["padded"][""]), (1, 1));
}

#[test]
fn a_ragged_row_is_named_with_file_line_and_counts() {
    one("a,b,c\n1,2,3\n4,5\n6,7,8\n", json!({})).fails_naming(&["table.csv, line 3", "line 3 has 2 fields", "3 columns (a, b, c)"]);
    one("a,b\n\"x\ny\",2\n1,2,3\n", json!({})).fails_naming(&["line 4 has 3 fields", "2 columns", "must be in quotes"]);
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_line_column_and_value() {
    let ran = one("age,name\n31,a\n\n3x,b\n", json!({ "types": { "age": "int64" } }));
    ran.fails_naming(&["`3x` in column `age` on line 4", "int64", "table.csv, line 4", "`null`"]);
}

#[test]
fn the_first_wrong_value_is_named_however_many_threads_look() {
    let rows: String =
        (0..40_000).map(|row| if row == 20_000 || row == 39_000 { "bad\n".to_owned() } else { format!("{row}\n") }).collect();
    one(format!("x\n{rows}"), json!({ "types": { "x": "int64" } })).fails_naming(&["on line 20002"]);
}

#[test]
fn an_empty_file_and_a_lonely_header_are_refused() {
    one("", json!({})).fails_naming(&["table.csv", "empty"]);
    one("\n\n", json!({})).fails_naming(&["table.csv", "empty"]);
    one("a,b\n", json!({})).fails_naming(&["table.csv", "no rows"]);
}

#[test]
fn invalid_utf_8_is_named_by_line_and_position() {
    one(b"a,b\n1,2\n3,caf\xe9\n", json!({})).fails_naming(&["table.csv, line 3", "byte 0xe9 at position 6 of line 3", "iconv"]);
    one(b"\xff\xfea\0,\0b\0", json!({})).fails_naming(&["UTF-16", "iconv -f utf-16"]);
    one(b"PK\x03\x04\x14\0rest", json!({})).fails_naming(&["no text table", "zip"]);
}

#[test]
fn a_table_that_begins_as_another_format_does_is_still_a_table() {
    assert_eq!(table(&one("BMI,age\n22.5,31\n", json!({}))).1.num_columns(), 2);
    one("<!DOCTYPE html>\n<html>404</html>\n", json!({})).fails_naming(&["no text table", "an HTML page"]);
}

#[test]
fn whatever_the_bytes_there_is_a_table_or_an_error_that_names_the_file() {
    let mut random = 3u64;
    let mut next = |below: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..next(60)).map(|_| b"a1.,,,\"\n\n\r\t -\xc3\xbc"[next(15)]).collect();
        let ran = one(&bytes, json!({}));
        if let Err(error) = &ran.result {
            assert!(error.place.as_deref().is_some_and(|place| place.starts_with("table.csv")), "{error} from {bytes:?}");
        }
    }
}

#[test]
fn a_quote_that_is_never_closed_fails_and_does_not_swallow_the_file() {
    one("a,b\n1,\"2\n3,4\n", json!({})).fails_naming(&["table.csv, line 2", "never closed"]);
}

#[test]
fn names_that_are_missing_or_repeated_get_names_of_their_own() {
    let ran = one("x,,x,x_2,\n1,2,3,4,5\n", json!({}));
    assert_eq!(types(&table(&ran).0).iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["x", "column_2", "x_3", "x_2", "column_5"]);
    ran.says("column 3 of table.csv is called `x` as another is; it becomes `x_3`");
}

#[test]
fn names_can_be_given_and_headers_left_out() {
    assert_eq!(types(&table(&one("1,2\n3,4\n", json!({ "header": false }))).0)[1].0, "column_2");
    let ran = one("a,b\n1,2\n", json!({ "columns": ["x", "y"] }));
    assert_eq!((types(&table(&ran).0)[1].0, table(&ran).1.num_rows()), ("y", 1));
    one("a,b,c\n1,2,3\n", json!({ "columns": ["x", "y"] })).fails_naming(&["names 2 columns", "3 fields"]);
}

#[test]
fn a_wrong_delimiter_is_noticed() {
    one("a;b\n1;2\n", json!({})).fails_naming(&["delimiter = \";\""]);
    let ran = one("a;b\n1,5;x\n", json!({ "delimiter": ";", "decimal": "," }));
    assert_eq!(table(&ran).1.column(0).as_primitive::<Float64Type>().value(0), 1.5);
}

#[test]
fn files_with_the_same_columns_become_one_table_with_their_splits() {
    let input = folder(&[("d/test.csv", b"x\n3\n"), ("d/train.csv.gz", &gzip(b"x\n1.5\n2\n"))]);
    let splits = json!({ "splits": { "train.csv.gz": "train", "test.csv": "test" } });
    let ran = run::<Csv>(splits, input.path());
    let (_, rows) = table(&ran);
    assert_eq!(rows.column(0).as_primitive::<Float64Type>().values(), &[3.0, 1.5, 2.0]);
    assert_eq!(rows.column(1).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["test", "train", "train"]);
    assert_eq!(ran.profile().splits["train"], 2);
}

#[test]
fn files_with_other_columns_are_named() {
    let input = folder(&[("a.csv", b"x,y\n1,2\n"), ("b.csv", b"x,z\n1,2\n")]);
    run::<Csv>(json!({}), input.path()).fails_naming(&["b.csv", "column 2 is `z` here and `y` in a.csv"]);
    assert_eq!(table(&run::<Csv>(json!({ "files": ["b.csv"] }), input.path())).1.num_rows(), 1);
}

#[test]
fn columns_that_are_not_there_are_suggested() {
    one("age,name\n1,a\n", json!({ "types": { "aeg": "int64" } })).fails_naming(&["`aeg`", "did you mean `age`?"]);
    one("age,name\n1,a\n", json!({ "label": "nmae" })).fails_naming(&["`nmae`", "did you mean `name`?"]);
    one("age,name\n1,a\n", json!({ "splits": { "tabel.csv": "test" } })).fails_naming(&["`tabel.csv`", "table.csv"]);
}

#[test]
fn a_column_without_values_is_told() {
    let ran = one("a,b\n1,\n2,NA\n", json!({}));
    assert_eq!(types(&table(&ran).0)[1].1, DataType::Utf8);
    ran.says("the column `b` has no value at all");
}

#[test]
fn wrong_settings_are_problems_of_the_config() {
    let config = json!({ "input": "raw", "delimiter": ",,", "quote": "''", "decimal": ",", "columns": ["a", "a"] });
    let stage: Csv = serde_json::from_value(config).unwrap();
    let paths: Vec<String> = stage.check().iter().map(|problem| problem.path.join(".")).collect();
    assert_eq!(paths, ["delimiter", "quote", "columns.1"]);
    let stage: Csv = serde_json::from_value(json!({ "input": "raw", "decimal": "," })).unwrap();
    assert_eq!(stage.check().len(), 1);
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let rows: String = (0..30_000).map(|row| format!("{row},{},{}\n", f64::from(row) / 7.0, ["a", "b", ""][row as usize % 3])).collect();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let ran = pool.install(|| one(format!("i,x,c\n{rows}"), json!({})));
        (std::fs::read(ran.data()).unwrap(), std::fs::read(ran.output.path().join("profile.json")).unwrap())
    };
    assert!(with(1) == with(3));
}

#[test]
fn the_maintenance_table_has_its_known_shape() {
    let Some(path) = mirrored("ai4i2020/ai4i2020.csv") else { return };
    let ran = run::<Csv>(json!({ "label": "Machine failure" }), &path);
    let (schema, rows) = table(&ran);
    assert_eq!((rows.num_rows(), schema.field(0).name().as_str(), schema.fields().len()), (10_000, "UDI", 14));
    assert_eq!(schema.field(3).data_type(), &DataType::Float64);
    assert_eq!(ran.profile().classes["1"][""], 339);
}

#[test]
fn the_penguins_have_their_known_gaps() {
    let Some(path) = mirrored("penguins/penguins_raw.csv") else { return };
    let ran = run::<Csv>(json!({}), &path);
    let (schema, rows) = table(&ran);
    let column = |name: &str| rows.column(schema.index_of(name).unwrap());
    assert_eq!((rows.num_rows(), column("Culmen Length (mm)").null_count(), column("Sex").null_count()), (344, 2, 11));
    assert_eq!((column("Body Mass (g)").data_type(), column("Date Egg").data_type()), (&DataType::Int64, &DataType::Date32));
    assert_eq!(column("Species").as_string::<i32>().value(0), "Adelie Penguin (Pygoscelis adeliae)");
}

#[test]
fn turbofan_files_are_read_with_their_trailing_blanks() {
    let Some(path) = mirrored("cmapss/train_FD001.txt") else { return };
    let ran = run::<Csv>(json!({ "delimiter": "whitespace", "header": false }), &path);
    let (schema, rows) = table(&ran);
    assert_eq!((rows.num_rows(), rows.num_columns()), (20_631, 26));
    assert_eq!((schema.field(0).data_type(), schema.field(2).data_type()), (&DataType::Int64, &DataType::Float64));
    assert_eq!(rows.column(0).as_primitive::<Int64Type>().value(20_630), 100);
}
