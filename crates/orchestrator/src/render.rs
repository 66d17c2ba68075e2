//! What people see of a run: the live view on a terminal, plain lines elsewhere, a table at the end.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};
use artifact::event::{StageResult, Status};
use artifact::{Event, Level, ObjectStore, Sink, StageError};
use indicatif::{ProgressBar, ProgressStyle};

use crate::live::Live;
use crate::plan::Plan;
use crate::usage;

/// One stream to several readers.
pub struct Tee(pub Vec<Box<dyn Sink>>);

impl Sink for Tee {
    fn emit(&self, event: Event) {
        for sink in &self.0 {
            sink.emit(event.clone());
        }
    }
}

/// The live view if standard error is a terminal, else lines; nothing but warnings and failures when quiet.
pub fn terminal(quiet: bool, plan: &Plan, store: &ObjectStore) -> Box<dyn Sink> {
    match std::io::stderr().is_terminal() && !quiet {
        true => Box::new(Live::new(plan, store)),
        false => Box::new(Lines { quiet }),
    }
}

/// Bold, red and so on, as `anstream` lets them through.
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const GREEN: Style = AnsiColor::Green.on_default();
const CYAN: Style = AnsiColor::Cyan.on_default();

/// Plain lines: what cron mails.
struct Lines {
    quiet: bool,
}

impl Sink for Lines {
    fn emit(&self, event: Event) {
        if let Some(line) = line(&event, self.quiet) {
            anstream::eprintln!("{line}");
        }
    }
}

/// One event as a line; none for what only a bar shows.
pub fn line(event: &Event, quiet: bool) -> Option<String> {
    match event {
        Event::Log { stage, level: Level::Warning, message } => Some(format!("{YELLOW}warning{YELLOW:#} {stage}: {message}")),
        Event::StageFailed { stage, error, .. } => Some(failure(stage, error)),
        _ if quiet => None,
        Event::Promotion { tag, stage, artifact, promoted: true, reason, .. } => {
            Some(format!("{GREEN}tagged{GREEN:#}  {tag}: {stage} {} ({reason})", artifact.short()))
        }
        Event::Promotion { tag, promoted: false, reason, .. } => Some(format!("{DIM}{tag} stays: {reason}{DIM:#}")),
        Event::RunStarted { run, pipeline, stages } => {
            Some(format!("{BOLD}{pipeline}{BOLD:#}: {} stages {DIM}({run}){DIM:#}", stages.len()))
        }
        Event::StageStarted { stage, uses } => Some(format!("{CYAN}start{CYAN:#}   {stage} {DIM}({uses}){DIM:#}")),
        Event::Log { stage, level: Level::Info, message } => Some(format!("        {stage}: {message}")),
        Event::Metric { stage, name, value, step: Some(step) } => Some(format!("        {stage}: epoch {step} {name} {value:.4}")),
        Event::StageFinished { stage, status: Status::Cached, .. } => Some(format!("{DIM}cached{DIM:#}  {stage}")),
        Event::StageFinished { stage, seconds, .. } => Some(format!("{GREEN}done{GREEN:#}    {stage} in {}", duration(*seconds))),
        _ => None,
    }
}

/// What failed, where, why, and what to do next.
pub fn failure(stage: &str, error: &StageError) -> String {
    let mut text = format!("{RED}failed{RED:#}  {BOLD}{stage}{BOLD:#}: {}", error.message);
    if let Some(place) = &error.place {
        text.push_str(&format!("\n        at {place}"));
    }
    for cause in &error.causes {
        text.push_str(&format!("\n        because {cause}"));
    }
    if let Some(help) = &error.help {
        text.push_str(&format!("\n        {CYAN}help:{CYAN:#} {help}"));
    }
    text
}

/// Tested below.
const BYTES: &str = "{prefix:<14} [{bar:28}] {percent:>3}%  {bytes} of {total_bytes}, {bytes_per_sec}, eta {eta}";

/// A bar over bytes, on standard error if that is a terminal.
pub fn bytes_bar(prefix: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template(BYTES).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_prefix(prefix).with_style(style.progress_chars("━╸─"))
}

