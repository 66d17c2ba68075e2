//! kill -9 at any stage, then run again: the same bytes as an undisturbed run, and nothing left behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use episteme_tests::{SMALL, Scratch};
use serde_json::Value;

/// Starts a run and waits until `stage` has begun; none when it was over before it could be killed last time.
fn start_until(scratch: &Scratch, stage: &str) -> Option<Child> {
    let mut child =
        scratch.command(&["run", "small.toml", "--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("episteme starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    for line in lines.map_while(Result::ok) {
        let event: Value = serde_json::from_str(&line).expect("a JSON line");
        if event["type"] == "stage_started" && event["stage"] == stage {
            return Some(child);
        }
    }
    child.wait().expect("it ends");
    None
}

/// Pids of the processes below `parent`, from /proc.
fn children(parent: u32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn kill(pid: i32) {
    std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs");
}

#[test]
fn a_run_killed_during_each_stage_completes_later_with_the_same_bytes() {
    let undisturbed = Scratch::new();
    undisturbed.write("small.toml", SMALL);
    let expected = undisturbed.episteme(&["run", "small.toml", "--json"]).ok().stages();

    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL);
    let mut killed = 0;
    for (index, stage) in ["raw", "images", "clean", "model", "predictions", "report"].into_iter().enumerate() {
        let Some(mut child) = start_until(&scratch, stage) else { continue };
        killed += 1;
        // The orchestrator, its stage, or both: in turn.
        let stages = children(child.id());
        if index % 3 != 0 {
            stages.into_iter().for_each(kill);
        }
        if index % 3 != 1 {
            kill(child.id() as i32);
        }
        child.wait().expect("it ends");
        wait_until_no_child_writes(&scratch);
    }
    assert!(killed >= 5, "only {killed} of 6 stages could be killed");
    let finished = scratch.episteme(&["run", "small.toml", "--json"]).ok();
    let artifacts = |stages: &std::collections::BTreeMap<String, (String, String)>| -> Vec<(String, String)> {
        stages.iter().map(|(name, (_, digest))| (name.clone(), digest.clone())).collect()
    };
    assert_eq!(artifacts(&finished.stages()), artifacts(&expected));
    scratch.episteme(&["gc"]).ok();
    assert_eq!(scratch.leftovers(), Vec::<std::path::PathBuf>::new());
    assert_eq!(scratch.objects(), undisturbed.objects());
}

/// A stage dies with its orchestrator, but not in the same instant.
fn wait_until_no_child_writes(scratch: &Scratch) {
    let store = scratch.store().to_string_lossy().into_owned();
    let clock = Instant::now();
    while clock.elapsed() < Duration::from_secs(10) {
        let still = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .any(|process| fs::read(process.path().join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&store)));
        if !still {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("a stage outlived its orchestrator");
}

/// Waits until the training has replaced its checkpoint this often, each time by a new file.
fn wait_for_checkpoints(scratch: &Scratch, count: usize, child: &mut Child) {
    let current = || {
        let keys = fs::read_dir(scratch.store().join("scratch")).into_iter().flatten().flatten();
        keys.filter_map(|key| fs::metadata(key.path().join("checkpoint")).ok()).map(|file| (file.ino(), file.mtime_nsec())).next()
    };
    let (mut last, mut replaced) = (current(), 0);
    while replaced < count && child.try_wait().expect("it is ours").is_none() {
        std::thread::sleep(Duration::from_millis(1));
        let now = current();
        replaced += usize::from(now.is_some() && now != last);
        last = now;
    }
}

#[test]
fn a_training_that_is_killed_again_and_again_ends_with_the_same_bytes() {
    let small = SMALL.replace("epochs = 2", "epochs = 4\nbatch = 16\naverage = 0.9\naugment = { flip = \"random\", crop = 2, cutout = 4 }");
    let sizes = "progressive = [{ epochs = 2, size = [18, 18] }]";
    let layers = format!("\"globalmaxpool\", \"dropout 0.2\", \"dense 10\"]\ncheckpoint = {{ steps = 1 }}\n{sizes}");
    let small = small.replace("\"dense 10\"]", &layers);
    let undisturbed = Scratch::new();
    undisturbed.write("small.toml", &small);
    let expected = undisturbed.episteme(&["run", "small.toml", "--json"]).ok().stages();

    let scratch = Scratch::new();
    scratch.write("small.toml", &small);
    let mut killed = 0;
    for checkpoints in [1, 20, 5] {
        let mut child = start_until(&scratch, "model").expect("the training is not over");
        wait_for_checkpoints(&scratch, checkpoints, &mut child);
        children(child.id()).into_iter().for_each(kill);
        kill(child.id() as i32);
        killed += usize::from(!child.wait().expect("it ends").success());
        wait_until_no_child_writes(&scratch);
    }
    assert_eq!(killed, 3, "a training was over before it was killed");
    let finished = scratch.episteme(&["run", "small.toml", "--json"]).ok();
    assert!(finished.stdout.contains("goes on from a checkpoint"), "the last training began anew");
    assert_eq!(finished.stages()["model"].1, expected["model"].1);
    assert_eq!(finished.stages()["predictions"].1, expected["predictions"].1);
    let in_scratch = |path: &std::path::PathBuf| path.starts_with(scratch.store().join("scratch"));
    assert!(!scratch.leftovers().iter().any(in_scratch), "the checkpoint goes with the training");
}

#[test]
fn ctrl_c_ends_with_130_and_leaves_nothing_half_made() {
    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL.replace("epochs = 2", "epochs = 2000"));
    let mut child = start_until(&scratch, "model").expect("the model takes long");
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    let clock = Instant::now();
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    assert!(clock.elapsed() < Duration::from_secs(12));
    assert!(scratch.leftovers().iter().all(|path| !path.starts_with(scratch.store().join("staging"))));
    let again = scratch.episteme(&["run", "small.toml", "--json", "--set", "stages.model.epochs=1"]).ok().stages();
    assert_eq!(again["clean"].0, "cached", "what was finished is kept");
}
