//! `collect.http`: files from the web, pinned by SHA-256.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use artifact::{ConfigProblem, Doing, Kind, Outcome, RunContext, Stage, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::archive::{self, Format, Limits};
use crate::files::{max_bytes, max_files};
use crate::source::{Source, redacted};
use crate::transfer::{Transfer, Wanted};

/// Downloads files in parallel, each pinned by its SHA-256. Mirrors are tried first, an interrupted download goes on where it
/// was, and a passing fault is retried.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// The files: `{ url, sha256 }`, and where needed `name` and `alternates`. A file without `url` comes from a mirror only.
    pub files: Vec<Pinned>,
    /// The folder of these files in a mirror: `<mirror>/<dataset>/<file>`, before `<mirror>/<file>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Unpacks archives (tar, tar.gz, zip) and keeps what is in them instead.
    #[serde(default)]
    pub unpack: bool,
    /// Downloads at once.
    #[serde(default = "parallel")]
    pub parallel: usize,
    /// How often a passing fault is retried, with 0.5, 1, 2, … seconds between.
    #[serde(default = "retries")]
    pub retries: u32,
}

/// One file to download.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pinned {
    /// Where it is: `https://`, `http://` or `file://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The SHA-256 of its content, 64 hex digits.
    pub sha256: String,
    /// What it is called here; the last part of the URL if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Other addresses of the same content, tried in order after `url`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alternates: Vec<String>,
}

fn parallel() -> usize {
    4
}
fn retries() -> u32 {
    4
}

impl Pinned {
    /// Its name; none when neither `name` nor the URL gives one that stays in the folder.
    fn file_name(&self) -> Option<&str> {
        let from_url =
            || self.url.as_deref().map(|url| url.split(['?', '#']).next().unwrap_or_default().rsplit('/').next().unwrap_or_default());
        self.name
            .as_deref()
            .or_else(from_url)
            .filter(|name| !name.is_empty() && *name != "." && *name != ".." && !name.contains(['/', '\\', '\0']))
    }
}

impl Stage for Http {
    const USES: &'static str = "collect.http";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Download files pinned by SHA-256: mirrored, resumed, retried";
    const GIVES: Kind = Kind::Files;

    fn check(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut names = BTreeSet::new();
        for (index, file) in self.files.iter().enumerate() {
            let at = |key: &str| format!("files.{index}.{key}");
            if file.sha256.len() != 64 || !file.sha256.chars().all(|c| c.is_ascii_hexdigit()) {
                problems.push(ConfigProblem::at(&at("sha256"), "a SHA-256 has 64 hex digits").help("`sha256sum FILE` prints it"));
            }
            for url in file.url.iter().chain(&file.alternates) {
                if !["https://", "http://", "file://"].iter().any(|scheme| url.starts_with(scheme)) {
                    problems.push(
                        ConfigProblem::at(&at("url"), format!("`{}` is no address that can be fetched", redacted(url)))
                            .help("it begins with https://, http:// or file://"),
                    );
                }
            }
            match file.file_name() {
                None => problems.push(ConfigProblem::at(&at("name"), "the file needs a `name` that is a plain file name")),
                Some(name) if !names.insert(name) => problems
                    .push(ConfigProblem::at(&at("name"), format!("two files are called `{name}`")).help("give one of them another `name`")),
                Some(_) => {}
            }
        }
        if self.files.is_empty() {
            problems.push(ConfigProblem::at("files", "there is no file to download"));
        }
        if !(1..=64).contains(&self.parallel) {
            problems.push(ConfigProblem::at("parallel", "`parallel` must be from 1 to 64"));
        }
        problems
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let partial = context.settings().scratch.clone().unwrap_or_else(|| context.output().join(".partial"));
        fs::create_dir_all(&partial).doing(|| format!("making {}", partial.display()))?;
        self.fetch_all(&partial, context)?;
        let mut files = 0;
        for name in self.files.iter().filter_map(Pinned::file_name) {
            files += self.place(&partial.join(name), name, context)?;
        }
        if context.settings().scratch.is_none() {
            fs::remove_dir_all(&partial).doing(|| format!("removing {}", partial.display()))?;
        }
        Ok(Outcome { rows: Some(files), ..Outcome::default() })
    }
}

impl Http {
    /// Downloads all files into `partial`, several at once; the first failure in the order of the list counts.
    fn fetch_all(&self, partial: &Path, context: &RunContext) -> Result<(), StageError> {
        let next = AtomicUsize::new(0);
        let failures: Mutex<Vec<(usize, StageError)>> = Mutex::new(Vec::new());
        let transfer = Transfer::new(self.retries, context);
        let work = || {
            while let Some((index, file)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|index| self.files.get(index).map(|file| (index, file)))
            {
                let Some(name) = file.file_name() else { continue };
                if let Err(error) = transfer.fetch(&self.wanted(file, name, partial, context))
                    && let Ok(mut failures) = failures.lock()
                {
                    failures.push((index, error));
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..self.parallel.min(self.files.len()) {
                scope.spawn(work);
            }
        });
        context.check_stop()?;
        let mut failures = failures.into_inner().unwrap_or_default();
        failures.sort_by_key(|(index, _)| *index);
        match failures.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    /// Every place that may have this file: mirrors first.
    fn wanted(&self, file: &Pinned, name: &str, partial: &Path, context: &RunContext) -> Wanted {
        let mirrored = context.settings().mirrors.iter().flat_map(|mirror| {
            let mirror = mirror.trim_end_matches('/');
            let in_dataset = self.dataset.iter().map(move |dataset| format!("{mirror}/{dataset}/{name}"));
            in_dataset.chain([format!("{mirror}/{name}")])
        });
        let declared = file.url.iter().chain(&file.alternates).map(|url| Source::declared(url));
        let sources = mirrored.map(|place| Source::mirror(&place)).chain(declared).collect();
        Wanted { name: name.to_owned(), sha256: file.sha256.to_ascii_lowercase(), target: partial.join(name), sources }
    }

    /// Moves a checked download into the artifact, or unpacks it there; the number of files.
    fn place(&self, from: &PathBuf, name: &str, context: &RunContext) -> Result<u64, StageError> {
        if let (true, Some((format, stem))) = (self.unpack, Format::of(name)) {
            let folder = if self.files.len() == 1 { context.output().to_owned() } else { context.output().join(stem) };
            return archive::unpack(from, format, &folder, Limits { files: max_files(), bytes: max_bytes() }, context);
        }
        let target = context.output().join(name);
        let moved = match fs::rename(from, &target) {
            // The scratch folder may lie on another file system.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(from, &target).map(drop),
            done => done,
        };
        moved.doing(|| format!("moving {name} into place"))?;
        Ok(1)
    }
}
