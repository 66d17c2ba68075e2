//! A full disk and a failing one: any call that changes the store may fail, once or from then on.
//!
//! `disk.c` is loaded into the built binaries and fails the Nth such call of a run, in whichever of its processes. What goes past
//! libc is out of its reach: of what writes, that is `syncfs` (an artifact of 64 files and more), which rustix calls by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use episteme_tests::{Said, Scratch, finish};

use crate::chance::Chance;
use crate::pipeline::{Pipelines, Undisturbed, sound, told};
use crate::{must, seed, setting};

/// Error numbers of Linux, and what it calls them.
const ERRORS: [(i32, &str); 2] = [(28, "No space left on device"), (5, "Input/output error")];

/// One fault.
#[derive(Debug, Clone, Copy)]
struct Fault {
    /// Which call.
    at: u64,
    /// Error number and text.
    error: (i32, &'static str),
    /// Whether all that need space fail from then on.
    lasting: bool,
}

/// What the library noted.
#[derive(Debug)]
struct Page {
    calls: u64,
    faults: u64,
    /// The first call that failed, and its path from the store's folder.
    call: String,
    path: String,
}

impl Page {
    fn read(file: &Path) -> Self {
        let bytes = std::fs::read(file).expect("the page");
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let text = |from: usize, to: usize| String::from_utf8_lossy(&bytes[from..to]).trim_end_matches('\0').to_owned();
        Self { calls: number(0), faults: number(8), call: text(16, 48), path: text(48, 48 + 1024) }
    }

    /// The store's folder that was hit: `objects`, `runs`, …
    fn place(&self) -> &str {
        self.path.trim_start_matches('/').split('/').next().unwrap_or_default()
    }

    /// Whether work can go on without this call: removing what `gc` removes as well, a stage's chatter, and what is only remembered to
    /// save time or to tell others.
    fn is_dispensable(&self) -> bool {
        let is_removal = self.call.starts_with("unlink") || self.call == "rmdir";
        is_removal || self.path.ends_with(".log") || ["locks", "stat"].contains(&self.place())
    }
}

#[test]
fn a_full_or_failing_disk_is_told_of_and_the_store_stays_sound() {
    let faults = setting("EPISTEME_FAULT_DISK", 14);
    let mut chance = Chance::new(seed(), 3);
    let pipelines = Pipelines::new();
    let undisturbed = pipelines.undisturbed();
    let library = Library::build();
    let calls = library.calls_of_a_run(&pipelines);
    let (mut tally, mut hit, mut missed) = (BTreeMap::new(), 0, 0);
    while hit < faults {
        let fault = Fault { at: 1 + chance.below(calls), error: ERRORS[chance.below(2) as usize], lasting: chance.below(3) == 0 };
        let scratch = pipelines.scratch();
        let result = library.disturb(&scratch, &["run", "all.toml", "--json"], fault).and_then(|(said, page)| {
            if page.faults == 0 {
                missed += 1;
                return Ok(());
            }
            hit += 1;
            *tally.entry((page.call.clone(), page.place().to_owned(), said.code)).or_insert(0) += 1;
            judge(&scratch, &said, &page, fault, &undisturbed)
        });
        must(result, scratch, &format!("{fault:?}, after {hit} faults"));
    }
    println!("seed {}: {hit} faults in runs of {calls} calls that change the store, {missed} came too late", seed());
    tally.iter().for_each(|((call, place, code), count)| println!("  {count:>4} × {call:<16} in {place:<8} exit code {code}"));
}

/// A fault is told of and ends the run with 1, unless it hit what can be done without; then the run gives what it always gives. The next
/// run, on a disk that works, gives it in any case.
fn judge(scratch: &Scratch, said: &Said, page: &Page, fault: Fault, undisturbed: &Undisturbed) -> Result<(), String> {
    match said.code {
        0 if page.is_dispensable() => undisturbed.is_what_it_says(said)?,
        1 if said.stderr.contains(fault.error.1) || said.stdout.contains(fault.error.1) => {}
        code => return Err(format!("it ended with {code} after {page:?}\n{}", told(said))),
    }
    if said.stderr.contains("panicked") {
        return Err(format!("a panic reached the user after {page:?}:\n{}", said.stderr));
    }
    sound(scratch)?;
    undisturbed.is_what_comes_of(scratch)
}

/// The library that makes calls fail.
struct Library {
    folder: Scratch,
}

impl Library {
    /// Compiles it.
    fn build() -> Self {
        let folder = Scratch::new();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/disk.c");
        let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
        compiler.args(["-shared", "-fPIC", "-O1", "-o", "disk.so"]).arg(source).arg("-ldl").current_dir(folder.path());
        finish(compiler).ok();
        Self { folder }
    }

    /// How many calls of an undisturbed run change the store.
    fn calls_of_a_run(&self, pipelines: &Pipelines) -> u64 {
        let none = Fault { at: 0, error: ERRORS[0], lasting: false };
        let (said, page) = self.disturb(&pipelines.scratch(), &["run", "all.toml", "--json"], none).expect("it ends");
        said.ok();
        assert!(page.calls > 100, "the library sees nothing: is the binary linked statically?");
        page.calls
    }

    /// Runs `episteme ARGS` with a fault; what it said, and what was hit.
    fn disturb(&self, scratch: &Scratch, args: &[&str], fault: Fault) -> Result<(Said, Page), String> {
        let file = scratch.write("page", [0; 4096]);
        let mut command = scratch.command(args);
        command.env("LD_PRELOAD", self.shared_object()).env("FAULT_UNDER", real(&scratch.store())).env("FAULT_PAGE", &file);
        command.env("FAULT_AT", fault.at.to_string()).env("FAULT_ERRNO", fault.error.0.to_string());
        command.env("FAULT_LASTING", i32::from(fault.lasting).to_string());
        Ok((finish(command), Page::read(&file)))
    }

    fn shared_object(&self) -> PathBuf {
        self.folder.path().join("disk.so")
    }
}

/// A store's path as its calls name it.
fn real(store: &Path) -> PathBuf {
    std::fs::create_dir_all(store).and_then(|()| store.canonicalize()).expect("a folder")
}
