//! A pipeline file as it is declared: TOML to typed stages, every mistake at once.

use std::ops::Range;
use std::path::{Path, PathBuf};

use artifact::stage::AnyStage;
use artifact::{ConfigProblem, StageType, config};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::Problems;

/// A pipeline file, read and typed; not yet put in order.
pub struct Pipeline {
    /// Its file, as the user named it.
    pub file: PathBuf,
    /// The file's text, for messages.
    pub text: String,
    /// Its name: names its lock and its runs.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// When it runs, in crontab's five fields.
    pub schedule: Option<String>,
    /// Its stages, in the order of the file.
    pub stages: Vec<Declared>,
}

/// One stage of a pipeline.
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Its typed config.
    pub stage: Box<dyn AnyStage>,
    /// Where `[stages.NAME]` stands.
    pub span: Range<usize>,
    /// Where the value of each input key stands.
    pub input_spans: Vec<(String, Range<usize>)>,
}

/// Keys of the file itself.
const KEYS: [&str; 5] = ["name", "description", "schedule", "seed", "stages"];

impl Pipeline {
    /// Reads a pipeline file and applies `--set a.b=c`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(file: &Path, sets: &[String], types: &[StageType]) -> Result<Self, Problems> {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|error| {
            let help = "name a pipeline file: `episteme run pipelines/digits.toml`";
            Problems::new(&shown, "", vec![ConfigProblem::at("", format!("cannot read {shown}: {error}")).help(help)])
        })?;
        Self::parse(file, text, sets, types)
    }

    /// Reads the text of a pipeline file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(file: &Path, text: String, sets: &[String], types: &[StageType]) -> Result<Self, Problems> {
        let shown = file.display().to_string();
        let assignments: Vec<(String, String)> = sets.iter().map(|set| assignment(set)).collect();
        let mut reader = Reader { types, problems: Vec::new() };
        let mut pipeline = Self {
            file: file.to_owned(),
            text: String::new(),
            name: String::new(),
            description: String::new(),
            schedule: None,
            stages: Vec::new(),
        };
        match DeTable::parse(&text) {
            Err(error) => reader.problems.push(ConfigProblem { span: error.span(), ..ConfigProblem::at("", error.message()) }),
            Ok(mut table) => {
                for (path, value) in &assignments {
                    reader.set(table.get_mut(), path, value);
                }
                reader.pipeline(table.get_ref(), &mut pipeline);
            }
        }
        if !reader.problems.is_empty() {
            return Err(Problems::new(&shown, &text, reader.problems));
        }
        pipeline.text = text;
        Ok(pipeline)
    }

    /// The folder that relative paths of the file are taken from.
    pub fn base(&self) -> PathBuf {
        let folder = self.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
    }
}

/// `a.b=c` as path and TOML document `v = c`; what is no TOML value is a text.
fn assignment(set: &str) -> (String, String) {
    let (path, value) = set.split_once('=').unwrap_or((set, ""));
    let document = format!("v = {value}");
    let is_toml = document.parse::<toml::Table>().is_ok_and(|table| table.len() == 1);
    (path.trim().to_owned(), if is_toml { document } else { format!("v = {}", toml::Value::from(value)) })
}

struct Reader<'t> {
    types: &'t [StageType],
    problems: Vec<ConfigProblem>,
}

