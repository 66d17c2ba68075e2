//! Train, validation and test: stratified, by seed, the same for the same rows in any order.
//!
//! Within each class the rows are put in the order of a keyed hash of their ids; the first go to test, the next to
//! validation, the rest to train. A row's place thus depends on its id and the seed, not on where it stands in the
//! file nor on the number of threads, and most rows stay where they were when a few are added.

use artifact::{ConfigProblem, StageError};
use dataset::Split;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much to cut off for validation and test, where the data came without.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SplitFractions {
    /// Share of the examples for validation (0 to 1), unless the data came with a validation split.
    pub validation: f64,
    /// Share of the examples for test (0 to 1), unless the data came with a test split.
    pub test: f64,
    /// Give each class its share of every split; false: draw without regard to class.
    pub stratified: bool,
}

impl Default for SplitFractions {
    fn default() -> Self {
        Self { validation: 0.1, test: 0.1, stratified: true }
    }
}

impl SplitFractions {
    /// What is wrong with the fractions.
    pub fn check(&self) -> Vec<ConfigProblem> {
        let share = |name: &str, value: f64| {
            (!(0.0..1.0).contains(&value)).then(|| {
                ConfigProblem::at(&format!("split.{name}"), format!("`{name}` is {value}, and a share from 0 to below 1 is needed"))
                    .help("0.1 takes a tenth of the examples")
            })
        };
        let mut problems: Vec<ConfigProblem> =
            [share("validation", self.validation), share("test", self.test)].into_iter().flatten().collect();
        if problems.is_empty() && self.validation + self.test >= 1.0 {
            problems.push(
                ConfigProblem::at("split", format!("validation {} and test {} leave nothing to train on", self.validation, self.test))
                    .help("together they must stay below 1"),
            );
        }
        problems
    }
}

/// A row to be put in a split.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// What names it: the same bytes give the same split.
    pub key: &'a [u8],
    /// The code of its class; none when it has no label.
    pub class: Option<usize>,
    /// The split it came with.
    pub given: Option<Split>,
}

/// Each row's split.
///
/// Rows keep the split they came with, but for this: when no row came with validation (or test), that share of the rows
/// that came as train or without a split is cut off for it. Rows without a label go to test: nothing can be learnt from
/// them. Every class keeps at least one row in train.
pub fn assign(members: &[Member], fractions: &SplitFractions, seed: u64) -> Vec<Split> {
    let came_with = |split: Split| members.iter().any(|member| member.given == Some(split));
    let mut splits: Vec<Split> = members
        .iter()
        .map(|member| match (member.class, member.given) {
            (None, _) => Split::Test,
            (Some(_), given) => given.unwrap_or(Split::Train),
        })
        .collect();
    let mut strata = strata(members, &splits, fractions.stratified, seed);
    let sizes: Vec<usize> = strata.iter().map(Vec::len).collect();
    let asked = |split: Split, share: f64| if came_with(split) { 0.0 } else { share };
    let (test, validation) = (asked(Split::Test, fractions.test), asked(Split::Validation, fractions.validation));
    for (split, share, due) in [(Split::Test, test, validation), (Split::Validation, validation, 0.0)] {
        // One stays in train, so that the class is known there, and as many as are due to the other split at least.
        let room = |(stratum, size): (&Vec<usize>, &usize)| stratum.len().saturating_sub(1 + quota(*size, due));
        let rooms: Vec<usize> = strata.iter().zip(&sizes).map(room).collect();
        for (stratum, count) in strata.iter_mut().zip(apportion(&sizes, &rooms, share)) {
            stratum.drain(..count).for_each(|row| splits[row] = split);
        }
    }
    splits
}

/// The train rows by class, each class in the order of the keyed hash.
fn strata(members: &[Member], splits: &[Split], stratified: bool, seed: u64) -> Vec<Vec<usize>> {
    let key = *blake3::hash(format!("episteme split {seed}").as_bytes()).as_bytes();
    let mut strata: Vec<Vec<([u8; 32], usize)>> = Vec::new();
    for (row, member) in members.iter().enumerate() {
        let Some(class) = member.class.filter(|_| splits[row] == Split::Train) else { continue };
        let stratum = if stratified { class } else { 0 };
        if strata.len() <= stratum {
            strata.resize(stratum + 1, Vec::new());
        }
        strata[stratum].push((*blake3::keyed_hash(&key, member.key).as_bytes(), row));
    }
    // Equal keys are equal rows; which of them goes where makes no difference.
    strata.iter_mut().for_each(|stratum| stratum.sort_unstable());
    strata.into_iter().map(|stratum| stratum.into_iter().map(|(_, row)| row).collect()).collect()
}

