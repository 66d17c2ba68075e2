//! What a stage is, and the context it runs in.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use toml::Spanned;
use toml::de::DeTable;

use crate::{ConfigProblem, Digest, Event, Kind, Level, Manifest, Outcome, Settings, Sink, StageError, config};

/// A stage: the config type itself, with what the orchestrator needs to know and the work to do.
///
/// The type lives once, in the crate of its stage. From it come the validation of the pipeline file with spans, the
/// JSON Schema for editors, the command line of the crate's binary, and the reference in the docs (its doc comments).
/// Put `#[serde(deny_unknown_fields)]` on it.
pub trait Stage: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// Its name in pipeline files: `store.idx`.
    const USES: &'static str;
    /// Code version: raise it whenever the same config and inputs give other bytes than before.
    const VERSION: u32;
    /// One line for `--help` and lists.
    const SUMMARY: &'static str;
    /// The kind of artifact it gives.
    const GIVES: Kind;

    /// Where its inputs come from: which keys of the config name stages, and which kinds fit.
    fn inputs(&self) -> Vec<InputRef> {
        Vec::new()
    }

    /// What is wrong with the config beyond its types; shown before anything runs. Paths are relative to the config.
    fn check(&self) -> Vec<ConfigProblem> {
        Vec::new()
    }

    /// Takes the pipeline's seed, unless the config states its own. Stages without chance ignore it.
    fn set_seed(&mut self, _pipeline_seed: u64) {}

    /// Digest of what the stage reads that is no artifact (a local folder); part of the cache key.
    ///
    /// # Errors
    /// When the outside data is missing or unreadable: reported before anything runs.
    fn outside(&self, _settings: &Settings) -> Result<Option<Digest>, StageError> {
        Ok(None)
    }

    /// Looks whether that is there which a run needs and no cache key covers: secrets. Asked before anything runs, and only then.
    ///
    /// # Errors
    /// What is not there.
    fn ready(&self) -> Result<(), StageError> {
        Ok(())
    }

    /// Does the work: reads `context.input(…)`, writes files below `context.output()`.
    ///
    /// # Errors
    /// What failed, where, and what to do next. The output is then thrown away.
    fn run(&self, context: &RunContext) -> Result<Outcome, StageError>;
}

/// The name of another stage of the same pipeline, as a config's value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StageName(pub String);

impl JsonSchema for StageName {
    fn schema_name() -> Cow<'static, str> {
        "StageName".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "The name of another stage of this pipeline.", "format": "stage" })
    }
    fn inline_schema() -> bool {
        true
    }
}

impl fmt::Display for StageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One other stage or several, as a config's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be the name of a stage, or a list of names")]
pub enum Stages {
    /// One.
    One(StageName),
    /// Several, in order.
    Many(Vec<StageName>),
}

impl Stages {
    /// That the key names no stage, for a stage that cannot do without.
    pub fn check(&self, key: &str) -> Vec<ConfigProblem> {
        let is_none = matches!(self, Self::Many(stages) if stages.is_empty());
        is_none.then(|| ConfigProblem::at(key, format!("`{key}` names no stage"))).into_iter().collect()
    }
}

/// One config key that names stages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRef {
    /// The key, such as `input` or `model`; dotted within a table: `inputs.raw`.
    pub key: Cow<'static, str>,
    /// The stages it names, in order.
    pub stages: Vec<String>,
    /// The kinds of artifact that fit.
    pub accepts: &'static [Kind],
}

impl InputRef {
    /// A key that names one stage.
    pub fn one(key: impl Into<Cow<'static, str>>, stage: &StageName, accepts: &'static [Kind]) -> Self {
        Self { key: key.into(), stages: vec![stage.0.clone()], accepts }
    }
    /// A key that names any number of stages.
    pub fn many(key: impl Into<Cow<'static, str>>, stages: &[StageName], accepts: &'static [Kind]) -> Self {
        Self { key: key.into(), stages: stages.iter().map(|stage| stage.0.clone()).collect(), accepts }
    }
    /// A key that names one stage or several.
    pub fn stages(key: impl Into<Cow<'static, str>>, stages: &Stages, accepts: &'static [Kind]) -> Self {
        match stages {
            Stages::One(stage) => Self::one(key, stage, accepts),
            Stages::Many(stages) => Self::many(key, stages, accepts),
        }
    }
}

