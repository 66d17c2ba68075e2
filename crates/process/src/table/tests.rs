#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Seek;
use std::path::PathBuf;

use arrow::array::{AsArray, Float64Array, Int64Array, ListArray};
use arrow::datatypes::{Float32Type, Int32Type};
use artifact::Stage;

use super::*;
use crate::testing::{self, Ran};

/// Twelve rows in the manner of AI4I 2020, with gaps and a category that train does not have.
const MACHINES: &str = "\
UDI,Type,Air temperature [K],Torque [Nm],Tool wear [min],TWF,Machine failure,fold
1,M,298.1,42.8,0,0,0,train
2,L,298.2,46.3,3,0,0,train
3,L,298.1,,5,0,0,train
4,H,298.2,39.5,7,0,1,train
5,L,298.2,40.0,9,0,0,train
6,M,298.1,41.9,11,0,0,train
7,L,298.1,42.4,14,1,1,train
8,L,298.1,40.2,,0,0,train
9,M,298.3,28.6,18,0,0,test
10,X,298.5,28.0,21,0,1,test
11,H,298.4,,24,0,0,test
12,H,298.6,44.2,216,1,1,test
";

const MACHINES_TOML: &str =
    "id = 'UDI'\nlabel = 'Machine failure'\ndrop = ['TWF']\nsplit = { column = 'fold', validation = 0 }\nseed = 7\n";

/// A small CSV without quotes: whole numbers, numbers or text by what a column holds; nothing is null.
fn table_of(csv: &str) -> RecordBatch {
    let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let names = lines.next().unwrap();
    let rows: Vec<Vec<&str>> = lines.collect();
    RecordBatch::try_from_iter(names.iter().enumerate().map(|(index, name)| {
        let cells: Vec<Option<&str>> = rows.iter().map(|row| Some(row[index]).filter(|cell| !cell.is_empty())).collect();
        let fits = |test: fn(&str) -> bool| cells.iter().flatten().all(|cell| test(cell));
        let array: ArrayRef = if fits(|cell| cell.parse::<i64>().is_ok()) {
            Arc::new(Int64Array::from_iter(cells.iter().map(|cell| cell.map(|cell| cell.parse::<i64>().unwrap()))))
        } else if fits(|cell| cell.parse::<f64>().is_ok()) {
            Arc::new(Float64Array::from_iter(cells.iter().map(|cell| cell.map(|cell| cell.parse::<f64>().unwrap()))))
        } else {
            Arc::new(StringArray::from_iter(cells.iter()))
        };
        (*name, array)
    }))
    .unwrap()
}

fn stage(toml: &str) -> Table {
    toml::from_str(&format!("input = 'x'\n{toml}")).unwrap()
}

fn run_on(batch: &RecordBatch, toml: &str) -> Result<Ran, StageError> {
    testing::run(&stage(toml), |path| {
        table::write_table(path, &batch.schema(), std::slice::from_ref(batch)).unwrap();
    })
}

fn refused(batch: &RecordBatch, toml: &str) -> (String, String) {
    let error = run_on(batch, toml).err().unwrap();
    (error.to_string(), error.help.unwrap_or_default())
}

/// id → (split, features).
fn features(ran: &Ran) -> BTreeMap<String, (String, Vec<f32>)> {
    let (_, batches) = table::read_table(&ran.output(DATA_FILE)).unwrap();
    let mut rows = BTreeMap::new();
    for batch in batches {
        let (ids, splits) = (batch.column(0).as_string::<i32>(), batch.column(2).as_string::<i32>());
        for row in 0..batch.num_rows() {
            let values = batch.columns()[3..].iter().map(|column| column.as_primitive::<Float32Type>().value(row)).collect();
            rows.insert(ids.value(row).to_owned(), (splits.value(row).to_owned(), values));
        }
    }
    rows
}

fn fitted(ran: &Ran) -> TableTransform {
    Fitted::read(ran.dir()).unwrap().table().unwrap().clone()
}

