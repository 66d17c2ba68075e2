//! The spec file: one stage's work, complete, for a process of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What holds for a whole run and does not change what a stage gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Folders or URLs that are tried before the declared URL of a download, in order.
    pub mirrors: Vec<String>,
    /// The folder that relative paths of the pipeline file are taken from.
    pub base: PathBuf,
    /// A folder that survives a failed stage, where a download is kept for its resumption; none: start afresh.
    pub scratch: Option<PathBuf>,
    /// The folder that remembers the digests of files outside the store; none: they are read each time.
    pub stat_cache: Option<PathBuf>,
    /// Whether the caller syncs what takes less than [`crate::worker::SHORT`] to make, together with what others made.
    pub syncs_short: bool,
}

/// One stage's work: the file that `episteme stage SPEC` and the crates' own binaries take.
///
/// A stage process writes [`crate::Event`]s to standard output, seals `output` with a manifest, and exits with 0, or
/// with 1 when the stage failed, 2 when the spec is wrong, 130 when interrupted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageSpec {
    /// The stage's name in its pipeline; names the events.
    pub name: String,
    /// The stage type, such as `store.idx`.
    pub uses: String,
    /// The typed config, as JSON.
    pub config: serde_json::Value,
    /// Input key to the artifact directories (or plain files and folders) that it stands for.
    #[serde(default)]
    pub inputs: BTreeMap<String, Vec<PathBuf>>,
    /// An empty or absent directory; the caller renames it to where it belongs once it is sealed.
    pub output: PathBuf,
    /// What holds for the whole run.
    #[serde(default)]
    pub settings: Settings,
}
