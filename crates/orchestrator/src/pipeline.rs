//! A pipeline file as it is declared: TOML to typed stages, with every mistake that was found.
//!
//! A mistake in one stage hides none in another: what can be known of a stage whose config is wrong (its name, its type,
//! which stages it takes from) goes on to the plan, which checks how stages fit together, and all is told at once.

mod include;
mod matrix;
pub mod needs;
mod params;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use artifact::stage::AnyStage;
use artifact::{ConfigProblem, Kind, StageType, config};
use serde_json::Value;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use self::matrix::{Matrix, Written};
use self::needs::Needs;
use self::params::Scope;
use crate::problem::{Problems, Sources};
use crate::rules::Rules;
use crate::{schedule, set};

/// A pipeline file, read and typed; not yet put in order, and perhaps wrong.
pub struct Pipeline {
    /// Its file, as the user named it.
    pub file: PathBuf,
    /// What it was declared in, for messages.
    pub sources: Sources,
    /// What is wrong with it so far.
    pub problems: Vec<ConfigProblem>,
    /// Its name: names its lock and its runs.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// When it runs, in crontab's five fields.
    pub schedule: Option<String>,
    /// What is done at the end of its runs.
    pub rules: Rules,
    /// How many stages of a type may run at the same time.
    pub limits: BTreeMap<String, usize>,
    /// Its stages, in the order of the file.
    pub stages: Vec<Declared>,
}

/// What the command line gives beside the file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given<'a> {
    /// `--set a.b=c`.
    pub sets: &'a [String],
    /// `--params FILE`.
    pub params: &'a [PathBuf],
}

/// One stage of a pipeline.
pub struct Declared {
    /// Its name; with `@axis=value` if it is a variant.
    pub name: String,
    /// What it asks of the orchestrator.
    pub needs: Needs,
    /// Where `[stages.NAME]` stands.
    pub span: Range<usize>,
    /// Its typed config; none when that is wrong.
    pub stage: Option<Box<dyn AnyStage>>,
    /// The kind of artifact it gives; none when its type is not known.
    pub gives: Option<Kind>,
    /// Which stages it takes from.
    pub inputs: Vec<Named>,
}

/// A config key that names stages.
pub struct Named {
    /// The key, such as `input`.
    pub key: String,
    /// The names, each with its place.
    pub stages: Vec<(String, Range<usize>)>,
    /// The kinds that fit; none when the config is wrong, and so does not say.
    pub accepts: Option<&'static [Kind]>,
}

/// Keys of the file itself.
const KEYS: [&str; 11] = ["name", "description", "schedule", "seed", "stages", "promote", "alerts", "params", "env", "include", "limits"];

