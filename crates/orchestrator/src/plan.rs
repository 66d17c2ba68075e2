//! A validated plan: stages in order, each with the stages it takes from, and what the cache knows of them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;

use artifact::stage::AnyStage;
use artifact::{CacheRecord, ConfigProblem, Digest, Hit, Kind, ObjectStore, Settings, StageError, StageType, config};

use crate::document::Will;
use crate::pipeline::needs::Needs;
use crate::pipeline::{Declared, Named, Pipeline};
use crate::problem::Problems;
use crate::rules::Rules;

/// A pipeline whose stages fit together, in an order in which they can run.
pub struct Plan {
    /// The pipeline's name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its schedule.
    pub schedule: Option<String>,
    /// Its file.
    pub file: PathBuf,
    /// The folder relative paths are taken from.
    pub base: PathBuf,
    /// What is done at the end of its runs.
    pub rules: Rules,
    /// How many stages of a type may run at the same time.
    pub limits: BTreeMap<String, usize>,
    /// Every stage after those it takes from; otherwise in the order of the file.
    pub stages: Vec<Planned>,
}

/// One stage of a plan.
pub struct Planned {
    /// Its name.
    pub name: String,
    /// Its typed config.
    pub stage: Box<dyn AnyStage>,
    /// What it asks of the orchestrator.
    pub needs: Needs,
    /// Input key to the stages it names, as places in [`Plan::stages`].
    pub inputs: BTreeMap<String, Vec<usize>>,
}

impl Planned {
    /// Places of all stages that this one takes from.
    pub fn upstream(&self) -> impl Iterator<Item = usize> + '_ {
        self.inputs.values().flatten().copied()
    }
}

/// What would become of a stage.
pub enum Forecast {
    /// Nothing has changed: this is its record.
    Cached(Box<CacheRecord>),
    /// It would run: its config, code version or data is new.
    Run,
    /// Whether it runs shows when the stages before it have run.
    AfterUpstream,
}

impl Forecast {
    /// The artifact, when it is there.
    pub fn artifact(&self) -> Option<Digest> {
        if let Self::Cached(record) = self { Some(record.artifact) } else { None }
    }

    /// For scripts.
    pub fn will(&self) -> Will {
        match self {
            Self::Cached(_) => Will::Cached,
            Self::Run => Will::Run,
            Self::AfterUpstream => Will::AfterUpstream,
        }
    }
}

impl Plan {
    /// Puts a pipeline in order.
    ///
    /// # Errors
    /// Everything that is wrong: what the pipeline says already, inputs that name no stage or a stage of the wrong kind,
    /// and cycles.
    pub fn new(mut pipeline: Pipeline, types: &[StageType]) -> Result<Self, Problems> {
        let base = pipeline.base();
        let mut problems = std::mem::take(&mut pipeline.problems);
        let inputs = resolve(&pipeline.stages, types, &mut problems);
        let order = order(&pipeline.stages, &inputs, &mut problems);
        if !problems.is_empty() {
            return Err(Problems::new(&pipeline.sources, problems));
        }
        let place: BTreeMap<usize, usize> = order.iter().enumerate().map(|(place, index)| (*index, place)).collect();
        let mut declared: Vec<Option<_>> = pipeline.stages.into_iter().zip(inputs).map(Some).collect();
        let stages = order.iter().filter_map(|index| declared[*index].take()).filter_map(|(declared, inputs)| {
            let inputs = inputs.into_iter().map(|(key, all)| (key, all.iter().map(|index| place[index]).collect())).collect();
            Some(Planned { name: declared.name, needs: declared.needs, stage: declared.stage?, inputs })
        });
        let stages = stages.collect();
        Ok(Self {
            name: pipeline.name,
            description: pipeline.description,
            schedule: pipeline.schedule,
            file: pipeline.file,
            base,
            rules: pipeline.rules,
            limits: pipeline.limits,
            stages,
        })
    }

