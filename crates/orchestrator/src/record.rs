//! What a run leaves to be looked at later: `plan.json` at its beginning, `events.jsonl` on its way, `run.json` at its end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use artifact::event::{StageResult, Status};
use artifact::{Digest, Doing, Event, ObjectStore, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::begun;
use crate::folder::{file_name, list};
use crate::plan::Plan;

/// The resolved plan of a run: all that is needed to compare it, explain it, and run it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanRecord {
    /// Version of this format: 1.
    pub format: u32,
    /// The pipeline's name.
    pub pipeline: String,
    /// Its file, absolute.
    pub file: PathBuf,
    /// The folder that relative paths were taken from.
    pub base: PathBuf,
    /// When the run began, RFC 3339.
    pub started: String,
    /// Host name and CPU.
    pub machine: String,
    /// The version of `episteme`.
    pub episteme: String,
    /// The stages, in the order of the plan.
    pub stages: Vec<StageRecord>,
}

/// One stage of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageRecord {
    /// Its name.
    pub name: String,
    /// Its type.
    pub uses: String,
    /// The code version of that type.
    pub version: u32,
    /// Its whole config, defaults filled in.
    pub config: Value,
    /// The keys of its config that name stages, and the names.
    pub inputs: BTreeMap<String, Vec<String>>,
    /// Digest of what it read from outside the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outside: Option<Digest>,
}

impl PlanRecord {
    /// A plan as it stands now.
    ///
    /// # Errors
    /// When a config has no JSON form.
    pub fn of(plan: &Plan, outside: &[Option<Digest>]) -> Result<Self, StageError> {
        let name = |index: &usize| plan.stages[*index].name.clone();
        let stages = plan.stages.iter().zip(outside).map(|(planned, outside)| {
            Ok(StageRecord {
                name: planned.name.clone(),
                uses: planned.stage.uses().to_owned(),
                version: planned.stage.version(),
                config: planned.stage.config().doing(|| format!("writing the config of `{}`", planned.name))?,
                inputs: planned.inputs.iter().map(|(key, all)| (key.clone(), all.iter().map(name).collect())).collect(),
                outside: *outside,
            })
        });
        Ok(Self {
            format: 1,
            pipeline: plan.name.clone(),
            file: plan.file.canonicalize().unwrap_or_else(|_| plan.file.clone()),
            base: plan.base.clone(),
            started: jiff::Timestamp::now().to_string(),
            machine: begun::machine(),
            episteme: env!("CARGO_PKG_VERSION").to_owned(),
            stages: stages.collect::<Result<_, StageError>>()?,
        })
    }

    /// Writes it to a run's folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), StageError> {
        let path = folder.join("plan.json");
        let writing = || format!("writing {}", path.display());
        fs::write(&path, serde_json::to_vec(self).doing(writing)?).doing(writing)
    }

    fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join("plan.json")).ok()?).ok()
    }
}

/// How a run ended, or that it is at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Every stage ran or was cached.
    Done,
    /// A stage failed, or it was interrupted.
    NotDone,
    /// It is at work.
    AtWork,
    /// It was killed before its end.
    Killed,
}

impl RunState {
    /// For people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NotDone => "not done",
            Self::AtWork => "at work",
            Self::Killed => "killed before its end",
        }
    }
}

/// A run, as far as it came.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RunRecord {
    /// Its name.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// How it ended.
    pub state: RunState,
    /// Wall-clock seconds; none of a run that did not come to its end.
    pub seconds: Option<f64>,
    /// Its stages; of a run without an end, those that were over.
    pub stages: Vec<StageResult>,
    /// Its final metrics.
    pub metrics: BTreeMap<String, f64>,
    /// Its named results.
    pub outputs: BTreeMap<String, String>,
    /// Its plan; none of a run of an older version.
    pub plan: Option<PlanRecord>,
}

