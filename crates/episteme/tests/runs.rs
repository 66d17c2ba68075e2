//! Runs through the built binary: what goes side by side, what a failure costs, who waits for whom.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything that must happen may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

const BODY: &str = "hello\n";
const SHA256: &str = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

/// A web server that answers nobody until it is told to: it holds stages at work for as long as a test needs.
struct Server {
    address: String,
    state: Arc<(Mutex<Requests>, Condvar)>,
}

#[derive(Default, Clone, Copy)]
struct Requests {
    open: bool,
    now: usize,
    most: usize,
    all: usize,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new((Mutex::new(Requests::default()), Condvar::new()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        Self { address, state }
    }

    fn stage(&self, name: &str) -> String {
        format!(
            "[stages.{name}]\nuses = 'collect.http'\nretries = 0\nfiles = [{{ url = '{}/{name}.bin', sha256 = '{SHA256}' }}]\n",
            self.address
        )
    }

    fn stages<const N: usize>(&self, names: [&str; N]) -> String {
        names.map(|name| self.stage(name)).concat()
    }

    fn requests(&self) -> Requests {
        *self.state.0.lock().unwrap()
    }

    fn open(&self) {
        self.state.0.lock().unwrap().open = true;
        self.state.1.notify_all();
    }

    #[track_caller]
    fn wait_for(&self, now: usize) {
        let clock = Instant::now();
        while self.requests().now < now {
            assert!(clock.elapsed() < PATIENCE, "{} of {now} requests came", self.requests().now);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn answer(mut stream: std::net::TcpStream, state: &(Mutex<Requests>, Condvar)) {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
        line.clear();
    }
    let (requests, changed) = state;
    let mut held = requests.lock().unwrap();
    held.now += 1;
    held.all += 1;
    held.most = held.most.max(held.now);
    let mut held = changed.wait_while(held, |requests| !requests.open).unwrap();
    held.now -= 1;
    drop(held);
    let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{BODY}", BODY.len());
}

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("store")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_episteme"));
        command.args(args).current_dir(self.0.path()).env("EPISTEME_STORE", "store").env_remove("EPISTEME_MIRROR");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    fn episteme(&self, args: &[&str]) -> Said {
        Said::from(self.command(args).output().unwrap())
    }

    fn in_folder(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.store().join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
}

#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Said {
    /// The last line of `--json`.
    #[track_caller]
    fn finished(&self) -> Value {
        let lines: Vec<Value> = self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = lines.last().unwrap_or_else(|| panic!("nothing was said: {}", self.stderr)).clone();
        assert_eq!(last["type"], "run_finished");
        last
    }

    /// Stage to status.
    #[track_caller]
    fn statuses(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        self.finished()["stages"].as_array().unwrap().iter().map(|stage| (text(&stage["name"]), text(&stage["status"]))).collect()
    }
}

fn end(child: Child) -> Said {
    Said::from(child.wait_with_output().unwrap())
}

fn statuses<const N: usize>(expected: [(&str, &str); N]) -> BTreeMap<String, String> {
    expected.into_iter().map(|(name, status)| (name.to_owned(), status.to_owned())).collect()
}

fn signal(pid: i64, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

fn children(child: &Child) -> Vec<i64> {
    let pid = child.id();
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    listed.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

// --- side by side ------------------------------------------------------------------------------------------------------

#[test]
fn stages_that_are_ready_run_side_by_side() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.write("p.toml", &server.stages(["a", "b", "c"]));
    let run = scratch.start(&["run", "p.toml", "--json", "--jobs", "3"]);
    server.wait_for(3);
    server.open();
    let said = end(run);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(said.statuses(), statuses([("a", "ran"), ("b", "ran"), ("c", "ran")]));
}

#[test]
fn no_more_stages_run_at_once_than_jobs() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.write("p.toml", &server.stages(["a", "b", "c"]));
    let run = scratch.start(&["run", "p.toml", "--json", "--jobs", "2"]);
    server.wait_for(2);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.requests().now, 2);
    server.open();
    assert_eq!(end(run).code, Some(0));
    assert_eq!((server.requests().most, server.requests().all), (2, 3));
}

#[test]
fn two_pipelines_that_share_a_stage_make_it_once() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.write("one.toml", &server.stage("data"));
    scratch.write("two.toml", &server.stage("data"));
    let one = scratch.start(&["run", "one.toml", "--json"]);
    server.wait_for(1);
    let mut two = scratch.start(&["run", "two.toml", "--json"]);
    let mut lines = BufReader::new(two.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("another run is making the very same")));
    server.open();
    let last: Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
    assert_eq!((two.wait().unwrap().code(), &last["stages"][0]["status"]), (Some(0), &Value::from("cached")));
    let one = end(one);
    assert_eq!((one.code, one.statuses()), (Some(0), statuses([("data", "ran")])), "{}", one.stderr);
    assert_eq!(server.requests().all, 1);
}

