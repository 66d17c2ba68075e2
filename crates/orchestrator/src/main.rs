//! `episteme`: plans, caches and runs pipelines that one TOML file declares.

mod begun;
mod busy;
mod child;
mod cli;
mod command;
mod diff;
mod folder;
mod gc;
mod graph;
mod log;
mod made;
mod pipeline;
mod plan;
mod problem;
mod record;
mod reference;
mod registry;
mod render;
mod reproduce;
mod resolve;
mod run;
mod schedule;
mod set;
mod show;
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
    match cli.global.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    ExitCode::from(verbs::act(cli).unwrap_or_else(|failure| match failure {
        Failure::Pipeline(problems) => {
            report(*problems);
            WRONG
        }
        Failure::Asked(error) => {
            artifact::cli::report(&error);
            WRONG
        }
        Failure::Failed(error) if error.interrupted => INTERRUPTED,
        Failure::Failed(error) => {
            artifact::cli::report(&error);
            FAILED
        }
    }))
}

/// Source, caret and help for everything that is wrong with a pipeline file.
fn report(problems: Problems) {
    anstream::eprintln!("{:?}", miette::Report::new(problems));
}
