//! Cleaning a store: what dead runs left, and what nothing refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use artifact::object_store::remove_tree;
use artifact::{CacheRecord, Doing, Manifest, ObjectStore, StageError};

use crate::begun::{GC_LOCK, is_alive};
use crate::folder::{file_name, is_temporary, list, list_shards, size};
use crate::record::{RunRecord, RunState};
use crate::{record, tag};

/// What was, or would be, removed.
#[derive(Debug, Default)]
pub struct Garbage {
    /// Paths, in order.
    pub removed: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
}

/// Which runs are kept. Without a word, all: and with them every artifact that the cache knows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policy {
    /// So many of each pipeline, the newest.
    pub keep: Option<usize>,
    /// All that are younger.
    pub older_than: Option<Duration>,
}

impl Policy {
    /// Whether it lets anything go.
    fn lets_go(&self) -> bool {
        self.keep.is_some() || self.older_than.is_some()
    }
}

/// Removes staging and temporary files of dead runs, cache records without artifact, and, when no run is alive, scratch
/// folders, and artifacts that no record, kept run or tag needs. A live run is known by its lock; none begins while this is
/// at work. With a policy, runs that it does not keep go, and the cache records that only they used.
///
/// # Errors
/// When the store cannot be listed, or something in it cannot be removed.
pub fn collect(store: &ObjectStore, policy: &Policy, dry_run: bool) -> Result<Garbage, StageError> {
    let _no_run_begins = store.lock(GC_LOCK, &|| false).doing(|| format!("locking the store {}", store.root().display()))?;
    let mut search = Search { store, garbage: Vec::new(), some_run_is_alive: false };
    search.runs()?;
    search.staging()?;
    let kept = if policy.lets_go() { Some(search.let_go(policy)?) } else { None };
    let mut referred = search.records(kept.as_ref())?;
    referred.extend(tagged(store)?);
    if !search.some_run_is_alive {
        search.what_runs_share(&referred)?;
    }
    let mut removed = search.garbage;
    removed.sort();
    removed.dedup();
    let bytes = removed.iter().map(|path| size(path)).sum();
    if !dry_run {
        removed.iter().try_for_each(|path| remove(store, path).doing(|| format!("removing {}", path.display())))?;
    }
    Ok(Garbage { removed, bytes })
}

struct Search<'a> {
    store: &'a ObjectStore,
    garbage: Vec<PathBuf>,
    some_run_is_alive: bool,
}

impl Search<'_> {
    /// Locks of runs that are over, and what they were writing when they ended.
    fn runs(&mut self) -> Result<(), StageError> {
        for lock in self.list("locks")? {
            let name = file_name(&lock);
            let Some(run) = name.strip_prefix("run-").and_then(|name| name.strip_suffix(".lock")) else { continue };
            match is_alive(self.store, run)? {
                true => self.some_run_is_alive = true,
                false => self.garbage.push(lock),
            }
        }
        for run in self.list("runs")?.into_iter().filter(|path| path.is_dir()) {
            if !is_alive(self.store, &file_name(&run))? {
                self.garbage.extend(list(&run)?.into_iter().filter(|path| is_temporary(path)));
            }
        }
        Ok(())
    }

    fn staging(&mut self) -> Result<(), StageError> {
        for staged in self.list("staging")? {
            // `RUN.STAGE`: a stage's name holds no dot.
            let name = file_name(&staged);
            if !is_alive(self.store, name.rsplit_once('.').map_or(name.as_str(), |(run, _)| run))? {
                self.garbage.push(staged);
            }
        }
        Ok(())
    }

    /// Runs that the policy does not keep; the artifacts that the others and the tags need.
    fn let_go(&mut self, policy: &Policy) -> Result<BTreeSet<PathBuf>, StageError> {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let mut needed: BTreeSet<PathBuf> = tagged(self.store)?;
        for folder in record::folders(self.store)?.into_iter().rev() {
            let run = RunRecord::read(self.store, &folder)?;
            let newer = seen.entry(run.pipeline.clone()).or_default();
            let beyond = policy.keep.is_none_or(|keep| *newer >= keep);
            *newer += 1;
            let age = fs::metadata(&folder).and_then(|data| data.modified()).ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
            if beyond && policy.older_than.is_none_or(|limit| age > limit) && run.state != RunState::AtWork {
                self.garbage.push(folder);
            } else {
                needed.extend(run.stages.iter().filter_map(|stage| stage.artifact).map(|digest| self.store.object(&digest)));
            }
        }
        Ok(needed)
    }

    /// Records without artifact, and those that nothing kept needs; the artifacts that the others refer to.
    fn records(&mut self, kept: Option<&BTreeSet<PathBuf>>) -> Result<BTreeSet<PathBuf>, StageError> {
        let mut referred = BTreeSet::new();
        for record in self.list_shards("cache")? {
            if is_temporary(&record) {
                if !self.some_run_is_alive {
                    self.garbage.push(record);
                }
                continue;
            }
            let read = fs::read(&record).ok().and_then(|text| serde_json::from_slice::<CacheRecord>(&text).ok());
            match read.map(|record| self.store.object(&record.artifact)).filter(|object| object.is_dir()) {
                Some(object) if kept.is_none_or(|kept| kept.contains(&object)) => drop(referred.insert(object)),
                // A live run may be about to use it.
                Some(_) if self.some_run_is_alive => {}
                Some(_) => self.garbage.push(record),
                None => self.garbage.push(record),
            }
        }
        Ok(referred)
    }

    /// What belongs to no run in particular: a live one may be about to use it.
    fn what_runs_share(&mut self, referred: &BTreeSet<PathBuf>) -> Result<(), StageError> {
        let keys = self.list("locks")?.into_iter().filter(|lock| file_name(lock).starts_with("key-"));
        self.garbage.extend(keys);
        self.garbage.extend(self.list("scratch")?);
        self.garbage.extend(self.list("damaged")?);
        let objects = self.list_shards("objects")?.into_iter().filter(|object| !referred.contains(object));
        self.garbage.extend(objects);
        Ok(())
    }

    fn list(&self, folder: &str) -> Result<Vec<PathBuf>, StageError> {
        list(&self.store.root().join(folder))
    }

    fn list_shards(&self, folder: &str) -> Result<Vec<PathBuf>, StageError> {
        list_shards(&self.store.root().join(folder))
    }
}

