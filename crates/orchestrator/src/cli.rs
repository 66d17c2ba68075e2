//! The command line: low-level arguments, nothing done yet.

mod schedule;

use std::path::PathBuf;

use artifact::StageType;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::pipeline::needs;
use crate::select::Selection;
pub use schedule::{CatchUp, Jobs, ScheduleVerb};

/// Raw data into decisions: collect, store, process, learn, apply, as one TOML file declares.
#[derive(Debug, Parser)]
#[command(name = "episteme", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// What holds for every verb.
    #[command(flatten)]
    pub global: Global,
}

const EXIT_CODES: &str = "Start with `episteme run`. Exit codes: 0 done, 1 a stage failed (or `verify` found damage, `reproduce` other bytes), 2 the pipeline or the command line is wrong, 3 busy, 130 interrupted.";

/// Options that hold everywhere.
#[derive(Debug, Args)]
pub struct Global {
    /// Where artifacts are kept; made if it is missing
    #[arg(long, global = true, value_name = "DIR", env = "EPISTEME_STORE", default_value = "data/store")]
    pub store: PathBuf,
    /// A folder or URL tried before a download's own address: `<mirror>/<dataset>/<file>` or `<mirror>/<file>`
    #[arg(long = "mirror", global = true, value_name = "DIR-or-URL", env = "EPISTEME_MIRROR", hide_env_values = true, action = ArgAction::Append)]
    pub mirrors: Vec<String>,
    /// Stages at once [default: the number of processors]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,
    /// Replaces a value of the pipeline file: `--set stages.model.epochs=3`
    #[arg(long = "set", global = true, value_name = "KEY=VALUE", value_parser = set)]
    pub sets: Vec<String>,
    /// Appends a run as OpenLineage events to a file, or posts them to a URL
    #[arg(long, global = true, value_name = "FILE-or-URL", env = "EPISTEME_OPENLINEAGE", hide_env_values = true)]
    pub openlineage: Option<String>,
    /// A TOML file of values for the pipeline's `[params]`
    #[arg(long, global = true, value_name = "FILE", action = ArgAction::Append)]
    pub params: Vec<PathBuf>,
    /// JSON on standard output, for scripts: of a run an object a line, the last of which sums it up; of other verbs one document
    #[arg(long, global = true)]
    pub json: bool,
    /// Only warnings and failures
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Colours: when standard output is a terminal and NO_COLOR is not set, always, or never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// The stage types there are: no option, but as widely asked for as if it were.
    #[arg(skip)]
    pub types: Vec<StageType>,
}

fn set(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("write it as KEY=VALUE, such as stages.model.epochs=3".into()),
    }
}

/// When to use colours.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Color {
    /// As the terminal and NO_COLOR have it.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do when the pipeline is running already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnBusy {
    /// Wait for it to end.
    Wait,
    /// Leave with exit code 0.
    Skip,
    /// Leave with exit code 3.
    Fail,
}

/// The pipeline file that most verbs take.
#[derive(Debug, Args)]
pub struct FileArg {
    /// The pipeline file
    #[arg(value_name = "FILE", default_value = "pipelines/digits.toml")]
    pub file: PathBuf,
}

/// How a pipeline is run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Which stages.
    #[command(flatten)]
    pub selection: Selection,
    /// In what manner.
    #[command(flatten)]
    pub manner: Manner,
    /// When the same pipeline is running on this store
    #[arg(long, value_name = "WHAT", default_value = "wait")]
    pub on_busy: OnBusy,
}

/// How a pipeline is run, now or when it is due.
#[derive(Debug, Clone, Default, Args)]
pub struct Manner {
    /// After a failure, goes on with what does not need it; without this, no new stage is started
    #[arg(long)]
    pub keep_going: bool,
    /// Processors that stages may keep busy together, by their `cores` [default: --jobs, or all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub cores: Option<u16>,
    /// Memory that stages may take together, by their `memory`, such as 8GB [default: the machine's]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub memory: Option<u64>,
    /// Copies the named results (predictions, report, …) to this folder at the end
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
}

impl RunArgs {
    /// Every stage, whatever is there already.
    pub fn everything() -> Self {
        Self { selection: Selection::everything(), manner: Manner::default(), on_busy: OnBusy::Wait }
    }
}

