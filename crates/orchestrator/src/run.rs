//! Running a plan: each stage in a process of its own, several at once, what is unchanged not at all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use artifact::event::{StageResult, Status, Usage};
use artifact::object_store::{Lock, remove_tree};
use artifact::{CacheRecord, Digest, Doing, Event, Level, ObjectStore, Settings, Sink, StageError, StageSpec};

use crate::begun::{Begun, machine};
use crate::budget::Budget;
use crate::child::{Job, Limits, Place, Said, end_all};
use crate::plan::{Plan, Planned};
use crate::render;
use crate::rules::promote;
use crate::select::Selected;

/// How often the scheduler looks whether it was asked to stop, and whether another run is done with what it waits for.
const LOOK: Duration = Duration::from_millis(50);

/// What took less than this is cheap to make again: its folders are synced with others', at the end of the run.
const SETTLE_FROM_SECONDS: f64 = 1.0;

/// What a run may do.
pub struct Options {
    /// What stages may use together.
    pub budget: Budget,
    /// Which stages it is about.
    pub selected: Selected,
    /// After a failure, go on with what does not need it.
    pub keep_going: bool,
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

/// A run in progress.
pub struct Run<'a> {
    plan: &'a Plan,
    outside: &'a [Option<Digest>],
    store: &'a ObjectStore,
    options: &'a Options,
    sink: &'a dyn Sink,
    stop: &'a AtomicBool,
    begun: Begun,
    states: Vec<State>,
    /// Each stage's cache key, once its inputs are there, and what it used, once it has run.
    facts: Vec<(Option<Digest>, Option<Usage>)>,
    machine: String,
    said: Sender<Said>,
    hears: Receiver<Said>,
    /// The artifact of each stage that has one.
    artifacts: Vec<Option<Digest>>,
    /// How often each stage has failed and was tried again.
    tries: Vec<u32>,
    /// A stage has failed, and no new one is started.
    halted: bool,
    /// Keys and artifacts that a power cut may still take.
    unsettled: Vec<(Digest, Digest)>,
}

enum State {
    /// Some of its inputs are not there yet.
    Waiting,
    /// It has to run, and waits for a free job, for another process that is making the very same (`elsewhere`), or for its time
    /// to be tried again.
    Ready { key: Digest, elsewhere: bool, not_before: Option<Instant> },
    /// It runs.
    Running(Box<Job>),
    /// It is over.
    Done { status: Status, seconds: f64, record: Option<CacheRecord> },
}

impl<'a> Run<'a> {
    /// A run of this plan, with nothing started. `outside` are the digests that [`Plan::outside`] gave.
    pub fn new(
        begun: Begun,
        plan: &'a Plan,
        outside: &'a [Option<Digest>],
        store: &'a ObjectStore,
        options: &'a Options,
        sink: &'a dyn Sink,
        stop: &'a AtomicBool,
    ) -> Self {
        let states = plan.stages.iter().map(|_| State::Waiting).collect();
        let facts = vec![(None, None); plan.stages.len()];
        let (said, hears) = channel();
        let artifacts = vec![None; plan.stages.len()];
        let (unsettled, tries, halted) = (Vec::new(), vec![0; plan.stages.len()], false);
        Self {
            begun,
            plan,
            outside,
            store,
            options,
            sink,
            stop,
            states,
            facts,
            machine: machine(),
            said,
            hears,
            artifacts,
            unsettled,
            tries,
            halted,
        }
    }

    /// Runs to the end; tells everything through the sink, `run_finished` last. Whatever fails is a stage's failure.
    pub fn finish(mut self) -> Ended {
        let clock = Instant::now();
        let stages = self.wanted().map(|index| self.plan.stages[index].name.clone()).collect();
        self.sink.emit(Event::RunStarted { run: self.begun.name.clone(), pipeline: self.plan.name.clone(), stages });
        self.work();
        self.settle_all();
        let interrupted = self.stop.load(Ordering::Relaxed);
        let results: Vec<StageResult> = self.results();
        let ok = results.iter().all(|result| matches!(result.status, Status::Ran | Status::Cached));
        let (metrics, outputs) = self.metrics_and_outputs();
        let seconds = clock.elapsed().as_secs_f64();
        let run = self.begun.name.clone();
        if ok {
            let artifact = |stage: &str| results.iter().find(|result| result.name == stage)?.artifact;
            promote::apply(&self.plan.rules.promote, self.store, &run, &artifact, &metrics, self.sink);
        }
        self.sink.emit(Event::RunFinished { ok, run, seconds, stages: results, metrics, outputs: outputs.clone() });
        Ended { ok, interrupted, outputs }
    }

