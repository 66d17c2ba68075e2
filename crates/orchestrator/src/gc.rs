//! Cleaning a store: what dead runs left, and what nothing refers to.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use artifact::object_store::remove_tree;
use artifact::{CacheRecord, Doing, ObjectStore, StageError};

use crate::run::lock_name;

/// What was, or would be, removed.
#[derive(Debug, Default, serde::Serialize)]
pub struct Garbage {
    /// Paths, in order.
    pub removed: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
}

/// Removes staging of dead runs, temporary files, cache records without artifact, and, when no run is alive, scratch
/// folders and artifacts that no record refers to. A live run is known by its lock.
///
/// # Errors
/// When the store cannot be listed.
pub fn collect(store: &ObjectStore, dry_run: bool) -> Result<Garbage, StageError> {
    let root = store.root();
    let mut garbage = Vec::new();
    let mut alive = false;
    for lock in list(&root.join("locks"))? {
        let name = file_name(&lock).trim_end_matches(".lock").to_owned();
        if name.starts_with("run-") {
            match store.try_lock(&name).doing(|| format!("looking at the lock {}", lock.display()))? {
                Some(_free) => garbage.push(lock),
                None => alive = true,
            }
        }
    }
    for staged in list(&root.join("staging"))? {
        // `RUN.STAGE`: a stage's name holds no dot.
        let name = file_name(&staged);
        let run = name.rsplit_once('.').map_or(name.as_str(), |(run, _)| run);
        if store.try_lock(&lock_name(run)).doing(|| format!("looking at the lock of {run}"))?.is_some() {
            garbage.push(root.join("locks").join(format!("{}.lock", lock_name(run))));
            garbage.push(staged);
        }
    }
    let mut referred = BTreeSet::new();
    for record in list(&root.join("cache"))?.iter().map(|shard| list(shard)).collect::<Result<Vec<_>, _>>()?.concat() {
        if file_name(&record).ends_with(".tmp") {
            if !alive {
                garbage.push(record);
            }
            continue;
        }
        let read = fs::read(&record).ok().and_then(|text| serde_json::from_slice::<CacheRecord>(&text).ok());
        match read.map(|record| store.object(&record.artifact)).filter(|object| object.is_dir()) {
            Some(object) => drop(referred.insert(object)),
            None => garbage.push(record),
        }
    }
    if !alive {
        garbage.extend(list(&root.join("scratch"))?);
        let objects = list(&root.join("objects"))?.iter().map(|shard| list(shard)).collect::<Result<Vec<_>, _>>()?.concat();
        garbage.extend(objects.into_iter().filter(|object| !referred.contains(object)));
    }
    garbage.sort();
    garbage.dedup();
    garbage.retain(|path| path.exists());
    let bytes = garbage.iter().map(|path| size(path)).sum();
    if !dry_run {
        for path in &garbage {
            let removed = if path.is_dir() { remove_tree(path) } else { fs::remove_file(path) };
            removed.doing(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(Garbage { removed: garbage, bytes })
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, StageError> {
    let listing = || format!("listing {}", folder.display());
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).doing(listing)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().doing(listing)?;
    paths.sort();
    Ok(paths)
}

fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => list(path).into_iter().flatten().map(|path| size(&path)).sum(),
        Ok(data) => data.len(),
        Err(_) => 0,
    }
}
