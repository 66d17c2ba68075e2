//! TOML to a typed config, with every mistake at once, each with its span.
//!
//! serde stops at the first error. To find them all without a second description of the types, the offending key is
//! taken out and the rest is read again, until nothing more is found: the config type stays the only truth.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use crate::Stage;

/// One thing wrong with a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblem {
    /// The path of keys to it, from the stage's own table; array items by their index.
    pub path: Vec<String>,
    /// Where it stands in the file, in bytes.
    pub span: Option<Range<usize>>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl ConfigProblem {
    /// A problem with the value at `path` (dotted: `files.0.sha256`); the span is found from the path.
    pub fn at(path: &str, message: impl Into<String>) -> Self {
        let path = path.split('.').filter(|key| !key.is_empty()).map(str::to_owned).collect();
        Self { path, span: None, message: message.into(), help: None }
    }

    /// Says what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Reads a config and checks it; `table` keeps its spans in the pipeline file.
///
/// # Errors
/// Every problem found: unknown keys, wrong types, missing keys, and, where the types fit, what [`Stage::check`] says.
pub fn parse<S: Stage>(table: Spanned<DeTable<'_>>) -> Result<S, Vec<ConfigProblem>> {
    let Ok(stage) = S::deserialize(Deserializer::from(table.clone())) else { return Err(type_problems::<S>(table)) };
    let mut problems = stage.check();
    problems.iter_mut().for_each(|problem| problem.span = problem.span.take().or_else(|| span_of(&table, &problem.path)));
    if problems.is_empty() { Ok(stage) } else { Err(problems) }
}

/// What keeps a table from being this config.
fn type_problems<S: Stage>(mut left: Spanned<DeTable<'_>>) -> Vec<ConfigProblem> {
    let mut problems = missing_keys::<S>(&left);
    loop {
        match S::deserialize(Deserializer::from(left.clone())) {
            Ok(_) => return problems,
            Err(error) => {
                let key = error.span().and_then(|span| key_around(left.get_ref(), &span));
                let Some(key) = key else {
                    // A key that is missing at the top level was reported already; anything else is news.
                    if problems.is_empty() {
                        problems.push(ConfigProblem {
                            path: Vec::new(),
                            span: error.span(),
                            message: error.message().to_owned(),
                            help: None,
                        });
                    }
                    return problems;
                };
                problems.push(describe::<S>(&key, left.get_ref(), &error));
                left.get_mut().remove(key.as_str());
            }
        }
    }
}

/// Keys that the type needs and the table lacks.
fn missing_keys<S: Stage>(table: &Spanned<DeTable<'_>>) -> Vec<ConfigProblem> {
    let schema = schemars::schema_for!(S);
    let required = schema.get("required").and_then(|required| required.as_array()).cloned().unwrap_or_default();
    required
        .iter()
        .filter_map(|key| key.as_str())
        .filter(|key| !table.get_ref().contains_key(*key))
        .map(|key| {
            let about = schema.pointer(&format!("/properties/{key}/description")).and_then(|text| text.as_str());
            ConfigProblem {
                path: Vec::new(),
                span: Some(table.span()),
                message: format!("`{}` needs the key `{key}`", S::USES),
                help: about.map(|text| format!("{key}: {}", first_sentence(text))),
            }
        })
        .collect()
}

/// Of a doc comment, in which a sentence goes over lines.
fn first_sentence(about: &str) -> String {
    let line = about.split_whitespace().collect::<Vec<_>>().join(" ");
    line.split_inclusive(". ").next().unwrap_or_default().trim_end().to_owned()
}

/// The top-level key whose name or value holds this span.
fn key_around(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    table.iter().find(|(name, value)| holds(name.span()) || holds(value.span())).map(|(name, _)| name.get_ref().to_string())
}

/// serde's message in a user's words.
fn describe<S: Stage>(key: &str, table: &DeTable<'_>, error: &toml::de::Error) -> ConfigProblem {
    let mut problem = ConfigProblem { path: vec![key.to_owned()], span: error.span(), message: error.message().to_owned(), help: None };
    if let Some((name, known)) = unknown_field(error.message()) {
        problem.message = match name == key && table.contains_key(key) {
            true => format!("`{}` has no key `{name}`", S::USES),
            false => format!("unknown key `{name}` in `{key}`"),
        };
        problem.help = Some(suggest(&name, known.iter().map(String::as_str)));
    } else if let Some((found, expected)) = error.message().strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected ")) {
        problem.message = format!("`{key}` is {}, and {} is needed", article(found), in_words(expected));
    } else {
        problem.message = format!("`{key}`: {}", error.message());
    }
    problem
}