#[test]
fn who_waits_for_a_stage_of_a_run_that_is_killed_makes_it() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.write("one.toml", &server.stage("data"));
    scratch.write("two.toml", &server.stage("data"));
    let mut one = scratch.start(&["run", "one.toml"]);
    server.wait_for(1);
    let two = scratch.start(&["run", "two.toml", "--json"]);
    std::thread::sleep(Duration::from_millis(200));
    one.kill().unwrap();
    one.wait().unwrap();
    server.wait_for(2);
    server.open();
    let two = end(two);
    assert_eq!((two.code, two.statuses()), (Some(0), statuses([("data", "ran")])), "{}", two.stderr);
}

#[test]
fn two_stages_of_one_pipeline_that_are_the_same_run_once() {
    let (scratch, server) = (Scratch::new(), Server::start());
    server.open();
    scratch.write("p.toml", &format!("{}{}", server.stage("a"), server.stage("a").replace("[stages.a]", "[stages.b]")));
    let said = scratch.episteme(&["run", "p.toml", "--json", "--jobs", "4"]);
    assert_eq!(said.statuses(), statuses([("a", "ran"), ("b", "cached")]), "{}", said.stderr);
    assert!(!said.stdout.contains("another run"), "{}", said.stdout);
}

// --- failure -----------------------------------------------------------------------------------------------------------

#[test]
fn a_failure_skips_what_needs_it_and_lets_the_rest_finish() {
    let (scratch, server) = (Scratch::new(), Server::start());
    server.open();
    scratch.write("table.csv", "a,b\n1,2\n3\n");
    scratch.write(
        "p.toml",
        &format!(
            "[stages.raw]\nuses = 'collect.files'\npath = 'table.csv'\n[stages.rows]\nuses = 'store.csv'\ninput = 'raw'\n\
             [stages.clean]\nuses = 'process.table'\ninput = 'rows'\nlabel = 'b'\n{}",
            server.stage("other")
        ),
    );
    let said = scratch.episteme(&["run", "p.toml", "--json", "--keep-going"]);
    assert_eq!(said.code, Some(1));
    assert_eq!(said.statuses(), statuses([("raw", "ran"), ("rows", "failed"), ("clean", "skipped"), ("other", "ran")]));
    assert_eq!(said.finished()["ok"], false);
    assert!(scratch.in_folder("staging").is_empty());
    scratch.write("table.csv", "a,b\n1,2\n3,4\n");
    let again = scratch.episteme(&["run", "p.toml", "--json", "--set", "stages.clean.uses=nothing"]);
    assert_eq!((again.code, again.stdout.as_str()), (Some(2), ""), "a wrong pipeline runs nothing");
}

#[test]
fn a_stage_that_is_killed_is_said_to_have_been_and_where_its_log_is() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.write("p.toml", &server.stage("data"));
    let run = scratch.start(&["run", "p.toml"]);
    server.wait_for(1);
    children(&run).into_iter().for_each(|pid| signal(pid, "-9"));
    let said = end(run);
    assert_eq!(said.code, Some(1));
    for text in ["data", "signal 9", "memory ran out", "data.log", "run again"] {
        assert!(said.stderr.contains(text), "{text} is not in: {}", said.stderr);
    }
    assert!(scratch.in_folder("staging").is_empty());
    server.open();
    assert_eq!(scratch.episteme(&["run", "p.toml"]).code, Some(0));
}

#[test]
fn sigterm_ends_the_stages_and_then_the_run_with_130() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.write("p.toml", &["a", "b"].map(|name| server.stage(name)).concat());
    let run = scratch.start(&["run", "p.toml", "--json", "--jobs", "2"]);
    server.wait_for(2);
    let stages = children(&run);
    signal(i64::from(run.id()), "-TERM");
    let said = end(run);
    assert_eq!((said.code, &said.finished()["ok"]), (Some(130), &Value::from(false)), "{}", said.stderr);
    assert!(stages.iter().all(|pid| !PathBuf::from(format!("/proc/{pid}")).exists()));
    assert!(scratch.in_folder("staging").is_empty());
}

#[test]
fn a_killed_run_is_shown_as_such_even_if_a_stage_is_called_run() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.write("p.toml", &server.stage("run"));
    let mut run = scratch.start(&["run", "p.toml"]);
    server.wait_for(1);
    let at_work = scratch.episteme(&["status", "p.toml"]);
    assert!(at_work.stdout.contains("at work"), "{}", at_work.stdout);
    run.kill().unwrap();
    run.wait().unwrap();
    let shown = scratch.episteme(&["show"]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    assert!(shown.stdout.contains("killed before its end") && shown.stdout.contains("events.jsonl"), "{}", shown.stdout);
    server.open();
    assert_eq!(scratch.episteme(&["run", "p.toml"]).code, Some(0));
    assert!(scratch.episteme(&["status", "p.toml"]).stdout.contains(", done"));
    scratch.episteme(&["gc"]);
    let left: Vec<String> = scratch.in_folder("locks").into_iter().filter(|name| name != "gc.lock" && name != "pipeline-p.lock").collect();
    assert_eq!(left, Vec::<String>::new());
}

