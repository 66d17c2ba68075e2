//! `command`: any program as a stage, cached and traced like the rest.

mod environment;
mod outputs;
mod process;
mod text;

use std::collections::BTreeMap;

use artifact::outside::{self, Found};
use artifact::{ConfigProblem, Digest, Doing, InputRef, Kind, Outcome, RunContext, Settings, Stage, StageError, Stages};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Runs a program: a script, a tool, a line of shell. What it is told here and reads from here is its cache key: the command, the
/// artifacts under `inputs`, the content of `files`, the values of `env` and `env_from`. What it leaves in `${output}` is its artifact.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// A text for `sh`, which stops at the first line that fails; or a list of words, started as they are. `${output}` stands for the
    /// folder that becomes the artifact, `${inputs.NAME}` for an input's folder.
    pub run: Run,
    /// Names, and the stages whose artifacts they stand for: `{ raw = "raw" }`, or a list of stages. The program finds the folders by
    /// `${inputs.NAME}` and in the variable `EPISTEME_INPUT_NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, Stages>,
    /// Files, folders and globs that the program reads: its own text, settings, data. Relative to the pipeline file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// What must be there at the end: paths in `${output}`, or in `directory`, from where they are moved to `${output}`. With names,
    /// `{ report = "report.html" }`, they are results that the run lists and `--export` copies. Without it, whatever is in `${output}`.
    #[serde(default, skip_serializing_if = "Outputs::is_empty")]
    pub outputs: Outputs,
    /// A JSON file among the outputs whose numbers are the stage's metrics; tables in it become dotted names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// Environment variables and their values: texts, numbers, true or false.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "environment::values")]
    #[schemars(with = "BTreeMap<String, environment::Scalar>")]
    pub env: BTreeMap<String, String>,
    /// Environment variables that are passed on; their values are part of the cache key. Beside them the program sees only PATH, HOME,
    /// USER, LOGNAME, TMPDIR, TZ and LANG.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<String>,
    /// Environment variables that are passed on and kept secret: never stored, no part of the cache key, and struck out of the log. A
    /// secret that is not in the environment is read from the file that NAME_FILE names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// The folder that the program is started in, relative to the pipeline file.
    #[serde(default = "here")]
    pub directory: String,
}

/// What is started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a text for the shell, or a list of words")]
pub enum Run {
    /// A text for the shell.
    Shell(String),
    /// A program and its arguments.
    Words(Vec<String>),
}

/// Paths that must be there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "must be a list of paths, or a table of names and paths")]
pub enum Outputs {
    /// Just paths.
    Paths(Vec<String>),
    /// Results by name.
    Named(BTreeMap<String, String>),
}

impl Outputs {
    fn is_empty(&self) -> bool {
        self.paths().is_empty()
    }

    fn paths(&self) -> Vec<&str> {
        match self {
            Self::Paths(paths) => paths.iter().map(String::as_str).collect(),
            Self::Named(named) => named.values().map(String::as_str).collect(),
        }
    }
}

impl Default for Outputs {
    fn default() -> Self {
        Self::Paths(Vec::new())
    }
}

fn here() -> String {
    ".".into()
}

const ANY_KIND: &[Kind] = &[Kind::Files, Kind::Dataset, Kind::Processed, Kind::Model, Kind::Predictions, Kind::Report];

impl Stage for Command {
    const USES: &'static str = "command";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Run any program: a script, a tool, a line of shell";
    const GIVES: Kind = Kind::Files;

    fn inputs(&self) -> Vec<InputRef> {
        self.inputs.iter().map(|(name, stages)| InputRef::stages(key(name), stages, ANY_KIND)).collect()
    }

    fn check(&self) -> Vec<ConfigProblem> {
        let mut problems = text::problems(&self.run, &self.env, &self.inputs);
        problems.extend(environment::problems(self));
        problems.extend(self.outputs.paths().into_iter().filter_map(|path| outputs::problem("outputs", path)));
        problems.extend(self.metrics.iter().filter_map(|path| outputs::problem("metrics", path)));
        let globs = self.files.iter().enumerate();
        problems.extend(globs.filter_map(|(at, glob)| Some(ConfigProblem::at(&format!("files.{at}"), outside::glob_problem(glob)?))));
        problems
    }

    fn outside(&self, settings: &Settings) -> Result<Option<Digest>, StageError> {
        let taken = environment::taken(self)?;
        if self.files.is_empty() && taken.is_empty() {
            return Ok(None);
        }
        let files = outside::digest(&self.found(settings)?, settings)?;
        Digest::of_json(&(files, taken)).doing(|| "digesting what the command reads".into()).map(Some)
    }

    fn ready(&self) -> Result<(), StageError> {
        environment::secrets(self).map(drop)
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let place = context.settings().base.join(&self.directory);
        let before = outputs::looks(&place, &self.outputs.paths());
        let secrets = environment::secrets(self)?;
        let mut program = text::command(&self.run, context)?;
        program.current_dir(&place).env_clear().envs(environment::all(self, context)?).envs(secrets.iter().cloned());
        process::run(program, &text::shown(&self.run), &place, &secrets, context)?;
        outputs::gather(self, context.output(), &place, &before)
    }
}

impl Command {
    /// The files it reads, by their paths from the pipeline's folder.
    fn found(&self, settings: &Settings) -> Result<Vec<Found>, StageError> {
        let mut all = Vec::new();
        for pattern in &self.files {
            for (_, path) in outside::find(&settings.base, pattern)? {
                let name = path.strip_prefix(&settings.base).unwrap_or(&path).to_string_lossy().into_owned();
                all.push((name, path));
            }
        }
        all.sort();
        all.dedup();
        Ok(all)
    }
}

/// The dotted key of an input.
fn key(name: &str) -> String {
    format!("inputs.{name}")
}
