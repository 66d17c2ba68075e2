//! What each verb does.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use artifact::event::JsonLines;
use artifact::worker::{DONE, FAILED, INTERRUPTED, stop_flag};
use artifact::{Doing, ObjectStore, Settings, Sink, StageError, durable};
use serde::Serialize;

use crate::begun::{Begun, RunLog};
use crate::budget::Budget;
use crate::busy::Turn;
use crate::cli::{Cli, Global, GraphFormat, RunArgs, SchemaOf, Verb};
use crate::document::{Document, PlannedStage, TypeOfStage};
use crate::folder::absolute_unless_url;
use crate::openlineage::OpenLineage;
use crate::pipeline::{Given, Pipeline};
use crate::plan::{Forecast, Plan};
use crate::render::{self, Summary, Tee};
use crate::resolve::Meant;
use crate::rules::alerts::Alarm;
use crate::rules::secret::Redacting;
use crate::run::{Options, Run};
use crate::{
    Failure, busy, diff, document, gc, graph, log, manual, record, reference, reproduce, resolve, schedule, show, tagging, verify, why,
};

/// Does what was asked; the exit code.
pub fn act(cli: Cli) -> Result<u8, Failure> {
    let global = &cli.global;
    match &cli.verb {
        Verb::Run { file, args } => Ok(execute(global, &load(global, &file.file)?, args)?.code),
        Verb::Plan(file) => plan(global, &file.file),
        Verb::Status(file) => status(global, &file.file),
        Verb::Show { what, pipeline } => show_verb(global, what.as_deref(), pipeline),
        Verb::Graph { file, format } => graph_verb(global, &file.file, *format),
        Verb::Check(file) => {
            let plan = load(global, &file.file)?;
            if global.json {
                return print_document(&Document::Check { file: file.file.clone(), stages: plan.stages.len(), ok: true });
            }
            anstream::println!("{}: {} stages, nothing wrong", file.file.display(), plan.stages.len());
            Ok(DONE)
        }
        Verb::Completions { shell } => Ok(manual::completions(*shell)),
        Verb::Man { verb, to } => manual::man(verb.as_deref(), to.as_deref()),
        Verb::Stages { uses, markdown } => stages(global, uses.as_deref(), *markdown),
        Verb::Schema { of: SchemaOf::Pipeline } => print_json(&reference::schema(&global.types)),
        Verb::Schema { of: SchemaOf::Output } => print_json(&document::schema()),
        Verb::Schedule { verb } => schedule::act::act(global, verb),
        Verb::Gc { keep, older_than, dry_run } => collect_garbage(global, &gc::Policy { keep: *keep, older_than: *older_than }, *dry_run),
        Verb::Diff { a, b, pipeline } => diff::diff(global, a, b, pipeline),
        Verb::Why { stage, file } => why::why(global, &file.file, stage),
        Verb::Reproduce { run } => reproduce::reproduce(global, run),
        Verb::Log { pipeline, number } => log::log(global, pipeline.as_deref(), *number),
        Verb::Tag { name, what, remove, pipeline } => tagging::tag(global, name.as_deref(), what.as_deref(), *remove, pipeline),
        Verb::Verify { dry_run } => verify_verb(global, *dry_run),
    }
}

/// Reads a pipeline file and puts it in order.
pub fn load(global: &Global, file: &Path) -> Result<Plan, Failure> {
    let types = &global.types;
    Ok(Plan::new(Pipeline::load(file, Given { sets: &global.sets, params: &global.params }, types)?, types)?)
}

/// The store, to look at: none is made.
///
/// # Errors
/// When there is none.
pub fn store_that_is_there(global: &Global) -> Result<ObjectStore, Failure> {
    if !global.store.is_dir() {
        let error = StageError::new(format!("there is no store at {}", global.store.display()));
        return Err(Failure::Asked(error.help("`episteme run FILE` makes it; --store DIR or EPISTEME_STORE names another")));
    }
    Ok(ObjectStore::open(&global.store)?)
}

