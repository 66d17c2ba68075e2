//! What a stage's artifact is made from, and how two of those differ: the one place that says why something is not the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use artifact::{Digest, Doing, StageError};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::plan::Plan;
use crate::record::{RunRecord, StageRecord};

/// All that a stage's cache key covers.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// The stage type.
    pub uses: String,
    /// Its code version.
    pub version: u32,
    /// Its config, without the keys that name stages.
    pub config: Value,
    /// Those keys: the stages they name, and the artifact of each; none where it is not there.
    pub inputs: BTreeMap<String, Vec<(String, Option<Digest>)>>,
    /// What it reads from outside the store.
    pub outside: Option<Digest>,
}

impl Made {
    /// As a run recorded it.
    pub fn recorded(run: &RunRecord, stage: &StageRecord) -> Self {
        let mut config = stage.config.clone();
        if let Some(keys) = config.as_object_mut() {
            // A key within a table, such as `inputs.raw`, stands for the whole table.
            stage.inputs.keys().filter_map(|key| key.split('.').next()).for_each(|key| drop(keys.remove(key)));
        }
        let from = |name: &String| (name.clone(), run.artifact(name));
        let inputs = stage.inputs.iter().map(|(key, names)| (key.clone(), names.iter().map(from).collect())).collect();
        Self { uses: stage.uses.clone(), version: stage.version, config, inputs, outside: stage.outside }
    }

    /// As it stands now; `artifacts` are those that the plan's stages have.
    ///
    /// # Errors
    /// When the config has no JSON form.
    pub fn now(plan: &Plan, index: usize, artifacts: &[Option<Digest>], outside: Option<Digest>) -> Result<Self, StageError> {
        let planned = &plan.stages[index];
        let from = |from: &usize| (plan.stages[*from].name.clone(), artifacts[*from]);
        Ok(Self {
            uses: planned.stage.uses().to_owned(),
            version: planned.stage.version(),
            config: planned.stage.canonical_config().doing(|| format!("writing the config of `{}`", planned.name))?,
            inputs: planned.inputs.iter().map(|(key, all)| (key.clone(), all.iter().map(from).collect())).collect(),
            outside,
        })
    }

    /// How this differs from what it was before.
    pub fn since(&self, before: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut add = |kind, key: &str, before: Value, now: Value| {
            if before != now {
                found.push(Difference { kind, key: key.to_owned(), before, now });
            }
        };
        add(Kind::Type, "uses", before.uses.clone().into(), self.uses.clone().into());
        if before.uses == self.uses {
            add(Kind::Code, "version", before.version.into(), self.version.into());
        }
        let (old, new) = (flat(&before.config), flat(&self.config));
        for key in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
            let value = |flat: &BTreeMap<String, Value>| flat.get(key).cloned().unwrap_or_default();
            add(Kind::Config, key, value(&old), value(&new));
        }
        for key in before.inputs.keys().chain(self.inputs.keys()).collect::<BTreeSet<_>>() {
            let (old, new) = (before.inputs.get(key), self.inputs.get(key));
            let longest = old.map_or(0, Vec::len).max(new.map_or(0, Vec::len));
            for index in 0..longest {
                let digest = |all: Option<&Vec<(String, Option<Digest>)>>| all.and_then(|all| all.get(index)?.1);
                let name = new.or(old).and_then(|all| all.get(index)).map_or(key.as_str(), |(name, _)| name.as_str());
                let key = if name == key { key.clone() } else { format!("{key}` from `{name}") };
                add(Kind::Input, &key, digest_value(digest(old)), digest_value(digest(new)));
            }
        }
        add(Kind::Outside, "outside", digest_value(before.outside), digest_value(self.outside));
        found
    }
}

fn digest_value(digest: Option<Digest>) -> Value {
    digest.map(|digest| digest.to_string()).into()
}

/// What kind of thing differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "DifferenceKind")]
pub enum Kind {
    /// The stage type.
    Type,
    /// The code version of the stage type.
    Code,
    /// A key of the config.
    Config,
    /// An input artifact.
    Input,
    /// Data outside the store.
    Outside,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Difference {
    /// What kind of thing.
    pub kind: Kind,
    /// Which one: `epochs`, `split.validation`, `layers[2]`.
    pub key: String,
    /// What it was; null when it was not there.
    pub before: Value,
    /// What it is; null when it is not there.
    pub now: Value,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, (before, now)) = (&self.key, side_by_side(&self.before, &self.now));
        match self.kind {
            Kind::Type => write!(f, "it was {before}, is {now}"),
            Kind::Code => write!(f, "its code was version {before}, is {now}"),
            Kind::Config => write!(f, "`{key}` was {before}, is {now}"),
            Kind::Input => write!(f, "its `{key}` has changed: was {before}, is {now}"),
            Kind::Outside => write!(f, "what it reads from outside the store has changed: was {before}, is {now}"),
        }
    }
}

