//! Arrow arrays to typed values: a raw table's columns as f wants them.
//!
//! The same column may come as text from one file and as integers from another (a CSV reader guesses from the rows it
//! saw). What f was fitted on is the [`ColumnKind`]; each array is brought to it, or the misfit is named with column,
//! row and value.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Date32Type, Float32Type, Float64Type, TimeUnit, TimestampMicrosecondType};
use artifact::{Doing, StageError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a raw column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ColumnKind {
    /// Any number; computed with as 64-bit floats.
    #[serde(alias = "float", alias = "integer")]
    Number,
    /// Words: categories.
    Text,
    /// True or false.
    Boolean,
    /// A day.
    Date,
    /// A moment, in microseconds (UTC where it had a time zone).
    Datetime,
}

impl ColumnKind {
    /// The kind of an Arrow type; none for those that no table here can hold (lists, structs, binary, …).
    pub fn of(kind: &DataType) -> Option<Self> {
        match kind {
            DataType::Null => Some(Self::Text),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(Self::Text),
            DataType::Boolean => Some(Self::Boolean),
            DataType::Date32 | DataType::Date64 => Some(Self::Date),
            DataType::Timestamp(_, _) => Some(Self::Datetime),
            DataType::Dictionary(_, values) => Self::of(values),
            kind if kind.is_numeric() => Some(Self::Number),
            _ => None,
        }
    }

    /// Its name in TOML.
    pub fn name(self) -> &'static str {
        match self {
            Self::Number => "number",
            Self::Text => "text",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Datetime => "datetime",
        }
    }
}

/// A raw column that f reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawColumn {
    /// Its name.
    pub name: String,
    /// What it is brought to.
    pub kind: ColumnKind,
    /// False for a column that only stands in the way of a `SELECT *`: data without it is fine.
    pub needed: bool,
}

/// A column's values, none for missing.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// Finite numbers.
    Numbers(Vec<Option<f64>>),
    /// Words.
    Texts(Vec<Option<String>>),
    /// True or false.
    Booleans(Vec<Option<bool>>),
    /// Days since 1970-01-01.
    Dates(Vec<Option<i32>>),
    /// Microseconds since 1970-01-01.
    Datetimes(Vec<Option<i64>>),
}

/// Brings one column's chunks to a kind. Nulls, the texts in `missing` (trimmed) and numbers that are not finite become
/// missing.
///
/// # Errors
/// A value that does not fit, with column, row and value; an Arrow type that cannot be used.
pub fn read(name: &str, kind: ColumnKind, chunks: &[ArrayRef], missing: &[String]) -> Result<Values, StageError> {
    let column = Column { name, chunks: plain(name, chunks)?, missing };
    match kind {
        ColumnKind::Text => column.texts().map(Values::Texts),
        ColumnKind::Number => column.each(number_of_text, DataType::Float64, finite, "number").map(Values::Numbers),
        ColumnKind::Boolean => column.booleans().map(Values::Booleans),
        ColumnKind::Date => column.each(date_of_text, DataType::Date32, dates, "date (2024-05-31)").map(Values::Dates),
        ColumnKind::Datetime => {
            column.each(datetime_of_text, DATETIME, datetimes, "date and time (2024-05-31T12:00:00)").map(Values::Datetimes)
        }
    }
}

/// A column as words, for ids and labels; none for missing.
///
/// # Errors
/// As [`read`].
pub fn texts(name: &str, chunks: &[ArrayRef], missing: &[String]) -> Result<Vec<Option<String>>, StageError> {
    Column { name, chunks: plain(name, chunks)?, missing }.texts()
}

/// A number as a category or label: `1`, not `1.0`.
pub fn number_text(value: f64) -> String {
    // Minus zero is zero.
    format!("{}", value + 0.0)
}

const DATETIME: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// Dictionaries unpacked and all text as Utf8: fewer types to tell apart below.
fn plain(name: &str, chunks: &[ArrayRef]) -> Result<Vec<ArrayRef>, StageError> {
    let one = |array: &ArrayRef| {
        if ColumnKind::of(array.data_type()).is_none() {
            return Err(StageError::new(format!("the column `{name}` has type {}, which no table stage can use", array.data_type()))
                .help(format!("drop it (`drop = [\"{name}\"]`), or store it as numbers, text, booleans or dates")));
        }
        let unpacked = match array.data_type() {
            DataType::Dictionary(_, values) => cast(array, values).doing(|| format!("unpacking the column `{name}`"))?,
            _ => array.clone(),
        };
        match unpacked.data_type() {
            DataType::LargeUtf8 | DataType::Utf8View => cast(&unpacked, &DataType::Utf8).doing(|| format!("reading the column `{name}`")),
            _ => Ok(unpacked),
        }
    };
    chunks.iter().map(one).collect()
}

struct Column<'a> {
    name: &'a str,
    chunks: Vec<ArrayRef>,
    missing: &'a [String],
}

