//! A validated plan: stages in order, each with the stages it takes from, and what the cache knows of them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use artifact::{CacheRecord, ConfigProblem, Digest, ObjectStore, Settings, StageError, config};

use crate::pipeline::{Declared, Pipeline};
use crate::problem::Problems;

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
    /// Every stage after those it takes from; otherwise in the order of the file.
    pub stages: Vec<Planned>,
}

/// One stage of a plan.
pub struct Planned {
    /// The stage.
    pub declared: Declared,
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
    Cached(CacheRecord),
    /// It would run: its config, code version or data is new.
    Run,
    /// Whether it runs shows when the stages before it have run.
    AfterUpstream,
}

impl Plan {
    /// Puts a pipeline in order.
    ///
    /// # Errors
    /// Inputs that name no stage or a stage of the wrong kind, and cycles: all of them.
    pub fn new(pipeline: Pipeline) -> Result<Self, Problems> {
        let (shown, base) = (pipeline.file.display().to_string(), pipeline.base());
        let mut problems = Vec::new();
        let inputs: Vec<BTreeMap<String, Vec<usize>>> =
            (0..pipeline.stages.len()).map(|index| resolve(&pipeline.stages, index, &mut problems)).collect();
        let order = order(&pipeline.stages, &inputs).unwrap_or_else(|cycle| {
            problems.push(cycle);
            Vec::new()
        });
        if !problems.is_empty() {
            return Err(Problems::new(&shown, &pipeline.text, problems));
        }
        let place: BTreeMap<usize, usize> = order.iter().enumerate().map(|(place, index)| (*index, place)).collect();
        let mut declared: Vec<Option<_>> = pipeline.stages.into_iter().zip(inputs).map(Some).collect();
        let stages = order.iter().filter_map(|index| declared[*index].take()).map(|(declared, inputs)| {
            let inputs = inputs.into_iter().map(|(key, all)| (key, all.iter().map(|index| place[index]).collect())).collect();
            Planned { declared, inputs }
        });
        let stages = stages.collect();
        Ok(Self { name: pipeline.name, description: pipeline.description, schedule: pipeline.schedule, file: pipeline.file, base, stages })
    }

    /// Digests of what stages read from outside the store, in the order of the plan.
    ///
    /// # Errors
    /// What is missing or unreadable, with the stage's name.
    pub fn outside(&self, settings: &Settings) -> Result<Vec<Option<Digest>>, StageError> {
        self.stages
            .iter()
            .map(|stage| {
                stage.declared.stage.outside(settings).map_err(|mut error| {
                    error.message = format!("stage `{}`: {}", stage.declared.name, error.message);
                    error
                })
            })
            .collect()
    }

    /// The cache key of a stage whose inputs are these artifacts.
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
        let key = stage.declared.stage.cache_key(&inputs, outside);
        key.map(Some)
            .map_err(|error| StageError::new(format!("the config of `{}` cannot be written as JSON", stage.declared.name)).because(&error))
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
                    Some(record) => {
                        artifacts[index] = Some(record.artifact);
                        Forecast::Cached(record)
                    }
                },
            });
        }
        Ok(forecasts)
    }
}

/// Input keys to places in the pipeline's list.
fn resolve(stages: &[Declared], index: usize, problems: &mut Vec<ConfigProblem>) -> BTreeMap<String, Vec<usize>> {
    let declared = &stages[index];
    let mut inputs = BTreeMap::new();
    for input in declared.stage.inputs() {
        let span = declared.input_spans.iter().find(|(key, _)| key == input.key).map(|(_, span)| span.clone());
        let mut problem = |message: String, help: String| {
            problems.push(ConfigProblem { path: Vec::new(), span: span.clone(), message, help: Some(help) })
        };
        let mut found = Vec::new();
        for name in &input.stages {
            match stages.iter().position(|stage| stage.name == *name) {
                None => {
                    let others = stages.iter().filter(|stage| stage.name != declared.name).map(|stage| stage.name.as_str());
                    problem(
                        format!("`{}` of `{}` names the stage `{name}`, which is not there", input.key, declared.name),
                        config::suggest(name, others),
                    );
                }
                Some(from) => {
                    let gives = stages[from].stage.gives();
                    if !input.accepts.contains(&gives) {
                        let accepts: Vec<String> = input.accepts.iter().map(ToString::to_string).collect();
                        let fitting: Vec<&str> = stages
                            .iter()
                            .filter(|stage| input.accepts.contains(&stage.stage.gives()))
                            .map(|stage| stage.name.as_str())
                            .collect();
                        let help = match fitting.as_slice() {
                            [] => format!("put a stage that gives {} between", accepts.join(" or ")),
                            some => format!("these stages give it: {}", some.join(", ")),
                        };
                        problem(
                            format!("`{}` of `{}` takes {}, and `{name}` gives {gives}", input.key, declared.name, accepts.join(" or ")),
                            help,
                        );
                    }
                    found.push(from);
                }
            }
        }
        inputs.insert(input.key.to_owned(), found);
    }
    inputs
}

/// A topological order that keeps the file's order where it can; or the cycle, named along its path.
fn order(stages: &[Declared], inputs: &[BTreeMap<String, Vec<usize>>]) -> Result<Vec<usize>, ConfigProblem> {
    let mut done = vec![false; stages.len()];
    let mut order = Vec::new();
    loop {
        let ready = |index: usize| inputs[index].values().flatten().all(|from| done[*from]);
        let Some(next) = (0..stages.len()).find(|index| !done[*index] && ready(*index)) else { break };
        done[next] = true;
        order.push(next);
    }
    let Some(stuck) = (0..stages.len()).find(|index| !done[*index]) else { return Ok(order) };
    // Every stage that is left waits for one that is left: following them must come round.
    let mut path = vec![stuck];
    let cycle = loop {
        let last = path[path.len() - 1];
        let next = inputs[last].values().flatten().copied().find(|from| !done[*from]).unwrap_or(last);
        if let Some(start) = path.iter().position(|index| *index == next) {
            break [&path[start..], &[next]].concat();
        }
        path.push(next);
    };
    let names: Vec<&str> = cycle.iter().rev().map(|index| stages[*index].name.as_str()).collect();
    let span = Some(stages[cycle[0]].span.clone());
    let message = format!("the stages form a cycle: {}", names.join(" → "));
    Err(ConfigProblem { path: Vec::new(), span, message, help: Some("let one of them take its input from elsewhere".into()) })
}
