//! The content-addressed store: `objects/` by digest, `cache/` by key, and room for what is being made.
//!
//! ```text
//! STORE/objects/ab/ab12…/       one artifact, read-only, named by its digest
//! STORE/cache/cd/cd34….json     cache key → artifact digest, and when, where and by which run it was made
//! STORE/staging/RUN.STAGE/      an artifact in the making; renamed into objects/ when sealed
//! STORE/scratch/KEY/            what a failed download left for its resumption
//! STORE/stat/LIST               digests of files outside the store, by their sizes and times
//! STORE/runs/RUN/               events.jsonl, one log a stage
//! STORE/tags/NAME               a name for an artifact
//! STORE/damaged/ab12…/          what `verify` found damaged and moved out of the way
//! STORE/locks/NAME.lock         flock'ed while held; a dead holder's lock is free by itself
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::Usage;
use crate::manifest::Ancestor;
use crate::{Digest, Doing, Manifest, StageError, durable, manifest};

/// What the store remembers of a stage's run: which artifact a key gave, and how that came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CacheRecord {
    /// The artifact.
    pub artifact: Digest,
    /// The stage type.
    pub uses: String,
    /// The run that made it.
    pub run: String,
    /// When it began, RFC 3339.
    pub started: String,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Host name and CPU.
    pub machine: String,
    /// The boot of the machine it was written in, by Linux's `boot_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The artifact's final metrics, so that a cached run can print them without opening it.
    #[serde(default)]
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// The artifact's named outputs, relative to it.
    #[serde(default)]
    pub outputs: std::collections::BTreeMap<String, String>,
}

/// A record that was found under its key.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// It.
    pub record: CacheRecord,
    /// Whether it and its artifact survive a power cut: see [`ObjectStore::settle`].
    pub is_settled: bool,
}

/// A store on disk.
#[derive(Debug, Clone)]
pub struct ObjectStore {
    root: PathBuf,
}

impl ObjectStore {
    /// Opens a store, making its folders where they are missing.
    ///
    /// # Errors
    /// When the place cannot be written.
    pub fn open(root: &Path) -> Result<Self, StageError> {
        for folder in ["objects", "cache", "staging", "scratch", "runs", "locks"] {
            let path = root.join(folder);
            if !path.is_dir() {
                fs::create_dir_all(&path).doing(|| format!("making the store's folder {}", path.display())).map_err(|error| {
                    if error.help.is_some() {
                        error
                    } else {
                        error.help("name a folder you may write to with --store DIR or EPISTEME_STORE")
                    }
                })?;
            }
        }
        let root = root.canonicalize().doing(|| format!("opening the store {}", root.display()))?;
        Ok(Self { root })
    }

    /// Its folder, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the artifact with this digest lies, or would lie.
    pub fn object(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join("objects").join(&name[..2]).join(&name)
    }

    /// Where artifacts are made.
    pub fn staging(&self, name: &str) -> PathBuf {
        self.root.join("staging").join(name)
    }

    /// Where a stage with this cache key keeps what outlives its failure.
    pub fn scratch(&self, key: &Digest) -> PathBuf {
        self.root.join("scratch").join(key.to_string())
    }

    /// Where digests of files outside the store are remembered.
    pub fn stat_cache(&self) -> PathBuf {
        self.root.join("stat")
    }

    /// A run's folder.
    pub fn run(&self, run: &str) -> PathBuf {
        self.root.join("runs").join(run)
    }

    /// Where tags lie.
    pub fn tags(&self) -> PathBuf {
        self.root.join("tags")
    }

