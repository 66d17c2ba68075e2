//! The command line of the stage crates' binaries, made from the config types.
//!
//! `episteme-store idx --input raw --output images --help`: every key of the config is an option, its doc comment the
//! help, and its type what clap checks. `run SPEC` takes the spec file that the orchestrator writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::Value;
use toml::Spanned;
use toml::de::DeTable;

use crate::event::JsonLines;
use crate::object_store::remove_tree;
use crate::worker::{FAILED, WRONG, run_spec, run_spec_file};
use crate::{ConfigProblem, Doing, Event, Level, Manifest, Settings, Sink, StageError, StageSpec, StageType, durable};

/// What a stage crate's `main` does: reads the command line, runs one stage, and exits with the codes of [`crate::worker`].
pub fn main(program: &'static str, about: &'static str, stages: &[StageType]) -> ExitCode {
    let matches = command(program, about, stages).get_matches();
    let code = match matches.subcommand() {
        Some(("run", matches)) => {
            let spec = matches.get_one::<PathBuf>("SPEC").cloned().unwrap_or_default();
            run_spec_file(&spec, stages, &JsonLines::new(std::io::stdout()))
        }
        Some((name, matches)) => match stages.iter().find(|stage| short_name(stage) == name) {
            Some(stage) => run_from_flags(stage, matches, stages),
            None => WRONG,
        },
        None => WRONG,
    };
    ExitCode::from(code)
}

/// `idx` of `store.idx`.
fn short_name(stage: &StageType) -> &'static str {
    stage.uses.split_once('.').map_or(stage.uses, |(_, name)| name)
}

fn command(program: &'static str, about: &'static str, stages: &[StageType]) -> Command {
    let run = Command::new("run")
        .about("Runs the stage that a spec file describes; events go to standard output as JSON lines")
        .arg(Arg::new("SPEC").required(true).value_parser(value_parser!(PathBuf)).help("The spec file (JSON)"));
    Command::new(program)
        .about(about)
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help("Exit codes: 0 done, 1 the stage failed, 2 the command line or the spec is wrong, 130 interrupted.")
        .subcommands(stages.iter().map(stage_command))
        .subcommand(run)
}

fn stage_command(stage: &StageType) -> Command {
    let schema = (stage.schema)();
    let about = schema.get("description").and_then(Value::as_str).unwrap_or(stage.summary);
    let mut command = Command::new(short_name(stage))
        .about(stage.summary)
        .long_about(in_one_line(about))
        .arg(
            Arg::new("@output")
                .long("output")
                .short('o')
                .required(true)
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .help("The artifact directory to make; it must not exist yet"),
        )
        .arg(
            Arg::new("@config")
                .long("config")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("A TOML file with the keys below; options override it"),
        )
        .arg(
            Arg::new("@mirror")
                .long("mirror")
                .env_mirror()
                .value_name("DIR-or-URL")
                .action(ArgAction::Append)
                .help("Tried before the declared URL of a download [env: EPISTEME_MIRROR]"),
        )
        .arg(Arg::new("@json").long("json").action(ArgAction::SetTrue).help("Events as JSON lines on standard output"));
    let required: Vec<&str> = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let mut properties: Vec<(&String, &Value)> = schema.get("properties").and_then(Value::as_object).into_iter().flatten().collect();
    properties.sort_by_key(|(key, _)| !required.contains(&key.as_str()));
    for (key, property) in properties {
        let text = in_one_line(property.get("description").and_then(Value::as_str).unwrap_or_default());
        let default =
            property.get("default").filter(|value| !value.is_null()).map(|value| format!(" [default: {value}]")).unwrap_or_default();
        let need = if required.contains(&key.as_str()) { " [required]" } else { "" };
        let mut arg = Arg::new(key.clone())
            .long(key.replace('_', "-"))
            .value_name(value_name(property))
            .help(format!("{text}{default}{need}"))
            .allow_hyphen_values(true);
        if let Some(choices) = choices(property, schema.as_value()) {
            arg = arg.value_parser(PossibleValuesParser::new(choices));
        }
        command = command.arg(arg);
    }
    command
}

/// A doc comment without its line breaks: the terminal has its own.
fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What may stand for a key that takes one of a few words, with what each means.
fn choices(property: &Value, root: &Value) -> Option<Vec<PossibleValue>> {
    if let Some(name) = property.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix("#/$defs/")) {
        return choices(root.get("$defs")?.get(name)?, root);
    }
    if let Some(word) = property.get("const").and_then(Value::as_str) {
        let about = in_one_line(property.get("description").and_then(Value::as_str).unwrap_or_default());
        return Some(vec![PossibleValue::new(word.to_owned()).help(about)]);
    }
    if let Some(words) = property.get("enum").and_then(Value::as_array) {
        return words.iter().map(|word| word.as_str().map(|word| PossibleValue::new(word.to_owned()))).collect();
    }
    let cases = property.get("oneOf").or(property.get("anyOf"))?.as_array()?;
    let of_cases = cases.iter().filter(|case| case.get("type").and_then(Value::as_str) != Some("null")).map(|case| choices(case, root));
    of_cases.collect::<Option<Vec<_>>>().map(|all| all.into_iter().flatten().collect())
}

/// clap's own `env` feature shows a variable's value in `--help`; a mirror may hold a password.
trait EnvMirror {
    fn env_mirror(self) -> Self;
}
impl EnvMirror for Arg {
    fn env_mirror(self) -> Self {
        match std::env::var("EPISTEME_MIRROR") {
            Ok(mirror) if !mirror.is_empty() => self.default_value(mirror).hide_default_value(true),
            _ => self,
        }
    }
}

