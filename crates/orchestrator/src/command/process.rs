//! The program at work: what it prints goes to the stage's log, and how it ends is how the stage ends.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use artifact::{Doing, RunContext, StageError};
use rustix::process::{Pid, Signal, getpgrp, getpid, getppid, getsid, kill_process_group, set_parent_process_death_signal};
use rustix::thread::disable_transparent_huge_pages;

use crate::child::{NO_LARGE_PAGES, pid};
use crate::{descendants, guard};

/// How often a waiting stage looks whether its orchestrator is still there.
const LOOK: Duration = Duration::from_millis(50);
/// How long what a program left behind may hold its output open.
const LEFT_BEHIND: Duration = Duration::from_secs(1);
/// Bytes of a line that are kept: one without an end would fill the memory.
const LONGEST_LINE: u64 = 1 << 20;
/// How many lines of a failed program's output are shown.
const LAST_LINES: usize = 12;

/// Runs a program to its end, which people know as `shown`. `secrets` are struck out of what it prints.
///
/// # Errors
/// When it cannot be started, or ends in any way but with exit code 0: with the last lines of its output.
pub fn run(program: Command, shown: &str, place: &Path, secrets: &[(String, String)], context: &RunContext) -> Result<(), StageError> {
    let parent = getppid();
    // An orchestrator that dies must not leave the program behind: this process outlives it for long enough to see to that, and where
    // it is killed as well, the guard does.
    guard::begin();
    descendants::adopt();
    let _ = set_parent_process_death_signal(None);
    let (mut child, output) = start(program, place)?;
    let (last_lines, closed) = pass_on(output, secrets.to_vec());
    let (status, is_held) = wait(&mut child, &closed, parent).doing(|| "waiting for the program".into())?;
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    end_with(parent);
    end_what_is_left(is_held, context);
    context.check_stop()?;
    if status.success() {
        return Ok(());
    }
    let how = match (status.signal(), status.code()) {
        (Some(9), _) => "was killed (signal 9): by hand, or by the kernel because memory ran out".to_owned(),
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, code) => format!("ended with exit code {}", code.unwrap_or_default()),
    };
    let mut error = StageError::new(format!("`{shown}` {how}"));
    error.causes = last_lines.join().unwrap_or_default().into();
    Err(error)
}

fn start(mut program: Command, place: &Path) -> Result<(Child, PipeReader), StageError> {
    if !place.is_dir() {
        return Err(StageError::new("`directory` is no folder").at(place.display()).help("it is relative to the pipeline file"));
    }
    let (output, theirs) = io::pipe().doing(|| "making a pipe".into())?;
    let also_theirs = theirs.try_clone().doing(|| "making a pipe".into())?;
    if std::env::var_os(NO_LARGE_PAGES).is_some() {
        // That it has none is inherited, and only this process was to have none.
        let _ = disable_transparent_huge_pages(false);
    }
    program.stdin(Stdio::null()).stdout(also_theirs).stderr(theirs);
    let child = program.spawn().map_err(|error| {
        let name = program.get_program().to_string_lossy();
        match error.kind() {
            io::ErrorKind::NotFound => StageError::new(format!("there is no program `{name}`")).help(
                "name one that PATH finds, or one by its path from `directory`; a line of shell is written as a text, not as a list of words",
            ),
            io::ErrorKind::PermissionDenied => StageError::new(format!("`{name}` may not be run")).help(format!("chmod +x {name}")),
            _ => StageError::new(format!("failed starting `{name}`")).because(&error),
        }
    })?;
    // With `program` goes our own end that writes: the output then ends with its last writer.
    Ok((child, output))
}

/// Passes lines on to the log until the output is closed; the last ones are kept. The receiver hears of the end.
fn pass_on(output: PipeReader, secrets: Vec<(String, String)>) -> (JoinHandle<VecDeque<String>>, Receiver<()>) {
    let (closing, closed) = channel();
    let lines = std::thread::spawn(move || {
        let mut last = VecDeque::new();
        let mut log = io::stderr().lock();
        let mut output = BufReader::new(output);
        while let Some(line) = next_line(&mut output, &secrets) {
            // A full disk is told of where it matters: at what the program makes.
            let _ = writeln!(log, "{line}");
            // Of a bar that is drawn again and again, its last state.
            last.push_back(line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default().to_owned());
            if last.len() > LAST_LINES {
                last.pop_front();
            }
        }
        drop(closing);
        last
    });
    (lines, closed)
}