/// The table at the end of a run, for standard output.
pub struct Summary;

impl Sink for Summary {
    fn emit(&self, event: Event) {
        let Event::RunFinished { ok, seconds, stages, metrics, outputs, .. } = event else { return };
        let width = stages.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
        anstream::println!();
        for stage in &stages {
            anstream::println!("  {:<width$}  {}", stage.name, status(stage));
        }
        let main: Vec<_> = metrics.iter().filter(|(name, _)| is_main(name)).collect();
        if !main.is_empty() {
            anstream::println!();
            main.iter().for_each(|(name, value)| anstream::println!("  {name:<24} {BOLD}{value:.4}{BOLD:#}"));
        }
        if !outputs.is_empty() {
            anstream::println!();
            outputs.iter().for_each(|(name, path)| anstream::println!("  {name:<12} {path}"));
        }
        let count = |status| stages.iter().filter(|stage| stage.status == status).count();
        let (ran, cached) = (count(Status::Ran), count(Status::Cached));
        let rest = [(count(Status::Failed), "failed"), (count(Status::Skipped), "skipped")].into_iter().filter(|(count, _)| *count > 0);
        let rest: String = rest.map(|(count, word)| format!(", {count} {word}")).collect();
        let word = if ok { format!("{GREEN}done{GREEN:#}") } else { format!("{RED}not done{RED:#}") };
        anstream::println!("\n{word} in {}: {ran} ran, {cached} cached{rest}", duration(seconds));
    }
}

/// How a stage ended, in columns.
pub fn status(stage: &StageResult) -> String {
    let used = stage.usage.as_ref().map(|usage| format!("  {DIM}{}{DIM:#}", usage::columns(usage))).unwrap_or_default();
    let digest = stage.artifact.map(|digest| digest.short()).unwrap_or_default();
    match stage.status {
        Status::Ran => format!("{GREEN}ran{GREEN:#}      {:>8}  {DIM}{digest:<12}{DIM:#}{used}", duration(stage.seconds)),
        Status::Cached => format!("{DIM}cached             {digest}{DIM:#}"),
        Status::Failed => format!("{RED}failed{RED:#}   {:>8}  {:<12}{used}", duration(stage.seconds), ""),
        Status::Skipped => format!("{YELLOW}skipped{YELLOW:#}"),
    }
}

/// Of forty metrics, those that sum a model up: no class's own.
pub fn is_main(name: &str) -> bool {
    let split_and_name: Vec<&str> = name.split('.').collect();
    matches!(split_and_name.as_slice(), [_, "accuracy" | "macro_f1" | "balanced_accuracy" | "log_loss" | "roc_auc" | "average_precision"])
}

/// Seconds for people: `84 ms`, `3.2 s`, `2 min 5 s`.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1000.0),
        s if s < 100.0 => format!("{s:.1} s"),
        s => format!("{} min {} s", s as u64 / 60, s as u64 % 60),
    }
}

/// A moment of the record (RFC 3339, in UTC) by the clock on the wall.
pub fn moment(recorded: &str) -> String {
    let shown = |moment: jiff::Timestamp| moment.to_zoned(jiff::tz::TimeZone::system()).strftime("%F %T").to_string();
    recorded.parse().map_or_else(|_| recorded.to_owned(), shown)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_bar_template_is_valid() {
        ProgressStyle::with_template(BYTES).unwrap();
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([0.0842, 3.24, 125.0].map(duration), ["84 ms", "3.2 s", "2 min 5 s"]);
    }

    #[test]
    fn a_failure_says_what_where_why_and_what_next() {
        let error = StageError::new("this is no JPEG").at("cat/1.jpg").because(&std::io::Error::other("bad magic")).help("remove it");
        let text = anstream::adapter::strip_str(&failure("images", &error)).to_string();
        assert_eq!(text, "failed  images: this is no JPEG\n        at cat/1.jpg\n        because bad magic\n        help: remove it");
    }
}
