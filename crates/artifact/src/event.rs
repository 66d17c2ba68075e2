//! The event stream: one stream, several readers (terminal, log file, `--json`, report).

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Digest, StageError};

/// How much a log line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For those who look closely.
    Debug,
    /// What a user wants to know.
    Info,
    /// What a user should look at.
    Warning,
}

/// How a stage ended within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It ran and gave its artifact.
    Ran,
    /// Nothing had changed: the artifact was there already.
    Cached,
    /// It failed.
    Failed,
    /// It could not run, since a stage it needs failed.
    Skipped,
}

/// What a stage's process used, with all that it started, as the kernel counted it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Seconds on processors, its own and the kernel's for it.
    pub cpu_seconds: f64,
    /// The most memory it held at once, in bytes.
    pub peak_memory: u64,
    /// Bytes it read by calls, from disk or the page cache; what it maps into memory is not counted.
    pub read: u64,
    /// Bytes it wrote by calls.
    pub written: u64,
}

/// One stage's line in [`Event::RunFinished`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StageResult {
    /// The stage's name in the pipeline.
    pub name: String,
    /// How it ended.
    pub status: Status,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// The artifact it gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Digest>,
    /// Its cache key; none when its inputs were never there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Digest>,
    /// What it used; none when it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What happens in a run, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A run begins.
    RunStarted {
        /// The run's name, unique in its store.
        run: String,
        /// The pipeline's name.
        pipeline: String,
        /// Its stages, in the order of the plan.
        stages: Vec<String>,
    },
    /// A stage begins.
    StageStarted {
        /// The stage's name in the pipeline.
        stage: String,
        /// Which stage type it is, such as `store.idx`.
        uses: String,
    },
    /// How far a stage is.
    Progress {
        /// The stage's name in the pipeline.
        stage: String,
        /// What is being counted, such as `train-images.gz` or `epoch 3`.
        label: String,
        /// How much is done, in `unit`.
        done: u64,
        /// How much there is, where that is known.
        total: Option<u64>,
        /// `bytes`, `images`, `rows`, `steps`, `files`.
        unit: String,
    },
    /// A measure, such as a loss after an epoch.
    Metric {
        /// The stage's name in the pipeline.
        stage: String,
        /// Dotted name, such as `validation.accuracy`.
        name: String,
        /// Its value.
        value: f64,
        /// Epoch or step it belongs to; none for a final value.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<u64>,
    },
    /// A sentence for people.
    Log {
        /// The stage's name in the pipeline.
        stage: String,
        /// How much it matters.
        level: Level,
        /// The sentence.
        message: String,
    },
    /// A stage is done.
    StageFinished {
        /// The stage's name in the pipeline.
        stage: String,
        /// How it ended: `ran` or `cached`.
        status: Status,
        /// Wall-clock seconds.
        seconds: f64,
        /// The artifact's digest; none in a stage's own process, which does not know where it is put.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        artifact: Option<Digest>,
        /// What it used; none when it was cached, and in its own process, which cannot know yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        usage: Option<Usage>,
    },
    /// A stage failed.
    StageFailed {
        /// The stage's name in the pipeline.
        stage: String,
        /// Wall-clock seconds.
        seconds: f64,
        /// What, where, and what to do next.
        error: StageError,
    },
    /// A promotion rule of the pipeline was looked at.
    Promotion {
        /// The tag, such as `model:best`.
        tag: String,
        /// The stage whose artifact it is about.
        stage: String,
        /// That artifact.
        artifact: Digest,
        /// Whether the tag names it now, and did not before.
        promoted: bool,
        /// What the tag named before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<Digest>,
        /// Why, or why not, with the numbers.
        reason: String,
    },
    /// A run ended; always the last line of `--json`.
    RunFinished {
        /// True when every stage ran or was cached.
        ok: bool,
        /// The run's name.
        run: String,
        /// Wall-clock seconds.
        seconds: f64,
        /// Every stage of the plan.
        stages: Vec<StageResult>,
        /// The final metrics of all stages, such as `test.accuracy`.
        metrics: BTreeMap<String, f64>,
        /// Named results and where they lie, such as `predictions` and `report`.
        outputs: BTreeMap<String, String>,
    },
}

/// Where events go.
pub trait Sink: Send + Sync {
    /// Takes one event. Must not block for long and must not fail: a full pipe is not the stage's failure.
    fn emit(&self, event: Event);
}

impl<S: Sink + ?Sized> Sink for Arc<S> {
    fn emit(&self, event: Event) {
        (**self).emit(event);
    }
}

/// Events as JSON lines.
pub struct JsonLines<W: Write + Send>(Mutex<W>);

impl<W: Write + Send> JsonLines<W> {
    /// Writes to `writer`, flushed line by line.
    pub fn new(writer: W) -> Self {
        Self(Mutex::new(writer))
    }
}

impl<W: Write + Send> Sink for JsonLines<W> {
    fn emit(&self, event: Event) {
        let (Ok(mut writer), Ok(mut line)) = (self.0.lock(), serde_json::to_vec(&event)) else { return };
        line.push(b'\n');
        // The reader may be gone (a closed pipe); the stage's work still counts.
        let _ = writer.write_all(&line).and_then(|()| writer.flush());
    }
}

/// Keeps events in memory: for tests and for stages run inside a process.
#[derive(Default)]
pub struct Collected(Mutex<Vec<Event>>);

impl Collected {
    /// All events so far, taken out.
    pub fn take(&self) -> Vec<Event> {
        self.0.lock().map(|mut events| std::mem::take(&mut *events)).unwrap_or_default()
    }
}

impl Sink for Collected {
    fn emit(&self, event: Event) {
        if let Ok(mut events) = self.0.lock() {
            events.push(event);
        }
    }
}