/// How many characters of a value are shown.
const LONGEST: usize = 40;

/// A value on a line; a digest by its beginning.
pub fn short(value: &Value) -> String {
    part(&whole(value), 0)
}

/// Two values that differ, each on a line, and of long ones the part where they do.
pub fn side_by_side(a: &Value, b: &Value) -> (String, String) {
    let (a, b) = (whole(a), whole(b));
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let length = a.chars().count().max(b.chars().count());
    let from = same.saturating_sub(LONGEST / 4).min(length.saturating_sub(LONGEST));
    (part(&a, from), part(&b, from))
}

fn whole(value: &Value) -> String {
    match value {
        Value::Null => "not there".to_owned(),
        Value::String(text) if text.parse::<Digest>().is_ok() => text[..12].to_owned(),
        value => value.to_string(),
    }
}

fn part(text: &str, from: usize) -> String {
    let shown: String = text.chars().skip(from).take(LONGEST).collect();
    let (before, after) = (if from > 0 { "…" } else { "" }, if from + LONGEST < text.chars().count() { "…" } else { "" });
    format!("{before}{shown}{after}")
}

/// Every leaf of a config by its path.
pub fn flat(config: &Value) -> BTreeMap<String, Value> {
    fn walk(path: String, value: &Value, leaves: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(keys) if !keys.is_empty() => {
                for (key, value) in keys {
                    walk(if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, value, leaves);
                }
            }
            Value::Array(items) if !items.is_empty() => {
                items.iter().enumerate().for_each(|(index, value)| walk(format!("{path}[{index}]"), value, leaves));
            }
            // A key that says nothing is as good as one that is not there.
            Value::Null => {}
            leaf => drop(leaves.insert(path, leaf.clone())),
        }
    }
    let mut leaves = BTreeMap::new();
    walk(String::new(), config, &mut leaves);
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn made() -> Made {
        let inputs = BTreeMap::from([("input".to_owned(), vec![("clean".to_owned(), Some(Digest::of(b"a")))])]);
        let config = json!({ "epochs": 3, "rate": 0.1, "layers": ["conv 8", "dense 10"], "split": { "test": 0.1 } });
        Made { uses: "learn.x".into(), version: 1, config, inputs, outside: None }
    }

    fn told(change: impl FnOnce(&mut Made)) -> Vec<String> {
        let mut now = made();
        change(&mut now);
        now.since(&made()).iter().map(Difference::to_string).collect()
    }

    #[test]
    fn exactly_what_differs_is_named() {
        assert_eq!(told(|_| {}), Vec::<String>::new());
        assert_eq!(told(|now| now.config["epochs"] = 5.into()), ["`epochs` was 3, is 5"]);
        assert_eq!(told(|now| now.config["new"] = true.into()), ["`new` was not there, is true"]);
        assert_eq!(told(|now| now.config["layers"][1] = "dense 12".into()), ["`layers[1]` was \"dense 10\", is \"dense 12\""]);
        assert_eq!(told(|now| now.config["split"] = json!({})), ["`split` was not there, is {}", "`split.test` was 0.1, is not there"]);
        assert_eq!(told(|now| now.version = 2), ["its code was version 1, is 2"]);
        assert_eq!(told(|now| now.uses = "learn.y".into()), ["it was \"learn.x\", is \"learn.y\""]);
        let (a, b) = (Digest::of(b"a").short(), Digest::of(b"b").short());
        let other = told(|now| now.inputs = BTreeMap::from([("input".to_owned(), vec![("clean".to_owned(), Some(Digest::of(b"b")))])]));
        assert_eq!(other, [format!("its `input` from `clean` has changed: was {a}, is {b}")]);
        let outside = told(|now| now.outside = Some(Digest::of(b"b")));
        assert_eq!(outside, [format!("what it reads from outside the store has changed: was not there, is {b}")]);
    }

    #[test]
    fn of_long_values_the_part_where_they_differ_is_shown() {
        let long = |end: &str| Value::from(format!("{}{end}{}", "x".repeat(100), "y".repeat(100)));
        let (a, b) = side_by_side(&long("one"), &long("two"));
        assert_eq!(a, format!("…{}one{}…", "x".repeat(10), "y".repeat(27)));
        assert_eq!(b, format!("…{}two{}…", "x".repeat(10), "y".repeat(27)));
        assert_eq!(side_by_side(&Value::Null, &"z".into()), ("not there".to_owned(), "\"z\"".to_owned()));
    }

    #[test]
    fn a_renamed_input_with_the_same_content_is_no_difference() {
        assert_eq!(told(|now| now.inputs.values_mut().for_each(|all| all[0].0 = "tidy".into())), Vec::<String>::new());
    }
}