    /// Where damaged artifacts are moved to.
    pub fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }

    /// Moves a sealed directory into `objects/`. When the same artifact is there already, that one stays.
    ///
    /// # Errors
    /// When the directory is not sealed or cannot be moved.
    pub fn publish(&self, sealed: &Path) -> Result<Manifest, StageError> {
        let manifest = Manifest::read(sealed)?;
        let target = self.object(&manifest.digest);
        let parent = target.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent).doing(|| format!("making {}", parent.display()))?;
        if self.keeps(&manifest, &target)? {
            remove_tree(sealed).doing(|| format!("removing {}", sealed.display()))?;
            return Ok(manifest);
        }
        match fs::rename(sealed, &target) {
            // Another run published the same artifact in this instant: equal by content, so theirs will do.
            Err(_) if target.join(manifest::FILE_NAME).is_file() => {
                remove_tree(sealed).doing(|| format!("removing {}", sealed.display()))?
            }
            moved => moved.doing(|| format!("moving {} to {}", sealed.display(), target.display()))?,
        }
        Ok(manifest)
    }

    /// Whether an artifact is there already, and whole. One that was not settled may have lost its content in a power cut: it
    /// is re-hashed, and moved away if it is damaged.
    fn keeps(&self, manifest: &Manifest, target: &Path) -> Result<bool, StageError> {
        if !target.exists() {
            return Ok(false);
        }
        if is_settled(&target.join(manifest::FILE_NAME)) || Manifest::is_whole(target, &manifest.digest) {
            return Ok(true);
        }
        let aside = self.damaged().join(manifest.digest.to_string());
        let moving = || format!("moving {} to {}", target.display(), aside.display());
        fs::create_dir_all(self.damaged()).and_then(|()| remove_tree(&aside)).doing(moving)?;
        match fs::rename(target, &aside) {
            // Another run was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.doing(moving)?,
        }
        Ok(false)
    }

    /// The record under a cache key, if its artifact is still there. Costs two look-ups, never a hash.
    ///
    /// A record that cannot be read counts as absent: the stage then runs again and replaces it. So does one that was not settled
    /// before the machine was started anew: its artifact may have lost what was not on disk yet.
    pub fn lookup(&self, key: &Digest) -> Option<Hit> {
        let mut file = File::open(self.cache_path(key)).ok()?;
        let is_read_only = file.metadata().ok()?.permissions().readonly();
        let mut text = Vec::new();
        file.read_to_end(&mut text).ok()?;
        let record: CacheRecord = serde_json::from_slice(&text).ok()?;
        // Without a boot it is of a version that synced everything at once.
        let is_settled = is_read_only || record.boot.is_none();
        let holds = is_settled || record.boot.as_deref() == durable::boot();
        let is_there = || self.object(&record.artifact).join(manifest::FILE_NAME).is_file();
        (holds && is_there()).then_some(Hit { record, is_settled })
    }

    /// Remembers which artifact a key gave, from now on; beyond a power cut once [`Self::settle`] was called.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn remember(&self, key: &Digest, record: &CacheRecord) -> Result<(), StageError> {
        let path = self.cache_path(key);
        let doing = || format!("writing the cache record {}", path.display());
        let text = serde_json::to_vec_pretty(record).doing(doing)?;
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).doing(doing)?;
        }
        durable::replace_file(&path, &text).doing(doing)
    }

    /// Makes these keys' records and artifacts survive a power cut. One call for many short stages: each sync makes the file system
    /// write its journal.
    ///
    /// All of it is synced first, and then made read-only: what is found read-only after a power cut was on disk before.
    /// What cannot be synced is forgotten, since nobody knows what of it is on disk.
    ///
    /// # Errors
    /// As `fsync`.
    pub fn settle(&self, records: &[(Digest, Digest)]) -> Result<(), StageError> {
        let settled = self.sync_records(records);
        if settled.is_err() {
            for (key, artifact) in records {
                let (record, object) = (self.cache_path(key), self.object(artifact));
                // A disk that fails may fail here, too: what is left then counts until the next boot and no longer.
                let _ = if is_settled(&record) { Ok(()) } else { fs::remove_file(&record) };
                let _ = if is_settled(&object.join(manifest::FILE_NAME)) { Ok(()) } else { remove_tree(&object) };
            }
        }
        settled
    }

    fn sync_records(&self, records: &[(Digest, Digest)]) -> Result<(), StageError> {
        let syncing = || format!("syncing the store {}", self.root.display());
        let (mut content, mut seals, mut folders) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (key, artifact) in records {
            let (object, record) = (self.object(artifact), self.cache_path(key));
            // `gc` or another run may have removed either.
            if object.is_dir() && record.is_file() {
                content.extend(durable::tree(&object).doing(syncing)?);
                // The folder of a shard, and the one that holds all shards.
                folders.extend([&object, &record].into_iter().flat_map(|path| path.ancestors().skip(1).take(2)).map(Path::to_owned));
                content.push(record.clone());
                seals.extend([object.join(manifest::FILE_NAME), record]);
            }
        }
        durable::sync(&content).doing(syncing)?;
        seals.iter().try_for_each(|path| manifest::set_read_only(path))?;
        seals.extend(folders);
        durable::sync(&seals).doing(syncing)
    }

    /// Who made an artifact from what, back to the raw data: what its manifest lists, and where that ends, what its ancestors' manifests
    /// list, as far as they are still here.
    pub fn lineage(&self, manifest: &Manifest) -> Vec<Ancestor> {
        let mut all = manifest.lineage.clone();
        let mut seen: BTreeSet<Digest> = all.iter().filter_map(|ancestor| ancestor.digest).collect();
        let mut next = 0;
        while let Some(ancestor) = all.get(next) {
            next += 1;
            let Some(digest) = ancestor.digest.filter(|_| ancestor.inputs.values().flatten().any(|input| !seen.contains(input))) else {
                continue;
            };
            let further = Manifest::read(&self.object(&digest)).map(|manifest| manifest.lineage).unwrap_or_default();
            all.extend(further.into_iter().filter(|ancestor| ancestor.digest.is_some_and(|digest| seen.insert(digest))));
        }
        all
    }

    /// Where the record of a key lies.
    pub fn cache_path(&self, key: &Digest) -> PathBuf {
        let name = key.to_string();
        self.root.join("cache").join(&name[..2]).join(format!("{name}.json"))
    }

    fn lock_file(&self, name: &str) -> PathBuf {
        self.root.join("locks").join(format!("{name}.lock"))
    }

    /// Whether somebody holds the lock `name`. Looking leaves no file behind.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn is_locked(&self, name: &str) -> io::Result<bool> {
        match File::open(self.lock_file(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            file => Ok(flock(&file?, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)),
        }
    }

    /// Takes the lock `name` if it is free. It is freed when dropped, or when the process dies in whatever way.
    ///
    /// # Errors
    /// When the lock file cannot be opened.
    pub fn try_lock(&self, name: &str) -> io::Result<Option<Lock>> {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(self.lock_file(name))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the lock `name`, looking at `stop` ten times a second.
    ///
    /// # Errors
    /// As [`Self::try_lock`]; [`io::ErrorKind::Interrupted`] when `stop` says so.
    pub fn lock(&self, name: &str, stop: &dyn Fn() -> bool) -> io::Result<Lock> {
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            if stop() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// A held lock.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Whether a record, or an artifact's manifest, was on disk before it became read-only.
fn is_settled(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|data| data.permissions().readonly())
}

/// Removes a directory tree; one that is gone already is no error.
///
/// # Errors
/// As [`fs::remove_dir_all`].
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Kind, Outcome};

    fn sealed(store: &ObjectStore, name: &str, content: &str) -> PathBuf {
        sealed_from(store, name, content, &[])
    }

    fn sealed_from(store: &ObjectStore, name: &str, content: &str, parents: &[Manifest]) -> PathBuf {
        let dir = store.staging(name);
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/file"), content).unwrap();
        let made_by = Ancestor {
            digest: None,
            kind: Kind::Files,
            uses: "test".into(),
            version: 1,
            config: serde_json::json!({ "name": name }),
            inputs: [("input".to_owned(), parents.iter().map(|parent| parent.digest).collect())].into(),
            rows: None,
        };
        Manifest::seal(&dir, Kind::Files, Outcome::default(), made_by, parents).unwrap();
        dir
    }

    #[test]
    fn a_long_lineage_is_listed_in_part_and_known_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let made = |number: usize, parents: &[Manifest]| {
            store.publish(&sealed_from(&store, &format!("{number}"), &format!("{number}"), parents)).unwrap()
        };
        let mut chain = vec![made(0, &[])];
        (1..250).for_each(|number| chain.push(made(number, &[chain[number - 1].clone()])));
        let digests = |lineage: &[Ancestor]| lineage[1..].iter().filter_map(|ancestor| ancestor.digest).collect::<Vec<_>>();
        let expected: Vec<Digest> = chain[..249].iter().rev().map(|manifest| manifest.digest).collect();
        assert_eq!(digests(&chain[249].lineage), expected[..100]);
        assert_eq!(digests(&store.lineage(&chain[249])), expected);
        let many = made(250, &chain[..120]);
        assert_eq!(many.lineage.len(), 121, "every input is listed, and nothing twice");
    }

    #[test]
    fn the_same_content_is_stored_once_whoever_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let one = store.publish(&sealed(&store, "one", "x")).unwrap();
        let two = store.publish(&sealed(&store, "two", "x")).unwrap();
        assert_eq!(one.digest, two.digest);
        assert_eq!(fs::read_dir(store.root().join("staging")).unwrap().count(), 0);
    }

    #[test]
    fn a_changed_byte_is_named_by_verify() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let manifest = store.publish(&sealed(&store, "one", "x")).unwrap();
        let object = store.object(&manifest.digest);
        assert!(manifest.verify(&object).unwrap().is_empty());
        fs::remove_file(object.join("sub/file")).unwrap();
        fs::write(object.join("sub/file"), "y").unwrap();
        assert_eq!(manifest.verify(&object).unwrap(), ["sub/file has changed"]);
    }

    #[test]
    fn an_unsealed_directory_is_not_published() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        fs::create_dir_all(store.staging("half")).unwrap();
        assert!(store.publish(&store.staging("half")).is_err());
    }

    /// A key's record, and an artifact that it gave; written in this boot of the machine, or in another.
    fn remembered(store: &ObjectStore, name: &str, boot: Option<&str>) -> (Digest, CacheRecord) {
        let (key, artifact) = (Digest::of(name.as_bytes()), store.publish(&sealed(store, name, name)).unwrap().digest);
        let (uses, run, started, machine) = Default::default();
        let (usage, metrics, outputs) = Default::default();
        let boot = boot.map(str::to_owned);
        let record = CacheRecord { artifact, uses, run, started, seconds: 0.0, machine, boot, usage, metrics, outputs };
        store.remember(&key, &record).unwrap();
        (key, record)
    }

    #[test]
    fn a_record_whose_artifact_is_gone_is_no_hit() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let (key, record) = remembered(&store, "one", durable::boot());
        assert_eq!(store.lookup(&key), Some(Hit { record: record.clone(), is_settled: false }));
        remove_tree(&store.object(&record.artifact)).unwrap();
        assert_eq!(store.lookup(&key), None);
    }

    #[test]
    fn what_was_not_settled_counts_as_absent_after_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let (key, record) = remembered(&store, "one", Some("the boot before"));
        assert_eq!(store.lookup(&key), None);
        store.settle(&[(key, record.artifact)]).unwrap();
        assert_eq!(store.lookup(&key), Some(Hit { record, is_settled: true }));
        let (of_old, _) = remembered(&store, "two", None);
        assert!(store.lookup(&of_old).is_some(), "records of earlier versions were synced when they were written");
    }

    #[test]
    fn an_artifact_that_lost_its_content_before_it_was_settled_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let (key, record) = remembered(&store, "one", durable::boot());
        let object = store.object(&record.artifact);
        let empty = || {
            fs::remove_file(object.join("sub/file")).unwrap();
            fs::write(object.join("sub/file"), "").unwrap();
        };
        let content = || fs::read_to_string(object.join("sub/file")).unwrap();
        empty();
        store.publish(&sealed(&store, "again", "one")).unwrap();
        assert_eq!(content(), "one");
        assert!(store.damaged().join(record.artifact.to_string()).is_dir(), "nothing is thrown away");
        fs::remove_file(object.join(manifest::FILE_NAME)).unwrap();
        store.publish(&sealed(&store, "again", "one")).unwrap();
        assert!(object.join(manifest::FILE_NAME).is_file());
        store.settle(&[(key, record.artifact)]).unwrap();
        empty();
        store.publish(&sealed(&store, "again", "one")).unwrap();
        assert_eq!(content(), "", "what is settled is not re-hashed: finding rot is what `verify` is for");
    }

    #[test]
    fn what_cannot_be_synced_is_forgotten_but_for_what_was_settled_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let (before, good) = remembered(&store, "good", durable::boot());
        store.settle(&[(before, good.artifact)]).unwrap();
        let (key, bad) = remembered(&store, "bad", durable::boot());
        std::os::unix::fs::symlink("nowhere", store.object(&bad.artifact).join("cannot be opened")).unwrap();
        assert!(store.settle(&[(before, good.artifact), (key, bad.artifact)]).is_err());
        assert_eq!(store.lookup(&key), None);
        assert!(!store.object(&bad.artifact).exists() && store.lookup(&before).is_some());
    }

    #[test]
    fn a_lock_is_held_by_one_and_freed_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let held = store.try_lock("pipeline").unwrap();
        assert!(held.is_some());
        assert!(store.try_lock("pipeline").unwrap().is_none());
        assert!(store.is_locked("pipeline").unwrap());
        drop(held);
        assert!(!store.is_locked("pipeline").unwrap() && !store.is_locked("another").unwrap());
        assert!(!store.lock_file("another").exists(), "looking makes no file");
        assert!(store.try_lock("pipeline").unwrap().is_some());
    }
}