impl Column<'_> {
    fn is_missing(&self, text: &str) -> bool {
        text.is_empty() || self.missing.iter().any(|word| word == text)
    }

    fn misfit(&self, row: usize, value: &str, wanted: &str) -> StageError {
        StageError::new(format!("the column `{}` holds {value:?}, which is no {wanted}", self.name)).at(format!("row {row}")).help(format!(
            "mend the row, or name the column in `types` with what it holds, or add {value:?} to `missing_values` if it stands for a missing value"
        ))
    }

    fn texts(&self) -> Result<Vec<Option<String>>, StageError> {
        let mut out = Vec::new();
        for chunk in &self.chunks {
            match chunk.data_type() {
                DataType::Utf8 => {
                    let text = |text: &str| Some(text.trim()).filter(|text| !self.is_missing(text)).map(str::to_owned);
                    out.extend(chunk.as_string::<i32>().iter().map(|value| value.and_then(text)));
                }
                DataType::Float64 => out.extend(
                    chunk.as_primitive::<Float64Type>().iter().map(|value| value.filter(|value| value.is_finite()).map(number_text)),
                ),
                // Formatted as the 32-bit number that it is: 0.1, not 0.10000000149.
                DataType::Float32 => out.extend(
                    chunk
                        .as_primitive::<Float32Type>()
                        .iter()
                        .map(|value| value.filter(|value| value.is_finite()).map(|value| format!("{}", value + 0.0))),
                ),
                DataType::Null => out.extend(std::iter::repeat_n(None, chunk.len())),
                _ => {
                    let text = cast(chunk, &DataType::Utf8).doing(|| format!("reading the column `{}` as text", self.name))?;
                    out.extend(text.as_string::<i32>().iter().map(|value| value.map(str::to_owned)));
                }
            }
        }
        Ok(out)
    }

    /// Text by `parse`, all else by Arrow's cast to `target` and `take`.
    fn each<T>(
        &self,
        parse: fn(&str) -> Option<Option<T>>,
        target: DataType,
        take: fn(&ArrayRef) -> Vec<Option<T>>,
        wanted: &str,
    ) -> Result<Vec<Option<T>>, StageError> {
        let mut out = Vec::new();
        for chunk in &self.chunks {
            if chunk.data_type() == &DataType::Utf8 {
                for (row, value) in chunk.as_string::<i32>().iter().enumerate() {
                    let trimmed = value.map(str::trim).filter(|text| !self.is_missing(text));
                    let parsed =
                        trimmed.map(|text| parse(text).ok_or_else(|| self.misfit(out.len(), chunk.as_string::<i32>().value(row), wanted)));
                    out.push(parsed.transpose()?.flatten());
                }
                continue;
            }
            out.extend(take(&self.cast(chunk, &target, out.len(), wanted)?));
        }
        Ok(out)
    }

    /// Arrow's cast; a value that it cannot bring over is a misfit at its row.
    fn cast(&self, chunk: &ArrayRef, target: &DataType, start: usize, wanted: &str) -> Result<ArrayRef, StageError> {
        let unfit = || {
            StageError::new(format!("the column `{}` has type {}, and it is used as a {wanted}", self.name, chunk.data_type()))
                .help("name the column in `types` with what it holds, or give the data the type that f was fitted on")
        };
        let options = CastOptions { safe: true, ..CastOptions::default() };
        // A date cast to a number would give days without a word about it.
        let days = matches!(ColumnKind::of(chunk.data_type()), Some(ColumnKind::Date | ColumnKind::Datetime));
        if days && target == &DataType::Float64 {
            return Err(unfit());
        }
        let cast = cast_with_options(chunk, target, &options).map_err(|error| unfit().because(&error))?;
        match (0..chunk.len()).find(|row| chunk.is_valid(*row) && cast.is_null(*row) && chunk.data_type() != &DataType::Null) {
            Some(row) => Err(self.misfit(start + row, &shown(chunk, row), wanted)),
            None => Ok(cast),
        }
    }

    fn booleans(&self) -> Result<Vec<Option<bool>>, StageError> {
        let mut out = Vec::new();
        for chunk in &self.chunks {
            if chunk.data_type() == &DataType::Boolean {
                out.extend(chunk.as_boolean().iter());
                continue;
            }
            let texts = Column { name: self.name, chunks: vec![chunk.clone()], missing: self.missing }.texts()?;
            for text in texts {
                let parsed = text.map(|text| {
                    boolean_of_text(&text).ok_or_else(|| self.misfit(out.len(), &text, "boolean (true, false, yes, no, 1, 0)"))
                });
                out.push(parsed.transpose()?);
            }
        }
        Ok(out)
    }
}

/// A value for an error message.
fn shown(array: &ArrayRef, row: usize) -> String {
    arrow::util::display::array_value_to_string(array, row).unwrap_or_else(|_| "a value".to_owned())
}

/// Outer none: no number. Inner none: a number that is not finite, hence missing.
fn number_of_text(text: &str) -> Option<Option<f64>> {
    text.parse::<f64>().ok().map(|value| Some(value).filter(|value| value.is_finite()))
}