impl RunRecord {
    /// Reads what a run left in its folder.
    ///
    /// # Errors
    /// When its lock cannot be looked at.
    pub fn read(store: &ObjectStore, folder: &Path) -> Result<Self, StageError> {
        let run = file_name(folder);
        let pipeline = begun::pipeline_of(&run).unwrap_or(&run).to_owned();
        let plan = PlanRecord::read(folder);
        let ended = fs::read(folder.join("run.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
        if let Some(Event::RunFinished { ok, seconds, stages, metrics, outputs, .. }) = ended {
            let state = if ok { RunState::Done } else { RunState::NotDone };
            return Ok(Self { run, pipeline, state, seconds: Some(seconds), stages, metrics, outputs, plan });
        }
        let state = if begun::is_alive(store, &run)? { RunState::AtWork } else { RunState::Killed };
        Ok(Self { run, pipeline, state, seconds: None, stages: so_far(folder), metrics: BTreeMap::new(), outputs: BTreeMap::new(), plan })
    }

    /// The artifact that a stage gave in this run.
    pub fn artifact(&self, stage: &str) -> Option<Digest> {
        self.stages.iter().find(|result| result.name == stage)?.artifact
    }

    /// Whether a stage failed, or the disk did when all were done.
    pub fn failed(&self) -> bool {
        let done = |stage: &StageResult| matches!(stage.status, Status::Ran | Status::Cached);
        let undone = self.state == RunState::NotDone && self.stages.iter().all(done);
        undone || self.stages.iter().any(|stage| stage.status == Status::Failed)
    }
}

/// The stages that were over, by the events of a run that never came to its end.
fn so_far(folder: &Path) -> Vec<StageResult> {
    let text = fs::read_to_string(folder.join("events.jsonl")).unwrap_or_default();
    let over = text.lines().filter_map(|line| match serde_json::from_str(line).ok()? {
        Event::StageFinished { stage, status, seconds, artifact, usage } => {
            Some(StageResult { name: stage, status, seconds, artifact, key: None, usage })
        }
        Event::StageFailed { stage, seconds, .. } => {
            Some(StageResult { name: stage, status: Status::Failed, seconds, artifact: None, key: None, usage: None })
        }
        _ => None,
    });
    over.collect()
}

/// Seconds that each stage of a pipeline took when it ran last, by the last few runs.
pub fn durations(store: &ObjectStore, pipeline: &str) -> BTreeMap<String, f64> {
    const RUNS: usize = 8;
    let folders = folders(store).unwrap_or_default();
    let of_this = folders.iter().rev().filter(|folder| begun::pipeline_of(&file_name(folder)) == Some(pipeline));
    let mut seconds = BTreeMap::new();
    for run in of_this.take(RUNS).filter_map(|folder| RunRecord::read(store, folder).ok()) {
        for stage in run.stages.into_iter().filter(|stage| stage.status == Status::Ran) {
            seconds.entry(stage.name).or_insert(stage.seconds);
        }
    }
    seconds
}

/// The stages that failed in a run, and what they failed with.
pub fn failures(folder: &Path) -> BTreeMap<String, StageError> {
    let text = fs::read_to_string(folder.join("events.jsonl")).unwrap_or_default();
    let failed = text.lines().filter_map(|line| match serde_json::from_str(line).ok()? {
        Event::StageFailed { stage, error, .. } => Some((stage, error)),
        _ => None,
    });
    failed.collect()
}

/// Folders of all runs, the last one last. A run's name begins with its second; within it, the folders' own times tell.
///
/// # Errors
/// When they cannot be listed.
pub fn folders(store: &ObjectStore) -> Result<Vec<PathBuf>, StageError> {
    let mut folders = list(&store.root().join("runs"))?;
    folders.retain(|path| path.is_dir());
    let second = |folder: &PathBuf| file_name(folder).split('-').next().unwrap_or_default().to_owned();
    let made = |folder: &PathBuf| fs::metadata(folder).and_then(|data| data.created().or_else(|_| data.modified())).ok();
    folders.sort_by_cached_key(|folder| (second(folder), made(folder)));
    Ok(folders)
}
