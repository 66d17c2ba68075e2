//! Fifty processes at once on one store: runs of pipelines that share stages, and every verb that looks or cleans.

use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

use episteme_tests::Scratch;

use crate::chance::Chance;
use crate::pipeline::{Pipelines, quietly, said, told};
use crate::processes::{kill, nothing_works_on, stages_of};
use crate::{must, seed, setting};

/// How many start at once.
const PROCESSES: usize = 50;
/// When all must have ended; more is a deadlock.
const PATIENCE: Duration = Duration::from_secs(180);

/// What is started, how often in fifty, and the exit codes that are documented for it.
const MIX: [(&[&str], usize, &[i32]); 16] = [
    (&["run", "all.toml"], 8, &[0]),
    (&["run", "digits.toml"], 6, &[0]),
    (&["run", "tables.toml"], 6, &[0]),
    (&["run", "all.toml", "--on-busy", "skip"], 3, &[0]),
    (&["run", "all.toml", "--on-busy", "fail"], 3, &[0, 3]),
    (&["run", "digits.toml", "--on-busy", "fail"], 2, &[0, 3]),
    (&["run", "tables.toml", "--force=rows"], 2, &[0]),
    (&["run", "all.toml", "--until", "tidy", "--jobs", "1"], 2, &[0]),
    (&["gc"], 4, &[0]),
    (&["gc", "--keep", "1"], 2, &[0]),
    (&["status", "all.toml"], 3, &[0]),
    (&["verify"], 3, &[0]),
    (&["plan", "all.toml"], 2, &[0]),
    (&["log"], 2, &[0]),
    (&["why", "model", "all.toml"], 1, &[0]),
    (&["schema"], 1, &[0]),
];

/// One of the crowd.
struct One {
    name: String,
    args: &'static [&'static str],
    codes: &'static [i32],
    child: Child,
    /// Since it was killed, any end will do.
    killed: bool,
}

#[test]
fn fifty_processes_at_once_on_one_store_neither_harm_nor_block_each_other() {
    let crowds = setting("EPISTEME_FAULT_CROWDS", 1);
    let mut chance = Chance::new(seed(), 2);
    let pipelines = Pipelines::new();
    let undisturbed = pipelines.undisturbed();
    let (mut ends, mut longest, mut killed) = (BTreeMap::new(), Duration::ZERO, 0);
    for crowd in 0..crowds {
        let scratch = pipelines.scratch();
        let clock = Instant::now();
        // Every other crowd loses some of its members on the way.
        let kills = if crowd % 2 == 1 { 10 } else { 0 };
        let result = all_end(start(&scratch, &mut chance), &scratch, kills, &mut chance, &mut ends, &mut killed);
        longest = longest.max(clock.elapsed());
        let result = result
            .and_then(|()| nothing_works_on(&scratch.store(), Duration::from_secs(10)))
            .and_then(|()| undisturbed.is_what_comes_of(&scratch));
        must(result, scratch, &format!("crowd {crowd}"));
    }
    println!("seed {}: {crowds} crowds of {PROCESSES} processes, {killed} of them killed; the slowest crowd took {longest:.1?}", seed());
    ends.iter().for_each(|((args, code), count)| println!("  {count:>5} × exit code {code:>3}  {args}"));
}

/// Starts them all, in any order.
fn start(scratch: &Scratch, chance: &mut Chance) -> Vec<One> {
    let mut all: Vec<_> = MIX.iter().flat_map(|(args, times, codes)| vec![(*args, *codes); *times]).collect();
    assert_eq!(all.len(), PROCESSES);
    (1..all.len()).rev().for_each(|last| all.swap(last, chance.below(last as u64 + 1) as usize));
    let one = |(index, (args, codes)): (usize, (&'static [&'static str], &'static [i32]))| {
        let name = format!("process{index}");
        let child = quietly(scratch, args, &name).spawn().expect("it starts");
        One { name, args, codes, child, killed: false }
    };
    all.into_iter().enumerate().map(one).collect()
}

/// Waits for the end of each, and kills so many on the way.
fn all_end(
    mut crowd: Vec<One>,
    scratch: &Scratch,
    kills: usize,
    chance: &mut Chance,
    ends: &mut BTreeMap<(String, i32), u64>,
    killed: &mut u64,
) -> Result<(), String> {
    let clock = Instant::now();
    let mut to_kill: Vec<Duration> = (0..kills).map(|_| Duration::from_millis(chance.below(500))).collect();
    while !crowd.is_empty() {
        let mut left = Vec::new();
        for mut one in crowd {
            match one.child.try_wait().expect("it is ours") {
                None => left.push(one),
                Some(status) => {
                    let code = status.code().unwrap_or(-1);
                    *ends.entry((one.args.join(" "), code)).or_default() += 1;
                    ended(&one, scratch, code)?;
                }
            }
        }
        crowd = left;
        let due = to_kill.iter().filter(|time| **time <= clock.elapsed()).count();
        to_kill.retain(|time| *time > clock.elapsed());
        *killed += (0..due).map(|_| u64::from(kill_one(&mut crowd, chance))).sum::<u64>();
        if clock.elapsed() > PATIENCE {
            crowd.iter().for_each(|one| kill(one.child.id() as i32));
            return Err(format!("a deadlock: {:?}", crowd.iter().map(|one| (&one.name, one.args)).collect::<Vec<_>>()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Kills one, or a stage of it. False when nobody is left.
fn kill_one(crowd: &mut [One], chance: &mut Chance) -> bool {
    let place = chance.below(crowd.len() as u64) as usize;
    let Some(one) = crowd.get_mut(place) else { return false };
    let stages = if chance.below(2) == 0 { stages_of(one.child.id()) } else { Vec::new() };
    kill(chance.one_of(&stages).map_or(one.child.id() as i32, |stage| stage.pid));
    one.killed = true;
    true
}

/// Its end must be one that is documented.
fn ended(one: &One, scratch: &Scratch, code: i32) -> Result<(), String> {
    let said = said(scratch, &one.name, code);
    let fits = one.codes.contains(&code) || (one.killed && [-1, 1].contains(&code));
    if fits && !said.stderr.contains("panicked") {
        return Ok(());
    }
    Err(format!("{} ({}) ended with {code}\n{}", one.args.join(" "), one.name, told(&said)))
}
