//! A small and quick pipeline with every stage type, and what it gives when nobody disturbs it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use episteme_tests::{Said, Scratch};
use flate2::write::ZlibEncoder;
use sha2::{Digest, Sha256};

/// Drawn digits to a report.
const DIGITS: &str = r#"
[stages.digits]
uses = "collect.synthetic"
train = 240
test = 60

[stages.images]
uses = "store.idx"
input = "digits"

[stages.clean]
uses = "process.images"
input = "images"
split = { validation = 0.2 }

[stages.model]
uses = "learn.classifier"
input = "clean"
layers = ["conv 4 3x3 relu", "pool 2", "dropout 0.1", "dense 10"]
epochs = 3
batch = 16
checkpoint = { steps = 3 }

[stages.predictions]
uses = "apply.predict"
model = "model"
data = "clean"

[stages.report]
uses = "apply.report"
model = "model"
data = "clean"
predictions = "predictions"
"#;

/// A download, a table, and a program with children of its own.
const TABLES: &str = r#"
[stages.download]
uses = "collect.http"
files = [{ url = "ADDRESS/table.csv", sha256 = "SHA256" }]

[stages.rows]
uses = "store.csv"
input = "download"

[stages.exported]
uses = "command"
run = "sleep 0.03 & cat ${inputs.rows}/data.parquet > ${output}/rows.parquet; wait"
inputs = { rows = "rows" }
outputs = ["rows.parquet"]

[stages.imported]
uses = "store.parquet"
input = "exported"

[stages.tidy]
uses = "process.table"
input = "imported"
id = "id"
label = "class"
split = { validation = 0.2, test = 0.2 }

[stages.photos]
uses = "collect.files"
path = "photos"

[stages.pictures]
uses = "store.image_folder"
input = "photos"
"#;

/// Every stage type that there is must be in the pipelines above.
pub const STAGES: usize = 13;

/// The pipeline files, and what they read from outside.
pub struct Pipelines {
    address: String,
    table: Vec<u8>,
}

impl Pipelines {
    /// Starts the server that one of the stages downloads from.
    pub fn new() -> Self {
        let rows = (0..2_000u32).map(|row| format!("{row},{}.{},{}\n", row * 7 % 100, row % 10, ["a", "b", "c"][row as usize % 3]));
        let table = format!("id,value,class\n{}", rows.collect::<String>()).into_bytes();
        Self { address: serve(table.clone()), table }
    }

    /// A new folder with the pipelines in it: `all.toml`, and its two halves.
    pub fn scratch(&self) -> Scratch {
        let scratch = Scratch::new();
        let sum: String = Sha256::digest(&self.table).iter().map(|byte| format!("{byte:02x}")).collect();
        let tables = TABLES.replace("ADDRESS", &self.address).replace("SHA256", &sum);
        for (name, stages) in [("all", format!("{DIGITS}{tables}")), ("digits", DIGITS.to_owned()), ("tables", tables)] {
            scratch.write(&format!("{name}.toml"), format!("name = \"{name}\"\nseed = 5\n{stages}"));
        }
        for photo in 0..40u8 {
            let class = if photo % 2 == 0 { "even" } else { "odd" };
            scratch.write(&format!("photos/{class}/{photo}.png"), png(photo));
        }
        // The verbs that look at a store refuse where there is none, and a disturbed run may not have come so far.
        fs::create_dir_all(scratch.store()).expect("a folder");
        scratch
    }

    /// Runs it all once, with nobody disturbing.
    pub fn undisturbed(&self) -> Undisturbed {
        let scratch = self.scratch();
        let clock = Instant::now();
        let stages = artifacts(&scratch.episteme(&["run", "all.toml", "--json"]).ok());
        Undisturbed { stages, took: clock.elapsed(), objects: objects(&scratch.store()) }
    }
}

/// What an undisturbed run gives.
pub struct Undisturbed {
    /// Each stage's artifact.
    stages: BTreeMap<String, String>,
    /// Every file below `objects/`, and its bytes.
    objects: BTreeMap<PathBuf, Vec<u8>>,
    /// How long it took.
    pub took: Duration,
}

impl Undisturbed {
    /// Runs to the end what was disturbed before: the same bytes come out, and `gc` leaves nothing but them.
    pub fn is_what_comes_of(&self, scratch: &Scratch) -> Result<(), String> {
        self.is_what_it_says(&done(scratch.episteme(&["run", "all.toml", "--json"]), "the undisturbed run after it")?)?;
        done(scratch.episteme(&["gc"]), "gc")?;
        sound(scratch)?;
        nothing_left(scratch)?;
        let now = objects(&scratch.store());
        let names = |of: &BTreeMap<PathBuf, Vec<u8>>, other: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<PathBuf> {
            of.iter().filter(|(path, bytes)| other.get(*path) != Some(*bytes)).map(|(path, _)| path.clone()).collect()
        };
        let (lost, new) = (names(&self.objects, &now), names(&now, &self.objects));
        if lost.is_empty() && new.is_empty() {
            Ok(())
        } else {
            Err(format!("other files: lost or changed {lost:?}, new or changed {new:?}"))
        }
    }

    /// Whether a finished run's artifacts are these.
    pub fn is_what_it_says(&self, said: &Said) -> Result<(), String> {
        let now = artifacts(said);
        if now == self.stages { Ok(()) } else { Err(format!("other artifacts: {now:?}, not {:?}", self.stages)) }
    }
}

