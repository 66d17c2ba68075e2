//! What a run starts of this program itself: a process for each stage, before or when it begins, and the guard. They are not for people, and in no help.
//!
//! They have a parser of their own: to build that of all verbs takes a fifth of a millisecond, and a run may have thousands of stages.

use std::path::PathBuf;

use artifact::StageType;
use artifact::event::JsonLines;
use artifact::worker::{DONE, INTERRUPTED, run_spec_file};
use clap::Parser;

use crate::{child, guard, memory, spare};

/// Started by a run.
#[derive(Debug, Parser)]
#[command(name = "episteme")]
pub enum Inner {
    /// Runs one stage from its spec file
    Stage {
        /// The spec file
        spec: PathBuf,
        /// The process that started it: the stage ends with it
        #[arg(long)]
        parent: Option<u32>,
        /// Bytes of memory that it may take
        #[arg(long)]
        memory: Option<u64>,
    },
    /// Waits to be told of its stage
    Spare {
        /// The process that started it: it ends with it
        #[arg(long)]
        parent: u32,
    },
    /// Ends what programs have started, once nobody else can
    Guard,
}

impl Inner {
    /// What the command line asks for, if it is one of these.
    pub fn asked() -> Option<Self> {
        let verb = std::env::args_os().nth(1)?;
        (verb == "stage" || verb == "spare" || verb == "guard").then(Self::parse)
    }

    /// Does it; the exit code.
    pub fn act(&self, types: &[StageType]) -> u8 {
        match self {
            Self::Guard => {
                guard::watch();
                DONE
            }
            Self::Stage { parent: Some(parent), .. } | Self::Spare { parent } if !child::die_with(*parent) => INTERRUPTED,
            Self::Spare { .. } => spare::wait(types),
            Self::Stage { spec, memory, .. } => {
                memory.map(memory::limit);
                run_spec_file(spec, types, &JsonLines::new(std::io::stdout()))
            }
        }
    }
}