fn size(text: &str) -> Result<u64, String> {
    needs::bytes(text).ok_or_else(|| "write a number and a unit, such as 8GB".into())
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Runs a pipeline: only what has changed, several stages at once
    Run {
        /// Which.
        #[command(flatten)]
        file: FileArg,
        /// How.
        #[command(flatten)]
        args: RunArgs,
    },
    /// Says what a run would do, and does nothing
    Plan(FileArg),
    /// Says what is there of a pipeline: artifacts, metrics, results
    Status(FileArg),
    /// Shows an artifact or a run: config, metrics, files, lineage
    Show {
        /// A stage of the pipeline, the beginning of a digest, or a run's name; without it the last run
        what: Option<String>,
        /// The pipeline that a stage's name belongs to
        #[arg(long, value_name = "FILE", default_value = "pipelines/digits.toml")]
        pipeline: PathBuf,
    },
    /// Draws a pipeline's stages
    Graph {
        /// Which.
        #[command(flatten)]
        file: FileArg,
        /// As what
        #[arg(long, default_value = "text")]
        format: GraphFormat,
    },
    /// Reads a pipeline file and says everything that is wrong with it
    Check(FileArg),
    /// Lists the stage types, or the keys of one
    Stages {
        /// A stage type, such as learn.classifier
        uses: Option<String>,
        /// As Markdown, as docs/pipeline-reference.md has it
        #[arg(long)]
        markdown: bool,
    },
    /// Prints the JSON Schema of pipeline files, for editors, or of what --json prints, for scripts
    Schema {
        /// Of what
        #[arg(default_value = "pipeline")]
        of: SchemaOf,
    },
    /// Lets pipelines run by themselves when their `schedule` says: from your crontab, as systemd timers, or in the foreground
    Schedule {
        /// What.
        #[command(subcommand)]
        verb: ScheduleVerb,
    },
    /// Removes what dead runs left and what nothing refers to; never what a tag or a running job needs
    Gc {
        /// Keeps so many runs of each pipeline, the newest; the others go, with the artifacts that only they gave
        #[arg(long, value_name = "N")]
        keep: Option<usize>,
        /// Lets only runs go that are older, such as 30d (s, m, h, d, w)
        #[arg(long, value_name = "SPAN", value_parser = crate::span::parse)]
        older_than: Option<std::time::Duration>,
        /// Says what would go, and removes nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Lists runs, the newest first
    Log {
        /// Only runs of the pipeline of this name
        pipeline: Option<String>,
        /// How many at most
        #[arg(short = 'n', long = "number", value_name = "N", default_value_t = 20)]
        number: usize,
    },
    /// Compares two runs (config, code, data, artifacts, metrics) or two artifacts, side by side
    Diff {
        /// A run (its name, the beginning of it, `last`, `last~1`), or an artifact (a tag, a digest, a stage)
        a: String,
        /// What to compare it with
        b: String,
        /// The pipeline that a stage's name belongs to
        #[arg(long, value_name = "FILE", default_value = "pipelines/digits.toml")]
        pipeline: PathBuf,
    },
    /// Says which input, key or code version makes a stage run
    Why {
        /// The stage
        stage: String,
        /// Its pipeline.
        #[command(flatten)]
        file: FileArg,
    },
    /// Runs a recorded run again, ignoring the cache, and compares the bytes
    Reproduce {
        /// The run: its name, the beginning of it, `last`, `last~1`
        run: String,
    },
    /// Names an artifact, such as `model:best`; `gc` keeps it. Without a name, lists the tags
    Tag {
        /// The tag; without what to name, shows what it names
        name: Option<String>,
        /// What it is to name: a stage, the beginning of a digest, or another tag
        what: Option<String>,
        /// Takes the tag away
        #[arg(long, short = 'd', requires = "name", conflicts_with = "what")]
        remove: bool,
        /// The pipeline that a stage's name belongs to
        #[arg(long, value_name = "FILE", default_value = "pipelines/digits.toml")]
        pipeline: PathBuf,
    },
    /// Re-hashes the store: names every damaged, missing or stray file, and moves damage out of the way of runs
    Verify {
        /// Names the damage, and moves nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Prints completions for a shell: episteme completions bash > ~/.local/share/bash-completion/completions/episteme
    Completions {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Prints the man page of episteme or of a verb: episteme man run | man -l -
    Man {
        /// Which verb
        verb: Option<String>,
        /// Writes all pages to this folder
        #[arg(long, value_name = "DIR", conflicts_with = "verb")]
        to: Option<PathBuf>,
    },
}

/// What a schema describes.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SchemaOf {
    /// Pipeline files.
    Pipeline,
    /// What `--json` prints.
    Output,
}

/// As what a graph is drawn.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum GraphFormat {
    /// Lines for a terminal.
    Text,
    /// Lanes in plain ASCII.
    Ascii,
    /// A picture.
    Svg,
    /// A Mermaid flow chart.
    Mermaid,
}
