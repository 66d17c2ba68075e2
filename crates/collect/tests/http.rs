//! `collect.http` against a server of this machine that misbehaves as servers do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use artifact::event::Collected;
use artifact::{Event, Level, RunContext, Settings, Stage, StageError};
use collect::Http;
use sha2::{Digest, Sha256};

fn content() -> Vec<u8> {
    (0..200_000u32).map(|i| (i * 31 % 251) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a request asked for: path and the first byte of its range.
type Asked = (String, Option<usize>);

/// A server that answers the n-th request with the bytes that `answer` gives and then closes; all requests are noted.
fn serve(answer: impl Fn(usize, &Asked) -> Vec<u8> + Send + 'static) -> (String, Arc<Mutex<Vec<Asked>>>) {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", server.local_addr().expect("an address"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for (count, stream) in server.incoming().map_while(Result::ok).enumerate() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            let path = lines.next().and_then(|line| line.split(' ').nth(1).map(str::to_owned)).unwrap_or_default();
            let range = lines.find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
            let one = (path, range);
            noted.lock().expect("no panic").push(one.clone());
            let _ = (&stream).write_all(&answer(count, &one));
        }
    });
    (address, asked)
}

fn head(status: &str, length: usize, more: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n").into_bytes()
}

/// All of it, or the rest of it when a range is asked for.
fn answer_well(asked: &Asked) -> Vec<u8> {
    let all = content();
    match asked.1 {
        None => [head("200 OK", all.len(), ""), all].concat(),
        Some(from) => {
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", all.len() - 1, all.len());
            [head("206 Partial Content", all.len() - from, &range), all[from..].to_vec()].concat()
        }
    }
}

/// Promises all of it and hangs up half-way.
fn hang_up_half_way() -> Vec<u8> {
    [head("200 OK", content().len(), ""), content()[..100_000].to_vec()].concat()
}

struct Ran {
    result: Result<(), StageError>,
    events: Vec<Event>,
    dir: tempfile::TempDir,
}

impl Ran {
    fn file(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.dir.path().join("output").join(name)).ok()
    }

    fn warnings(&self) -> Vec<&str> {
        self.events
            .iter()
            .filter_map(|event| if let Event::Log { level: Level::Warning, message, .. } = event { Some(message.as_str()) } else { None })
            .collect()
    }
}

fn run_in(dir: tempfile::TempDir, config: serde_json::Value, mirrors: &[String]) -> Ran {
    let stage: Http = serde_json::from_value(config).expect("a config");
    assert_eq!(stage.check(), []);
    let output = dir.path().join("output");
    std::fs::create_dir_all(&output).expect("a folder");
    let settings = Settings {
        mirrors: mirrors.to_vec(),
        base: dir.path().to_owned(),
        scratch: Some(dir.path().join("scratch")),
        ..Settings::default()
    };
    let (sink, stop) = (Collected::default(), AtomicBool::new(false));
    let result = stage.run(&RunContext::new("raw", BTreeMap::new(), output, settings, &sink, &stop)).map(drop);
    Ran { result, events: sink.take(), dir }
}

fn run(config: serde_json::Value, mirrors: &[String]) -> Ran {
    run_in(tempfile::tempdir().expect("a folder"), config, mirrors)
}