    fn work(&mut self) {
        let mut looked = Instant::now();
        self.start_what_is_ready();
        while self.states.iter().any(|state| matches!(state, State::Running(_) | State::Ready { .. })) {
            match self.hears.recv_timeout(LOOK) {
                Ok(Said::Event(index, event)) => self.hear(index, event),
                Ok(Said::Closed(index)) => {
                    self.close(index);
                    self.start_what_is_ready();
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.jobs().for_each(Job::watch);
                if self.states.iter().any(|state| matches!(state, State::Ready { .. })) {
                    self.start_what_is_ready();
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                return self.end_children();
            }
        }
    }

    /// Starts stages whose inputs are there, until all jobs are taken; cached ones take none. The plan's order has every
    /// stage after those it takes from, so one pass goes as far as it can.
    fn start_what_is_ready(&mut self) {
        for index in 0..self.states.len() {
            if matches!(self.states[index], State::Waiting) {
                self.look_up(index);
            }
            if let State::Ready { key, elsewhere, not_before } = self.states[index] {
                match self.halted {
                    true => self.states[index] = State::Done { status: Status::Skipped, seconds: 0.0, record: None },
                    false if not_before.is_some_and(|time| time > Instant::now()) => {}
                    false => self.start_if_free(index, key, elsewhere),
                }
            }
        }
    }

    /// Takes a stage from the cache, finds it ready to run, or leaves it waiting.
    fn look_up(&mut self, index: usize) {
        let lost = |from: usize| matches!(self.states[from], State::Done { status: Status::Failed | Status::Skipped, .. });
        if self.plan.stages[index].upstream().any(lost) {
            self.states[index] = State::Done { status: Status::Skipped, seconds: 0.0, record: None };
            return;
        }
        match self.plan.key(index, &self.artifacts, self.outside[index]) {
            Ok(None) => {}
            Ok(Some(key)) => {
                self.facts[index].0 = Some(key);
                if !self.take_from_cache(index, &key) && self.options.selected.wanted[index] {
                    self.states[index] = State::Ready { key, elsewhere: false, not_before: None };
                }
            }
            Err(error) => self.failed(index, error, 0.0),
        }
    }

    fn take_from_cache(&mut self, index: usize, key: &Digest) -> bool {
        let Some(record) = self.store.lookup(key).filter(|_| !self.options.selected.forced[index]) else { return false };
        if self.options.selected.wanted[index] {
            let (stage, artifact) = (self.plan.stages[index].name.clone(), Some(record.artifact));
            self.sink.emit(Event::StageFinished { stage, status: Status::Cached, seconds: 0.0, artifact, usage: None });
        }
        self.done(index, Status::Cached, 0.0, record);
        true
    }

    /// Starts a stage if there is a free job and nobody is making the very same. Two pipelines may share a stage, and with
    /// it the scratch folder of its key: one makes it, the other takes it from the cache.
    fn start_if_free(&mut self, index: usize, key: Digest, waited: bool) {
        let plan = self.plan;
        let running: Vec<&Planned> = self.running().map(|job| &plan.stages[job.index]).collect();
        if !self.options.budget.fits(plan, &running, &plan.stages[index]) {
            return;
        }
        let mut locks = match self.own(&plan.stages[index].needs.mutex) {
            Ok(Some(locks)) => locks,
            Ok(None) => return,
            Err(error) => return self.failed(index, error, 0.0),
        };
        let only = match self.store.try_lock(&format!("key-{key}")).doing(|| format!("taking the lock of the key {key}")) {
            Ok(Some(only)) => only,
            Ok(None) => {
                if !waited && !self.running().any(|job| job.key == key) {
                    let message = "another run is making the very same: waiting for it".to_owned();
                    self.sink.emit(Event::Log { stage: self.plan.stages[index].name.clone(), level: Level::Info, message });
                }
                self.states[index] = State::Ready { key, elsewhere: true, not_before: None };
                return;
            }
            Err(error) => return self.failed(index, error, 0.0),
        };
        // Whoever held the lock until now has left it in the cache, unless it failed.
        if self.take_from_cache(index, &key) {
            return;
        }
        locks.push(only);
        match self.start(index, key, locks) {
            Ok(job) => self.states[index] = State::Running(Box::new(job)),
            Err(error) => self.failed(index, error, 0.0),
        }
    }

    /// What a stage asks to have for itself; none while another one, of whatever run on this store, has a part of it.
    fn own(&self, names: &[String]) -> Result<Option<Vec<Lock>>, StageError> {
        let lock = |name: &String| self.store.try_lock(&format!("mutex-{name}")).doing(|| format!("taking the lock of `{name}`"));
        names.iter().map(lock).collect()
    }

    fn start(&self, index: usize, key: Digest, locks: Vec<Lock>) -> Result<Job, StageError> {
        let planned = &self.plan.stages[index];
        let name = &planned.name;
        let object = |from: &usize| self.artifacts[*from].map(|digest| self.store.object(&digest)).unwrap_or_default();
        let spec = StageSpec {
            name: name.clone(),
            uses: planned.stage.uses().to_owned(),
            config: planned.stage.config().doing(|| format!("writing the config of `{name}`"))?,
            inputs: planned.inputs.iter().map(|(key, all)| (key.clone(), all.iter().map(object).collect())).collect(),
            // What follows the last dot is the stage: see `gc`.
            output: self.store.staging(&format!("{}.{}", self.begun.name, name.replace('.', "%2E"))),
            settings: Settings { scratch: Some(self.store.scratch(&key)), ..self.options.settings.clone() },
        };
        let needs = &planned.needs;
        let cores = needs.cores.map(|_| self.options.budget.cores_of(planned));
        let limits = Limits { cores, memory: needs.memory, timeout: needs.timeout };
        Job::start(spec, key, locks, limits, Place { index, folder: &self.begun.folder, said: self.said.clone() })
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
    fn close(&mut self, index: usize) {
        let State::Running(job) = std::mem::replace(&mut self.states[index], State::Waiting) else { return };
        let mut job = *job;
        let ended = job.end();
        let seconds = job.seconds();
        self.facts[index].1 = job.usage;
        match ended.and_then(|()| self.keep(index, &job, seconds)) {
            Ok(record) => {
                let stage = self.plan.stages[index].name.clone();
                let (artifact, usage) = (Some(record.artifact), job.usage);
                self.sink.emit(Event::StageFinished { stage, status: Status::Ran, seconds, artifact, usage });
                self.done(index, Status::Ran, seconds, record);
            }
            Err(error) => {
                let _ = remove_tree(&job.staging);
                match self.tries[index] < self.plan.stages[index].needs.retries && !self.halted && !self.stop.load(Ordering::Relaxed) {
                    true => self.try_again(index, job.key, &error),
                    false => self.failed(index, error, seconds),
                }
            }
        }
    }

    /// Publishes a sealed output and remembers it.
    fn keep(&mut self, index: usize, job: &Job, seconds: f64) -> Result<CacheRecord, StageError> {
        let manifest = self.store.publish(&job.staging)?;
        let record = CacheRecord {
            artifact: manifest.digest,
            uses: self.plan.stages[index].stage.uses().to_owned(),
            run: self.begun.name.clone(),
            started: job.started.timestamp().to_string(),
            seconds,
            machine: self.machine.clone(),
            usage: job.usage,
            metrics: manifest.outcome.metrics,
            outputs: manifest.outcome.outputs,
        };
        self.store.remember(&job.key, &record)?;
        self.unsettled.push((job.key, record.artifact));
        if seconds >= SETTLE_FROM_SECONDS {
            self.store.settle(&std::mem::take(&mut self.unsettled))?;
        }
        let _ = remove_tree(&job.scratch);
        Ok(record)
    }

    fn done(&mut self, index: usize, status: Status, seconds: f64, record: CacheRecord) {
        self.artifacts[index] = Some(record.artifact);
        self.states[index] = State::Done { status, seconds, record: Some(record) };
    }

    /// At the end, what short stages made.
    fn settle_all(&mut self) {
        if let Err(error) = self.store.settle(&std::mem::take(&mut self.unsettled)) {
            let message = format!("what was made may not survive a power cut: {error}");
            self.sink.emit(Event::Log { stage: self.plan.name.clone(), level: Level::Warning, message });
        }
    }

    /// Waits twice as long each time.
    fn try_again(&mut self, index: usize, key: Digest, error: &StageError) {
        let (stage, tried) = (&self.plan.stages[index], self.tries[index]);
        let wait = stage.needs.wait.saturating_mul(2_u32.saturating_pow(tried));
        let left = stage.needs.retries - tried;
        let again = format!("again in {}, {left} more {}", render::duration(wait.as_secs_f64()), if left == 1 { "time" } else { "times" });
        let message = format!("{error}; {again}");
        self.sink.emit(Event::Log { stage: stage.name.clone(), level: Level::Warning, message });
        self.tries[index] += 1;
        self.states[index] = State::Ready { key, elsewhere: false, not_before: Some(Instant::now() + wait) };
    }

    fn failed(&mut self, index: usize, error: StageError, seconds: f64) {
        self.sink.emit(Event::StageFailed { stage: self.plan.stages[index].name.clone(), seconds, error });
        self.states[index] = State::Done { status: Status::Failed, seconds, record: None };
        self.halted = !self.options.keep_going;
    }

    /// Ends what runs; what has not run is skipped.
    fn end_children(&mut self) {
        end_all(&mut self.jobs().collect::<Vec<_>>());
        for state in &mut self.states {
            if !matches!(state, State::Done { .. }) {
                *state = State::Done { status: Status::Skipped, seconds: 0.0, record: None };
            }
        }
    }

    fn jobs(&mut self) -> impl Iterator<Item = &mut Job> {
        self.states.iter_mut().filter_map(|state| if let State::Running(job) = state { Some(&mut **job) } else { None })
    }

    /// Places of the stages that the run is about.
    fn wanted(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.plan.stages.len()).filter(|index| self.options.selected.wanted[*index])
    }

    fn running(&self) -> impl Iterator<Item = &Job> {
        self.states.iter().filter_map(|state| if let State::Running(job) = state { Some(&**job) } else { None })
    }

    fn results(&self) -> Vec<StageResult> {
        let stages = self.plan.stages.iter().zip(&self.states).zip(&self.artifacts).zip(&self.facts);
        stages
            .zip(&self.options.selected.wanted)
            .filter(|(_, wanted)| **wanted)
            .map(|((((stage, state), artifact), (key, usage)), _)| {
                let (status, seconds) =
                    if let State::Done { status, seconds, .. } = state { (*status, *seconds) } else { (Status::Skipped, 0.0) };
                StageResult { name: stage.name.clone(), status, seconds, artifact: *artifact, key: *key, usage: *usage }
            })
            .collect()
    }

    /// What all stages measured and made, by name; a later stage's word stands over an earlier one's. Those of a variant have
    /// its values in their names.
    fn metrics_and_outputs(&self) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
        let (mut metrics, mut outputs) = (BTreeMap::new(), BTreeMap::new());
        for index in self.wanted() {
            let State::Done { record: Some(record), .. } = &self.states[index] else { continue };
            let ending = self.plan.stages[index].name.split_once('@').map(|(_, values)| format!("@{values}")).unwrap_or_default();
            let named = |name: &String| format!("{name}{ending}");
            let object = self.store.object(&record.artifact);
            metrics.extend(record.metrics.iter().map(|(name, value)| (named(name), *value)));
            outputs.extend(record.outputs.iter().map(|(name, path)| (named(name), object.join(path).display().to_string())));
        }
        (metrics, outputs)
    }
}
