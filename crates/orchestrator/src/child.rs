//! One stage at work in a process of its own: its start, what it says, its end.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use artifact::event::Usage;
use artifact::object_store::{Lock, remove_tree};
use artifact::{Digest, Doing, Event, Level, StageError, StageSpec};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getppid, kill_process_group, set_parent_process_death_signal, waitid};

use crate::guard::Guard;
use crate::spare::Spare;
use crate::{memory, render, usage};

/// How long a stage may take to end after it was asked to; then it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How many lines of a failed stage's standard error are shown.
const LAST_LINES: usize = 12;

/// The running program itself, even when a build has put another one in its place meanwhile: a run is of one code version.
pub const THIS_EXECUTABLE: &str = "/proc/self/exe";

/// The allocator's variable that, at 0, has the kernel give a process no large pages.
pub const NO_LARGE_PAGES: &str = "MIMALLOC_ALLOW_THP";

/// What a stage's process says, or that it said its last; with the stage's place in the plan.
pub enum Said {
    /// An event.
    Event(usize, Event),
    /// It has closed its output.
    Closed(usize),
}

/// A stage at work.
pub struct Job {
    /// Its cache key.
    pub key: Digest,
    /// Where it makes its artifact.
    pub staging: PathBuf,
    /// Where it keeps what is to outlive a failure.
    pub scratch: PathBuf,
    /// When it began.
    pub started: jiff::Timestamp,
    /// What it said of its failure.
    pub error: Option<StageError>,
    /// What it used, once it has ended.
    pub usage: Option<Usage>,
    clock: Instant,
    child: Child,
    log: PathBuf,
    limits: Limits,
    /// Since when it is being ended, and why.
    ending: Option<(Instant, StageError)>,
    /// Who ends what it starts, if neither it nor this process can.
    guard: Option<Guard>,
    /// Held while it works: no other run makes the same at the same time, or writes to its scratch folder; nor uses what it
    /// asks to have for itself.
    _locks: Vec<Lock>,
}

/// What a stage's process may take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// Threads that it computes with, where it declares them.
    pub cores: Option<usize>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Time.
    pub timeout: Option<Duration>,
}

/// Where a job is in its run: its place in the plan, the run's folder, and who listens.
pub struct Place<'a> {
    /// In the plan.
    pub index: usize,
    /// The run's.
    pub folder: &'a Path,
    /// What it says goes there.
    pub said: Sender<Said>,
    /// Who ends what it starts, if it starts programs.
    pub guard: Option<Guard>,
    /// A process that waits for such a stage.
    pub spare: Option<Spare>,
}

impl Limits {
    /// Whether its process needs to know of any before it starts.
    pub fn are_told(&self) -> bool {
        self.cores.is_some() || self.memory.is_some()
    }
}

impl Job {
    /// Starts a stage: the same executable, the spec file that the crate's own binary takes. What it says goes to `said`.
    ///
    /// # Errors
    /// When its spec or log cannot be written, or no process can be had.
    pub fn start(spec: StageSpec, key: Digest, locks: Vec<Lock>, limits: Limits, place: Place<'_>) -> Result<Self, StageError> {
        let name = &spec.name;
        let Place { index, folder, said, guard, spare } = place;
        // No stage's name holds a dot: none of these is `run.json` or `events.jsonl`.
        let (spec_file, log) = (folder.join(format!("{name}.spec.json")), folder.join(format!("{name}.log")));
        let writing = || format!("writing {}", spec_file.display());
        fs::write(&spec_file, serde_json::to_vec_pretty(&spec).doing(writing)?).doing(writing)?;
        let stderr = File::create(&log).doing(|| format!("creating {}", log.display()))?;
        let (child, stdout): (Child, Option<Box<dyn Read + Send>>) = match spare.and_then(|spare| spare.give(&spec_file, &log)) {
            Some((child, channel)) => (child, Some(Box::new(channel))),
            None => {
                let mut child =
                    Self::spawn(&spec_file, stderr, limits, guard.as_ref()).doing(|| format!("starting a process for `{name}`"))?;
                let stdout = child.stdout.take();
                (child, stdout.map(|stdout| Box::new(stdout) as Box<dyn Read + Send>))
            }
        };
        if let Some(stdout) = stdout {
            let name = name.clone();
            std::thread::spawn(move || listen(index, &name, stdout, &said));
        }
        let scratch = spec.settings.scratch.unwrap_or_default();
        Ok(Self {
            key,
            staging: spec.output,
            scratch,
            started: jiff::Timestamp::now(),
            error: None,
            usage: None,
            clock: Instant::now(),
            child,
            log,
            limits,
            ending: None,
            guard,
            _locks: locks,
        })
    }

