//! `collect.files`: a file, a folder or a glob of this machine, taken into the store.

use std::fs;
use std::path::{Path, PathBuf};

use artifact::{ConfigProblem, Digest, Doing, Kind, Outcome, RunContext, Settings, Stage, StageError};
use globset::GlobBuilder;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

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
        let glob = GlobBuilder::new(&self.path).literal_separator(true).build();
        let mut problems: Vec<ConfigProblem> =
            glob.err().filter(|_| is_glob(&self.path)).map(|error| ConfigProblem::at("path", error.to_string())).into_iter().collect();
        if self.path.is_empty() {
            problems.push(ConfigProblem::at("path", "`path` is empty").help("name a file, a folder or a glob"));
        }
        problems
    }

    fn outside(&self, settings: &Settings) -> Result<Option<Digest>, StageError> {
        let found = self.found(settings)?;
        let digests =
            found.par_iter().map(|(name, path)| Ok((name, Digest::of_file(path).doing(|| format!("reading {}", path.display()))?)));
        let digests = digests.collect::<Result<Vec<_>, StageError>>()?;
        Digest::of_json(&digests).doing(|| "digesting the list of files".into()).map(Some)
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let found = self.found(context.settings())?;
        let limits = Limits { files: self.max_files, bytes: self.max_bytes };
        let is_archive = |name: &str| Format::of(name).filter(|_| self.unpack).is_some();
        let (archives, plain): (Vec<_>, Vec<_>) = found.iter().partition(|(name, _)| is_archive(name));
        let progress = context.progress("files", Some(plain.len() as u64), "files");
        plain.par_iter().try_for_each(|(name, path)| {
            context.check_stop()?;
            progress.add(1);
            copy(path, &context.output().join(name))
        })?;
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
    /// What the path stands for now: names and files, by name.
    fn found(&self, settings: &Settings) -> Result<Vec<(String, PathBuf)>, StageError> {
        let path = settings.base.join(&self.path);
        let mut found = match (path.exists(), is_glob(&self.path)) {
            (true, _) if path.is_file() => vec![(file_name(&path), path.clone())],
            (true, _) => walk(&path, None)?,
            (false, true) => self.globbed(&path)?,
            (false, false) => {
                return Err(StageError::new("there is nothing at this path")
                    .at(path.display())
                    .help("correct `path`; it is relative to the pipeline file's folder"));
            }
        };
        if found.is_empty() {
            return Err(StageError::new("there is no file at this path").at(path.display()).help("put files there, or correct `path`"));
        }
        if found.len() as u64 > self.max_files {
            return Err(StageError::new(format!("{} files are more than `max_files` allows, {}", found.len(), self.max_files))
                .at(path.display())
                .help("raise `max_files` if this is right"));
        }
        found.sort();
        Ok(found)
    }

    fn globbed(&self, path: &Path) -> Result<Vec<(String, PathBuf)>, StageError> {
        let text = path.to_string_lossy();
        let glob = GlobBuilder::new(&text).literal_separator(true).build().doing(|| format!("reading the glob {text}"))?.compile_matcher();
        let literal: PathBuf = path.components().take_while(|part| !is_glob(&part.as_os_str().to_string_lossy())).collect();
        walk(&literal, Some(&glob))
    }
}

fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', '{'])
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Every file below a folder that matches, by its path from there. Links are followed; a loop of links is an error.
fn walk(folder: &Path, glob: Option<&globset::GlobMatcher>) -> Result<Vec<(String, PathBuf)>, StageError> {
    let mut found = Vec::new();
    for entry in WalkDir::new(folder).follow_links(true) {
        let entry = entry.doing(|| format!("listing {}", folder.display()))?;
        if entry.file_type().is_file() && glob.is_none_or(|glob| glob.is_match(entry.path())) {
            let relative = entry.path().strip_prefix(folder).unwrap_or(entry.path());
            let name = relative
                .to_str()
                .ok_or_else(|| StageError::new("a file name is not valid UTF-8").at(entry.path().display()).help("rename the file"))?;
            found.push((name.to_owned(), entry.path().to_owned()));
        }
    }
    Ok(found)
}

fn copy(from: &Path, to: &Path) -> Result<(), StageError> {
    let copying = || format!("copying {}", from.display());
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).doing(copying)?;
    }
    fs::copy(from, to).doing(copying).map(drop)
}
