//! What a run may use of the machine, and whether one more stage fits.

use artifact::StageError;
use indicatif::HumanBytes;

use crate::memory;
use crate::plan::{Plan, Planned};

/// What a run may use.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// Stages at once.
    jobs: usize,
    /// Processors that stages may keep busy together.
    cores: usize,
    /// Bytes of memory that stages may take together.
    memory: u64,
}

impl Budget {
    /// What was asked for, or else the machine.
    pub fn new(jobs: Option<u16>, cores: Option<u16>, memory: Option<u64>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = cores.map(usize::from);
        let jobs = jobs.map_or_else(|| cores.unwrap_or(processors), usize::from);
        Self { jobs, cores: cores.unwrap_or(jobs.max(processors)), memory: memory.unwrap_or_else(memory::of_machine) }
    }

    /// No stage may need more memory than there is. One that asks for more processors gets all.
    ///
    /// # Errors
    /// Which does.
    pub fn check(&self, plan: &Plan) -> Result<(), StageError> {
        let too_large = plan.stages.iter().find_map(|stage| Some((stage, stage.needs.memory.filter(|bytes| *bytes > self.memory)?)));
        let Some((stage, bytes)) = too_large else { return Ok(()) };
        let (needs, has) = (HumanBytes(bytes), HumanBytes(self.memory));
        let error = StageError::new(format!("`{}` asks for {needs} of memory, and the run may use {has}", stage.name));
        Err(error.help("lower its `memory`, or raise --memory"))
    }

    /// The processors that a stage keeps busy.
    pub fn cores_of(&self, stage: &Planned) -> usize {
        stage.needs.cores.unwrap_or(1).min(self.cores)
    }

    /// Whether one more stage may run beside so many.
    pub fn has_a_job(&self, running: usize) -> bool {
        running < self.jobs
    }

    /// Whether a stage fits beside those that run.
    pub fn fits(&self, plan: &Plan, running: &[&Planned], stage: &Planned) -> bool {
        let base = |stage: &Planned| stage.name.split('@').next().unwrap_or_default().to_owned();
        let cores: usize = running.iter().map(|stage| self.cores_of(stage)).sum();
        let memory: u64 = running.iter().filter_map(|stage| stage.needs.memory).sum();
        let of_type = running.iter().filter(|other| other.stage.uses() == stage.stage.uses()).count();
        let variants = || running.iter().filter(|other| base(other) == base(stage)).count();
        self.has_a_job(running.len())
            && cores + self.cores_of(stage) <= self.cores
            && memory.saturating_add(stage.needs.memory.unwrap_or_default()) <= self.memory
            && plan.limits.get(stage.stage.uses()).is_none_or(|limit| of_type < *limit)
            && stage.needs.at_once.is_none_or(|limit| variants() < limit)
    }
}