/// Whole numbers near `size * share` for each stratum that add up to the share of all, by largest remainder: each is its
/// quota rounded down, or up where there is room.
fn apportion(sizes: &[usize], rooms: &[usize], share: f64) -> Vec<usize> {
    let total: usize = sizes.iter().sum();
    let mut counts: Vec<usize> = sizes.iter().zip(rooms).map(|(size, room)| quota(*size, share).min(*room)).collect();
    let left = ((total as f64 * share).round() as usize).saturating_sub(counts.iter().sum());
    let mut order: Vec<usize> = (0..sizes.len()).filter(|stratum| counts[*stratum] < rooms[*stratum]).collect();
    let remainder = |stratum: &usize| sizes[*stratum] as f64 * share - counts[*stratum] as f64;
    order.sort_by(|a, b| remainder(b).total_cmp(&remainder(a)).then(a.cmp(b)));
    for stratum in order.into_iter().take(left) {
        counts[stratum] += 1;
    }
    counts
}

/// A stratum's share, rounded down.
fn quota(size: usize, share: f64) -> usize {
    (size as f64 * share) as usize
}

/// Rows in each split, in the order of [`Split::ALL`].
pub fn counts(splits: &[Split]) -> [usize; 3] {
    Split::ALL.map(|split| splits.iter().filter(|one| **one == split).count())
}

