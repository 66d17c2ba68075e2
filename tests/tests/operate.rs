//! What runs do by themselves: promotions, alerts, retention, lineage events.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

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
