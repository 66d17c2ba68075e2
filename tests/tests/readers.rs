//! What Episteme writes, opened with the readers that users have. Set `EPISTEME_PYTHON` to a Python with
//! `tests/python/requirements.txt` installed; without it these tests say that they were skipped.

use std::path::Path;
use std::process::Command;

use episteme_tests::{SMALL, Scratch, workspace};
use serde_json::Value;

/// Runs a script of `tests/python`; its last line of output is JSON.
fn python(script: &str, arguments: &[&Path]) -> Option<Value> {
    let Some(python) = std::env::var_os("EPISTEME_PYTHON") else {
        println!("skipped: EPISTEME_PYTHON names no Python");
        return None;
    };
    let output = Command::new(python).arg(workspace().join("tests/python").join(script)).args(arguments).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(serde_json::from_str(text.lines().last().unwrap_or_default()).expect("a JSON line"))
}

/// The directory of a stage's artifact.
fn artifact(scratch: &Scratch, finished: &episteme_tests::Said, stage: &str) -> std::path::PathBuf {
    let digest = finished.stages()[stage].1.clone();
    scratch.store().join("objects").join(&digest[..2]).join(&digest)
}

#[test]
fn pyarrow_duckdb_and_polars_read_the_same_images() {
    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL);
    let finished = scratch.episteme(&["run", "small.toml", "--json"]).ok();
    for stage in ["images", "clean"] {
        let Some(found) = python("read_dataset.py", &[&artifact(&scratch, &finished, stage).join("data.parquet")]) else { return };
        for reader in ["pyarrow", "duckdb", "polars"] {
            assert_eq!(found[reader]["rows"], 800, "{reader}");
            assert_eq!(found[reader]["columns"], serde_json::json!(["id", "label", "split", "image"]), "{reader}");
        }
        assert_eq!(found["metadata"], serde_json::json!({ "episteme.height": "28", "episteme.width": "28", "episteme.channels": "1" }));
        assert_eq!(found["pixel_sums"][0], found["pixel_sums"][1]);
        assert_eq!(found["pixel_sums"][1], found["pixel_sums"][2]);
    }
}

#[test]
fn metrics_agree_with_scikit_learn_on_the_same_predictions() {
    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL);
    let finished = scratch.episteme(&["run", "small.toml", "--json"]).ok();
    let Some(theirs) = python("check_metrics.py", &[&artifact(&scratch, &finished, "predictions").join("predictions.parquet")]) else {
        return;
    };
    assert_eq!((&theirs["confidence_is_maximum"], &theirs["predicted_is_argmax"]), (&Value::Bool(true), &Value::Bool(true)));
    assert!(theirs["sums_to_one"].as_f64().expect("a number") < 1e-5);
    let ours = finished.finished()["metrics"].clone();
    let mut compared = 0;
    for (name, value) in theirs.as_object().expect("an object") {
        if let (Some(ours), Some(theirs)) = (ours[&format!("test.{name}")].as_f64(), value.as_f64()) {
            let tolerance = if name == "log_loss" { 1e-5 } else { 1e-9 };
            assert!((ours - theirs).abs() <= tolerance, "{name}: {ours} and {theirs}");
            compared += 1;
        }
    }
    assert!(compared >= 30, "only {compared} metrics have a counterpart: {ours}");
}

#[test]
fn the_exported_weights_give_the_same_predictions_in_numpy_and_in_pytorch() {
    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL);
    let finished = scratch.episteme(&["run", "small.toml", "--json"]).ok();
    let [model, data, predictions] = ["model", "clean", "predictions"].map(|stage| artifact(&scratch, &finished, stage));
    let Some(found) = python("check_weights.py", &[&model, &data, &predictions]) else { return };
    assert_eq!(found["rows"], 200);
    assert!(found["numpy"].as_f64().is_some_and(|difference| difference < 1e-4), "{found}");
    match &found["pytorch"] {
        Value::Null => println!("skipped: PyTorch is not installed in EPISTEME_PYTHON"),
        difference => assert!(difference.as_f64().is_some_and(|difference| difference < 1e-4), "{found}"),
    }
}

#[test]
fn the_schema_accepts_every_pipeline_and_refuses_wrong_ones() {
    let scratch = Scratch::new();
    scratch.write("schema.json", scratch.episteme(&["schema"]).ok().stdout);
    let entries = std::fs::read_dir(workspace().join("pipelines")).expect("it is there").flatten();
    for entry in entries.filter(|entry| entry.path().is_file()) {
        scratch.write(&format!("good/{}", entry.file_name().to_string_lossy()), std::fs::read(entry.path()).expect("a file"));
    }
    scratch.write("bad/key.toml", SMALL.replace("epochs", "epoch"));
    scratch.write("bad/type.toml", SMALL.replace("train = 600", "train = 'many'"));
    scratch.write("bad/uses.toml", SMALL.replace("store.idx", "store.idxx"));
    let Some(found) = python("check_schema.py", &[scratch.path()]) else { return };
    for (file, complaint) in found.as_object().expect("an object") {
        assert_eq!(complaint.is_null(), file.starts_with("good/"), "{file}: {complaint}");
    }
    assert!(found.as_object().is_some_and(|found| found.len() >= 7));
}
