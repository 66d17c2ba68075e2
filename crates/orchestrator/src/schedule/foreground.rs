//! `episteme schedule run`: a small scheduler in the foreground, for containers and for machines without cron.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use artifact::{Digest, Doing, ObjectStore, StageError, durable};
use jiff::{Timestamp, Zoned};
use rustix::process::{Pid, Signal, kill_process};

use crate::cli::CatchUp;
use crate::schedule::{Job, share};

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// What is later than this was missed: the machine slept, or was busy.
const LATE: Duration = Duration::from_secs(90);

/// Runs pipelines when they are due, until `stop` says so; then lets what runs end in good order.
pub struct Scheduler<'a> {
    store: &'a ObjectStore,
    catch_up: CatchUp,
    entries: Vec<Entry>,
}

struct Entry {
    job: Job,
    /// When it is due next; none when never.
    due: Option<Zoned>,
    /// At work.
    child: Option<Child>,
}

impl<'a> Scheduler<'a> {
    /// A scheduler that knows when each was last due, by what it wrote into the store.
    ///
    /// # Errors
    /// When the store's folder for that cannot be made.
    pub fn new(store: &'a ObjectStore, jobs: Vec<Job>, catch_up: CatchUp) -> Result<Self, StageError> {
        let folder = store.root().join("schedule");
        fs::create_dir_all(&folder).doing(|| format!("making {}", folder.display()))?;
        let mut scheduler = Self { store, catch_up, entries: Vec::new() };
        let now = Zoned::now();
        for job in jobs {
            let last = scheduler.last(&job).map(|last| last.to_zoned(now.time_zone().clone()));
            // From the last time on, what is past was missed; without a last time nothing was.
            let due = job.calendar.after(last.as_ref().unwrap_or(&now));
            scheduler.entries.push(Entry { job, due, child: None });
        }
        Ok(scheduler)
    }

    /// Goes on until `stop`.
    ///
    /// # Errors
    /// When no process can be started, or what was due cannot be noted.
    pub fn run(mut self, stop: &dyn Fn() -> bool) -> Result<(), StageError> {
        for entry in &self.entries {
            let due = entry.due.as_ref().map_or_else(|| "never".to_owned(), moment);
            say(&format!("{}: due {due}", entry.job.name));
        }
        while !stop() {
            for index in 0..self.entries.len() {
                self.look_after(index)?;
            }
            std::thread::sleep(LOOK);
        }
        self.end();
        Ok(())
    }

    fn look_after(&mut self, index: usize) -> Result<(), StageError> {
        let now = Zoned::now();
        let entry = &mut self.entries[index];
        if let Some(Ok(Some(status))) = entry.child.as_mut().map(Child::try_wait) {
            say(&format!("{}: ended with {status}", entry.job.name));
            entry.child = None;
        }
        let Some(due) = entry.due.clone() else { return Ok(()) };
        if now.timestamp() < due.timestamp() + delay(&entry.job, &due) {
            return Ok(());
        }
        let late = now.timestamp().duration_since(due.timestamp()).unsigned_abs();
        entry.due = entry.job.calendar.after(&now);
        match (late > LATE + entry.job.jitter, self.catch_up) {
            (true, CatchUp::None) => say(&format!("{}: was due {}; missed, and not caught up", entry.job.name, moment(&due))),
            (missed, _) if entry.child.is_none() => {
                say(&format!(
                    "{}: {}",
                    entry.job.name,
                    if missed { format!("catches up what was due {}", moment(&due)) } else { "starts".into() }
                ));
                entry.child = Some(start(&entry.job)?);
            }
            _ => say(&format!("{}: is due, and still at work: skipped", entry.job.name)),
        }
        let path = self.path(&self.entries[index].job);
        durable::write_file(&path, now.timestamp().to_string().as_bytes()).doing(|| format!("writing {}", path.display()))
    }

    /// Asks what runs to end, and waits.
    fn end(&mut self) {
        for child in self.entries.iter_mut().filter_map(|entry| entry.child.as_mut()) {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        for entry in &mut self.entries {
            if let Some(Ok(status)) = entry.child.as_mut().map(Child::wait) {
                say(&format!("{}: ended with {status}", entry.job.name));
            }
        }
    }

    fn path(&self, job: &Job) -> PathBuf {
        let file = Digest::of(job.file.as_os_str().as_encoded_bytes()).short();
        self.store.root().join("schedule").join(format!("{}-{file}", job.name))
    }

    /// When it was last looked whether this is due.
    fn last(&self, job: &Job) -> Option<Timestamp> {
        fs::read_to_string(self.path(job)).ok()?.trim().parse().ok()
    }
}

/// In a group of its own: Ctrl-C reaches the scheduler alone, which then ends all in good order.
fn start(job: &Job) -> Result<Child, StageError> {
    let (program, args) = job.command.split_first().ok_or_else(|| StageError::new("there is nothing to start"))?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).process_group(0);
    command.spawn().doing(|| format!("starting a run of {}", job.name))
}

/// How long after its time a run starts: some part of the jitter, another for each run, so that not all start at once.
fn delay(job: &Job, due: &Zoned) -> Duration {
    job.jitter.mul_f64(share(&format!("{} {due} {}", job.file.display(), std::process::id())))
}

fn say(text: &str) {
    anstream::eprintln!("{} {text}", moment(&Zoned::now()));
}

fn moment(at: &Zoned) -> String {
    at.strftime("%F %T").to_string()
}
