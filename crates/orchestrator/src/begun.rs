//! A run that has a name, a folder and a log, and is known to be alive.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use artifact::event::Status;
use artifact::object_store::Lock;
use artifact::{Doing, Event, ObjectStore, Sink, StageError, durable};

/// Held by `gc` while it looks and removes, and by a run while it makes itself known: so that `gc` knows every run.
pub const GC_LOCK: &str = "gc";

/// The lock that says a run is alive.
pub fn lock_name(run: &str) -> String {
    format!("run-{run}")
}

/// The file of a lock, as [`ObjectStore::try_lock`] makes it.
pub fn lock_file(store: &ObjectStore, name: &str) -> PathBuf {
    store.root().join("locks").join(format!("{name}.lock"))
}

/// Whether a run of this name is at work.
///
/// # Errors
/// When its lock cannot be looked at.
pub fn is_alive(store: &ObjectStore, run: &str) -> Result<bool, StageError> {
    store.is_locked(&lock_name(run)).doing(|| format!("looking at the lock of {run}"))
}

/// A run at its beginning.
pub struct Begun {
    /// Unique in the store.
    pub name: String,
    /// `STORE/runs/NAME`: specs, logs, events.
    pub folder: PathBuf,
    lock_file: PathBuf,
    /// Held while the run lives: what it stages is not garbage.
    _alive: Lock,
}

impl Begun {
    /// Names a run and makes its folder.
    ///
    /// # Errors
    /// When the store cannot be written, or `stop` says so while `gc` is at work.
    pub fn new(store: &ObjectStore, pipeline: &str, stop: &dyn Fn() -> bool) -> Result<Self, StageError> {
        let name = format!("{}-{pipeline}-{}", jiff::Zoned::now().strftime("%Y%m%dT%H%M%S"), std::process::id());
        let no_gc = store.lock(GC_LOCK, stop).map_err(|error| match error.kind() {
            std::io::ErrorKind::Interrupted => StageError::interrupted(),
            _ => StageError::new(format!("failed locking the store {}", store.root().display())).because(&error),
        })?;
        // Locked before it can be seen: who looks at a run looks at its lock, and must not be taken for its holder.
        let alive = store.try_lock(&lock_name(&name)).doing(|| format!("locking the run {name}"))?;
        let alive = alive.ok_or_else(|| StageError::new(format!("the run {name} is there already")).help("run again"))?;
        let folder = store.run(&name);
        fs::create_dir_all(&folder).doing(|| format!("making the run's folder {}", folder.display()))?;
        drop(no_gc);
        Ok(Self { lock_file: lock_file(store, &lock_name(&name)), name, folder, _alive: alive })
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        // No other run has this name, so nobody waits for the lock that goes.
        let _ = fs::remove_file(&self.lock_file);
    }
}

/// The pipeline a run's name speaks of: the name is `TIME-PIPELINE-PROCESS`.
pub fn pipeline_of(run: &str) -> Option<&str> {
    let (_time, rest) = run.split_once('-')?;
    Some(rest.rsplit_once('-')?.0)
}

/// Host name, processors and their kind.
pub fn machine() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("unknown CPU", |(_, name)| name);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{host}, {cores} × {cpu}")
}

/// Every event of a run into `events.jsonl`; the last one also as `run.json`, durably.
pub struct RunLog {
    file: Mutex<File>,
    folder: PathBuf,
    /// The first thing that could not be written.
    fault: Mutex<Option<io::Error>>,
}

impl RunLog {
    /// Opens the log in a run's folder.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(folder: &Path) -> Result<Self, StageError> {
        let path = folder.join("events.jsonl");
        let file = File::create(&path).doing(|| format!("creating {}", path.display()))?;
        Ok(Self { file: Mutex::new(file), folder: folder.to_owned(), fault: Mutex::default() })
    }

    /// Whether all was written. A run goes on without its log, and says so at its end.
    ///
    /// # Errors
    /// The first fault.
    pub fn is_whole(&self) -> Result<(), StageError> {
        let fault = self.fault.lock().ok().and_then(|mut fault| fault.take());
        fault.map_or(Ok(()), Err).doing(|| format!("writing the log of the run in {}", self.folder.display()))
    }

    fn write(&self, event: &Event) -> io::Result<()> {
        let line = serde_json::to_string(event)?;
        let Ok(mut file) = self.file.lock() else { return Ok(()) };
        // In one piece: a line that is cut ends with the next one's beginning.
        file.write_all(format!("{line}\n").as_bytes())?;
        let Event::RunFinished { stages, .. } = event else { return Ok(()) };
        let path = self.folder.join("run.json");
        // A run that had nothing to do is not worth waiting for the disk.
        match stages.iter().all(|stage| stage.status == Status::Cached) {
            true => fs::write(path, line),
            false => file.sync_data().and_then(|()| durable::write_file(&path, line.as_bytes())),
        }
    }
}

impl Sink for RunLog {
    fn emit(&self, event: Event) {
        if let (Err(error), Ok(mut fault)) = (self.write(&event), self.fault.lock()) {
            fault.get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_run_is_named_after_its_pipeline_and_known_while_it_lives() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let begun = Begun::new(&store, "a-b", &|| false).unwrap();
        assert_eq!(pipeline_of(&begun.name), Some("a-b"));
        assert!(store.try_lock(&lock_name(&begun.name)).unwrap().is_none());
        let file = begun.lock_file.clone();
        drop(begun);
        assert!(!file.exists());
    }

    #[test]
    fn a_run_does_not_begin_while_gc_is_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let _gc = store.try_lock(GC_LOCK).unwrap().unwrap();
        let Err(error) = Begun::new(&store, "p", &|| true) else { panic!("it began") };
        assert!(error.interrupted);
    }
}