    /// A process for a spec file.
    fn spawn(spec_file: &Path, log: File, limits: Limits, guard: Option<&Guard>) -> io::Result<Child> {
        let mut command = Command::new(THIS_EXECUTABLE);
        command.arg("stage").arg(spec_file).arg("--parent").arg(std::process::id().to_string());
        if guard.is_some() {
            // It only waits for a program, and is over sooner without large pages to clear.
            command.env(NO_LARGE_PAGES, "0");
        }
        if let Some(bytes) = limits.memory {
            command.arg("--memory").arg(bytes.to_string());
        }
        if let Some(cores) = limits.cores {
            for name in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "EPISTEME_CORES"] {
                command.env(name, cores.to_string());
            }
        }
        // A group of its own: what a stage starts is ended with it.
        command.stdin(guard.map_or_else(|| Ok(Stdio::null()), Guard::hold)?).stdout(Stdio::piped()).stderr(log).process_group(0);
        command.spawn()
    }

    /// Its process.
    pub fn process(&self) -> Option<Pid> {
        pid(&self.child)
    }

    /// Seconds since it began.
    pub fn seconds(&self) -> f64 {
        self.clock.elapsed().as_secs_f64()
    }

    /// Waits for its end; what it failed with, if it did.
    ///
    /// # Errors
    /// What the stage said, or, if it said nothing, how its process ended and the last of its log.
    pub fn end(&mut self) -> Result<(), StageError> {
        self.end_group();
        let (status, usage) = usage::reap(&mut self.child).doing(|| "waiting for the stage's process".into())?;
        self.usage = Some(usage);
        if let Some((_, error)) = self.ending.take() {
            return Err(error);
        }
        match (self.error.take(), status.success()) {
            (Some(error), _) => Err(self.with_log(error)),
            (None, true) => Ok(()),
            (None, false) => Err(self.died(status)),
        }
    }

    /// Looks whether it keeps within its limits; ends it if it does not. To be called again and again.
    pub fn watch(&mut self) {
        match &self.ending {
            Some((since, _)) if since.elapsed() >= GRACE => signal(&self.child, Signal::KILL),
            Some(_) => {}
            None => {
                if let Some(error) = self.excess() {
                    signal(&self.child, Signal::TERM);
                    self.ending = Some((Instant::now(), error));
                }
            }
        }
    }

    /// What it takes too much of.
    fn excess(&self) -> Option<StageError> {
        if let Some(timeout) = self.limits.timeout.filter(|timeout| self.clock.elapsed() > *timeout) {
            let error = StageError::new(format!("it took longer than its `timeout` of {}", render::duration(timeout.as_secs_f64())));
            return Some(self.with_log(error).help("raise `timeout`, or find out what it waits for"));
        }
        let limit = self.limits.memory?;
        let taken = self.process().map_or(0, memory::of_tree);
        (taken > limit).then(|| {
            let (taken, limit) = (indicatif::HumanBytes(taken), indicatif::HumanBytes(limit));
            self.with_log(StageError::new(format!("it took {taken} of memory, more than its `memory` of {limit}"))).help("raise `memory`")
        })
    }

    /// Waits for its end, and then ends what it has left behind. The process is still there as a name (a zombie) meanwhile, so
    /// that its group cannot be another's.
    fn end_group(&self) {
        let Some(pid) = self.process() else { return };
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let _ = kill_process_group(pid, Signal::KILL);
        self.guard.iter().for_each(|guard| guard.is_over(pid));
    }

    /// Names the log where an error names no place and the log has something to say.
    fn with_log(&self, mut error: StageError) -> StageError {
        if error.place.is_none() && fs::metadata(&self.log).is_ok_and(|log| log.len() > 0) {
            error.place = Some(self.log.display().to_string());
        }
        error
    }

    /// A process that ended without a word of its own.
    fn died(&self, status: ExitStatus) -> StageError {
        let how = match (status.signal(), status.code()) {
            (Some(9), _) => "was killed (signal 9): by hand, or by the kernel because memory ran out".to_owned(),
            (Some(signal), _) => format!("was ended by signal {signal}"),
            (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
        };
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let mut error = StageError::new(format!("the stage's process {how}")).at(self.log.display());
        error.causes = lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| (*line).to_owned()).collect();
        error.help("finished stages are kept: run again to go on from here")
    }
}