/// What every stage of a run is told.
pub fn settings(global: &Global, plan: &Plan) -> Settings {
    Settings {
        // A mirror's relative folder is taken from where the user is, not from the pipeline's folder.
        mirrors: global.mirrors.iter().filter(|mirror| !mirror.is_empty()).map(|mirror| absolute_unless_url(mirror)).collect(),
        base: plan.base.clone(),
        scratch: None,
        stat_cache: Some(global.store.join("stat")),
        syncs_short: true,
    }
}

/// How a run that was asked for ended.
pub struct Executed {
    /// The exit code.
    pub code: u8,
    /// The run's name; none when it did not begin.
    pub run: Option<String>,
}

/// Runs a plan, if nobody else does; tells what happens as the command line wants it told.
///
/// # Errors
/// When outside data is missing or the store cannot be written; a stage's failure is an exit code.
pub fn execute(global: &Global, plan: &Plan, args: &RunArgs) -> Result<Executed, Failure> {
    let settings = settings(global, plan);
    let selected = args.selection.among(plan).map_err(Failure::Asked)?;
    let budget = Budget::new(global.jobs, args.manner.cores, args.manner.memory);
    budget.check(plan).map_err(Failure::Asked)?;
    plan.ready(&selected.needed).map_err(Failure::Asked)?;
    let outside = plan.outside_of(&settings, &selected.needed).map_err(Failure::Asked)?;
    let store = ObjectStore::open(&global.store)?;
    let alarm = Alarm::new(&plan.rules.alerts, &plan.base).map_err(Failure::Asked)?;
    if selected.is_a_part() {
        selected.check(plan, &plan.forecast(&store, &outside)?).map_err(Failure::Asked)?;
    }
    let stop = stop_flag().doing(|| "installing the signal handlers".into())?;
    let stopped = || stop.load(Ordering::Relaxed);
    let held = match busy::take(&store, &plan.name, args.on_busy, &stopped)? {
        Turn::Ours(held) => held,
        Turn::Leave(code) => return Ok(Executed { code, run: None }),
    };
    let options = Options { budget, selected, keep_going: args.manner.keep_going, settings };
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    match global.json {
        true => sinks.push(Box::new(JsonLines::new(std::io::stdout()))),
        false => sinks.push(render::terminal(global.quiet, plan, &store)),
    }
    if !global.json && !global.quiet {
        sinks.push(Box::new(Summary));
    }
    let begun = Begun::new(&store, &plan.name, &stopped)?;
    held.note(&format!("{}, process {}", begun.name, std::process::id()));
    let log = Arc::new(RunLog::create(&begun.folder)?);
    sinks.push(Box::new(Arc::clone(&log)));
    if let Some(target) = global.openlineage.as_deref().filter(|target| !target.is_empty()) {
        sinks.push(Box::new(OpenLineage::open(target, plan, &store)?));
    }
    record::PlanRecord::of(plan, &outside)?.write(&begun.folder)?;
    let sink = Tee(sinks);
    let sink = Redacting { secrets: alarm.secrets(), inner: sink };
    let run = begun.name.clone();
    let ended = Run::new(begun, plan, &outside, &store, &options, &sink, &stop).finish();
    if let Some(folder) = &args.manner.export {
        copy_out(&ended.outputs, folder)?;
    }
    drop(sink);
    if !ended.interrupted {
        alarm.ring(&store, &run, &stopped)?;
    }
    let logged = log.is_whole();
    // The events of the run are all told: this is for people.
    if ended.interrupted && !global.json {
        anstream::eprintln!("interrupted: what has finished is kept, and the next run goes on from there");
    }
    logged.as_ref().err().map(artifact::cli::report);
    let code = match (ended.interrupted, ended.ok && logged.is_ok()) {
        (true, _) => INTERRUPTED,
        (false, true) => DONE,
        (false, false) => FAILED,
    };
    Ok(Executed { code, run: Some(run) })
}

