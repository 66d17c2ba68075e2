//! A stage in a process of its own.
//!
//! The orchestrator starts `episteme stage SPEC`, a crate's binary `run SPEC`: both end here. Events go to standard
//! output as JSON lines. The output directory is sealed at the end; the caller publishes it.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::event::Status;
use crate::manifest::Ancestor;
use crate::stage::AnyStage;
use crate::{Digest, Doing, Event, Input, Manifest, RunContext, Sink, StageError, StageSpec, StageType, durable};

/// Exit code of a run or stage that did what was asked.
pub const DONE: u8 = 0;
/// Exit code when a stage failed.
pub const FAILED: u8 = 1;
/// Exit code when the pipeline, spec or command line is wrong.
pub const WRONG: u8 = 2;
/// Exit code after Ctrl-C or SIGTERM.
pub const INTERRUPTED: u8 = 130;

/// What took less than this is cheap to make again: under an orchestrator it is synced with what others made.
pub const SHORT: Duration = Duration::from_secs(1);

/// A flag that SIGINT and SIGTERM raise; a second signal ends the process at once.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn stop_flag() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // Order matters: the shutdown looks at the flag before the next line sets it.
        signal_hook::flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}

/// Reads a spec file and does its work; the exit code.
pub fn run_spec_file(path: &Path, stages: &[StageType], sink: &dyn Sink) -> u8 {
    // Without its orchestrator nobody would publish the output: end with it, even when it is killed.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let spec = std::fs::read(path)
        .doing(|| format!("reading the spec {}", path.display()))
        .and_then(|text| serde_json::from_slice::<StageSpec>(&text).doing(|| format!("reading the spec {}", path.display())));
    match spec {
        Ok(spec) => run_spec(&spec, stages, sink),
        Err(error) => {
            sink.emit(Event::StageFailed { stage: path.display().to_string(), seconds: 0.0, error });
            WRONG
        }
    }
}

/// Does a spec's work; the exit code.
pub fn run_spec(spec: &StageSpec, stages: &[StageType], sink: &dyn Sink) -> u8 {
    let clock = Instant::now();
    let failed = |error: StageError, code: u8| {
        sink.emit(Event::StageFailed { stage: spec.name.clone(), seconds: clock.elapsed().as_secs_f64(), error });
        code
    };
    let stage = match find(spec, stages) {
        Ok(stage) => stage,
        Err(error) => return failed(error, WRONG),
    };
    sink.emit(Event::StageStarted { stage: spec.name.clone(), uses: spec.uses.clone() });
    let sealed = run_and_seal(spec, stage.as_ref(), sink).and_then(|()| match spec.settings.syncs_short && clock.elapsed() < SHORT {
        true => Ok(()),
        false => durable::sync_tree(&spec.output).doing(|| format!("syncing {}", spec.output.display())),
    });
    match sealed {
        Ok(()) => {
            sink.emit(Event::StageFinished {
                stage: spec.name.clone(),
                status: Status::Ran,
                seconds: clock.elapsed().as_secs_f64(),
                artifact: None,
                usage: None,
            });
            DONE
        }
        Err(error) if error.interrupted => failed(error, INTERRUPTED),
        Err(error) => failed(error, FAILED),
    }
}

fn find(spec: &StageSpec, stages: &[StageType]) -> Result<Box<dyn AnyStage>, StageError> {
    let Some(kind) = stages.iter().find(|kind| kind.uses == spec.uses) else {
        return Err(StageError::new(format!("there is no stage `{}` here", spec.uses))
            .help(crate::config::suggest(&spec.uses, stages.iter().map(|kind| kind.uses))));
    };
    (kind.from_json)(spec.config.clone()).doing(|| format!("reading the config of `{}`", spec.uses))
}

/// Runs a stage in this process and seals its output.
///
/// # Errors
/// What the stage says; a panic inside it becomes an error that names the stage.
fn run_and_seal(spec: &StageSpec, stage: &dyn AnyStage, sink: &dyn Sink) -> Result<(), StageError> {
    let mut inputs = BTreeMap::new();
    for (key, paths) in &spec.inputs {
        inputs.insert(key.clone(), paths.iter().map(|path| Input::open(path)).collect::<Result<Vec<_>, _>>()?);
    }
    std::fs::create_dir_all(&spec.output).doing(|| format!("making {}", spec.output.display()))?;
    let digests = inputs.iter().map(|(key, all)| (key.clone(), all.iter().map(digest_of).collect())).collect();
    let parents: Vec<Manifest> = inputs.values().flatten().filter_map(|input| input.manifest.clone()).collect();
    let stop = stop_flag().doing(|| "installing the signal handlers".into())?;
    let context = RunContext::new(&spec.name, inputs, spec.output.clone(), spec.settings.clone(), sink, &stop);
    let outcome =
        catch_unwind(AssertUnwindSafe(|| stage.run(&context))).unwrap_or_else(|panic| Err(panicked(&spec.uses, panic.as_ref())))?;
    context.check_stop()?;
    let made_by = Ancestor {
        digest: None,
        kind: stage.gives(),
        uses: stage.uses().to_owned(),
        version: stage.version(),
        config: stage.canonical_config().doing(|| "writing the config".into())?,
        inputs: digests,
        rows: outcome.rows,
    };
    Manifest::seal(&spec.output, stage.gives(), outcome, made_by, &parents).map(drop)
}

/// A plain folder has no digest of its own; its place in a lineage is a digest of its path.
fn digest_of(input: &Input) -> Digest {
    match &input.manifest {
        Some(manifest) => manifest.digest,
        None => Digest::of(input.path.as_os_str().as_encoded_bytes()),
    }
}

/// Libraries that panic on damaged data are caught here, at the stage's boundary.
fn panicked(uses: &str, panic: &(dyn Any + Send)) -> StageError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned()).or_else(|| panic.downcast_ref::<String>().cloned());
    StageError::new(format!("`{uses}` met something that it cannot handle: {}", text.unwrap_or_else(|| "a panic without a message".into())))
        .help("this is a defect in episteme or in a library it uses; the input named above or in the stage's log is what set it off. Nothing was stored")
}