/// What tags name, and what that was made from.
fn tagged(store: &ObjectStore) -> Result<BTreeSet<PathBuf>, StageError> {
    let mut needed = BTreeSet::new();
    for tag in tag::all(store)?.into_values() {
        let object = store.object(&tag.artifact);
        let lineage = Manifest::read(&object).map(|manifest| store.lineage(&manifest)).unwrap_or_default();
        needed.extend(lineage.iter().filter_map(|ancestor| ancestor.digest).map(|digest| store.object(&digest)));
        needed.insert(object);
    }
    Ok(needed)
}

/// Removes a file or a folder. An artifact leaves `objects/` in one step: killed half-way, it would look whole.
fn remove(store: &ObjectStore, path: &Path) -> std::io::Result<()> {
    if path.starts_with(store.root().join("objects")) {
        let aside = store.staging(&format!("gc.{}", file_name(path)));
        remove_tree(&aside)?;
        fs::rename(path, &aside)?;
        return remove_tree(&aside);
    }
    match if path.is_dir() { remove_tree(path) } else { fs::remove_file(path) } {
        // A run that ends in this moment takes its lock away itself.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::begun::Begun;
    use artifact::manifest::Ancestor;
    use artifact::{Digest, Kind, Outcome};

    struct Fixture {
        store: ObjectStore,
        _dir: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { store: ObjectStore::open(dir.path()).unwrap(), _dir: dir }
        }

        /// Publishes an artifact with this content; what it is called in staging matters to none.
        fn object(&self, content: &str) -> PathBuf {
            let dir = self.store.staging("dead.x");
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), content).unwrap();
            let made_by = Ancestor {
                digest: None,
                kind: Kind::Files,
                uses: "test".into(),
                version: 1,
                config: serde_json::Value::Null,
                inputs: Default::default(),
                rows: None,
            };
            Manifest::seal(&dir, Kind::Files, Outcome::default(), made_by, &[]).unwrap();
            self.store.object(&self.store.publish(&dir).unwrap().digest)
        }

        fn record(&self, key: &str, object: &Path) -> PathBuf {
            let record = CacheRecord {
                artifact: file_name(object).parse().unwrap(),
                uses: String::new(),
                run: String::new(),
                started: String::new(),
                seconds: 0.0,
                machine: String::new(),
                boot: None,
                usage: None,
                metrics: Default::default(),
                outputs: Default::default(),
            };
            let key = Digest::of(key.as_bytes());
            self.store.remember(&key, &record).unwrap();
            self.store.cache_path(&key)
        }

        fn write(&self, path: &str) -> PathBuf {
            let path = self.store.root().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "12345").unwrap();
            path
        }
    }

    #[test]
    fn what_dead_runs_left_goes_and_what_is_used_stays() {
        let fixture = Fixture::new();
        let (used, unused, lost) = (fixture.object("used"), fixture.object("unused"), fixture.object("lost"));
        let (record, dangling) = (fixture.record("used", &used), fixture.record("lost", &lost));
        remove_tree(&lost).unwrap();
        let leftovers = ["staging/dead.stage/file", "scratch/key/part", "cache/ab/.x.1.2.tmp", "runs/dead/.run.json.1.2.tmp"];
        let leftovers = leftovers.map(|path| fixture.write(path));
        let locks = ["locks/run-dead.lock", "locks/key-x.lock"].map(|path| fixture.write(path));
        let kept = [fixture.write("runs/dead/stage.log"), fixture.write("locks/pipeline-p.lock"), record, used.join("file")];

        let would = collect(&fixture.store, &Policy::default(), true).unwrap();
        assert!(leftovers.iter().all(|path| path.exists()) && unused.exists(), "a dry run removes nothing");
        let done = collect(&fixture.store, &Policy::default(), false).unwrap();
        assert_eq!((&would.removed, would.bytes), (&done.removed, done.bytes));
        for path in leftovers.iter().chain(&locks).chain([&unused, &dangling]) {
            assert!(!path.exists(), "{} is left", path.display());
        }
        for path in kept {
            assert!(path.exists(), "{} is gone", path.display());
        }
        assert_eq!(collect(&fixture.store, &Policy::default(), false).unwrap().removed, Vec::<PathBuf>::new(), "nothing is left to do");
    }

    #[test]
    fn nothing_that_a_live_run_may_use_goes() {
        let fixture = Fixture::new();
        let begun = Begun::new(&fixture.store, "p", &|| false).unwrap();
        let kept = [
            fixture.write(&format!("staging/{}.model/weights", begun.name)),
            fixture.write(&format!("runs/{}/.run.json.1.2.tmp", begun.name)),
            fixture.write("scratch/key/part"),
            fixture.write("locks/key-x.lock"),
            fixture.object("just published, not yet remembered").join("file"),
        ];
        let dead = fixture.write("staging/dead.model/weights");
        collect(&fixture.store, &Policy::default(), false).unwrap();
        assert!(!dead.exists());
        for path in &kept {
            assert!(path.exists(), "{} is gone", path.display());
        }
        drop(begun);
        collect(&fixture.store, &Policy::default(), false).unwrap();
        assert!(kept.iter().all(|path| !path.exists()), "with its run it is garbage");
    }

    #[test]
    fn what_a_killed_gc_had_set_aside_goes_the_next_time() {
        let fixture = Fixture::new();
        let aside = fixture.write("staging/gc.ab12/file");
        assert_eq!(collect(&fixture.store, &Policy::default(), false).unwrap().bytes, 5);
        assert!(!aside.exists());
    }

    #[test]
    fn what_is_tagged_stays_and_what_only_old_runs_gave_goes_with_them() {
        let fixture = Fixture::new();
        let objects = ["tagged", "old", "new"].map(|name| fixture.object(name));
        let records = ["tagged", "old", "new"].map(|name| fixture.record(name, &fixture.object(name)));
        let tag = tag::Tag { artifact: file_name(&objects[0]).parse().unwrap(), run: None, set: String::new(), metrics: BTreeMap::new() };
        tag::write(&fixture.store, "keep", &tag).unwrap();
        let run = |name: &str, object: &Path| {
            let event = format!(
                "{{\"type\":\"stage_finished\",\"stage\":\"s\",\"status\":\"ran\",\"seconds\":1.0,\"artifact\":\"{}\"}}",
                file_name(object)
            );
            let path = fixture.write(&format!("runs/{name}/events.jsonl"));
            fs::write(&path, event).unwrap();
            path
        };
        let (old, new) = (run("20260101T000000-p-1", &objects[1]), run("20260102T000000-p-1", &objects[2]));
        let other = run("20250101T000000-q-1", &objects[2]);
        let policy = Policy { keep: Some(1), older_than: Some(Duration::from_secs(3600)) };
        collect(&fixture.store, &policy, false).unwrap();
        assert!(old.exists(), "it is beyond the count, but young");
        collect(&fixture.store, &Policy { keep: Some(1), older_than: None }, false).unwrap();
        assert!(!old.exists() && new.exists() && other.exists(), "one of each pipeline stays");
        let left = |paths: &[PathBuf; 3]| paths.each_ref().map(|path| path.exists());
        assert_eq!((left(&objects), left(&records)), ([true, false, true], [true, false, true]));
    }
}