/// A stage without its type: what the orchestrator and the workers hold.
pub trait AnyStage: Send + Sync {
    /// As [`Stage::USES`].
    fn uses(&self) -> &'static str;
    /// As [`Stage::VERSION`].
    fn version(&self) -> u32;
    /// As [`Stage::GIVES`].
    fn gives(&self) -> Kind;
    /// As [`Stage::inputs`].
    fn inputs(&self) -> Vec<InputRef>;
    /// As [`Stage::check`].
    fn check(&self) -> Vec<ConfigProblem>;
    /// As [`Stage::set_seed`].
    fn set_seed(&mut self, pipeline_seed: u64);
    /// As [`Stage::outside`].
    ///
    /// # Errors
    /// As there.
    fn outside(&self, settings: &Settings) -> Result<Option<Digest>, StageError>;
    /// As [`Stage::ready`].
    ///
    /// # Errors
    /// As there.
    fn ready(&self) -> Result<(), StageError>;
    /// The whole config as JSON, with defaults filled in.
    ///
    /// # Errors
    /// When the config has no JSON form.
    fn config(&self) -> Result<Value, serde_json::Error>;
    /// As [`Stage::run`].
    ///
    /// # Errors
    /// As there.
    fn run(&self, context: &RunContext) -> Result<Outcome, StageError>;
}

impl<S: Stage> AnyStage for S {
    fn uses(&self) -> &'static str {
        S::USES
    }
    fn version(&self) -> u32 {
        S::VERSION
    }
    fn gives(&self) -> Kind {
        S::GIVES
    }
    fn inputs(&self) -> Vec<InputRef> {
        Stage::inputs(self)
    }
    fn check(&self) -> Vec<ConfigProblem> {
        Stage::check(self)
    }
    fn set_seed(&mut self, pipeline_seed: u64) {
        Stage::set_seed(self, pipeline_seed);
    }
    fn outside(&self, settings: &Settings) -> Result<Option<Digest>, StageError> {
        Stage::outside(self, settings)
    }
    fn ready(&self) -> Result<(), StageError> {
        Stage::ready(self)
    }
    fn config(&self) -> Result<Value, serde_json::Error> {
        serde_json::to_value(self)
    }
    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        Stage::run(self, context)
    }
}

impl dyn AnyStage + '_ {
    /// The config without the keys that name stages: those names are the pipeline's business, not the stage's.
    ///
    /// # Errors
    /// When the config has no JSON form.
    pub fn canonical_config(&self) -> Result<Value, serde_json::Error> {
        let mut config = self.config()?;
        if let Some(keys) = config.as_object_mut() {
            for input in self.inputs() {
                keys.remove(input.key.split('.').next().unwrap_or_default());
            }
        }
        Ok(config)
    }

    /// The cache key: digest of (stage type, code version, canonical config, input digests, outside data).
    ///
    /// # Errors
    /// When the config has no JSON form.
    pub fn cache_key(&self, inputs: &BTreeMap<String, Vec<Digest>>, outside: Option<Digest>) -> Result<Digest, serde_json::Error> {
        Digest::of_json(&serde_json::json!({
            "uses": self.uses(),
            "version": self.version(),
            "config": self.canonical_config()?,
            "inputs": inputs,
            "outside": outside,
        }))
    }
}

