//! Pipelines as systemd user timers: a `.service` and a `.timer` each in the user's unit folder.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use artifact::{Digest, Doing, StageError, durable};

use crate::document::Scheduled;
use crate::folder::{file_name, list};
use crate::schedule::{Job, name_and_file};

/// The first line says whose file it is, and of which pipeline; the second its schedule.
const MARK: &str = "# episteme ";

/// A pipeline that has a timer.
pub struct Unit {
    /// The pipeline's name.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
    /// When it is due, in crontab's five fields.
    pub schedule: Option<String>,
    /// The timer's file.
    pub timer: PathBuf,
}

impl Unit {
    /// What it is for.
    pub fn scheduled(&self) -> Scheduled {
        let place = Some(self.timer.display().to_string());
        Scheduled { schedule: self.schedule.clone(), place, ..Scheduled::new(&self.name, &self.file) }
    }
}

/// What the two files hold, by their names.
pub fn units(job: &Job) -> [(String, String); 2] {
    let unit = unit_name(job);
    let words: Vec<String> = job.command.iter().map(|word| quoted(word)).collect();
    let mark = format!("{MARK}{} {}\n# {}", job.name, job.file.display(), job.schedule);
    let description = format!("Description=episteme {}", job.name.replace('%', "%%"));
    let service = format!("{mark}\n[Unit]\n{description}\n\n[Service]\nType=oneshot\nExecStart={}\n", words.join(" "));
    let when: String = job.calendar.systemd().iter().map(|line| format!("OnCalendar={line}\n")).collect();
    let jitter = if job.jitter.is_zero() { String::new() } else { format!("RandomizedDelaySec={}\n", job.jitter.as_secs_f64()) };
    let timer = format!("{mark}\n[Unit]\n{description}\n\n[Timer]\n{when}{jitter}Persistent=true\n\n[Install]\nWantedBy=timers.target\n");
    [(format!("{unit}.service"), service), (format!("{unit}.timer"), timer)]
}

/// Writes both files and starts the timer, whose file it gives.
///
/// # Errors
/// When they cannot be written, or `systemctl` fails.
pub fn install(job: &Job) -> Result<PathBuf, StageError> {
    let folder = folder()?;
    fs::create_dir_all(&folder).doing(|| format!("making {}", folder.display()))?;
    let files = units(job).map(|(name, text)| (folder.join(name), text));
    for (path, text) in &files {
        durable::write_file(path, text.as_bytes()).doing(|| format!("writing {}", path.display()))?;
    }
    let [(service, _), (timer, _)] = files;
    let started = systemctl(&["daemon-reload"]).and_then(|()| systemctl(&["enable", "--now", &file_name(&timer)]));
    if started.is_err() {
        // What does not run is not installed.
        [&service, &timer].iter().for_each(|path| drop(fs::remove_file(path)));
    }
    started.map(|()| timer)
}

/// The pipelines that have timers.
///
/// # Errors
/// When the unit folder cannot be listed.
pub fn installed() -> Result<Vec<Unit>, StageError> {
    let timers = list(&folder()?)?
        .into_iter()
        .filter(|path| file_name(path).starts_with("episteme-") && path.extension().is_some_and(|end| end == "timer"));
    let unit = |timer: PathBuf| {
        let text = fs::read_to_string(&timer).ok()?;
        let mut lines = text.lines();
        let (name, file) = name_and_file(lines.next()?.strip_prefix(MARK)?)?;
        let schedule = lines.next().and_then(|line| line.strip_prefix("# ")).map(str::to_owned);
        Some(Unit { name: name.to_owned(), file: file.into(), schedule, timer })
    };
    Ok(timers.filter_map(unit).collect())
}

/// Stops a timer and removes its files.
///
/// # Errors
/// When `systemctl` fails or a file cannot be removed.
pub fn remove(unit: &Unit) -> Result<(), StageError> {
    systemctl(&["disable", "--now", &file_name(&unit.timer)])?;
    for path in [unit.timer.clone(), unit.timer.with_extension("service")] {
        fs::remove_file(&path).doing(|| format!("removing {}", path.display()))?;
    }
    systemctl(&["daemon-reload"])
}

/// Where systemd looks for a user's units.
fn folder() -> Result<PathBuf, StageError> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    let config = config.ok_or_else(|| StageError::new("neither XDG_CONFIG_HOME nor HOME says where your systemd units are"))?;
    Ok(config.join("systemd/user"))
}

/// Two checkouts may have pipelines of one name: the file's digest tells them apart.
fn unit_name(job: &Job) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    let file = Digest::of(job.file.as_os_str().as_encoded_bytes()).to_string();
    format!("episteme-{}-{}", job.name.chars().map(plain).collect::<String>(), &file[..8])
}

/// A word as `ExecStart=` takes it: in quotes, and with `%` and `$`, which mean something there, doubled.
fn quoted(word: &str) -> String {
    let escaped = word.replace('\\', r"\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

fn systemctl(args: &[&str]) -> Result<(), StageError> {
    let said = || format!("systemctl --user {}", args.join(" "));
    let output = Command::new("systemctl").arg("--user").args(args).output();
    let output = output.doing(|| format!("starting `{}`", said())).map_err(|error| error.help("is there a systemd on this machine?"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(StageError::new(format!("`{}` failed: {}", said(), String::from_utf8_lossy(&output.stderr).trim()))
            .help("does systemd run for your user? `loginctl enable-linger` keeps its timers going when you are logged out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_systemd() {
        assert_eq!(quoted("/a b/100%"), "\"/a b/100%%\"");
        assert_eq!(quoted(r#"say "x" $y \z"#), r#""say \"x\" $$y \\z""#);
    }
}
