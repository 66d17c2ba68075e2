//! What a stage says to the orchestrator alone: how much it takes, how often it is tried, how long it may take. None of it
//! is part of its cache key.

use std::time::Duration;

use artifact::ConfigProblem;
use serde_json::{Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The keys of a stage that are the orchestrator's.
pub const KEYS: [&str; 6] = ["cores", "memory", "mutex", "at_once", "retry", "timeout"];

/// What a stage asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Needs {
    /// Processors that it keeps busy; one unless it says so.
    pub cores: Option<usize>,
    /// Bytes of memory that it may take.
    pub memory: Option<u64>,
    /// What no two stages on a store may use at the same time.
    pub mutex: Vec<String>,
    /// How many variants of it may run at the same time.
    pub at_once: Option<usize>,
    /// How often it is tried again after a failure.
    pub retries: u32,
    /// How long to wait before the first of these; each later one waits twice as long.
    pub wait: Duration,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

impl Needs {
    /// Takes the orchestrator's keys out of a stage's table.
    pub fn take(table: &mut DeTable<'_>, problems: &mut Vec<ConfigProblem>) -> Self {
        let mut needs = Self { wait: Duration::from_secs(1), ..Self::default() };
        for key in KEYS {
            let Some(value) = table.remove(key) else { continue };
            if let Err(help) = needs.set(key, value.get_ref()) {
                let problem = ConfigProblem::at("", format!("`{key}` cannot be this")).help(help);
                problems.push(ConfigProblem { span: Some(value.span()), ..problem });
            }
        }
        needs
    }

    /// # Errors
    /// What the key may be.
    fn set(&mut self, key: &str, value: &DeValue<'_>) -> Result<(), &'static str> {
        match key {
            "cores" => self.cores = Some(count(value).ok_or("a whole number, one or more: cores = 2")?),
            "at_once" => self.at_once = Some(count(value).ok_or("a whole number, one or more: at_once = 2")?),
            "memory" => self.memory = Some(value.as_str().and_then(bytes).ok_or("a number and a unit: memory = \"2 GB\"")?),
            "timeout" => self.timeout = Some(value.as_str().and_then(duration).ok_or(TIME)?),
            "mutex" => self.mutex = names(value).ok_or("a name or a list of names: mutex = [\"gpu0\"]")?,
            _ => self.retry(value)?,
        }
        Ok(())
    }

    fn retry(&mut self, value: &DeValue<'_>) -> Result<(), &'static str> {
        const HELP: &str = "how often, or also how long to wait before: retry = 2, or retry = { times = 2, wait = \"10s\" }";
        let times = match value {
            DeValue::Table(entries) => {
                if entries.keys().any(|key| !["times", "wait"].contains(&&**key.get_ref())) {
                    return Err(HELP);
                }
                if let Some(wait) = entries.get("wait") {
                    self.wait = wait.get_ref().as_str().and_then(duration).ok_or(TIME)?;
                }
                entries.get("times").map(Spanned::get_ref)
            }
            value => Some(value),
        };
        self.retries = times.and_then(count).and_then(|times| u32::try_from(times).ok()).ok_or(HELP)?;
        Ok(())
    }
}

const TIME: &str = "a number and a unit, s, min, h or d: \"90s\", \"2h\", \"1h 30min\"";

/// A whole number, one or more.
pub fn count(value: &DeValue<'_>) -> Option<usize> {
    let number = value.as_integer()?;
    usize::from_str_radix(number.as_str(), number.radix()).ok().filter(|number| *number > 0)
}

fn names(value: &DeValue<'_>) -> Option<Vec<String>> {
    let fits = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    let name = |value: &DeValue<'_>| value.as_str().filter(|name| fits(name)).map(str::to_owned);
    match value {
        DeValue::Array(items) => items.iter().map(|item| name(item.get_ref())).collect(),
        one => Some(vec![name(one)?]),
    }
}

/// `2 GB`, `512MiB`, `1.5 GB`: a number of bytes.
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = split(text.trim());
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    (number > 0.0).then_some((number * factor as f64) as u64)
}

/// `90s`, `2h`, `1h 30min`: a time.
pub fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut seconds) = (text.trim(), 0.0);
    while !rest.is_empty() {
        let (number, after) = split(rest);
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let factor = match &after[..end] {
            "ms" => 0.001,
            "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * factor;
        rest = after[end..].trim_start();
    }
    (seconds > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

/// A number, and what follows it.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// These keys in the JSON Schema of each stage.
pub fn schema() -> Vec<(&'static str, Value)> {
    let time = json!({ "type": "string", "pattern": "^\\s*([0-9.]+\\s*(ms|s|sec|m|min|h|d)\\s*)+$" });
    let described = |mut schema: Value, text: &str| {
        schema["description"] = text.into();
        schema
    };
    let count = || json!({ "type": "integer", "minimum": 1 });
    let axes = json!({ "type": "object", "additionalProperties": { "type": "array", "minItems": 1 } });
    vec![
        ("matrix", described(axes, "Runs the stage in variants, one for each combination of these values.")),
        ("cores", described(count(), "Processors that it keeps busy; one if absent.")),
        (
            "memory",
            described(
                json!({ "type": "string", "pattern": "^\\s*[0-9.]+\\s*([kKmMgGtT][iI]?)?[bB]\\s*$" }),
                "Memory that it may take, such as 2 GB; it is ended when it takes more.",
            ),
        ),
        (
            "mutex",
            described(
                json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] }),
                "Names of things that no two stages on a store use at the same time.",
            ),
        ),
        ("at_once", described(count(), "How many of its variants may run at the same time.")),
        (
            "retry",
            described(
                json!({ "anyOf": [count(), {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["times"],
                    "properties": { "times": count(), "wait": time.clone() },
                }] }),
                "How often it is tried again after a failure; `wait` before the first, twice as long before each later one.",
            ),
        ),
        ("timeout", described(time, "How long it may take, such as 2h.")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_people_write_them() {
        assert_eq!(["2 GB", "512MiB", "1.5kb", "3"].map(bytes), [Some(2_000_000_000), Some(512 << 20), Some(1_500), None]);
        let seconds = |text| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(
            ["90s", "1h 30min", "2h", "0.5s", "5", "0s", "x"].map(seconds),
            [Some(90.0), Some(5_400.0), Some(7_200.0), Some(0.5), None, None, None]
        );
    }

    #[test]
    fn no_stage_type_has_a_key_of_the_orchestrators() {
        for kind in crate::every_stage_type() {
            let schema = (kind.schema)().to_value();
            for key in KEYS.into_iter().chain(["matrix", "uses"]) {
                assert!(schema["properties"].get(key).is_none(), "`{}` has a key `{key}` of its own", kind.uses);
            }
        }
    }
}
