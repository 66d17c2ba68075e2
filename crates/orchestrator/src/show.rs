//! Showing what is in a store: artifacts, runs, what a pipeline has.

use std::path::Path;

use artifact::{Digest, Doing, Manifest, ObjectStore, StageError};
use indicatif::{HumanBytes, HumanCount};

use crate::document::{Currency, Document, LastRun, StageStatus};
use crate::folder::file_name;
use crate::plan::{Forecast, Plan};
use crate::record::{RunRecord, RunState};
use crate::{begun, record, render};

/// How many of an artifact's files are listed.
const FILES_SHOWN: usize = 12;

/// What is there of each stage.
pub fn status(plan: &Plan, store: &ObjectStore, forecasts: &[Forecast], json: bool) -> Result<(), StageError> {
    let mut stages = Vec::new();
    let width = plan.stages.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
    for (stage, forecast) in plan.stages.iter().zip(forecasts) {
        let name = &stage.name;
        let Forecast::Cached(record) = forecast else {
            stages.push(StageStatus { name: name.clone(), state: Currency::Stale, record: None, path: None });
            if !json {
                anstream::println!("  {name:<width$}  to run");
            }
            continue;
        };
        let object = store.object(&record.artifact);
        if !json {
            let seconds = render::duration(record.seconds);
            anstream::println!("  {name:<width$}  {}  {seconds:>8}  {}", record.artifact.short(), render::moment(&record.started));
            record
                .outputs
                .iter()
                .for_each(|(name, path)| anstream::println!("  {:<width$}    {name}: {}", "", object.join(path).display()));
        }
        stages.push(StageStatus { name: name.clone(), state: Currency::Current, record: Some((**record).clone()), path: Some(object) });
    }
    let last = record::folders(store)?.into_iter().rfind(|folder| begun::pipeline_of(&file_name(folder)) == Some(plan.name.as_str()));
    let state = last.as_deref().map(|folder| RunRecord::read(store, folder).map(|run| run.state)).transpose()?;
    if json {
        let last_run = last.zip(state).map(|(folder, state)| LastRun { run: file_name(&folder), state });
        print(&Document::Status { pipeline: plan.name.clone(), stages, last_run })?;
    } else if let Some((folder, state)) = last.zip(state) {
        anstream::println!("\nlast run: {}, {}", file_name(&folder), state.word());
    }
    Ok(())
}

/// An artifact: what it is, its files, metrics and lineage.
pub fn artifact(store: &ObjectStore, digest: &Digest, json: bool) -> Result<(), StageError> {
    let dir = store.object(digest);
    let manifest = Manifest::read(&dir)?;
    if json {
        return print(&Document::Artifact { path: dir, manifest });
    }
    let rows = manifest.outcome.rows.map(|rows| format!(", {} rows", HumanCount(rows))).unwrap_or_default();
    anstream::println!("{} {}{rows}, {}", manifest.kind, manifest.digest, HumanBytes(manifest.bytes()));
    anstream::println!("at {}", dir.display());
    anstream::println!("\nfiles");
    for file in manifest.files.iter().take(FILES_SHOWN) {
        anstream::println!("  {:>10}  {}  {}", HumanBytes(file.bytes).to_string(), file.digest.short(), file.path);
    }
    if manifest.files.len() > FILES_SHOWN {
        anstream::println!("  and {} more", manifest.files.len() - FILES_SHOWN);
    }
    if !manifest.outcome.metrics.is_empty() {
        anstream::println!("\nmetrics");
        manifest.outcome.metrics.iter().for_each(|(name, value)| anstream::println!("  {name:<32} {value:.6}"));
    }
    anstream::println!("\nlineage");
    for ancestor in &store.lineage(&manifest) {
        let digest = ancestor.digest.unwrap_or(manifest.digest);
        anstream::println!("  {}  {} (version {}) {}", digest.short(), ancestor.uses, ancestor.version, ancestor.config);
    }
    Ok(())
}

/// The run that began last.
///
/// # Errors
/// When there is none.
pub fn last_run(store: &ObjectStore, json: bool) -> Result<(), StageError> {
    let nothing = || StageError::new("nothing has run on this store yet").help("episteme run");
    let last = record::folders(store)?.pop().ok_or_else(nothing)?;
    run(store, &last, json)
}

/// A run: its stages, how they ended and what they used, its metrics and results.
///
/// # Errors
/// When its lock cannot be looked at.
pub fn run(store: &ObjectStore, folder: &Path, json: bool) -> Result<(), StageError> {
    let run = RunRecord::read(store, folder)?;
    if json {
        let ok = run.state == RunState::Done;
        return print(&Document::Run { record: run, ok });
    }
    let seconds = run.seconds.map(|seconds| format!(" in {}", render::duration(seconds))).unwrap_or_default();
    anstream::println!("{}: {}{seconds}", run.run, run.state.word());
    if let Some(plan) = &run.plan {
        anstream::println!(
            "{}, began {}, episteme {}, on {}",
            plan.file.display(),
            render::moment(&plan.started),
            plan.episteme,
            plan.machine
        );
    }
    anstream::println!();
    let width = run.stages.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
    run.stages.iter().for_each(|stage| anstream::println!("  {:<width$}  {}", stage.name, render::status(stage)));
    if !run.metrics.is_empty() {
        anstream::println!();
    }
    run.metrics.iter().for_each(|(name, value)| anstream::println!("  {name:<32} {value:.6}"));
    if !run.outputs.is_empty() {
        anstream::println!();
    }
    run.outputs.iter().for_each(|(name, path)| anstream::println!("  {name:<12} {path}"));
    if run.seconds.is_none() {
        anstream::println!(
            "\nits events so far are in {}, its stages' words in the .log files beside",
            folder.join("events.jsonl").display()
        );
    }
    Ok(())
}

fn print(value: &Document) -> Result<(), StageError> {
    anstream::println!("{}", serde_json::to_string_pretty(value).doing(|| "writing JSON".into())?);
    Ok(())
}
