//! From ready to running: what must be free for a stage, and what its process is told.

use artifact::object_store::Lock;
use artifact::{Digest, Doing, Event, Level, Settings, Stage, StageError, StageSpec};

use super::Run;
use super::states::State;
use crate::child::{Job, Limits, Place};
use crate::command::Command;
use crate::guard::Guard;
use crate::plan::Planned;
use crate::spare::Spare;

impl Run<'_> {
    /// Starts a stage if there is room for it and nobody is making the very same. Two pipelines may share a stage, and with it the
    /// scratch folder of its key: one makes it, the other takes it from the cache.
    pub(super) fn start_if_free(&mut self, index: usize, key: Digest, waited: bool) {
        let plan = self.plan;
        let running: Vec<&Planned> = self.states.running().map(|index| &plan.stages[index]).collect();
        if self.options.budget.fits(plan, &running, &plan.stages[index])
            && let Err(error) = self.start_if_unlocked(index, key, waited)
        {
            self.failed(index, error, 0.0);
        }
    }

    fn start_if_unlocked(&mut self, index: usize, key: Digest, waited: bool) -> Result<(), StageError> {
        let Some(mut locks) = self.own(&self.plan.stages[index].needs.mutex)? else {
            let is_ours = self.states.running().any(|other| self.share_a_mutex(index, other));
            self.wait_for_another(index, key, waited, is_ours, "another run has what its `mutex` names");
            return Ok(());
        };
        let Some(only) = self.store.try_lock(&format!("key-{key}")).doing(|| format!("taking the lock of the key {key}"))? else {
            let is_ours = self.states.jobs().any(|job| job.key == key);
            self.wait_for_another(index, key, waited, is_ours, "another run is making the very same");
            return Ok(());
        };
        locks.push(only);
        // Whoever held the lock until now has left it in the cache, unless it failed.
        if !self.take_from_cache(index, &key) {
            let job = self.start(index, key, locks)?;
            self.states.set(index, State::Running(Box::new(job)));
            self.keep_a_spare(index);
        }
        Ok(())
    }

    /// Says once that it waits for another run; what this run does itself can be seen.
    fn wait_for_another(&mut self, index: usize, key: Digest, waited: bool, is_ours: bool, why: &str) {
        if !waited && !is_ours {
            let message = format!("{why}: waiting for it");
            self.sink.emit(Event::Log { stage: self.plan.stages[index].name.clone(), level: Level::Info, message });
        }
        self.states.set(index, State::Ready { key, elsewhere: waited || !is_ours, not_before: None });
    }

    fn share_a_mutex(&self, a: usize, b: usize) -> bool {
        let names = |index: usize| &self.plan.stages[index].needs.mutex;
        names(a).iter().any(|name| names(b).contains(name))
    }

    /// What a stage asks to have for itself; none while another one, of whatever run on this store, has a part of it.
    fn own(&self, names: &[String]) -> Result<Option<Vec<Lock>>, StageError> {
        let lock = |name: &String| self.store.try_lock(&format!("mutex-{name}")).doing(|| format!("taking the lock of `{name}`"));
        names.iter().map(lock).collect()
    }

    fn start(&mut self, index: usize, key: Digest, locks: Vec<Lock>) -> Result<Job, StageError> {
        let guard = self.guard(index)?;
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
        let spare = if guard.is_some() && !limits.are_told() { self.spare.take() } else { None };
        Job::start(spec, key, locks, limits, Place { index, folder: &self.begun.folder, said: self.said.clone(), guard, spare })
    }

    /// While a stage is at work, the process of a later one that runs a program can get ready.
    fn keep_a_spare(&mut self, index: usize) {
        let (stages, states) = (&self.plan.stages, &self.states);
        let runs_a_program = |index: usize| stages[index].stage.uses() == Command::USES && self.options.selected.wanted[index];
        let is_to_come = |index: usize| matches!(states[index], State::Waiting | State::Ready { .. }) && runs_a_program(index);
        if let (Some(guard), None) = (&self.guard, &self.spare)
            && (index + 1..stages.len()).any(is_to_come)
        {
            // Without one the stage starts its own.
            self.spare = Spare::start(guard).ok();
        }
    }

    /// A stage that runs a program has a guard: the run's, started when it is first needed.
    fn guard(&mut self, index: usize) -> Result<Option<Guard>, StageError> {
        if self.plan.stages[index].stage.uses() != Command::USES {
            return Ok(None);
        }
        if self.guard.is_none() {
            self.guard = Some(Guard::start(&self.states.processes()).doing(|| "starting the guard of the programs".into())?);
        }
        Ok(self.guard.clone())
    }
}
