//! What was dropped and changed, and how many: `cleaning.json`.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::{Doing, StageError};
use serde::{Deserialize, Serialize};

/// The file's name within a processed artifact.
pub const FILE_NAME: &str = "cleaning.json";
/// How many dropped rows are listed by id; all are counted.
pub const LISTED_ROWS: usize = 1000;

/// `cleaning.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Cleaning {
    /// Rows that came.
    pub rows_in: u64,
    /// Rows that are left.
    pub rows_out: u64,
    /// Rows dropped, by reason: `corrupt`, `duplicate`, `leak`, `conflict`, `unlabelled`, `filter`, `missing`.
    pub dropped: BTreeMap<String, u64>,
    /// The first [`LISTED_ROWS`] of them, in the order of the data.
    pub rows: Vec<DroppedRow>,
    /// A table's columns that were changed or left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<ColumnChange>,
    /// What a user should know beside the counts.
    pub notes: Vec<String>,
}

/// A row that was dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedRow {
    /// Its id.
    pub id: String,
    /// Why, as in [`Cleaning::dropped`].
    pub reason: String,
    /// The row that stayed in its place, for a duplicate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
}

/// What was done to a column. Counts are over all rows that are left.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ColumnChange {
    /// Its name.
    pub column: String,
    /// Values that were missing (empty, not a number, infinite) and filled in.
    pub filled: u64,
    /// Values beyond the outlier bounds, set to the bound.
    pub clipped: u64,
    /// Categories in validation or test that train does not have: rows.
    pub unseen: u64,
    /// Why the column is no feature; none when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
}

impl Cleaning {
    /// Counts a dropped row.
    pub fn drop_row(&mut self, id: &str, reason: &str, kept: Option<&str>) {
        *self.dropped.entry(reason.to_owned()).or_default() += 1;
        if self.rows.len() < LISTED_ROWS {
            self.rows.push(DroppedRow { id: id.to_owned(), reason: reason.to_owned(), kept: kept.map(str::to_owned) });
        }
    }

    /// The line that the user reads: `dropped 12 corrupt, 3 duplicates, 2 leaks of 60,000`.
    pub fn summary(&self) -> String {
        if self.dropped.is_empty() {
            return format!("nothing dropped of {} rows", self.rows_in);
        }
        let counts: Vec<String> = self.dropped.iter().map(|(reason, rows)| format!("{rows} {}", in_words(reason, *rows))).collect();
        format!("dropped {} of {} rows", counts.join(", "), self.rows_in)
    }

    /// Writes `dir/cleaning.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), StageError> {
        let path = dir.join(FILE_NAME);
        let doing = || format!("writing {}", path.display());
        std::fs::write(&path, serde_json::to_vec_pretty(self).doing(doing)?).doing(doing)
    }
}

fn in_words(reason: &str, rows: u64) -> String {
    let many = if rows == 1 { "" } else { "s" };
    match reason {
        "duplicate" => format!("duplicate{many}"),
        "leak" => format!("duplicate{many} across splits (leak{many})"),
        "conflict" => if rows == 1 { "copy" } else { "copies" }.to_owned() + " with conflicting labels",
        "filter" => "by the filter".to_owned(),
        "missing" => "with missing values".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_by_reason() {
        let mut cleaning = Cleaning { rows_in: 100, ..Cleaning::default() };
        assert_eq!(cleaning.summary(), "nothing dropped of 100 rows");
        for (reason, kept) in [("duplicate", Some("a")), ("leak", Some("b")), ("corrupt", None), ("duplicate", Some("a"))] {
            cleaning.drop_row("x", reason, kept);
        }
        assert_eq!(cleaning.summary(), "dropped 1 corrupt, 2 duplicates, 1 duplicate across splits (leak) of 100 rows");
    }

    #[test]
    fn all_rows_are_counted_and_the_first_thousand_listed() {
        let mut cleaning = Cleaning::default();
        (0..LISTED_ROWS + 5).for_each(|row| cleaning.drop_row(&row.to_string(), "corrupt", None));
        assert_eq!((cleaning.rows.len(), cleaning.dropped["corrupt"]), (LISTED_ROWS, LISTED_ROWS as u64 + 5));
    }
}