    /// The places of the stage of this name, or of all variants of it.
    ///
    /// # Errors
    /// When there is none, with what was perhaps meant.
    pub fn places(&self, name: &str) -> Result<Vec<usize>, StageError> {
        let is_meant = |stage: &Planned| stage.name == name || stage.name.split('@').next() == Some(name);
        let found: Vec<usize> = (0..self.stages.len()).filter(|index| is_meant(&self.stages[*index])).collect();
        if found.is_empty() {
            let known = self.stages.iter().map(|stage| stage.name.as_str());
            return Err(StageError::new(format!("`{name}` is no stage of {}", self.file.display())).help(config::suggest(name, known)));
        }
        Ok(found)
    }

    /// Digests of what stages read from outside the store, in the order of the plan.
    ///
    /// # Errors
    /// What is missing or unreadable, with the stage's name.
    pub fn outside(&self, settings: &Settings) -> Result<Vec<Option<Digest>>, StageError> {
        self.outside_of(settings, &vec![true; self.stages.len()])
    }

    /// Looks whether secrets are there, for these stages.
    ///
    /// # Errors
    /// What is not, with the stage's name.
    pub fn ready(&self, needed: &[bool]) -> Result<(), StageError> {
        let mut needed = self.stages.iter().zip(needed).filter(|(_, needed)| **needed);
        needed.try_for_each(|(stage, _)| stage.stage.ready().map_err(|error| of_stage(&stage.name, error)))
    }

    /// As [`Self::outside`], for these stages alone.
    ///
    /// # Errors
    /// As there.
    pub fn outside_of(&self, settings: &Settings, needed: &[bool]) -> Result<Vec<Option<Digest>>, StageError> {
        self.stages
            .iter()
            .zip(needed)
            .map(|(stage, needed)| {
                if !needed {
                    return Ok(None);
                }
                stage.stage.outside(settings).map_err(|error| of_stage(&stage.name, error))
            })
            .collect()
    }

    /// The cache key of a stage whose inputs are these artifacts; none while one of them is not there.
    ///
    /// # Errors
    /// When its config has no JSON form.
    pub fn key(&self, index: usize, artifacts: &[Option<Digest>], outside: Option<Digest>) -> Result<Option<Digest>, StageError> {
        let stage = &self.stages[index];
        let mut inputs = BTreeMap::new();
        for (key, all) in &stage.inputs {
            let Some(digests) = all.iter().map(|index| artifacts[*index]).collect::<Option<Vec<_>>>() else { return Ok(None) };
            inputs.insert(key.clone(), digests);
        }
        let key = stage.stage.cache_key(&inputs, outside);
        key.map(Some).map_err(|error| StageError::new(format!("the config of `{}` cannot be written as JSON", stage.name)).because(&error))
    }

    /// What would become of each stage now.
    ///
    /// # Errors
    /// As [`Self::key`].
    pub fn forecast(&self, store: &ObjectStore, outside: &[Option<Digest>]) -> Result<Vec<Forecast>, StageError> {
        let mut artifacts: Vec<Option<Digest>> = vec![None; self.stages.len()];
        let mut forecasts = Vec::new();
        for index in 0..self.stages.len() {
            forecasts.push(match self.key(index, &artifacts, outside[index])? {
                None => Forecast::AfterUpstream,
                Some(key) => match store.lookup(&key) {
                    None => Forecast::Run,
                    Some(Hit { record, .. }) => {
                        artifacts[index] = Some(record.artifact);
                        Forecast::Cached(Box::new(record))
                    }
                },
            });
        }
        Ok(forecasts)
    }
}

/// Which stages each takes from, by input key, as places in the pipeline's list.
type Inputs = Vec<BTreeMap<String, Vec<usize>>>;

fn resolve(stages: &[Declared], types: &[StageType], problems: &mut Vec<ConfigProblem>) -> Inputs {
    let places: HashMap<&str, usize> = stages.iter().enumerate().map(|(index, stage)| (stage.name.as_str(), index)).collect();
    let mut find = |taker: &Declared, named: &Named| {
        let found = named.stages.iter().filter_map(|(name, span)| {
            let from = places.get(name.as_str()).copied();
            let problem = match from {
                None => Some(not_there(stages, taker, named, name)),
                Some(from) => wrong_kind(stages, taker, named, &stages[from], types),
            };
            problems.extend(problem.map(|problem| ConfigProblem { span: Some(span.clone()), ..problem }));
            from
        });
        (named.key.clone(), found.collect())
    };
    stages.iter().map(|taker| taker.inputs.iter().map(|named| find(taker, named)).collect()).collect()
}

