//! Re-hashing a store: what is damaged, missing or stray, what depends on it, and moving damage out of the way of runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use artifact::object_store::remove_tree;
use artifact::{CacheRecord, Digest, Doing, Manifest, ObjectStore, StageError, durable, manifest};
use indicatif::{HumanBytes, ProgressBar};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use crate::folder::{file_name, is_temporary, list, list_shards, size};
use crate::tag;

/// What is wrong with a file or a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Wrong {
    /// An artifact's content is not what its digest says.
    Damaged,
    /// Something refers to an artifact that is not there.
    Missing,
    /// A file that is no part of the store.
    Stray,
}

/// One thing that is wrong.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Finding {
    /// What kind of wrong.
    pub wrong: Wrong,
    /// Where.
    pub path: PathBuf,
    /// The artifact, when it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Digest>,
    /// Every file that is damaged, missing or added, and how.
    pub details: Vec<String>,
    /// Who made it and what depends on it.
    pub depends: Vec<String>,
    /// Where it was moved to: no run uses it any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<PathBuf>,
}

/// What a store was found to be.
#[derive(Debug)]
pub struct Verified {
    /// How many artifacts were re-hashed.
    pub artifacts: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong, damage first.
    pub findings: Vec<Finding>,
}

/// Re-hashes every artifact on all cores and looks at every record and tag. Unless it is a `dry_run`, damaged artifacts are
/// moved to `damaged/` and their cache records removed, so that the stage that made one runs again.
///
/// # Errors
/// When the store cannot be listed, or damage cannot be moved.
pub fn verify(store: &ObjectStore, dry_run: bool, bar: &ProgressBar) -> Result<Verified, StageError> {
    let (objects, mut findings) = objects(store)?;
    bar.set_length(objects.iter().map(|(_, path)| size(path)).sum());
    let checked: Vec<Checked> = objects.into_par_iter().filter_map(|(digest, path)| check(digest, path, bar)).collect();
    let whole = checked.iter().filter_map(|checked| checked.manifest.as_ref());
    let users = Users::of(store, whole)?;
    for checked in checked.iter().filter(|checked| !checked.details.is_empty()) {
        findings.push(Finding {
            wrong: Wrong::Damaged,
            path: checked.path.clone(),
            artifact: Some(checked.digest),
            details: checked.details.clone(),
            depends: users.of_artifact(&checked.digest),
            moved_to: if dry_run { None } else { Some(set_aside(store, checked, &users)?) },
        });
    }
    let known: BTreeSet<Digest> = checked.iter().map(|checked| checked.digest).collect();
    let missing = users.needed().filter(|digest| !known.contains(digest) && users.miss(store, digest));
    findings.extend(missing.map(|digest| Finding {
        wrong: Wrong::Missing,
        path: store.object(&digest),
        artifact: Some(digest),
        details: Vec::new(),
        depends: users.of_artifact(&digest),
        moved_to: None,
    }));
    findings.extend(users.unreadable.iter().map(|path| stray(path, "this is no cache record")));
    findings.sort_by(|a, b| (a.wrong, &a.path).cmp(&(b.wrong, &b.path)));
    Ok(Verified { artifacts: checked.len(), bytes: checked.iter().map(|checked| checked.bytes).sum(), findings })
}

/// An artifact, re-hashed.
struct Checked {
    digest: Digest,
    path: PathBuf,
    manifest: Option<Manifest>,
    bytes: u64,
    details: Vec<String>,
}

/// Artifacts and their folders.
type Objects = Vec<(Digest, PathBuf)>;

/// Every artifact's folder, and what lies among them and is none.
fn objects(store: &ObjectStore) -> Result<(Objects, Vec<Finding>), StageError> {
    let root = store.root().join("objects");
    let mut strays: Vec<Finding> =
        list(&root)?.iter().filter(|path| !path.is_dir()).map(|path| stray(path, "no part of the store")).collect();
    let mut objects = Vec::new();
    for path in list_shards(&root)? {
        match file_name(&path).parse::<Digest>().ok().filter(|digest| store.object(digest) == path && path.is_dir()) {
            Some(digest) => objects.push((digest, path)),
            None => strays.push(stray(&path, "no artifact lies under this name")),
        }
    }
    Ok((objects, strays))
}

fn stray(path: &Path, why: &str) -> Finding {
    Finding {
        wrong: Wrong::Stray,
        path: path.to_owned(),
        artifact: None,
        details: vec![why.to_owned()],
        depends: Vec::new(),
        moved_to: None,
    }
}

