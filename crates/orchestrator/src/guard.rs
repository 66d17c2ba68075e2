//! Ending what programs have started when nobody else can any more.
//!
//! A stage that runs a program ends it when its orchestrator dies, and the orchestrator does when its stage dies. Killed both in
//! the same instant, neither can; and the kernel ends with a process only its own children that ask for it, never theirs. So a run
//! that starts programs has a third process, the guard. It reads from a pipe that the orchestrator and its `command` stages
//! hold: each line is a process group that begins (`+`) or is over (`-`). The pipe closes when the last of them is gone, in whatever
//! way; what has begun and is not over by then is killed. In a group of its own it hears no Ctrl-C, and who kills a run's
//! group does not hit it. What has left its group is out of the guard's reach, since nobody between it and the guard is left:
//! see `descendants` for how the others find it.

use std::collections::BTreeSet;
use std::io::{self, BufRead, PipeWriter, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process_group};

use crate::child::{NO_LARGE_PAGES, THIS_EXECUTABLE, pid};
use crate::descendants;

/// A run's hold on its guard.
#[derive(Clone)]
pub struct Guard(Arc<Hold>);

struct Hold {
    pipe: PipeWriter,
    process: Option<Pid>,
    /// Orphans of stages that were killed become the orchestrator's children.
    adopts: bool,
}

impl Guard {
    /// Starts a guard; `jobs` are the stages at work already.
    ///
    /// # Errors
    /// When there is no pipe or no process to be had.
    pub fn start(jobs: &[Pid]) -> io::Result<Self> {
        // Who was started by `exec` may have children of another's making, and could not tell their orphans from its own.
        let adopts = descendants::orphans(jobs).is_empty();
        if adopts {
            descendants::adopt();
        }
        let (reader, writer) = io::pipe()?;
        let mut command = Command::new(THIS_EXECUTABLE);
        command.env(NO_LARGE_PAGES, "0");
        command.arg("guard").stdin(reader).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).current_dir("/");
        // Nobody waits for it: it ends after this process does.
        let process = pid(&command.spawn()?);
        Ok(Self(Arc::new(Hold { pipe: writer, process, adopts })))
    }

    /// What a stage gets as its standard input: its own hold.
    ///
    /// # Errors
    /// When there are no more file descriptors.
    pub fn hold(&self) -> io::Result<Stdio> {
        self.0.pipe.try_clone().map(Stdio::from)
    }

    /// Nothing of this group is left.
    pub fn is_over(&self, group: Pid) {
        // A guard that is gone guards nothing; the orchestrator is here and does.
        let _ = writeln!(&mut &self.0.pipe, "-{}", group.as_raw_nonzero());
    }

    /// Ends what stages that were killed have left; `jobs` are those at work.
    pub fn end_orphans(&self, jobs: &[Pid]) {
        if self.0.adopts {
            descendants::end(&[jobs, self.0.process.as_slice()].concat());
        }
    }
}

/// In a stage's process: what it starts from now on is to be ended if neither it nor its orchestrator can.
pub fn begin() {
    let input = io::stdin();
    let is_hold = fstat(&input).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
        && fcntl_getfl(&input).is_ok_and(|flags| flags.contains(OFlags::WRONLY));
    // A stage that was started by hand has no guard, and no orchestrator that could die.
    if is_hold && getpgrp() == getpid() {
        let _ = rustix::io::write(&input, format!("+{}\n", getpid().as_raw_nonzero()).as_bytes());
    }
}

/// The guard's own work: waits for the end of all that hold the pipe.
pub fn watch() {
    let groups = open_at_end(io::stdin().lock());
    for group in groups.into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// The groups that had begun and were not over when the pipe closed.
fn open_at_end(pipe: impl BufRead) -> BTreeSet<i32> {
    let mut open = BTreeSet::new();
    for line in pipe.lines().map_while(Result::ok) {
        match (line.get(..1), line.get(1..).and_then(|number| number.parse().ok())) {
            (Some("+"), Some(group)) => drop(open.insert(group)),
            (Some("-"), Some(group)) => drop(open.remove(&group)),
            // A line that was cut by its writer's death names nothing that can have begun.
            _ => {}
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_and_is_not_over_is_open_and_a_cut_line_is_nothing() {
        assert_eq!(open_at_end(&b"+12\n+13\n-12\n+"[..]), BTreeSet::from([13]));
        assert_eq!(open_at_end(&b"+12\n-12\n"[..]), BTreeSet::new());
        assert_eq!(open_at_end(&b"-5\n\n+x\n\xff\n"[..]), BTreeSet::new());
    }
}
