//! `episteme`: plans, caches and runs pipelines that one TOML file declares.

mod begun;
mod budget;
mod busy;
mod child;
mod cli;
mod command;
mod diff;
mod folder;
mod gc;
mod graph;
mod guard;
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
mod registry;
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
mod tag;
mod tagging;
mod usage;
mod verbs;
mod verify;
mod why;

use std::process::ExitCode;

/// A training step takes and frees the same buffers again and again: keep them, rather than ask the kernel anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use artifact::StageError;
use artifact::worker::{FAILED, INTERRUPTED, WRONG};
use clap::Parser;

use crate::cli::{Cli, Color};
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

fn main() -> ExitCode {
    let cli = Cli::parse();
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
            println!("{}", failure.json(code));
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
    fn json(&self, code: u8) -> serde_json::Value {
        match self {
            Self::Pipeline(problems) => serde_json::json!({
                "type": "error", "code": code, "message": problems.to_string(),
                "problems": problems.problems.iter().map(problem::Problem::json).collect::<Vec<_>>(),
            }),
            Self::Asked(error) | Self::Failed(error) => serde_json::json!({
                "type": "error", "code": code, "message": error.message, "place": error.place, "help": error.help, "causes": error.causes,
            }),
        }
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
