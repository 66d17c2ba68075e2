//! What documents are made of, as far as it is not a record of the store.

use std::path::Path;

use super::*;

/// A stage, and what would become of it.
#[derive(Serialize, JsonSchema)]
pub struct PlannedStage {
    /// Its name.
    pub name: String,
    /// Its type.
    pub uses: String,
    /// What would become of it.
    pub will: Will,
    /// Why it would run; null when it would not, or waits for others.
    pub why: Option<String>,
    /// Its artifact, when it is there.
    pub artifact: Option<Digest>,
}

/// What would become of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Will {
    /// Nothing has changed.
    Cached,
    /// It would run.
    Run,
    /// Whether it runs shows when the stages before it have run.
    AfterUpstream,
}

/// What is there of a stage.
#[derive(Serialize, JsonSchema)]
pub struct StageStatus {
    /// Its name.
    pub name: String,
    /// Whether its artifact is there.
    pub state: Currency,
    /// What the store remembers of it; only of a current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<CacheRecord>,
    /// Its artifact's folder; only of a current one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

/// Whether a stage has what its pipeline says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Currency {
    /// It has.
    Current,
    /// It would run, or waits for one that would.
    Stale,
}

/// A run by its name and state.
#[derive(Serialize, JsonSchema)]
pub struct LastRun {
    /// Its name.
    pub run: String,
    /// How it ended, or that it is at work.
    pub state: RunState,
}

/// A run in the log.
#[derive(Serialize, JsonSchema)]
pub struct LoggedRun {
    /// Its name.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// How it ended, or that it is at work.
    pub state: RunState,
    /// True when every stage ran or was cached.
    pub ok: bool,
    /// When it began, RFC 3339; null when its plan was not recorded.
    pub started: Option<String>,
    /// Wall-clock seconds; null of a run that did not come to its end.
    pub seconds: Option<f64>,
    /// Its stages.
    pub stages: Vec<StageResult>,
    /// Its final metrics.
    pub metrics: BTreeMap<String, f64>,
}

/// What differs.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Diff {
    /// Between two runs.
    Runs(RunsDiff),
    /// Between two artifacts.
    Artifacts(ArtifactsDiff),
}

/// A stage that would run, and why.
#[derive(Serialize, JsonSchema)]
pub struct Because {
    /// Its name.
    pub stage: String,
    /// The run that it is compared with; null when there is none.
    pub since: Option<String>,
    /// What differs since then.
    pub differences: Vec<Difference>,
    /// The same in a sentence.
    pub why: String,
}

/// A tag and what it names.
#[derive(Serialize, JsonSchema)]
pub struct Named {
    /// The tag's name.
    pub tag: String,
    /// What it names, and how it came to.
    pub record: Tag,
    /// The artifact's folder.
    pub path: PathBuf,
}

/// A stage and what it takes from.
#[derive(Serialize, JsonSchema)]
pub struct GraphStage {
    /// Its name.
    pub name: String,
    /// Its type.
    pub uses: String,
    /// The kind of artifact it gives.
    pub gives: Kind,
    /// The keys of its config that name stages, and the names.
    pub inputs: BTreeMap<String, Vec<String>>,
}

/// A stage type.
#[derive(Serialize, JsonSchema)]
pub struct TypeOfStage {
    /// Its name in pipeline files.
    pub uses: String,
    /// Its code version.
    pub version: u32,
    /// What it does, in a line.
    pub summary: String,
    /// The kind of artifact it gives.
    pub gives: Kind,
    /// The JSON Schema of its config.
    pub schema: Value,
}

/// A pipeline and its schedule.
#[derive(Serialize, JsonSchema)]
pub struct Scheduled {
    /// The pipeline's name.
    pub pipeline: String,
    /// Its file.
    pub file: PathBuf,
    /// When it is due, in crontab's five fields.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Its lines for crontab; of `schedule print`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crontab: Option<String>,
    /// Its units for systemd, by their files' names; of `schedule print --systemd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<BTreeMap<String, String>>,
    /// Its lines as they stand in the crontab; of `schedule list` and `remove`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<String>,
    /// Where it is installed: `crontab`, or a timer's file.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

impl Scheduled {
    /// Of which nothing else is known.
    pub fn new(pipeline: &str, file: &Path) -> Self {
        Self { pipeline: pipeline.to_owned(), file: file.to_owned(), schedule: None, crontab: None, units: None, lines: None, place: None }
    }

    /// Whether this is what a user means by a name or a file.
    pub fn is(&self, what: &str) -> bool {
        self.pipeline == what || Path::new(what).canonicalize().is_ok_and(|path| path == self.file) || Path::new(what) == self.file
    }
}

/// Something that is wrong with a pipeline file.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PlacedProblem {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// The file; null when it has no place.
    pub file: Option<String>,
    /// The line, from one.
    pub line: Option<usize>,
    /// The column, in characters from one.
    pub column: Option<usize>,
}

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlertKind {
    /// A stage failed.
    Failure,
    /// All is well again.
    Recovery,
    /// A metric crossed a bound.
    Metric,
}

impl AlertKind {
    /// As `EPISTEME_ALERT` has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Recovery => "recovery",
            Self::Metric => "metric",
        }
    }
}

/// A stage that failed.
#[derive(Serialize, JsonSchema)]
pub struct FailedStage {
    /// Its name.
    pub stage: String,
    /// What it failed with.
    pub error: StageError,
}
