//! Running a plan: each stage in a process of its own, several at once, what is unchanged not at all.

mod end;
mod start;
mod states;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use artifact::event::{StageResult, Status, Usage};
use artifact::object_store::remove_tree;
use artifact::worker::SHORT;
use artifact::{CacheRecord, Digest, Event, Hit, Level, ObjectStore, Settings, Sink, StageError, durable};

use crate::begun::{Begun, machine};
use crate::budget::Budget;
use crate::child::{Job, Said, end_all};
use crate::guard::Guard;
use crate::plan::Plan;
use crate::render;
use crate::rules::promote;
use crate::select::Selected;
use crate::spare::Spare;
use states::{State, States};

/// How often the scheduler looks whether it was asked to stop, and whether another run is done with what it waits for.
const LOOK: Duration = Duration::from_millis(50);

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
    states: States,
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
    /// Since the first stage that runs a program.
    guard: Option<Guard>,
    /// For the next one.
    spare: Option<Spare>,
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
        let (said, hears) = channel();
        let stages = plan.stages.len();
        Self {
            begun,
            plan,
            outside,
            store,
            options,
            sink,
            stop,
            states: States::new(plan),
            facts: vec![(None, None); stages],
            machine: machine(),
            said,
            hears,
            artifacts: vec![None; stages],
            tries: vec![0; stages],
            halted: false,
            unsettled: Vec::new(),
            guard: None,
            spare: None,
        }
    }

    /// Runs to the end; tells everything through the sink, `run_finished` last. Whatever fails is a stage's failure.
    pub fn finish(mut self) -> Ended {
        let clock = Instant::now();
        let stages = self.wanted().map(|index| self.plan.stages[index].name.clone()).collect();
        self.sink.emit(Event::RunStarted { run: self.begun.name.clone(), pipeline: self.plan.name.clone(), stages });
        self.work();
        self.spare.take().into_iter().for_each(Spare::end);
        let settled = self.settle_all();
        let interrupted = self.stop.load(Ordering::Relaxed);
        let results: Vec<StageResult> = self.results();
        let ok = settled && results.iter().all(|result| matches!(result.status, Status::Ran | Status::Cached));
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
        while self.states.is_busy() {
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
                self.states.jobs().for_each(Job::watch);
                self.start_what_is_ready();
            }
            if self.stop.load(Ordering::Relaxed) {
                return self.end_children();
            }
        }
    }

    /// Starts stages whose inputs are there, in the order of the plan, until all jobs are taken; cached ones take none.
    fn start_what_is_ready(&mut self) {
        self.look_up_what_waits();
        let mut from = 0;
        while let Some(index) = self.states.next_ready(from) {
            if !self.halted && !self.options.budget.has_a_job(self.states.running().len()) {
                return;
            }
            from = index + 1;
            let State::Ready { key, elsewhere, not_before } = self.states[index] else { continue };
            match self.halted {
                true => self.states.set(index, State::skipped()),
                false if not_before.is_some_and(|time| time > Instant::now()) => {}
                false => self.start_if_free(index, key, elsewhere),
            }
            self.look_up_what_waits();
        }
    }

    fn look_up_what_waits(&mut self) {
        while let Some(index) = self.states.next_to_look_at() {
            self.look_up(index);
        }
    }

    /// Takes a stage from the cache, finds it ready to run, or leaves it waiting.
    fn look_up(&mut self, index: usize) {
        let lost = |from: usize| matches!(self.states[from], State::Done { status: Status::Failed | Status::Skipped, .. });
        if self.plan.stages[index].upstream().any(lost) {
            return self.states.set(index, State::skipped());
        }
        match self.plan.key(index, &self.artifacts, self.outside[index]) {
            Ok(None) => {}
            Ok(Some(key)) => {
                self.facts[index].0 = Some(key);
                if !self.take_from_cache(index, &key) && self.options.selected.wanted[index] {
                    self.states.set(index, State::Ready { key, elsewhere: false, not_before: None });
                }
            }
            Err(error) => self.failed(index, error, 0.0),
        }
    }

    fn take_from_cache(&mut self, index: usize, key: &Digest) -> bool {
        let Some(Hit { record, is_settled }) = self.store.lookup(key).filter(|_| !self.options.selected.forced[index]) else {
            return false;
        };
        if !is_settled {
            self.unsettled.push((*key, record.artifact));
        }
        if self.options.selected.wanted[index] {
            let (stage, artifact) = (self.plan.stages[index].name.clone(), Some(record.artifact));
            self.sink.emit(Event::StageFinished { stage, status: Status::Cached, seconds: 0.0, artifact, usage: None });
        }
        self.done(index, Status::Cached, 0.0, record);
        true
    }

    /// Passes on what a stage says. Its end is told by this process, once the artifact is in its place.
    fn hear(&mut self, index: usize, event: Event) {
        match (event, self.states.job(index)) {
            (Event::StageFailed { error, .. }, Some(job)) => job.error = Some(error),
            (Event::StageFinished { .. } | Event::StageFailed { .. }, _) => {}
            (event, _) => self.sink.emit(event),
        }
    }

    /// A stage's process has closed its output: it is over, one way or the other.
    fn close(&mut self, index: usize) {
        let Some(mut job) = self.states.take_job(index) else { return };
        let ended = job.end();
        let seconds = job.seconds();
        self.end_orphans();
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
            started: job.started.to_string(),
            seconds,
            machine: self.machine.clone(),
            boot: durable::boot().map(str::to_owned),
            usage: job.usage,
            metrics: manifest.outcome.metrics,
            outputs: manifest.outcome.outputs,
        };
        self.store.remember(&job.key, &record)?;
        self.unsettled.push((job.key, record.artifact));
        // Where no boot can be told from another, nothing waits for its sync.
        if seconds >= SHORT.as_secs_f64() || record.boot.is_none() {
            self.store.settle(&std::mem::take(&mut self.unsettled))?;
        }
        let _ = remove_tree(&job.scratch);
        Ok(record)
    }

    fn done(&mut self, index: usize, status: Status, seconds: f64, record: CacheRecord) {
        self.artifacts[index] = Some(record.artifact);
        self.states.set(index, State::Done { status, seconds, record: Some(Box::new(record)) });
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
        self.states.set(index, State::Ready { key, elsewhere: false, not_before: Some(Instant::now() + wait) });
    }

    fn failed(&mut self, index: usize, error: StageError, seconds: f64) {
        self.sink.emit(Event::StageFailed { stage: self.plan.stages[index].name.clone(), seconds, error });
        self.states.set(index, State::Done { status: Status::Failed, seconds, record: None });
        self.halted = !self.options.keep_going;
    }

    /// Ends what runs; what has not run is skipped.
    fn end_children(&mut self) {
        end_all(&mut self.states.jobs().collect::<Vec<_>>());
        self.states.skip_the_rest();
        self.end_orphans();
    }

    /// Ends what programs have started whose stage is no more.
    fn end_orphans(&self) {
        let own = || self.states.processes().into_iter().chain(self.spare.as_ref().and_then(Spare::process)).collect::<Vec<_>>();
        self.guard.iter().for_each(|guard| guard.end_orphans(&own()));
    }

    /// Places of the stages that the run is about.
    fn wanted(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.plan.stages.len()).filter(|index| self.options.selected.wanted[*index])
    }
}