fn f_bytes(ran: &Ran) -> Vec<u8> {
    std::fs::read(ran.output(transform::FILE_NAME)).unwrap()
}

fn without(batch: &RecordBatch, names: &[&str]) -> RecordBatch {
    let schema = batch.schema();
    let keep = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| !names.contains(&field.name().as_str()));
    RecordBatch::try_from_iter(keep.map(|(field, column)| (field.name().clone(), Arc::clone(column)))).unwrap()
}

fn backwards(batch: &RecordBatch) -> RecordBatch {
    let order = arrow::array::UInt32Array::from_iter_values((0..batch.num_rows() as u32).rev());
    arrow::compute::take_record_batch(batch, &order).unwrap()
}

/// So many rows with a number, a word and a class that depends on neither.
fn many(rows: usize) -> RecordBatch {
    let csv = (0..rows).fold("id,x,kind,class\n".to_owned(), |csv, row| {
        format!("{csv}r{row:04},{}.5,{},{}\n", row * 7919 % 997, ["a", "b", "c"][row % 3], ["no", "no", "no", "yes"][row % 4])
    });
    table_of(&csv)
}

const MANY_TOML: &str = "id = 'id'\nlabel = 'class'\nseed = 7\n";

#[test]
fn features_agree_with_scikit_learn() {
    // SimpleImputer(median), StandardScaler and OneHotEncoder(handle_unknown="ignore") of scikit-learn 1.x, fitted on the
    // train rows of the table above.
    let expected: [[f32; 6]; 12] = [
        [0.0, 0.0, 1.0, -0.7745967, 0.4576979, -1.6854019],
        [0.0, 1.0, 0.0, 1.2909944, 2.1895278, -0.963_086_84],
        [0.0, 1.0, 0.0, -0.7745967, 0.012370214, -0.481_543_42],
        [1.0, 0.0, 0.0, 1.2909944, -1.1751703, 0.0],
        [0.0, 1.0, 0.0, 1.2909944, -0.927766, 0.481_543_42],
        [0.0, 0.0, 1.0, -0.7745967, 0.012370214, 0.963_086_84],
        [0.0, 1.0, 0.0, -0.7745967, 0.25977448, 1.6854019],
        [0.0, 1.0, 0.0, -0.7745967, -0.8288043, 0.0],
        [0.0, 0.0, 1.0, 3.3565855, -6.5685835, 2.6484888],
        [0.0, 0.0, 0.0, 7.4877677, -6.8654685, 3.3708038],
        [1.0, 0.0, 0.0, 5.422177, 0.012370214, 4.093119],
        [1.0, 0.0, 0.0, 9.553359, 1.1504298, 50.321285],
    ];
    let ran = run_on(&table_of(MACHINES), MACHINES_TOML).unwrap();
    assert_eq!(fitted(&ran).feature_names(), ["Type=H", "Type=L", "Type=M", "Air temperature [K]", "Torque [Nm]", "Tool wear [min]"]);
    assert_eq!(fitted(&ran).classes, ["0", "1"]);
    let found = features(&ran);
    for (row, expected) in expected.iter().enumerate() {
        let (split, values) = &found[&(row + 1).to_string()];
        assert_eq!(split, if row < 8 { "train" } else { "test" });
        for (value, expected) in values.iter().zip(expected) {
            assert!((value - expected).abs() <= 1e-5 * expected.abs().max(1.0), "row {row}: {values:?}");
        }
    }
    let torque = ran.cleaning().columns.into_iter().find(|change| change.column == "Torque [Nm]").unwrap();
    assert_eq!(torque.filled, 2);
    assert!(ran.said("`Type` has categories in 1 rows"), "{:?}", ran.events);
}

