//! Schedules: what they may say, and the pipelines that have one: in crontab, as systemd's timers, or in the foreground.

pub mod act;
pub mod calendar;
pub mod foreground;
pub mod install;
mod options;
pub mod systemd;

use std::path::{Path, PathBuf};
use std::time::Duration;

use artifact::{Digest, Doing, ObjectStore, StageError};

use crate::cli::{Global, Jobs};
use crate::plan::Plan;
use crate::schedule::calendar::Calendar;

/// Whether cron takes this schedule, and takes it for what it says: five fields, POSIX's and the steps and names that every
/// cron knows.
///
/// # Errors
/// What is wrong with it.
pub fn check(schedule: &str) -> Result<(), String> {
    // The parser knows more (seconds, years, `L`, `W`, `#`, `@daily`) than a crontab line, where a sixth field would be the command.
    let fields = schedule.split([' ', '\t']).filter(|field| !field.is_empty()).count();
    if fields != 5 {
        return Err(format!("it has {fields} {}, and cron takes five", if fields == 1 { "field" } else { "fields" }));
    }
    if let Some(strange) = schedule.chars().find(|c| !(c.is_ascii_alphanumeric() || "*,-/ \t".contains(*c))) {
        return Err(format!("cron knows no `{}`", strange.escape_debug()));
    }
    let mut words = schedule.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    if let Some(word) = words.find(|word| !NAMES.contains(&word.to_ascii_lowercase().as_str())) {
        return Err(format!("cron knows no `{word}`; months and weekdays have names of three letters"));
    }
    schedule.parse::<croner::Cron>().map(|_| ()).map_err(|error| error.to_string())
}

/// Months and weekdays as crontab writes them.
const NAMES: [&str; 19] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec", "sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A pipeline that is to run by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The pipeline's name.
    pub name: String,
    /// Its file, absolute.
    pub file: PathBuf,
    /// When it is due, as it was written.
    pub schedule: String,
    /// The same, as moments.
    pub calendar: Calendar,
    /// Program and arguments of a run. Paths are absolute, since cron starts in the home folder. Two runs of one pipeline
    /// never overlap: the second leaves quietly.
    pub command: Vec<String>,
    /// It starts later than it is due by a part of this.
    pub jitter: Duration,
}

impl Job {
    /// A pipeline's, with the options of this command line. None without a schedule.
    ///
    /// # Errors
    /// When it is not known where this program lies, or an option has a line break.
    pub fn new(plan: &Plan, store: &ObjectStore, global: &Global, jobs: &Jobs) -> Result<Option<Self>, StageError> {
        let Some(schedule) = plan.schedule.clone() else { return Ok(None) };
        let Some(calendar) = Calendar::new(&schedule) else { return Ok(None) };
        let file = plan.file.canonicalize().unwrap_or_else(|_| plan.file.clone());
        let executable = std::env::current_exe().doing(|| "finding this executable".into())?;
        let mut command = [&executable, Path::new("run"), &file].map(|word| word.display().to_string()).to_vec();
        command.extend(options::of(global, store, &jobs.manner));
        command.extend(["--on-busy", "skip", "--quiet"].map(str::to_owned));
        match command.iter().find(|word| word.contains('\n')) {
            Some(word) => Err(StageError::new(format!("`{}` has a line break, which no schedule can hold", word.escape_debug()))
                .help("put the value into the pipeline file, or into a file for --params")),
            None => Ok(Some(Self { name: plan.name.clone(), file, schedule, calendar, command, jitter: jobs.jitter })),
        }
    }
}

/// A comment and a line for crontab. Warnings and failures go to the log, and the exit code tells cron.
pub fn crontab(plan: &Plan, job: &Job, store: &Path) -> String {
    let comment =
        if plan.description.is_empty() { plan.name.clone() } else { format!("{}: {}", plan.name, plan.description.replace('\n', " ")) };
    let command: Vec<String> = job.command.iter().map(|word| quoted(word)).collect();
    let log = quoted(&store.join("runs").join(format!("{}.cron.log", plan.name)).to_string_lossy());
    let wait = match job.jitter.mul_f64(share(&job.file.to_string_lossy())).as_secs() {
        0 => String::new(),
        seconds => format!("sleep {seconds}; "),
    };
    format!("# {comment}\n{} {wait}{} >> {log} 2>&1\n", job.schedule, command.join(" "))
}

/// Name and file of a pipeline in a line of ours, `NAME FILE`: a name may have blanks, and has no slash; a file is absolute.
fn name_and_file(text: &str) -> Option<(&str, &Path)> {
    let end = text.find(" /")?;
    Some((&text[..end], Path::new(&text[end + 1..])))
}

/// From 0 to 1: always the same for a text, and another for another.
pub fn share(text: &str) -> f64 {
    let digest = Digest::of(text.as_bytes());
    let part = u16::from_le_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]);
    f64::from(part) / f64::from(u16::MAX)
}

/// Quoted for the shell, and with `%`, which crontab takes for a line break, escaped.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@=,".contains(c);
    let quoted = if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) };
    quoted.replace('%', r"\%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cron_takes_is_taken() {
        for schedule in ["15 2 * * *", "*/5 0-6,22 1 jan-MAR mon", "0\t4 * * 7", " 0  4 * * 0 "] {
            assert_eq!(check(schedule), Ok(()), "{schedule}");
        }
    }

    #[test]
    fn what_cron_would_take_for_something_else_is_refused() {
        for (schedule, why) in [
            ("0 15 2 * * *", "six fields"),
            ("15 2 * *", "four"),
            ("", "none"),
            ("@daily", "a nickname"),
            ("0 0 L * *", "last day"),
            ("0 0 15W * *", "nearest weekday"),
            ("0 0 * * MON#2", "second Monday"),
            ("61 * * * *", "no such minute"),
            ("0 0 * * *\n* * * * * rm", "a line of its own"),
            ("0 0 * * % ", "a line break of crontab's"),
        ] {
            assert!(check(schedule).is_err(), "{why}: {schedule}");
        }
    }

    #[test]
    fn paths_are_quoted_for_the_shell_and_for_crontab() {
        assert_eq!(quoted("/a/b-c.toml"), "/a/b-c.toml");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(quoted("100%"), r"'100\%'");
    }
}
