//! `collect.files`: a file, a folder or a glob of this machine, taken into the store.

use std::fs;
use std::path::Path;

use artifact::outside::{self, Found};
use artifact::{ConfigProblem, Digest, Doing, Kind, Outcome, RunContext, Settings, Stage, StageError, collect_in_order};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::archive::{self, Format, Limits};

/// Takes a file, a folder or all that a glob matches. Archives (tar, tar.gz, zip) are unpacked, safely. What is taken is part of
/// the cache key by its content: touching a file changes nothing, changing it does.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// A file, a folder, or a glob such as `photos/**/*.jpg`; relative to the pipeline file.
    pub path: String,
    /// Unpacks archives; without it they are taken as they are.
    #[serde(default = "yes")]
    pub unpack: bool,
    /// The most files that may come of it.
    #[serde(default = "max_files")]
    pub max_files: u64,
    /// The most bytes that may come out of an archive.
    #[serde(default = "max_bytes")]
    pub max_bytes: u64,
}

fn yes() -> bool {
    true
}
pub(crate) fn max_files() -> u64 {
    1_000_000
}
pub(crate) fn max_bytes() -> u64 {
    64 << 30
}

impl Stage for Files {
    const USES: &'static str = "collect.files";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Take a file, a folder or a glob of this machine; archives unpacked safely";
    const GIVES: Kind = Kind::Files;

    fn check(&self) -> Vec<ConfigProblem> {
        let mut problems: Vec<ConfigProblem> =
            outside::glob_problem(&self.path).map(|problem| ConfigProblem::at("path", problem)).into_iter().collect();
        if self.path.is_empty() {
            problems.push(ConfigProblem::at("path", "`path` is empty").help("name a file, a folder or a glob"));
        }
        problems
    }

    fn outside(&self, settings: &Settings) -> Result<Option<Digest>, StageError> {
        outside::digest(&self.found(settings)?, settings).map(Some)
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let found = self.found(context.settings())?;
        let limits = Limits { files: self.max_files, bytes: self.max_bytes };
        let is_archive = |name: &str| Format::of(name).filter(|_| self.unpack).is_some();
        let (archives, plain): (Vec<_>, Vec<_>) = found.iter().partition(|(name, _)| is_archive(name));
        let progress = context.progress("files", Some(plain.len() as u64), "files");
        collect_in_order(plain.par_iter().map(|(name, path)| {
            context.check_stop()?;
            progress.add(1);
            copy(path, &context.output().join(name))
        }))?;
        let mut files = plain.len() as u64;
        for (name, path) in &archives {
            let Some((format, stem)) = Format::of(name) else { continue };
            // One archive is the whole; several stand beside each other.
            let folder = if found.len() == 1 { context.output().to_owned() } else { context.output().join(stem) };
            files += archive::unpack(path, format, &folder, limits, context)?;
        }
        Ok(Outcome { rows: Some(files), ..Outcome::default() })
    }
}

impl Files {
    /// What the path stands for now.
    fn found(&self, settings: &Settings) -> Result<Vec<Found>, StageError> {
        let found = outside::find(&settings.base, &self.path)?;
        if found.len() as u64 > self.max_files {
            return Err(StageError::new(format!("{} files are more than `max_files` allows, {}", found.len(), self.max_files))
                .at(settings.base.join(&self.path).display())
                .help("raise `max_files` if this is right"));
        }
        Ok(found)
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), StageError> {
    let copying = || format!("copying {}", from.display());
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).doing(copying)?;
    }
    fs::copy(from, to).doing(copying).map(drop)
}
