//! How much memory a stage takes, and its limit.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::iter::successors;

use rustix::process::{Pid, Resource, Rlimit, setrlimit};

/// Beyond what a stage may take: address space is asked for and not used, so the kernel's own limit is only the last one.
const SLACK: u64 = 2 << 30;

/// For a stage's process: no process of the stage can take more than this by far, however fast it grows.
pub fn limit(bytes: u64) {
    let most = Some(bytes.saturating_mul(2).saturating_add(SLACK));
    // A limit that cannot be set leaves the one that the orchestrator watches.
    let _ = setrlimit(Resource::Data, Rlimit { current: most, maximum: most });
}

/// Bytes that a process and its descendants hold in memory together, in whatever group they are.
pub fn of_tree(root: Pid) -> u64 {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let look = |process: DirEntry| {
        let status = fs::read_to_string(process.path().join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok());
        Some((field("Pid:")?, (field("PPid:")?, field("VmRSS:").unwrap_or_default())))
    };
    let all: BTreeMap<u64, (u64, u64)> = processes.filter_map(look).collect();
    let root = u64::from(root.as_raw_nonzero().get().unsigned_abs());
    let parent = |process: &u64| all.get(process).map(|(parent, _)| *parent).filter(|parent| *parent > 0);
    // Numbers of processes that have ended meanwhile may be another's: no way up is longer than there are processes.
    let is_of_tree = |process: u64| successors(Some(process), parent).take(all.len()).any(|ancestor| ancestor == root);
    let kilobytes = all.iter().filter(|(process, _)| is_of_tree(**process)).map(|(_, (_, kilobytes))| kilobytes);
    kilobytes.sum::<u64>() * 1024
}

/// Bytes of memory that the machine has.
pub fn of_machine() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok());
    total.map_or(u64::MAX, |kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_memory_and_less_than_the_machine_has() {
        let own = of_tree(rustix::process::getpid());
        assert!(own > 1 << 20 && own < of_machine(), "{own}");
    }
}
