//! What files outside the store had for a content, as long as their sizes, times and inodes say that they still have it.
//!
//! One file in `STORE/stat/` for each list of files, so that runs do not wait for each other. It is a cache: nothing is
//! lost with it, so it is not synced; a checksum tells a torn one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::outside::Found;
use crate::{Digest, Settings, durable};

/// Fewer and smaller files than these are read as fast as a cache is.
const WORTH_FILES: usize = 64;
const WORTH_BYTES: u64 = 1 << 20;
/// A file system may give two writes in this time the same time stamp: what was written so shortly before it was read may
/// have been written once more after that.
const FINE_CLOCK: Duration = Duration::from_millis(50);
/// The same for file systems that count whole seconds.
const COARSE_CLOCK: Duration = Duration::from_secs(2);
/// The format's name and version.
const MAGIC: &[u8; 8] = b"epstat01";

/// What a file looks like from outside. The change time is there because a program can set the modification time back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Size in bytes.
    pub bytes: u64,
    modified: i64,
    changed: i64,
    inode: u64,
    device: u64,
}

/// A stamp's bytes in a cache file.
const STAMP_BYTES: usize = 40;

impl Stamp {
    /// Looks at a file, through links.
    ///
    /// # Errors
    /// When it is not there.
    pub fn of(path: &Path) -> io::Result<Self> {
        let data = fs::metadata(path)?;
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Ok(Self {
            bytes: data.len(),
            modified: nanoseconds(data.mtime(), data.mtime_nsec()),
            changed: nanoseconds(data.ctime(), data.ctime_nsec()),
            inode: data.ino(),
            device: data.dev(),
        })
    }

    /// Whether a file that looked so at this time (nanoseconds) would look different after any later write.
    fn is_settled(&self, now: i64) -> bool {
        let newest = self.modified.max(self.changed);
        let clock = if newest % 1_000_000_000 == 0 { COARSE_CLOCK } else { FINE_CLOCK };
        newest.saturating_add(clock.as_nanos() as i64) < now
    }

    fn to_bytes(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        let fields = [self.bytes, self.modified as u64, self.changed as u64, self.inode, self.device];
        bytes.chunks_exact_mut(8).zip(fields).for_each(|(place, field)| place.copy_from_slice(&field.to_le_bytes()));
        bytes
    }
}

/// The cache of one list of files.
pub struct StatCache {
    path: PathBuf,
    /// When the files were looked at, in nanoseconds.
    now: i64,
}

/// What a cache file says: for each name, in order, the stamp and the digest.
#[derive(Default)]
pub struct Known {
    bytes: Vec<u8>,
    /// Where each entry begins, after its name.
    entries: Vec<(std::ops::Range<usize>, usize)>,
}

impl StatCache {
    /// The cache for these files; none where reading them is as fast, or there is no store to keep it in.
    pub fn of(files: &[Found], stamps: &[Stamp], settings: &Settings) -> Option<Self> {
        let bytes: u64 = stamps.iter().map(|stamp| stamp.bytes).sum();
        if files.len() < WORTH_FILES && bytes < WORTH_BYTES {
            return None;
        }
        // The same folder is looked at by the same list: its first and last file name it well enough.
        let (first, last) = (files.first()?, files.last()?);
        let name = [first, last].map(|(_, path)| path.as_os_str().as_encoded_bytes()).join(&0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_nanos() as i64;
        Some(Self { path: settings.stat_cache.as_ref()?.join(Digest::of(&name).short()), now })
    }

    /// What was known the last time; nothing when there is no sound cache file.
    pub fn read(&self) -> Known {
        fs::read(&self.path).ok().and_then(Known::parse).unwrap_or_default()
    }

    /// Writes what is known now, unless it was known before. A cache that cannot be written is done without.
    pub fn write_if_new(&self, files: &[Found], stamps: &[Stamp], digests: &[Digest], known: &Known) {
        let is_known = |index: usize| known.digest(index, &files[index].0, &stamps[index]).is_some();
        if known.entries.len() == files.len() && (0..files.len()).all(is_known) {
            return;
        }
        let mut bytes = MAGIC.to_vec();
        for (((name, _), stamp), digest) in files.iter().zip(stamps).zip(digests) {
            // What may yet change unseen is written as what no file looks like: it is read again, and then known.
            let stamp = if stamp.is_settled(self.now) { stamp.to_bytes() } else { [0xff; STAMP_BYTES] };
            bytes.extend_from_slice(&(name.len() as u32).to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
            bytes.extend_from_slice(&stamp);
            bytes.extend_from_slice(digest.as_bytes());
        }
        bytes.extend_from_slice(Digest::of(&bytes).as_bytes());
        let temporary = durable::temporary_sibling(&self.path);
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let written = fs::create_dir_all(folder).and_then(|()| fs::write(&temporary, &bytes));
        if written.and_then(|()| fs::rename(&temporary, &self.path)).is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
}

impl Known {
    /// The digest of the file at this place of the list, if it looks as it did.
    pub fn digest(&self, index: usize, name: &str, stamp: &Stamp) -> Option<Digest> {
        let entry = match self.entries.get(index) {
            Some(entry) if self.bytes[entry.0.clone()] == *name.as_bytes() => entry,
            // Files came or went: the list is in order, so the name is found by halving.
            _ => &self.entries[self.entries.binary_search_by(|(range, _)| self.bytes[range.clone()].cmp(name.as_bytes())).ok()?],
        };
        let rest = &self.bytes[entry.1..];
        if rest[..STAMP_BYTES] != stamp.to_bytes() {
            return None;
        }
        rest[STAMP_BYTES..].first_chunk().map(|digest| Digest::from_bytes(*digest))
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        let end = bytes.len().checked_sub(32).filter(|end| *end >= MAGIC.len())?;
        if bytes[..MAGIC.len()] != *MAGIC || Digest::of(&bytes[..end]).as_bytes() != &bytes[end..] {
            return None;
        }
        let (mut entries, mut at) = (Vec::new(), MAGIC.len());
        while at < end {
            let length = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize;
            let name = at + 4..at + 4 + length;
            at = name.end + STAMP_BYTES + 32;
            entries.push((name.clone(), name.end));
        }
        (at == end).then_some(Self { bytes, entries })
    }
}
