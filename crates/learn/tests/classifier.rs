//! `learn.classifier` on small processed datasets made by hand.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use artifact::event::Collected;
use artifact::{Event, Input, Outcome, RunContext, Settings, Stage, StageError};
use dataset::{DATA_FILE, ImageShape, ImageWriter, Split};
use learn::Classifier;
use transform::{Fitted, ImageTransform};

const SHAPE: ImageShape = ImageShape { height: 6, width: 6, channels: 1 };

/// 6×6 images: class `left` is bright on the left, `right` on the right; `rare` of ten are right.
fn processed(dir: &Path, rare: usize) {
    let mut writer = ImageWriter::create(&dir.join(DATA_FILE), SHAPE).expect("it is written");
    for row in 0..200usize {
        let right = row % 10 < rare;
        let pixels: Vec<u8> =
            (0..36).map(|at| if (at % 6 >= 3) == right { 200 + (row * 7 + at) as u8 % 50 } else { (row * 3 + at) as u8 % 40 }).collect();
        let split = if row % 5 == 4 { Split::Validation } else { Split::Train };
        writer.push(&format!("{row:03}"), Some(if right { "right" } else { "left" }), Some(split), Some(&pixels)).expect("it is written");
    }
    writer.finish().expect("it is written");
    let classes = vec!["left".to_owned(), "right".to_owned()];
    Fitted::Images(ImageTransform { shape: SHAPE, classes, mean: vec![110.0], std: vec![90.0] }).write(dir).expect("it is written");
}

fn config(more: serde_json::Value) -> Classifier {
    let mut config =
        serde_json::json!({ "input": "clean", "layers": ["conv 4 3x3 relu", "pool 2", "dense 2"], "epochs": 3, "batch": 16, "seed": 1 });
    config.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    serde_json::from_value(config).expect("a config")
}

fn run(input: &Path, output: &Path, more: serde_json::Value) -> (Result<Outcome, StageError>, Vec<Event>) {
    fs::create_dir_all(output).expect("a folder");
    let (sink, stop) = (Collected::default(), AtomicBool::new(false));
    let inputs = BTreeMap::from([("input".to_owned(), vec![Input::open(input).expect("it is there")])]);
    let result = config(more).run(&RunContext::new("model", inputs, output.to_owned(), Settings::default(), &sink, &stop));
    (result, sink.take())
}

#[test]
fn a_model_is_learnt_and_carries_f_byte_for_byte() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let model = dir.path().join("model");
    let (outcome, _) = run(dir.path(), &model, serde_json::json!({ "epochs": 8 }));
    assert_eq!(outcome.expect("it learns").metrics["validation.accuracy"], 1.0);
    assert_eq!(fs::read(model.join("f.json")).expect("it is there"), fs::read(dir.path().join("f.json")).expect("it is there"));
    for file in ["model.json", "weights.safetensors", "history.json", "metrics.json", "card.md"] {
        assert!(fs::metadata(model.join(file)).is_ok_and(|file| file.len() > 100), "{file}");
    }
}

#[test]
fn another_seed_gives_other_weights_and_the_same_seed_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let weights = |name: &str, seed: u64| {
        let output = dir.path().join(name);
        run(dir.path(), &output, serde_json::json!({ "seed": seed })).0.expect("it learns");
        fs::read(output.join("weights.safetensors")).expect("it is there")
    };
    let first = weights("a", 1);
    assert_eq!(first, weights("b", 1));
    assert_ne!(first, weights("c", 2));
}

#[test]
fn a_learning_rate_that_tears_the_training_apart_is_named_with_advice() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let wild = serde_json::json!({ "optimiser": { "name": "sgd", "learning_rate": 1e30 } });
    let error = run(dir.path(), &dir.path().join("model"), wild).0.expect_err("it comes apart");
    assert!(error.message.contains("epoch 1") && error.help.as_deref().is_some_and(|help| help.contains("learning rate")), "{error}");
}

