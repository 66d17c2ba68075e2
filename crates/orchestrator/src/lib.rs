//! Plans, caches and runs pipelines that one TOML file declares, over the stage types that it is given.

mod begun;
mod budget;
mod busy;
mod child;
mod cli;
mod command;
mod descendants;
mod diff;
mod document;
mod folder;
mod gc;
mod graph;
mod guard;
mod inner;
mod live;
mod log;
mod made;
mod manual;
mod memory;
mod openlineage;
mod pipeline;
mod plan;
mod problem;
mod record;
mod reference;
mod render;
mod reproduce;
mod resolve;
mod rules;
mod run;
mod schedule;
mod select;
mod set;
mod show;
mod span;
mod spare;
mod tag;
mod tagging;
mod usage;
mod verbs;
mod verify;
mod why;

use std::process::ExitCode;

use artifact::worker::{FAILED, INTERRUPTED, WRONG};
use artifact::{StageError, StageType};
use clap::Parser;

use crate::cli::{Cli, Color};
use crate::command::Command;
use crate::document::Document;
use crate::inner::Inner;
use crate::problem::Problems;

/// Exit code when another run holds the pipeline.
const BUSY: u8 = 3;

/// Why a verb could not do its work.
enum Failure {
    /// The pipeline file is wrong.
    Pipeline(Box<Problems>),
    /// Something else is wrong with what was asked; nothing was run.
    Asked(StageError),
    /// The store or a stage failed.
    Failed(StageError),
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Pipeline(Box::new(problems))
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        Self::Failed(error)
    }
}

/// Of no step of the way in particular: any program.
static COMMAND: &[StageType] = &[StageType::of::<Command>()];

/// The whole of `episteme`, with the stage types of these crates, in the order of the way, and `command`.
///
/// The exit code is 0 when all is done, 1 when a stage failed, 2 when the pipeline or the command line is wrong, 3 when another run
/// is at it, 130 when it was interrupted.
pub fn main(stages: &[&[StageType]]) -> ExitCode {
    let types = [stages, &[COMMAND]].concat().concat();
    if let Some(inner) = Inner::asked() {
        return ExitCode::from(inner.act(&types));
    }
    let mut cli = Cli::parse();
    cli.global.types = types;
    // What `run` prints are the events of a run: of one that never began, there are none.
    let json = cli.global.json && !matches!(cli.verb, cli::Verb::Run { .. });
    match cli.global.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    ExitCode::from(verbs::act(cli).unwrap_or_else(|failure| {
        let code = failure.code();
        if json {
            let told = serde_json::to_string(&failure.document(code)).unwrap_or_default();
            println!("{told}");
        }
        failure.report();
        code
    }))
}

impl Failure {
    /// The exit code.
    fn code(&self) -> u8 {
        match self {
            Self::Pipeline(_) | Self::Asked(_) => WRONG,
            Self::Failed(error) if error.interrupted => INTERRUPTED,
            Self::Failed(_) => FAILED,
        }
    }

    /// For scripts: the last line of `--json`.
    fn document(&self, code: u8) -> Document {
        let problems = match self {
            Self::Pipeline(problems) => problems.problems.iter().map(problem::Problem::placed).collect(),
            Self::Asked(_) | Self::Failed(_) => Vec::new(),
        };
        let (message, place, help, causes) = match self {
            Self::Pipeline(problems) => (problems.to_string(), None, None, Vec::new()),
            Self::Asked(error) | Self::Failed(error) => {
                (error.message.clone(), error.place.clone(), error.help.clone(), error.causes.clone())
            }
        };
        Document::Error { code, message, place, help, causes, problems }
    }

    /// For people.
    fn report(self) {
        match self {
            Self::Pipeline(problems) => report(*problems),
            Self::Failed(error) if error.interrupted => {}
            Self::Asked(error) | Self::Failed(error) => artifact::cli::report(&error),
        }
    }
}

/// Source, caret and help for everything that is wrong with a pipeline file.
fn report(problems: Problems) {
    anstream::eprintln!("{:?}", miette::Report::new(problems));
}

/// What the tests plan with.
#[cfg(test)]
fn every_stage_type() -> Vec<StageType> {
    [collect::STAGES, store::STAGES, process::STAGES, learn::STAGES, apply::STAGES, COMMAND].concat()
}
