//! Looking through the folders of a store.

use std::fs;
use std::path::{Path, PathBuf};

use artifact::{Doing, StageError};

/// The last part of a path.
pub fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// A path as it is meant from any other folder. A link stays one: what it leads to may change.
pub fn absolute(path: &Path) -> String {
    std::path::absolute(path).as_deref().unwrap_or(path).display().to_string()
}

/// As [`absolute`], and a URL as it is.
pub fn absolute_unless_url(place: &str) -> String {
    if place.contains("://") { place.to_owned() } else { absolute(Path::new(place)) }
}

/// What is in a folder, in order; nothing when there is no such folder.
///
/// # Errors
/// When it cannot be listed.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, StageError> {
    let listing = || format!("listing {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.doing(listing)?,
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().doing(listing)?;
    paths.sort();
    Ok(paths)
}

/// Everything in the folders within a folder: `objects/` and `cache/` spread their entries over such.
///
/// # Errors
/// As [`list`].
pub fn list_shards(folder: &Path) -> Result<Vec<PathBuf>, StageError> {
    let shards = list(folder)?.into_iter().filter(|shard| shard.is_dir());
    Ok(shards.map(|shard| list(&shard)).collect::<Result<Vec<_>, _>>()?.concat())
}

/// Whether a file is what a write had not finished: see [`artifact::durable::temporary_sibling`].
pub fn is_temporary(path: &Path) -> bool {
    let name = file_name(path);
    name.starts_with('.') && name.ends_with(".tmp")
}

/// Bytes of a file, or of all files below a folder.
pub fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => list(path).into_iter().flatten().map(|path| size(&path)).sum(),
        Ok(data) => data.len(),
        Err(_) => 0,
    }
}