#[test]
fn changing_the_test_rows_does_not_change_f() {
    let changed = MACHINES
        .replace("9,M,298.3,28.6,18,0,0,test", "9,Q,999,-5,0,1,0,test")
        .replace("12,H,298.6,44.2,216,1,1,test", "12,,,1e9,,0,0,test");
    let [first, second] = [MACHINES, &changed].map(|csv| run_on(&table_of(csv), MACHINES_TOML).unwrap());
    assert_eq!(f_bytes(&first), f_bytes(&second));
    assert_ne!(features(&first), features(&second));
}

#[test]
fn the_replay_of_f_on_raw_rows_gives_the_features_bit_by_bit() {
    let toml = format!(
        "{MACHINES_TOML}outliers = {{ quantiles = [0.1, 0.9] }}\n[derive]\nstrain = 'wear_hours * \"Torque [Nm]\"'\nwear_hours = '\"Tool wear [min]\" / 60'\n"
    );
    let batch = table_of(MACHINES);
    let ran = run_on(&batch, &toml).unwrap();
    let transform = fitted(&ran);
    assert_eq!(transform.source.derive.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["wear_hours", "strain"]);
    let raw = without(&batch, &["Machine failure", "TWF", "fold"]);
    for rows in [raw.clone(), backwards(&raw)] {
        let matrix = transform.apply(&[rows]).unwrap();
        let expected = features(&ran);
        for (row, id) in matrix.ids.iter().enumerate() {
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(matrix.row(row)), bits(&expected[id].1), "row {id}");
        }
    }
}

#[test]
fn the_order_of_rows_changes_neither_f_nor_the_splits() {
    for toml in [MANY_TOML, "label = 'class'\ndrop = ['id']\nseed = 7\n"] {
        let batch = many(200);
        let [first, second] = [batch.clone(), backwards(&batch)].map(|batch| run_on(&batch, toml).unwrap());
        assert_eq!(f_bytes(&first), f_bytes(&second));
        if toml == MANY_TOML {
            assert_eq!(features(&first), features(&second));
        }
    }
}

#[test]
fn another_seed_gives_another_split() {
    let [first, second] = [7, 8].map(|seed| {
        let toml = MANY_TOML.replace('7', &seed.to_string());
        features(&run_on(&many(200), &toml).unwrap()).into_iter().map(|(id, (split, _))| (id, split)).collect::<Vec<_>>()
    });
    assert_ne!(first, second);
}

#[test]
fn the_rare_class_has_its_share_of_every_split() {
    let ran = run_on(&many(400), &format!("{MANY_TOML}split = {{ validation = 0.1, test = 0.25 }}")).unwrap();
    let profile = Profile::read(ran.dir()).unwrap();
    for (class, rows) in [("yes", 100.0f64), ("no", 300.0)] {
        let splits = &profile.classes[class];
        assert!((splits["test"] as f64 - rows * 0.25).abs() <= 1.0 && (splits["validation"] as f64 - rows * 0.1).abs() <= 1.0);
    }
}

#[test]
fn equal_rows_are_dropped_and_a_copy_of_a_test_row_leaves_train() {
    let csv = "x,y,fold\n1,a,train\n2,b,train\n3,a,train\n3,a,train\n4,b,train\n5,a,test\n";
    let ran = run_on(&table_of(csv), "label = 'y'\nsplit = { column = 'fold', validation = 0 }").unwrap();
    assert_eq!(ran.cleaning().dropped["duplicate"], 1);
    let kept = run_on(&table_of(csv), "label = 'y'\nduplicates = 'keep'\nsplit = { column = 'fold', validation = 0 }").unwrap();
    assert!(kept.cleaning().dropped.is_empty());
}