#[test]
fn early_stopping_ends_once_nothing_improves_and_the_best_epoch_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let model = dir.path().join("model");
    let (outcome, events) = run(dir.path(), &model, serde_json::json!({ "epochs": 50, "early_stopping": { "patience": 2 } }));
    outcome.expect("it learns");
    let history: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(model.join("history.json")).expect("it is there")).expect("JSON");
    assert!(history.len() < 50, "all epochs ran");
    let accuracy = |epoch: &serde_json::Value| epoch["validation"]["accuracy"].as_f64().unwrap_or_default();
    let best = history.iter().map(accuracy).fold(0.0, f64::max);
    let first_best = history.iter().position(|epoch| accuracy(epoch) == best).expect("it is there") + 1;
    let declaration: serde_json::Value = serde_json::from_slice(&fs::read(model.join("model.json")).expect("it is there")).expect("JSON");
    assert_eq!(declaration["kept_epoch"], first_best, "of equals, the earlier");
    assert_eq!(history.len(), first_best + 2);
    assert!(events.iter().any(|event| matches!(event, Event::Log { message, .. } if message.contains("no better since"))));
}

/// The tensor of this name in a safetensors file.
fn tensor(path: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(path).expect("it is there");
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).expect("JSON");
    let offset = |end: usize| start + header[name]["data_offsets"][end].as_u64().expect("an offset") as usize;
    bytes[offset(0)..offset(1)].as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn a_calibrated_model_is_surer_after_label_smoothing_and_tells_the_same_classes() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let learn = |name: &str, calibrate: bool| {
        let output = dir.path().join(name);
        let more = serde_json::json!({ "epochs": 8, "label_smoothing": 0.3, "calibrate": calibrate });
        (run(dir.path(), &output, more).0.expect("it learns").metrics, files(&output))
    };
    let ((modest, before), (sure, after)) = (learn("modest", false), learn("sure", true));
    assert_eq!(modest["validation.accuracy"], sure["validation.accuracy"]);
    assert!(sure["validation.log_loss"] < 0.8 * modest["validation.log_loss"], "{sure:?} for {modest:?}");
    assert_eq!(before["history.json"], after["history.json"]);
    let declared: serde_json::Value = serde_json::from_slice(&after["model.json"]).expect("JSON");
    let temperature = declared["temperature"].as_f64().expect("a number") as f32;
    assert!(temperature < 1.0, "{temperature}");
    assert!(String::from_utf8_lossy(&after["card.md"]).contains("| temperature | 0."));
    let weights = |name: &str| tensor(&dir.path().join(name).join("weights.safetensors"), "layers.2.weight");
    assert!(weights("modest").iter().zip(weights("sure")).all(|(before, after)| before / temperature == after));
}

#[test]
fn a_model_cannot_be_calibrated_without_a_validation_split() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut writer = ImageWriter::create(&dir.path().join(DATA_FILE), SHAPE).expect("it is written");
    for row in 0..20usize {
        let class = if row % 2 == 0 { "left" } else { "right" };
        writer.push(&format!("{row:03}"), Some(class), Some(Split::Train), Some(&[row as u8; 36])).expect("it is written");
    }
    writer.finish().expect("it is written");
    let classes = vec!["left".to_owned(), "right".to_owned()];
    Fitted::Images(ImageTransform { shape: SHAPE, classes, mean: vec![110.0], std: vec![90.0] }).write(dir.path()).expect("it is written");
    let error = run(dir.path(), &dir.path().join("model"), serde_json::json!({ "calibrate": true })).0.expect_err("there is none");
    assert!(error.message.contains("validation split") && error.help.is_some(), "{error}");
}

#[test]
fn a_whitening_layer_is_fitted_to_the_train_split_and_does_not_learn() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let weights = |name: &str, more: serde_json::Value| {
        let output = dir.path().join(name);
        let mut config = serde_json::json!({ "layers": ["whiten 2x2 bias 1 gelu", "pool 2", "dense 2"], "average": 0.9 });
        config.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        run(dir.path(), &output, config).0.expect("it learns");
        tensor(&output.join("weights.safetensors"), "layers.0.weight")
    };
    let fitted = weights("a", serde_json::json!({ "epochs": 1 }));
    assert_eq!(fitted.len(), 4 * 8);
    assert!(fitted.chunks(8).all(|row| (0..4).all(|filter| row[filter] == -row[4 + filter])), "{fitted:?}");
    assert_eq!(fitted, weights("b", serde_json::json!({ "epochs": 4, "seed": 9 })), "neither the seed nor learning changes them");
}

