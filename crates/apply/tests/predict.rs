//! What `apply.predict` gives: of several models together, of a folder of pictures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use apply::{PREDICTIONS_FILE, Predict};
use arrow::array::AsArray;
use arrow::datatypes::Float32Type;
use artifact::event::Collected;
use artifact::{Input, RunContext, Settings, Stage, StageError};
use dataset::{DATA_FILE, ImageShape, ImageWriter, Split, table};
use network::{Architecture, Network, Shape};
use transform::{Fitted, ImageTransform};

const SHAPE: ImageShape = ImageShape { height: 4, width: 4, channels: 1 };

fn fitted(mean: f64) -> Fitted {
    let classes = ["a", "b", "c"].map(str::to_owned).to_vec();
    Fitted::Images(ImageTransform { shape: SHAPE, classes, mean: vec![mean], std: vec![80.0] })
}

fn pixels(row: usize) -> Vec<u8> {
    (0..16).map(|at| ((row * 37 + at * 61) % 256) as u8).collect()
}

fn data(dir: &Path) {
    let mut writer = ImageWriter::create(&dir.join(DATA_FILE), SHAPE).expect("it is written");
    for row in 0..20usize {
        let label = ["a", "b", "c"][row % 3];
        writer.push(&format!("{row:02}"), Some(label), Some(Split::Test), Some(&pixels(row))).expect("it is written");
    }
    writer.finish().expect("it is written");
    fitted(120.0).write(dir).expect("it is written");
}

/// A model that has learnt nothing: the weights it begins with.
fn model(dir: PathBuf, seed: u64, mean: f64) -> PathBuf {
    fs::create_dir_all(&dir).expect("a folder");
    let layers = vec!["conv 3 3x3 relu".parse().expect("a layer"), "dense 3".parse().expect("a layer")];
    let architecture = Architecture { input: Shape::Image { height: 4, width: 4, channels: 1 }, layers };
    let network = Network::new(&architecture, seed).expect("a network");
    fs::write(dir.join("weights.safetensors"), network.to_safetensors().expect("bytes")).expect("it is written");
    let declaration = serde_json::json!({ "format": 1, "architecture": architecture, "classes": ["a", "b", "c"], "kept_epoch": 1 });
    fs::write(dir.join("model.json"), declaration.to_string()).expect("it is written");
    fitted(mean).write(&dir).expect("it is written");
    dir
}

/// The probabilities by these models together, `[20, 3]`.
fn judged(dir: &Path, models: &[&PathBuf]) -> Result<Vec<f32>, StageError> {
    let output = tempfile::tempdir().expect("a folder");
    let open = |path: &Path| Input::open(path).expect("it is there");
    let models = models.iter().map(|path| open(path)).collect();
    let inputs = BTreeMap::from([("model".to_owned(), models), ("data".to_owned(), vec![open(dir)])]);
    let (sink, stop) = (Collected::default(), AtomicBool::new(false));
    let config: Predict = serde_json::from_value(serde_json::json!({ "model": "model@*", "data": "data" })).expect("a config");
    config.run(&RunContext::new("predictions", inputs, output.path().to_owned(), Settings::default(), &sink, &stop))?;
    let (_, batches) = table::read_table(&output.path().join(PREDICTIONS_FILE))?;
    let lists =
        batches.iter().map(|batch| batch["probabilities"].as_list::<i32>().values().as_primitive::<Float32Type>().values().to_vec());
    Ok(lists.flatten().collect())
}

#[test]
fn models_that_judge_together_give_the_mean_of_their_probabilities() {
    let dir = tempfile::tempdir().expect("a folder");
    data(dir.path());
    let [one, two, three] = [1, 2, 3].map(|seed| model(dir.path().join(format!("model{seed}")), seed, 120.0));
    let alone = [&one, &two, &three].map(|model| judged(dir.path(), &[model]).expect("it judges"));
    assert!(alone[0].iter().zip(&alone[1]).any(|(one, two)| (one - two).abs() > 0.05), "the models agree, so this test tells nothing");
    let together = judged(dir.path(), &[&one, &two, &three]).expect("they judge");
    assert_eq!(together.len(), 60);
    for (at, found) in together.iter().enumerate() {
        let mean = alone.iter().map(|one| f64::from(one[at])).sum::<f64>() / 3.0;
        assert!((f64::from(*found) - mean).abs() < 1e-6, "{at}: {found} for {mean}");
    }
    assert_eq!(judged(dir.path(), &[&two, &two]).expect("they judge"), alone[1], "twice the same model is that model");
}

#[test]
fn models_of_another_f_do_not_judge_together() {
    let dir = tempfile::tempdir().expect("a folder");
    data(dir.path());
    let (one, other) = (model(dir.path().join("one"), 1, 120.0), model(dir.path().join("other"), 2, 121.0));
    let error = judged(dir.path(), &[&one, &other]).expect_err("their f differ").to_string();
    assert!(error.contains("must have one f") && error.contains("other"), "{error}");
}

/// More pictures than are judged at once, of the pixels of [`data`], over and over.
fn pictures(dir: &Path) -> Vec<PathBuf> {
    let picture = |row: usize| {
        let path = dir.join(format!("{row:04}.png"));
        image::GrayImage::from_raw(4, 4, pixels(row % 20)).expect("so many pixels").save(&path).expect("it is written");
        path
    };
    (0..1_100).map(picture).collect()
}

#[test]
fn a_folder_of_pictures_is_judged_as_a_dataset_of_their_pixels() {
    let (dir, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    data(dir.path());
    pictures(folder.path());
    let model = model(dir.path().join("model"), 1, 120.0);
    let expected = judged(dir.path(), &[&model]).expect("it judges");
    let found = judged(folder.path(), &[&model]).expect("it judges");
    assert_eq!(found.len(), 1_100 * 3);
    assert!(found.chunks(60).all(|found| found == expected));
}

#[test]
fn of_pictures_that_cannot_be_judged_the_first_is_named_with_the_reason() {
    let (dir, folder) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let model = model(dir.path().join("model"), 1, 120.0);
    let paths = pictures(folder.path());
    fs::write(&paths[900], "no picture").expect("it is written");
    image::GrayImage::new(5, 4).save(&paths[700]).expect("it is written");
    let error = judged(folder.path(), &[&model]).expect_err("two of them cannot be judged").to_string();
    assert!(error.contains("4×5") && error.contains("0700.png"), "{error}");
    pictures(folder.path());
    fs::write(&paths[900], "no picture").expect("it is written");
    let error = judged(folder.path(), &[&model]).expect_err("one cannot be decoded").to_string();
    assert!(error.contains("cannot be decoded") && error.contains("0900.png"), "{error}");
}

#[test]
fn an_empty_list_of_models_is_told_before_anything_runs() {
    let config: Predict = serde_json::from_value(serde_json::json!({ "model": [], "data": "data" })).expect("a config");
    assert_eq!(config.check()[0].message, "`model` names no stage");
}