impl Pipeline {
    /// Reads a pipeline file and applies what the command line gives.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(file: &Path, given: Given<'_>, types: &[StageType]) -> Result<Self, Problems> {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| {
            let problem = ConfigProblem::at("", format!("cannot read {shown}: {error}"));
            let problem = problem.help("name a pipeline file that is there: `episteme run my.toml`");
            Problems::new(&Sources::new(shown, String::new()), vec![problem])
        })?;
        Ok(Self::parse(file, text, given, types))
    }

    /// Reads the text of a pipeline file; what is wrong with it is in [`Self::problems`].
    pub fn parse(file: &Path, text: String, given: Given<'_>, types: &[StageType]) -> Self {
        let mut problems = Vec::new();
        let mut sources = Sources::new(file.display().to_string(), text);
        include::gather(file, &mut sources, &mut problems);
        let files = sources.len();
        params::gather(given.params, &mut sources, &mut problems);
        let tables = sources.len();
        given.sets.iter().for_each(|set| sources.add("--set", set.clone()));
        let mut pipeline = Self {
            file: file.to_owned(),
            sources: sources.clone(),
            problems,
            name: String::new(),
            description: String::new(),
            schedule: None,
            rules: Rules::default(),
            limits: BTreeMap::new(),
            stages: Vec::new(),
        };
        if let Some(mut table) = pipeline.whole(&sources, files, tables) {
            pipeline.fill(&mut table);
            pipeline.read(&table, types);
        }
        pipeline
    }

    /// The file's table, with what it includes (the first `files` sources), the parameters of files (up to `tables`), and the
    /// values that are set. None when one of them is no TOML: what it says cannot be trusted, so its mistakes are told alone.
    fn whole<'i>(&mut self, sources: &'i Sources, files: usize, tables: usize) -> Option<DeTable<'i>> {
        let mut whole = DeTable::new();
        let mut wrong = Vec::new();
        for (index, (start, _, text)) in sources.texts().enumerate() {
            if index >= tables {
                self.problems.extend(set::apply(&mut whole, text, start).err());
                continue;
            }
            let (table, errors) = DeTable::parse_recoverable(text);
            wrong.extend(errors.iter().map(|error| no_toml(error, start)));
            let table = if index == 0 { table.into_inner() } else { shifted_table(table, start) };
            match index < files {
                true if index == 0 => whole = table,
                true => include::merge(&mut whole, table, &mut self.problems),
                false => params::override_all(&mut whole, table, &mut self.problems),
            }
        }
        if wrong.is_empty() {
            return Some(whole);
        }
        self.problems = wrong;
        None
    }

    /// Puts values in the place of `${params.x}` and `${env.NAME}`.
    fn fill<'i>(&mut self, table: &mut DeTable<'i>) {
        let mut scope = self.scope(table);
        // Where no stage has variants, none has an axis to refer to.
        scope.matrix = (!has_matrix(table)).then(BTreeMap::new);
        for (_, value) in table.iter_mut().filter(|(key, _)| !["params", "env", "include"].contains(&&**key.get_ref())) {
            scope.fill(value, &mut self.problems);
        }
    }

    fn scope<'i>(&mut self, table: &DeTable<'i>) -> Scope<'i> {
        let params = match table.get("params").map(|value| (value.get_ref(), value.span())) {
            Some((DeValue::Table(params), _)) => params.clone(),
            Some((_, span)) => {
                self.problem(span, "`params` must be a table".into(), "[params]");
                DeTable::new()
            }
            None => DeTable::new(),
        };
        let names = table.get("env").map(|value| {
            (
                value
                    .get_ref()
                    .as_array()
                    .map(|items| items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()),
                value.span(),
            )
        });
        let env = match names {
            Some((Some(Some(names)), _)) => names,
            Some((_, span)) => {
                self.problem(span, "`env` must be a list of names of environment variables".into(), "env = [\"DATA_DIR\"]");
                Vec::new()
            }
            None => Vec::new(),
        };
        Scope { params, env, ..Scope::default() }
    }

    /// The folder that relative paths of the file are taken from.
    pub fn base(&self) -> PathBuf {
        let folder = self.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
    }

    fn read(&mut self, table: &DeTable<'_>, types: &[StageType]) {
        for (key, _) in table.iter().filter(|(key, _)| !KEYS.contains(&&**key.get_ref())) {
            let help = config::suggest(key.get_ref(), KEYS.into_iter());
            self.problem(key.span(), format!("a pipeline has no key `{}`", key.get_ref()), &help);
        }
        let stem = self.file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        self.name = self.text(table, "name").unwrap_or(stem);
        if self.name.is_empty() || self.name.starts_with('.') || self.name.contains(|c: char| c == '/' || c.is_control()) {
            let span = table.get("name").map_or(0..0, Spanned::span);
            self.problem(
                span,
                format!("`{}` cannot name a pipeline: it names files too", self.name.escape_debug()),
                "use letters, digits, - and _",
            );
        }
        self.description = self.text(table, "description").unwrap_or_default();
        self.schedule = self.text(table, "schedule");
        if let (Some(text), Some(value)) = (&self.schedule, table.get("schedule"))
            && let Err(why) = schedule::check(text)
        {
            let help = "five fields: minute hour day month weekday; `15 2 * * *` is every night at 2:15";
            self.problem(value.span(), format!("`{}` is no schedule: {why}", text.escape_debug()), help);
        }
        let seed = self.seed(table);
        self.read_limits(table, types);
        match table.get("stages").map(|value| (value.get_ref(), value.span())) {
            Some((DeValue::Table(stages), _)) if !stages.is_empty() => {
                let mut named: Vec<_> = stages.iter().collect();
                named.sort_by_key(|(name, _)| name.span().start);
                match has_matrix(table) {
                    true => self.variants(&named, seed, types),
                    false => named.into_iter().for_each(|(name, value)| self.stage(name, "", value, seed, types)),
                }
            }
            Some((DeValue::Table(_), span)) => self.problem(span, "the pipeline has no stages".into(), HOW_TO_DECLARE),
            Some((_, span)) => self.problem(span, "`stages` must be tables".into(), HOW_TO_DECLARE),
            None => self.problems.push(ConfigProblem::at("", "the pipeline has no stages").help(HOW_TO_DECLARE)),
        }
        let known: Vec<_> = self.stages.iter().map(|stage| (stage.name.as_str(), stage.gives)).collect();
        self.rules = Rules::read(table, &known, &mut self.problems);
    }

    /// Reads the stages of a pipeline in which some have variants.
    fn variants<'i>(&mut self, named: &[(&Spanned<DeString<'i>>, &Spanned<DeValue<'i>>)], seed: u64, types: &[StageType]) {
        let of_type = |table: &DeTable<'_>| {
            let uses = table.get("uses")?.get_ref().as_str()?;
            types.iter().find(|kind| kind.uses == uses)
        };
        let written = named.iter().filter_map(|(name, value)| {
            let table = value.get_ref().as_table()?;
            Some((
                *name,
                value.span(),
                Written { name: name.get_ref(), table, keys: of_type(table).map(keys_that_name_stages).unwrap_or_default() },
            ))
        });
        let (names, written): (Vec<_>, Vec<_>) = written.map(|(name, span, written)| ((name, span), written)).unzip();
        let matrix = Matrix::new(&written, &mut self.problems);
        for ((name, span), stage) in names.into_iter().zip(&written) {
            for (ending, table) in matrix.variants(stage, &mut self.problems) {
                self.stage(name, &ending, &Spanned::new(span.clone(), DeValue::Table(table)), seed, types);
            }
        }
        // What is no table is told of as ever.
        for (name, value) in named.iter().filter(|(_, value)| !value.get_ref().is_table()) {
            self.stage(name, "", value, seed, types);
        }
    }

    /// Reads a stage, or the variant of one whose name has this ending.
    fn stage(&mut self, name: &Spanned<DeString<'_>>, ending: &str, value: &Spanned<DeValue<'_>>, seed: u64, types: &[StageType]) {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.get_ref().is_empty() || !name.get_ref().chars().all(fits) {
            self.problem(
                name.span(),
                format!("`{}` cannot name a stage", name.get_ref().escape_debug()),
                "use letters, digits, - and _ of ASCII",
            );
        }
        let mut declared = Declared {
            name: format!("{}{ending}", name.get_ref()),
            needs: Needs::default(),
            span: name.span(),
            stage: None,
            gives: None,
            inputs: Vec::new(),
        };
        if let DeValue::Table(table) = value.get_ref() {
            let mut own = table.clone();
            declared.needs = Needs::take(&mut own, &mut self.problems);
            if let Some(kind) = self.stage_type(name, &own, types) {
                self.config(&mut declared, kind, &own, value.span(), seed);
            }
        } else {
            self.problem(value.span(), format!("`stages.{}` must be a table", name.get_ref()), HOW_TO_DECLARE);
        }
        self.stages.push(declared);
    }

    /// What `uses` names.
    fn stage_type<'t>(&mut self, name: &Spanned<DeString<'_>>, table: &DeTable<'_>, types: &'t [StageType]) -> Option<&'t StageType> {
        let Some(uses) = table.get("uses") else {
            self.problem(name.span(), format!("the stage `{}` does not say what it uses", name.get_ref()), HOW_TO_DECLARE);
            return None;
        };
        let Some(text) = uses.get_ref().as_str() else {
            self.problem(uses.span(), "`uses` must be a text in quotes".into(), HOW_TO_DECLARE);
            return None;
        };
        let found = types.iter().find(|kind| kind.uses == text);
        if found.is_none() {
            let help = config::suggest(text, types.iter().map(|kind| kind.uses));
            self.problem(uses.span(), format!("there is no stage type `{text}`"), &help);
        }
        found
    }

    /// The stage's own keys: all but those of the orchestrator.
    fn config(&mut self, declared: &mut Declared, kind: &StageType, table: &DeTable<'_>, span: Range<usize>, seed: u64) {
        let mut own = table.clone();
        own.remove("uses");
        declared.gives = Some(kind.gives);
        match (kind.from_toml)(Spanned::new(span, own)) {
            Err(found) => {
                self.problems.extend(found);
                let keys = keys_that_name_stages(kind).into_iter().flat_map(|key| dotted(table, key));
                declared.inputs = keys.map(|key| Named { stages: names(table, &key), key, accepts: None }).collect();
            }
            Ok(mut stage) => {
                stage.set_seed(seed);
                let inputs = stage.inputs().into_iter().map(|input| {
                    let written = names(table, &input.key);
                    // A name that the config has by default is written nowhere: the stage itself is then pointed at.
                    let span = |name: &String| {
                        written.iter().find(|(text, _)| text == name).map_or_else(|| declared.span.clone(), |(_, span)| span.clone())
                    };
                    let stages = input.stages.iter().map(|name| (name.clone(), span(name))).collect();
                    Named { key: input.key.into_owned(), stages, accepts: Some(input.accepts) }
                });
                declared.inputs = inputs.collect();
                declared.stage = Some(stage);
            }
        }
    }

    fn text(&mut self, table: &DeTable<'_>, key: &str) -> Option<String> {
        let value = table.get(key)?;
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.problem(value.span(), format!("`{key}` must be a text in quotes"), "");
        }
        text
    }

    /// `limits = { "learn.classifier" = 1 }`.
    fn read_limits(&mut self, table: &DeTable<'_>, types: &[StageType]) {
        const HELP: &str = "limits = { \"learn.classifier\" = 1 }";
        let Some(value) = table.get("limits") else { return };
        let Some(limits) = value.get_ref().as_table() else {
            return self.problem(value.span(), "`limits` must be a table of stage types and how many run at the same time".into(), HELP);
        };
        for (uses, limit) in limits {
            if !types.iter().any(|kind| kind.uses == *uses.get_ref()) {
                let help = config::suggest(uses.get_ref(), types.iter().map(|kind| kind.uses));
                self.problem(uses.span(), format!("there is no stage type `{}`", uses.get_ref()), &help);
            }
            match needs::count(limit.get_ref()) {
                Some(limit) => drop(self.limits.insert(uses.get_ref().to_string(), limit)),
                None => self.problem(limit.span(), "a limit must be a whole number, one or more".into(), HELP),
            }
        }
    }

    fn seed(&mut self, table: &DeTable<'_>) -> u64 {
        let Some(value) = table.get("seed") else { return 0 };
        let seed = value.get_ref().as_integer().and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok());
        if seed.is_none() {
            self.problem(value.span(), "`seed` must be a whole number, zero or more".into(), "");
        }
        seed.unwrap_or_default()
    }

    fn problem(&mut self, span: Range<usize>, message: String, help: &str) {
        let help = Some(help.to_owned()).filter(|help| !help.is_empty());
        self.problems.push(ConfigProblem { path: Vec::new(), span: Some(span), message, help });
    }
}

