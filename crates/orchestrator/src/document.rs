//! What `--json` prints, typed: each verb's one document, and the lines of a run. The JSON Schema of `episteme schema output` comes from
//! these types, so that what is printed is what is described.

use std::collections::BTreeMap;
use std::path::PathBuf;

use artifact::event::StageResult;
use artifact::{CacheRecord, Digest, Event, Kind, Manifest, StageError};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde_json::Value;

use crate::diff::{ArtifactsDiff, RunsDiff};
use crate::made::Difference;
use crate::record::{RunRecord, RunState};
use crate::reproduce::Compared;
use crate::tag::Tag;
use crate::verify::Finding;

mod parts;
pub use parts::*;

/// One line of `run --json`, the one document of another verb, or what an alert sends.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "nothing is both; only its schema is asked for")]
enum Output {
    /// `run` and `reproduce`: what happens.
    Event(Event),
    /// The other verbs.
    Document(Document),
}

/// The JSON Schema of all output, as it is written: what is left out when it has nothing to say is not required.
pub fn schema() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<Output>()
}

/// What a verb prints, by its `type`.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Document {
    /// `check`, when nothing is wrong.
    Check {
        /// The pipeline file.
        file: PathBuf,
        /// How many stages it has.
        stages: usize,
        /// True.
        ok: bool,
    },
    /// `plan`.
    Plan {
        /// The pipeline's name.
        pipeline: String,
        /// Its stages, in the order in which they can run.
        stages: Vec<PlannedStage>,
    },
    /// `status`.
    Status {
        /// The pipeline's name.
        pipeline: String,
        /// Its stages.
        stages: Vec<StageStatus>,
        /// The run that began last; null when there is none.
        last_run: Option<LastRun>,
    },
    /// `show` of an artifact.
    Artifact {
        /// Its folder.
        path: PathBuf,
        /// Its `artifact.json`.
        manifest: Manifest,
    },
    /// `show` of a run.
    Run {
        /// What it left.
        #[serde(flatten)]
        record: RunRecord,
        /// True when every stage ran or was cached.
        ok: bool,
    },
    /// `log`.
    Log {
        /// The runs, the newest first.
        runs: Vec<LoggedRun>,
    },
    /// `diff`.
    Diff(Diff),
    /// `why`.
    Why {
        /// The stage, as it was asked for.
        stage: String,
        /// What would become of it; of one with variants, `run` if one of them would, or else `after_upstream`.
        will: Will,
        /// Its artifact, when it is there; null of several variants.
        artifact: Option<Digest>,
        /// The stages that would run, itself or before it, and why.
        because: Vec<Because>,
    },
    /// `tag`.
    Tags {
        /// All tags, by name.
        tags: BTreeMap<String, Tag>,
    },
    /// `tag NAME`.
    Tag(Named),
    /// `tag NAME WHAT`.
    Tagged(Named),
    /// `tag --remove NAME`.
    TagRemoved {
        /// The tag's name.
        tag: String,
    },
    /// `verify`.
    Verify {
        /// True when nothing is wrong.
        ok: bool,
        /// Whether damage was left where it is.
        dry_run: bool,
        /// Wall-clock seconds.
        seconds: f64,
        /// How many artifacts were re-hashed.
        artifacts: usize,
        /// Their bytes.
        bytes: u64,
        /// What is wrong, damage first.
        findings: Vec<Finding>,
    },
    /// `gc`.
    Gc {
        /// Whether it was only told what would go.
        dry_run: bool,
        /// Paths that went.
        removed: Vec<PathBuf>,
        /// Their bytes.
        bytes: u64,
    },
    /// `graph`.
    Graph {
        /// The pipeline's name.
        pipeline: String,
        /// Its stages, each after those it takes from.
        stages: Vec<GraphStage>,
    },
    /// `stages`.
    Stages {
        /// The stage types.
        stages: Vec<TypeOfStage>,
    },
    /// `schedule print`.
    Schedule {
        /// The pipelines that were asked for.
        pipelines: Vec<Scheduled>,
    },
    /// `schedule install`.
    ScheduleInstalled {
        /// The pipelines that were installed.
        pipelines: Vec<Scheduled>,
    },
    /// `schedule list`.
    Schedules {
        /// The pipelines that are installed.
        pipelines: Vec<Scheduled>,
    },
    /// `schedule remove`.
    ScheduleRemoved {
        /// The pipelines that were taken out, each as often as it was installed.
        pipelines: Vec<Scheduled>,
    },
    /// `reproduce`, after the run's events.
    Reproduced {
        /// True when no stage gave other bytes.
        ok: bool,
        /// The run that was reproduced.
        of: String,
        /// The run that reproduced it.
        run: String,
        /// What was known to differ before: code versions, data outside the store.
        notes: Vec<String>,
        /// Each stage, then and now.
        stages: Vec<Compared>,
    },
    /// What could not be done.
    Error {
        /// The exit code.
        code: u8,
        /// What failed.
        message: String,
        /// File, and line, row or byte where it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        place: Option<String>,
        /// What to do next.
        #[serde(skip_serializing_if = "Option::is_none")]
        help: Option<String>,
        /// Underlying errors, outermost first.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        causes: Vec<String>,
        /// All that is wrong with a pipeline file.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        problems: Vec<PlacedProblem>,
    },
    /// What a webhook gets as its body, and a command on its standard input.
    Alert {
        /// What it is about.
        event: AlertKind,
        /// A sentence for people.
        text: String,
        /// The pipeline's name.
        pipeline: String,
        /// The run.
        run: String,
        /// Its wall-clock seconds.
        seconds: Option<f64>,
        /// The stages that failed, and what with.
        failed: Vec<FailedStage>,
        /// The run's final metrics.
        metrics: BTreeMap<String, f64>,
        /// When this was sent, RFC 3339.
        sent: String,
    },
}
