//! What a program started and let go of.
//!
//! A group is ended by one signal, but what has called `setsid` has left it. Yet Linux gives a process whose parent has ended to the
//! nearest ancestor that asks for such orphans (a subreaper, see prctl(2)). A stage's process asks for those of its program, and the
//! orchestrator for those of a stage that was killed. They are children then, and a child's number is nobody else's until it has been
//! waited for: no stranger can be hit.

use std::fs;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process, set_child_subreaper, waitid};

/// How long ending takes at most: what hangs in the kernel is left to it.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a killed process is given to be gone before the next look.
const LOOK: Duration = Duration::from_micros(200);

/// From now on, orphans below this process become its children.
pub fn adopt() {
    // Where that cannot be had, what has left its group is left alone.
    let _ = set_child_subreaper(Some(getpid()));
}

/// This process's children that are none of its `own`, those that it has started itself.
pub fn orphans(own: &[Pid]) -> Vec<Pid> {
    if !has_children() {
        return Vec::new();
    }
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let numbers = lists.flat_map(|list| list.split_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<i32>>());
    numbers.filter_map(Pid::from_raw).filter(|child| !own.contains(child)).collect()
}

/// Waits for orphans that have ended, so that they do not pile up.
pub fn reap(own: &[Pid]) {
    orphans(own).into_iter().for_each(reap_one);
}

fn reap_one(child: Pid) {
    let _ = waitid(WaitId::Pid(child), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

/// Ends the orphans, and those that they leave in turn.
pub fn end(own: &[Pid]) {
    let clock = Instant::now();
    while clock.elapsed() < PATIENCE {
        let orphans = orphans(own);
        if orphans.is_empty() {
            return;
        }
        for orphan in &orphans {
            let _ = kill_process(*orphan, Signal::KILL);
        }
        std::thread::sleep(LOOK);
        orphans.into_iter().for_each(reap_one);
    }
}

/// Most programs leave nothing: that much is known without a file.
fn has_children() -> bool {
    waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).err() != Some(Errno::CHILD)
}
