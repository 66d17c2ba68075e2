//! `${params.x}`, `${env.NAME}` and `${matrix.x}` in the values of a pipeline file.
//!
//! A text that is nothing but a reference becomes the value itself, with its type; within a longer text it becomes a part of
//! it. `$${` is a plain `${`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use artifact::{ConfigProblem, config};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::Sources;

/// What may stand before the dot.
const ROOTS: [&str; 3] = ["params", "env", "matrix"];
/// Parameters may refer to others so many times.
const DEEPEST: usize = 16;

/// What a reference stands for.
enum Meaning<'i> {
    Value(DeValue<'i>),
    /// It is not ours: a shell's, or a stage's own.
    Theirs,
    /// What is wrong, and what to do.
    Wrong(String, String),
}

/// What references may refer to.
#[derive(Default, Clone)]
pub struct Scope<'i> {
    /// `[params]`.
    pub params: DeTable<'i>,
    /// The variables that `env` names.
    pub env: Vec<String>,
    /// The values of a variant's axes; none before variants are made, when `${matrix.x}` is left as it is.
    pub matrix: Option<BTreeMap<String, DeValue<'i>>>,
    /// All but `${matrix.x}` has been filled in already.
    pub only_matrix: bool,
}

impl<'i> Scope<'i> {
    /// Puts values in the place of all references within a value; tells those that lead nowhere.
    pub fn fill(&self, value: &mut Spanned<DeValue<'i>>, problems: &mut Vec<ConfigProblem>) {
        self.fill_at(value, 0, problems);
    }

    fn fill_at(&self, value: &mut Spanned<DeValue<'i>>, depth: usize, problems: &mut Vec<ConfigProblem>) {
        let span = value.span();
        match value.get_mut() {
            DeValue::Array(items) => items.iter_mut().for_each(|item| self.fill_at(item, depth, problems)),
            DeValue::Table(entries) => entries.iter_mut().for_each(|(_, value)| self.fill_at(value, depth, problems)),
            DeValue::String(text) if text.contains("${") => {
                if let Some(filled) = self.filled(text, &span, depth, problems) {
                    *value.get_mut() = filled;
                }
            }
            _ => {}
        }
    }