/// Asks all to end, waits, and kills those that do not; then removes what they were making.
pub fn end_all(jobs: &mut [&mut Job]) {
    for job in jobs.iter() {
        signal(&job.child, Signal::TERM);
    }
    let clock = Instant::now();
    for job in jobs {
        while matches!(job.child.try_wait(), Ok(None)) && clock.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(10));
        }
        signal(&job.child, Signal::KILL);
        let _ = job.child.wait();
        let _ = remove_tree(&job.staging);
    }
}

/// A child's number.
pub fn pid(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// To a stage's process and all that it started.
fn signal(child: &Child, signal: Signal) {
    let _ = pid(child).map(|pid| kill_process_group(pid, signal));
}

/// For the stage's process: ends with its orchestrator, even when that is killed. False when it is gone already.
pub fn die_with(parent: u32) -> bool {
    // First the signal, then the look: whichever side of it the parent died on, one of the two tells.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    i32::try_from(parent).ok().and_then(Pid::from_raw) == getppid()
}

/// Passes on what a stage says until it closes its output. A line that is no event was printed by some library: a log line.
fn listen(index: usize, name: &str, stdout: impl Read, said: &Sender<Said>) {
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        let event = serde_json::from_slice(&line).unwrap_or_else(|_| Event::Log {
            stage: name.to_owned(),
            level: Level::Info,
            message: String::from_utf8_lossy(&line).into_owned(),
        });
        if said.send(Said::Event(index, event)).is_err() {
            return;
        }
    }
    let _ = said.send(Said::Closed(index));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_no_event_is_passed_on_as_a_log_line_even_if_it_is_no_utf_8() {
        let (said, hears) = std::sync::mpsc::channel();
        let progress = r#"{"type":"progress","stage":"s","label":"l","done":1,"total":2,"unit":"rows"}"#;
        let bytes = [progress.as_bytes(), b"\nplain\n\xff\n", progress.as_bytes()].concat();
        listen(3, "s", bytes.as_slice(), &said);
        drop(said);
        let heard: Vec<String> = hears
            .iter()
            .map(|said| match said {
                Said::Event(3, Event::Progress { done: 1, .. }) => "progress".into(),
                Said::Event(3, Event::Log { message, .. }) => message,
                Said::Closed(3) => "closed".into(),
                _ => "something else".to_owned(),
            })
            .collect();
        assert_eq!(heard, ["progress", "plain", "\u{fffd}", "progress", "closed"]);
    }

    #[test]
    fn a_stage_whose_parent_is_gone_knows() {
        assert!(!die_with(std::process::id()), "no process is its own parent");
        let _ = set_parent_process_death_signal(None);
    }
}
