//! Scheduled runs: locks, quiet output, crontab lines.

use std::time::{Duration, Instant};

use episteme_tests::{SMALL, Scratch};

fn long() -> String {
    SMALL.replace("epochs = 2", "epochs = 400").replace("seed = 3", "seed = 3\nschedule = \"15 2 * * *\"")
}

/// A run that holds the pipeline's lock.
fn holder(scratch: &Scratch) -> std::process::Child {
    scratch.write("small.toml", long());
    let child = scratch.start(&["run", "small.toml"]);
    let clock = Instant::now();
    while std::fs::read_dir(scratch.store().join("staging")).is_ok_and(|dir| dir.count() == 0) || !scratch.store().join("staging").exists()
    {
        assert!(clock.elapsed() < Duration::from_secs(20), "the first run never began");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn a_second_run_fails_with_3_skips_or_waits_as_it_is_told() {
    let scratch = Scratch::new();
    let mut first = holder(&scratch);
    scratch.episteme(&["run", "small.toml", "--on-busy", "fail"]).fails(3, &["small", "another run"]);
    let skipped = scratch.episteme(&["run", "small.toml", "--on-busy", "skip"]);
    assert_eq!(skipped.code, 0, "{}", skipped.stderr);
    let mut waiting = scratch.start(&["run", "small.toml", "--on-busy", "wait", "--set", "stages.model.epochs=1"]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(waiting.try_wait().expect("it can be asked").is_none(), "it waits");
    first.kill().expect("it can be killed");
    first.wait().expect("it ends");
    assert!(waiting.wait().expect("it ends").success(), "the lock of a dead run is free");
}

#[test]
fn without_a_terminal_there_are_plain_lines_and_no_escape_codes() {
    let scratch = Scratch::new();
    scratch.write("small.toml", SMALL);
    let mut command = scratch.command(&["run", "small.toml"]);
    command.env_remove("NO_COLOR");
    let said = episteme_tests::finish(command).ok();
    for text in [&said.stdout, &said.stderr] {
        assert!(!text.contains('\x1b') && !text.contains('\r'), "{text}");
    }
}

#[test]
fn schedule_print_gives_a_crontab_line_that_can_be_installed() {
    let scratch = Scratch::new();
    scratch.write("small.toml", long());
    let said = scratch.episteme(&["schedule", "print", "small.toml"]).ok();
    let line = said.stdout.lines().find(|line| !line.starts_with('#') && !line.is_empty()).expect("a line");
    assert!(line.starts_with("15 2 * * * "), "{line}");
    let file = scratch.path().canonicalize().expect("it is there").join("small.toml");
    assert!(line.contains(&*file.to_string_lossy()), "{line}");
}