/// A line without its end and without secrets; of one that is very long, the beginning. None at the end.
fn next_line(output: &mut impl BufRead, secrets: &[(String, String)]) -> Option<String> {
    let mut line = Vec::new();
    output.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line).ok().filter(|bytes| *bytes > 0)?;
    let is_whole = line.pop_if(|last| *last == b'\n').is_some() || (line.len() as u64) < LONGEST_LINE;
    let text = redacted(&String::from_utf8_lossy(&line), secrets);
    if is_whole {
        return Some(text);
    }
    let _ = output.skip_until(b'\n');
    // A secret that the cut goes through was not recognised: what may be its beginning goes, too, and a character that was cut.
    let unsure = secrets.iter().map(|(_, value)| value.len()).max().unwrap_or_default() + 4;
    let end = (0..=text.len().saturating_sub(unsure)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    Some(format!("{} …", &text[..end]))
}

/// A line in which each secret, and each line of a longer one, is replaced by its name.
fn redacted(line: &str, secrets: &[(String, String)]) -> String {
    let mut line = line.to_owned();
    for (name, value) in secrets {
        for part in value.lines().map(str::trim).filter(|part| !part.is_empty()) {
            line = line.replace(part, &format!("[{name}]"));
        }
    }
    line
}

/// How it ended, and whether something that it left behind holds its output open.
fn wait(child: &mut Child, closed: &Receiver<()>, parent: Option<Pid>) -> io::Result<(ExitStatus, bool)> {
    let own = pid(child);
    let (mut ended, mut is_held): (Option<Instant>, _) = (None, false);
    while closed.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        end_with(parent);
        descendants::reap(own.as_slice());
        if child.try_wait()?.is_none() {
            continue;
        }
        is_held = ended.get_or_insert_with(Instant::now).elapsed() > LEFT_BEHIND;
        if is_held {
            break;
        }
    }
    // It has closed its output: most often this is its end.
    let mut pause = Duration::from_micros(50);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, is_held));
        }
        std::thread::sleep(pause);
        pause = LOOK.min(pause * 2);
        end_with(parent);
        descendants::reap(own.as_slice());
    }
}

/// Tells of what was meant to stay, holding the output or in a session of its own; the rest is most often about to end by itself.
fn end_what_is_left(is_held: bool, context: &RunContext) {
    descendants::reap(&[]);
    let stays = |pid: &Pid| is_held || getsid(Some(*pid)).ok() != getsid(None).ok();
    let left = descendants::orphans(&[]).into_iter().filter(stays);
    let name = |pid: Pid| fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).ok();
    let names: Vec<String> = left.filter_map(name).map(|name| format!("`{}`", name.trim())).collect();
    if !names.is_empty() {
        let help = "what is to stay must be started outside of the pipeline";
        context.warn(format!("it left {} running, ended with the stage: {help}", names.join(", ")));
    }
    descendants::end(&[]);
}

/// Ends this process and all that it started, if its orchestrator is gone.
fn end_with(parent: Option<Pid>) {
    if getppid() != parent && getpgrp() == getpid() {
        descendants::end(&[]);
        let _ = kill_process_group(getpid(), Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_struck_out_line_by_line() {
        let secrets = [("KEY".to_owned(), "hush".to_owned()), ("PEM".to_owned(), "begin\nabc\n".to_owned())];
        assert_eq!(redacted("hush: abc begins", &secrets), "[KEY]: [PEM] [PEM]s");
    }

    #[test]
    fn a_very_long_line_is_cut_and_no_secret_with_it() {
        let secrets = [("KEY".to_owned(), "hush".to_owned())];
        let before = "x".repeat((1 << 20) - 3);
        let mut output = io::Cursor::new(format!("a\n\n{before}hush{before}\nhush"));
        let lines: Vec<String> = std::iter::from_fn(|| next_line(&mut output, &secrets)).collect();
        assert_eq!([&lines[0], &lines[1], &lines[3]], ["a", "", "[KEY]"]);
        assert!(
            lines[2].starts_with("xxx") && lines[2].ends_with("x …") && lines[2].len() > 1_000_000,
            "the end: {:?}",
            &lines[2][1_048_560..]
        );
    }
}