fn not_there(stages: &[Declared], taker: &Declared, named: &Named, name: &str) -> ConfigProblem {
    let others = stages.iter().filter(|stage| stage.name != taker.name).map(|stage| stage.name.as_str());
    ConfigProblem::at("", format!("`{}` of `{}` names the stage `{name}`, which is not there", named.key, taker.name))
        .help(config::suggest(name, others))
}

/// Said only when both sides are known: a stage whose type or config is wrong has been reported already.
fn wrong_kind(stages: &[Declared], taker: &Declared, named: &Named, from: &Declared, types: &[StageType]) -> Option<ConfigProblem> {
    let (gives, accepts) = (from.gives?, named.accepts?);
    if accepts.contains(&gives) {
        return None;
    }
    let needed = accepts.iter().map(Kind::to_string).collect::<Vec<_>>().join(" or ");
    let fits = |kind: Option<Kind>| kind.is_some_and(|kind| accepts.contains(&kind));
    let ready: Vec<String> = stages.iter().filter(|stage| fits(stage.gives)).map(|stage| format!("`{}`", stage.name)).collect();
    let makers: Vec<String> = types.iter().filter(|kind| fits(Some(kind.gives))).map(|kind| format!("`{}`", kind.uses)).collect();
    let help = match (ready.as_slice(), makers.as_slice()) {
        ([], []) => format!("no stage type gives {needed}"),
        ([], makers) => format!("put a stage that gives {needed} between: {}", makers.join(" or ")),
        (ready, _) => format!("take it from {}, which gives {needed}", ready.join(" or ")),
    };
    let message = format!("`{}` of `{}` takes {needed}, and `{}` gives {gives}", named.key, taker.name, from.name);
    Some(ConfigProblem::at("", message).help(help))
}

/// A topological order that keeps the file's order where it can. A cycle is named along its path, and then cut, so that
/// the next one is found too.
fn order(stages: &[Declared], inputs: &Inputs, problems: &mut Vec<ConfigProblem>) -> Vec<usize> {
    let mut done = vec![false; stages.len()];
    let mut order = Vec::new();
    while order.len() < stages.len() {
        let before = order.len();
        for index in 0..stages.len() {
            if !done[index] && inputs[index].values().flatten().all(|from| done[*from]) {
                done[index] = true;
                order.push(index);
            }
        }
        if order.len() == before {
            let cycle = cycle(inputs, &done);
            problems.push(cyclic(stages, &cycle));
            done[cycle[0]] = true;
            order.push(cycle[0]);
        }
    }
    order
}

/// Every stage that is left waits for one that is left: following them must come round. Each takes from the next, and
/// the last from the first.
fn cycle(inputs: &Inputs, done: &[bool]) -> Vec<usize> {
    let mut path = vec![done.iter().position(|done| !done).unwrap_or_default()];
    loop {
        let last = path[path.len() - 1];
        let next = inputs[last].values().flatten().copied().find(|from| !done[*from]).unwrap_or(last);
        if let Some(start) = path.iter().position(|index| *index == next) {
            return path.split_off(start);
        }
        path.push(next);
    }
}

fn cyclic(stages: &[Declared], cycle: &[usize]) -> ConfigProblem {
    let names: Vec<&str> = cycle.iter().chain(cycle.first()).rev().map(|index| stages[*index].name.as_str()).collect();
    let (taker, from) = (&stages[cycle[0]], &stages[cycle[1 % cycle.len()]].name);
    let written: Option<Range<usize>> =
        taker.inputs.iter().flat_map(|named| &named.stages).find(|(name, _)| name == from).map(|(_, span)| span.clone());
    let problem = ConfigProblem::at("", format!("the stages form a cycle: {}", names.join(" → ")));
    let problem = problem.help("let one of them take its input from elsewhere");
    ConfigProblem { span: written.or_else(|| Some(taker.span.clone())), ..problem }
}

/// An error that says which stage it is about.
fn of_stage(stage: &str, error: StageError) -> StageError {
    StageError { message: format!("stage `{stage}`: {}", error.message), ..error }
}