#[test]
fn a_name_that_does_not_exist_comes_with_the_nearest_that_does() {
    let batch = table_of(MACHINES);
    let base = "label = 'Machine failure'\n";
    for (toml, name, near) in [
        ("label = 'Machine Failure'\n".to_owned(), "Machine Failure", "Machine failure"),
        (format!("{base}id = 'UDl'"), "UDl", "UDI"),
        (format!("{base}drop = ['TWV']"), "TWV", "TWF"),
        (format!("{base}types = {{ 'Torque' = 'number', 'Typ' = 'text' }}"), "Torque", ""),
        (format!("{base}one_hot = ['Typ']"), "Typ", "Type"),
        (format!("{base}missing = {{ columns = {{ 'Torque [N]' = 'mean' }} }}"), "Torque [N]", "Torque [Nm]"),
        (format!("{base}filter = '\"Torque [N]\" > 1'"), "Torque [N]", "Torque [Nm]"),
        (format!("{base}derive = {{ a = '\"Torque [N]\" * 2' }}"), "Torque [N]", "Torque [Nm]"),
        (format!("{base}split = {{ column = 'fol' }}"), "fol", "fold"),
    ] {
        let (text, help) = refused(&batch, &toml);
        assert!(text.contains(&format!("`{name}`")) && help.contains(near), "{toml}: {text} / {help}");
    }
}

#[test]
fn what_derives_reads_may_be_dropped_and_is_still_needed_at_apply() {
    let toml =
        format!("{}derive = {{ power = '\"Torque [Nm]\" * 2' }}", MACHINES_TOML.replace("['TWF']", "['TWF', 'Torque [Nm]', 'Type']"));
    let transform = fitted(&run_on(&table_of(MACHINES), &toml).unwrap());
    assert_eq!(transform.feature_names(), ["Air temperature [K]", "Tool wear [min]", "power"]);
    assert_eq!(transform.needed_columns(), ["Air temperature [K]", "Torque [Nm]", "Tool wear [min]"]);
}

#[test]
fn a_select_computes_features_and_needs_no_leak_column_at_apply() {
    let toml = format!("{MACHINES_TOML}sql = 'SELECT *, \"Torque [Nm]\" * \"Tool wear [min]\" AS strain FROM data'");
    let batch = table_of(MACHINES);
    let ran = run_on(&batch, &toml).unwrap();
    let transform = fitted(&ran);
    assert!(transform.feature_names().contains(&"strain".to_owned()) && !transform.needed_columns().contains(&"TWF"));
    let matrix = transform.apply(&[without(&batch, &["TWF", "Machine failure", "fold"])]).unwrap();
    assert_eq!(matrix.row(3), features(&ran)["4"].1);
}

#[test]
fn a_filter_drops_rows_and_counts_them() {
    let ran = run_on(&table_of(MACHINES), &format!("{MACHINES_TOML}filter = \"Type <> 'X' AND TWF = 0\"")).unwrap();
    assert_eq!((ran.cleaning().dropped["filter"], ran.cleaning().rows_out), (3, 9));
}

#[test]
fn rows_with_gaps_are_dropped_or_refused_as_asked() {
    let batch = table_of(MACHINES);
    let columns = |strategy: &str| format!("{MACHINES_TOML}missing = {{ columns = {{ 'Torque [Nm]' = '{strategy}' }} }}");
    let ran = run_on(&batch, &columns("drop")).unwrap();
    assert_eq!(ran.cleaning().dropped["missing"], 2);
    let error = fitted(&ran).apply(std::slice::from_ref(&batch)).unwrap_err().to_string();
    assert!(error.contains("Torque [Nm]") && error.contains("row 2"), "{error}");
    let (text, _) = refused(&batch, &columns("fail"));
    assert!(text.contains("2 of 12 rows") && text.contains("id 3, 11"), "{text}");
}

#[test]
fn columns_that_tell_nothing_are_left_out_and_said() {
    let csv = "x,same,empty,ratio,y\n1,5,,0,a\n2,5,,1,b\n3,5,,2,a\n4,5,,3,b\n5,5,,4,a\n6,5,,5,b\n";
    let toml = "label = 'y'\nsplit = { validation = 0, test = 0.2 }\nderive = { inverse = '1.0 / ratio' }\ntypes = { empty = 'number' }";
    let ran = run_on(&table_of(csv), toml).unwrap();
    let transform = fitted(&ran);
    assert_eq!(transform.feature_names(), ["x", "ratio", "inverse"]);
    assert!(ran.said("`same` is no feature") && ran.said("`empty` is no feature"), "{:?}", ran.events);
    let inverse = ran.cleaning().columns.into_iter().find(|change| change.column == "inverse").unwrap();
    assert_eq!(inverse.filled, 1, "1 / 0 is infinite, hence missing");
    assert!(features(&ran).values().flat_map(|(_, values)| values).all(|value| value.is_finite()));
}

