//! Who is at work, and putting an end to it.

use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A stage's process.
pub struct Stage {
    /// The stage's name in the pipeline.
    pub name: String,
    /// Its process.
    pub pid: i32,
}

/// The stages that an orchestrator has at work now.
pub fn stages_of(orchestrator: u32) -> Vec<Stage> {
    let threads = fs::read_dir(format!("/proc/{orchestrator}/task")).into_iter().flatten().flatten();
    let listed = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let pids: Vec<i32> = listed.flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
    pids.into_iter().filter_map(|pid| Some(Stage { name: stage_name(pid)?, pid })).collect()
}

/// What a process is a stage of, by the name of its spec file; none of what has ended (a zombie has no command line).
fn stage_name(pid: i32) -> Option<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let spec = words.filter_map(|word| Some(word.strip_suffix(".spec.json")?.to_owned())).next()?;
    Some(Path::new(&spec).file_name()?.to_string_lossy().into_owned())
}

/// kill -9.
pub fn kill(pid: i32) {
    // One that has ended in this moment is no error.
    let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
}

/// Waits for the end of a process; none when it does not come in time.
pub fn end_of(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let clock = Instant::now();
    while clock.elapsed() < patience {
        if let Some(status) = child.try_wait().expect("it is ours") {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Waits until no process has anything to do with a store any more.
pub fn nothing_works_on(store: &Path, patience: Duration) -> Result<(), String> {
    let clock = Instant::now();
    loop {
        let left = at_work_on(store);
        if left.is_empty() {
            return Ok(());
        }
        if clock.elapsed() > patience {
            return Err(format!("these outlived their orchestrator: {}", left.join("; ")));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Command lines of processes that name a folder in their arguments or their environment, as stages and their programs do.
fn at_work_on(folder: &Path) -> Vec<String> {
    let folder = folder.as_os_str().as_encoded_bytes();
    let names = |bytes: &[u8]| bytes.windows(folder.len()).any(|window| window == folder);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let at_work = processes.filter(|path| path.join("exe").read_link().is_ok()).filter_map(|path| {
        let line = fs::read(path.join("cmdline")).ok()?;
        (names(&line) || fs::read(path.join("environ")).is_ok_and(|text| names(&text)))
            .then(|| format!("{} {}", path.display(), String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    at_work.collect()
}