// --- the cache ---------------------------------------------------------------------------------------------------------

const TABLE: &str = "[stages.raw]\nuses = 'collect.files'\npath = 'table.csv'\n[stages.rows]\nuses = 'store.csv'\ninput = 'raw'\n";

#[test]
fn plan_says_what_would_run_and_what_differs_from_the_last_time() {
    let scratch = Scratch::new();
    scratch.write("table.csv", "a,b\n1,2\n");
    scratch.write("p.toml", TABLE);
    let plan = |args: &[&str]| {
        let said = scratch.episteme(&[&["plan", "p.toml"], args].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(plan(&[]), ["raw run it has not run on this store", "rows run unless the stages before it give what they gave before"]);
    assert!(scratch.in_folder("runs").is_empty(), "a plan runs nothing");
    assert_eq!(scratch.episteme(&["run", "p.toml"]).code, Some(0));
    assert!(plan(&[]).iter().all(|line| line.contains(" cached ")), "{:?}", plan(&[]));
    scratch.write("table.csv", "a,b\n1,2\n3,4\n");
    assert!(plan(&[])[0].starts_with("raw run what it reads from outside the store has changed"), "{:?}", plan(&[]));
    scratch.write("table.csv", "a,b\n1,2\n");
    let header = plan(&["--set", "stages.rows.header=false"]);
    assert!(header[0].starts_with("raw cached") && header[1] == "rows run `header` was true, is false", "{header:?}");
}

#[test]
fn a_stage_that_gives_what_it_gave_before_stops_the_change_there() {
    let scratch = Scratch::new();
    scratch.write("table.csv", "a,b\n1,2\n");
    fs::create_dir(scratch.0.path().join("elsewhere")).unwrap();
    scratch.write("elsewhere/table.csv", "a,b\n1,2\n");
    scratch.write("p.toml", TABLE);
    assert_eq!(scratch.episteme(&["run", "p.toml"]).code, Some(0));
    let moved = scratch.episteme(&["run", "p.toml", "--json", "--set", "stages.raw.path=elsewhere/table.csv"]);
    assert_eq!(moved.statuses(), statuses([("raw", "ran"), ("rows", "cached")]), "{}", moved.stderr);
    let forced = scratch.episteme(&["run", "p.toml", "--json", "--force"]);
    assert_eq!(forced.statuses(), statuses([("raw", "ran"), ("rows", "ran")]));
}

// --- locks -------------------------------------------------------------------------------------------------------------

#[test]
fn who_is_busy_is_named() {
    let (scratch, server) = (Scratch::new(), Server::start());
    scratch.write("p.toml", &server.stage("data"));
    let run = scratch.start(&["run", "p.toml"]);
    server.wait_for(1);
    let second = scratch.episteme(&["run", "p.toml", "--on-busy", "fail"]);
    assert_eq!(second.code, Some(3));
    assert!(second.stderr.contains(&format!("-p-{0}, process {0}", run.id())), "{}", second.stderr);
    let skipped = scratch.episteme(&["run", "p.toml", "--on-busy", "skip"]);
    assert_eq!(skipped.code, Some(0));
    assert!(skipped.stderr.contains("skipped"), "{}", skipped.stderr);
    server.open();
    assert_eq!(end(run).code, Some(0));
}

#[test]
fn named_results_are_copied_where_they_are_wanted() {
    let scratch = Scratch::new();
    scratch.write("p.toml", "[stages.raw]\nuses = 'collect.synthetic'\ntrain = 60\ntest = 20\n[stages.images]\nuses = 'store.idx'\ninput = 'raw'\n[stages.clean]\nuses = 'process.images'\ninput = 'images'\n[stages.model]\nuses = 'learn.classifier'\ninput = 'clean'\nlayers = ['dense 10']\nepochs = 1\n");
    let said = scratch.episteme(&["run", "p.toml", "--json", "--export", "out"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let outputs = said.finished()["outputs"].clone();
    assert!(!outputs.as_object().unwrap().is_empty());
    for path in outputs.as_object().unwrap().values().map(|path| PathBuf::from(path.as_str().unwrap())) {
        let copy = scratch.0.path().join("out").join(path.file_name().unwrap());
        assert_eq!(fs::read(copy).unwrap(), fs::read(path).unwrap());
    }
    assert_eq!(scratch.episteme(&["run", "p.toml", "--export", "out"]).code, Some(0), "again over what is there");
}