fn file(address: &str) -> serde_json::Value {
    serde_json::json!({ "files": [{ "url": format!("{address}/data.bin"), "sha256": sha256(&content()) }] })
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_was() {
    let (address, asked) = serve(|count, asked| if count == 0 { hang_up_half_way() } else { answer_well(asked) });
    let ran = run(file(&address), &[]);
    ran.result.as_ref().expect("it completes");
    assert_eq!(ran.file("data.bin"), Some(content()));
    let asked = asked.lock().expect("no panic").clone();
    assert_eq!(asked.len(), 2);
    assert!(asked[1].1.is_some_and(|from| from > 0 && from <= 100_000), "{asked:?}");
}

#[test]
fn a_download_that_failed_goes_on_in_the_next_run() {
    let (address, asked) = serve(|count, asked| if count == 0 { hang_up_half_way() } else { answer_well(asked) });
    let mut config = file(&address);
    config["retries"] = 0.into();
    let first = run(config.clone(), &[]);
    let error = first.result.as_ref().expect_err("it is cut").to_string();
    assert!(error.contains("data.bin") && error.contains("100000"), "{error}");
    let second = run_in(first.dir, config, &[]);
    assert_eq!(second.file("data.bin"), Some(content()));
    assert!(asked.lock().expect("no panic")[1].1.is_some(), "the rest is asked for");
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    let (address, _) = serve(|count, asked| if count == 0 { hang_up_half_way() } else { answer_well(&(asked.0.clone(), None)) });
    let ran = run(file(&address), &[]);
    ran.result.as_ref().expect("it completes");
    assert_eq!(ran.file("data.bin"), Some(content()));
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    let (address, asked) = serve(|count, asked| match count {
        0 => head("503 Service Unavailable", 0, "Retry-After: 0\r\n"),
        _ => answer_well(asked),
    });
    run(file(&address), &[]).result.expect("it completes");
    assert_eq!(asked.lock().expect("no panic").len(), 2);
}

#[test]
fn an_answer_that_will_not_change_is_not_asked_for_again() {
    let (address, asked) = serve(|_, _| head("404 Not Found", 0, ""));
    let error = run(file(&address), &[]).result.expect_err("it is not there");
    assert!(error.causes[0].contains("404"), "{error}");
    assert!(error.help.as_deref().is_some_and(|help| help.contains("--mirror")));
    assert_eq!(asked.lock().expect("no panic").len(), 1);
}

#[test]
fn a_wrong_checksum_names_both_and_keeps_nothing() {
    let (address, _) = serve(|_, asked| answer_well(asked));
    let pinned = "ab".repeat(32);
    let ran =
        run(serde_json::json!({ "retries": 0, "files": [{ "url": format!("{address}/data.bin?key=secret"), "sha256": pinned }] }), &[]);
    let error = ran.result.as_ref().expect_err("it does not fit").to_string();
    assert!(error.contains(&pinned) && error.contains(&sha256(&content())), "{error}");
    assert!(!error.contains("secret"), "{error}");
    let left = std::fs::read_dir(ran.dir.path().join("scratch")).expect("it is there").count();
    assert_eq!(left, 0, "what does not fit is thrown away");
}

#[test]
fn a_mirror_is_tried_first_and_a_wrong_one_is_passed_over() {
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    let (address, _) = serve(move |_, asked| {
        counted.fetch_add(1, Ordering::SeqCst);
        answer_well(asked)
    });
    let mirrors = tempfile::tempdir().expect("a folder");
    let put = |name: &str, bytes: &[u8]| {
        let path = mirrors.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).and_then(|()| std::fs::write(path, bytes)).expect("it is written");
        mirrors.path().join(name.split('/').next().unwrap_or_default()).display().to_string()
    };
    let (wrong, right) = (put("wrong/data.bin", b"something else"), put("right/set/data.bin", &content()));
    let mut config = file(&address);
    config["dataset"] = "set".into();
    let ran = run(config.clone(), &[wrong.clone(), right]);
    ran.result.as_ref().expect("it completes");
    assert_eq!((ran.file("data.bin"), hits.load(Ordering::SeqCst)), (Some(content()), 0));
    assert!(ran.warnings().iter().any(|warning| warning.contains("wrong/data.bin")), "{:?}", ran.warnings());
    run(config, &[wrong]).result.expect("the address itself serves");
    assert_eq!(hits.load(Ordering::SeqCst), 1);
}

#[test]
fn without_a_network_every_place_is_named_with_its_reason() {
    // A port that nobody listens on.
    let closed = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let mut config = file(&format!("http://{closed}"));
    config["retries"] = 0.into();
    let error = run(config, &["/no/such/mirror".to_owned()]).result.expect_err("nothing serves");
    assert_eq!(error.causes.len(), 2, "{error}");
    assert!(error.causes[0].contains("/no/such/mirror/data.bin") && error.causes[1].contains(&closed.to_string()), "{error}");
}
