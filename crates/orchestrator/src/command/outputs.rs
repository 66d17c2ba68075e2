//! What a command leaves: all that was declared must be there, and goes into the artifact.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use artifact::object_store::remove_tree;
use artifact::{ConfigProblem, Doing, Outcome, StageError};
use serde_json::Value;

use super::{Command, Outputs};

/// What is wrong with a declared path, if something is.
pub fn problem(key: &str, path: &str) -> Option<ConfigProblem> {
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if path.is_empty() || !Path::new(path).components().all(inside) {
        let problem = ConfigProblem::at(key, format!("`{path}` is no path within the stage's output"));
        return Some(problem.help("name it relative to `${output}` or to `directory`, without `..`"));
    }
    let taken = path == artifact::manifest::FILE_NAME;
    taken.then(|| ConfigProblem::at(key, format!("`{path}` is the manifest's name")).help("use another one"))
}

/// How each of these files and folders looks in a folder now; nothing for those that are not there.
pub fn looks(folder: &Path, paths: &[&str]) -> BTreeMap<String, Vec<Look>> {
    let one = |path: &&str| {
        let mut all = Vec::new();
        look(&folder.join(path), &mut all);
        ((*path).to_owned(), all)
    };
    paths.iter().map(one).collect()
}

/// A file's inode, size and times.
pub type Look = (u64, u64, i64, i64);

fn look(path: &Path, all: &mut Vec<Look>) {
    let Ok(data) = fs::symlink_metadata(path) else { return };
    all.push((data.ino(), data.len(), data.ctime(), data.ctime_nsec()));
    if data.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| look(entry, all));
    }
}

/// Moves what the program made in its folder to the output, and sums the output up. `before` is how that folder looked.
///
/// # Errors
/// When a declared output is not there, or the metrics are no JSON.
pub fn gather(command: &Command, output: &Path, place: &Path, before: &BTreeMap<String, Vec<Look>>) -> Result<Outcome, StageError> {
    let paths = command.outputs.paths();
    let after = looks(place, &paths);
    let mut missing = Vec::new();
    for path in paths.into_iter().filter(|path| !output.join(path).exists()) {
        match &after[path] {
            now if !now.is_empty() && Some(now) != before.get(path) => {
                let (from, to) = (place.join(path), output.join(path));
                take(&from, &to).doing(|| format!("moving {} to the artifact", from.display()))?;
            }
            old => missing.push((path, !old.is_empty())),
        }
    }
    if !missing.is_empty() {
        return Err(not_made(&missing, output, place));
    }
    let outputs = match &command.outputs {
        Outputs::Named(named) => named.clone(),
        Outputs::Paths(_) => BTreeMap::new(),
    };
    let metrics = command.metrics.as_ref().map(|path| metrics(&output.join(path))).transpose()?.unwrap_or_default();
    let rows = count(output).doing(|| format!("listing {}", output.display()))?;
    Ok(Outcome { rows: Some(rows), metrics, outputs, schema: Value::Null })
}

fn not_made(missing: &[(&str, bool)], output: &Path, place: &Path) -> StageError {
    let names: Vec<String> = missing.iter().map(|(path, _)| format!("`{path}`")).collect();
    let error = StageError::new(format!("the program ended well and did not make {}", names.join(", ")));
    let folders = format!("looked in {} and {}", output.display(), place.display());
    match missing.iter().any(|(_, old)| *old) {
        true => error.at(folders).help("a file of that name was there before and has not been written: write it to `${output}`"),
        false => error.at(folders).help("write it to `${output}`, or correct `outputs`"),
    }
}

/// Moves a file or folder, also from one file system to another.
fn take(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy(from, to).and_then(|()| remove(from)),
        done => done,
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir_all(to)?;
    fs::read_dir(from)?.try_for_each(|entry| entry.and_then(|entry| copy(&entry.path(), &to.join(entry.file_name()))))
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { remove_tree(path) } else { fs::remove_file(path) }
}

/// How many files are in a folder, at any depth.
fn count(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |files, entry| {
        let entry = entry?;
        Ok(files + if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 })
    })
}

/// The numbers of a JSON file, by their dotted names.
fn metrics(path: &Path) -> Result<BTreeMap<String, f64>, StageError> {
    let reading = || format!("reading the metrics {}", path.display());
    let value: Value = serde_json::from_slice(&fs::read(path).doing(reading)?).doing(reading)?;
    let mut metrics = BTreeMap::new();
    numbers("", &value, &mut metrics);
    Ok(metrics)
}

fn numbers(name: &str, value: &Value, metrics: &mut BTreeMap<String, f64>) {
    match value {
        Value::Object(entries) => {
            let inner = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
            entries.iter().for_each(|(key, value)| numbers(&inner(key), value, metrics));
        }
        value => metrics.extend(value.as_f64().filter(|_| !name.is_empty()).map(|number| (name.to_owned(), number))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_output_lies_within_the_artifact() {
        for good in ["a.csv", "parts/", "./a/b"] {
            assert_eq!(problem("outputs", good), None, "{good}");
        }
        for bad in ["", "/a", "../a", "a/../../b", "artifact.json"] {
            assert!(problem("outputs", bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn numbers_at_any_depth_are_metrics_and_the_rest_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.json");
        fs::write(&path, r#"{"test": {"accuracy": 0.5, "note": "x"}, "rows": 3}"#).unwrap();
        assert_eq!(metrics(&path).unwrap(), BTreeMap::from([("test.accuracy".to_owned(), 0.5), ("rows".to_owned(), 3.0)]));
    }
}