fn date_of_text(text: &str) -> Option<Option<i32>> {
    use arrow::compute::kernels::cast_utils::Parser;
    Date32Type::parse(text).map(Some)
}

fn datetime_of_text(text: &str) -> Option<Option<i64>> {
    use arrow::compute::kernels::cast_utils::Parser;
    TimestampMicrosecondType::parse(text).map(Some)
}

fn boolean_of_text(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "0" => Some(false),
        _ => None,
    }
}

fn finite(array: &ArrayRef) -> Vec<Option<f64>> {
    array.as_primitive::<Float64Type>().iter().map(|value| value.filter(|value| value.is_finite())).collect()
}

fn dates(array: &ArrayRef) -> Vec<Option<i32>> {
    array.as_primitive::<Date32Type>().iter().collect()
}

fn datetimes(array: &ArrayRef) -> Vec<Option<i64>> {
    array.as_primitive::<TimestampMicrosecondType>().iter().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int64Array, NullArray, StringArray};

    use super::*;

    fn one(array: impl Array + 'static) -> Vec<ArrayRef> {
        vec![Arc::new(array)]
    }

    #[test]
    fn numbers_come_from_text_integers_and_floats_alike() {
        let missing = ["NA".to_owned()];
        for chunks in [
            one(StringArray::from(vec![Some(" 1.5 "), Some("NA"), Some(""), None, Some("inf")])),
            one(Float64Array::from(vec![Some(1.5), None, Some(f64::NAN), None, Some(f64::INFINITY)])),
        ] {
            assert_eq!(read("x", ColumnKind::Number, &chunks, &missing).unwrap(), Values::Numbers(vec![Some(1.5), None, None, None, None]));
        }
        assert_eq!(read("x", ColumnKind::Number, &one(Int64Array::from(vec![3])), &[]).unwrap(), Values::Numbers(vec![Some(3.0)]));
        assert_eq!(read("x", ColumnKind::Number, &one(BooleanArray::from(vec![true])), &[]).unwrap(), Values::Numbers(vec![Some(1.0)]));
        assert_eq!(read("x", ColumnKind::Number, &one(NullArray::new(2)), &[]).unwrap(), Values::Numbers(vec![None, None]));
    }

    #[test]
    fn a_misfit_names_column_row_and_value_across_chunks() {
        let chunks: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(vec![1, 2])), Arc::new(StringArray::from(vec!["3", "heavy"]))];
        let text = read("Body Mass (g)", ColumnKind::Number, &chunks, &[]).unwrap_err().to_string();
        assert!(text.contains("Body Mass (g)") && text.contains("row 3") && text.contains("\"heavy\""), "{text}");
    }

    #[test]
    fn whole_floats_and_integers_are_the_same_words() {
        for chunks in [one(Float64Array::from(vec![0.0, 1.0])), one(Int64Array::from(vec![0, 1])), one(StringArray::from(vec!["0", "1"]))] {
            assert_eq!(texts("label", &chunks, &[]).unwrap(), [Some("0".to_owned()), Some("1".to_owned())]);
        }
        assert_eq!(texts("x", &one(Float32Array::from(vec![0.1, -0.0])), &[]).unwrap(), [Some("0.1".to_owned()), Some("0".to_owned())]);
    }

    #[test]
    fn booleans_come_from_words_and_digits() {
        let values = read("on", ColumnKind::Boolean, &one(StringArray::from(vec![Some("Yes"), Some("false"), None])), &[]).unwrap();
        assert_eq!(values, Values::Booleans(vec![Some(true), Some(false), None]));
        let text = read("on", ColumnKind::Boolean, &one(Int64Array::from(vec![1, 2])), &[]).unwrap_err().to_string();
        assert!(text.contains("row 1") && text.contains('2'), "{text}");
    }

    #[test]
    fn dates_come_from_text_and_never_turn_into_numbers_silently() {
        let values = read("day", ColumnKind::Date, &one(StringArray::from(vec!["1970-01-11"])), &[]).unwrap();
        assert_eq!(values, Values::Dates(vec![Some(10)]));
        let text = read("day", ColumnKind::Number, &one(Date32Array::from(vec![10])), &[]).unwrap_err().to_string();
        assert!(text.contains("Date32") && text.contains("day"), "{text}");
        let values = read("at", ColumnKind::Datetime, &one(StringArray::from(vec!["1970-01-01T00:00:01"])), &[]).unwrap();
        assert_eq!(values, Values::Datetimes(vec![Some(1_000_000)]));
    }

    #[test]
    fn a_type_that_no_table_can_use_is_refused_by_name() {
        let error = read("blob", ColumnKind::Text, &one(BinaryArray::from(vec![b"x".as_slice()])), &[]).unwrap_err();
        assert!(error.to_string().contains("Binary") && error.help.unwrap().contains("drop = [\"blob\"]"));
    }
}