const HOW_TO_DECLARE: &str = "a stage is `[stages.NAME]` with `uses = \"…\"`; `episteme stages` lists what there is";

fn has_matrix(table: &DeTable<'_>) -> bool {
    let stages = table.get("stages").and_then(|stages| stages.get_ref().as_table()).into_iter().flatten();
    stages.into_iter().any(|(_, stage)| stage.get_ref().as_table().is_some_and(|stage| stage.contains_key("matrix")))
}

/// A table of a text whose spans begin at `start`.
fn shifted_table(table: Spanned<DeTable<'_>>, start: usize) -> DeTable<'_> {
    let span = table.span();
    match set::shifted(Spanned::new(span, DeValue::Table(table.into_inner())), start).into_inner() {
        DeValue::Table(table) => table,
        _ => DeTable::new(),
    }
}

fn no_toml(error: &toml::de::Error, start: usize) -> ConfigProblem {
    let span = error.span().map(|span| span.start + start..span.end + start);
    ConfigProblem { span, ..ConfigProblem::at("", format!("this is no TOML: {}", error.message())) }
}

/// The names in a config's key (dotted within a table), each with its place: a text, or a list or table of them.
fn names(table: &DeTable<'_>, key: &str) -> Vec<(String, Range<usize>)> {
    let mut keys = key.split('.');
    let first = keys.next().and_then(|key| table.get(key));
    let found = keys.try_fold(first, |value, key| Some(value?.get_ref().as_table()?.get(key)));
    found.flatten().map(names_within).unwrap_or_default()
}

fn names_within(value: &Spanned<DeValue<'_>>) -> Vec<(String, Range<usize>)> {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().flat_map(names_within).collect(),
        DeValue::Table(entries) => entries.iter().flat_map(|(_, value)| names_within(value)).collect(),
        plain => plain.as_str().map(|name| (name.to_owned(), value.span())).into_iter().collect(),
    }
}

