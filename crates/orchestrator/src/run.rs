//! Running a plan: each stage in a process of its own, several at once, what is unchanged not at all.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use artifact::event::{StageResult, Status};
use artifact::object_store::{Lock, remove_tree};
use artifact::{CacheRecord, Digest, Doing, Event, ObjectStore, Settings, Sink, StageError, StageSpec, durable};

use crate::plan::Plan;

/// How long a stage may take to end after it was asked to; then it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// How many lines of a failed stage's standard error are shown.
const LAST_LINES: usize = 12;

/// The running program itself, even when a build has put another one in its place meanwhile: a run is of one code version.
const THIS_EXECUTABLE: &str = "/proc/self/exe";

/// What a run may do.
pub struct Options {
    /// Stages at once.
    pub jobs: usize,
    /// Run every stage, whatever the cache holds.
    pub force: bool,
    /// What every stage is told.
    pub settings: Settings,
}

/// How a run ended.
pub struct Ended {
    /// True when every stage ran or was cached.
    pub ok: bool,
    /// True when it was asked to stop.
    pub interrupted: bool,
    /// Named results and where they lie.
    pub outputs: BTreeMap<String, String>,
}

/// A run that has a name and a folder, and is known to be alive.
pub struct Begun {
    /// Unique in the store.
    pub name: String,
    /// `STORE/runs/NAME`: specs, logs, events.
    pub folder: PathBuf,
    /// Held while the run lives: what it stages is not garbage.
    _alive: Lock,
}

impl Begun {
    /// Names a run and makes its folder.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn new(store: &ObjectStore, pipeline: &str) -> Result<Self, StageError> {
        let name = format!("{}-{pipeline}-{}", jiff::Zoned::now().strftime("%Y%m%dT%H%M%S"), std::process::id());
        let folder = store.run(&name);
        fs::create_dir_all(&folder).doing(|| format!("making the run's folder {}", folder.display()))?;
        let alive = store.try_lock(&lock_name(&name)).doing(|| format!("locking the run {name}"))?;
        let alive = alive.ok_or_else(|| StageError::new(format!("the run {name} is there already")).help("run again"))?;
        Ok(Self { name, folder, _alive: alive })
    }
}

/// A run in progress.
pub struct Run<'a> {
    plan: &'a Plan,
    store: &'a ObjectStore,
    options: &'a Options,
    sink: &'a dyn Sink,
    stop: &'a AtomicBool,
    begun: Begun,
    states: Vec<State>,
    machine: String,
    said: Sender<Said>,
    hears: Receiver<Said>,
}

enum State {
    Waiting,
    Running(Box<Job>),
    Done { status: Status, seconds: f64, record: Option<CacheRecord> },
}

struct Job {
    key: Digest,
    child: Child,
    staging: PathBuf,
    scratch: PathBuf,
    started: jiff::Zoned,
    clock: Instant,
    error: Option<StageError>,
}

/// What a stage's process says, or that it said its last.
enum Said {
    Event(usize, Event),
    Closed(usize),
}

impl<'a> Run<'a> {
    /// A run of this plan, with nothing started.
    pub fn new(
        begun: Begun,
        plan: &'a Plan,
        store: &'a ObjectStore,
        options: &'a Options,
        sink: &'a dyn Sink,
        stop: &'a AtomicBool,
    ) -> Self {
        let states = plan.stages.iter().map(|_| State::Waiting).collect();
        let (said, hears) = channel();
        Self { begun, plan, store, options, sink, stop, states, machine: machine(), said, hears }
    }

    /// Runs to the end; tells everything through the sink, `run_finished` last.
    ///
    /// # Errors
    /// When the store itself fails; a stage's failure is an event, not an error.
    pub fn finish(mut self, outside: &[Option<Digest>]) -> Result<Ended, StageError> {
        let clock = Instant::now();
        let stages = self.plan.stages.iter().map(|stage| stage.name.clone()).collect();
        self.sink.emit(Event::RunStarted { run: self.begun.name.clone(), pipeline: self.plan.name.clone(), stages });
        let ended = self.work(outside);
        if ended.is_err() {
            self.end_children();
        }
        ended?;
        let interrupted = self.stop.load(Ordering::Relaxed);
        let results: Vec<StageResult> = self.results();
        let ok = results.iter().all(|result| matches!(result.status, Status::Ran | Status::Cached));
        let (metrics, outputs) = self.metrics_and_outputs();
        let seconds = clock.elapsed().as_secs_f64();
        let run = self.begun.name.clone();
        self.sink.emit(Event::RunFinished { ok, run, seconds, stages: results, metrics, outputs: outputs.clone() });
        Ok(Ended { ok, interrupted, outputs })
    }

