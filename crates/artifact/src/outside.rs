//! Files outside the store that a stage reads: found by a path, a folder or a glob, and digested on all cores.
//!
//! What is read from outside is part of a stage's cache key by its content, so it is looked at on each run. A
//! [stat cache](crate::stat_cache) makes that a walk over names, sizes and times.

use std::io::Read;
use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use rayon::prelude::*;
use walkdir::WalkDir;

use crate::stat_cache::{Known, Stamp, StatCache};
use crate::{Digest, Doing, Settings, StageError, collect_in_order};

/// A file found: its name, relative to the folder that was walked, and where it lies.
pub type Found = (String, PathBuf);

/// Whether a text is a glob, and not the plain path of one file or folder.
pub fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

/// What is wrong with a glob, if it is one and something is.
pub fn glob_problem(text: &str) -> Option<String> {
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    glob.err().filter(|_| is_glob(text)).map(|error| error.to_string())
}

/// The files that a path stands for now, by name: a file, all within a folder, or all that a glob matches. A plain path
/// goes before a glob, so that a file called `a[1]` can be named.
///
/// # Errors
/// When nothing is there, or a folder cannot be listed.
pub fn find(base: &Path, path: &str) -> Result<Vec<Found>, StageError> {
    let whole = base.join(path);
    let mut found = match (whole.exists(), is_glob(path)) {
        (true, _) if whole.is_file() => vec![(file_name(&whole), whole.clone())],
        (true, _) => walk(&whole, None)?,
        (false, true) => globbed(&whole)?,
        (false, false) => {
            return Err(StageError::new("there is nothing at this path")
                .at(whole.display())
                .help("correct it; it is relative to the pipeline file's folder"));
        }
    };
    if found.is_empty() {
        return Err(StageError::new("there is no file at this path").at(whole.display()).help("put files there, or correct the path"));
    }
    found.sort();
    Ok(found)
}

fn globbed(path: &Path) -> Result<Vec<Found>, StageError> {
    let text = path.to_string_lossy();
    let glob = GlobBuilder::new(&text).literal_separator(true).build().doing(|| format!("reading the glob {text}"))?.compile_matcher();
    let literal: PathBuf = path.components().take_while(|part| !is_glob(&part.as_os_str().to_string_lossy())).collect();
    walk(&literal, Some(&glob))
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Every file below a folder that matches, by its path from there. Links are followed; a loop of links is an error.
fn walk(folder: &Path, glob: Option<&GlobMatcher>) -> Result<Vec<Found>, StageError> {
    let mut found = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true) {
        let entry = entry.doing(|| format!("listing {}", folder.display()))?;
        if entry.file_type().is_file() && glob.is_none_or(|glob| glob.is_match(entry.path())) {
            let relative = entry.path().strip_prefix(folder).unwrap_or(entry.path());
            let name = relative
                .to_str()
                .ok_or_else(|| StageError::new("a file name is not valid UTF-8").at(entry.path().display()).help("rename the file"))?;
            found.push((name.to_owned(), entry.into_path()));
        }
    }
    Ok(found)
}

/// One digest over names and contents. A file whose size, times and inode are as they were is not read again; one that
/// was only touched is read, and found equal.
///
/// # Errors
/// When a file cannot be read.
pub fn digest(files: &[Found], settings: &Settings) -> Result<Digest, StageError> {
    let stamps = stamps(files)?;
    let cache = StatCache::of(files, &stamps, settings);
    let known = cache.as_ref().map(StatCache::read).unwrap_or_default();
    let digests = digests(files, &stamps, &known)?;
    if let Some(cache) = cache {
        cache.write_if_new(files, &stamps, &digests, &known);
    }
    Ok(whole(files, &digests))
}

/// Fewer files than these are not worth starting a pool of threads for.
const PARALLEL_FROM_FILES: usize = 64;

/// What `one` gives for each file, in order, on all cores where that pays.
fn each<T: Send>(files: &[Found], one: impl Fn(usize, &Found) -> Result<T, StageError> + Sync) -> Result<Vec<T>, StageError> {
    match files.len() < PARALLEL_FROM_FILES {
        true => files.iter().enumerate().map(|(index, file)| one(index, file)).collect(),
        false => collect_in_order(files.par_iter().enumerate().with_min_len(16).map(|(index, file)| one(index, file))),
    }
}

fn stamps(files: &[Found]) -> Result<Vec<Stamp>, StageError> {
    each(files, |_, (_, path)| Stamp::of(path).doing(|| format!("looking at {}", path.display())))
}

fn digests(files: &[Found], stamps: &[Stamp], known: &Known) -> Result<Vec<Digest>, StageError> {
    each(files, |index, (name, path)| match known.digest(index, name, &stamps[index]) {
        Some(digest) => Ok(digest),
        None => content(path, &stamps[index]).doing(|| format!("reading {}", path.display())),
    })
}

