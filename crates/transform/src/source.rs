//! The declared part of a table's f: raw columns, casts, derived columns.

use arrow::array::{ArrayRef, RecordBatch};
use artifact::{Doing, StageError, config};
use polars::prelude::*;
use serde::{Deserialize, Serialize};

use crate::raw::{self, ColumnKind, RawColumn, Values};
use crate::sql::{self, Origins};

/// A column computed from others of the same row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derived {
    /// Its name.
    pub name: String,
    /// The polars SQL expression.
    pub expression: String,
}

/// From raw Arrow columns to the columns that features are made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The raw columns that are read, in the order the SQL sees them.
    pub columns: Vec<RawColumn>,
    /// Texts that stand for a missing value, beside the empty one.
    pub missing_values: Vec<String>,
    /// `SELECT … FROM data`, row by row; runs before the derived columns.
    pub sql: Option<String>,
    /// Computed one after the other, so that each may use those before it.
    pub derive: Vec<Derived>,
}

impl Source {
    /// The typed columns, with SQL and derived columns applied, row for row as they came. Columns may come in any
    /// order and among others; those not needed may be absent.
    ///
    /// # Errors
    /// Missing columns, all named at once; values that do not fit, with column, row and value; SQL that fails.
    pub fn frame(&self, batches: &[RecordBatch]) -> Result<DataFrame, StageError> {
        self.frame_and_origins(batches).map(|(frame, _)| frame)
    }

    /// As [`Self::frame`], with the raw columns that each column is computed from.
    ///
    /// # Errors
    /// As there.
    pub fn frame_and_origins(&self, batches: &[RecordBatch]) -> Result<(DataFrame, Origins), StageError> {
        self.check_columns(batches)?;
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        let columns = self.columns.iter().map(|column| self.column(column, batches, rows)).collect::<Result<Vec<_>, _>>()?;
        let raw = DataFrame::new(rows, columns).doing(|| "putting the columns together".into())?;
        let (mut frame, mut origins) = match &self.sql {
            Some(text) => sql::select(text, raw)?,
            None => {
                let itself = self.columns.iter().map(|column| (column.name.clone(), [column.name.clone()].into())).collect();
                (raw, itself)
            }
        };
        for derived in &self.derive {
            let what = format!("`derive.{}`", derived.name);
            let expression = sql::expression(&what, &derived.expression)?;
            sql::check_columns(&what, &expression, origins.keys().map(String::as_str))?;
            let from = sql::columns(&expression).iter().filter_map(|name| origins.get(name)).flatten().cloned().collect();
            let computing = || format!("computing {what} = {}", derived.expression);
            frame = frame.lazy().with_columns([expression.alias(derived.name.as_str())]).collect().doing(computing)?;
            origins.insert(derived.name.clone(), from);
        }
        match frame.height() == rows {
            true => Ok((frame, origins)),
            false => Err(StageError::new(format!("the derived columns have {} rows for {rows}", frame.height()))),
        }
    }

    /// Every needed column must be there; all that are not are named at once.
    fn check_columns(&self, batches: &[RecordBatch]) -> Result<(), StageError> {
        let Some(schema) = batches.first().map(RecordBatch::schema) else { return Ok(()) };
        let missing: Vec<&str> = self
            .columns
            .iter()
            .filter(|column| column.needed && schema.column_with_name(&column.name).is_none())
            .map(|column| column.name.as_str())
            .collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let quoted: Vec<String> = missing.iter().map(|name| format!("`{name}`")).collect();
        let found: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Err(StageError::new(format!(
            "the data lacks {} {} that f was fitted on",
            if missing.len() == 1 { "the column" } else { "the columns" },
            quoted.join(", ")
        ))
        .help(config::suggest(first, found.into_iter())))
    }

    fn column(&self, column: &RawColumn, batches: &[RecordBatch], rows: usize) -> Result<Column, StageError> {
        let name = PlSmallStr::from_str(&column.name);
        let chunks: Option<Vec<ArrayRef>> = batches.iter().map(|batch| batch.column_by_name(&column.name).cloned()).collect();
        let values = match chunks {
            Some(chunks) => raw::read(&column.name, column.kind, &chunks, &self.missing_values)?,
            None => nothing(column.kind, rows),
        };
        Ok(match values {
            Values::Numbers(values) => Float64Chunked::from_slice_options(name, &values).into_column(),
            Values::Texts(values) => StringChunked::from_iter_options(name, values.into_iter()).into_column(),
            Values::Booleans(values) => BooleanChunked::from_iter_options(name, values.into_iter()).into_column(),
            Values::Dates(values) => Int32Chunked::from_slice_options(name, &values).into_date().into_column(),
            Values::Datetimes(values) => {
                Int64Chunked::from_slice_options(name, &values).into_datetime(TimeUnit::Microseconds, None).into_column()
            }
        })
    }
}

