//! How much memory a stage takes, and its limit.

use std::fs;

use rustix::process::{Pid, Resource, Rlimit, setrlimit};

/// Beyond what a stage may take: address space is asked for and not used, so the kernel's own limit is only the last one.
const SLACK: u64 = 2 << 30;

/// For a stage's process: no process of the stage can take more than this by far, however fast it grows.
pub fn limit(bytes: u64) {
    let most = Some(bytes.saturating_mul(2).saturating_add(SLACK));
    // A limit that cannot be set leaves the one that the orchestrator watches.
    let _ = setrlimit(Resource::Data, Rlimit { current: most, maximum: most });
}

/// Bytes that the processes of a group hold in memory together.
pub fn of_group(group: Pid) -> u64 {
    let group = group.as_raw_nonzero().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let kilobytes = processes.filter_map(|process| {
        let status = fs::read_to_string(process.join("status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        (field("NSpgid:")? == group).then(|| field("VmRSS:")?.parse::<u64>().ok())?
    });
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
        let own = of_group(rustix::process::getpgrp());
        assert!(own > 1 << 20 && own < of_machine(), "{own}");
    }
}