/// Copies named results to a folder, each under its file's name; what is there already is replaced whole.
fn copy_out(outputs: &std::collections::BTreeMap<String, String>, folder: &Path) -> Result<(), StageError> {
    for (name, path) in outputs.iter().map(|(name, path)| (name, Path::new(path))) {
        // A variant's results have a folder of their own.
        let folder = name.split_once('@').map_or_else(|| folder.to_owned(), |(_, values)| folder.join(values));
        fs::create_dir_all(&folder).doing(|| format!("making {}", folder.display()))?;
        let target = folder.join(path.file_name().unwrap_or_default());
        let copying = || format!("copying {} to {}", path.display(), target.display());
        let temporary = durable::temporary_sibling(&target);
        fs::copy(path, &temporary).and_then(|_| durable::rename(&temporary, &target)).doing(copying)?;
        anstream::eprintln!("copied to {}", target.display());
    }
    Ok(())
}

fn plan(global: &Global, file: &Path) -> Result<u8, Failure> {
    let plan = load(global, file)?;
    let outside = plan.outside(&settings(global, &plan)).map_err(Failure::Asked)?;
    let store = ObjectStore::open(&global.store)?;
    let forecasts = plan.forecast(&store, &outside)?;
    let reason = |index: usize| match forecasts[index] {
        Forecast::Run => why::reason(&plan, index, &forecasts, &outside, &store).map(|reason| Some(reason.line())),
        _ => Ok(None),
    };
    let reasons: Vec<Option<String>> = (0..plan.stages.len()).map(reason).collect::<Result<_, _>>()?;
    if global.json {
        let stages = plan
            .stages
            .iter()
            .zip(&forecasts)
            .zip(&reasons)
            .map(|((stage, forecast), why)| {
                let (name, uses) = (stage.name.clone(), stage.stage.uses().to_owned());
                PlannedStage { name, uses, will: forecast.will(), why: why.clone(), artifact: forecast.artifact() }
            })
            .collect();
        return print_document(&Document::Plan { pipeline: plan.name.clone(), stages });
    }
    let width = plan.stages.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
    for ((stage, forecast), reason) in plan.stages.iter().zip(&forecasts).zip(reasons) {
        let why = match forecast {
            Forecast::Cached(record) => format!("cached   {} (made by {})", record.artifact.short(), record.run),
            Forecast::Run => format!("run      {}", reason.unwrap_or_default()),
            Forecast::AfterUpstream => "run      unless the stages before it give what they gave before".to_owned(),
        };
        anstream::println!("  {:<width$}  {why}", stage.name);
    }
    Ok(DONE)
}

fn status(global: &Global, file: &Path) -> Result<u8, Failure> {
    let plan = load(global, file)?;
    let outside = plan.outside(&settings(global, &plan)).map_err(Failure::Asked)?;
    let store = ObjectStore::open(&global.store)?;
    let forecasts = plan.forecast(&store, &outside)?;
    show::status(&plan, &store, &forecasts, global.json)?;
    Ok(DONE)
}

fn show_verb(global: &Global, what: Option<&str>, pipeline: &Path) -> Result<u8, Failure> {
    let store = store_that_is_there(global)?;
    match what {
        None => show::last_run(&store, global.json)?,
        Some(what) => match resolve::find(global, &store, what, pipeline)? {
            Meant::Run(folder) => show::run(&store, &folder, global.json)?,
            Meant::Artifact(digest) => show::artifact(&store, &digest, global.json)?,
        },
    }
    Ok(DONE)
}

