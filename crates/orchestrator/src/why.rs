//! Why a stage would run: what differs from the last time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use artifact::{ObjectStore, StageSpec};
use serde_json::Value;

use crate::begun;
use crate::plan::{Forecast, Plan, Planned};

/// How many differing keys are told.
const KEYS_SHOWN: usize = 3;

/// What differs from when the pipeline last started this stage; its inputs are all there.
pub fn runs(plan: &Plan, stage: &Planned, forecasts: &[Forecast], store: &ObjectStore) -> String {
    let Some(last) = last_spec(store, &plan.name, &stage.name) else { return "it has not run on this store".into() };
    let object = |from: &usize| match &forecasts[*from] {
        Forecast::Cached(record) => store.object(&record.artifact),
        Forecast::Run | Forecast::AfterUpstream => PathBuf::new(),
    };
    let inputs = stage.inputs.iter().map(|(key, all)| (key.clone(), all.iter().map(object).collect())).collect();
    let config = stage.stage.canonical_config().unwrap_or_default();
    differences(&last, stage.stage.uses(), &config, &inputs)
}

fn differences(last: &StageSpec, uses: &str, config: &Value, inputs: &BTreeMap<String, Vec<PathBuf>>) -> String {
    if last.uses != uses {
        return format!("it was `{}`", last.uses);
    }
    let nothing = serde_json::Map::new();
    let (before, now) = (last.config.as_object().unwrap_or(&nothing), config.as_object().unwrap_or(&nothing));
    let mut found: Vec<String> = now
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(value))
        .map(|(key, value)| format!("`{key}` was {}, is {}", short(before.get(key)), short(Some(value))))
        .collect();
    found.extend(
        inputs.iter().filter(|(key, paths)| last.inputs.get(*key) != Some(paths)).map(|(key, _)| format!("its `{key}` has changed")),
    );
    let more = found.len().saturating_sub(KEYS_SHOWN);
    found.truncate(KEYS_SHOWN);
    if more > 0 {
        found.push(format!("{more} more"));
    }
    match found.is_empty() {
        true => "config and inputs are as the last time: it did not finish then, or its code or outside data has changed".into(),
        false => found.join("; "),
    }
}

/// A value on a line.
fn short(value: Option<&Value>) -> String {
    const LONGEST: usize = 40;
    let text = value.map_or_else(|| "not there".to_owned(), Value::to_string);
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// What this stage was started with, the last time that a run of this pipeline started it.
fn last_spec(store: &ObjectStore, pipeline: &str, stage: &str) -> Option<StageSpec> {
    let entries = fs::read_dir(store.root().join("runs")).ok()?.flatten();
    let mut runs: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    // A run's name begins with its time.
    runs.sort();
    let of_this = runs.iter().rev().filter(|run| begun::pipeline_of(run) == Some(pipeline));
    let read = |run: &String| -> Option<StageSpec> {
        let path = Path::new(&store.run(run)).join(format!("{stage}.spec.json"));
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    };
    of_this.into_iter().find_map(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn last() -> StageSpec {
        StageSpec {
            name: "model".into(),
            uses: "learn.x".into(),
            config: json!({ "epochs": 3, "input": "clean", "rate": 0.1 }),
            inputs: BTreeMap::from([("input".to_owned(), vec![PathBuf::from("objects/a")])]),
            output: PathBuf::new(),
            settings: Default::default(),
        }
    }

    #[test]
    fn the_keys_and_inputs_that_differ_are_named() {
        let same = last().inputs;
        let why = |uses: &str, config: Value, inputs: &BTreeMap<String, Vec<PathBuf>>| differences(&last(), uses, &config, inputs);
        assert_eq!(why("learn.x", json!({ "epochs": 5, "rate": 0.1 }), &same), "`epochs` was 3, is 5");
        assert_eq!(why("learn.x", json!({ "epochs": 3, "rate": 0.1, "new": true }), &same), "`new` was not there, is true");
        let other = BTreeMap::from([("input".to_owned(), vec![PathBuf::from("objects/b")])]);
        assert_eq!(why("learn.x", json!({ "epochs": 3, "rate": 0.1 }), &other), "its `input` has changed");
        assert_eq!(why("learn.y", json!({}), &same), "it was `learn.x`");
        assert!(why("learn.x", json!({ "epochs": 3, "rate": 0.1 }), &same).starts_with("config and inputs are as the last time"));
        let many = json!({ "a": 1, "b": 2, "c": "x".repeat(100), "d": 4, "epochs": 3, "rate": 0.1 });
        let told = why("learn.x", many, &same);
        assert!(told.ends_with("; 1 more") && told.len() < 200, "{told}");
    }
}
