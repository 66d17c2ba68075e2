//! Labels: their classes, and what is done with rows that have none.

use artifact::StageError;
use dataset::Split;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to do with rows that have no label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unlabelled {
    /// Stop and name them: a gap in the labels is usually a mistake.
    #[default]
    Fail,
    /// Drop them.
    Drop,
    /// Keep them, in the test split: they are predicted, not learnt from.
    Keep,
}

/// How many rows an error message names.
const NAMED: usize = 5;

/// `a, b, c and 12 more`.
pub fn some_of<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let count = names.len();
    let shown: Vec<&str> = names.take(NAMED).collect();
    match count > NAMED {
        true => format!("{} and {} more", shown.join(", "), count - NAMED),
        false => shown.join(", "),
    }
}

/// Refuses rows without a label.
///
/// # Errors
/// When there are any: how many, and the first ones by id.
pub fn refuse_unlabelled(ids: &[&str], rows: usize) -> Result<(), StageError> {
    if ids.is_empty() {
        return Ok(());
    }
    let (have, them) = if ids.len() == 1 { ("has", "it") } else { ("have", "them") };
    Err(StageError::new(format!("{} of {rows} rows {have} no label", ids.len())).at(format!("id {}", some_of(ids.iter().copied()))).help(
        format!("label {them}, or set `unlabelled = \"drop\"` to leave {them} out, or `unlabelled = \"keep\"` to have {them} predicted"),
    ))
}

/// The classes of the train split, in the order that encodes them.
///
/// # Errors
/// When train has fewer than two classes; when another split has a class that train does not know.
pub fn classes<'a>(labels: impl Iterator<Item = (Option<&'a str>, Split)> + Clone) -> Result<Vec<String>, StageError> {
    let train = labels.clone().filter(|(_, split)| *split == Split::Train).filter_map(|(label, _)| label);
    let rows = train.clone().count();
    let classes = transform::classes::sorted(train);
    if let [only] = classes.as_slice() {
        return Err(StageError::new(format!("all {rows} rows of the train split have the label `{only}`: there is nothing to tell apart"))
            .help("check `label`, and which rows were left out"));
    }
    let known: std::collections::HashSet<&str> = classes.iter().map(String::as_str).collect();
    let mut unknown = std::collections::BTreeMap::<(&str, Split), usize>::new();
    for (label, split) in labels {
        if let Some(label) = label.filter(|label| !known.contains(label)) {
            *unknown.entry((label, split)).or_default() += 1;
        }
    }
    if let Some(((label, split), rows)) = unknown.iter().next() {
        return Err(StageError::new(format!(
            "the {split} split has the label `{label}` ({rows} rows), and the train split does not: no model can learn it"
        ))
        .help("give the train split rows of this class, or leave the class out"));
    }
    Ok(classes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn classes_come_from_train_alone() {
        let rows = [(Some("10"), Split::Train), (Some("9"), Split::Train), (None, Split::Test), (Some("9"), Split::Test)];
        assert_eq!(classes(rows.into_iter()).unwrap(), ["9", "10"]);
    }

    #[test]
    fn a_class_that_train_does_not_have_is_named_with_its_split() {
        let rows = [(Some("a"), Split::Train), (Some("b"), Split::Train), (Some("c"), Split::Test)];
        let text = classes(rows.into_iter()).unwrap_err().to_string();
        assert!(text.contains("`c`") && text.contains("test"), "{text}");
    }

    #[test]
    fn one_class_is_nothing_to_tell_apart() {
        let text = classes([(Some("same"), Split::Train)].into_iter()).unwrap_err().to_string();
        assert!(text.contains("`same`"), "{text}");
    }

    #[test]
    fn rows_without_a_label_are_counted_and_the_first_named() {
        let ids: Vec<String> = (0..20).map(|row| format!("r{row}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let text = refuse_unlabelled(&ids, 60).unwrap_err().to_string();
        assert!(text.contains("20 of 60 rows have no label") && text.contains("r0, r1, r2, r3, r4 and 15 more"), "{text}");
        assert!(refuse_unlabelled(&[], 60).is_ok());
    }
}
