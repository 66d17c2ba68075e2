//! The fitted part of a table's f: one feature's imputation, clipping, encoding and scaling.

use artifact::StageError;
use polars::prelude::DataFrame;
use serde::{Deserialize, Serialize};

use crate::source;

/// One column of the frame and how it becomes numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// The raw or derived column.
    pub column: String,
    /// How it becomes numbers.
    #[serde(flatten)]
    pub encoding: Encoding,
}

/// How a column becomes numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "encoding", rename_all = "snake_case")]
pub enum Encoding {
    /// One number: clip, fill, scale, in this order.
    Number(NumberEncoding),
    /// One 0-or-1 column for each category.
    OneHot(CategoryEncoding),
}

/// A number: `(fill(clip(x)) - center) / spread`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NumberEncoding {
    /// Lower and upper bound; values beyond are set to the bound.
    pub clip: Option<[f64; 2]>,
    /// What stands in for a missing value; none: a missing value is an error.
    pub fill: Option<f64>,
    /// Subtracted: the mean, the minimum, or 0.
    pub center: f64,
    /// Divided by: the standard deviation, the range, or 1; never 0.
    pub spread: f64,
}

impl NumberEncoding {
    /// The value within the bounds.
    pub fn clipped(&self, value: f64) -> f64 {
        self.clip.map_or(value, |[low, high]| value.clamp(low, high))
    }

    /// The feature; none when the value is missing and nothing stands in for it.
    pub fn encode(&self, value: Option<f64>) -> Option<f32> {
        let value = value.map(|value| self.clipped(value)).or(self.fill)?;
        // No infinity may reach a network, however odd the data.
        Some(((value - self.center) / self.spread).clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32)
    }
}

/// Categories, one column each. A category that was not seen in training gives 1 in the `other` column where there is
/// one, else 0 everywhere.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CategoryEncoding {
    /// The categories with a column of their own, sorted.
    pub categories: Vec<String>,
    /// True when rare categories share one column, which takes unseen ones too.
    pub other: bool,
    /// What stands in for a missing value.
    pub fill: Fill,
}

/// A missing category.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// This category.
    With(String),
    /// A column of its own, the last one.
    Own,
    /// A missing value is an error.
    Refuse,
}

/// The column of rare and unseen categories: `Type=(other)`.
pub const OTHER: &str = "(other)";
/// The column of missing values: `Sex=(missing)`.
pub const MISSING: &str = "(missing)";

impl CategoryEncoding {
    /// The suffixes of its columns, in order.
    fn suffixes(&self) -> Vec<&str> {
        let mut suffixes: Vec<&str> = self.categories.iter().map(String::as_str).collect();
        suffixes.extend(self.other.then_some(OTHER));
        suffixes.extend((self.fill == Fill::Own).then_some(MISSING));
        suffixes
    }

    /// Which of its columns is 1; inner none: none of them. Outer none: the value is missing and nothing stands in for it.
    fn place(&self, value: Option<&str>) -> Option<Option<usize>> {
        let value = match (value, &self.fill) {
            (Some(value), _) => value,
            (None, Fill::With(fill)) => fill,
            (None, Fill::Own) => return Some(Some(self.categories.len() + usize::from(self.other))),
            (None, Fill::Refuse) => return None,
        };
        let known = self.categories.binary_search_by(|category| category.as_str().cmp(value)).ok();
        Some(known.or(self.other.then_some(self.categories.len())))
    }
}

impl Feature {
    /// The names of its columns, in order: `Torque [Nm]`, or `Type=H`, `Type=L`, `Type=M`.
    pub fn names(&self) -> Vec<String> {
        match &self.encoding {
            Encoding::Number(_) => vec![self.column.clone()],
            Encoding::OneHot(categories) => categories.suffixes().iter().map(|suffix| format!("{}={suffix}", self.column)).collect(),
        }
    }

    /// How many columns it gives.
    pub fn width(&self) -> usize {
        match &self.encoding {
            Encoding::Number(_) => 1,
            Encoding::OneHot(categories) => categories.suffixes().len(),
        }
    }