/// Re-hashes one artifact; none when `gc` has removed it meanwhile.
fn check(digest: Digest, path: PathBuf, bar: &ProgressBar) -> Option<Checked> {
    let (manifest, details) = match Manifest::read(&path) {
        Ok(manifest) => {
            let mut details = manifest.verify(&path).unwrap_or_else(|error| vec![error.to_string()]);
            if manifest.digest != digest {
                details.push(format!("artifact.json is that of {}", manifest.digest.short()));
            }
            (Some(manifest), details)
        }
        Err(error) => (None, vec![error.to_string()]),
    };
    let bytes = size(&path);
    bar.inc(bytes);
    path.is_dir().then_some(Checked { digest, path, manifest, bytes, details })
}

/// Who refers to which artifact.
#[derive(Default)]
struct Users {
    records: BTreeMap<Digest, Vec<(PathBuf, CacheRecord)>>,
    tags: BTreeMap<Digest, Vec<String>>,
    /// Descendants: digest, and the stage type that made each.
    heirs: BTreeMap<Digest, Vec<(Digest, String)>>,
    unreadable: Vec<PathBuf>,
}

impl Users {
    fn of<'a>(store: &ObjectStore, manifests: impl Iterator<Item = &'a Manifest>) -> Result<Self, StageError> {
        let mut users = Self::default();
        for path in list_shards(&store.root().join("cache"))?.into_iter().filter(|path| !is_temporary(path)) {
            match read(&path) {
                Some(record) => users.records.entry(record.artifact).or_default().push((path, record)),
                // `gc` may have removed it in this moment.
                None if path.exists() => users.unreadable.push(path),
                None => {}
            }
        }
        for (name, tag) in tag::all(store)? {
            users.tags.entry(tag.artifact).or_default().push(name);
        }
        for manifest in manifests {
            let uses = manifest.lineage.first().map(|itself| itself.uses.clone()).unwrap_or_default();
            for ancestor in manifest.lineage.iter().filter_map(|ancestor| ancestor.digest) {
                users.heirs.entry(ancestor).or_default().push((manifest.digest, uses.clone()));
            }
        }
        Ok(users)
    }

    /// Artifacts that must be there.
    fn needed(&self) -> impl Iterator<Item = Digest> + '_ {
        let tagged = self.tags.keys().filter(|digest| !self.records.contains_key(digest));
        self.records.keys().chain(tagged).copied()
    }

    /// Whether an artifact that was not found at first is not there indeed: a run may have published it meanwhile, or `gc` removed it
    /// together with what referred to it.
    fn miss(&self, store: &ObjectStore, digest: &Digest) -> bool {
        let recorded = self.records.get(digest).into_iter().flatten();
        let is_needed = recorded.into_iter().any(|(path, _)| read(path).is_some_and(|record| record.artifact == *digest))
            || self.tags.get(digest).into_iter().flatten().any(|name| tag::read(store, name).is_ok_and(|tag| tag.is_some()));
        is_needed && !store.object(digest).join(manifest::FILE_NAME).is_file()
    }

    fn of_artifact(&self, digest: &Digest) -> Vec<String> {
        let made = self.records.get(digest).into_iter().flatten().map(|(_, record)| format!("made by {} in {}", record.uses, record.run));
        let tags = self.tags.get(digest).into_iter().flatten().map(|name| format!("tagged {name}"));
        let heirs = self.heirs.get(digest).into_iter().flatten();
        let heirs = heirs.map(|(heir, uses)| format!("{} ({uses}) was made from it", heir.short()));
        made.chain(tags).chain(heirs).collect()
    }
}

/// A cache record; none when it is gone or is none.
fn read(path: &Path) -> Option<CacheRecord> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Moves an artifact to `damaged/` in one step, and forgets which keys gave it.
fn set_aside(store: &ObjectStore, checked: &Checked, users: &Users) -> Result<PathBuf, StageError> {
    let target = store.damaged().join(checked.digest.to_string());
    let moving = || format!("moving {} to {}", checked.path.display(), target.display());
    fs::create_dir_all(store.damaged()).and_then(|()| remove_tree(&target)).doing(moving)?;
    durable::rename(&checked.path, &target).doing(moving)?;
    for (record, _) in users.records.get(&checked.digest).into_iter().flatten() {
        // Without its artifact it is no hit anyway.
        let _ = fs::remove_file(record);
    }
    Ok(target)
}

