//! What runs do by themselves: promotions, alerts, schedules, retention, lineage events.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use episteme_tests::{Scratch, finish};
use serde_json::Value;

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A stage whose metric is what a file says.
fn scored(rules: &str) -> String {
    format!(
        "name = 'scored'\n{rules}\n[stages.score]\nuses = 'command'\nrun = 'cat score > ${{output}}/score; echo \"{{\\\"test.accuracy\\\": $(cat score)}}\" > ${{output}}/metrics.json'\nfiles = ['score']\nmetrics = 'metrics.json'\n"
    )
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A server that answers each request with the next of these codes, the last one for ever, and tells head and body.
fn server(codes: &'static [u16]) -> (String, Receiver<(String, String)>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let (said, hears) = channel();
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let (mut reader, mut head, mut length) = (BufReader::new(stream.try_clone().expect("a socket")), String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or_default() <= 2 {
                    break;
                }
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a number");
                }
                head.push_str(&line);
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("the whole body");
            let _ = said.send((head, String::from_utf8(body).expect("UTF-8")));
            let code = codes.get(index).or(codes.last()).expect("a code");
            let _ = write!(&stream, "HTTP/1.1 {code} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    (address, hears)
}

#[test]
fn a_promotion_moves_its_tag_to_what_is_better_only() {
    let scratch = Scratch::new();
    scratch.write("p.toml", scored("promote = { tag = 'score:best', if = 'test.accuracy > current' }"));
    let promoted = |score: &str| {
        scratch.write("score", score);
        let said = scratch.episteme(&["run", "p.toml", "--json"]).ok();
        let event = said.stdout.lines().map(json).find(|event| event["type"] == "promotion").expect("it is told");
        assert_eq!(said.finished()["ok"], true, "the last line stays the sum");
        (event["promoted"].as_bool().expect("a word"), event["reason"].as_str().expect("a reason").to_owned())
    };
    assert!(promoted("0.9").0, "nothing was current");
    assert_eq!(promoted("0.8"), (false, "test.accuracy 0.8 is not > current 0.9".to_owned()));
    assert_eq!(promoted("0.95"), (true, "test.accuracy 0.95 is > current 0.9".to_owned()));
    let tag = json(&scratch.episteme(&["tag", "score:best", "--json"]).ok().stdout);
    assert_eq!(tag["record"]["metrics"]["test.accuracy"], 0.95);

    scratch.write("score", "0.1");
    scratch.episteme(&["run", "p.toml"]).ok();
    scratch.episteme(&["gc", "--keep", "1"]).ok();
    assert_eq!(json(&scratch.episteme(&["log", "--json"]).ok().stdout)["runs"].as_array().map(Vec::len), Some(1));
    scratch.episteme(&["show", "score:best"]).ok();
    assert_eq!(scratch.objects().len(), 2, "the last run's and the tagged one");
    scratch.episteme(&["gc", "--older-than", "30x"]).fails(2, &["30d"]);
}

#[test]
fn mistakes_in_rules_are_told_with_the_others() {
    let scratch = Scratch::new();
    let rules = "promote = { tag = 'best', if = 'test.accuracy' }\nalerts = [{ on = ['failure'] }, { onn = ['failure'], command = 'true' }, { if = 'a < current', command = 'true' }]";
    scratch.write("p.toml", scored(rules));
    let told = ["compares nothing", "an alert says how", "`alerts` has no key `onn`", "did you mean `on`?", "`current` is for promotions"];
    scratch.episteme(&["check", "p.toml"]).fails(2, &told);
}

#[test]
fn failure_recovery_and_a_crossed_bound_are_told_once_each() {
    let scratch = Scratch::new();
    let alert = "[[alerts]]\non = ['failure', 'recovery']\nif = 'test.accuracy < 0.5'\ncommand = 'cat >> alerts; echo >> alerts'\n";
    scratch.write("p.toml", format!("{}{alert}", scored("")));
    let run = |score: &str| {
        scratch.write("score", score);
        scratch.episteme(&["run", "p.toml", "--quiet"]).code
    };
    assert_eq!(["0.9", "0.4", "0.3", "0.8", "oops", "0.9"].map(run), [0, 0, 0, 0, 1, 0]);
    let told = fs::read_to_string(scratch.path().join("alerts")).expect("alerts came");
    let events: Vec<Value> = told.lines().filter(|line| !line.is_empty()).map(json).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().expect("a kind")).collect();
    assert_eq!(kinds, ["metric", "recovery", "failure", "recovery"], "{told}");
    assert_eq!(events[2]["failed"][0]["stage"], "score", "{told}");
}

#[test]
fn a_webhook_is_signed_and_tried_again_and_its_secret_is_nowhere() {
    let scratch = Scratch::new();
    let (address, hears) = server(&[503, 200]);
    let alert = format!("[[alerts]]\non = ['failure']\nwebhook = '{address}/hook'\nsecret = {{ env = 'HOOK_KEY' }}\n");
    scratch.write("p.toml", format!("{}{alert}", scored("")));
    scratch.write("score", "oops");
    scratch.episteme(&["run", "p.toml"]).fails(2, &["HOOK_KEY", "secret"]);
    let mut command = scratch.command(&["run", "p.toml", "--json"]);
    command.env("HOOK_KEY", "Jefe-the-secret");
    let said = finish(command);
    assert_eq!(said.code, 1, "{}", said.stderr);
    let (first, second) = (hears.recv_timeout(PATIENCE).expect("a try"), hears.recv_timeout(PATIENCE).expect("another"));
    assert_eq!(first.1, second.1, "the same is sent again");
    let signature = second.0.lines().find_map(|line| line.to_lowercase().strip_prefix("x-episteme-signature: sha256=").map(str::to_owned));
    assert_eq!(signature.expect("it is signed").trim().len(), 64);
    assert_eq!(json(&second.1)["event"], "failure");
    let grep = Command::new("grep").args(["-r", "Jefe-the-secret"]).arg(scratch.path()).output().expect("grep runs");
    assert!(grep.stdout.is_empty() && !said.stdout.contains("Jefe-the-secret") && !said.stderr.contains("Jefe-the-secret"));
}

#[test]
fn lineage_events_say_start_and_end_of_the_run_and_of_each_stage() {
    let scratch = Scratch::new();
    scratch.write(
        "two.toml",
        "[stages.raw]\nuses = 'collect.synthetic'\ntrain = 60\ntest = 20\n[stages.images]\nuses = 'store.idx'\ninput = 'raw'\n",
    );
    scratch.episteme(&["run", "two.toml", "--openlineage", "events.jsonl"]).ok();
    let events: Vec<Value> = fs::read_to_string(scratch.path().join("events.jsonl")).expect("a file").lines().map(json).collect();
    let told: Vec<String> = events
        .iter()
        .map(|event| format!("{} {}", event["eventType"].as_str().unwrap_or("?"), event["job"]["name"].as_str().unwrap_or("?")))
        .collect();
    assert_eq!(told, ["START two", "START two.raw", "COMPLETE two.raw", "START two.images", "COMPLETE two.images", "COMPLETE two"]);
    for event in &events {
        for key in ["eventTime", "producer", "schemaURL"] {
            assert!(event[key].is_string(), "{key}: {event:#}");
        }
        assert_eq!(event["run"]["runId"].as_str().map(str::len), Some(36));
    }
    assert_eq!(events[1]["run"]["runId"], events[2]["run"]["runId"]);
    assert_eq!(events[1]["run"]["facets"]["parent"]["run"]["runId"], events[0]["run"]["runId"]);
    assert_eq!(events[4]["inputs"][0]["name"], events[2]["outputs"][0]["name"], "a stage takes what the other gave");
    assert!(events[2]["outputs"][0]["facets"]["version"]["datasetVersion"].as_str().is_some_and(|digest| digest.len() == 64));

    let (address, hears) = server(&[201]);
    scratch.write("score", "oops");
    scratch.write("p.toml", scored(""));
    let mut command = scratch.command(&["run", "p.toml", "--openlineage", &address]);
    command.env("EPISTEME_OPENLINEAGE_KEY", "token-of-mine");
    assert_eq!(finish(command).code, 1);
    let posted: Vec<(String, String)> = (0..4).map(|_| hears.recv_timeout(PATIENCE).expect("an event")).collect();
    assert!(posted.iter().all(|(head, _)| head.to_lowercase().contains("authorization: bearer token-of-mine")));
    let kinds: Vec<Value> = posted.iter().map(|(_, body)| json(body)["eventType"].clone()).collect();
    assert_eq!(kinds, ["START", "START", "FAIL", "FAIL"]);
}

// --- schedules ---------------------------------------------------------------------------------------------------------

/// A `crontab` that keeps its table in a file, and a `systemctl` that notes what it was told.
fn programs(scratch: &Scratch) -> PathBuf {
    let crontab = "#!/bin/sh\ncd \"$FAKE\"\ncase $1 in -l) [ -f table ] || { echo 'no crontab for me' >&2; exit 1; }; cat table;; -) cat > table;; esac\n";
    let systemctl = "#!/bin/sh\necho \"$@\" >> \"$FAKE/systemctl\"\n";
    for (name, text) in [("crontab", crontab), ("systemctl", systemctl)] {
        let path = scratch.write(&format!("bin/{name}"), text);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    scratch.path().join("bin")
}

fn scheduled(scratch: &Scratch, args: &[&str]) -> episteme_tests::Said {
    let bin = programs(scratch);
    let mut command = scratch.command(args);
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{}:{path}", bin.display()))
        .env("FAKE", scratch.path())
        .env("XDG_CONFIG_HOME", scratch.path().join("config"));
    finish(command)
}

#[test]
fn pipelines_are_put_into_the_crontab_and_taken_out_and_all_else_stays() {
    let scratch = Scratch::new();
    let others = "MAILTO=me\n0 1 * * * backup\n";
    scratch.write("table", others);
    scratch.write("p.toml", scored("schedule = '15 2 * * *'"));
    for _ in 0..2 {
        scheduled(&scratch, &["schedule", "install", "p.toml"]).ok();
    }
    let table = fs::read_to_string(scratch.path().join("table")).expect("a table");
    assert!(table.starts_with(others) && table.matches("15 2 * * * ").count() == 1, "{table}");
    assert!(scheduled(&scratch, &["schedule", "list"]).ok().stdout.contains("scored  15 2 * * *"));
    let waits = |text: String| text.split("15 2 * * * sleep ").nth(1)?.split(';').next()?.parse::<u64>().ok();
    let drawn = [(); 2].map(|()| waits(scheduled(&scratch, &["schedule", "print", "p.toml", "--jitter", "1h"]).ok().stdout));
    assert!(drawn[0].is_some_and(|seconds| (1..=3600).contains(&seconds)) && drawn[0] == drawn[1], "{drawn:?}");
    scheduled(&scratch, &["schedule", "remove", "scorde"]).fails(2, &["did you mean `scored`?"]);
    scheduled(&scratch, &["schedule", "remove", "scored"]).ok();
    assert_eq!(fs::read_to_string(scratch.path().join("table")).expect("a table"), others);
    scratch.write("q.toml", scored(""));
    scheduled(&scratch, &["schedule", "install", "q.toml"]).fails(2, &["no `schedule`"]);
}

#[test]
fn systemd_gets_a_service_and_a_timer_and_loses_them_again() {
    let scratch = Scratch::new();
    scratch.write("p.toml", scored("schedule = '*/30 9 * * mon-fri'"));
    scheduled(&scratch, &["schedule", "install", "--systemd", "--jitter", "2m", "p.toml"]).ok();
    let units = scratch.path().join("config/systemd/user");
    let texts: Vec<String> =
        fs::read_dir(&units).expect("units").flatten().map(|entry| fs::read_to_string(entry.path()).expect("a unit")).collect();
    assert_eq!(texts.len(), 2);
    assert!(
        texts.iter().any(|text| text.contains("OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 09:00,30:00\nRandomizedDelaySec=120\n")),
        "{texts:?}"
    );
    assert!(texts.iter().any(|text| text.contains("ExecStart=\"") && text.contains("\"--on-busy\" \"skip\"")), "{texts:?}");
    let listed = json(&scheduled(&scratch, &["schedule", "list", "--json"]).ok().stdout);
    assert_eq!(listed["pipelines"][0]["pipeline"], "scored");
    scheduled(&scratch, &["schedule", "remove", "p.toml"]).ok();
    assert_eq!(fs::read_dir(&units).expect("a folder").count(), 0);
    let told = fs::read_to_string(scratch.path().join("systemctl")).expect("it was called");
    assert!(told.contains("--user enable --now episteme-scored-") && told.contains("--user disable --now episteme-scored-"), "{told}");
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
    scratch.write("score", "0.9");
    scratch.write("p.toml", scored("schedule = '0 0 * * *'"));
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
