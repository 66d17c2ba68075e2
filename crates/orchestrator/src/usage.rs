//! What a stage's process used: processor, memory, bytes.

use std::fs;
use std::io;
use std::process::{Child, ExitStatus};

use artifact::event::Usage;
use indicatif::HumanBytes;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use wait4::Wait4;

/// Waits for a process to end; how it ended, and what it and all that it waited for used.
///
/// # Errors
/// When it cannot be waited for.
pub fn reap(child: &mut Child) -> io::Result<(ExitStatus, Usage)> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
    // The kernel keeps the byte counts until the process is reaped, and not beyond.
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    let io = fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
    let ended = child.wait4()?;
    let cpu = ended.rusage.utime + ended.rusage.stime;
    let usage =
        Usage { cpu_seconds: cpu.as_secs_f64(), peak_memory: ended.rusage.maxrss, read: count(&io, "rchar"), written: count(&io, "wchar") };
    Ok((ended.status, usage))
}

/// A line of `/proc/PID/io`; zero where the kernel counts nothing.
fn count(io: &str, name: &str) -> u64 {
    let line = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or_default()
}

/// `cpu 3.1 s   peak 212 MiB   read 51 MiB   wrote 44 MiB`, each in a column of its own.
pub fn columns(usage: &Usage) -> String {
    let bytes = |count| HumanBytes(count).to_string();
    format!(
        "cpu {:>8}  peak {:>10}  read {:>10}  wrote {:>10}",
        crate::render::duration(usage.cpu_seconds),
        bytes(usage.peak_memory),
        bytes(usage.read),
        bytes(usage.written)
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_charged_with_what_it_and_its_children_used() {
        let script = "head -c 50000000 /dev/zero | wc -c > /dev/null; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; exit 3";
        let (status, usage) = reap(&mut Command::new("sh").args(["-c", script]).spawn().unwrap()).unwrap();
        assert_eq!(status.code(), Some(3));
        assert!(usage.cpu_seconds > 0.01 && usage.cpu_seconds < 60.0, "{usage:?}");
        assert!(usage.peak_memory > 500_000, "{usage:?}");
        assert!(usage.written >= 50_000_000 && usage.read >= 100_000_000, "{usage:?}");
    }

    #[test]
    fn a_process_that_is_killed_is_charged_too() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        child.kill().unwrap();
        let (status, usage) = reap(&mut child).unwrap();
        assert!(!status.success() && usage.peak_memory > 0, "{usage:?}");
    }

    #[test]
    fn a_kernel_that_counts_no_bytes_gives_zero() {
        assert_eq!((count("rchar: 12\nwchar: 5\n", "wchar"), count("", "rchar")), (5, 0));
    }
}
