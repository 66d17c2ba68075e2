//! The default job, as README's first command runs it.

use std::fs;

use episteme_tests::{SMALL, Scratch, workspace};

fn digits() -> String {
    workspace().join("pipelines/digits.toml").to_string_lossy().into_owned()
}

#[test]
fn the_default_job_reaches_98_percent_and_a_second_run_does_no_stage() {
    let scratch = Scratch::new();
    let first = scratch.episteme(&["run", &digits(), "--json"]).ok();
    let finished = first.finished();
    assert_eq!(finished["ok"], true);
    let accuracy = finished["metrics"]["test.accuracy"].as_f64();
    assert!(accuracy.is_some_and(|accuracy| accuracy >= 0.98), "test.accuracy is {accuracy:?}");
    for output in ["predictions", "report"] {
        let path = finished["outputs"][output].as_str().unwrap_or_default();
        assert!(fs::metadata(path).is_ok_and(|file| file.len() > 1000), "{output}: {path}");
    }
    assert!(first.stages().values().all(|(status, _)| status == "ran"));

    let second = scratch.episteme(&["run", &digits(), "--json"]).ok();
    assert!(second.stages().values().all(|(status, _)| status == "cached"));
    assert_eq!(second.finished()["metrics"], finished["metrics"], "a cached run tells the same metrics");
    assert!(scratch.leftovers().is_empty());

    let linear = scratch.episteme(&["run", &digits(), "--json", "--set", r#"stages.model.layers=["dense 10"]"#]).ok();
    let accuracy = linear.finished()["metrics"]["test.accuracy"].as_f64();
    assert!(accuracy.is_some_and(|accuracy| (0.7..0.92).contains(&accuracy)), "a linear model must not be enough: {accuracy:?}");
}

#[test]
fn the_same_pipeline_gives_the_same_bytes_at_any_thread_count() {
    let artifacts = ["1", "2", "3"].map(|threads| {
        let scratch = Scratch::new();
        scratch.write("small.toml", SMALL);
        let mut command = scratch.command(&["run", "small.toml", "--json"]);
        command.env("RAYON_NUM_THREADS", threads).env("POLARS_MAX_THREADS", threads);
        episteme_tests::finish(command).ok().stages()
    });
    assert_eq!(artifacts[0], artifacts[1]);
    assert_eq!(artifacts[1], artifacts[2]);
}

#[test]
fn another_seed_gives_another_model_and_only_what_changed_runs_again() {
    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL);
    let first = scratch.episteme(&["run", "small.toml", "--json"]).ok().stages();
    let longer = scratch.episteme(&["run", "small.toml", "--json", "--set", "stages.model.epochs=1"]).ok().stages();
    for stage in ["raw", "images", "clean"] {
        assert_eq!(longer[stage], ("cached".to_owned(), first[stage].1.clone()));
    }
    assert_eq!(longer["model"].0, "ran");
    assert_ne!(longer["model"].1, first["model"].1);
    let other = scratch.episteme(&["run", "small.toml", "--json", "--set", "seed=4"]).ok().stages();
    assert!(other.values().all(|(status, _)| status == "ran"));
    assert_ne!(other["raw"].1, first["raw"].1);
}
