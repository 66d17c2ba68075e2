//! Showing what is in a store: artifacts, runs, what a pipeline has.

use std::fs;
use std::path::{Path, PathBuf};

use artifact::event::Status;
use artifact::{Digest, Doing, Event, Manifest, ObjectStore, StageError};
use indicatif::{HumanBytes, HumanCount};

use crate::plan::{Forecast, Plan};
use crate::{begun, render};

/// How many of an artifact's files are listed.
const FILES_SHOWN: usize = 12;

/// What is there of each stage.
pub fn status(plan: &Plan, store: &ObjectStore, forecasts: &[Forecast], json: bool) -> Result<(), StageError> {
    let mut stages = Vec::new();
    let width = plan.stages.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
    for (stage, forecast) in plan.stages.iter().zip(forecasts) {
        let name = &stage.name;
        let Forecast::Cached(record) = forecast else {
            stages.push(serde_json::json!({ "name": name, "state": "stale" }));
            if !json {
                anstream::println!("  {name:<width$}  to run");
            }
            continue;
        };
        let object = store.object(&record.artifact);
        stages.push(serde_json::json!({ "name": name, "state": "current", "record": record, "path": object }));
        if !json {
            let seconds = render::duration(record.seconds);
            anstream::println!("  {name:<width$}  {}  {seconds:>8}  {}", record.artifact.short(), record.started);
            record
                .outputs
                .iter()
                .for_each(|(name, path)| anstream::println!("  {:<width$}    {name}: {}", "", object.join(path).display()));
        }
    }
    let last = runs(store)?.into_iter().rfind(|folder| begun::pipeline_of(&file_name(folder)) == Some(plan.name.as_str()));
    let state = last.as_deref().map(|folder| state(store, folder)).transpose()?;
    if json {
        let last_run = last.zip(state).map(|(folder, state)| serde_json::json!({ "run": file_name(&folder), "state": state }));
        print(&serde_json::json!({ "type": "status", "pipeline": plan.name, "stages": stages, "last_run": last_run }))?;
    } else if let Some((folder, state)) = last.zip(state) {
        anstream::println!("\nlast run: {}, {state}", file_name(&folder));
    }
    Ok(())
}

/// Folders of all runs, the last one last: a run's name begins with its time.
fn runs(store: &ObjectStore) -> Result<Vec<PathBuf>, StageError> {
    let runs = store.root().join("runs");
    let entries = fs::read_dir(&runs).doing(|| format!("listing {}", runs.display()))?.flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// How a run ended, or that it is at work.
fn state(store: &ObjectStore, folder: &Path) -> Result<&'static str, StageError> {
    let text = fs::read_to_string(folder.join("run.json")).unwrap_or_default();
    Ok(match serde_json::from_str(&text) {
        Ok(Event::RunFinished { ok: true, .. }) => "done",
        Ok(_) => "not done",
        Err(_) if begun::is_alive(store, &file_name(folder))? => "at work",
        Err(_) => "killed before its end",
    })
}

/// The one artifact whose digest begins so; none if none does.
///
/// # Errors
/// When several do.
pub fn by_digest(store: &ObjectStore, beginning: &str) -> Result<Option<Digest>, StageError> {
    if beginning.len() < 4 || !beginning.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let folder = store.root().join("objects").join(&beginning[..2]);
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let found: Vec<Digest> = names.filter(|name| name.starts_with(beginning)).filter_map(|name| name.parse().ok()).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        many => Err(StageError::new(format!("{} digests begin with {beginning}", many.len())).help("give more of it")),
    }
}

/// An artifact: what it is, its files, metrics and lineage.
pub fn artifact(store: &ObjectStore, digest: &Digest, json: bool) -> Result<(), StageError> {
    let dir = store.object(digest);
    let manifest = Manifest::read(&dir)?;
    if json {
        return print(&serde_json::json!({ "type": "artifact", "path": dir, "manifest": manifest }));
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
    for ancestor in &manifest.lineage {
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
    let last = runs(store)?.pop().ok_or_else(|| StageError::new("nothing has run on this store yet").help("episteme run"))?;
    run(store, &last, json)
}

/// A run: its stages, how they ended, its metrics.
///
/// # Errors
/// When its record cannot be read.
pub fn run(store: &ObjectStore, folder: &Path, json: bool) -> Result<(), StageError> {
    let path = folder.join("run.json");
    let Ok(text) = fs::read_to_string(&path) else {
        return Err(StageError::new(format!("this run has no record: it is {}", state(store, folder)?))
            .at(folder.display())
            .help("its events so far are in events.jsonl, its stages' words in the .log files"));
    };
    if json {
        anstream::println!("{text}");
        return Ok(());
    }
    let Event::RunFinished { ok, run, seconds, stages, metrics, outputs } =
        serde_json::from_str(&text).doing(|| format!("reading {}", path.display()))?
    else {
        return Err(StageError::new("this is no run's record").at(path.display()));
    };
    anstream::println!("{run}: {} in {}", if ok { "done" } else { "not done" }, render::duration(seconds));
    for stage in stages {
        let digest = stage.artifact.map(|digest| digest.short()).unwrap_or_default();
        let word = match stage.status {
            Status::Ran => "ran",
            Status::Cached => "cached",
            Status::Failed => "failed",
            Status::Skipped => "skipped",
        };
        anstream::println!("  {:<16} {word:<8} {:>8}  {digest}", stage.name, render::duration(stage.seconds));
    }
    metrics.iter().for_each(|(name, value)| anstream::println!("  {name:<32} {value:.6}"));
    outputs.iter().for_each(|(name, path)| anstream::println!("  {name:<12} {path}"));
    Ok(())
}

fn print(value: &serde_json::Value) -> Result<(), StageError> {
    anstream::println!("{}", serde_json::to_string_pretty(value).doing(|| "writing JSON".into())?);
    Ok(())
}
