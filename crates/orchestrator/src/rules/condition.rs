//! Conditions on metrics: `test.accuracy >= current`, `test.accuracy < 0.97 and test.log_loss > 0.2`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// Comparisons that must all hold.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Condition {
    text: String,
    parts: Vec<Comparison>,
}

#[derive(Debug, Clone, PartialEq)]
struct Comparison {
    metric: String,
    operator: Operator,
    bound: Bound,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    AtLeast,
    AtMost,
    Above,
    Below,
    Equal,
    Unequal,
}

/// The longer ones first: `>=` begins with `>`.
const OPERATORS: [(&str, Operator); 6] = [
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    ("==", Operator::Equal),
    ("!=", Operator::Unequal),
    (">", Operator::Above),
    ("<", Operator::Below),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    Number(f64),
    /// The same metric, as it stood when the tag was set.
    Current,
}

/// Whether a condition holds, and the numbers that say so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Whether it does.
    pub holds: bool,
    /// `test.accuracy 0.9903 >= current 0.9871`.
    pub reason: String,
}

impl TryFrom<String> for Condition {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let parts = text.split(" and ").map(comparison).collect::<Result<_, _>>()?;
        Ok(Self { text, parts })
    }
}

fn comparison(text: &str) -> Result<Comparison, String> {
    let how = "write `METRIC >= NUMBER` (or <=, >, <, ==, !=; `current` in place of the number in a promotion), several joined by `and`";
    let found =
        OPERATORS.iter().find_map(|(sign, operator)| text.split_once(sign).map(|(metric, bound)| (metric.trim(), *operator, bound.trim())));
    let Some((metric, operator, bound)) = found else { return Err(format!("`{}` compares nothing: {how}", text.trim())) };
    if metric.is_empty() || metric.contains(char::is_whitespace) || metric.parse::<f64>().is_ok() {
        return Err(format!("`{metric}` is no metric's name: {how}"));
    }
    let bound = match bound {
        "current" => Bound::Current,
        number => Bound::Number(
            number.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| format!("`{number}` is no number: {how}"))?,
        ),
    };
    Ok(Comparison { metric: metric.to_owned(), operator, bound })
}

impl Condition {
    /// Whether it compares with what a tag stood for.
    pub fn uses_current(&self) -> bool {
        self.parts.iter().any(|part| part.bound == Bound::Current)
    }

    /// Holds it against a run's metrics. Without anything current, what is compared with it holds; a metric that is not
    /// there holds nothing.
    pub fn judge(&self, metrics: &BTreeMap<String, f64>, current: Option<&BTreeMap<String, f64>>) -> Judged {
        let judged: Vec<Judged> = self.parts.iter().map(|part| part.judge(metrics, current)).collect();
        let broken = judged.iter().find(|judged| !judged.holds).cloned();
        let all = || judged.iter().map(|judged| judged.reason.as_str()).collect::<Vec<_>>().join(" and ");
        broken.unwrap_or_else(|| Judged { holds: true, reason: all() })
    }
}

impl Comparison {
    fn judge(&self, metrics: &BTreeMap<String, f64>, current: Option<&BTreeMap<String, f64>>) -> Judged {
        let name = &self.metric;
        let Some(value) = metrics.get(name) else {
            return Judged { holds: false, reason: format!("the run has no metric {name}") };
        };
        let (bound, word) = match (self.bound, current.and_then(|current| current.get(name))) {
            (Bound::Number(number), _) => (number, ""),
            (Bound::Current, Some(current)) => (*current, "current "),
            (Bound::Current, None) => return Judged { holds: true, reason: format!("{name} {value}, and there is nothing current") },
        };
        let (sign, holds) = self.operator.holds(*value, bound);
        let not = if holds { "" } else { "not " };
        Judged { holds, reason: format!("{name} {value} is {not}{sign} {word}{bound}") }
    }
}

impl Operator {
    fn holds(self, a: f64, b: f64) -> (&'static str, bool) {
        match self {
            Self::AtLeast => (">=", a >= b),
            Self::AtMost => ("<=", a <= b),
            Self::Above => (">", a > b),
            Self::Below => ("<", a < b),
            Self::Equal => ("==", a == b),
            Self::Unequal => ("!=", a != b),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn holds(text: &str, current: Option<f64>) -> bool {
        let metrics = BTreeMap::from([("test.accuracy".to_owned(), 0.98), ("test.log_loss".to_owned(), 0.1)]);
        let current = current.map(|value| BTreeMap::from([("test.accuracy".to_owned(), value)]));
        Condition::try_from(text.to_owned()).unwrap().judge(&metrics, current.as_ref()).holds
    }

    #[test]
    fn every_comparison_says_what_its_sign_says() {
        let table = [(">= 0.98", true), ("<= 0.98", true), ("> 0.98", false), ("< 0.98", false), ("== 0.98", true), ("!= 0.98", false)];
        for (comparison, expected) in table {
            assert_eq!(holds(&format!("test.accuracy {comparison}"), None), expected, "{comparison}");
        }
        assert!(holds("test.accuracy>=1e-3 and test.log_loss < 0.2", None));
        assert!(!holds("test.accuracy >= 0.9 and test.log_loss > 0.2", None));
    }

    #[test]
    fn current_is_what_the_tag_stood_for_and_nothing_is_beaten_by_anything() {
        assert!(holds("test.accuracy >= current", Some(0.98)));
        assert!(!holds("test.accuracy > current", Some(0.98)));
        assert!(holds("test.accuracy > current", None));
    }

    #[test]
    fn a_metric_that_is_not_there_holds_nothing() {
        assert!(!holds("test.f1 >= 0", None) && !holds("test.f1 < 1", None));
    }

    #[test]
    fn what_compares_nothing_says_how_to_write_it() {
        for text in ["", "test.accuracy", "test.accuracy >= high", ">= 3", "0.9 <= test.accuracy", "a b > 1", "x > nan", "x > 1 and"] {
            assert!(Condition::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
