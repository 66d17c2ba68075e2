//! `artifact.json`: what a directory is, what is in it, and where it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Digest, Doing, StageError, collect_in_order};

/// The manifest's file name within an artifact.
pub const FILE_NAME: &str = "artifact.json";

/// From so many files on, they are digested side by side.
const PARALLEL_FROM_FILES: usize = 32;

/// So many ancestors are listed, and always all inputs. Each artifact of a chain of a thousand stages would otherwise repeat what all
/// before it say; what is further away stands in the ancestors' own manifests.
const LISTED_ANCESTORS: usize = 100;

/// What an artifact is; stages declare which kinds they take and which they give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Raw files, checked.
    Files,
    /// Parquet with a stated schema.
    Dataset,
    /// A clean, encoded, split dataset, and f as fitted parameters.
    Processed,
    /// K: f, weights, metrics, card.
    Model,
    /// Scored examples.
    Predictions,
    /// Something to read.
    Report,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Files => "files",
            Self::Dataset => "dataset",
            Self::Processed => "processed",
            Self::Model => "model",
            Self::Predictions => "predictions",
            Self::Report => "report",
        })
    }
}

/// One file of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileEntry {
    /// Path within the artifact, with `/` between folders.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// BLAKE3 of the content.
    pub digest: Digest,
}

/// What a stage's `run` says of what it made, beyond the files themselves.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Outcome {
    /// Examples, rows or files, as the kind has it.
    #[serde(default)]
    pub rows: Option<u64>,
    /// Schema, class counts, shapes: whatever a reader needs before opening the files.
    #[serde(default)]
    pub schema: Value,
    /// Final measures, such as `test.accuracy`.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    /// Results a user looks for by name, such as `predictions` → `predictions.parquet`.
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
}

/// One artifact in a lineage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ancestor {
    /// The artifact's digest; none for the artifact itself, in its own manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// What it is.
    pub kind: Kind,
    /// The stage type that made it.
    pub uses: String,
    /// That stage's code version.
    pub version: u32,
    /// Its config, canonical, with the seed it used.
    pub config: Value,
    /// Its inputs: key to digests.
    pub inputs: BTreeMap<String, Vec<Digest>>,
    /// Its row count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
}

/// `artifact.json`.
///
/// The digest covers what the artifact *is* (kind, outcome, files), not how it came to be: two ways to the same content
/// give the same artifact, which is what lets a pipeline stop early when a changed stage gives what it gave before.
/// The lineage says how it first came to be. Times and machine stand in the cache record, outside the artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// Version of this format: 1.
    pub format: u32,
    /// What it is.
    pub kind: Kind,
    /// Rows, schema, metrics, named outputs.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Every file but the manifest, sorted by path.
    pub files: Vec<FileEntry>,
    /// BLAKE3 over the canonical JSON of all the above.
    pub digest: Digest,
    /// Who made it from what: the artifact itself first, then its inputs, then their ancestors back to the raw data, the nearest hundred.
    /// [`crate::ObjectStore::lineage`] has all.
    pub lineage: Vec<Ancestor>,
}

impl Manifest {
    /// Reads `dir/artifact.json`.
    ///
    /// # Errors
    /// When the file is missing, is no manifest, or has a newer format.
    pub fn read(dir: &Path) -> Result<Self, StageError> {
        let path = dir.join(FILE_NAME);
        let text = fs::read(&path).doing(|| format!("reading the manifest {}", path.display()))?;
        let manifest: Self = serde_json::from_slice(&text).doing(|| format!("reading the manifest {}", path.display()))?;
        match manifest.format {
            1 => Ok(manifest),
            newer => Err(StageError::new(format!("the manifest has format {newer}, and this program knows format 1"))
                .at(path.display())
                .help("use the episteme version that made it, or a newer one")),
        }
    }

    /// Makes a directory an artifact: digests every file, writes `artifact.json`, makes the other files read-only. Nothing
    /// is synced: see [`crate::ObjectStore::settle`].
    ///
    /// # Errors
    /// When something in it is neither a file nor a folder, or cannot be read.
    pub fn seal(dir: &Path, kind: Kind, outcome: Outcome, made_by: Ancestor, parents: &[Manifest]) -> Result<Self, StageError> {
        let files = entries(dir)?;
        let digest = content_digest(kind, &outcome, &files).doing(|| "digesting the manifest".into())?;
        let manifest = Self { format: 1, kind, outcome, files, digest, lineage: lineage(made_by, parents) };
        let text = serde_json::to_vec_pretty(&manifest).doing(|| "writing the manifest".into())?;
        let path = dir.join(FILE_NAME);
        fs::write(&path, text).doing(|| format!("writing {}", path.display()))?;
        for file in &manifest.files {
            set_read_only(&dir.join(&file.path))?;
        }
        Ok(manifest)
    }