/// Name and known names out of serde's "unknown field `a`, expected one of `b`, `c`".
fn unknown_field(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (name, rest) = rest.split_once('`')?;
    Some((name.to_owned(), rest.split('`').skip(1).step_by(2).map(str::to_owned).collect()))
}

/// "did you mean …" where something is near, else the list.
pub fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    let near = known.iter().map(|one| (strsim::damerau_levenshtein(name, one), *one)).min();
    match near {
        Some((distance, one)) if distance <= 1 + name.len() / 4 => format!("did you mean `{one}`?"),
        _ if known.is_empty() => "nothing is known here".to_owned(),
        _ => format!("known: {}", known.join(", ")),
    }
}

fn article(found: &str) -> String {
    let (kind, value) = found.split_once(' ').unwrap_or((found, ""));
    let kind = match kind {
        "string" => "the text",
        "integer" => "the number",
        "floating" => "the number",
        "boolean" => "the boolean",
        "sequence" => "a list",
        "map" => "a table",
        other => other,
    };
    let value = value.trim_start_matches("point ");
    if value.is_empty() { kind.to_owned() } else { format!("{kind} {value}") }
}

fn in_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, zero or more,",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a string" | "string" => "a text in quotes",
        "a boolean" | "bool" => "true or false",
        "a sequence" => "a list",
        other => other,
    }
}

/// The span of the value at a path, or of the nearest key above it that is there.
fn span_of(table: &Spanned<DeTable<'_>>, path: &[String]) -> Option<Range<usize>> {
    let mut span = table.span();
    let Some((first, rest)) = path.split_first() else { return Some(span) };
    let Some(mut value) = table.get_ref().get(first.as_str()) else { return Some(span) };
    span = value.span();
    for key in rest {
        let inner = match value.get_ref() {
            DeValue::Array(items) => key.parse::<usize>().ok().and_then(|index| items.get(index)),
            DeValue::Table(table) => table.get(key.as_str()),
            _ => None,
        };
        let Some(inner) = inner else { break };
        value = inner;
        span = value.span();
    }
    Some(span)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Kind, Outcome, RunContext, StageError};

    #[derive(Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Example {
        /// How many times.
        epochs: u32,
        rate: f64,
        #[serde(default)]
        files: Vec<File>,
    }

    #[derive(Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct File {
        url: String,
    }

    impl Stage for Example {
        const USES: &'static str = "test.example";
        const VERSION: u32 = 1;
        const SUMMARY: &'static str = "an example";
        const GIVES: Kind = Kind::Files;
        fn check(&self) -> Vec<ConfigProblem> {
            let bad = self.files.iter().enumerate().filter(|(_, file)| file.url.is_empty());
            bad.map(|(i, _)| ConfigProblem::at(&format!("files.{i}.url"), "an empty URL")).collect()
        }
        fn run(&self, _: &RunContext) -> Result<Outcome, StageError> {
            Ok(Outcome::default())
        }
    }

    fn problems(text: &str) -> Vec<(String, String)> {
        let found = parse::<Example>(DeTable::parse(text).unwrap()).unwrap_err();
        found.into_iter().map(|problem| (problem.message, text[problem.span.unwrap()].to_owned())).collect()
    }

    #[test]
    fn a_right_config_is_read() {
        let read = parse::<Example>(DeTable::parse("epochs = 3\nrate = 0.5").unwrap()).unwrap();
        assert_eq!((read.epochs, read.rate), (3, 0.5));
    }

    #[test]
    fn all_mistakes_are_found_at_once_each_with_its_span() {
        let found = problems("epoch = 3\nrate = 'fast'\nfiles = [{ url = 'a' }, { ur = 'b' }]");
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[0].0, "`test.example` needs the key `epochs`");
        let rest: Vec<&str> = found[1..].iter().map(|(_, text)| text.as_str()).collect();
        for text in ["epoch", "'fast'", "ur"] {
            assert!(rest.contains(&text), "{text} in {found:?}");
        }
    }

    #[test]
    fn a_key_is_explained_by_a_whole_sentence() {
        assert_eq!(first_sentence("A text for `x.y`,\nor a list. More of it."), "A text for `x.y`, or a list.");
        assert_eq!(first_sentence("The rate"), "The rate");
    }

    #[test]
    fn an_unknown_key_comes_with_a_suggestion() {
        let found = parse::<Example>(DeTable::parse("epochs = 1\nrate = 1.0\nfile = []").unwrap()).unwrap_err();
        assert_eq!(found[0].help.as_deref(), Some("did you mean `files`?"));
    }

    #[test]
    fn what_check_finds_points_at_the_nested_value() {
        assert_eq!(
            problems("epochs = 1\nrate = 1.0\nfiles = [{ url = 'a' }, { url = '' }]"),
            [("an empty URL".to_owned(), "''".to_owned())]
        );
    }
}
