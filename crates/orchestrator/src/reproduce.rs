//! `episteme reproduce RUN`: the recorded plan again, the cache ignored, and the digests compared.

use std::collections::BTreeMap;

use artifact::worker::{DONE, FAILED};
use artifact::{Digest, Doing, Manifest, ObjectStore, Settings, StageError, StageType};
use schemars::JsonSchema;
use serde::Serialize;

use crate::cli::{Global, RunArgs};
use crate::document::Document;
use crate::pipeline::needs::Needs;
use crate::plan::{Plan, Planned};
use crate::record::{PlanRecord, RunRecord};
use crate::rules::Rules;
use crate::{Failure, made, resolve, verbs};

/// Runs a recorded run again and compares what every stage gives.
///
/// # Errors
/// When there is no such run, its plan was not recorded, or a stage type of it is not there any more.
pub fn reproduce(global: &Global, what: &str) -> Result<u8, Failure> {
    let store = verbs::store_that_is_there(global)?;
    let missing = || StageError::new(format!("there is no run `{what}` on {}", store.root().display())).help("`episteme log` lists them");
    let folder = resolve::run(&store, what)?.ok_or_else(|| Failure::Asked(missing()))?;
    let before = RunRecord::read(&store, &folder)?;
    let Some(record) = &before.plan else {
        let error = StageError::new(format!("the plan of {} was not recorded", before.run)).at(folder.display());
        return Err(Failure::Asked(error.help("an older version of episteme ran it: run the pipeline once more, and reproduce that")));
    };
    let plan = again(record, &global.types).map_err(Failure::Asked)?;
    let warnings = changed_since(&plan, record, &verbs::settings(global, &plan))?;
    if !global.json {
        warnings.iter().for_each(|warning| anstream::eprintln!("note: {warning}"));
    }
    let executed = verbs::execute(global, &plan, &RunArgs::everything())?;
    let Some(run) = executed.run.filter(|_| executed.code == DONE) else { return Ok(executed.code) };
    let after = RunRecord::read(&store, &store.run(&run))?;
    let compared = compare(&store, &before, &after);
    let same = compared.iter().all(|stage| stage.same != Some(false));
    match global.json {
        true => println(&Document::Reproduced { ok: same, of: before.run, run, notes: warnings, stages: compared })?,
        false => tell(&before, record, &compared),
    }
    Ok(if same { DONE } else { FAILED })
}

/// One line, the last: what came before it are the run's events.
fn println(document: &Document) -> Result<(), StageError> {
    anstream::println!("{}", serde_json::to_string(document).doing(|| "writing JSON".into())?);
    Ok(())
}

/// The plan of a record, typed again.
fn again(record: &PlanRecord, types: &[StageType]) -> Result<Plan, StageError> {
    let place: BTreeMap<&str, usize> = record.stages.iter().enumerate().map(|(index, stage)| (stage.name.as_str(), index)).collect();
    let stages = record.stages.iter().map(|stage| {
        let kind = types.iter().find(|kind| kind.uses == stage.uses);
        let kind =
            kind.ok_or_else(|| StageError::new(format!("there is no stage type `{}` any more: `{}` used it", stage.uses, stage.name)))?;
        let typed = (kind.from_json)(stage.config.clone()).map_err(|error| {
            let error =
                StageError::new(format!("the recorded config of `{}` does not fit `{}` any more", stage.name, stage.uses)).because(&error);
            error.help(format!("episteme {} made it", record.episteme))
        })?;
        let places = |names: &Vec<String>| names.iter().filter_map(|name| place.get(name.as_str()).copied()).collect();
        let inputs = stage.inputs.iter().map(|(key, names)| (key.clone(), places(names))).collect();
        Ok(Planned { name: stage.name.clone(), needs: Needs::default(), stage: typed, inputs })
    });
    Ok(Plan {
        name: record.pipeline.clone(),
        description: String::new(),
        schedule: None,
        file: record.file.clone(),
        base: record.base.clone(),
        rules: Rules::default(),
        limits: BTreeMap::new(),
        stages: stages.collect::<Result<_, StageError>>()?,
    })
}