fn verify_verb(global: &Global, dry_run: bool) -> Result<u8, Failure> {
    let store = store_that_is_there(global)?;
    let clock = std::time::Instant::now();
    let bar = if global.json || global.quiet { indicatif::ProgressBar::hidden() } else { render::bytes_bar("verify") };
    let verified = verify::verify(&store, dry_run, &bar)?;
    bar.finish_and_clear();
    let seconds = clock.elapsed().as_secs_f64();
    let ok = verified.findings.is_empty();
    if global.json {
        let verify::Verified { artifacts, bytes, findings } = verified;
        print_document(&Document::Verify { ok, dry_run, seconds, artifacts, bytes, findings })?;
    } else {
        verify::tell(&store, &verified, seconds);
    }
    Ok(if ok { DONE } else { FAILED })
}

fn graph_verb(global: &Global, file: &Path, format: GraphFormat) -> Result<u8, Failure> {
    let plan = load(global, file)?;
    if global.json {
        return print_document(&graph::document(&plan));
    }
    let drawn = match format {
        GraphFormat::Text => graph::text(&plan),
        GraphFormat::Ascii => graph::ascii(&plan),
        GraphFormat::Mermaid => graph::mermaid(&plan),
        GraphFormat::Svg => graph::svg(&plan),
    };
    anstream::print!("{drawn}");
    Ok(DONE)
}

fn stages(global: &Global, uses: Option<&str>, markdown: bool) -> Result<u8, Failure> {
    let types = &global.types;
    if global.json && uses.is_none_or(|uses| types.iter().any(|kind| kind.uses == uses)) {
        let wanted = types.iter().filter(|kind| uses.is_none_or(|uses| kind.uses == uses));
        let told = wanted.map(|kind| {
            let (uses, summary) = (kind.uses.to_owned(), kind.summary.to_owned());
            TypeOfStage { uses, version: kind.version, summary, gives: kind.gives, schema: (kind.schema)().to_value() }
        });
        return print_document(&Document::Stages { stages: told.collect() });
    }
    match uses {
        None if markdown => anstream::print!("{}", reference::markdown(types)),
        None => {
            let width = types.iter().map(|kind| kind.uses.len()).max().unwrap_or_default();
            types.iter().for_each(|kind| anstream::println!("{:<width$}  {} → {}", kind.uses, kind.summary, kind.gives));
        }
        Some(uses) => {
            let Some(kind) = types.iter().find(|kind| kind.uses == uses) else {
                let error = StageError::new(format!("there is no stage type `{uses}`"));
                return Err(Failure::Asked(error.help(artifact::config::suggest(uses, types.iter().map(|kind| kind.uses)))));
            };
            anstream::print!("{}", reference::stage(kind));
        }
    }
    Ok(DONE)
}

/// Prints one document: what `--json` gives for every verb but `run`.
pub fn print_document(document: &Document) -> Result<u8, Failure> {
    print_json(document)
}

fn print_json(value: &impl Serialize) -> Result<u8, Failure> {
    anstream::println!("{}", serde_json::to_string_pretty(value).doing(|| "writing JSON".into())?);
    Ok(DONE)
}

fn collect_garbage(global: &Global, policy: &gc::Policy, dry_run: bool) -> Result<u8, Failure> {
    let store = store_that_is_there(global)?;
    let garbage = gc::collect(&store, policy, dry_run)?;
    if global.json {
        return print_document(&Document::Gc { dry_run, removed: garbage.removed, bytes: garbage.bytes });
    }
    // Locks are empty, many, and of no interest to people.
    let (locks, paths): (Vec<_>, Vec<_>) = garbage.removed.iter().partition(|path| path.extension().is_some_and(|end| end == "lock"));
    paths.iter().for_each(|path| anstream::println!("{}", path.display()));
    let verb = if dry_run { "would be freed" } else { "freed" };
    anstream::println!(
        "{} {verb}: {} paths, and {} locks that nobody holds",
        indicatif::HumanBytes(garbage.bytes),
        paths.len(),
        locks.len()
    );
    Ok(DONE)
}