/// Below this many bytes a file is read in one piece.
const SMALL_BYTES: u64 = 64 << 10;

fn content(path: &Path, stamp: &Stamp) -> std::io::Result<Digest> {
    if stamp.bytes >= SMALL_BYTES {
        return Digest::of_file(path);
    }
    let mut bytes = Vec::with_capacity(stamp.bytes as usize + 1);
    // `take` keeps `read_to_end` from asking for the size, which is known.
    std::fs::File::open(path)?.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(Digest::of(&bytes))
}

/// Names end with a zero byte, which no name holds: no two lists run together to the same bytes.
fn whole(files: &[Found], digests: &[Digest]) -> Digest {
    let mut bytes = Vec::with_capacity(files.len() * 64);
    for ((name, _), digest) in files.iter().zip(digests) {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(digest.as_bytes());
    }
    Digest::of(&bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;
    use std::time::{Duration, SystemTime};

    struct Folder {
        dir: tempfile::TempDir,
        settings: Settings,
    }

    impl Folder {
        /// So many files, old enough to be trusted by their times.
        fn new(files: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("data/sub")).unwrap();
            let settings = Settings { stat_cache: Some(dir.path().join("stat")), ..Settings::default() };
            let this = Self { dir, settings };
            (0..files).for_each(|index| this.write(&format!("data/sub/{index}"), &format!("content {index}")));
            this
        }
        fn write(&self, name: &str, text: &str) {
            fs::write(self.dir.path().join(name), text).unwrap();
        }
        fn found(&self) -> Vec<Found> {
            find(self.dir.path(), "data").unwrap()
        }
        fn digest(&self) -> Digest {
            digest(&self.found(), &self.settings).unwrap()
        }
        fn uncached(&self) -> Digest {
            digest(&self.found(), &Settings::default()).unwrap()
        }
    }

    #[test]
    fn the_digest_is_the_same_with_and_without_a_cache() {
        let folder = Folder::new(300);
        assert_eq!(folder.digest(), folder.uncached());
        assert_eq!(folder.digest(), folder.uncached());
        std::thread::sleep(Duration::from_millis(120));
        assert_eq!((folder.digest(), folder.digest()), (folder.uncached(), folder.uncached()));
    }

    #[test]
    fn a_change_a_new_name_and_a_lost_file_are_each_seen() {
        let folder = Folder::new(300);
        let mut seen = vec![folder.digest()];
        folder.write("data/sub/7", "content X");
        seen.push(folder.digest());
        fs::rename(folder.dir.path().join("data/sub/8"), folder.dir.path().join("data/eight")).unwrap();
        seen.push(folder.digest());
        fs::remove_file(folder.dir.path().join("data/sub/9")).unwrap();
        seen.push(folder.digest());
        assert_eq!(seen.last(), Some(&folder.uncached()));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 4);
    }

    #[test]
    fn a_change_that_keeps_size_and_modification_time_is_seen() {
        let folder = Folder::new(300);
        let path = folder.dir.path().join("data/sub/7");
        let old = SystemTime::now() - Duration::from_secs(100);
        let set = |path: &Path| fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
        set(&path);
        std::thread::sleep(Duration::from_millis(120));
        let before = folder.digest();
        fs::write(&path, "CONTENT 7").unwrap();
        set(&path);
        assert_ne!(folder.digest(), before);
    }

    #[test]
    fn what_was_only_touched_has_the_same_digest() {
        let folder = Folder::new(100);
        let before = folder.digest();
        for (_, path) in folder.found() {
            fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::now()).unwrap();
        }
        assert_eq!(folder.digest(), before);
    }

    #[test]
    fn a_damaged_cache_is_no_cache() {
        let folder = Folder::new(100);
        std::thread::sleep(Duration::from_millis(120));
        let before = folder.digest();
        let cache = fs::read_dir(folder.dir.path().join("stat")).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&cache).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&cache, &bytes).unwrap();
        assert_eq!(folder.digest(), before);
        fs::write(&cache, &bytes[..middle]).unwrap();
        assert_eq!(folder.digest(), before);
    }

    #[test]
    fn a_glob_takes_what_it_matches_and_a_plain_path_goes_before_it() {
        let folder = Folder::new(12);
        folder.write("data/a[1]", "");
        let names = |path: &str| find(folder.dir.path(), path).unwrap().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names("data/sub/1*"), ["1", "10", "11"]);
        assert_eq!(names("data/a[1]"), ["a[1]"]);
        assert!(find(folder.dir.path(), "data/*.csv").unwrap_err().message.contains("no file"));
        assert!(find(folder.dir.path(), "nowhere").unwrap_err().message.contains("nothing"));
    }
}
