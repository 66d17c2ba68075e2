//! `episteme diff A B`: two runs, or two artifacts, side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use artifact::worker::DONE;
use artifact::{Digest, Manifest, StageError};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::cli::Global;
use crate::document::{Diff, Document};
use crate::made::{Difference, Made, short, side_by_side};
use crate::record::{RunRecord, StageRecord};
use crate::resolve::Meant;
use crate::verbs::print_document;
use crate::{Failure, render, resolve, verbs};

/// Compares what two words mean.
///
/// # Errors
/// When one of them means nothing, or one is a run and the other an artifact.
pub fn diff(global: &Global, a: &str, b: &str, pipeline: &Path) -> Result<u8, Failure> {
    let store = verbs::store_that_is_there(global)?;
    match (resolve::find(global, &store, a, pipeline)?, resolve::find(global, &store, b, pipeline)?) {
        (Meant::Run(a), Meant::Run(b)) => runs(global, &RunRecord::read(&store, &a)?, &RunRecord::read(&store, &b)?),
        (Meant::Artifact(a), Meant::Artifact(b)) => {
            artifacts(global, &Manifest::read(&store.object(&a))?, &Manifest::read(&store.object(&b))?)
        }
        _ => {
            let error = StageError::new(format!("`{a}` and `{b}` are a run and an artifact: two of a kind can be compared"));
            Err(Failure::Asked(error.help("`episteme log` lists runs, `episteme tag` lists tags")))
        }
    }
}

/// A number, a digest or a text that is not the same on both sides.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Pair {
    /// What it is called.
    name: String,
    /// What it is in `a`; null when it is not there.
    a: Value,
    /// What it is in `b`.
    b: Value,
}

/// What differs between two runs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct RunsDiff {
    /// One run.
    a: String,
    /// The other.
    b: String,
    /// True when nothing differs but the time they took.
    same: bool,
    /// Stages whose config, code or inputs differ.
    stages: Vec<StageDiff>,
    /// Artifacts that differ, by their stages.
    artifacts: Vec<Pair>,
    /// Metrics that differ.
    metrics: Vec<Pair>,
    /// Wall-clock seconds of both; null of one that did not come to its end.
    seconds: [Option<f64>; 2],
}

/// What differs between two artifacts.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ArtifactsDiff {
    /// One artifact.
    a: Digest,
    /// The other.
    b: Digest,
    /// True when they are the same artifact.
    same: bool,
    /// Configs and versions along the way that differ.
    lineage: Vec<Pair>,
    /// Kind, rows and schema, where they differ.
    facts: Vec<Pair>,
    /// Metrics that differ.
    metrics: Vec<Pair>,
    /// Files that differ.
    files: Vec<Pair>,
}

/// Names whose values differ, and how many are the same.
fn pairs(a: &BTreeMap<String, Value>, b: &BTreeMap<String, Value>) -> (Vec<Pair>, usize) {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let value = |values: &BTreeMap<String, Value>, name: &String| values.get(name).cloned().unwrap_or_default();
    let all = names.into_iter().map(|name| Pair { name: name.clone(), a: value(a, name), b: value(b, name) });
    let (same, differ): (Vec<Pair>, Vec<Pair>) = all.partition(|pair| pair.a == pair.b);
    (differ, same.len())
}

fn numbers(metrics: &BTreeMap<String, f64>) -> BTreeMap<String, Value> {
    metrics.iter().map(|(name, value)| (name.clone(), (*value).into())).collect()
}

fn runs(global: &Global, a: &RunRecord, b: &RunRecord) -> Result<u8, Failure> {
    let stages = stages(a, b);
    let results = |run: &RunRecord| -> BTreeMap<String, Value> {
        let digest = |artifact: Option<Digest>| artifact.map(|digest| digest.to_string()).into();
        run.stages.iter().filter(|stage| stage.artifact.is_some()).map(|stage| (stage.name.clone(), digest(stage.artifact))).collect()
    };
    let (artifacts, same_artifacts) = pairs(&results(a), &results(b));
    let (metrics, same_metrics) = pairs(&numbers(&a.metrics), &numbers(&b.metrics));
    if global.json {
        let same = stages.is_empty() && artifacts.is_empty() && metrics.is_empty();
        let (seconds, a, b) = ([a.seconds, b.seconds], a.run.clone(), b.run.clone());
        return print_document(&Document::Diff(Diff::Runs(RunsDiff { a, b, same, stages, artifacts, metrics, seconds })));
    }
    anstream::println!("a  {}: {}{}", a.run, a.state.word(), took(a));
    anstream::println!("b  {}: {}{}", b.run, b.state.word(), took(b));
    if a.pipeline != b.pipeline {
        anstream::println!("These are runs of two pipelines, `{}` and `{}`.", a.pipeline, b.pipeline);
    }
    for stage in &stages {
        anstream::println!("\n{}{}", stage.name, stage.only.map(|run| format!(": only in {run}")).unwrap_or_default());
        stage.differences.iter().for_each(|difference| anstream::println!("  {difference}"));
    }
    tell("artifacts", &artifacts, same_artifacts);
    tell("metrics", &metrics, same_metrics);
    Ok(DONE)
}

