//! Promotion: a tag that moves to a run's artifact when its metrics say so.
//!
//! `promote = { tag = "model:best", if = "test.accuracy >= current" }`

use std::collections::BTreeMap;

use artifact::{ConfigProblem, Digest, Doing, Event, Kind, Level, ObjectStore, Sink, StageError, config};
use serde::Deserialize;

use crate::rules::Known;
use crate::rules::condition::Condition;
use crate::tag::{self, Tag};

/// The keys of a promotion.
pub const KEYS: [&str; 3] = ["tag", "stage", "if"];

/// One rule.
#[derive(Debug, Clone, Deserialize)]
pub struct Promotion {
    /// The tag.
    pub tag: String,
    /// The stage whose artifact it names.
    #[serde(default)]
    pub stage: String,
    /// When; always, if it is not said.
    #[serde(default, rename = "if")]
    pub condition: Option<Condition>,
}

impl Promotion {
    /// Checks the tag, and finds the stage where none is named: the tag's word before `:`, or the only model.
    pub fn settle(self, stages: &[Known<'_>]) -> Result<Self, ConfigProblem> {
        if let Err(why) = tag::check_name(&self.tag) {
            return Err(ConfigProblem::at("tag", format!("`{}` cannot name a tag: {why}", self.tag.escape_debug())));
        }
        let names = || stages.iter().map(|(name, _)| *name);
        if !self.stage.is_empty() {
            return match names().any(|name| name == self.stage) {
                true => Ok(self),
                false => {
                    let problem = ConfigProblem::at("stage", format!("`promote` names the stage `{}`, which is not there", self.stage));
                    Err(problem.help(config::suggest(&self.stage, names())))
                }
            };
        }
        let prefix = self.tag.split(':').next().unwrap_or_default();
        let by_prefix = names().find(|name| *name == prefix);
        let models: Vec<&str> = stages.iter().filter(|(_, gives)| *gives == Some(Kind::Model)).map(|(name, _)| *name).collect();
        match by_prefix.or(if let [one] = models.as_slice() { Some(*one) } else { None }) {
            Some(stage) => Ok(Self { stage: stage.to_owned(), ..self }),
            None => {
                let problem = ConfigProblem::at("tag", format!("`{}` does not say which stage's artifact it names", self.tag));
                Err(problem.help("add `stage = \"…\"`, or begin the tag with a stage's name: `model:best`"))
            }
        }
    }

    /// Looks whether the tag moves, moves it, and tells.
    fn apply(&self, store: &ObjectStore, run: &str, artifact: Digest, metrics: &BTreeMap<String, f64>) -> Result<Event, StageError> {
        // Two runs that end at once: the second compares with what the first has set.
        let _only = store.lock(&format!("tag-{}", self.tag), &|| false).doing(|| format!("locking the tag {}", self.tag))?;
        let before = tag::read(store, &self.tag)?;
        let told = |promoted, reason| Event::Promotion {
            tag: self.tag.clone(),
            stage: self.stage.clone(),
            artifact,
            promoted,
            before: before.as_ref().map(|tag| tag.artifact),
            reason,
        };
        if before.as_ref().is_some_and(|tag| tag.artifact == artifact) {
            return Ok(told(false, "the tag names it already".into()));
        }
        let judged = self.condition.as_ref().map(|condition| condition.judge(metrics, before.as_ref().map(|tag| &tag.metrics)));
        if let Some(judged) = judged.as_ref().filter(|judged| !judged.holds) {
            return Ok(told(false, judged.reason.clone()));
        }
        let set = jiff::Timestamp::now().to_string();
        tag::write(store, &self.tag, &Tag { artifact, run: Some(run.to_owned()), set, metrics: metrics.clone() })?;
        Ok(told(true, judged.map_or_else(|| "no condition".into(), |judged| judged.reason)))
    }
}

/// Applies every rule at the end of a run that came to its end. `artifact` says what a stage gave.
pub fn apply(
    rules: &[Promotion],
    store: &ObjectStore,
    run: &str,
    artifact: &dyn Fn(&str) -> Option<Digest>,
    metrics: &BTreeMap<String, f64>,
    sink: &dyn Sink,
) {
    for rule in rules {
        let Some(artifact) = artifact(&rule.stage) else { continue };
        sink.emit(rule.apply(store, run, artifact, metrics).unwrap_or_else(|error| Event::Log {
            stage: rule.stage.clone(),
            level: Level::Warning,
            message: format!("`{}` was not promoted: {error}", rule.tag),
        }));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn promotion(tag: &str, stage: &str) -> Promotion {
        Promotion { tag: tag.into(), stage: stage.into(), condition: None }
    }

    #[test]
    fn the_stage_is_the_one_named_the_tags_own_or_the_only_model() {
        let stages = [("clean", Some(Kind::Processed)), ("net", Some(Kind::Model))];
        let settled = |tag, stage| promotion(tag, stage).settle(&stages).map(|promotion| promotion.stage);
        assert_eq!(settled("best", "clean"), Ok("clean".into()));
        assert_eq!(settled("clean:best", ""), Ok("clean".into()));
        assert_eq!(settled("model:best", ""), Ok("net".into()));
        assert!(settled("best", "nte").unwrap_err().help.unwrap().contains("did you mean `net`?"));
        let two = [("a", Some(Kind::Model)), ("b", Some(Kind::Model))];
        assert!(promotion("best", "").settle(&two).is_err());
    }

    #[test]
    fn a_tag_moves_to_what_is_better_and_stays_with_what_is_not_beaten() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let condition = Some(Condition::try_from("test.accuracy > current".to_owned()).unwrap());
        let rule = Promotion { condition, ..promotion("model:best", "model") };
        let promoted = |name: &str, accuracy: f64| {
            let metrics = BTreeMap::from([("test.accuracy".to_owned(), accuracy)]);
            match rule.apply(&store, "run", Digest::of(name.as_bytes()), &metrics).unwrap() {
                Event::Promotion { promoted, before, .. } => (promoted, before.is_some()),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(promoted("first", 0.9), (true, false));
        assert_eq!(promoted("worse", 0.8), (false, true));
        assert_eq!(promoted("better", 0.95), (true, true));
        assert_eq!(promoted("better", 0.95), (false, true), "it is named so already");
        assert_eq!(tag::read(&store, "model:best").unwrap().unwrap().artifact, Digest::of(b"better"));
    }
}