    fn work(&mut self, outside: &[Option<Digest>]) -> Result<(), StageError> {
        loop {
            self.start_what_is_ready(outside)?;
            if !self.states.iter().any(|state| matches!(state, State::Running(_))) {
                return Ok(());
            }
            match self.hears.recv_timeout(Duration::from_millis(100)) {
                Ok(Said::Event(index, event)) => self.hear(index, event),
                Ok(Said::Closed(index)) => self.close(index)?,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if self.stop.load(Ordering::Relaxed) {
                self.end_children();
                return Ok(());
            }
        }
    }

    /// Starts stages whose inputs are there, until all jobs are taken; cached ones take none.
    fn start_what_is_ready(&mut self, outside: &[Option<Digest>]) -> Result<(), StageError> {
        for (index, outside) in outside.iter().enumerate() {
            if !matches!(self.states[index], State::Waiting) {
                continue;
            }
            let upstream: Vec<usize> = self.plan.stages[index].upstream().collect();
            if upstream.iter().any(|from| matches!(self.states[*from], State::Done { status: Status::Failed | Status::Skipped, .. })) {
                self.states[index] = State::Done { status: Status::Skipped, seconds: 0.0, record: None };
                continue;
            }
            let artifacts: Vec<Option<Digest>> = self.states.iter().map(State::artifact).collect();
            let Some(key) = self.plan.key(index, &artifacts, *outside)? else { continue };
            if let Some(record) = self.store.lookup(&key).filter(|_| !self.options.force) {
                self.cached(index, record);
            } else if self.states.iter().filter(|state| matches!(state, State::Running(_))).count() < self.options.jobs {
                let job = self.start(index, key, &artifacts)?;
                self.states[index] = State::Running(Box::new(job));
            }
        }
        Ok(())
    }

    fn cached(&mut self, index: usize, record: CacheRecord) {
        let stage = self.plan.stages[index].name.clone();
        self.sink.emit(Event::StageFinished { stage, status: Status::Cached, seconds: 0.0, artifact: Some(record.artifact) });
        self.states[index] = State::Done { status: Status::Cached, seconds: 0.0, record: Some(record) };
    }

    /// Starts a stage's process: the same executable, the spec file that the crate's own binary takes.
    fn start(&self, index: usize, key: Digest, artifacts: &[Option<Digest>]) -> Result<Job, StageError> {
        let planned = &self.plan.stages[index];
        let name = &planned.name;
        let staging = self.store.staging(&format!("{}.{name}", self.begun.name));
        let scratch = self.store.scratch(&key);
        let object = |from: &usize| artifacts[*from].map(|digest| self.store.object(&digest)).unwrap_or_default();
        let spec = StageSpec {
            name: name.clone(),
            uses: planned.stage.uses().to_owned(),
            config: planned.stage.config().doing(|| format!("writing the config of `{name}`"))?,
            inputs: planned.inputs.iter().map(|(key, all)| (key.clone(), all.iter().map(object).collect())).collect(),
            output: staging.clone(),
            settings: Settings { scratch: Some(scratch.clone()), ..self.options.settings.clone() },
        };
        let spec_file = self.begun.folder.join(format!("{name}.json"));
        let writing = || format!("writing {}", spec_file.display());
        fs::write(&spec_file, serde_json::to_vec_pretty(&spec).doing(writing)?).doing(writing)?;
        let log = File::create(self.log(index)).doing(|| format!("creating {}", self.log(index).display()))?;
        let starting = || format!("starting a process for `{name}`");
        let mut child = Command::new(THIS_EXECUTABLE)
            .arg("stage")
            .arg(&spec_file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .doing(starting)?;
        if let Some(stdout) = child.stdout.take() {
            let said = self.said.clone();
            std::thread::spawn(move || listen(index, stdout, &said));
        }
        Ok(Job { key, child, staging, scratch, started: jiff::Zoned::now(), clock: Instant::now(), error: None })
    }

    fn log(&self, index: usize) -> PathBuf {
        self.begun.folder.join(format!("{}.log", self.plan.stages[index].name))
    }

    /// Passes on what a stage says. Its end is told by this process, once the artifact is in its place.
    fn hear(&mut self, index: usize, event: Event) {
        match (event, &mut self.states[index]) {
            (Event::StageFailed { error, .. }, State::Running(job)) => job.error = Some(error),
            (Event::StageFinished { .. } | Event::StageFailed { .. }, _) => {}
            (event, _) => self.sink.emit(event),
        }
    }

    /// A stage's process has closed its output: it is over, one way or the other.
    fn close(&mut self, index: usize) -> Result<(), StageError> {
        let State::Running(job) = std::mem::replace(&mut self.states[index], State::Waiting) else { return Ok(()) };
        let mut job = *job;
        let name = self.plan.stages[index].name.clone();
        let status = job.child.wait().doing(|| format!("waiting for `{name}`"))?;
        let seconds = job.clock.elapsed().as_secs_f64();
        let kept = match (status.success(), job.error.take()) {
            (true, None) => self.keep(index, &job, seconds),
            (_, Some(error)) => Err(error),
            (_, None) => Err(self.died(index, status)),
        };
        match kept {
            Ok(record) => {
                self.sink.emit(Event::StageFinished { stage: name, status: Status::Ran, seconds, artifact: Some(record.artifact) });
                self.states[index] = State::Done { status: Status::Ran, seconds, record: Some(record) };
            }
            Err(error) => {
                let _ = remove_tree(&job.staging);
                self.sink.emit(Event::StageFailed { stage: name, seconds, error });
                self.states[index] = State::Done { status: Status::Failed, seconds, record: None };
            }
        }
        Ok(())
    }

    /// Publishes a sealed output and remembers it.
    fn keep(&self, index: usize, job: &Job, seconds: f64) -> Result<CacheRecord, StageError> {
        let manifest = self.store.publish(&job.staging)?;
        let record = CacheRecord {
            artifact: manifest.digest,
            uses: self.plan.stages[index].stage.uses().to_owned(),
            run: self.begun.name.clone(),
            started: job.started.timestamp().to_string(),
            seconds,
            machine: self.machine.clone(),
            metrics: manifest.outcome.metrics,
            outputs: manifest.outcome.outputs,
        };
        self.store.remember(&job.key, &record)?;
        let _ = remove_tree(&job.scratch);
        Ok(record)
    }

    /// A process that ended without a word of its own.
    fn died(&self, index: usize, status: ExitStatus) -> StageError {
        let how = match (status.signal(), status.code()) {
            (Some(9), _) => "was killed (signal 9): by hand, or by the kernel because memory ran out".to_owned(),
            (Some(signal), _) => format!("was ended by signal {signal}"),
            (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
        };
        let log = fs::read_to_string(self.log(index)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let mut error = StageError::new(format!("the stage's process {how}")).at(self.log(index).display());
        error.causes = lines[lines.len().saturating_sub(LAST_LINES)..].iter().map(|line| (*line).to_owned()).collect();
        error.help("finished stages are kept: run again to go on from here")
    }

    /// Asks all children to end, waits, and kills those that do not; then removes what they were making.
    fn end_children(&mut self) {
        let running = self.states.iter_mut().filter_map(|state| if let State::Running(job) = state { Some(job) } else { None });
        let mut jobs: Vec<&mut Box<Job>> = running.collect();
        for job in &mut jobs {
            if let Some(pid) = i32::try_from(job.child.id()).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        let clock = Instant::now();
        for job in jobs {
            while matches!(job.child.try_wait(), Ok(None)) && clock.elapsed() < GRACE {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = job.child.kill();
            let _ = job.child.wait();
            let _ = remove_tree(&job.staging);
        }
        for state in &mut self.states {
            if !matches!(state, State::Done { .. }) {
                *state = State::Done { status: Status::Skipped, seconds: 0.0, record: None };
            }
        }
    }

    fn results(&self) -> Vec<StageResult> {
        let stages = self.plan.stages.iter().zip(&self.states);
        stages
            .map(|(stage, state)| {
                let (status, seconds) =
                    if let State::Done { status, seconds, .. } = state { (*status, *seconds) } else { (Status::Skipped, 0.0) };
                StageResult { name: stage.name.clone(), status, seconds, artifact: state.artifact() }
            })
            .collect()
    }

    /// What all stages measured and made, by name; a later stage's word stands over an earlier one's.
    fn metrics_and_outputs(&self) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
        let (mut metrics, mut outputs) = (BTreeMap::new(), BTreeMap::new());
        for state in &self.states {
            if let State::Done { record: Some(record), .. } = state {
                metrics.extend(record.metrics.clone());
                let object = self.store.object(&record.artifact);
                outputs.extend(record.outputs.iter().map(|(name, path)| (name.clone(), object.join(path).display().to_string())));
            }
        }
        (metrics, outputs)
    }
}

impl State {
    fn artifact(&self) -> Option<Digest> {
        if let Self::Done { record: Some(record), .. } = self { Some(record.artifact) } else { None }
    }
}

/// The lock that says a run is alive.
pub fn lock_name(run: &str) -> String {
    format!("run-{run}")
}

/// Reads a child's events until it closes its output. A line that is no event is the stage's own print: kept as a log.
fn listen(index: usize, stdout: impl std::io::Read, said: &Sender<Said>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if let Ok(event) = serde_json::from_str(&line)
            && said.send(Said::Event(index, event)).is_err()
        {
            return;
        }
    }
    let _ = said.send(Said::Closed(index));
}

/// Host name, processors and their kind.
fn machine() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("unknown CPU", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{host}, {cores} × {cpu}")
}

/// Every event of a run into `events.jsonl`; the last one also as `run.json`, durably.
pub struct RunLog {
    file: std::sync::Mutex<File>,
    folder: PathBuf,
}

impl RunLog {
    /// Opens the log in a run's folder.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(folder: &Path) -> Result<Self, StageError> {
        let path = folder.join("events.jsonl");
        let file = File::create(&path).doing(|| format!("creating {}", path.display()))?;
        Ok(Self { file: std::sync::Mutex::new(file), folder: folder.to_owned() })
    }
}

impl Sink for RunLog {
    fn emit(&self, event: Event) {
        let (Ok(mut file), Ok(line)) = (self.file.lock(), serde_json::to_string(&event)) else { return };
        let _ = writeln!(file, "{line}");
        if matches!(event, Event::RunFinished { .. }) {
            let _ = durable::write_file(&self.folder.join("run.json"), line.as_bytes());
        }
    }
}