fn took(run: &RunRecord) -> String {
    run.seconds.map(|seconds| format!(" in {}", render::duration(seconds))).unwrap_or_default()
}

/// A stage that is not the same in two runs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StageDiff {
    /// Its name.
    name: String,
    /// `a` or `b` when the other has no such stage.
    #[serde(skip_serializing_if = "Option::is_none")]
    only: Option<&'static str>,
    /// Config, code, inputs, outside data.
    differences: Vec<Difference>,
}

fn stages(a: &RunRecord, b: &RunRecord) -> Vec<StageDiff> {
    let all = |run: &RunRecord| -> Vec<StageRecord> { run.plan.as_ref().map(|plan| plan.stages.clone()).unwrap_or_default() };
    let (in_a, in_b) = (all(a), all(b));
    let mut found = Vec::new();
    for stage in &in_a {
        let Some(other) = in_b.iter().find(|other| other.name == stage.name) else {
            found.push(StageDiff { name: stage.name.clone(), only: Some("a"), differences: Vec::new() });
            continue;
        };
        let differences = Made::recorded(b, other).since(&Made::recorded(a, stage));
        if !differences.is_empty() {
            found.push(StageDiff { name: stage.name.clone(), only: None, differences });
        }
    }
    let new = in_b.iter().filter(|stage| in_a.iter().all(|other| other.name != stage.name));
    found.extend(new.map(|stage| StageDiff { name: stage.name.clone(), only: Some("b"), differences: Vec::new() }));
    found
}

fn artifacts(global: &Global, a: &Manifest, b: &Manifest) -> Result<u8, Failure> {
    let files = |manifest: &Manifest| -> BTreeMap<String, Value> {
        manifest.files.iter().map(|file| (file.path.clone(), file.digest.to_string().into())).collect()
    };
    let facts = |manifest: &Manifest| {
        let mut facts =
            crate::made::flat(&manifest.outcome.schema).into_iter().map(|(key, value)| (format!("schema {key}"), value)).collect();
        let facts: &mut BTreeMap<String, Value> = &mut facts;
        facts.insert("kind".into(), manifest.kind.to_string().into());
        facts.insert("rows".into(), manifest.outcome.rows.into());
        facts.clone()
    };
    let (lineage, same_lineage) = pairs(&lineage(a), &lineage(b));
    let (facts, same_facts) = pairs(&facts(a), &facts(b));
    let (metrics, same_metrics) = pairs(&numbers(&a.outcome.metrics), &numbers(&b.outcome.metrics));
    let (files, same_files) = pairs(&files(a), &files(b));
    if global.json {
        let (a, b, same) = (a.digest, b.digest, a.digest == b.digest);
        return print_document(&Document::Diff(Diff::Artifacts(ArtifactsDiff { a, b, same, lineage, facts, metrics, files })));
    }
    anstream::println!("a  {} {}\nb  {} {}", a.kind, a.digest, b.kind, b.digest);
    tell("lineage", &lineage, same_lineage);
    tell("facts", &facts, same_facts);
    tell("metrics", &metrics, same_metrics);
    tell("files", &files, same_files);
    Ok(DONE)
}

/// Configs and versions along the way, by stage type; a type that stands twice is counted.
fn lineage(manifest: &Manifest) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for ancestor in &manifest.lineage {
        let count = seen.entry(&ancestor.uses).and_modify(|count| *count += 1).or_insert(1);
        let name = if *count == 1 { ancestor.uses.clone() } else { format!("{}#{count}", ancestor.uses) };
        all.insert(format!("{name} version"), ancestor.version.into());
        all.extend(crate::made::flat(&ancestor.config).into_iter().map(|(key, value)| (format!("{name} {key}"), value)));
    }
    all
}

/// What differs, side by side; numbers with their difference.
fn tell(title: &str, pairs: &[Pair], same: usize) {
    if pairs.is_empty() && same == 0 {
        return;
    }
    let rest = if same > 0 { format!(" ({same} the same)") } else { String::new() };
    anstream::println!("\n{title}{rest}");
    let width = pairs.iter().map(|pair| pair.name.len()).max().unwrap_or_default();
    for pair in pairs {
        let (a, b) = match (&pair.a, &pair.b) {
            (Value::String(_), Value::String(_)) => side_by_side(&pair.a, &pair.b),
            (a, b) => (shown(a), shown(b)),
        };
        let change = pair.a.as_f64().zip(pair.b.as_f64()).map(|(a, b)| format!("  {:+.6}", b - a)).unwrap_or_default();
        anstream::println!("  {:<width$}  {a:>14}  {b:>14}{change}", pair.name);
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Number(number) if number.is_f64() => format!("{:.6}", number.as_f64().unwrap_or_default()),
        value => short(value),
    }
}