fn value_name(property: &Value) -> &'static str {
    if property.get("format").and_then(Value::as_str) == Some("stage") {
        return "PATH";
    }
    match property.get("type").and_then(|kind| kind.as_str().or_else(|| kind.get(0).and_then(Value::as_str))) {
        Some("integer" | "number") => "N",
        Some("boolean") => "true|false",
        Some("array") => "[…]",
        Some("object") => "{…}",
        _ => "TEXT",
    }
}

fn run_from_flags(stage: &StageType, matches: &ArgMatches, stages: &[StageType]) -> u8 {
    let json = matches.get_flag("@json");
    let sink: Box<dyn Sink> = if json { Box::new(JsonLines::new(std::io::stdout())) } else { Box::new(Plain) };
    let output = matches.get_one::<PathBuf>("@output").cloned().unwrap_or_default();
    let spec = match spec_from_flags(stage, matches, &output) {
        Ok(spec) => spec,
        Err(problems) => {
            problems.iter().for_each(report_problem);
            return WRONG;
        }
    };
    if output.exists() {
        report(&StageError::new("the output exists already").at(output.display()).help("name another folder, or remove this one"));
        return WRONG;
    }
    let code = run_spec(&spec, stages, sink.as_ref());
    let done = if code == 0 {
        durable::rename(&spec.output, &output).doing(|| format!("moving the result to {}", output.display()))
    } else {
        Ok(())
    };
    let _ = remove_tree(&spec.output);
    if let Err(error) = done {
        report(&error);
        return FAILED;
    }
    if code == 0 && !json {
        summarise(&output);
    }
    code
}

/// Options and file to a spec; input keys become paths.
fn spec_from_flags(stage: &StageType, matches: &ArgMatches, output: &Path) -> Result<StageSpec, Vec<ConfigProblem>> {
    let wrong = |message: String| vec![ConfigProblem::at("", message)];
    let mut text = String::new();
    let file = matches.get_one::<PathBuf>("@config");
    let mut table: toml::Table = match file {
        Some(path) => std::fs::read_to_string(path)
            .map_err(|error| wrong(format!("{}: {error}", path.display())))?
            .parse()
            .map_err(|error| wrong(format!("{}: {error}", path.display())))?,
        None => toml::Table::new(),
    };
    let schema = (stage.schema)();
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if let Some(given) = matches.get_one::<String>(key) {
            table.insert(key.clone(), typed(given, property));
        }
    }
    text.push_str(&toml::to_string(&table).map_err(|error| wrong(error.to_string()))?);
    let parsed: Spanned<DeTable<'_>> = DeTable::parse(&text).map_err(|error| wrong(error.message().to_owned()))?;
    let config = (stage.from_toml)(parsed)?;
    let inputs: BTreeMap<String, Vec<PathBuf>> =
        config.inputs().into_iter().map(|input| (input.key.into_owned(), input.stages.iter().map(PathBuf::from).collect())).collect();
    let settings = Settings {
        mirrors: matches.get_many::<String>("@mirror").into_iter().flatten().cloned().collect(),
        base: std::env::current_dir().unwrap_or_default(),
        ..Settings::default()
    };
    let config = config.config().map_err(|error| wrong(error.to_string()))?;
    Ok(StageSpec {
        name: short_name(stage).to_owned(),
        uses: stage.uses.to_owned(),
        config,
        inputs,
        output: durable::temporary_sibling(output),
        settings,
    })
}

/// `3`, `true`, `[1, 2]` as TOML; anything that is none of these is a text. A key that takes only texts takes it as it is.
fn typed(given: &str, property: &Value) -> toml::Value {
    let only_text = property.get("type").and_then(Value::as_str) == Some("string");
    match format!("v = {given}").parse::<toml::Table>() {
        Ok(mut table) if !only_text => table.remove("v").unwrap_or_else(|| given.into()),
        _ => given.into(),
    }
}

fn summarise(output: &Path) {
    if let Ok(manifest) = Manifest::read(output) {
        let rows = manifest.outcome.rows.map(|rows| format!(", {rows} rows")).unwrap_or_default();
        anstream::println!("{}: {}{rows}, {} bytes, {}", output.display(), manifest.kind, manifest.bytes(), manifest.digest.short());
    }
}

fn report_problem(problem: &ConfigProblem) {
    let mut error = StageError::new(problem.message.clone());
    error.help.clone_from(&problem.help);
    report(&error);
}

/// An error at the terminal: what, where, and what to do next.
pub fn report(error: &StageError) {
    let (red, bold, cyan, off) = ("\x1b[31m", "\x1b[1m", "\x1b[36m", "\x1b[0m");
    anstream::eprintln!("{red}error:{off} {bold}{}{off}", error.message);
    if let Some(place) = &error.place {
        anstream::eprintln!("  at {place}");
    }
    for cause in &error.causes {
        anstream::eprintln!("  because {cause}");
    }
    if let Some(help) = &error.help {
        anstream::eprintln!("  {cyan}help:{off} {help}");
    }
}

/// Events as plain lines on standard error, for a stage run by itself.
struct Plain;

impl Sink for Plain {
    fn emit(&self, event: Event) {
        match event {
            Event::Log { level: Level::Warning, message, .. } => anstream::eprintln!("\x1b[33mwarning:\x1b[0m {message}"),
            Event::Log { message, .. } => anstream::eprintln!("{message}"),
            Event::Metric { name, value, step: Some(step), .. } => anstream::eprintln!("{name} {value:.4} (step {step})"),
            Event::Metric { name, value, .. } => anstream::eprintln!("{name} {value:.4}"),
            Event::Progress { label, done, total: Some(total), unit, .. } if done == total => anstream::eprintln!("{label}: {done} {unit}"),
            Event::StageFailed { error, .. } => report(&error),
            _ => {}
        }
    }
}
