//! Rows with the same content, found by the digest of it.

use artifact::{Doing, StageError};
use dataset::Split;
use polars::prelude::*;

use crate::cleaning::Cleaning;

/// One row among its equals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Its place in the data.
    pub row: usize,
    /// Its id.
    pub id: String,
    /// Its label.
    pub label: Option<String>,
    /// The split it came with.
    pub given: Option<Split>,
}

/// What the rows are compared by.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its label.
    pub label: Option<&'a str>,
    /// The split it came with.
    pub given: Option<Split>,
    /// BLAKE3 of its content; none for a row that is left out of the comparison.
    pub digest: Option<[u8; 32]>,
}

/// The groups of two and more rows with the same content. Within a group: test first, then validation, then the rest;
/// there by id. Groups stand in the order of their first rows' ids.
///
/// # Errors
/// When polars fails.
pub fn groups(rows: &[Row]) -> Result<Vec<Vec<Copy>>, StageError> {
    let doing = || "looking for rows with the same content".to_owned();
    let numbers: Vec<u32> = (0..u32::try_from(rows.len()).doing(doing)?).collect();
    let frame = df!("row" => numbers).doing(doing)?;
    let digests = BinaryChunked::from_iter_options("digest".into(), rows.iter().map(|row| row.digest));
    let frame = frame.lazy().with_columns([lit(digests.into_series())]).filter(col("digest").is_not_null());
    let repeated = frame.clone().group_by([col("digest")]).agg([len().alias("copies")]).filter(col("copies").gt(lit(1)));
    let found = repeated.join(frame, [col("digest")], [col("digest")], JoinArgs::new(JoinType::Inner)).collect().doing(doing)?;
    let (digests, numbers) = (found.column("digest").doing(doing)?, found.column("row").doing(doing)?);
    let mut members: Vec<(&[u8], usize)> = digests
        .binary()
        .doing(doing)?
        .iter()
        .zip(numbers.u32().doing(doing)?.iter())
        .filter_map(|(digest, row)| Some((digest?, row? as usize)))
        .collect();
    members.sort_unstable();
    let mut groups: Vec<Vec<Copy>> = members.chunk_by(|a, b| a.0 == b.0).map(|group| in_order(group, rows)).collect();
    groups.sort_by(|a, b| a[0].id.cmp(&b[0].id).then(a[0].row.cmp(&b[0].row)));
    Ok(groups)
}

fn in_order(group: &[(&[u8], usize)], rows: &[Row]) -> Vec<Copy> {
    let copy = |row: usize| Copy { row, id: rows[row].id.to_owned(), label: rows[row].label.map(str::to_owned), given: rows[row].given };
    let mut copies: Vec<Copy> = group.iter().map(|(_, row)| copy(*row)).collect();
    copies.sort_by(|a, b| rank(b.given).cmp(&rank(a.given)).then_with(|| a.id.cmp(&b.id)).then(a.row.cmp(&b.row)));
    copies
}

/// Test is kept before validation, validation before train: a copy in train is the one that leaks.
fn rank(given: Option<Split>) -> u8 {
    match given {
        Some(Split::Test) => 2,
        Some(Split::Validation) => 1,
        Some(Split::Train) | None => 0,
    }
}

/// Why a copy goes, and which row stays in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The row that goes.
    pub row: usize,
    /// `duplicate`, `leak` or `conflict`.
    pub reason: &'static str,
    /// The id of the one that stays; none when none does.
    pub kept: Option<String>,
}

/// Which copies go, by these rules:
///
/// 1. A test split that the data came with stays as it came, so that scores remain comparable.
/// 2. Copies with different labels (a conflict): no one knows which label is right, so all go.
/// 3. Else one copy stays: the one in test, else in validation, else the one whose id sorts first. A copy that goes from
///    another split than the one that stays was a leak; else it is a plain duplicate.
pub fn judge(groups: &[Vec<Copy>]) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = groups.iter().flat_map(|group| judge_one(group)).collect();
    verdicts.sort_by_key(|verdict| verdict.row);
    verdicts
}

fn judge_one(group: &[Copy]) -> Vec<Verdict> {
    let first = &group[0];
    let conflict = has_conflict(group);
    let one = |copy: &Copy| {
        let reason = match (conflict, rank(copy.given) == rank(first.given)) {
            (true, _) => "conflict",
            (false, true) => "duplicate",
            (false, false) => "leak",
        };
        Verdict { row: copy.row, reason, kept: (!conflict).then(|| first.id.clone()) }
    };
    let goes = |copy: &&Copy| copy.given != Some(Split::Test) && (conflict || copy.row != first.row);
    group.iter().filter(goes).map(one).collect()
}

/// True when two copies have different labels; no label differs from none.
fn has_conflict(group: &[Copy]) -> bool {
    let mut labels = group.iter().filter_map(|copy| copy.label.as_deref());
    let first = labels.next();
    labels.any(|label| Some(label) != first)
}

