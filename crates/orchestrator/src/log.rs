//! `episteme log`: the runs of a store, the newest first.

use artifact::event::Status;
use artifact::worker::DONE;

use crate::cli::Global;
use crate::document::{Document, LoggedRun};
use crate::folder::file_name;
use crate::record::{RunRecord, RunState};
use crate::verbs::print_document;
use crate::{Failure, begun, record, render, verbs};

/// Lists at most `number` runs, of one pipeline if it is named.
///
/// # Errors
/// When the runs cannot be listed.
pub fn log(global: &Global, pipeline: Option<&str>, number: usize) -> Result<u8, Failure> {
    let store = verbs::store_that_is_there(global)?;
    let mut folders = record::folders(&store)?;
    folders.retain(|folder| pipeline.is_none_or(|name| begun::pipeline_of(&file_name(folder)) == Some(name)));
    let runs = folders.iter().rev().take(number).map(|folder| RunRecord::read(&store, folder));
    let runs: Vec<RunRecord> = runs.collect::<Result<_, _>>()?;
    if global.json {
        return print_document(&Document::Log { runs: runs.into_iter().map(summary).collect() });
    }
    if runs.is_empty() {
        let of = pipeline.map(|name| format!("no pipeline `{name}`")).unwrap_or_else(|| "nothing".to_owned());
        anstream::eprintln!("{of} has run on {}", store.root().display());
    }
    let width = runs.iter().map(|run| run.run.len()).max().unwrap_or_default();
    runs.iter().for_each(|run| anstream::println!("{}", line(run, width)));
    if folders.len() > runs.len() {
        anstream::println!("and {} before them: `-n {}` lists all", folders.len() - runs.len(), folders.len());
    }
    Ok(DONE)
}

fn summary(run: RunRecord) -> LoggedRun {
    let (ok, started) = (run.state == RunState::Done, run.plan.map(|plan| plan.started));
    LoggedRun {
        run: run.run,
        pipeline: run.pipeline,
        state: run.state,
        ok,
        started,
        seconds: run.seconds,
        stages: run.stages,
        metrics: run.metrics,
    }
}

/// Name, how it ended, how long it took, what its stages did, and what came out.
fn line(run: &RunRecord, width: usize) -> String {
    let seconds = run.seconds.map(render::duration).unwrap_or_default();
    let count = |status| run.stages.iter().filter(|stage| stage.status == status).count();
    let counts = [(Status::Ran, "ran"), (Status::Cached, "cached"), (Status::Failed, "failed"), (Status::Skipped, "skipped")];
    let counts: Vec<String> = counts
        .into_iter()
        .map(|(status, word)| (count(status), word))
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| format!("{n} {word}"))
        .collect();
    let main = run.metrics.iter().filter(|(name, _)| render::is_main(name)).find(|(name, _)| name.starts_with("test."));
    let main = main.map(|(name, value)| format!("  {name} {value:.4}")).unwrap_or_default();
    format!("{:<width$}  {:<8}  {seconds:>9}  {}{main}", run.run, run.state.word(), counts.join(", "))
}
