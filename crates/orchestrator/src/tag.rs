//! Tags: names for artifacts, such as `model:best`. `gc` keeps what a tag names.

use std::collections::BTreeMap;
use std::fs;

use artifact::{Digest, Doing, ObjectStore, StageError, durable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::folder::{file_name, is_temporary, list};

/// What a tag names, and how it came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Tag {
    /// The artifact.
    pub artifact: Digest,
    /// The run that set it by a promotion rule; none when a person did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// When it was set, RFC 3339.
    pub set: String,
    /// The metrics that stood for it then: `current` in promotion rules looks here.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
}

/// Whether a text can name a tag.
///
/// # Errors
/// Why it cannot.
pub fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if name.is_empty() || !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(fits) {
        return Err("a tag begins with a letter or digit and has letters, digits and - _ . : only".into());
    }
    if name.len() >= 4 && name.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err("it could be the beginning of a digest".into());
    }
    if name.len() > 200 {
        return Err("it is longer than 200 letters".into());
    }
    Ok(())
}

/// What a tag names; none if there is no such tag.
///
/// # Errors
/// When its file is damaged.
pub fn read(store: &ObjectStore, name: &str) -> Result<Option<Tag>, StageError> {
    if check_name(name).is_err() {
        return Ok(None);
    }
    let path = store.tags().join(name);
    let reading = || format!("reading the tag {}", path.display());
    match fs::read(&path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).doing(reading)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).doing(reading),
    }
}

/// Sets a tag, whatever it named before.
///
/// # Errors
/// When it cannot be written.
pub fn write(store: &ObjectStore, name: &str, tag: &Tag) -> Result<(), StageError> {
    let path = store.tags().join(name);
    let writing = || format!("writing the tag {}", path.display());
    let text = serde_json::to_vec_pretty(tag).doing(writing)?;
    fs::create_dir_all(store.tags()).and_then(|()| durable::write_file(&path, &text)).doing(writing)
}

/// Takes a tag away; the artifact stays until `gc` finds that nothing needs it. False when there is no such tag.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(store: &ObjectStore, name: &str) -> Result<bool, StageError> {
    if read(store, name)?.is_none() {
        return Ok(false);
    }
    let path = store.tags().join(name);
    fs::remove_file(&path).and_then(|()| durable::sync_folder(&store.tags())).doing(|| format!("removing {}", path.display()))?;
    Ok(true)
}

/// All tags, by name.
///
/// # Errors
/// When one cannot be read.
pub fn all(store: &ObjectStore) -> Result<BTreeMap<String, Tag>, StageError> {
    let names = list(&store.tags())?.into_iter().filter(|path| !is_temporary(path)).map(|path| file_name(&path));
    names.filter_map(|name| read(store, &name).map(|tag| tag.map(|tag| (name, tag))).transpose()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_tag_names_what_it_was_set_to_last_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = ObjectStore::open(dir.path()).unwrap();
        let tag = |text: &str| Tag { artifact: Digest::of(text.as_bytes()), run: None, set: String::new(), metrics: BTreeMap::new() };
        assert_eq!(read(&store, "model:best").unwrap(), None);
        write(&store, "model:best", &tag("one")).unwrap();
        write(&store, "model:best", &tag("two")).unwrap();
        write(&store, "keep", &tag("three")).unwrap();
        assert_eq!(read(&store, "model:best").unwrap(), Some(tag("two")));
        assert_eq!(all(&store).unwrap().into_keys().collect::<Vec<_>>(), ["keep", "model:best"]);
        assert!(remove(&store, "model:best").unwrap());
        assert!(!remove(&store, "model:best").unwrap(), "it is gone already");
    }

    #[test]
    fn what_could_leave_the_folder_or_be_a_digest_names_no_tag() {
        for name in ["", ".hidden", "../up", "a/b", "cafe", "12345678", "-x", "a b", "ü"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        for name in ["model:best", "v1.2", "production", "abc"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
    }
}