/// For people: every finding, then the sum, then what to do.
pub fn tell(store: &ObjectStore, verified: &Verified, seconds: f64) {
    for finding in &verified.findings {
        let word = match finding.wrong {
            Wrong::Damaged => "damaged",
            Wrong::Missing => "missing",
            Wrong::Stray => "stray",
        };
        anstream::println!("{word:<8} {}", finding.path.display());
        finding.details.iter().chain(&finding.depends).for_each(|line| anstream::println!("         {line}"));
        finding.moved_to.iter().for_each(|path| anstream::println!("         moved to {}", path.display()));
    }
    let count = |wrong| verified.findings.iter().filter(|finding| finding.wrong == wrong).count();
    let seconds = crate::render::duration(seconds);
    anstream::println!("{} artifacts, {} re-hashed in {seconds}", verified.artifacts, HumanBytes(verified.bytes));
    let (damaged, missing, strays) = (count(Wrong::Damaged), count(Wrong::Missing), count(Wrong::Stray));
    match verified.findings.is_empty() {
        true => anstream::println!("nothing is damaged, missing or stray"),
        false => anstream::println!("{damaged} damaged, {missing} missing, {strays} stray"),
    }
    if damaged + missing > 0 {
        anstream::println!(
            "help: run the pipelines again: what is gone is made anew; `episteme gc` then removes {}",
            store.damaged().display()
        );
    }
    if strays > 0 {
        anstream::println!("help: nothing in the store made the stray files: look at them, and remove them by hand");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use artifact::manifest::Ancestor;
    use artifact::{Kind, Outcome};

    fn object(store: &ObjectStore, content: &str) -> Digest {
        let dir = store.staging("x");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("file"), content).unwrap();
        let (config, inputs) = (serde_json::Value::Null, BTreeMap::new());
        let made_by = Ancestor { digest: None, kind: Kind::Files, uses: "test".into(), version: 1, config, inputs, rows: None };
        Manifest::seal(&dir, Kind::Files, Outcome::default(), made_by, &[]).unwrap();
        store.publish(&dir).unwrap().digest
    }

    fn wrong(store: &ObjectStore) -> Vec<(Wrong, PathBuf)> {
        let verified = verify(store, true, &ProgressBar::hidden()).unwrap();
        verified.findings.into_iter().map(|finding| (finding.wrong, finding.path)).collect()
    }

    #[test]
    fn what_a_run_publishes_or_gc_removes_meanwhile_is_not_missing() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let [published, removed, lost] = ["published", "removed", "lost"].map(|name| object(&store, name));
        let record = |artifact: Digest| {
            let (uses, run, started, machine) = Default::default();
            let (boot, usage, metrics, outputs) = Default::default();
            let record = CacheRecord { artifact, uses, run, started, seconds: 0.0, machine, boot, usage, metrics, outputs };
            store.remember(&artifact, &record).unwrap();
        };
        [published, removed, lost].into_iter().for_each(record);
        let users = Users::of(&store, std::iter::empty()).unwrap();
        [removed, lost].iter().for_each(|digest| remove_tree(&store.object(digest)).unwrap());
        fs::remove_file(store.cache_path(&removed)).unwrap();
        assert_eq!([published, removed, lost].map(|digest| users.miss(&store, &digest)), [false, false, true]);
    }

    #[test]
    fn each_kind_of_wrong_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let (good, bad, half, lost) = (object(&store, "good"), object(&store, "bad"), object(&store, "half"), object(&store, "lost"));
        assert_eq!(wrong(&store), []);
        let file = store.object(&bad).join("file");
        fs::remove_file(&file).unwrap();
        fs::write(&file, "bed").unwrap();
        fs::remove_file(store.object(&half).join("artifact.json")).unwrap();
        let tag = |artifact| tag::Tag { artifact, run: None, set: String::new(), metrics: BTreeMap::new() };
        tag::write(&store, "lost", &tag(lost)).unwrap();
        tag::write(&store, "good", &tag(good)).unwrap();
        remove_tree(&store.object(&lost)).unwrap();
        fs::write(store.root().join("objects/note"), "").unwrap();
        let mut damaged = [store.object(&bad), store.object(&half)];
        damaged.sort();
        let [first, second] = damaged;
        let expected = [
            (Wrong::Damaged, first),
            (Wrong::Damaged, second),
            (Wrong::Missing, store.object(&lost)),
            (Wrong::Stray, store.root().join("objects/note")),
        ];
        assert_eq!(wrong(&store), expected);
    }
}