/// Reads a config from TOML, or gives every problem with it.
pub type FromToml = fn(Spanned<DeTable<'_>>) -> Result<Box<dyn AnyStage>, Vec<ConfigProblem>>;

/// A stage type in a crate's list: `pub static STAGES: &[StageType] = &[StageType::of::<Idx>(), …]`. A `const` would be compiled anew in
/// every binary that names it, with all that reading a config from TOML and JSON takes.
#[derive(Debug, Clone, Copy)]
pub struct StageType {
    /// As [`Stage::USES`].
    pub uses: &'static str,
    /// As [`Stage::VERSION`].
    pub version: u32,
    /// As [`Stage::SUMMARY`].
    pub summary: &'static str,
    /// As [`Stage::GIVES`].
    pub gives: Kind,
    /// The config's JSON Schema.
    pub schema: fn() -> Schema,
    /// A config from TOML, or every problem with it.
    pub from_toml: FromToml,
    /// A config from a spec file.
    pub from_json: fn(Value) -> Result<Box<dyn AnyStage>, serde_json::Error>,
}

impl StageType {
    /// The type `S`, erased.
    pub const fn of<S: Stage>() -> Self {
        Self {
            uses: S::USES,
            version: S::VERSION,
            summary: S::SUMMARY,
            gives: S::GIVES,
            schema: || schemars::schema_for!(S),
            from_toml: |table| config::parse::<S>(table).map(|stage| Box::new(stage) as Box<dyn AnyStage>),
            from_json: |value| serde_json::from_value::<S>(value).map(|stage| Box::new(stage) as Box<dyn AnyStage>),
        }
    }
}

/// One input of a running stage: an artifact, or a plain file or folder when a crate's binary is used by itself.
#[derive(Debug, Clone)]
pub struct Input {
    /// The directory (or plain file).
    pub path: PathBuf,
    /// Its manifest; none for plain files and folders.
    pub manifest: Option<Manifest>,
}

impl Input {
    /// Takes a path as input: an artifact if it holds a manifest, else a plain file or folder.
    ///
    /// # Errors
    /// When nothing is there, or its manifest cannot be read.
    pub fn open(path: &Path) -> Result<Self, StageError> {
        if !path.exists() {
            return Err(StageError::new("this input does not exist").at(path.display()));
        }
        let is_artifact = path.join(crate::manifest::FILE_NAME).is_file();
        let manifest = is_artifact.then(|| Manifest::read(path)).transpose()?;
        Ok(Self { path: path.to_owned(), manifest })
    }

    /// Its files as (relative path, full path), sorted by relative path, without the manifest.
    ///
    /// # Errors
    /// When a plain folder cannot be listed.
    pub fn files(&self) -> Result<Vec<(String, PathBuf)>, StageError> {
        if let Some(manifest) = &self.manifest {
            return Ok(manifest.files.iter().map(|file| (file.path.clone(), self.path.join(&file.path))).collect());
        }
        if self.path.is_file() {
            let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            return Ok(vec![(name, self.path.clone())]);
        }
        let mut files = Vec::new();
        let mut folders = vec![self.path.clone()];
        while let Some(folder) = folders.pop() {
            let failed = |error: std::io::Error| StageError::new("failed to list this folder").at(folder.display()).because(&error);
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => files.push((path.strip_prefix(&self.path).unwrap_or(&path).to_string_lossy().into_owned(), path)),
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

/// What a stage runs in: its inputs, its output directory, the event stream, and whether it was asked to stop.
pub struct RunContext<'a> {
    name: String,
    inputs: BTreeMap<String, Vec<Input>>,
    output: PathBuf,
    settings: Settings,
    sink: &'a dyn Sink,
    stop: &'a AtomicBool,
}

impl<'a> RunContext<'a> {
    /// A context; `output` must exist and be empty.
    pub fn new(
        name: impl Into<String>,
        inputs: BTreeMap<String, Vec<Input>>,
        output: PathBuf,
        settings: Settings,
        sink: &'a dyn Sink,
        stop: &'a AtomicBool,
    ) -> Self {
        Self { name: name.into(), inputs, output, settings, sink, stop }
    }

    /// The one input under this key.
    ///
    /// # Errors
    /// When the key has none or several.
    pub fn input(&self, key: &str) -> Result<&Input, StageError> {
        match self.inputs(key) {
            [one] => Ok(one),
            all => Err(StageError::new(format!("`{key}` takes one input, and {} were given", all.len()))),
        }
    }

    /// All inputs under this key.
    pub fn inputs(&self, key: &str) -> &[Input] {
        self.inputs.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// All inputs by key.
    pub fn all_inputs(&self) -> &BTreeMap<String, Vec<Input>> {
        &self.inputs
    }

    /// The directory that becomes the artifact.
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// What holds for the whole run.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A counter that the user sees moving; `total` where it is known.
    pub fn progress(&self, label: impl Into<String>, total: Option<u64>, unit: &'static str) -> Progress<'_> {
        let progress =
            Progress { context: self, label: label.into(), total, unit, done: AtomicU64::new(0), last: Mutex::new(Instant::now()) };
        progress.emit(0);
        progress
    }

    /// A measure: `step` is the epoch it belongs to.
    pub fn metric(&self, name: impl Into<String>, value: f64, step: Option<u64>) {
        self.sink.emit(Event::Metric { stage: self.name.clone(), name: name.into(), value, step });
    }

    /// A sentence that the user wants to know.
    pub fn info(&self, message: impl Into<String>) {
        self.sink.emit(Event::Log { stage: self.name.clone(), level: Level::Info, message: message.into() });
    }

    /// A sentence that the user should look at.
    pub fn warn(&self, message: impl Into<String>) {
        self.sink.emit(Event::Log { stage: self.name.clone(), level: Level::Warning, message: message.into() });
    }

    /// Call between units of work of up to a second.
    ///
    /// # Errors
    /// [`StageError::interrupted`] once the stage was asked to stop; pass it on.
    pub fn check_stop(&self) -> Result<(), StageError> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(StageError::interrupted()),
            false => Ok(()),
        }
    }
}

/// A moving count; can be shared by threads. Emits at most ten events a second, and the last one when dropped.
pub struct Progress<'a> {
    context: &'a RunContext<'a>,
    label: String,
    total: Option<u64>,
    unit: &'static str,
    done: AtomicU64,
    last: Mutex<Instant>,
}

const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

impl Progress<'_> {
    /// So many more are done.
    pub fn add(&self, count: u64) {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        // Whoever finds the clock busy leaves the word to the one who holds it.
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.elapsed() >= PROGRESS_INTERVAL {
            *last = Instant::now();
            self.emit(done);
        }
    }

    fn emit(&self, done: u64) {
        self.context.sink.emit(Event::Progress {
            stage: self.context.name.clone(),
            label: self.label.clone(),
            done,
            total: self.total,
            unit: self.unit.to_owned(),
        });
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.emit(self.done.load(Ordering::Relaxed));
    }
}