    /// Whether a directory is the artifact with this digest, manifest and all, by re-hashing it.
    pub(crate) fn is_whole(dir: &Path, digest: &Digest) -> bool {
        let manifest = Self::read(dir).ok().filter(|manifest| manifest.digest == *digest);
        manifest.is_some_and(|manifest| manifest.verify(dir).is_ok_and(|damage| damage.is_empty()))
    }

    /// Re-hashes every file and names all damage; an empty list means that the artifact is whole.
    ///
    /// # Errors
    /// When the directory itself cannot be listed.
    pub fn verify(&self, dir: &Path) -> Result<Vec<String>, StageError> {
        let found = entries(dir)?;
        let by_path: BTreeMap<&str, &FileEntry> = found.iter().map(|file| (file.path.as_str(), file)).collect();
        let mut damage: Vec<String> = self
            .files
            .iter()
            .filter_map(|file| match by_path.get(file.path.as_str()) {
                None => Some(format!("{} is missing", file.path)),
                Some(now) if now.digest != file.digest => Some(format!("{} has changed", file.path)),
                Some(_) => None,
            })
            .collect();
        let known: BTreeSet<&str> = self.files.iter().map(|file| file.path.as_str()).collect();
        damage.extend(found.iter().filter(|file| !known.contains(file.path.as_str())).map(|file| format!("{} was added", file.path)));
        let expected = content_digest(self.kind, &self.outcome, &self.files).doing(|| "digesting the manifest".into())?;
        if expected != self.digest {
            damage.push(format!("{FILE_NAME} has changed"));
        }
        Ok(damage)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// The digest of an artifact's content.
fn content_digest(kind: Kind, outcome: &Outcome, files: &[FileEntry]) -> Result<Digest, serde_json::Error> {
    Digest::of_json(&serde_json::json!({ "format": 1, "kind": kind, "outcome": outcome, "files": files }))
}

/// The artifact itself, then its inputs, then their ancestors, each once, the nearest first.
fn lineage(made_by: Ancestor, parents: &[Manifest]) -> Vec<Ancestor> {
    let mut all = vec![made_by];
    let mut seen = BTreeSet::new();
    let mut add = |digest: Option<Digest>, ancestor: &Ancestor| {
        if let Some(digest) = digest.filter(|digest| seen.insert(*digest)) {
            all.push(Ancestor { digest: Some(digest), ..ancestor.clone() });
        }
        all.len()
    };
    for parent in parents {
        parent.lineage.first().map(|itself| add(Some(parent.digest), itself));
    }
    for generation in 1..parents.iter().map(|parent| parent.lineage.len()).max().unwrap_or_default() {
        for ancestor in parents.iter().filter_map(|parent| parent.lineage.get(generation)) {
            if add(ancestor.digest, ancestor) > LISTED_ANCESTORS {
                return all;
            }
        }
    }
    all
}

/// Every file below `dir` but the manifest, sorted by path and digested on all cores.
fn entries(dir: &Path) -> Result<Vec<FileEntry>, StageError> {
    let mut paths = Vec::new();
    list(dir, "", &mut paths)?;
    paths.sort();
    paths.retain(|path| path != FILE_NAME);
    let digested = |path: String| {
        let file = dir.join(&path);
        let reading = || format!("digesting {}", file.display());
        let bytes = fs::metadata(&file).doing(reading)?.len();
        Ok(FileEntry { digest: Digest::of_file(&file).doing(reading)?, bytes, path })
    };
    // To start a pool of threads takes longer than to read a few files; one that is large is hashed on all cores by itself.
    match paths.len() < PARALLEL_FROM_FILES {
        true => paths.into_iter().map(digested).collect(),
        false => collect_in_order(paths.into_par_iter().map(digested)),
    }
}

fn list(dir: &Path, prefix: &str, paths: &mut Vec<String>) -> Result<(), StageError> {
    let listing = || format!("listing {}", dir.display());
    for entry in fs::read_dir(dir).doing(listing)? {
        let entry = entry.doing(listing)?;
        let kind = entry.file_type().doing(listing)?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| StageError::new("a file name is not valid UTF-8").at(dir.join(name).display()).help("rename the file"))?;
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        if kind.is_dir() {
            list(&entry.path(), &path, paths)?;
        } else if kind.is_file() {
            paths.push(path);
        } else {
            return Err(StageError::new("an artifact holds only files and folders, and this is neither").at(entry.path().display()));
        }
    }
    Ok(())
}

/// Artifacts never change: say so to editors and careless scripts.
pub(crate) fn set_read_only(path: &Path) -> Result<(), StageError> {
    let doing = || format!("making {} read-only", path.display());
    let mut permissions = fs::metadata(path).doing(doing)?.permissions();
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).doing(doing)
}