/// What a user should know of the copies beside the counts.
pub fn notes(groups: &[Vec<Copy>], what: &str) -> Vec<String> {
    let mut notes = Vec::new();
    let conflicts: Vec<&Vec<Copy>> = groups.iter().filter(|group| has_conflict(group)).collect();
    if let Some(first) = conflicts.first() {
        let shown: Vec<String> =
            first.iter().take(3).map(|copy| format!("{} is {}", copy.id, copy.label.as_deref().unwrap_or("unlabelled"))).collect();
        notes.push(format!(
            "{} {what} occur more than once with different labels, such as: {}; their copies outside a given test split are dropped",
            conflicts.len(),
            shown.join(", ")
        ));
    }
    let in_test = |group: &Vec<Copy>| group.iter().filter(|copy| copy.given == Some(Split::Test)).count().saturating_sub(1);
    let repeated: usize = groups.iter().map(in_test).sum();
    if repeated > 0 {
        notes.push(format!("{repeated} copies within the test split that the data came with are kept: it stays as it came"));
    }
    notes
}

/// Takes the verdicts into the report; clears what goes from `keep`.
pub fn carry_out(verdicts: &[Verdict], rows: &[Row], keep: &mut [bool], cleaning: &mut Cleaning) {
    for verdict in verdicts {
        keep[verdict.row] = false;
        cleaning.drop_row(rows[verdict.row].id, verdict.reason, verdict.kept.as_deref());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(id: &'static str, label: &'static str, given: Option<Split>, content: &str) -> Row<'static> {
        Row { id, label: Some(label), given, digest: Some(*blake3::hash(content.as_bytes()).as_bytes()) }
    }

    fn judged(rows: &[Row]) -> Vec<(String, &'static str, Option<String>)> {
        judge(&groups(rows).unwrap()).into_iter().map(|verdict| (rows[verdict.row].id.to_owned(), verdict.reason, verdict.kept)).collect()
    }

    #[test]
    fn the_copy_whose_id_sorts_first_stays_wherever_it_stands() {
        let rows = [row("c", "x", None, "same"), row("a", "x", None, "same"), row("b", "x", None, "same"), row("d", "x", None, "other")];
        let expected =
            [("c", "duplicate", "a"), ("b", "duplicate", "a")].map(|(id, reason, kept)| (id.to_owned(), reason, Some(kept.to_owned())));
        assert_eq!(judged(&rows), expected);
    }

    #[test]
    fn a_copy_of_a_test_row_leaves_train_and_validation() {
        let rows = [
            row("a", "x", Some(Split::Train), "same"),
            row("b", "x", Some(Split::Validation), "same"),
            row("c", "x", Some(Split::Test), "same"),
            row("d", "x", Some(Split::Test), "same"),
        ];
        assert_eq!(judged(&rows), [("a".to_owned(), "leak", Some("c".to_owned())), ("b".to_owned(), "leak", Some("c".to_owned()))]);
        assert!(notes(&groups(&rows).unwrap(), "images")[0].starts_with("1 copies within the test split"));
    }

    #[test]
    fn a_copy_of_a_validation_row_leaves_train() {
        let rows = [row("a", "x", Some(Split::Train), "same"), row("b", "x", Some(Split::Validation), "same")];
        assert_eq!(judged(&rows), [("a".to_owned(), "leak", Some("b".to_owned()))]);
    }

    #[test]
    fn copies_with_different_labels_all_go_but_those_in_a_given_test_split() {
        let rows = [row("a", "x", None, "same"), row("b", "y", None, "same"), row("c", "y", Some(Split::Test), "same")];
        assert_eq!(judged(&rows), [("a".to_owned(), "conflict", None), ("b".to_owned(), "conflict", None)]);
        assert!(notes(&groups(&rows).unwrap(), "images")[0].contains("c is y, a is x, b is y"));
    }

    #[test]
    fn rows_left_out_of_the_comparison_are_no_copies() {
        let mut rows = [row("a", "x", None, "same"), row("b", "x", None, "same")];
        rows[1].digest = None;
        assert!(judged(&rows).is_empty());
        assert!(judged(&[]).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn what_is_left_has_no_copy_outside_a_given_test_split(
            rows in proptest::collection::vec((0u8..12, 0usize..2, 0usize..4), 0..60),
        ) {
            let ids: Vec<String> = (0..rows.len()).map(|row| format!("r{row}")).collect();
            let rows: Vec<Row> = rows.iter().zip(&ids).map(|((content, label, given), id)| Row {
                id,
                label: Some(["x", "y"][*label]),
                given: Split::ALL.get(*given).copied(),
                digest: Some([*content; 32]),
            }).collect();
            let verdicts = judge(&groups(&rows).unwrap());
            let gone = |row: usize| verdicts.iter().any(|verdict| verdict.row == row);
            for (row, one) in rows.iter().enumerate() {
                let is_test = one.given == Some(Split::Test);
                proptest::prop_assert!(!(is_test && gone(row)));
                let equals = rows.iter().enumerate().filter(|(other, another)| *other != row && another.digest == one.digest && !gone(*other)).count();
                proptest::prop_assert!(is_test || gone(row) || equals == 0, "row {} has {} equals", row, equals);
                // A row goes only if it has a copy.
                let copies = rows.iter().filter(|another| another.digest == one.digest).count();
                proptest::prop_assert!(!gone(row) || copies > 1);
            }
        }
    }
}