impl Reader<'_> {
    /// Puts a `--set` into the table; its span is empty, so that messages do not point into the file.
    fn set<'i>(&mut self, table: &mut DeTable<'i>, path: &str, document: &'i str) {
        let value = DeTable::parse(document).ok().and_then(|mut table| table.get_mut().remove("v")).map(Spanned::into_inner);
        let keys: Vec<&str> = path.split('.').collect();
        let (Some(value), Some((last, above))) = (value, keys.split_last()) else { return };
        let mut table = table;
        for (depth, key) in above.iter().enumerate() {
            let known: Vec<String> = table.keys().map(|key| key.get_ref().to_string()).collect();
            match table.get_mut(*key).map(Spanned::get_mut) {
                Some(DeValue::Table(inner)) => table = inner,
                _ => {
                    let place = above[..depth].join(".");
                    let place = if place.is_empty() { "the pipeline".to_owned() } else { format!("`{place}`") };
                    let problem = ConfigProblem::at("", format!("--set {path}: there is no table `{key}` in {place}"));
                    self.problems.push(problem.help(config::suggest(key, known.iter().map(String::as_str))));
                    return;
                }
            }
        }
        table.insert(Spanned::new(0..0, (*last).to_owned().into()), Spanned::new(0..0, value));
    }

    fn pipeline(&mut self, table: &DeTable<'_>, pipeline: &mut Pipeline) {
        for (key, _) in table.iter().filter(|(key, _)| !KEYS.contains(&&**key.get_ref())) {
            self.problem(
                key.span(),
                format!("a pipeline has no key `{}`", key.get_ref()),
                Some(config::suggest(key.get_ref(), KEYS.into_iter())),
            );
        }
        let stem = pipeline.file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        pipeline.name = self.text(table, "name").unwrap_or(stem);
        if pipeline.name.is_empty() || pipeline.name.contains(['/', '\0', '\n']) || pipeline.name.starts_with('.') {
            let span = table.get("name").map_or(0..0, Spanned::span);
            self.problem(
                span,
                format!("`{}` cannot name a pipeline: it names files too", pipeline.name),
                Some("use letters, digits, - and _".into()),
            );
        }
        pipeline.description = self.text(table, "description").unwrap_or_default();
        pipeline.schedule = self.text(table, "schedule");
        if let (Some(schedule), Some(value)) = (&pipeline.schedule, table.get("schedule"))
            && let Err(error) = schedule.parse::<croner::Cron>()
        {
            let help = "five fields: minute hour day month weekday; `15 2 * * *` is every night at 2:15";
            self.problem(value.span(), format!("`{schedule}` is no schedule: {error}"), Some(help.into()));
        }
        let seed = self.seed(table);
        match table.get("stages").map(|value| (value.get_ref(), value.span())) {
            Some((DeValue::Table(stages), _)) if !stages.is_empty() => {
                let mut named: Vec<_> = stages.iter().collect();
                named.sort_by_key(|(name, _)| name.span().start);
                for (name, value) in named {
                    self.stage(name, value, seed, pipeline);
                }
            }
            Some((DeValue::Table(_), span)) => self.problem(span, "the pipeline has no stages".into(), None),
            Some((_, span)) => self.problem(span, "`stages` must be tables: `[stages.NAME]`".into(), None),
            None => self.problems.push(
                ConfigProblem::at("", "the pipeline has no stages")
                    .help("add `[stages.NAME]` with `uses = \"…\"`; `episteme stages` lists what there is"),
            ),
        }
    }

    fn stage(&mut self, name: &Spanned<std::borrow::Cow<'_, str>>, value: &Spanned<DeValue<'_>>, seed: u64, pipeline: &mut Pipeline) {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.get_ref().is_empty() || !name.get_ref().chars().all(fits) {
            self.problem(name.span(), format!("`{}` cannot name a stage", name.get_ref()), Some("use letters, digits, - and _".into()));
        }
        let DeValue::Table(table) = value.get_ref() else {
            return self.problem(value.span(), format!("`stages.{}` must be a table", name.get_ref()), None);
        };
        let Some(uses) = table.get("uses") else {
            let help = "add `uses = \"…\"`; `episteme stages` lists what there is".to_owned();
            return self.problem(name.span(), format!("the stage `{}` does not say what it uses", name.get_ref()), Some(help));
        };
        let Some(kind) = uses.get_ref().as_str().and_then(|uses| self.types.iter().find(|kind| kind.uses == uses)) else {
            let found = uses
                .get_ref()
                .as_str()
                .map_or_else(|| "`uses` must be a text".to_owned(), |uses| format!("there is no stage type `{uses}`"));
            let known = self.types.iter().map(|kind| kind.uses);
            return self.problem(uses.span(), found, Some(config::suggest(uses.get_ref().as_str().unwrap_or_default(), known)));
        };
        let mut own = table.clone();
        own.remove("uses");
        match (kind.from_toml)(Spanned::new(value.span(), own)) {
            Err(found) => self.problems.extend(found),
            Ok(mut stage) => {
                stage.set_seed(seed);
                let input_spans = stage
                    .inputs()
                    .iter()
                    .filter_map(|input| table.get(input.key).map(|value| (input.key.to_owned(), value.span())))
                    .collect();
                pipeline.stages.push(Declared { name: name.get_ref().to_string(), stage, span: name.span(), input_spans });
            }
        }
    }

    fn text(&mut self, table: &DeTable<'_>, key: &str) -> Option<String> {
        let value = table.get(key)?;
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.problem(value.span(), format!("`{key}` must be a text in quotes"), None);
        }
        text
    }

    fn seed(&mut self, table: &DeTable<'_>) -> u64 {
        let Some(value) = table.get("seed") else { return 0 };
        let seed = value.get_ref().as_integer().and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok());
        if seed.is_none() {
            self.problem(value.span(), "`seed` must be a whole number, zero or more".into(), None);
        }
        seed.unwrap_or_default()
    }

    fn problem(&mut self, span: Range<usize>, message: String, help: Option<String>) {
        self.problems.push(ConfigProblem { path: Vec::new(), span: Some(span), message, help });
    }
}
