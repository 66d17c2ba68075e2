//! f for tables: raw rows to feature vectors.

use arrow::array::{ArrayRef, RecordBatch};
use artifact::{StageError, collect_in_order};
use polars::prelude::DataFrame;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::raw;
use crate::{Feature, Source};

/// Everything needed to go from a raw row to its feature vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableTransform {
    /// The column that names a row; none: rows are numbered from 0.
    pub id: Option<String>,
    /// The column that holds the class. Data without it, or with gaps in it, is fine at apply.
    pub label: Option<String>,
    /// The classes of the train split, sorted (as numbers where all are numbers); a label's code is its place here.
    pub classes: Vec<String>,
    /// Raw columns, casts, SQL.
    #[serde(flatten)]
    pub source: Source,
    /// The features, in order, fitted on the train split.
    pub features: Vec<Feature>,
}

/// Rows ready for a network.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeatureMatrix {
    /// One for each row.
    pub ids: Vec<String>,
    /// The true class, where the data has it; not necessarily one of f's classes.
    pub labels: Vec<Option<String>>,
    /// Number of rows.
    pub rows: usize,
    /// Number of features.
    pub columns: usize,
    /// `[rows, columns]`, row by row; finite.
    pub values: Vec<f32>,
}

impl FeatureMatrix {
    /// One row's features.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..(row + 1) * self.columns]
    }
}

impl TableTransform {
    /// Number of features.
    pub fn width(&self) -> usize {
        self.features.iter().map(Feature::width).sum()
    }

    /// The features' names, in order.
    pub fn feature_names(&self) -> Vec<String> {
        self.features.iter().flat_map(Feature::names).collect()
    }

    /// The raw columns that data must have.
    pub fn needed_columns(&self) -> Vec<&str> {
        self.source.columns.iter().filter(|column| column.needed).map(|column| column.name.as_str()).collect()
    }

    /// A label's code; none for a label that the train split did not have.
    pub fn code(&self, label: &str) -> Option<usize> {
        self.classes.iter().position(|class| class == label)
    }

    /// Raw rows to features. Columns may come in any order and among others.
    ///
    /// # Errors
    /// Missing columns, all named at once; a value that does not fit or is missing where it may not be, with column and
    /// row.
    pub fn apply(&self, batches: &[RecordBatch]) -> Result<FeatureMatrix, StageError> {
        let rows = batches.iter().map(RecordBatch::num_rows).sum();
        Ok(FeatureMatrix {
            ids: self.ids(batches, rows)?,
            labels: self.labels(batches, rows)?,
            rows,
            columns: self.width(),
            values: self.encode(&self.source.frame(batches)?)?,
        })
    }

    /// The features of a frame that [`Source::frame`] gave: `[rows, columns]`, row by row.
    ///
    /// # Errors
    /// A missing value where none may be.
    pub fn encode(&self, frame: &DataFrame) -> Result<Vec<f32>, StageError> {
        let columns: Vec<Vec<f32>> =
            collect_in_order(self.features.par_iter().map(|feature| feature.encode(frame)))?.into_iter().flatten().collect();
        let mut values = vec![0.0; frame.height() * columns.len()];
        if !columns.is_empty() {
            values.par_chunks_mut(columns.len()).enumerate().for_each(|(row, out)| {
                out.iter_mut().zip(&columns).for_each(|(out, column)| *out = column[row]);
            });
        }
        Ok(values)
    }

    fn ids(&self, batches: &[RecordBatch], rows: usize) -> Result<Vec<String>, StageError> {
        let numbered = || (0..rows).map(|row| row.to_string()).collect();
        let Some(name) = &self.id else { return Ok(numbered()) };
        let chunks = chunks(batches, name).ok_or_else(|| {
            StageError::new(format!("the data lacks the column `{name}`, which names each row"))
                .help("predictions are joined to the data by it; add it")
        })?;
        let ids = raw::texts(name, &chunks, &[])?;
        ids.into_iter()
            .enumerate()
            .map(|(row, id)| id.ok_or_else(|| StageError::new(format!("the id column `{name}` has no value")).at(format!("row {row}"))))
            .collect()
    }

    fn labels(&self, batches: &[RecordBatch], rows: usize) -> Result<Vec<Option<String>>, StageError> {
        match self.label.as_ref().and_then(|name| chunks(batches, name).map(|chunks| (name, chunks))) {
            Some((name, chunks)) => raw::texts(name, &chunks, &self.source.missing_values),
            None => Ok(vec![None; rows]),
        }
    }
}

