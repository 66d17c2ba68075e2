//! What a word on the command line means: a run, a tag, the beginning of a digest, or a stage.

use std::path::{Path, PathBuf};

use artifact::{Digest, ObjectStore, StageError};

use crate::cli::Global;
use crate::folder::{file_name, list};
use crate::plan::Forecast;
use crate::{Failure, record, tag, verbs};

/// A run's name begins with its day.
const DAY: &str = "YYYYMMDD";

/// What was meant.
pub enum Meant {
    /// A run, by its folder.
    Run(PathBuf),
    /// An artifact.
    Artifact(Digest),
}

/// Finds what a word means. Runs come first, then tags, then digests, then the stages of the pipeline file.
///
/// # Errors
/// When it means nothing, or more than one thing.
pub fn find(global: &Global, store: &ObjectStore, what: &str, pipeline: &Path) -> Result<Meant, Failure> {
    if let Some(folder) = run(store, what)? {
        return Ok(Meant::Run(folder));
    }
    artifact(global, store, what, pipeline).map(Meant::Artifact)
}

/// Finds the artifact that a tag, the beginning of a digest, or a stage names.
///
/// # Errors
/// As [`find`].
pub fn artifact(global: &Global, store: &ObjectStore, what: &str, pipeline: &Path) -> Result<Digest, Failure> {
    if let Some(tag) = tag::read(store, what)? {
        return Ok(tag.artifact);
    }
    match by_digest(store, what)? {
        Some(digest) => Ok(digest),
        None => stage_artifact(global, store, pipeline, what),
    }
}

/// The run that a name, its unambiguous beginning, `last` or `last~N` (N before the last) means; none if none.
///
/// # Errors
/// When several runs begin so, or the runs cannot be listed.
pub fn run(store: &ObjectStore, what: &str) -> Result<Option<PathBuf>, Failure> {
    let folders = record::folders(store)?;
    if let Some(back) = what.strip_prefix("last") {
        let back = if back.is_empty() { Some(0) } else { back.strip_prefix('~').and_then(|back| back.parse::<usize>().ok()) };
        if let Some(back) = back {
            let too_far = || {
                let error = StageError::new(format!("there is no run `{what}`: {} runs are on {}", folders.len(), store.root().display()));
                Failure::Asked(error.help("`episteme log` lists them"))
            };
            return folders.iter().rev().nth(back).cloned().map(Some).ok_or_else(too_far);
        }
    }
    if let Some(exact) = folders.iter().find(|folder| file_name(folder) == what) {
        return Ok(Some(exact.clone()));
    }
    // What is shorter than a day may be a digest's beginning as well.
    if what.len() < DAY.len() {
        return Ok(None);
    }
    let found: Vec<&PathBuf> = folders.iter().filter(|folder| file_name(folder).starts_with(what)).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some((*one).clone())),
        many => {
            let error = StageError::new(format!("{} runs begin with {what}", many.len()));
            Err(Failure::Asked(error.help("give more of the name: `episteme log` lists them")))
        }
    }
}

/// The one artifact whose digest begins so; none if none does.
fn by_digest(store: &ObjectStore, beginning: &str) -> Result<Option<Digest>, Failure> {
    if beginning.len() < 4 || !beginning.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let names = list(&store.root().join("objects").join(&beginning[..2]))?.into_iter().map(|path| file_name(&path));
    let found: Vec<Digest> = names.filter(|name| name.starts_with(beginning)).filter_map(|name| name.parse().ok()).collect();
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        many => Err(Failure::Asked(StageError::new(format!("{} digests begin with {beginning}", many.len())).help("give more of it"))),
    }
}

/// The artifact that a stage of the pipeline has now.
fn stage_artifact(global: &Global, store: &ObjectStore, file: &Path, name: &str) -> Result<Digest, Failure> {
    if !file.exists() {
        let error = StageError::new(format!("`{name}` is no run, tag or digest of {}", store.root().display()));
        return Err(Failure::Asked(
            error.help("`episteme log` lists runs, `episteme tag` tags; of a stage, name the pipeline: --pipeline FILE"),
        ));
    }
    let plan = verbs::load(global, file)?;
    let Some(index) = plan.stages.iter().position(|stage| stage.name == name) else {
        let known = plan.stages.iter().map(|stage| stage.name.as_str());
        let error =
            StageError::new(format!("`{name}` is no stage of {}, and no run, tag or digest of {}", file.display(), store.root().display()));
        return Err(Failure::Asked(error.help(artifact::config::suggest(name, known))));
    };
    let outside = plan.outside(&verbs::settings(global, &plan)).map_err(Failure::Asked)?;
    match plan.forecast(store, &outside)?.into_iter().nth(index) {
        Some(Forecast::Cached(record)) => Ok(record.artifact),
        _ => Err(Failure::Asked(
            StageError::new(format!("`{name}` has not run as the file stands now")).help(format!("episteme run {}", file.display())),
        )),
    }
}