/// Code versions and outside data that are not what they were: where the ways may part, known before anything runs.
fn changed_since(plan: &Plan, record: &PlanRecord, settings: &Settings) -> Result<Vec<String>, Failure> {
    let outside = plan.outside(settings).map_err(Failure::Asked)?;
    let mut notes = Vec::new();
    for ((planned, recorded), outside) in plan.stages.iter().zip(&record.stages).zip(outside) {
        if planned.stage.version() != recorded.version {
            let (was, is) = (recorded.version, planned.stage.version());
            notes.push(format!("the code of `{}` ({}) was version {was}, is {is}", recorded.name, recorded.uses));
        }
        if outside != recorded.outside {
            notes.push(format!("what `{}` reads from outside the store has changed", recorded.name));
        }
    }
    Ok(notes)
}

/// One stage, then and now.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Compared {
    /// Its name.
    name: String,
    /// What it gave then.
    before: Option<Digest>,
    /// What it gives now.
    now: Option<Digest>,
    /// None when the recorded run has no artifact of it.
    same: Option<bool>,
    /// Whether its inputs were the same: then it is this stage where the ways part.
    parts_here: bool,
    /// The files that differ, when both artifacts are there.
    files: Vec<String>,
}

fn compare(store: &ObjectStore, before: &RunRecord, after: &RunRecord) -> Vec<Compared> {
    let stages = before.plan.iter().flat_map(|plan| &plan.stages);
    stages
        .map(|stage| {
            let (was, is) = (before.artifact(&stage.name), after.artifact(&stage.name));
            let same = was.map(|was| Some(was) == is);
            let took_the_same = made::Made::recorded(before, stage).inputs == made::Made::recorded(after, stage).inputs;
            let parts_here = same == Some(false) && took_the_same;
            let files = was.zip(is).filter(|_| parts_here).map(|(was, is)| differing_files(store, &was, &is)).unwrap_or_default();
            Compared { name: stage.name.clone(), before: was, now: is, same, parts_here, files }
        })
        .collect()
}

fn differing_files(store: &ObjectStore, was: &Digest, is: &Digest) -> Vec<String> {
    let read = |digest: &Digest| -> Option<BTreeMap<String, Digest>> {
        let manifest = Manifest::read(&store.object(digest)).ok()?;
        Some(manifest.files.into_iter().map(|file| (file.path, file.digest)).collect())
    };
    let Some((was, is)) = read(was).zip(read(is)) else { return Vec::new() };
    let mut names: Vec<&String> = was.keys().chain(is.keys()).filter(|name| was.get(*name) != is.get(*name)).collect();
    names.sort();
    names.dedup();
    names.into_iter().cloned().collect()
}

fn tell(before: &RunRecord, record: &PlanRecord, compared: &[Compared]) {
    let width = compared.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
    let digest = |digest: Option<Digest>| digest.map_or_else(|| "-".to_owned(), |digest| digest.short());
    anstream::println!("\n{} against {}:", before.pipeline, before.run);
    for stage in compared {
        let word = match (stage.same, stage.parts_here) {
            (Some(true), _) => "same bytes",
            (Some(false), true) => "PARTS HERE: same inputs, other bytes",
            (Some(false), false) => "differs: its inputs do",
            (None, _) => "nothing to compare with: it gave nothing then",
        };
        anstream::println!("  {:<width$}  {:<12}  {:<12}  {word}", stage.name, digest(stage.before), digest(stage.now));
        stage.files.iter().for_each(|file| anstream::println!("  {:<width$}  {file} differs", ""));
    }
    if compared.iter().any(|stage| stage.parts_here) {
        anstream::println!(
            "help: it was made on {} by episteme {}; `episteme diff` compares the two artifacts",
            record.machine,
            record.episteme
        );
    }
}
