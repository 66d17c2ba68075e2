//! The live view on a terminal: every stage in its place in the graph, with its state, a bar while it works, and how long the
//! rest will take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use artifact::event::Status;
use artifact::{Event, ObjectStore, Sink};
use indicatif::{HumanBytes, HumanCount, MultiProgress, ProgressBar, ProgressStyle};

use crate::plan::Plan;
use crate::{graph, record, render};

/// More stages than this are not listed all at once: only those at work.
const LISTED: usize = 24;
/// How often what moves is drawn.
const TICK: Duration = Duration::from_millis(120);

/// A line that stands, one that works without a known end, and one with. All templates are tested.
const STILL: &str = "{prefix}  {wide_msg}";
const SPINNER: &str = "{prefix}  {spinner} {wide_msg} {elapsed}";
const BAR: &str = "{prefix}  [{bar:28}] {percent:>3}%  {wide_msg} eta {eta}";

/// The view.
pub struct Live {
    all: MultiProgress,
    stages: Vec<Stage>,
    rows: Mutex<Rows>,
}

/// What is known of a stage beforehand.
struct Stage {
    name: String,
    /// Its place in the graph, and its name.
    prefix: String,
    upstream: Vec<usize>,
    /// Seconds it took the last time it ran.
    expected: Option<f64>,
}

#[derive(Default)]
struct Rows {
    bars: BTreeMap<String, ProgressBar>,
    started: BTreeMap<String, Instant>,
    over: BTreeMap<String, Status>,
    /// Of the plan, and not of this run: `--only` and the like.
    apart: BTreeSet<String>,
    sum: Option<ProgressBar>,
}

impl Live {
    /// The view of a plan that is about to run.
    pub fn new(plan: &Plan, store: &ObjectStore) -> Self {
        let expected = record::durations(store, &plan.name);
        let lanes = graph::lanes(plan);
        let (width, names) = (lanes.iter().map(String::len).max(), plan.stages.iter().map(|stage| stage.name.len()).max());
        let (width, names) = (width.unwrap_or_default(), names.unwrap_or_default());
        let stages = plan.stages.iter().zip(lanes).map(|(stage, lane)| Stage {
            name: stage.name.clone(),
            prefix: if plan.stages.len() > LISTED {
                format!("{:<names$}", stage.name)
            } else {
                format!("{lane:<width$}  {:<names$}", stage.name)
            },
            upstream: stage.upstream().collect(),
            expected: expected.get(&stage.name).copied(),
        });
        Self { all: MultiProgress::new(), stages: stages.collect(), rows: Mutex::default() }
    }

    fn list_all(&self, rows: &mut Rows, wanted: &[String]) {
        let wanted: BTreeSet<&String> = wanted.iter().collect();
        rows.apart = self.stages.iter().map(|stage| &stage.name).filter(|name| !wanted.contains(name)).cloned().collect();
        if self.stages.len() <= LISTED {
            for stage in self.stages.iter().filter(|stage| !rows.apart.contains(&stage.name)) {
                rows.bars.insert(stage.name.clone(), self.row(stage, STILL, "waiting"));
            }
        }
        let sum = self.all.add(ProgressBar::new_spinner());
        sum.enable_steady_tick(TICK);
        rows.sum = Some(sum);
    }

    fn row(&self, stage: &Stage, template: &str, message: &'static str) -> ProgressBar {
        let bar = ProgressBar::new_spinner().with_prefix(stage.prefix.clone()).with_message(message);
        style(&bar, template);
        let bar = self.all.add(bar);
        bar.tick();
        bar
    }

    fn start(&self, rows: &mut Rows, name: &str) {
        let Some(stage) = self.stages.iter().find(|stage| stage.name == name) else { return };
        rows.started.insert(name.to_owned(), Instant::now());
        let bar = rows.bars.entry(name.to_owned()).or_insert_with(|| self.row(stage, SPINNER, ""));
        style(bar, SPINNER);
        bar.set_message("");
        bar.reset_elapsed();
        bar.enable_steady_tick(TICK);
    }

    fn end(&self, rows: &mut Rows, name: &str, status: Status, message: String) {
        rows.over.insert(name.to_owned(), status);
        if let Some(bar) = rows.bars.get(name) {
            bar.disable_steady_tick();
            style(bar, STILL);
            bar.set_message(message);
            bar.tick();
        }
        if self.stages.len() > LISTED {
            rows.bars.remove(name).iter().for_each(ProgressBar::finish_and_clear);
        }
    }

    fn sum_up(&self, rows: &Rows) {
        let Some(sum) = &rows.sum else { return };
        let at_work = rows.started.keys().filter(|name| !rows.over.contains_key(*name)).count();
        let left = self.seconds_left(rows).filter(|left| *left >= 1.0);
        let left = left.map(|left| format!(", about {} left", render::duration(left))).unwrap_or_default();
        sum.set_message(format!("{} of {} done, {at_work} at work{left}", rows.over.len(), self.stages.len() - rows.apart.len()));
    }