#[test]
fn a_type_that_cannot_be_used_is_refused_by_name_and_can_be_dropped() {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>((0..6).map(|value| Some(vec![Some(value)])));
    let base = table_of("x,y\n1,a\n2,b\n3,a\n4,b\n5,a\n6,b\n");
    let batch = RecordBatch::try_from_iter([
        ("x", Arc::clone(base.column(0))),
        ("y", Arc::clone(base.column(1))),
        ("tags", Arc::new(list) as ArrayRef),
    ])
    .unwrap();
    let toml = "label = 'y'\nsplit = { validation = 0, test = 0.2 }\n";
    let (text, help) = refused(&batch, toml);
    assert!(text.contains("`tags`") && text.contains("List") && help.contains("drop"), "{text}");
    assert!(run_on(&batch, &format!("{toml}drop = ['tags']")).is_ok());
}

#[test]
fn a_wrong_value_is_named_with_column_row_and_value() {
    let (text, _) = refused(&table_of("mass,y\n1,a\nheavy,b\n3,a\n"), "label = 'y'\ntypes = { mass = 'float' }");
    assert!(text.contains("`mass`") && text.contains("row 1") && text.contains("\"heavy\""), "{text}");
}

#[test]
fn an_id_that_occurs_twice_is_named() {
    let (text, _) = refused(&table_of("id,x,y\n1,1,a\n1,2,b\n"), "id = 'id'\nlabel = 'y'");
    assert!(text.contains("`id`") && text.contains("id 1"), "{text}");
}

#[test]
fn names_that_clash_and_circles_are_refused() {
    let batch = table_of("split,x,y\n1,1,a\n2,2,b\n3,3,a\n4,4,b\n5,5,a\n6,6,b\n");
    let (text, _) = refused(&batch, "label = 'y'\nsplit = { validation = 0, test = 0.2 }");
    assert!(text.contains("`split`"), "{text}");
    let (text, _) = refused(&batch, "label = 'y'\nderive = { a = 'b + 1', b = 'a + 1' }");
    assert!(text.contains("circle: a, b"), "{text}");
    let (text, _) = refused(&batch, "label = 'y'\nderive = { x = 'x + 1' }");
    assert!(text.contains("`derive.x`"), "{text}");
    let (text, _) = refused(&batch, "label = 'y'\nderive = { z = 'LENGTH(y)' }");
    assert!(text.contains("label"), "{text}");
}

#[test]
fn every_mistake_in_a_config_is_found_before_anything_runs() {
    let toml = "input = 'x'\nlabel = 'y'\nid = 'y'\ndrop = ['y']\noutliers = { quantiles = [0.9, 0.1] }\n\
                derive = { a = 'AVG(x)', b = 'x +' }\nfilter = 'COUNT(*) > 1'\nsplit = { validation = 2 }";
    let problems = stage(&toml.replacen("input = 'x'\n", "", 1)).check();
    let paths: Vec<String> = problems.iter().map(|problem| problem.path.join(".")).collect();
    for path in ["split.validation", "outliers", "label", "drop.0", "derive.a", "derive.b", "filter"] {
        assert!(paths.contains(&path.to_owned()), "{path} in {paths:?}");
    }
}