/// The key itself, or, where a table stands there, the dotted keys of its entries.
fn dotted(table: &DeTable<'_>, key: String) -> Vec<String> {
    match table.get(key.as_str()).map(Spanned::get_ref) {
        Some(DeValue::Table(entries)) => entries.keys().map(|name| format!("{key}.{}", name.get_ref())).collect(),
        _ => vec![key],
    }
}

/// The keys of a stage type whose schema says `"format": "stage"`.
fn keys_that_name_stages(kind: &StageType) -> Vec<String> {
    let schema = (kind.schema)().to_value();
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties.filter(|(_, property)| names_a_stage(property, &schema)).map(|(key, _)| key.clone()).collect()
}

fn names_a_stage(schema: &Value, root: &Value) -> bool {
    let within = |schema: &Value| names_a_stage(schema, root);
    match schema {
        Value::Object(entries) => {
            let defined = entries.get("$ref").and_then(Value::as_str).and_then(|path| root.pointer(path.trim_start_matches('#')));
            entries.get("format").is_some_and(|format| format == "stage")
                || defined.is_some_and(within)
                || ["items", "anyOf", "oneOf", "additionalProperties"].iter().any(|key| entries.get(*key).is_some_and(within))
        }
        Value::Array(cases) => cases.iter().any(within),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