#[test]
fn the_first_epochs_may_learn_from_smaller_images_and_the_model_judges_whole_ones() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let layers = ["conv 4 3x3 same relu", "conv 4 3x3 same relu", "globalmaxpool", "dense 2"];
    let learn = |name: &str, progressive: serde_json::Value| {
        let more = serde_json::json!({ "epochs": 6, "layers": layers, "progressive": progressive, "augment": { "crop": 1 } });
        let (outcome, _) = run(dir.path(), &dir.path().join(name), more);
        (outcome.expect("it learns").metrics["validation.accuracy"], files(&dir.path().join(name)))
    };
    let parts = serde_json::json!([{ "epochs": 1, "size": [3, 4] }, { "epochs": 2, "size": [5, 5] }]);
    let (accuracy, model) = learn("model", parts.clone());
    assert!(accuracy > 0.9, "{accuracy}");
    let declared: serde_json::Value = serde_json::from_slice(&model["model.json"]).expect("JSON");
    assert_eq!(declared["architecture"]["input"]["image"]["height"], 6);
    assert_eq!(learn("again", parts).1, model);
    assert_ne!(learn("whole", serde_json::json!([])).1["weights.safetensors"], model["weights.safetensors"]);
}

#[test]
fn smaller_images_that_the_layers_do_not_fit_are_named_before_anything_runs() {
    let problems = |image: Option<[usize; 3]>, size: [usize; 2], epochs: u32| {
        let config = config(serde_json::json!({ "image": image, "progressive": [{ "epochs": epochs, "size": size }] }));
        config.check().into_iter().map(|problem| format!("{}: {}", problem.path.join("."), problem.message)).collect::<Vec<_>>()
    };
    assert!(problems(Some([6, 6, 1]), [5, 5], 2)[0].contains("progressive: with images of 5x5"));
    assert!(problems(None, [5, 5], 3)[0].contains("progressive: the last epoch must learn from whole images"));
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let more = serde_json::json!({ "progressive": [{ "epochs": 1, "size": [5, 5] }] });
    let error = run(dir.path(), &dir.path().join("model"), more).0.expect_err("a dense layer does not fit");
    assert!(error.message.contains("layer 3 `dense 2`: it has weights of its own"), "{error}");
}

#[test]
fn a_shape_that_the_data_does_not_have_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let error = run(dir.path(), &dir.path().join("model"), serde_json::json!({ "image": [8, 8, 1] })).0.expect_err("it does not fit");
    assert!(error.message.contains("8") && error.message.contains("6"), "{error}");
}

#[test]
fn values_out_of_range_are_named_by_key_before_anything_runs() {
    let wrong = config(
        serde_json::json!({ "epochs": 0, "batch": 0, "label_smoothing": 1.5, "warm_up": 2.0, "precision": "tf32", "clip_norm": 0.0, "average": 1.0, "augment": { "crop": 65 }, "image": [6, 6, 1], "layers": ["conv 4 9x9 relu", "dense 2"] }),
    );
    let found: Vec<String> = wrong.check().into_iter().map(|problem| problem.path.join(".")).collect();
    assert_eq!(found, ["epochs", "batch", "label_smoothing", "warm_up", "clip_norm", "average", "precision", "augment.crop", "layers.0"]);
}

/// The files of a model, by name.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("it is there").map(|entry| entry.expect("it is there").path());
    entries.map(|path| (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read(&path).expect("it is there"))).collect()
}

/// With CUDA in the program, and a GPU in the machine, it is another story.
#[cfg(not(feature = "cuda"))]
#[test]
fn where_there_is_no_gpu_auto_gives_the_very_files_of_the_cpu_and_says_so_in_a_line() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let (cpu, auto) = (dir.path().join("cpu"), dir.path().join("auto"));
    run(dir.path(), &cpu, serde_json::json!({})).0.expect("it learns");
    let (outcome, events) = run(dir.path(), &auto, serde_json::json!({ "device": "auto" }));
    outcome.expect("it learns");
    assert!(files(&cpu) == files(&auto));
    let is_said = |event: &Event| matches!(event, Event::Log { message, .. } if message.starts_with("computes on the CPU, since no GPU"));
    assert_eq!(events.iter().filter(|event| is_said(event)).count(), 1, "{events:?}");
}

