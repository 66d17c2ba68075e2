//! Files as memory maps, and how they will be read.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use artifact::{Doing, StageError};
use bytes::Bytes;
use memmap2::{Advice, Mmap};

/// A mapped file.
pub struct MappedFile {
    /// None for an empty file, which cannot be mapped.
    map: Option<Arc<Mmap>>,
}

/// What keeps the map alive as long as a byte of it is in use.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self, StageError> {
        let doing = || format!("opening {}", path.display());
        let file = File::open(path).doing(doing)?;
        if file.metadata().doing(doing)?.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: artifacts are read-only and never written again once sealed; for other files a change while they are
        // mapped can change what is read or end this process (SIGBUS), which its orchestrator sees as this stage's failure.
        let map = unsafe { Mmap::map(&file) }.doing(doing)?;
        Ok(Self { map: Some(Arc::new(map)) })
    }

    /// Its bytes.
    pub fn bytes(&self) -> Bytes {
        self.map.as_ref().map_or_else(Bytes::new, |map| Bytes::from_owner(Owner(Arc::clone(map))))
    }

    /// Tells the kernel that small pieces will be read from everywhere, again and again. A file that memory holds is fetched
    /// at once; of a larger one only what is asked for is: what the kernel reads ahead would push out what is needed next.
    pub fn will_be_read_at_random(&self) {
        let Some(map) = &self.map else { return };
        let holds = available_memory().is_none_or(|available| map.len() as u64 <= available / 2);
        // Advice only: without it, reading is slower and nothing else.
        let _ = map.advise(if holds { Advice::WillNeed } else { Advice::Random });
    }
}

/// Bytes that this process could still use: what is free, or what its control group allows it in all.
fn available_memory() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().filter_map(|line| {
        // `4:memory:/path` in version 1, `0::/path` in version 2.
        let (_, rest) = line.split_once(':')?;
        let (controller, path) = rest.split_once(':')?;
        match controller {
            "memory" => limit(&format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
            "" => limit(&format!("/sys/fs/cgroup{path}/memory.max")),
            _ => None,
        }
    });
    limits.chain(free()).min()
}

fn limit(file: &str) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn free() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_the_same_however_it_will_be_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        for content in [&b""[..], b"some bytes"] {
            fs::write(&path, content).expect("written");
            let file = MappedFile::open(&path).expect("mapped");
            file.will_be_read_at_random();
            let bytes = file.bytes();
            drop(file);
            assert_eq!(&bytes[..], content, "the bytes outlive the file");
        }
    }

    #[test]
    fn this_machine_has_some_memory_to_speak_of() {
        let available = available_memory().expect("Linux tells");
        assert!((1 << 20..1 << 50).contains(&available), "{available}");
    }
}
