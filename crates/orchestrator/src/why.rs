//! Why a stage would run: what differs from the last time.

use artifact::event::Status;
use artifact::worker::DONE;
use artifact::{Digest, ObjectStore, StageError};
use std::path::Path;

use crate::cli::Global;
use crate::document::{Because, Document, Will};
use crate::folder::file_name;
use crate::made::{Difference, Made};
use crate::plan::{Forecast, Plan};
use crate::record::{RunRecord, StageRecord};
use crate::verbs::print_document;
use crate::{Failure, begun, record, verbs};

/// How many differences `plan` tells on a line.
const SHOWN: usize = 3;

/// What a stage's inputs and config are compared with, and what came of it.
pub struct Reason {
    /// The run in which it last ran, was cached or failed; none when there is no such run.
    pub since: Option<String>,
    /// What differs since then.
    pub differences: Vec<Difference>,
    /// What is the matter when nothing differs.
    pub otherwise: &'static str,
}

impl Reason {
    /// On one line.
    pub fn line(&self) -> String {
        let mut found: Vec<String> = self.differences.iter().map(Difference::to_string).collect();
        let more = found.len().saturating_sub(SHOWN);
        found.truncate(SHOWN);
        if more > 0 {
            found.push(format!("{more} more"));
        }
        if found.is_empty() { self.otherwise.to_owned() } else { found.join("; ") }
    }
}

/// Why a stage whose inputs are all there would run.
///
/// # Errors
/// When the runs of the store cannot be listed.
pub fn reason(
    plan: &Plan,
    index: usize,
    forecasts: &[Forecast],
    outside: &[Option<Digest>],
    store: &ObjectStore,
) -> Result<Reason, StageError> {
    let artifacts: Vec<Option<Digest>> = forecasts.iter().map(Forecast::artifact).collect();
    let now = Made::now(plan, index, &artifacts, outside[index])?;
    let Some((run, stage)) = last_time(store, &plan.name, &plan.stages[index].name)? else {
        return Ok(Reason { since: None, differences: Vec::new(), otherwise: "it has not run on this store" });
    };
    let failed = run.stages.iter().any(|result| result.name == stage.name && result.status == Status::Failed);
    Ok(Reason {
        differences: now.since(&Made::recorded(&run, &stage)),
        otherwise: match failed {
            true => "config and inputs are as the last time: it failed then",
            false => "config and inputs are as the last time: its artifact is gone",
        },
        since: Some(run.run),
    })
}

/// The last run of a pipeline in which a stage ran, was cached or failed, and what the stage was then.
fn last_time(store: &ObjectStore, pipeline: &str, stage: &str) -> Result<Option<(RunRecord, StageRecord)>, StageError> {
    for folder in record::folders(store)?.iter().rev().filter(|folder| begun::pipeline_of(&file_name(folder)) == Some(pipeline)) {
        let run = RunRecord::read(store, folder)?;
        let begun = run.stages.iter().any(|result| result.name == stage && result.status != Status::Skipped);
        let recorded = run.plan.as_ref().and_then(|plan| plan.stages.iter().find(|recorded| recorded.name == stage)).cloned();
        if let Some(recorded) = recorded.filter(|_| begun) {
            return Ok(Some((run, recorded)));
        }
    }
    Ok(None)
}

/// `episteme why STAGE`.
///
/// # Errors
/// When the pipeline is wrong, has no such stage, or the store cannot be read.
pub fn why(global: &Global, file: &Path, name: &str) -> Result<u8, Failure> {
    let plan = verbs::load(global, file)?;
    let outside = plan.outside(&verbs::settings(global, &plan)).map_err(Failure::Asked)?;
    let store = ObjectStore::open(&global.store)?;
    let forecasts = plan.forecast(&store, &outside)?;
    let meant = plan.places(name).map_err(Failure::Asked)?;
    // Of a stage that waits, the first ones of its way that would run are the reason.
    let mut asked = meant.clone();
    let mut told = Vec::new();
    let mut next = 0;
    while let Some(index) = asked.get(next).copied() {
        next += 1;
        match &forecasts[index] {
            Forecast::Run => told.push((index, reason(&plan, index, &forecasts, &outside, &store)?)),
            Forecast::AfterUpstream => {
                let upstream: Vec<usize> = plan.stages[index].upstream().filter(|from| !asked.contains(from)).collect();
                asked.extend(upstream);
            }
            Forecast::Cached(_) => {}
        }
    }
    if global.json {
        return print_document(&document(&plan, name, &meant, &forecasts, told));
    }
    meant.iter().for_each(|index| tell(&plan.stages[*index].name, &forecasts[*index], of(&told, *index)));
    for (index, reason) in told.iter().filter(|(index, _)| !meant.contains(index)) {
        anstream::println!("{} would run:", plan.stages[*index].name);
        tell_reason(reason);
    }
    Ok(DONE)
}

/// Of a stage with variants: what would become of the first that would run, or else waits.
fn document(plan: &Plan, name: &str, meant: &[usize], forecasts: &[Forecast], told: Vec<(usize, Reason)>) -> Document {
    let because = told.into_iter().map(|(index, reason)| {
        let (stage, why) = (plan.stages[index].name.clone(), reason.line());
        Because { stage, since: reason.since, differences: reason.differences, why }
    });
    let because = because.collect();
    let all = || meant.iter().map(|index| forecasts[*index].will());
    let will = [Will::Run, Will::AfterUpstream].into_iter().find(|will| all().any(|one| one == *will)).unwrap_or(Will::Cached);
    let artifact = if let [one] = meant { forecasts[*one].artifact() } else { None };
    Document::Why { stage: name.to_owned(), will, artifact, because }
}

fn of(told: &[(usize, Reason)], stage: usize) -> Option<&Reason> {
    told.iter().find(|(index, _)| *index == stage).map(|(_, reason)| reason)
}

fn tell(name: &str, forecast: &Forecast, reason: Option<&Reason>) {
    match forecast {
        Forecast::Cached(record) => {
            anstream::println!("{name} would not run: nothing differs from {}, which made {}", record.run, record.artifact.short());
        }
        Forecast::Run => anstream::println!("{name} would run:"),
        Forecast::AfterUpstream => {
            anstream::println!("{name} waits for what is before it, and runs unless that gives what it gave before:")
        }
    }
    reason.into_iter().for_each(tell_reason);
}

fn tell_reason(reason: &Reason) {
    let since = reason.since.as_ref().map(|run| format!(" since {run}")).unwrap_or_default();
    match reason.differences.as_slice() {
        [] => anstream::println!("  {}{}", reason.otherwise, since.replace(" since", ":")),
        differences => differences.iter().for_each(|difference| anstream::println!("  {difference}{since}")),
    }
}