fn artifacts(said: &Said) -> BTreeMap<String, String> {
    said.stages().into_iter().map(|(name, (_, digest))| (name, digest)).collect()
}

/// What was said, if it ended well.
pub fn done(said: Said, what: &str) -> Result<Said, String> {
    match said.code {
        0 => Ok(said),
        code => Err(format!("{what} ended with {code}\n{}", told(&said))),
    }
}

/// What was said, without the events of what went well.
pub fn told(said: &Said) -> String {
    let of_interest = |line: &&str| !line.starts_with('{') || ["_failed", "warning", "error"].iter().any(|word| line.contains(word));
    said.stdout.lines().filter(of_interest).chain(said.stderr.lines()).collect::<Vec<_>>().join("\n")
}

/// Every file below `objects/`.
fn objects(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut folders) = (BTreeMap::new(), vec![store.join("objects")]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.path().is_dir() {
                true => folders.push(entry.path()),
                false => {
                    let name = entry.path().strip_prefix(store).expect("it is within").to_owned();
                    files.insert(name, fs::read(entry.path()).expect("it can be read"));
                }
            }
        }
    }
    files
}

/// The store is sound: every artifact whole, every record's artifact there.
pub fn sound(scratch: &Scratch) -> Result<(), String> {
    done(scratch.episteme(&["verify"]), "verify").map(drop)
}

/// After `gc`: nothing half-made, and no lock but those of pipelines.
pub fn nothing_left(scratch: &Scratch) -> Result<(), String> {
    let mut left = scratch.leftovers();
    let locks = fs::read_dir(scratch.store().join("locks")).into_iter().flatten().flatten();
    left.extend(
        locks
            .filter(|lock| !["pipeline-", "gc."].iter().any(|name| lock.file_name().to_string_lossy().starts_with(name)))
            .map(|lock| lock.path()),
    );
    if left.is_empty() { Ok(()) } else { Err(format!("left over: {left:?}")) }
}

/// The artifacts that the cache knows: none of them may ever go. A record that was not yet given its name is none.
pub fn remembered(scratch: &Scratch) -> Vec<String> {
    let shards = fs::read_dir(scratch.store().join("cache")).into_iter().flatten().flatten();
    let records = shards.flat_map(|shard| fs::read_dir(shard.path()).into_iter().flatten().flatten());
    let texts =
        records.filter(|record| !record.file_name().to_string_lossy().starts_with('.')).filter_map(|record| fs::read(record.path()).ok());
    texts.filter_map(|text| Some(serde_json::from_slice::<serde_json::Value>(&text).ok()?["artifact"].as_str()?.to_owned())).collect()
}

/// `episteme ARGS` with what it says in files of its own in the scratch folder: a pipe would end with its reader.
pub fn quietly(scratch: &Scratch, args: &[&str], name: &str) -> Command {
    let mut command = scratch.command(args);
    let file = |ending: &str| fs::File::create(scratch.path().join(format!("{name}.{ending}"))).expect("a file");
    command.stdout(Stdio::from(file("out"))).stderr(Stdio::from(file("err")));
    command
}

/// What such a command said, once it has ended with this code.
pub fn said(scratch: &Scratch, name: &str, code: i32) -> Said {
    let text = |ending: &str| fs::read_to_string(scratch.path().join(format!("{name}.{ending}"))).unwrap_or_default();
    Said { code, stdout: text("out"), stderr: text("err") }
}

/// Serves a file in pieces, or the rest of it when a range is asked for: an interrupted download goes on.
fn serve(content: Vec<u8>) -> String {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", server.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in server.incoming().map_while(Result::ok) {
            let content = content.clone();
            std::thread::spawn(move || answer(&stream, &content));
        }
    });
    address
}

fn answer(mut stream: &TcpStream, content: &[u8]) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
    let range = lines.find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
    let from = range.unwrap_or(0).min(content.len());
    let (status, last) = (if from > 0 { "206 Partial Content" } else { "200 OK" }, content.len() - 1);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{last}/{}\r\nConnection: close\r\n\r\n",
        content.len() - from,
        content.len()
    );
    // A client that was killed is no reader any more.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| {
        content[from..].chunks(8 << 10).try_for_each(|piece| {
            std::thread::sleep(Duration::from_millis(8));
            stream.write_all(piece)
        })
    });
}

/// A grey picture of eight by eight pixels (PNG, ISO/IEC 15948).
fn png(shade: u8) -> Vec<u8> {
    const SIDE: u8 = 8;
    let mut pixels = ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    for row in 0..SIDE {
        let line: Vec<u8> = std::iter::once(0).chain((0..SIDE).map(|column| shade.wrapping_mul(6).wrapping_add(row * column))).collect();
        pixels.write_all(&line).expect("memory");
    }
    let chunk = |name: &[u8; 4], data: &[u8]| {
        let mut sum = flate2::Crc::new();
        sum.update(name);
        sum.update(data);
        [&(data.len() as u32).to_be_bytes(), &name[..], data, &sum.sum().to_be_bytes()].concat()
    };
    let header = [0, 0, 0, SIDE, 0, 0, 0, SIDE, 8, 0, 0, 0, 0];
    let pixels = pixels.finish().expect("memory");
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunk(b"IHDR", &header), chunk(b"IDAT", &pixels), chunk(b"IEND", b"")].concat()
}
