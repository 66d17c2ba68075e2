//! The order of classes.

use std::collections::BTreeSet;

/// Different labels in the order that encodes them: as numbers where all are finite numbers (`9` before `10`), else as
/// text by code point. A label's code is its place in this list.
pub fn sorted<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<String> {
    let distinct: BTreeSet<&str> = labels.collect();
    let mut classes: Vec<String> = distinct.into_iter().map(str::to_owned).collect();
    let number = |label: &String| label.trim().parse::<f64>().ok().filter(|value| value.is_finite());
    if classes.iter().all(|label| number(label).is_some()) {
        // A stable sort: `1` and `1.0` stay in the order of their texts.
        classes.sort_by(|a, b| number(a).partial_cmp(&number(b)).unwrap_or(std::cmp::Ordering::Equal));
    }
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numeric_labels_sort_as_numbers() {
        assert_eq!(sorted(["10", "9", "-1", "9"].into_iter()), ["-1", "9", "10"]);
    }

    #[test]
    fn one_word_among_numbers_makes_all_sort_as_text() {
        assert_eq!(sorted(["10", "9", "none"].into_iter()), ["10", "9", "none"]);
    }
}