/// Checks that there is something to train on; says what else looks wrong.
///
/// # Errors
/// When the train split is empty.
pub fn check(splits: &[Split]) -> Result<Vec<String>, StageError> {
    let [train, validation, test] = counts(splits);
    if train == 0 {
        return Err(
            StageError::new("no row is left in the train split").help("see what was dropped above, and the splits the data came with")
        );
    }
    let empty = [
        (validation, "validation", "learning then picks its best epoch by the training loss"),
        (test, "test", "there is then nothing to measure the model with"),
    ];
    Ok(empty.into_iter().filter(|(rows, ..)| *rows == 0).map(|(_, name, so)| format!("the {name} split is empty: {so}")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Ids and classes of so many rows per class.
    fn rows(sizes: &[usize]) -> Vec<(String, usize)> {
        sizes.iter().enumerate().flat_map(|(class, size)| (0..*size).map(move |row| (format!("{class}-{row}"), class))).collect()
    }

    fn members(rows: &[(String, usize)]) -> Vec<Member<'_>> {
        rows.iter().map(|(id, class)| Member { key: id.as_bytes(), class: Some(*class), given: None }).collect()
    }

    fn fractions(validation: f64, test: f64) -> SplitFractions {
        SplitFractions { validation, test, stratified: true }
    }

    #[test]
    fn every_class_has_its_share_of_every_split_within_one() {
        for sizes in [vec![100, 37, 3, 1], vec![5421, 6742, 5958, 6131, 5842], vec![9661, 339], vec![10; 25]] {
            let rows = rows(&sizes);
            for (validation, test) in [(0.1, 0.1), (0.05, 0.0), (0.2, 0.3), (0.0, 0.25), (1.0 / 3.0, 1.0 / 3.0)] {
                let splits = assign(&members(&rows), &fractions(validation, test), 7);
                for (class, size) in sizes.iter().enumerate() {
                    let count =
                        |split| rows.iter().zip(&splits).filter(|((_, one), found)| *one == class && **found == split).count() as f64;
                    assert!((count(Split::Validation) - *size as f64 * validation).abs() <= 1.0, "{sizes:?} {class} {validation}");
                    assert!((count(Split::Test) - *size as f64 * test).abs() <= 1.0, "{sizes:?} {class} {test}");
                    assert!(count(Split::Train) >= 1.0);
                }
            }
        }
    }

    #[test]
    fn a_class_of_three_has_one_in_every_split() {
        let rows = rows(&[30, 3]);
        let splits = assign(&members(&rows), &fractions(0.492, 0.48), 0);
        let of_three: Vec<Split> = rows.iter().zip(splits).filter(|((_, class), _)| *class == 1).map(|(_, split)| split).collect();
        assert_eq!(counts(&of_three), [1, 1, 1]);
    }

    #[test]
    fn the_whole_split_has_the_share_that_was_asked_for() {
        let rows = rows(&[9661, 339]);
        assert_eq!(counts(&assign(&members(&rows), &fractions(0.1, 0.2), 1)), [7000, 1000, 2000]);
    }

    #[test]
    fn the_order_of_rows_does_not_matter() {
        let rows = rows(&[50, 31]);
        let splits = assign(&members(&rows), &fractions(0.2, 0.2), 3);
        let mut shuffled: Vec<usize> = (0..rows.len()).collect();
        shuffled.sort_by_key(|row| blake3::hash(&row.to_le_bytes()).as_bytes().to_owned());
        let other: Vec<(String, usize)> = shuffled.iter().map(|row| rows[*row].clone()).collect();
        let found = assign(&members(&other), &fractions(0.2, 0.2), 3);
        assert!(shuffled.iter().zip(&found).all(|(row, split)| splits[*row] == *split));
    }

    #[test]
    fn another_seed_gives_another_split() {
        let rows = rows(&[500]);
        let [a, b, again] = [1, 2, 1].map(|seed| assign(&members(&rows), &fractions(0.2, 0.0), seed));
        assert_ne!(a, b);
        assert_eq!(a, again);
    }

    #[test]
    fn splits_that_the_data_came_with_are_honoured() {
        let rows = rows(&[100, 100]);
        let mut given = members(&rows);
        given.iter_mut().enumerate().for_each(|(row, member)| member.given = Some(if row % 5 == 0 { Split::Test } else { Split::Train }));
        let splits = assign(&given, &fractions(0.1, 0.5), 7);
        assert_eq!(counts(&splits), [144, 16, 40]);
        assert!(given.iter().zip(&splits).all(|(member, split)| (member.given == Some(Split::Test)) == (*split == Split::Test)));
    }

    #[test]
    fn with_all_three_given_nothing_moves() {
        let rows = rows(&[30]);
        let mut given = members(&rows);
        given.iter_mut().enumerate().for_each(|(row, member)| member.given = Some(Split::ALL[row % 3]));
        let splits = assign(&given, &fractions(0.1, 0.1), 7);
        assert!(given.iter().zip(&splits).all(|(member, split)| member.given == Some(*split)));
    }

    #[test]
    fn rows_without_a_label_go_to_test() {
        let rows = rows(&[10]);
        let mut unlabelled = members(&rows);
        unlabelled[4].class = None;
        let splits = assign(&unlabelled, &fractions(0.0, 0.0), 7);
        assert_eq!((splits[4], counts(&splits)), (Split::Test, [9, 0, 1]));
    }

    #[test]
    fn a_few_new_rows_move_few_old_ones() {
        let (few, more) = (rows(&[1000]), rows(&[1010]));
        let before = assign(&members(&few), &fractions(0.2, 0.0), 7);
        let after = assign(&members(&more), &fractions(0.2, 0.0), 7);
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert!(moved <= 10, "{moved} rows moved");
    }

    #[test]
    fn fractions_that_make_no_sense_are_refused() {
        assert!(fractions(0.1, 0.1).check().is_empty());
        assert_eq!(fractions(-0.1, 1.5).check().len(), 2);
        assert_eq!(fractions(0.5, 0.5).check().len(), 1);
        assert_eq!(fractions(f64::NAN, 0.5).check().len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_classes_and_shares_each_split_is_fair(
            sizes in proptest::collection::vec(0usize..200, 1..12),
            validation in 0.0f64..0.5,
            test in 0.0f64..0.49,
            seed: u64,
        ) {
            let rows = rows(&sizes);
            let splits = assign(&members(&rows), &fractions(validation, test), seed);
            for (class, size) in sizes.iter().enumerate() {
                let count = |split| rows.iter().zip(&splits).filter(|((_, one), found)| *one == class && **found == split).count();
                for (split, share) in [(Split::Validation, validation), (Split::Test, test)] {
                    proptest::prop_assert!((count(split) as f64 - *size as f64 * share).abs() <= 1.0);
                }
                proptest::prop_assert!(*size == 0 || count(Split::Train) > 0);
            }
        }

        #[test]
        fn a_given_test_row_never_moves(given in proptest::collection::vec(0usize..4, 1..200), seed: u64) {
            let rows = rows(&[given.len()]);
            let mut members = members(&rows);
            members.iter_mut().zip(&given).for_each(|(member, given)| member.given = Split::ALL.get(*given).copied());
            let splits = assign(&members, &fractions(0.2, 0.2), seed);
            for (member, split) in members.iter().zip(&splits) {
                if matches!(member.given, Some(Split::Test | Split::Validation)) {
                    proptest::prop_assert_eq!(member.given, Some(*split));
                } else if given.contains(&2) {
                    proptest::prop_assert_ne!(*split, Split::Test);
                }
            }
        }
    }
}