    /// Its columns, each with one value per row.
    ///
    /// # Errors
    /// A missing value where none may be, with column, row and count.
    pub fn encode(&self, frame: &DataFrame) -> Result<Vec<Vec<f32>>, StageError> {
        match &self.encoding {
            Encoding::Number(number) => {
                let values = source::numbers(frame, &self.column)?;
                let encoded = values.iter().map(|value| number.encode(*value)).collect::<Option<Vec<f32>>>();
                encoded.map(|column| vec![column]).ok_or_else(|| self.refuse_missing(&values))
            }
            Encoding::OneHot(categories) => {
                let values = source::words(frame, &self.column)?;
                let mut columns = vec![vec![0.0; values.len()]; self.width()];
                for (row, value) in values.iter().enumerate() {
                    let place = categories.place(value.as_deref()).ok_or_else(|| self.refuse_missing(&values))?;
                    if let Some(column) = place {
                        columns[column][row] = 1.0;
                    }
                }
                Ok(columns)
            }
        }
    }

    fn refuse_missing<T>(&self, values: &[Option<T>]) -> StageError {
        let rows: Vec<usize> = (0..values.len()).filter(|row| values[*row].is_none()).collect();
        let first = rows.first().copied().unwrap_or_default();
        StageError::new(format!("the column `{}` has no value in {} of {} rows, and f has nothing to put there", self.column, rows.len(), values.len()))
            .at(format!("row {first}"))
            .help("fill the rows in, or choose in `missing` of process.table what stands in for a missing value (median, mean, mode, a constant) and learn again")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use polars::prelude::*;

    use super::*;

    fn one_hot(other: bool, fill: Fill) -> Feature {
        let categories = vec!["H".to_owned(), "L".to_owned()];
        Feature { column: "Type".into(), encoding: Encoding::OneHot(CategoryEncoding { categories, other, fill }) }
    }

    fn types() -> DataFrame {
        df!("Type" => [Some("L"), Some("X"), None]).unwrap()
    }

    #[test]
    fn an_unseen_category_is_zero_everywhere() {
        let feature = one_hot(false, Fill::With("H".into()));
        assert_eq!(feature.names(), ["Type=H", "Type=L"]);
        assert_eq!(feature.encode(&types()).unwrap(), [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]);
    }

    #[test]
    fn with_an_other_column_an_unseen_category_goes_there() {
        let feature = one_hot(true, Fill::Own);
        assert_eq!(feature.names(), ["Type=H", "Type=L", "Type=(other)", "Type=(missing)"]);
        assert_eq!(feature.encode(&types()).unwrap(), [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
    }

    #[test]
    fn a_missing_value_that_nothing_stands_in_for_is_named_with_its_row() {
        let text = one_hot(false, Fill::Refuse).encode(&types()).unwrap_err().to_string();
        assert!(text.contains("`Type`") && text.contains("row 2"), "{text}");
    }

    #[test]
    fn a_number_is_clipped_filled_and_scaled_in_this_order() {
        let number = NumberEncoding { clip: Some([0.0, 10.0]), fill: Some(20.0), center: 5.0, spread: 2.0 };
        assert_eq!([Some(-3.0), Some(99.0), Some(7.0), None].map(|value| number.encode(value).unwrap()), [-2.5, 2.5, 1.0, 7.5]);
        let wild = NumberEncoding { clip: None, fill: None, center: 0.0, spread: 1e-300 };
        assert_eq!((wild.encode(Some(1e300)), wild.encode(None)), (Some(f32::MAX), None));
    }

    #[test]
    fn an_infinite_derived_value_counts_as_missing() {
        let feature = Feature {
            column: "x".into(),
            encoding: Encoding::Number(NumberEncoding { clip: None, fill: Some(1.0), center: 0.0, spread: 1.0 }),
        };
        let frame = df!("x" => [f64::INFINITY, f64::NAN, 3.0]).unwrap();
        assert_eq!(feature.encode(&frame).unwrap(), [[1.0, 1.0, 3.0]]);
    }
}