/// One column's arrays; none when the data has no such column. No batches at all hold every column, with no rows.
fn chunks(batches: &[RecordBatch], name: &str) -> Option<Vec<ArrayRef>> {
    batches.iter().map(|batch| batch.column_by_name(name).cloned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int64Array, StringArray};

    use super::*;
    use crate::feature::Fill;
    use crate::{CategoryEncoding, ColumnKind, Derived, Encoding, Fitted, NumberEncoding, RawColumn};

    fn number(column: &str, center: f64, spread: f64) -> Feature {
        Feature { column: column.into(), encoding: Encoding::Number(NumberEncoding { clip: None, fill: Some(0.0), center, spread }) }
    }

    fn transform() -> TableTransform {
        let raw = |name: &str, kind| RawColumn { name: name.into(), kind, needed: true };
        let categories = CategoryEncoding { categories: vec!["H".into(), "L".into()], other: false, fill: Fill::With("L".into()) };
        TableTransform {
            id: Some("UDI".into()),
            label: Some("failure".into()),
            classes: vec!["0".into(), "1".into()],
            source: Source {
                columns: vec![raw("torque", ColumnKind::Number), raw("speed", ColumnKind::Number), raw("Type", ColumnKind::Text)],
                derive: vec![Derived { name: "power".into(), expression: "torque * speed".into() }],
                ..Source::default()
            },
            features: vec![
                number("torque", 1.0, 3.0),
                number("power", 0.1, 0.7),
                Feature { column: "Type".into(), encoding: Encoding::OneHot(categories) },
            ],
        }
    }

    fn batch() -> RecordBatch {
        RecordBatch::try_from_iter([
            ("Type", Arc::new(StringArray::from(vec![Some("H"), Some("Q"), None])) as ArrayRef),
            ("UDI", Arc::new(Int64Array::from(vec![7, 8, 9])) as ArrayRef),
            ("speed", Arc::new(Int64Array::from(vec![Some(2), Some(3), None])) as ArrayRef),
            ("torque", Arc::new(Float64Array::from(vec![4.0, 1.0, 1.0])) as ArrayRef),
        ])
        .unwrap()
    }

    #[test]
    fn a_raw_row_becomes_its_features_whatever_the_order_of_columns() {
        let matrix = transform().apply(&[batch()]).unwrap();
        assert_eq!((matrix.rows, matrix.columns), (3, 4));
        assert_eq!(matrix.ids, ["7", "8", "9"]);
        assert_eq!(matrix.labels, [None, None, None]);
        assert_eq!(matrix.row(0), [1.0, ((8.0 - 0.1) / 0.7) as f32, 1.0, 0.0]);
        assert_eq!(matrix.row(1), [0.0, ((3.0 - 0.1) / 0.7) as f32, 0.0, 0.0]);
        assert_eq!(matrix.row(2), [0.0, ((0.0 - 0.1) / 0.7) as f32, 0.0, 1.0]);
    }

    #[test]
    fn a_transform_read_from_its_file_gives_the_same_bits() {
        let dir = tempfile::tempdir().unwrap();
        Fitted::Table(transform()).write(dir.path()).unwrap();
        let read = Fitted::read(dir.path()).unwrap();
        assert_eq!(read, Fitted::Table(transform()));
        let (first, second) = (transform().apply(&[batch()]).unwrap(), read.table().unwrap().apply(&[batch()]).unwrap());
        assert!(first.values.iter().zip(&second.values).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!((read.input_size(), read.classes().len()), (4, 2));
    }

    #[test]
    fn rows_one_at_a_time_give_what_all_at_once_gives() {
        let all = transform().apply(&[batch()]).unwrap();
        for row in 0..3 {
            let one = transform().apply(&[batch().slice(row, 1)]).unwrap();
            assert_eq!((one.ids[0].as_str(), one.row(0)), (all.ids[row].as_str(), all.row(row)));
        }
        let chunked = transform().apply(&[batch().slice(0, 1), batch().slice(1, 2)]).unwrap();
        assert_eq!(chunked, all);
    }

    #[test]
    fn labels_are_taken_where_the_data_has_them() {
        let mut columns: Vec<(String, ArrayRef)> =
            batch().schema().fields().iter().map(|field| field.name().clone()).zip(batch().columns().iter().cloned()).collect();
        columns.push(("failure".into(), Arc::new(Int64Array::from(vec![Some(1), None, Some(5)]))));
        let matrix = transform().apply(&[RecordBatch::try_from_iter(columns).unwrap()]).unwrap();
        assert_eq!(matrix.labels, [Some("1".to_owned()), None, Some("5".to_owned())]);
        assert_eq!((transform().code("1"), transform().code("5")), (Some(1), None));
    }

    #[test]
    fn no_rows_give_no_features() {
        assert_eq!(transform().apply(&[batch().slice(0, 0)]).unwrap().values, Vec::<f32>::new());
    }
}
