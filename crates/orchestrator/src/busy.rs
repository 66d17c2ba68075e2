//! One run of a pipeline at a time on a store: the lock, who holds it, and what the second one does.

use std::fs;
use std::path::PathBuf;

use artifact::object_store::Lock;
use artifact::worker::{DONE, INTERRUPTED};
use artifact::{Doing, ObjectStore, StageError};

use crate::BUSY;
use crate::begun::lock_file;
use crate::cli::OnBusy;

/// The pipeline is ours, or there is an exit code to leave with.
pub enum Turn {
    /// Until this is dropped.
    Ours(Held),
    /// Leave; it has been said why.
    Leave(u8),
}

/// A pipeline's lock. The kernel frees it when its holder dies, in whatever way.
pub struct Held {
    file: PathBuf,
    _lock: Lock,
}

impl Held {
    fn new(file: PathBuf, lock: Lock) -> Self {
        let held = Self { file, _lock: lock };
        held.note(&format!("process {}", std::process::id()));
        held
    }

    /// Tells others who holds the lock: they say so to their users.
    pub fn note(&self, holder: &str) {
        // Only a kindness: a full disk is told of elsewhere.
        let _ = fs::write(&self.file, holder);
    }
}

/// Takes the lock of a pipeline, or does what is asked for when another run has it. `stop` ends the waiting.
///
/// # Errors
/// When the lock file cannot be opened.
pub fn take(store: &ObjectStore, pipeline: &str, on_busy: OnBusy, stop: &dyn Fn() -> bool) -> Result<Turn, StageError> {
    let name = format!("pipeline-{pipeline}");
    let file = lock_file(store, &name);
    let locking = || format!("taking the lock of `{pipeline}`");
    if let Some(lock) = store.try_lock(&name).doing(locking)? {
        return Ok(Turn::Ours(Held::new(file, lock)));
    }
    let holder = fs::read_to_string(&file).ok().filter(|holder| !holder.is_empty()).map(|holder| format!(" ({holder})"));
    let busy = format!("another run of `{pipeline}`{} is at work on {}", holder.unwrap_or_default(), store.root().display());
    match on_busy {
        OnBusy::Wait => {
            anstream::eprintln!("{busy}: waiting for it (--on-busy skip or fail would leave)");
            match store.lock(&name, stop) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Ok(Turn::Leave(INTERRUPTED)),
                locked => locked.doing(locking).map(|lock| Turn::Ours(Held::new(file, lock))),
            }
        }
        OnBusy::Skip => {
            anstream::eprintln!("{busy}: skipped");
            Ok(Turn::Leave(DONE))
        }
        OnBusy::Fail => {
            artifact::cli::report(&StageError::new(busy).help("wait for it (--on-busy wait), or leave quietly (--on-busy skip)"));
            Ok(Turn::Leave(BUSY))
        }
    }
}
