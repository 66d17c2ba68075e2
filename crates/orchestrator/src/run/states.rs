//! What state each stage of a run is in, and which ones are worth a look: so that a step costs the same in a plan of a thousand stages as
//! in one of ten.

use std::collections::BTreeSet;
use std::ops::Index;
use std::time::Instant;

use artifact::event::Status;
use artifact::{CacheRecord, Digest};
use rustix::process::Pid;

use crate::child::Job;
use crate::plan::Plan;

/// Where a stage is.
pub enum State {
    /// Some of its inputs are not there yet.
    Waiting,
    /// It has to run, and waits for a free job, for another process that is making the very same (`elsewhere`), or for its time
    /// to be tried again.
    Ready { key: Digest, elsewhere: bool, not_before: Option<Instant> },
    /// It runs.
    Running(Box<Job>),
    /// It is over.
    Done { status: Status, seconds: f64, record: Option<Box<CacheRecord>> },
}

impl State {
    /// It never came to run.
    pub fn skipped() -> Self {
        Self::Done { status: Status::Skipped, seconds: 0.0, record: None }
    }
}

/// Every stage's state, by its place in the plan.
pub struct States {
    all: Vec<State>,
    /// Who takes from each stage.
    takers: Vec<Vec<usize>>,
    /// Those that wait, and whose inputs may all be there now.
    to_look_at: BTreeSet<usize>,
    ready: BTreeSet<usize>,
    running: BTreeSet<usize>,
}

impl States {
    /// All wait.
    pub fn new(plan: &Plan) -> Self {
        let mut takers = vec![Vec::new(); plan.stages.len()];
        for (index, stage) in plan.stages.iter().enumerate() {
            stage.upstream().for_each(|from| takers[from].push(index));
        }
        Self {
            all: plan.stages.iter().map(|_| State::Waiting).collect(),
            takers,
            to_look_at: (0..plan.stages.len()).collect(),
            ready: BTreeSet::new(),
            running: BTreeSet::new(),
        }
    }

    /// Puts a stage into a state. When it is over, those that take from it are worth a look.
    pub fn set(&mut self, index: usize, state: State) {
        self.ready.remove(&index);
        self.running.remove(&index);
        match &state {
            State::Waiting => {}
            State::Ready { .. } => drop(self.ready.insert(index)),
            State::Running(_) => drop(self.running.insert(index)),
            State::Done { .. } => self.to_look_at.extend(&self.takers[index]),
        }
        self.all[index] = state;
    }

    /// Takes the job of a stage that runs; the stage then waits.
    pub fn take_job(&mut self, index: usize) -> Option<Box<Job>> {
        self.running.remove(&index);
        match std::mem::replace(&mut self.all[index], State::Waiting) {
            State::Running(job) => Some(job),
            other => {
                self.all[index] = other;
                None
            }
        }
    }

    /// The next stage that waits and is worth a look, in the order of the plan; each once, until something it takes from is over.
    pub fn next_to_look_at(&mut self) -> Option<usize> {
        while let Some(index) = self.to_look_at.pop_first() {
            if matches!(self.all[index], State::Waiting) {
                return Some(index);
            }
        }
        None
    }

    /// The first stage from this place on that is ready.
    pub fn next_ready(&self, from: usize) -> Option<usize> {
        self.ready.range(from..).next().copied()
    }

    /// Places of the stages that run.
    pub fn running(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.running.iter().copied()
    }

    /// Their processes.
    pub fn processes(&self) -> Vec<Pid> {
        self.running().filter_map(|index| if let State::Running(job) = &self.all[index] { job.process() } else { None }).collect()
    }

    /// Whether something runs or is ready to.
    pub fn is_busy(&self) -> bool {
        !self.running.is_empty() || !self.ready.is_empty()
    }

    /// The job of a stage that runs.
    pub fn job(&mut self, index: usize) -> Option<&mut Job> {
        if let State::Running(job) = &mut self.all[index] { Some(job) } else { None }
    }

    /// All jobs at work.
    pub fn jobs(&mut self) -> impl Iterator<Item = &mut Job> {
        self.all.iter_mut().filter_map(|state| if let State::Running(job) = state { Some(&mut **job) } else { None })
    }

    /// What is not over never came to run.
    pub fn skip_the_rest(&mut self) {
        let open = (0..self.all.len()).filter(|index| !matches!(self.all[*index], State::Done { .. })).collect::<Vec<_>>();
        open.into_iter().for_each(|index| self.set(index, State::skipped()));
    }

    /// All states, in the order of the plan.
    pub fn iter(&self) -> impl Iterator<Item = &State> {
        self.all.iter()
    }
}

impl Index<usize> for States {
    type Output = State;
    fn index(&self, index: usize) -> &State {
        &self.all[index]
    }
}
