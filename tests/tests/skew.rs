//! f travels with g: raw data judged by a model gives what the processed data gives, to the byte.

use std::fs;

use episteme_tests::{SMALL, Said, Scratch};

fn predictions(scratch: &Scratch, said: &Said, stage: &str) -> Vec<u8> {
    let digest = said.stages()[stage].1.clone();
    fs::read(scratch.store().join("objects").join(&digest[..2]).join(&digest).join("predictions.parquet")).expect("it is there")
}

#[test]
fn raw_images_are_judged_as_processed_ones_are() {
    let scratch = Scratch::new();
    let raw = "\n[stages.raw_predictions]\nuses = 'apply.predict'\nmodel = 'model'\ndata = 'images'\n";
    scratch.write("small.toml", format!("{SMALL}{raw}"));
    let said = scratch.episteme(&["run", "small.toml", "--json"]).ok();
    assert_eq!(predictions(&scratch, &said, "raw_predictions"), predictions(&scratch, &said, "predictions"));
}

/// Rows whose class hangs on all columns, with gaps, words and an outlier.
fn table(rows: usize) -> String {
    let mut text = String::from("id,size,colour,weight,class\n");
    for row in 0..rows {
        let size = if row % 17 == 3 { String::new() } else { format!("{}.5", row * 13 % 29) };
        let weight = if row == 40 { 9_999 } else { row * 7 % 31 };
        let class = if (row * 13 % 29) + (row * 7 % 31) > 28 { "large" } else { "small" };
        text.push_str(&format!("r{row},{size},{},{weight},{class}\n", ["red", "green", "blue"][row % 3]));
    }
    text
}

#[test]
fn raw_rows_are_judged_as_processed_ones_are() {
    let scratch = Scratch::new();
    scratch.write("table.csv", table(300));
    scratch.write(
        "table.toml",
        "name = 'table'\nseed = 5\n[stages.raw]\nuses = 'collect.files'\npath = 'table.csv'\n[stages.rows]\nuses = 'store.csv'\ninput = 'raw'\n\
         [stages.clean]\nuses = 'process.table'\ninput = 'rows'\nid = 'id'\nlabel = 'class'\n[stages.clean.derive]\ndensity = 'weight / (size + 1)'\n\
         [stages.model]\nuses = 'learn.classifier'\ninput = 'clean'\nlayers = ['dense 8 relu', 'dense 2']\nepochs = 3\n\
         [stages.processed]\nuses = 'apply.predict'\nmodel = 'model'\ndata = 'clean'\nsplit = 'all'\n\
         [stages.from_raw]\nuses = 'apply.predict'\nmodel = 'model'\ndata = 'rows'\nsplit = 'all'\n",
    );
    let said = scratch.episteme(&["run", "table.toml", "--json"]).ok();
    let (processed, raw) = (predictions(&scratch, &said, "processed"), predictions(&scratch, &said, "from_raw"));
    assert_eq!(processed, raw, "every row is in one split or another, in the order of the table");
}
