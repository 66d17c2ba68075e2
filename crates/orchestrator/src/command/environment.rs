//! What a command finds in its environment, and what must not be seen of it.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;

use artifact::{ConfigProblem, Doing, RunContext, StageError};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};

use super::{Command, text};

/// Passed on without being asked for, and no part of the cache key: they say where things lie on this machine.
const ALWAYS: [&str; 6] = ["PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ"];
/// What sorts and prints the same everywhere.
const LANG: &str = "C.UTF-8";

/// A value of `env`.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "each must be a text, a number, true or false")]
pub enum Scalar {
    /// As it is.
    Text(String),
    /// In decimal digits; to the schema a number like others.
    #[schemars(skip)]
    Whole(i64),
    /// In decimal digits.
    Number(f64),
    /// `true` or `false`.
    Flag(bool),
}

/// Reads `env`, whose values are texts in the end: `1` and `"1"` are the same.
pub fn values<'de, D: Deserializer<'de>>(reader: D) -> Result<BTreeMap<String, String>, D::Error> {
    let text = |scalar| match scalar {
        Scalar::Text(text) => text,
        Scalar::Whole(number) => number.to_string(),
        Scalar::Number(number) => number.to_string(),
        Scalar::Flag(flag) => flag.to_string(),
    };
    let all = BTreeMap::<String, Scalar>::deserialize(reader)?;
    Ok(all.into_iter().map(|(name, scalar)| (name, text(scalar))).collect())
}

/// What is wrong with the names of `env`, `env_from` and `secrets`, and of `inputs`, which become variables too.
pub fn problems(command: &Command) -> Vec<ConfigProblem> {
    let listed = |key: &'static str, names: &[String]| {
        names.iter().enumerate().map(|(at, name)| (format!("{key}.{at}"), name.clone())).collect::<Vec<_>>()
    };
    let mut names = listed("env_from", &command.env_from);
    names.extend(listed("secrets", &command.secrets));
    names.extend(command.env.keys().map(|name| (format!("env.{name}"), name.clone())));
    let fits = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_no_variable = |(path, name): &(String, String)| {
        let problem = ConfigProblem::at(path, format!("`{name}` cannot name an environment variable"));
        (!fits(name) || name.starts_with(|c: char| c.is_ascii_digit())).then(|| problem.help("use letters, digits and _"))
    };
    let mut problems: Vec<ConfigProblem> = names.iter().filter_map(is_no_variable).collect();
    let is_no_input = |name: &&String| !fits(&name.replace('-', "_"));
    problems.extend(command.inputs.keys().filter(is_no_input).map(|name| {
        ConfigProblem::at(&format!("inputs.{name}"), format!("`{name}` cannot name an input")).help("use letters, digits, - and _")
    }));
    problems
}

/// The values of `env_from`, for the cache key.
///
/// # Errors
/// When one is not set.
pub fn taken(command: &Command) -> Result<BTreeMap<&str, String>, StageError> {
    let value = |name: &'_ String| env::var(name).map_err(|_| not_set(name, "env_from", format!("set it: {name}=… episteme run …")));
    command.env_from.iter().map(|name| Ok((name.as_str(), value(name)?))).collect()
}

/// The values of `secrets`: from the environment, or from the file that NAME_FILE names.
///
/// # Errors
/// When one is in neither place.
pub fn secrets(command: &Command) -> Result<Vec<(String, String)>, StageError> {
    command.secrets.iter().map(|name| Ok((name.clone(), secret(name)?))).collect()
}

fn secret(name: &str) -> Result<String, StageError> {
    if let Ok(value) = env::var(name) {
        return Ok(value);
    }
    let Some(file) = env::var_os(format!("{name}_FILE")) else {
        return Err(not_set(name, "secrets", format!("set it, or let {name}_FILE name the file that holds it")));
    };
    let text = std::fs::read_to_string(&file).doing(|| format!("reading the secret {name} from {}", file.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn not_set(name: &str, key: &str, help: String) -> StageError {
    StageError::new(format!("`{key}` asks for the environment variable {name}, which is not set")).help(help)
}

/// Everything but the secrets. Later ones stand over earlier ones.
///
/// # Errors
/// When a variable that is asked for is not set.
pub fn all(command: &Command, context: &RunContext) -> Result<Vec<(String, OsString)>, StageError> {
    let mut all: Vec<(String, OsString)> =
        ALWAYS.iter().filter_map(|name| env::var_os(name).map(|value| ((*name).to_owned(), value))).collect();
    all.push(("LANG".into(), LANG.into()));
    all.push(("EPISTEME_OUTPUT".into(), context.output().into()));
    if let Some(cores) = env::var_os("EPISTEME_CORES") {
        all.extend(["EPISTEME_CORES", "OMP_NUM_THREADS"].map(|name| (name.to_owned(), cores.clone())));
    }
    for name in command.inputs.keys() {
        // Several are told apart as in PATH.
        let paths = env::join_paths(text::paths(context, name)).unwrap_or_default();
        all.push((format!("EPISTEME_INPUT_{}", name.replace('-', "_").to_uppercase()), paths));
    }
    all.extend(taken(command)?.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
    for (name, value) in &command.env {
        all.push((name.clone(), text::filled(value, context).into()));
    }
    Ok(all)
}
