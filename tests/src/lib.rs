//! What the end-to-end tests share: a scratch folder, the built `episteme`, and readers of what it says.
//!
//! The tests drive the binaries as a user would. `cargo xtask test` builds them first; `EPISTEME_BIN` names others.

mod cron;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// The built binary of this name: beside the test's own executable, or in the folder `EPISTEME_BIN`.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("EPISTEME_BIN").map(PathBuf::from).unwrap_or_else(|| {
        let test = std::env::current_exe().unwrap_or_default();
        test.ancestors().nth(2).map(Path::to_owned).unwrap_or_default()
    });
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not built: run `cargo xtask test`", path.display());
    path
}

/// The workspace's folder.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A mirror of real data, or none with the reason printed: set `EPISTEME_MIRROR` to a folder laid out as
/// `<dataset>/<file>`.
pub fn mirrored(file: &str) -> Option<PathBuf> {
    let mirror = std::env::var_os("EPISTEME_MIRROR").map(PathBuf::from);
    let found = mirror.filter(|mirror| mirror.join(file).is_file());
    if found.is_none() {
        println!("skipped: {file} is not in a folder named by EPISTEME_MIRROR");
    }
    found
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Said {
    /// Asserts that all went well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts the exit code, and that standard error names all of these.
    #[track_caller]
    pub fn fails(&self, code: i32, naming: &[&str]) {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        // Long lines are wrapped for the terminal: compare without white space and box drawing.
        let flat = |text: &str| text.chars().filter(|c| !c.is_whitespace() && !"│╭╰─├·×".contains(*c)).collect::<String>();
        for text in naming {
            assert!(flat(&self.stderr).contains(&flat(text)), "`{text}` is not in:\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked at"), "a panic reached the user:\n{}", self.stderr);
    }

    /// The last line of `--json`: `run_finished`.
    #[track_caller]
    pub fn finished(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_default();
        let event: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in `{last}`\n{}", self.stderr));
        assert_eq!(event["type"], "run_finished", "{last}");
        event
    }

    /// Stage name to (status, artifact digest), from `run_finished`.
    #[track_caller]
    pub fn stages(&self) -> BTreeMap<String, (String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let finished = self.finished();
        let stages = finished["stages"].as_array().into_iter().flatten();
        stages.map(|stage| (text(&stage["name"]), (text(&stage["status"]), text(&stage["artifact"])))).collect()
    }
}

/// A scratch folder with a store in it.
pub struct Scratch {
    dir: TempDir,
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Scratch {
    /// A new folder, removed when dropped.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("no scratch folder: {error}"));
        Self { dir }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Leaves the folder where it is, to be looked at.
    pub fn keep(self) -> PathBuf {
        self.dir.keep()
    }

    /// The store within it.
    pub fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// Writes a file, with the folders above it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        path.parent()
            .map(fs::create_dir_all)
            .transpose()
            .and_then(|_| fs::write(&path, content))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        path
    }

    /// `episteme ARGS` in this folder with its store; neither a mirror nor another setting leaks in.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary("episteme"));
        command.args(args).current_dir(self.path()).env("EPISTEME_STORE", self.store()).env_remove("EPISTEME_MIRROR").env("NO_COLOR", "1");
        command.stdin(Stdio::null());
        command
    }

    /// Runs `episteme ARGS` to its end.
    pub fn episteme(&self, args: &[&str]) -> Said {
        finish(self.command(args))
    }

    /// Starts `episteme ARGS` and lets it run.
    pub fn start(&self, args: &[&str]) -> Child {
        let child = self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        child.unwrap_or_else(|error| panic!("episteme does not start: {error}"))
    }

    /// Every object's digest in the store, sorted.
    pub fn objects(&self) -> Vec<String> {
        let list = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
        let mut names: Vec<String> = list(&self.store().join("objects"))
            .iter()
            .flat_map(|shard| list(shard))
            .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Asserts that the store is sound: nothing half-made, and every artifact whole.
    #[track_caller]
    pub fn sound(&self) {
        let staged = fs::read_dir(self.store().join("staging")).into_iter().flatten().count();
        assert_eq!(staged, 0, "something half-made was left in staging/");
        for object in self.objects() {
            let dir = self.store().join("objects").join(&object[..2]).join(&object);
            let damage = artifact::Manifest::read(&dir).and_then(|manifest| manifest.verify(&dir));
            assert_eq!(damage.unwrap_or_else(|error| vec![error.to_string()]), Vec::<String>::new(), "{object}");
        }
    }

    /// What lies in `staging/` and `scratch/`: leftovers, when nothing runs.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        ["staging", "scratch"]
            .iter()
            .flat_map(|folder| fs::read_dir(self.store().join(folder)).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .collect()
    }
}

/// Waits until something holds that must come, on a busy machine too.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = Instant::now();
    while !holds() {
        assert!(clock.elapsed() < Duration::from_secs(30), "{what} never came");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command to its end.
pub fn finish(mut command: Command) -> Said {
    use std::os::unix::process::ExitStatusExt;
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default());
    Said { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// A small and quick digits pipeline: every kind of stage, a second or two in all.
pub const SMALL: &str = r#"
name = "small"
seed = 3

[stages.raw]
uses = "collect.synthetic"
train = 600
test = 200

[stages.images]
uses = "store.idx"
input = "raw"

[stages.clean]
uses = "process.images"
input = "images"
split = { validation = 0.1 }

[stages.model]
uses = "learn.classifier"
input = "clean"
image = [28, 28, 1]
layers = ["conv 8 3x3 relu", "pool 2", "conv 16 3x3 relu", "pool 2", "dense 10"]
epochs = 2

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
