//! What `episteme schedule` does.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use artifact::worker::{DONE, INTERRUPTED, stop_flag};
use artifact::{Doing, ObjectStore, StageError};

use crate::cli::{Global, ScheduleVerb};
use crate::document::{Document, Scheduled};
use crate::plan::Plan;
use crate::schedule::foreground::Scheduler;
use crate::schedule::install::{Block, Crontab};
use crate::schedule::{Given, Job, systemd};
use crate::verbs::{load, print_document, settings};
use crate::{Failure, schedule};

/// Does what was asked.
///
/// # Errors
/// When a pipeline is wrong or has no schedule, or `crontab` or `systemctl` fails.
pub fn act(global: &Global, verb: &ScheduleVerb) -> Result<u8, Failure> {
    match verb {
        ScheduleVerb::Print { files, spread } => print(global, files, spread.jitter),
        ScheduleVerb::Install { files, systemd, spread } => install(global, files, *systemd, spread.jitter),
        ScheduleVerb::List => list(global),
        ScheduleVerb::Remove { what } => remove(global, what),
        ScheduleVerb::Run { files, catch_up, spread } => {
            let store = ObjectStore::open(&global.store)?;
            let jobs = jobs(global, &store, files, spread.jitter)?.into_iter().map(|(_, job)| job).collect();
            let stop = stop_flag().doing(|| "installing the signal handlers".into())?;
            Scheduler::new(&store, jobs, *catch_up)?.run(&|| stop.load(Ordering::Relaxed))?;
            Ok(INTERRUPTED)
        }
    }
}

fn job(global: &Global, store: &ObjectStore, file: &Path, jitter: Duration) -> Result<(Plan, Option<Job>), Failure> {
    let plan = load(global, file)?;
    let mirrors = settings(global, &plan).mirrors;
    let executable = std::env::current_exe().doing(|| "finding this executable".into())?;
    let given = Given { store: store.root(), mirrors: &mirrors, sets: &global.sets, jitter };
    let job = Job::new(&plan, &executable, &given);
    Ok((plan, job))
}

/// The jobs of pipelines that must have a schedule.
fn jobs(global: &Global, store: &ObjectStore, files: &[PathBuf], jitter: Duration) -> Result<Vec<(Plan, Job)>, Failure> {
    let mut jobs = Vec::new();
    for file in files {
        let (plan, job) = job(global, store, file, jitter)?;
        let none = || StageError::new("this pipeline has no `schedule`").at(file.display());
        jobs.push((plan, job.ok_or_else(|| Failure::Asked(none().help("write `schedule = \"15 2 * * *\"`: every night at 2:15")))?));
    }
    Ok(jobs)
}

fn print(global: &Global, files: &[PathBuf], jitter: Duration) -> Result<u8, Failure> {
    let store = ObjectStore::open(&global.store)?;
    let mut printed = Vec::new();
    for file in files {
        let (plan, job) = job(global, &store, file, jitter)?;
        let lines = job.map(|job| schedule::crontab(&plan, &job, store.root()));
        match &lines {
            _ if global.json => {}
            Some(lines) => anstream::print!("{lines}"),
            None => anstream::println!("# {}: no `schedule` in {}", plan.name, file.display()),
        }
        printed.push(Scheduled { schedule: plan.schedule, crontab: lines, ..Scheduled::new(&plan.name, file) });
    }
    if global.json { print_document(&Document::Schedule { pipelines: printed }) } else { Ok(DONE) }
}

fn install(global: &Global, files: &[PathBuf], with_systemd: bool, jitter: Duration) -> Result<u8, Failure> {
    let store = ObjectStore::open(&global.store)?;
    let jobs = jobs(global, &store, files, jitter)?;
    let mut places = Vec::new();
    if with_systemd {
        for (_, job) in &jobs {
            places.push(systemd::install(job)?.display().to_string());
        }
    } else {
        let mut crontab = Crontab::read()?;
        for (plan, job) in &jobs {
            let lines = schedule::crontab(plan, job, store.root());
            crontab.put(Block { name: job.name.clone(), file: job.file.clone(), lines });
            places.push("crontab".to_owned());
        }
        crontab.write()?;
    }
    if global.json {
        let told = jobs.into_iter().zip(places).map(|((plan, job), place)| Scheduled {
            schedule: plan.schedule,
            place: Some(place),
            ..Scheduled::new(&job.name, &job.file)
        });
        return print_document(&Document::ScheduleInstalled { pipelines: told.collect() });
    }
    for ((plan, job), place) in jobs.iter().zip(&places) {
        anstream::println!("{}: {} in {place}", job.name, plan.schedule.as_deref().unwrap_or_default());
    }
    Ok(DONE)
}

/// The blocks of the crontab: none where there is no cron, which is no mistake when looking.
fn blocks() -> Vec<Block> {
    Crontab::read().map(|crontab| crontab.blocks).unwrap_or_default()
}

fn list(global: &Global) -> Result<u8, Failure> {
    let (blocks, units) = (blocks(), systemd::installed()?);
    if global.json {
        let cron = blocks.into_iter().map(|block| Scheduled {
            place: Some("crontab".into()),
            lines: Some(block.lines),
            ..Scheduled::new(&block.name, &block.file)
        });
        let timers =
            units.iter().map(|unit| Scheduled { place: Some(unit.timer.display().to_string()), ..Scheduled::new(&unit.name, &unit.file) });
        return print_document(&Document::Schedules { pipelines: cron.chain(timers).collect() });
    }
    for block in &blocks {
        let line = block.lines.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
        let when: Vec<&str> = line.split_whitespace().take(5).collect();
        anstream::println!("{}  {}  crontab  {}", block.name, when.join(" "), block.file.display());
    }
    units.iter().for_each(|unit| anstream::println!("{}  {}  {}", unit.name, unit.timer.display(), unit.file.display()));
    Ok(DONE)
}

fn remove(global: &Global, what: &[String]) -> Result<u8, Failure> {
    let mut crontab = Crontab::read().unwrap_or_default();
    let units = systemd::installed()?;
    let known: Vec<&str> =
        crontab.blocks.iter().map(|block| block.name.as_str()).chain(units.iter().map(|unit| unit.name.as_str())).collect();
    if let Some(strange) =
        what.iter().find(|what| !crontab.blocks.iter().any(|block| block.is(what)) && !units.iter().any(|unit| systemd::is(unit, what)))
    {
        let error = StageError::new(format!("`{strange}` is neither in the crontab nor among systemd's timers"));
        return Err(Failure::Asked(error.help(artifact::config::suggest(strange, known.into_iter()))));
    }
    for unit in units.iter().filter(|unit| what.iter().any(|what| systemd::is(unit, what))) {
        systemd::remove(unit)?;
    }
    let before = crontab.blocks.len();
    crontab.blocks.retain(|block| !what.iter().any(|what| block.is(what)));
    if crontab.blocks.len() < before {
        crontab.write()?;
    }
    match global.json {
        true => print_document(&Document::ScheduleRemoved { pipelines: what.to_vec() }),
        false => {
            what.iter().for_each(|what| anstream::println!("{what} is not scheduled any more"));
            Ok(DONE)
        }
    }
}