#[test]
fn unlabelled_rows_go_to_test_when_they_are_kept() {
    let csv = "id,x,y\n1,1,a\n2,2,b\n3,3,\n4,4,a\n5,5,b\n6,6,a\n";
    let base = "id = 'id'\nlabel = 'y'\nsplit = { validation = 0, test = 0.2 }\n";
    assert!(refused(&table_of(csv), base).0.contains("1 of 6 rows has no label"));
    let ran = run_on(&table_of(csv), &format!("{base}unlabelled = 'keep'")).unwrap();
    assert_eq!(features(&ran)["3"].0, "test");
    let ran = run_on(&table_of(csv), &format!("{base}unlabelled = 'drop'")).unwrap();
    assert_eq!(ran.cleaning().dropped["unlabelled"], 1);
}

// --- real data -------------------------------------------------------------------------------------------------------

/// A CSV of the mirror, read by Arrow; none when there is no mirror.
fn mirrored(file: &str) -> Option<RecordBatch> {
    let path = std::env::var_os("EPISTEME_MIRROR").map(|mirror| PathBuf::from(mirror).join(file)).filter(|path| path.is_file());
    let Some(path) = path else {
        println!("skipped: EPISTEME_MIRROR names no folder with {file}");
        return None;
    };
    let mut bytes = std::fs::read(path).unwrap();
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    let mut cursor = std::io::Cursor::new(bytes);
    let format = arrow::csv::reader::Format::default().with_header(true);
    let (schema, rows) = format.infer_schema(&mut cursor, None).unwrap();
    cursor.rewind().unwrap();
    let mut reader = arrow::csv::ReaderBuilder::new(Arc::new(schema)).with_format(format).with_batch_size(rows).build(cursor).unwrap();
    reader.next().map(Result::unwrap)
}

#[test]
fn the_maintenance_table_keeps_its_rare_class_in_every_split() {
    let Some(batch) = mirrored("ai4i2020/ai4i2020.csv") else { return };
    let toml = "id = 'UDI'\nlabel = 'Machine failure'\ndrop = ['Product ID', 'TWF', 'HDF', 'PWF', 'OSF', 'RNF']\nseed = 7\n\
                split = { validation = 0.1, test = 0.2 }\n[derive]\npower = '\"Torque [Nm]\" * \"Rotational speed [rpm]\"'\n";
    let ran = run_on(&batch, toml).unwrap();
    assert_eq!(ran.cleaning().rows_out, 10_000);
    let failures = &Profile::read(ran.dir()).unwrap().classes["1"];
    assert_eq!((failures["train"] + failures["validation"] + failures["test"], failures["test"], failures["validation"]), (339, 68, 34));
    let transform = fitted(&ran);
    assert_eq!(transform.width(), 9);
    let matrix = transform.apply(&[without(&batch, &["Machine failure", "TWF", "HDF", "PWF", "OSF", "RNF", "Product ID"])]).unwrap();
    let expected = features(&ran);
    assert!(matrix.ids.iter().enumerate().all(|(row, id)| matrix.row(row) == expected[id].1.as_slice()));
}

#[test]
fn the_penguins_come_clean_with_their_gaps_and_quoted_commas() {
    let Some(batch) = mirrored("penguins/penguins_raw.csv") else { return };
    let toml = "label = 'Species'\nseed = 7\ndrop = ['studyName', 'Sample Number', 'Region', 'Individual ID', 'Date Egg', 'Comments']\n\
                [types]\n'Culmen Length (mm)' = 'number'\n'Culmen Depth (mm)' = 'number'\n'Flipper Length (mm)' = 'number'\n'Body Mass (g)' = 'number'\n\
                'Delta 15 N (o/oo)' = 'number'\n'Delta 13 C (o/oo)' = 'number'\n";
    let ran = run_on(&batch, toml).unwrap();
    assert_eq!(fitted(&ran).classes.len(), 3);
    assert!(ran.said("`Stage` is no feature: it has one category (Adult, 1 Egg Stage)"), "{:?}", ran.events);
    let mass = ran.cleaning().columns.into_iter().find(|change| change.column == "Body Mass (g)").unwrap();
    assert_eq!(mass.filled, 2);
}
