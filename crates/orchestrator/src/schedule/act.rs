//! What `episteme schedule` does.

use std::path::Path;
use std::sync::atomic::Ordering;

use artifact::worker::{DONE, INTERRUPTED, stop_flag};
use artifact::{Doing, ObjectStore, StageError};

use crate::cli::{Global, Jobs, ScheduleVerb};
use crate::document::{Document, Scheduled};
use crate::plan::Plan;
use crate::schedule::foreground::Scheduler;
use crate::schedule::install::{Block, Crontab};
use crate::schedule::systemd::Unit;
use crate::schedule::{Job, systemd};
use crate::verbs::{load, print_document};
use crate::{Failure, schedule};

/// Does what was asked.
///
/// # Errors
/// When a pipeline is wrong or has no schedule, or `crontab` or `systemctl` fails.
pub fn act(global: &Global, verb: &ScheduleVerb) -> Result<u8, Failure> {
    match verb {
        ScheduleVerb::Print { jobs, systemd } => print(global, jobs, *systemd),
        ScheduleVerb::Install { jobs, systemd } => install(global, jobs, *systemd),
        ScheduleVerb::List => list(global),
        ScheduleVerb::Remove { what } => remove(global, what),
        ScheduleVerb::Run { jobs, catch_up } => {
            let store = ObjectStore::open(&global.store)?;
            let mut jobs: Vec<Job> = due(global, &store, jobs)?.into_iter().map(|(_, job)| job).collect();
            if global.json {
                jobs.iter_mut().for_each(|job| job.command.push("--json".to_owned()));
            }
            let stop = stop_flag().doing(|| "installing the signal handlers".into())?;
            Scheduler::new(&store, jobs, *catch_up)?.run(&|| stop.load(Ordering::Relaxed))?;
            Ok(INTERRUPTED)
        }
    }
}

fn job(global: &Global, store: &ObjectStore, jobs: &Jobs, file: &Path) -> Result<(Plan, Option<Job>), Failure> {
    let plan = load(global, file)?;
    let job = Job::new(&plan, store, global, jobs).map_err(Failure::Asked)?;
    Ok((plan, job))
}

/// The pipelines, which must have a schedule.
fn due(global: &Global, store: &ObjectStore, jobs: &Jobs) -> Result<Vec<(Plan, Job)>, Failure> {
    let mut all = Vec::new();
    for file in &jobs.files {
        let (plan, job) = job(global, store, jobs, file)?;
        let none = || StageError::new("this pipeline has no `schedule`").at(file.display());
        all.push((plan, job.ok_or_else(|| Failure::Asked(none().help("write `schedule = \"15 2 * * *\"`: every night at 2:15")))?));
    }
    Ok(all)
}

fn print(global: &Global, jobs: &Jobs, as_systemd: bool) -> Result<u8, Failure> {
    let store = ObjectStore::open(&global.store)?;
    let mut printed = Vec::new();
    for file in &jobs.files {
        let (plan, job) = job(global, &store, jobs, file)?;
        let crontab = job.as_ref().filter(|_| !as_systemd).map(|job| schedule::crontab(&plan, job, store.root()));
        let units = job.as_ref().filter(|_| as_systemd).map(|job| systemd::units(job).into());
        printed.push(Scheduled { schedule: plan.schedule, crontab, units, ..Scheduled::new(&plan.name, file) });
    }
    if global.json {
        return print_document(&Document::Schedule { pipelines: printed });
    }
    for Scheduled { pipeline, file, schedule, crontab, units, .. } in printed {
        if schedule.is_none() {
            anstream::println!("# {pipeline}: no `schedule` in {}", file.display());
        }
        crontab.iter().for_each(|lines| anstream::print!("{lines}"));
        units.iter().flatten().for_each(|(name, text)| anstream::println!("# --- {name}\n{text}"));
    }
    Ok(DONE)
}

fn install(global: &Global, jobs: &Jobs, with_systemd: bool) -> Result<u8, Failure> {
    let store = ObjectStore::open(&global.store)?;
    let jobs = due(global, &store, jobs)?;
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
    let installed: Vec<Scheduled> = jobs
        .into_iter()
        .zip(places)
        .map(|((_, job), place)| Scheduled { schedule: Some(job.schedule), place: Some(place), ..Scheduled::new(&job.name, &job.file) })
        .collect();
    if global.json {
        return print_document(&Document::ScheduleInstalled { pipelines: installed });
    }
    for Scheduled { pipeline, schedule, place, .. } in &installed {
        anstream::println!("{pipeline}: {} in {}", schedule.as_deref().unwrap_or_default(), place.as_deref().unwrap_or_default());
    }
    Ok(DONE)
}

fn list(global: &Global) -> Result<u8, Failure> {
    let (crontab, units) = (Crontab::read_if_any()?, systemd::installed()?);
    let pipelines: Vec<Scheduled> = crontab.blocks.iter().map(Block::scheduled).chain(units.iter().map(Unit::scheduled)).collect();
    if global.json {
        return print_document(&Document::Schedules { pipelines });
    }
    if pipelines.is_empty() {
        anstream::eprintln!("nothing is scheduled: `episteme schedule install FILE` does it");
    }
    for Scheduled { pipeline, file, schedule, place, .. } in &pipelines {
        let (schedule, place) = (schedule.as_deref().unwrap_or_default(), place.as_deref().unwrap_or_default());
        anstream::println!("{pipeline}  {schedule}  {place}  {}", file.display());
    }
    Ok(DONE)
}

fn remove(global: &Global, what: &[String]) -> Result<u8, Failure> {
    let (mut crontab, units) = (Crontab::read_if_any()?, systemd::installed()?);
    let all: Vec<Scheduled> = crontab.blocks.iter().map(Block::scheduled).chain(units.iter().map(Unit::scheduled)).collect();
    if let Some(strange) = what.iter().find(|what| !all.iter().any(|one| one.is(what))) {
        let error = StageError::new(format!("`{strange}` is neither in the crontab nor among systemd's timers"));
        let help = match all.is_empty() {
            true => "nothing is scheduled".to_owned(),
            false => artifact::config::suggest(strange, all.iter().map(|one| one.pipeline.as_str())),
        };
        return Err(Failure::Asked(error.help(help)));
    }
    let goes = |one: Scheduled| what.iter().any(|what| one.is(what));
    for unit in units.iter().filter(|unit| goes(unit.scheduled())) {
        systemd::remove(unit)?;
    }
    let before = crontab.blocks.len();
    crontab.blocks.retain(|block| !goes(block.scheduled()));
    if crontab.blocks.len() < before {
        crontab.write()?;
    }
    let pipelines: Vec<Scheduled> = all.into_iter().filter(|one| what.iter().any(|what| one.is(what))).collect();
    if global.json {
        return print_document(&Document::ScheduleRemoved { pipelines });
    }
    for Scheduled { pipeline, place, .. } in &pipelines {
        anstream::println!("{pipeline}: gone from {}", place.as_deref().unwrap_or_default());
    }
    Ok(DONE)
}