/// A column that is not there and not needed: all missing.
fn nothing(kind: ColumnKind, rows: usize) -> Values {
    match kind {
        ColumnKind::Number => Values::Numbers(vec![None; rows]),
        ColumnKind::Text => Values::Texts(vec![None; rows]),
        ColumnKind::Boolean => Values::Booleans(vec![None; rows]),
        ColumnKind::Date => Values::Dates(vec![None; rows]),
        ColumnKind::Datetime => Values::Datetimes(vec![None; rows]),
    }
}

/// A column's numbers; booleans count as 0 and 1; none where missing or not finite.
///
/// # Errors
/// When the column is not there or holds no numbers.
pub fn numbers(frame: &DataFrame, name: &str) -> Result<Vec<Option<f64>>, StageError> {
    let column = frame.column(name).doing(|| format!("looking for the column `{name}`"))?;
    if !matches!(column.dtype(), dtype if dtype.is_primitive_numeric() || dtype.is_bool() || dtype.is_null()) {
        return Err(StageError::new(format!("the column `{name}` holds {}, and numbers are needed", column.dtype())));
    }
    let cast = column.cast(&DataType::Float64).doing(|| format!("reading the column `{name}` as numbers"))?;
    let values = cast.f64().doing(|| format!("reading the column `{name}` as numbers"))?;
    Ok(values.iter().map(|value| value.filter(|value| value.is_finite())).collect())
}

/// A column's values as words: categories.
///
/// # Errors
/// When the column is not there or has no form as words.
pub fn words(frame: &DataFrame, name: &str) -> Result<Vec<Option<String>>, StageError> {
    let reading = || format!("reading the column `{name}` as categories");
    let column = frame.column(name).doing(reading)?;
    match column.dtype() {
        DataType::String => {
            Ok(column.str().doing(reading)?.iter().map(|value| value.filter(|text| !text.is_empty()).map(str::to_owned)).collect())
        }
        DataType::Boolean => Ok(column.bool().doing(reading)?.iter().map(|value| value.map(|value| value.to_string())).collect()),
        _ => Ok(numbers(frame, name)?.into_iter().map(|value| value.map(raw::number_text)).collect()),
    }
}

/// What a column of the frame is, in a user's words; none for what cannot become a feature.
pub fn kind(dtype: &DataType) -> Option<ColumnKind> {
    match dtype {
        DataType::Boolean => Some(ColumnKind::Boolean),
        DataType::String => Some(ColumnKind::Text),
        DataType::Date => Some(ColumnKind::Date),
        DataType::Datetime(..) => Some(ColumnKind::Datetime),
        dtype if dtype.is_primitive_numeric() => Some(ColumnKind::Number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, StringArray};

    use super::*;

    fn needed(name: &str, kind: ColumnKind) -> RawColumn {
        RawColumn { name: name.into(), kind, needed: true }
    }

    fn source() -> Source {
        Source {
            columns: vec![needed("a", ColumnKind::Number), needed("day", ColumnKind::Date)],
            derive: vec![
                Derived { name: "double".into(), expression: "a * 2".into() },
                Derived { name: "month".into(), expression: "EXTRACT(MONTH FROM day)".into() },
                Derived { name: "both".into(), expression: "double + month".into() },
            ],
            ..Source::default()
        }
    }

    #[test]
    fn columns_come_in_any_order_and_derived_ones_build_on_each_other() {
        let batch = RecordBatch::try_from_iter([
            ("more", Arc::new(Int64Array::from(vec![0, 0])) as ArrayRef),
            ("day", Arc::new(StringArray::from(vec![Some("2024-05-31"), None])) as ArrayRef),
            ("a", Arc::new(Float64Array::from(vec![1.5, 2.5])) as ArrayRef),
        ])
        .unwrap();
        let (frame, origins) = source().frame_and_origins(&[batch]).unwrap();
        assert_eq!(numbers(&frame, "both").unwrap(), [Some(8.0), None]);
        assert_eq!(origins["both"], ["a".to_owned(), "day".to_owned()].into());
    }

    #[test]
    fn all_missing_columns_are_named_at_once() {
        let batch = RecordBatch::try_from_iter([("b", Arc::new(Int64Array::from(vec![0])) as ArrayRef)]).unwrap();
        let text = source().frame(&[batch]).unwrap_err().to_string();
        assert!(text.contains("`a`, `day`"), "{text}");
    }

    #[test]
    fn a_column_that_a_select_star_only_passes_by_may_be_absent() {
        let mut source = Source { columns: vec![needed("a", ColumnKind::Number)], ..Source::default() };
        source.columns.push(RawColumn { name: "leak".into(), kind: ColumnKind::Text, needed: false });
        source.sql = Some("SELECT * EXCLUDE (leak), a + 1 AS b FROM data".into());
        let batch = RecordBatch::try_from_iter([("a", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
        let frame = source.frame(&[batch]).unwrap();
        assert_eq!(numbers(&frame, "b").unwrap(), [Some(2.0)]);
    }
}
