//! Which label and split an image has, from the folders it lies in.

use artifact::StageError;
use dataset::Split;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the folders are arranged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Layout {
    /// `split/class` when the outermost folders are called train, training, validation, valid, val, dev, test or
    /// testing; else `class`.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// `train/cat/1.jpg`: split and class.
    #[serde(rename = "split/class")]
    SplitClass,
    /// `cat/1.jpg`: the class only, whatever it is called.
    #[serde(rename = "class")]
    Class,
    /// Folders mean nothing; images have no label.
    #[serde(rename = "flat")]
    Flat,
}

/// The label and split of one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) label: Option<&'a str>,
    pub(crate) split: Option<Split>,
}

/// The split that a folder's or value's name means, in any case.
pub(crate) fn split_of(name: &str) -> Option<Split> {
    match name.to_ascii_lowercase().as_str() {
        "train" | "training" => Some(Split::Train),
        "validation" | "valid" | "val" | "dev" => Some(Split::Validation),
        "test" | "testing" => Some(Split::Test),
        _ => None,
    }
}

/// Label and split of each path, in their order. Folders deeper than the class are part of it.
pub(crate) fn places<'a>(paths: &[&'a str], layout: Layout) -> Result<Vec<Place<'a>>, StageError> {
    let layout = match layout {
        Layout::Auto => detect(paths)?,
        stated => stated,
    };
    paths.iter().map(|path| place(path, layout)).collect()
}

fn place(path: &str, layout: Layout) -> Result<Place<'_>, StageError> {
    let class = |path: &'_ str| path.split_once('/').map(|(class, _)| class.len());
    match layout {
        Layout::Flat => Ok(Place { label: None, split: None }),
        Layout::Auto | Layout::Class => Ok(Place { label: class(path).map(|end| &path[..end]), split: None }),
        Layout::SplitClass => {
            let (folder, rest) = path.split_once('/').unwrap_or(("", path));
            let split = split_of(folder).ok_or_else(|| {
                StageError::new(format!("`{folder}` is no split"))
                    .at(path)
                    .help("with layout = \"split/class\", the outermost folders are train, validation (valid, val, dev) and test; `root` names the folder that they lie in")
            })?;
            Ok(Place { label: class(rest).map(|end| &rest[..end]), split: Some(split) })
        }
    }
}

fn detect(paths: &[&str]) -> Result<Layout, StageError> {
    let folders = || paths.iter().filter_map(|path| path.split_once('/').map(|(folder, _)| folder));
    let named = folders().find(|folder| split_of(folder).is_some());
    let other = folders().find(|folder| split_of(folder).is_none());
    match (named, other) {
        (Some(split), Some(other)) => Err(StageError::new(format!("`{split}` looks like a split, and `{other}` beside it does not")).help(
            "say which it is: layout = \"split/class\" (and take `{other}` away), or layout = \"class\" when both are classes"
                .replace("{other}", other),
        )),
        (Some(_), None) => Ok(Layout::SplitClass),
        (None, _) => Ok(Layout::Class),
    }
}

/// The folders that everything lies in and that say nothing: `photos/` of `photos/cat/1.jpg`, `photos/dog/2.jpg`. As many
/// as leave each image a folder of its own, and never a split's name. Ends with `/` unless empty.
pub(crate) fn shared_root(paths: &[&str]) -> usize {
    let Some(first) = paths.first() else { return 0 };
    let mut end = 0;
    while let Some(slash) = first[end..].find('/') {
        let next = end + slash + 1;
        let holds_all = paths.iter().all(|path| path.starts_with(&first[..next]) && path[next..].contains('/'));
        if !holds_all || split_of(&first[end..next - 1]).is_some() {
            break;
        }
        end = next;
    }
    end
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn all<'a>(paths: &[&'a str], layout: Layout) -> Vec<(Option<&'a str>, Option<Split>)> {
        places(paths, layout).unwrap().into_iter().map(|place| (place.label, place.split)).collect()
    }

    #[test]
    fn splits_are_known_by_their_usual_names() {
        assert_eq!(
            all(&["Train/cat/1.jpg", "val/dog/old/2.jpg", "testing/3.jpg"], Layout::Auto),
            [(Some("cat"), Some(Split::Train)), (Some("dog"), Some(Split::Validation)), (None, Some(Split::Test))]
        );
    }

    #[test]
    fn folders_of_other_names_are_classes() {
        assert_eq!(all(&["cat/1.jpg", "dog/2.jpg", "3.jpg"], Layout::Auto), [(Some("cat"), None), (Some("dog"), None), (None, None)]);
        assert_eq!(all(&["test/1.jpg"], Layout::Class), [(Some("test"), None)]);
        assert_eq!(all(&["cat/1.jpg"], Layout::Flat), [(None, None)]);
    }

    #[test]
    fn a_class_beside_splits_is_a_question_and_no_guess() {
        let error = places(&["extra/cat/1.jpg", "train/cat/1.jpg"], Layout::Auto).unwrap_err();
        assert!(error.message.contains("`train`") && error.message.contains("`extra`"), "{error}");
        assert!(places(&["extra/cat/1.jpg"], Layout::SplitClass).unwrap_err().message.contains("`extra` is no split"));
    }

    #[test]
    fn folders_around_everything_are_passed_over() {
        let root = |paths: &[&'static str]| &paths[0][..shared_root(paths)];
        assert_eq!(root(&["a/b/cat/1.jpg", "a/b/dog/2.jpg"]), "a/b/");
        assert_eq!(root(&["photos/cat/1.jpg"]), "photos/");
        assert_eq!(root(&["cat/1.jpg", "cat/2.jpg"]), "");
        assert_eq!(root(&["x/train/cat/1.jpg", "x/train/dog/1.jpg"]), "x/");
        assert_eq!(root(&["cat/1.jpg", "dog/a/2.jpg"]), "");
        assert_eq!(shared_root(&[]), 0);
    }
}
