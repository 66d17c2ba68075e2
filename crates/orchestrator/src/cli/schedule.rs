//! The command line of `episteme schedule`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::Manner;

/// What `schedule` does.
#[derive(Debug, Subcommand)]
pub enum ScheduleVerb {
    /// Prints what `install` would put into your crontab, or the units that it would write for systemd
    Print {
        /// Which, and how they run.
        #[command(flatten)]
        jobs: Jobs,
        /// As systemd units
        #[arg(long)]
        systemd: bool,
    },
    /// Puts pipelines into your crontab, each in a block of its own; again replaces it. Options that hold for a run hold for theirs
    Install {
        /// Which, and how they run.
        #[command(flatten)]
        jobs: Jobs,
        /// As systemd user timers
        #[arg(long)]
        systemd: bool,
    },
    /// Lists the pipelines in your crontab and among systemd's user timers
    List,
    /// Takes pipelines out of both
    Remove {
        /// Their names or files
        #[arg(required = true, value_name = "NAME-or-FILE")]
        what: Vec<String>,
    },
    /// Runs pipelines when they are due, in the foreground, until Ctrl-C
    Run {
        /// Which, and how they run.
        #[command(flatten)]
        jobs: Jobs,
        /// What becomes of times that passed while nothing looked
        #[arg(long, value_name = "POLICY", default_value = "none")]
        catch_up: CatchUp,
    },
}

/// Pipelines that are to run by themselves. What is given here and holds for a run holds for theirs.
#[derive(Debug, Clone, Args)]
pub struct Jobs {
    /// The pipeline files
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How each runs.
    #[command(flatten)]
    pub manner: Manner,
    /// Starts each run later than it is due by a part of this span, so that not all start at once: 30s, 5m. In a crontab the part is always
    /// the same for a pipeline; else it is drawn anew each time
    #[arg(long, value_name = "SPAN", default_value = "0s", value_parser = crate::span::parse)]
    pub jitter: Duration,
}

/// What becomes of times that passed while no scheduler looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CatchUp {
    /// They are gone.
    None,
    /// One run makes up for all of them.
    Once,
}
