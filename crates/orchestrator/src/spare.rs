//! A process that is started before its stage is known, so that a short stage need not wait for the program to be loaded: that takes
//! longer than all else that a run does for it.
//!
//! Its standard output is one end of a pair of sockets. On it, it is told of its stage, and tells what the stage says. It ends
//! when the other end is closed, as it is when the run is over or killed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use artifact::StageType;
use artifact::event::JsonLines;
use artifact::worker::{DONE, FAILED, run_spec_file};
use rustix::process::Pid;

use crate::child::{NO_LARGE_PAGES, THIS_EXECUTABLE, pid};
use crate::guard::Guard;

/// A process that waits for its stage: one that runs a program, with nothing of its own in its environment.
pub struct Spare {
    child: Child,
    channel: UnixStream,
}

impl Spare {
    /// Starts one.
    ///
    /// # Errors
    /// When there is no process or no socket to be had.
    pub fn start(guard: &Guard) -> io::Result<Self> {
        let (channel, theirs) = UnixStream::pair()?;
        let mut command = Command::new(THIS_EXECUTABLE);
        command.arg("spare").arg("--parent").arg(std::process::id().to_string()).env(NO_LARGE_PAGES, "0");
        command.stdin(guard.hold()?).stdout(OwnedFd::from(theirs)).stderr(Stdio::null()).process_group(0);
        Ok(Self { child: command.spawn()?, channel })
    }

    /// Its process.
    pub fn process(&self) -> Option<Pid> {
        pid(&self.child)
    }

    /// Gives it its stage; its process, and where it speaks. None when it is not there any more.
    pub fn give(mut self, spec: &Path, log: &Path) -> Option<(Child, UnixStream)> {
        let mut line = serde_json::to_vec(&(spec, log)).ok()?;
        line.push(b'\n');
        match self.channel.write_all(&line) {
            Ok(()) => Some((self.child, self.channel)),
            Err(_) => {
                self.end();
                None
            }
        }
    }

    /// Ends it: it has begun nothing.
    pub fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The spare process's own work: waits for its stage, and does it; the exit code.
pub fn wait(types: &[StageType]) -> u8 {
    match stage() {
        Ok(Some(spec)) => run_spec_file(&spec, types, &JsonLines::new(io::stdout())),
        Ok(None) => DONE,
        Err(_) => FAILED,
    }
}

/// The spec file of its stage, whose log is the standard error from now on; none when the run has no more.
fn stage() -> io::Result<Option<PathBuf>> {
    let channel = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut line = String::new();
    if BufReader::new(channel).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let (spec, log): (PathBuf, PathBuf) = serde_json::from_str(&line)?;
    rustix::stdio::dup2_stderr(File::options().append(true).open(log)?)?;
    Ok(Some(spec))
}
