//! What a pipeline file says about the end of its runs: promotions and alerts.

pub mod alerts;
pub mod condition;
pub mod promote;
pub mod secret;
pub mod webhook;

use std::ops::Range;

use artifact::{ConfigProblem, Kind, config};
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

use alerts::Alert;
use promote::Promotion;

/// Promotions and alerts, checked.
#[derive(Debug, Default)]
pub struct Rules {
    /// In the order of the file.
    pub promote: Vec<Promotion>,
    /// In the order of the file.
    pub alerts: Vec<Alert>,
}

/// A stage as rules see it: its name and what it gives.
pub type Known<'a> = (&'a str, Option<Kind>);

impl Rules {
    /// Reads `promote` and `alerts`: each a table, or several in a list.
    pub fn read(table: &DeTable<'_>, stages: &[Known<'_>], problems: &mut Vec<ConfigProblem>) -> Self {
        let mut rules = Self::default();
        for item in items(table.get("promote")) {
            let promotion = read::<Promotion>(item, "promote", &promote::KEYS, problems);
            rules.promote.extend(promotion.and_then(|promotion| place(promotion.settle(stages), item, problems)));
        }
        for item in items(table.get("alerts")) {
            let alert = read::<Alert>(item, "alerts", &alerts::KEYS, problems);
            rules.alerts.extend(alert.and_then(|alert| place(alert.check(), item, problems)));
        }
        rules
    }
}

/// One table, or each of a list.
fn items<'v, 'i>(value: Option<&'v Spanned<DeValue<'i>>>) -> Vec<&'v Spanned<DeValue<'i>>> {
    match value {
        None => Vec::new(),
        Some(value) => match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        },
    }
}

/// A rule from its table; what is wrong with it goes to `problems`.
fn read<T: DeserializeOwned>(item: &Spanned<DeValue<'_>>, name: &str, known: &[&str], problems: &mut Vec<ConfigProblem>) -> Option<T> {
    let DeValue::Table(table) = item.get_ref() else {
        problems.push(wrong(item.span(), format!("`{name}` must be a table, or a list of tables"), None));
        return None;
    };
    let strange = table.iter().filter(|(key, _)| !known.contains(&&**key.get_ref()));
    let before = problems.len();
    problems.extend(strange.map(|(key, _)| {
        let help = config::suggest(key.get_ref(), known.iter().copied());
        wrong(key.span(), format!("`{name}` has no key `{}`", key.get_ref()), Some(help))
    }));
    if problems.len() > before {
        return None;
    }
    match T::deserialize(Deserializer::from(Spanned::new(item.span(), table.clone()))) {
        Ok(rule) => Some(rule),
        Err(error) => {
            problems.push(wrong(error.span().unwrap_or_else(|| item.span()), format!("`{name}`: {}", error.message()), None));
            None
        }
    }
}

/// Gives a check's problem the place of its key, or of the whole rule.
fn place<T>(checked: Result<T, ConfigProblem>, item: &Spanned<DeValue<'_>>, problems: &mut Vec<ConfigProblem>) -> Option<T> {
    match checked {
        Ok(rule) => Some(rule),
        Err(problem) => {
            let value = problem.path.first().and_then(|key| item.get_ref().as_table()?.get(key.as_str()));
            problems.push(ConfigProblem { span: Some(value.map_or_else(|| item.span(), Spanned::span)), path: Vec::new(), ..problem });
            None
        }
    }
}

fn wrong(span: Range<usize>, message: String, help: Option<String>) -> ConfigProblem {
    ConfigProblem { path: Vec::new(), span: Some(span), message, help }
}