    /// Along the longest way through what is not over, by what each stage took the last time; none when one never ran.
    fn seconds_left(&self, rows: &Rows) -> Option<f64> {
        let mut ends: Vec<f64> = Vec::new();
        for stage in &self.stages {
            let begin = stage.upstream.iter().map(|from| ends[*from]).fold(0.0, f64::max);
            let passed = rows.started.get(&stage.name).map_or(0.0, |start| start.elapsed().as_secs_f64());
            let is_over = rows.over.contains_key(&stage.name) || rows.apart.contains(&stage.name);
            let rest = if is_over { 0.0 } else { (stage.expected? - passed).max(0.0) };
            ends.push(begin + rest);
        }
        ends.into_iter().reduce(f64::max)
    }

    /// A line above all rows.
    fn say(&self, text: &str) {
        // Bars write past anstream, so what it would have decided (NO_COLOR, --color, TERM) is asked for here.
        let text = match anstream::AutoStream::choice(&std::io::stderr()) {
            anstream::ColorChoice::Never => anstream::adapter::strip_str(text).to_string(),
            _ => text.to_owned(),
        };
        // A closed terminal is no failure of the run.
        let _ = self.all.println(text);
    }
}

impl Sink for Live {
    fn emit(&self, event: Event) {
        let Ok(mut rows) = self.rows.lock() else { return };
        match &event {
            Event::RunStarted { stages, .. } => self.list_all(&mut rows, stages),
            Event::StageStarted { stage, .. } => self.start(&mut rows, stage),
            Event::Progress { stage, label, done, total, unit } => {
                if let Some(bar) = rows.bars.get(stage) {
                    progress(bar, label, *done, *total, unit);
                }
            }
            Event::StageFinished { stage, status, seconds, .. } => {
                let message = if *status == Status::Cached { "cached".into() } else { format!("done in {}", render::duration(*seconds)) };
                self.end(&mut rows, stage, *status, message);
            }
            Event::StageFailed { stage, seconds, .. } => {
                self.end(&mut rows, stage, Status::Failed, format!("failed after {}", render::duration(*seconds)));
            }
            Event::RunFinished { .. } => rows.bars.values().chain(&rows.sum).for_each(ProgressBar::finish_and_clear),
            _ => {}
        }
        self.sum_up(&rows);
        // What a row says already is not said again.
        let listed = self.stages.len() <= LISTED && matches!(event, Event::StageFinished { .. });
        if !listed && !matches!(event, Event::StageStarted { .. }) {
            render::line(&event, false).into_iter().for_each(|line| self.say(&line));
        }
    }
}

fn progress(bar: &ProgressBar, label: &str, done: u64, total: Option<u64>, unit: &str) {
    let amount = |count: u64| if unit == "bytes" { HumanBytes(count).to_string() } else { HumanCount(count).to_string() };
    if let Some(total) = total.filter(|total| *total > 0) {
        if bar.length() != Some(total) || bar.position() > done {
            bar.reset_eta();
            bar.set_length(total);
            style(bar, BAR);
        }
        // The position first: each of these may draw the row.
        bar.set_position(done);
        bar.set_message(format!("{label}: {} of {} {unit}", amount(done), amount(total)));
    } else {
        bar.set_position(done);
        bar.set_message(format!("{label}: {} {unit}", amount(done)));
    }
}

fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn stage(name: &str, upstream: &[usize], expected: Option<f64>) -> Stage {
        Stage { name: name.into(), prefix: String::new(), upstream: upstream.to_vec(), expected }
    }

    #[test]
    fn all_templates_are_valid() {
        [STILL, SPINNER, BAR].iter().for_each(|template| drop(ProgressStyle::with_template(template).unwrap()));
    }

    #[test]
    fn what_is_left_is_the_longest_way_through_what_is_not_over() {
        let stages =
            vec![stage("a", &[], Some(5.0)), stage("b", &[0], Some(10.0)), stage("c", &[0], Some(3.0)), stage("d", &[1, 2], Some(1.0))];
        let mut live = Live { all: MultiProgress::new(), stages, rows: Mutex::default() };
        let mut rows = Rows::default();
        assert_eq!(live.seconds_left(&rows), Some(16.0));
        rows.over.insert("a".into(), Status::Cached);
        assert_eq!(live.seconds_left(&rows), Some(11.0));
        rows.started.insert("b".into(), Instant::now().checked_sub(Duration::from_secs(60)).unwrap());
        assert_eq!(live.seconds_left(&rows), Some(4.0), "b is late, so c decides");
        live.stages[3].expected = None;
        assert_eq!(live.seconds_left(&rows), None, "nobody knows");
        rows.apart.insert("d".into());
        assert_eq!(live.seconds_left(&rows), Some(3.0), "what the run is not about takes no time");
    }
}
