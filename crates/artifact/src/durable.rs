//! Temporary place, sync, rename: the one way to write what must last.
//!
//! A reader sees the new content or the old (or nothing): there is no state between. When these return, the new content survives a power cut,
//! but for [`replace_file`].

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Above this many files, one `syncfs` is cheaper than an `fsync` each.
const SYNCFS_FROM_FILES: usize = 64;

/// A sibling name that no other writer uses: `.<name>.<pid>.<counter>.tmp`.
pub fn temporary_sibling(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.{count}.tmp", std::process::id()))
}

/// Replaces a file's content whole: a reader sees the old bytes or the new, never a part.
///
/// # Errors
/// When the folder is missing or not writable, or the disk is full; the old content is then untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |file| {
        file.write_all(bytes)?;
        file.sync_all()
    })?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// As [`write_file`], but for the syncs: after a power cut there may be the old content, the new, or none.
///
/// # Errors
/// As there.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, |file| file.write_all(bytes))
}

fn replace(path: &Path, write: impl Fn(&mut File) -> io::Result<()>) -> io::Result<()> {
    let temporary = temporary_sibling(path);
    let written = File::create_new(&temporary).and_then(|mut file| {
        write(&mut file)?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Renames within one file system and syncs the folder that holds the new name.
///
/// # Errors
/// As [`fs::rename`] and `fsync`.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(to.parent().unwrap_or(Path::new(".")))
}

/// Syncs a folder's own entries.
///
/// # Errors
/// As `fsync`.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}

/// Syncs every file and folder below `root`.
///
/// # Errors
/// As `fsync`; `EIO` is passed on, since data may then be lost.
pub fn sync_tree(root: &Path) -> io::Result<()> {
    sync(&tree(root)?)
}

/// Every file below `root`, then every folder, the innermost first, `root` last.
///
/// # Errors
/// When a folder cannot be listed.
pub fn tree(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    let mut next = 0;
    while next < folders.len() {
        for entry in fs::read_dir(&folders[next])? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
        next += 1;
    }
    files.extend(folders.into_iter().rev());
    Ok(files)
}

/// Syncs files and folders of one file system.
///
/// # Errors
/// As `fsync`; `EIO` is passed on, since data may then be lost.
pub fn sync(paths: &[PathBuf]) -> io::Result<()> {
    match paths {
        [first, ..] if paths.len() >= SYNCFS_FROM_FILES => Ok(rustix::fs::syncfs(File::open(first)?)?),
        _ => paths.iter().try_for_each(|path| File::open(path)?.sync_all()),
    }
}

/// The boot of the machine that this is, by a number drawn at its start; none where the system tells none.
pub fn boot() -> Option<&'static str> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned());
    BOOT.get_or_init(read).as_deref()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_content_and_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("kept");
        fs::create_dir(&target).unwrap(); // a folder in the way: the rename must fail
        fs::write(target.join("x"), "x").unwrap();
        assert!(write_file(&target, b"new").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_write_replaces_the_content_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_file(&path, b"a longer first content").unwrap();
        write_file(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
