//! Scheduled runs: locks, quiet output, crontab lines, systemd's timers, the scheduler in the foreground.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use episteme_tests::{SMALL, Said, Scratch, finish};
use serde_json::Value;

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

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

// --- in crontab and systemd ------------------------------------------------------------------------------------------------

fn nightly(schedule: &str) -> String {
    format!(
        "name = 'scored'\nschedule = '{schedule}'\n[params]\nscore = '0.1'\n[stages.score]\nuses = 'command'\nenv = {{ SCORE = '${{params.score}}' }}\n\
         run = 'echo $SCORE > ${{output}}/score.txt'\noutputs = {{ score = 'score.txt' }}\n"
    )
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn pipelines_are_put_into_the_crontab_and_taken_out_and_all_else_stays() {
    let scratch = Scratch::new();
    let others = "MAILTO=me\n0 1 * * * backup\n";
    scratch.write("table", others);
    scratch.write("p.toml", nightly("15 2 * * *"));
    for _ in 0..2 {
        scratch.with_cron(&["schedule", "install", "p.toml"]).ok();
    }
    let table = scratch.crontab();
    assert!(table.starts_with(others) && table.matches("15 2 * * * ").count() == 1, "{table}");
    assert!(scratch.with_cron(&["schedule", "list"]).ok().stdout.contains("scored  15 2 * * *"));
    let waits = |text: String| text.split("15 2 * * * sleep ").nth(1)?.split(';').next()?.parse::<u64>().ok();
    let drawn = [(); 2].map(|()| waits(scratch.with_cron(&["schedule", "print", "p.toml", "--jitter", "1h"]).ok().stdout));
    assert!(drawn[0].is_some_and(|seconds| (1..=3600).contains(&seconds)) && drawn[0] == drawn[1], "{drawn:?}");
    scratch.with_cron(&["schedule", "remove", "scorde"]).fails(2, &["did you mean `scored`?"]);
    scratch.with_cron(&["schedule", "remove", "scored"]).ok();
    assert_eq!(scratch.crontab(), others);
    scratch.write("q.toml", nightly("").replace("schedule = ''", ""));
    scratch.with_cron(&["schedule", "install", "q.toml"]).fails(2, &["no `schedule`"]);
}

#[test]
fn systemd_gets_a_service_and_a_timer_and_loses_them_again() {
    let scratch = Scratch::new();
    scratch.write("p.toml", nightly("*/30 9 * * mon-fri"));
    scratch.with_cron(&["schedule", "install", "--systemd", "--jitter", "2m", "p.toml"]).ok();
    let printed = scratch.with_cron(&["schedule", "print", "--systemd", "--jitter", "2m", "p.toml"]).ok().stdout;
    let units = scratch.path().join("config/systemd/user");
    let texts: Vec<String> =
        fs::read_dir(&units).expect("units").flatten().map(|entry| fs::read_to_string(entry.path()).expect("a unit")).collect();
    assert_eq!(texts.len(), 2);
    assert!(texts.iter().all(|text| printed.contains(text)), "{printed}");
    assert!(
        texts.iter().any(|text| text.contains("OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 09:00,30:00\nRandomizedDelaySec=120\n")),
        "{texts:?}"
    );
    assert!(texts.iter().any(|text| text.contains("ExecStart=\"") && text.contains("\"--on-busy\" \"skip\"")), "{texts:?}");
    let listed = json(&scratch.with_cron(&["schedule", "list", "--json"]).ok().stdout);
    assert_eq!(listed["pipelines"][0]["pipeline"], "scored");
    scratch.with_cron(&["schedule", "remove", "p.toml"]).ok();
    assert_eq!(fs::read_dir(&units).expect("a folder").count(), 0);
    let told = fs::read_to_string(scratch.path().join("systemctl")).expect("it was called");
    assert!(told.contains("--user enable --now episteme-scored-") && told.contains("--user disable --now episteme-scored-"), "{told}");
}

#[test]
fn a_timer_that_cannot_be_started_is_not_installed() {
    let scratch = Scratch::new();
    scratch.write("p.toml", nightly("15 2 * * *"));
    scratch.write("no-systemd", "");
    scratch.with_cron(&["schedule", "install", "--systemd", "p.toml"]).fails(1, &["no bus", "enable-linger"]);
    let listed = scratch.with_cron(&["schedule", "list"]).ok();
    assert!(listed.stdout.is_empty() && listed.stderr.contains("nothing is scheduled"), "{listed:?}");
}

/// Starts the scheduler, waits until `done` or the patience ends, and ends it with SIGTERM; what it said.
fn until(scratch: &Scratch, args: &[&str], done: impl Fn() -> bool) -> (Option<i32>, String) {
    let mut command = scratch.command(&[&["schedule", "run", "p.toml"], args].concat());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("it starts");
    let clock = Instant::now();
    while !done() && clock.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(Command::new("kill").arg(child.id().to_string()).status().expect("kill runs").success());
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    (child.wait().expect("it ends").code(), said)
}

#[test]
fn the_foreground_scheduler_catches_up_once_when_told_to_and_ends_cleanly() {
    let scratch = Scratch::new();
    scratch.write("p.toml", nightly("0 0 * * *"));
    let note = || fs::read_dir(scratch.store().join("schedule")).into_iter().flatten().flatten().map(|entry| entry.path()).next();
    let (code, said) = until(&scratch, &[], || scratch.store().join("schedule").is_dir());
    assert_eq!(code, Some(130), "{said}");
    // As if it had last looked a week ago: seven nights were missed.
    let file = scratch.path().join("p.toml").canonicalize().expect("it is there");
    let digest = artifact::Digest::of(file.as_os_str().as_encoded_bytes()).short();
    let long_ago = "2026-01-01T00:00:00Z";
    let last = scratch.write(&format!("store/schedule/scored-{digest}"), long_ago);
    let runs = || {
        fs::read_dir(scratch.store().join("runs"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join("run.json").is_file())
            .count()
    };
    let noted = || fs::read_to_string(&last).is_ok_and(|text| text != long_ago);
    let (_, said) = until(&scratch, &[], noted);
    assert!(said.contains("missed, and not caught up") && runs() == 0, "{said}");
    fs::write(&last, long_ago).expect("it can be written");
    let (code, said) = until(&scratch, &["--catch-up", "once"], || runs() > 0);
    assert!(said.contains("catches up") && runs() == 1 && code == Some(130), "{said}");
    assert!(note().is_some());
}

/// What was installed, started as cron and systemd start it: from another folder, with hardly a variable.
fn start_as_cron_does(script: &str) -> Said {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    finish(command)
}

#[test]
fn what_the_command_line_gave_holds_for_installed_runs() {
    let scratch = Scratch::new();
    let with_unit = nightly("15 2 * * *").replace("[params]", "[params]\nunit = 'points'").replace("$SCORE", "$SCORE ${params.unit}");
    scratch.write("p.toml", with_unit);
    scratch.write("my params.toml", "score = '0.7'\n");
    let given = "--set params.unit=100%-points --openlineage events.jsonl --mirror mirror --jobs 1 --cores 2 --memory 1.5GB --keep-going \
                 --export out p.toml --params";
    let given: Vec<&str> = given.split(' ').chain(["my params.toml"]).collect();
    let came_of_it = || {
        let read = |name: &str| fs::read_to_string(scratch.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read("out/score.txt"), "0.7 100%-points\n");
        assert!(read("events.jsonl").contains("COMPLETE"));
        fs::remove_dir_all(scratch.path().join("out")).expect("it was made");
    };
    scratch.with_cron(&[&["schedule", "install"], &given[..]].concat()).ok();
    let table = scratch.crontab();
    let line = table.lines().find_map(|line| line.strip_prefix("15 2 * * * ")).expect("a line").replace("\\%", "%");
    let mirror = format!("--mirror {}", scratch.path().join("mirror").display());
    for option in [&mirror, "--jobs 1", "--cores 2", "--memory 1500000000B", "--keep-going"] {
        assert!(line.contains(option), "{option} is not in: {line}");
    }
    start_as_cron_does(&line).ok();
    came_of_it();
    scratch.with_cron(&[&["schedule", "install", "--systemd"], &given[..]].concat()).ok();
    let units = fs::read_dir(scratch.path().join("config/systemd/user")).expect("units").flatten();
    let texts: Vec<String> = units.map(|unit| fs::read_to_string(unit.path()).expect("a unit")).collect();
    let line = texts.iter().find_map(|text| text.lines().find_map(|line| line.strip_prefix("ExecStart="))).expect("a command");
    start_as_cron_does(&line.replace("%%", "%")).ok();
    came_of_it();
}

#[test]
fn a_value_that_no_line_of_a_crontab_can_hold_is_refused() {
    let scratch = Scratch::new();
    scratch.write("p.toml", nightly("15 2 * * *"));
    let install = ["schedule", "install", "p.toml", "--set", "stages.score.run='''a\nb'''"];
    scratch.with_cron(&install).fails(2, &["line break", "--params"]);
    assert_eq!(scratch.crontab(), "");
}