    /// The value that a text with references stands for; none if it has none of ours.
    fn filled(&self, text: &str, span: &Range<usize>, depth: usize, problems: &mut Vec<ConfigProblem>) -> Option<DeValue<'i>> {
        let (mut filled, mut rest, mut is_ours) = (String::new(), text, false);
        while let Some(found) = rest.find("${") {
            let Some(end) = rest[found..].find('}').map(|end| found + end) else { break };
            let reference = &rest[found + 2..end];
            let escaped = rest[..found].ends_with('$') && ROOTS.iter().any(|root| is_within(reference, root));
            match if escaped { Meaning::Theirs } else { self.meaning(reference, depth) } {
                Meaning::Value(value) if found == 0 && end + 1 == text.len() && rest.len() == text.len() => return Some(value),
                Meaning::Value(value) => {
                    is_ours = true;
                    filled.push_str(&rest[..found]);
                    match as_text(&value) {
                        Some(text) => filled.push_str(&text),
                        None => problems.push(problem(
                            span,
                            format!("`${{{reference}}}` is a {}, and stands within a text", value.type_str()),
                            "let it be the whole value",
                        )),
                    }
                }
                Meaning::Theirs if escaped => {
                    is_ours = true;
                    filled.push_str(&rest[..found - 1]);
                    filled.push_str(&rest[found..=end]);
                }
                Meaning::Theirs => filled.push_str(&rest[..=end]),
                Meaning::Wrong(message, help) => {
                    problems.push(problem(span, message, &help));
                    filled.push_str(&rest[..=end]);
                }
            }
            rest = &rest[end + 1..];
        }
        filled.push_str(rest);
        is_ours.then(|| DeValue::String(filled.into()))
    }

    fn meaning(&self, reference: &str, depth: usize) -> Meaning<'i> {
        let Some((root, name)) = reference.split_once('.') else { return Meaning::Theirs };
        match root {
            root if self.only_matrix && root != "matrix" => Meaning::Theirs,
            "params" => self.param(name, depth),
            "env" => self.variable(name),
            "matrix" => match &self.matrix {
                None => Meaning::Theirs,
                Some(axes) => match axes.get(name) {
                    Some(value) => Meaning::Value(value.clone()),
                    None => Meaning::Wrong(
                        format!("`${{{reference}}}` stands for an axis, and neither this stage nor one that it takes from has it"),
                        config::suggest(name, axes.keys().map(String::as_str)),
                    ),
                },
            },
            // No shell knows a name with a dot in it.
            root => match config::suggest(root, ROOTS.into_iter()) {
                near if near.starts_with("did you mean") && root.chars().all(|c| c.is_ascii_alphabetic()) => {
                    Meaning::Wrong(format!("`${{{reference}}}` refers to nothing"), near)
                }
                _ => Meaning::Theirs,
            },
        }
    }

    fn param(&self, path: &str, depth: usize) -> Meaning<'i> {
        let mut table = &self.params;
        let mut keys = path.split('.').peekable();
        while let Some(key) = keys.next() {
            let Some(value) = table.get(key) else {
                let help = config::suggest(key, table.keys().map(|key| &**key.get_ref()));
                let help = if table.is_empty() { "declare it: [params]".to_owned() } else { help };
                return Meaning::Wrong(format!("there is no parameter `{path}`"), help);
            };
            match (keys.peek(), value.get_ref()) {
                (None, _) if depth >= DEEPEST => return Meaning::Wrong(format!("the parameter `{path}` refers to itself"), String::new()),
                (None, _) => {
                    let (mut value, mut problems) = (value.clone(), Vec::new());
                    self.fill_at(&mut value, depth + 1, &mut problems);
                    return match problems.pop() {
                        Some(problem) => Meaning::Wrong(problem.message, problem.help.unwrap_or_default()),
                        None => Meaning::Value(value.into_inner()),
                    };
                }
                (Some(_), DeValue::Table(inner)) => table = inner,
                (Some(_), _) => return Meaning::Wrong(format!("the parameter `{key}` is no table"), String::new()),
            }
        }
        Meaning::Theirs
    }

    fn variable(&self, name: &str) -> Meaning<'i> {
        if !self.env.iter().any(|declared| declared == name) {
            let help = match self.env.is_empty() {
                true => format!("declare at the top of the file that it is used: env = [\"{name}\"]"),
                false => config::suggest(name, self.env.iter().map(String::as_str)),
            };
            return Meaning::Wrong(format!("the pipeline does not declare that it uses the environment variable {name}"), help);
        }
        match std::env::var(name) {
            Ok(value) => Meaning::Value(DeValue::String(value.into())),
            Err(_) => Meaning::Wrong(format!("the environment variable {name} is not set"), format!("set it: {name}=… episteme …")),
        }
    }
}

fn is_within(reference: &str, root: &str) -> bool {
    reference.strip_prefix(root).is_some_and(|rest| rest.starts_with('.'))
}

fn problem(span: &Range<usize>, message: String, help: &str) -> ConfigProblem {
    let help = Some(help.to_owned()).filter(|help| !help.is_empty());
    ConfigProblem { path: Vec::new(), span: Some(span.clone()), message, help }
}

/// A plain value as a part of a text.
pub fn as_text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Datetime(time) => Some(time.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// Reads the files of `--params` and adds them to the sources.
pub fn gather(files: &[PathBuf], sources: &mut Sources, problems: &mut Vec<ConfigProblem>) {
    for file in files {
        match std::fs::read_to_string(file) {
            Ok(text) => sources.add(file.display().to_string(), text),
            Err(error) => problems.push(
                ConfigProblem::at("", format!("cannot read {}: {error}", file.display())).help("a file of parameters is TOML: epochs = 3"),
            ),
        }
    }
}

/// Puts the values of a `--params` file over those that a pipeline declares.
pub fn override_all<'i>(pipeline: &mut DeTable<'i>, file: DeTable<'i>, problems: &mut Vec<ConfigProblem>) {
    match pipeline.get_mut("params").map(Spanned::get_mut) {
        Some(DeValue::Table(params)) => override_with(params, file, problems),
        _ => override_with(&mut DeTable::new(), file, problems),
    }
}

fn override_with<'i>(params: &mut DeTable<'i>, file: DeTable<'i>, problems: &mut Vec<ConfigProblem>) {
    for (key, value) in file {
        let known: Vec<String> = params.keys().map(|key| key.get_ref().to_string()).collect();
        match (params.get_mut(&**key.get_ref()).map(Spanned::get_mut), value.into_inner()) {
            (Some(DeValue::Table(inner)), DeValue::Table(new)) => override_with(inner, new, problems),
            (Some(place), value) => *place = value,
            (None, _) => {
                let help = config::suggest(key.get_ref(), known.iter().map(String::as_str));
                problems.push(problem(&key.span(), format!("the pipeline has no parameter `{}`", key.get_ref()), &help));
            }
        }
    }
}
