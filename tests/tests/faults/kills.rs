//! kill -9 at any instant: of the orchestrator, of a stage, of both at once, of everything at once, of `gc`.

use std::collections::BTreeMap;
use std::fmt;
use std::process::Child;
use std::time::Duration;

use episteme_tests::Scratch;

use crate::chance::Chance;
use crate::pipeline::{Pipelines, STAGES, Undisturbed, done, nothing_left, quietly, remembered, said, sound};
use crate::processes::{Stage, end_of, kill, nothing_works_on, stages_of};
use crate::{must, seed, setting};

/// How long what must end may take to do so, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a stage, and what it started, may outlive its orchestrator.
const OUTLIVES: Duration = Duration::from_secs(10);

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Orchestrator,
    Stage,
    Both,
    Everything,
    Gc,
}

const OF_A_RUN: [Victim; 4] = [Victim::Orchestrator, Victim::Stage, Victim::Both, Victim::Everything];

/// What was killed, and how often.
#[derive(Default)]
struct Tally {
    /// Kills of something that was alive.
    victims: BTreeMap<Victim, u64>,
    /// Stages that were at work in that instant, whoever was killed.
    stages: BTreeMap<String, u64>,
    /// Runs that came to their end.
    completed: u64,
    /// Kills that came too late.
    late: u64,
}

impl Tally {
    fn kills(&self) -> u64 {
        self.victims.values().sum()
    }

    fn count(&mut self, victim: Victim, at_work: &[Stage]) {
        *self.victims.entry(victim).or_default() += 1;
        at_work.iter().for_each(|stage| *self.stages.entry(stage.name.clone()).or_default() += 1);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} kills, {} came too late, {} runs completed", self.kills(), self.late, self.completed)?;
        self.victims.iter().try_for_each(|(victim, count)| writeln!(f, "  {:<14} {count:>5}", format!("{victim:?}").to_lowercase()))?;
        writeln!(f, "stages at work when something was killed")?;
        self.stages.iter().try_for_each(|(name, count)| writeln!(f, "  {name:<14} {count:>5}"))
    }
}

#[test]
fn whatever_is_killed_at_whatever_instant_nothing_is_lost_and_the_same_bytes_come_out() {
    let kills = setting("EPISTEME_FAULT_KILLS", 24);
    let mut chance = Chance::new(seed(), 1);
    let pipelines = Pipelines::new();
    let undisturbed = pipelines.undisturbed();
    let mut tally = Tally::default();
    while tally.kills() < kills {
        let scratch = pipelines.scratch();
        let kept = round(&scratch, &undisturbed, kills, &mut chance, &mut tally);
        must(kept, scratch, &format!("after {} kills", tally.kills()));
    }
    println!("seed {}: {tally}", seed());
    if kills >= 200 {
        assert_eq!((tally.stages.len(), tally.victims.len()), (STAGES, OF_A_RUN.len() + 1), "not everything was hit");
    }
}

/// Kills runs on a new store until one comes to its end.
fn round(scratch: &Scratch, undisturbed: &Undisturbed, kills: u64, chance: &mut Chance, tally: &mut Tally) -> Result<(), String> {
    while tally.kills() < kills {
        let before = remembered(scratch);
        if killed_or_done(scratch, undisturbed, chance, tally)? {
            break;
        }
        nothing_works_on(&scratch.store(), OUTLIVES)?;
        sound(scratch)?;
        match chance.below(12) {
            0 => collect(scratch)?,
            1 => kill_gc(scratch, chance, tally)?,
            _ => {}
        }
        let after = scratch.objects();
        let lost: Vec<&String> = before.iter().filter(|artifact| !after.contains(artifact)).collect();
        if !lost.is_empty() {
            return Err(format!("the cache knew these, and they are gone: {lost:?}"));
        }
    }
    tally.completed += 1;
    undisturbed.is_what_comes_of(scratch)
}

/// One run, and one kill somewhere on its way. True when the run was over before.
fn killed_or_done(scratch: &Scratch, undisturbed: &Undisturbed, chance: &mut Chance, tally: &mut Tally) -> Result<bool, String> {
    // What is left to do becomes less with each run: at most half of the whole time, so that a kill is seldom too late.
    let delay = undisturbed.took.mul_f64(0.5 * chance.share());
    let jobs = (1 + chance.below(3)).to_string();
    let mut run = quietly(scratch, &["run", "all.toml", "--json", "--jobs", &jobs], "run").spawn().expect("it starts");
    let mut came_to_its_end = |code: i32| {
        tally.late += 1;
        let said = done(said(scratch, "run", code), "a run that nobody killed")?;
        undisturbed.is_what_it_says(&said).map(|()| true)
    };
    if let Some(status) = end_of(&mut run, delay) {
        return came_to_its_end(status.code().unwrap_or(-1));
    }
    let wanted = *chance.one_of(&OF_A_RUN).expect("there are some");
    let (victim, stages) = strike(&run, wanted, chance);
    let Some(status) = end_of(&mut run, PATIENCE) else {
        kill(run.id() as i32);
        return Err(format!("it hung after {victim:?} was killed"));
    };
    let said = said(scratch, "run", status.code().unwrap_or(-1));
    if victim != Victim::Stage && said.code == 0 {
        // It was over in the very instant.
        return came_to_its_end(0);
    }
    tally.count(victim, &stages);
    match (victim, said.code) {
        // Killed itself; or it told of a stage's end, or the stage had done its work already.
        (Victim::Orchestrator | Victim::Both | Victim::Everything, -1) | (Victim::Stage, 0 | 1) => {}
        (victim, code) => return Err(format!("it ended with {code} after {victim:?} was killed\n{}", said.stderr)),
    }
    if said.stderr.contains("panicked") { Err(said.stderr) } else { Ok(false) }
}

/// Kills the wanted one; where no stage is at work, the orchestrator. Who it was, and which stages were at work.
fn strike(run: &Child, wanted: Victim, chance: &mut Chance) -> (Victim, Vec<Stage>) {
    let (orchestrator, stages) = (run.id() as i32, stages_of(run.id()));
    let Some(stage) = chance.one_of(&stages) else {
        kill(orchestrator);
        return (Victim::Orchestrator, stages);
    };
    let mut pids = match wanted {
        Victim::Stage => vec![stage.pid],
        Victim::Both => vec![orchestrator, stage.pid],
        Victim::Everything => stages.iter().map(|stage| stage.pid).chain([orchestrator]).collect(),
        Victim::Orchestrator | Victim::Gc => vec![orchestrator],
    };
    if chance.below(2) == 0 {
        pids.reverse();
    }
    pids.into_iter().for_each(kill);
    (wanted, stages)
}

fn collect(scratch: &Scratch) -> Result<(), String> {
    done(scratch.episteme(&["gc"]), "gc")?;
    nothing_left(scratch)
}

/// Kills `gc` while it removes what killed runs have left.
fn kill_gc(scratch: &Scratch, chance: &mut Chance, tally: &mut Tally) -> Result<(), String> {
    let mut gc = quietly(scratch, &["gc"], "gc").spawn().expect("it starts");
    if end_of(&mut gc, Duration::from_micros(chance.below(8_000))).is_none() {
        kill(gc.id() as i32);
        gc.wait().expect("it ends");
        tally.count(Victim::Gc, &[]);
    }
    sound(scratch)
}