#[test]
fn a_processor_says_how_it_takes_products_of_rounded_factors_and_learns_the_same_bytes_again() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let rounded = serde_json::json!({ "precision": "bf16", "layers": ["conv 16 3x3 relu", "conv 16 3x3 relu", "dense 2"] });
    let learnt = |name: &str| {
        let (outcome, events) = run(dir.path(), &dir.path().join(name), rounded.clone());
        assert_eq!(outcome.expect("it learns").metrics["validation.accuracy"], 1.0);
        let is_said = |event: &Event| matches!(event, Event::Log { message, .. } if message.starts_with("multiplies in "));
        assert_eq!(events.iter().filter(|event| is_said(event)).count(), 1, "{events:?}");
        files(&dir.path().join(name))
    };
    assert!(learnt("a") == learnt("b"));
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_that_cannot_be_had_is_told_with_what_to_do() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let error = run(dir.path(), &dir.path().join("model"), serde_json::json!({ "device": "cuda" })).0.expect_err("there is none");
    assert!(error.message.contains("there is no GPU to compute on") && error.message.contains("cargo xtask cuda build"), "{error}");
}

#[test]
fn the_device_is_part_of_what_a_model_is_asked_for_and_the_cpu_goes_without_saying() {
    let key = |more: serde_json::Value| {
        let config: Box<dyn artifact::stage::AnyStage> = Box::new(config(more));
        config.cache_key(&BTreeMap::new(), None).expect("a key")
    };
    let unsaid = key(serde_json::json!({}));
    assert_eq!(unsaid, key(serde_json::json!({ "device": "cpu" })));
    assert!(unsaid != key(serde_json::json!({ "device": "auto" })) && unsaid != key(serde_json::json!({ "device": "cuda" })));
    let rounded = serde_json::json!({ "device": "cuda", "precision": "tf32" });
    assert!(key(rounded) != key(serde_json::json!({ "device": "cuda" })), "other products, other weights");
}

/// Run by `cargo xtask cuda test`.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "it needs a GPU: cargo xtask cuda test"]
fn a_gpu_learns_what_the_cpu_does_the_same_bytes_each_time_and_the_card_names_it() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    let learnt = |name: &str, device: &str| {
        let output = dir.path().join(name);
        let outcome = run(dir.path(), &output, serde_json::json!({ "device": device, "epochs": 8 })).0.expect("it learns");
        (outcome.metrics["validation.log_loss"], files(&output))
    };
    let (cpu, gpu, again) = (learnt("cpu", "cpu"), learnt("gpu", "cuda"), learnt("again", "cuda"));
    assert!((cpu.0 - gpu.0).abs() < 0.01, "a loss of {} for {}", gpu.0, cpu.0);
    assert!(gpu.1 == again.1, "two trainings on the GPU differ");
    assert!(String::from_utf8_lossy(&gpu.1["card.md"]).contains("| computed on |"));
}

/// What a training on the GPU can be asked for, all that its own kernels do among it.
#[cfg(feature = "cuda")]
fn all_of_it() -> [serde_json::Value; 3] {
    let residual = serde_json::json!({ "residual": ["conv 6 3x3 same gelu", "batchnorm relu"], "activation": "relu" });
    [
        serde_json::json!({
            "augment": { "flip": "random", "crop": 1, "cutout": 2 }, "average": 0.9, "accumulate": 3, "clip_norm": 0.5,
            "optimiser": { "name": "adam", "learning_rate": 0.003, "weight_decay": 0.1 },
        }),
        serde_json::json!({
            "layers": ["whiten 2x2 bias 1 gelu", "conv 6 3x3 same", "batchnorm noscale relu", residual, "dropout 0.2", "globalpool", "dense 2 zeros"],
            "progressive": [{ "epochs": 1, "size": [4, 5] }], "class_weights": "balanced", "label_smoothing": 0.1, "schedule": "linear",
            "optimiser": { "name": "muon", "learning_rate": 0.05, "normalise": true, "weight_decay": 0.01,
                           "rest": { "name": "sgd", "learning_rate": 0.02, "momentum": 0.8, "nesterov": true, "bias_rate": 4.0 } },
            "augment": { "flip": "alternating" },
        }),
        serde_json::json!({
            "layers": ["conv 4 3x3 relu", "avgpool 2", "dense 8 silu", "dense 2"], "batch": 33,
            "optimiser": { "name": "sgd", "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.01 },
        }),
    ]
}

/// Run by `cargo xtask cuda test`.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "it needs a GPU: cargo xtask cuda test"]
fn a_gpu_learns_along_the_cpus_curve_whatever_is_asked_for() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 4);
    for (at, asked) in all_of_it().iter().enumerate() {
        let curve = |name: &str, more: serde_json::Value| {
            let (output, mut config) = (dir.path().join(format!("{name}{at}")), asked.clone());
            config.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            run(dir.path(), &output, config).0.expect("it learns");
            let history: Vec<serde_json::Value> =
                serde_json::from_slice(&fs::read(output.join("history.json")).expect("it is there")).expect("JSON");
            let number = |epoch: &serde_json::Value, split: &str| epoch[split]["loss"].as_f64().expect("a number");
            history.iter().flat_map(|epoch| [number(epoch, "train"), number(epoch, "validation")]).collect::<Vec<_>>()
        };
        let cpu = curve("cpu", serde_json::json!({}));
        // What products are rounded to, with what many steps make of it.
        for (precision, apart) in [("fp32", 2e-3), ("tf32", 2e-2), ("bf16", 0.1)] {
            let gpu = curve(precision, serde_json::json!({ "device": "cuda", "precision": precision }));
            assert_eq!(gpu.len(), cpu.len());
            assert!(gpu.iter().zip(&cpu).all(|(gpu, cpu)| (gpu - cpu).abs() < apart), "{precision}, case {at}: {gpu:?} for {cpu:?}");
        }
    }
}

/// Asks the training to stop when the first epoch is judged.
#[cfg(feature = "cuda")]
struct StopAfterAnEpoch<'a>(&'a AtomicBool);

#[cfg(feature = "cuda")]
impl artifact::event::Sink for StopAfterAnEpoch<'_> {
    fn emit(&self, event: Event) {
        if matches!(event, Event::Metric { .. }) {
            self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

/// Run by `cargo xtask cuda test`.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "it needs a GPU: cargo xtask cuda test"]
fn a_gpu_learns_the_same_bytes_again_and_after_an_interruption() {
    let dir = tempfile::tempdir().expect("a folder");
    processed(dir.path(), 5);
    for (at, mut asked) in all_of_it().into_iter().enumerate() {
        let more = serde_json::json!({ "device": "cuda", "precision": "bf16", "checkpoint": { "steps": 3 } });
        asked.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        let once = |name: &str| {
            let output = dir.path().join(format!("{name}{at}"));
            run(dir.path(), &output, asked.clone()).0.expect("it learns");
            files(&output)
        };
        let whole = once("whole");
        assert!(whole == once("again"), "case {at}");
        let (output, scratch) = (dir.path().join(format!("resumed{at}")), dir.path().join(format!("scratch{at}")));
        fs::create_dir_all(&output).expect("a folder");
        let settings = Settings { scratch: Some(scratch), ..Settings::default() };
        let go_on = |stop: &AtomicBool, sink: &dyn artifact::event::Sink| {
            let inputs = BTreeMap::from([("input".to_owned(), vec![Input::open(dir.path()).expect("it is there")])]);
            config(asked.clone()).run(&RunContext::new("model", inputs, output.clone(), settings.clone(), sink, stop))
        };
        let stop = AtomicBool::new(false);
        go_on(&stop, &StopAfterAnEpoch(&stop)).expect_err("it was asked to stop");
        let (stop, sink) = (AtomicBool::new(false), Collected::default());
        go_on(&stop, &sink).expect("it learns");
        let goes_on = |event: &Event| matches!(event, Event::Log { message, .. } if message.contains("goes on from a checkpoint"));
        let said = sink.take();
        assert!(said.iter().any(goes_on));
        assert!(
            !said.iter().any(|event| matches!(event, Event::Log { message, .. } if message.contains("no room"))),
            "it stays on the GPU"
        );
        assert!(files(&output) == whole, "case {at}");
    }
}
