//! What a dataset holds, in numbers: for people, for the report, and for checks.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use artifact::{Doing, StageError, collect_in_order};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{ImageShape, Images, PROFILE_FILE, Split};

/// Bins of a numeric column's histogram, equal in width from minimum to maximum.
pub const HISTOGRAM_BINS: usize = 20;
/// How many of a text column's most frequent values are kept.
pub const TOP_VALUES: usize = 10;

/// `profile.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Examples.
    pub rows: u64,
    /// Examples in each split; those without one under the empty text.
    pub splits: BTreeMap<String, u64>,
    /// Examples of each class in each split: class → split → count. Unlabelled examples are not counted.
    pub classes: BTreeMap<String, BTreeMap<String, u64>>,
    /// Examples without a label.
    pub unlabelled: u64,
    /// A table's columns, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<ColumnProfile>,
    /// For images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageProfile>,
}

/// One column's statistics.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ColumnProfile {
    /// Its name.
    pub name: String,
    /// Its Arrow type.
    pub kind: String,
    /// Missing values.
    pub nulls: u64,
    /// Different values, for text and booleans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct: Option<u64>,
    /// Most frequent values with their counts, for text and booleans.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<(String, u64)>,
    /// Statistics of finite numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numbers: Option<NumberProfile>,
}

/// Statistics of a numeric column's finite values.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NumberProfile {
    /// Smallest.
    pub minimum: f64,
    /// Largest.
    pub maximum: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation of the population (divides by n).
    pub deviation: f64,
    /// Counts in [`HISTOGRAM_BINS`] equal bins from minimum to maximum.
    pub histogram: Vec<u64>,
}

/// Statistics of an image dataset's pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageProfile {
    /// Every image's shape.
    pub shape: ImageShape,
    /// Images that could not be decoded.
    pub corrupt: u64,
    /// Mean of each channel, 0 to 255.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, 0 to 255.
    pub deviation: Vec<f64>,
}

impl Profile {
    /// Profiles an image dataset. Sums are of whole numbers, hence exact and the same in any order.
    pub fn of_images(images: &Images) -> Self {
        let mut profile = Self::default();
        for row in 0..images.len() {
            profile.count(images.label(row), images.split(row).map(Split::name));
        }
        let rows: Vec<usize> = (0..images.len()).collect();
        let moments = ChannelMoments::of(images, &rows);
        let (mean, deviation) = moments.mean_and_deviation();
        let corrupt = (0..images.len()).filter(|row| images.pixels(*row).is_none()).count() as u64;
        profile.image = Some(ImageProfile { shape: images.shape(), corrupt, mean, deviation });
        profile
    }

    /// Profiles a table; `label` and `split` name its columns of that meaning, where it has them.
    ///
    /// # Errors
    /// When a column cannot be cast to numbers or text.
    pub fn of_table(batches: &[RecordBatch], label: Option<&str>, split: Option<&str>) -> Result<Self, StageError> {
        let mut profile = Self::default();
        for batch in batches {
            let text = |name: Option<&str>| name.and_then(|name| batch.column_by_name(name)).map(|column| as_text(column)).transpose();
            let (labels, splits) = (text(label)?, text(split)?);
            for row in 0..batch.num_rows() {
                let value = |column: &Option<ArrayRef>| {
                    column.as_ref().filter(|column| column.is_valid(row)).map(|column| column.as_string::<i32>().value(row).to_owned())
                };
                profile.count(value(&labels).as_deref(), value(&splits).as_deref());
            }
        }
        let columns = batches.first().map_or(0, RecordBatch::num_columns);
        profile.columns = collect_in_order((0..columns).into_par_iter().map(|index| column_profile(batches, index)))?;
        Ok(profile)
    }

    fn count(&mut self, label: Option<&str>, split: Option<&str>) {
        let split = split.unwrap_or_default();
        self.rows += 1;
        *entry(&mut self.splits, split) += 1;
        match label {
            Some(label) => *entry(entry(&mut self.classes, label), split) += 1,
            None => self.unlabelled += 1,
        }
    }

    /// Writes `dir/profile.json`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), StageError> {
        let path = dir.join(PROFILE_FILE);
        let doing = || format!("writing {}", path.display());
        std::fs::write(&path, serde_json::to_vec_pretty(self).doing(doing)?).doing(doing)
    }

    /// Reads `dir/profile.json`.
    ///
    /// # Errors
    /// When the file is missing or no profile.
    pub fn read(dir: &Path) -> Result<Self, StageError> {
        let path = dir.join(PROFILE_FILE);
        let doing = || format!("reading {}", path.display());
        serde_json::from_slice(&std::fs::read(&path).doing(doing)?).doing(doing)
    }
}

/// An entry, made where it is missing, without a copy of the key where it is there.
fn entry<'a, V: Default>(map: &'a mut BTreeMap<String, V>, key: &str) -> &'a mut V {
    if !map.contains_key(key) {
        map.insert(key.to_owned(), V::default());
    }
    map.entry(key.to_owned()).or_default()
}

/// Exact sums over pixels, by channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelMoments {
    /// Pixels counted in each channel.
    pub count: u64,
    /// Sum of values.
    pub sum: Vec<u64>,
    /// Sum of squares.
    pub squares: Vec<u64>,
}

impl ChannelMoments {
    /// Sums over these rows' images; corrupt ones are left out.
    pub fn of(images: &Images, rows: &[usize]) -> Self {
        let channels = images.shape().channels;
        let none = || Self { count: 0, sum: vec![0; channels], squares: vec![0; channels] };
        rows.par_chunks(256)
            .map(|rows| {
                let mut moments = none();
                rows.iter().filter_map(|row| images.pixels(*row)).for_each(|pixels| moments.add(pixels));
                moments
            })
            .reduce(none, Self::merge)
    }

    fn add(&mut self, pixels: &[u8]) {
        let channels = self.sum.len();
        self.count += (pixels.len() / channels) as u64;
        for channel in 0..channels {
            // One image's sums fit 64 bits however large it is; 32 would not.
            let (sum, squares) = pixels
                .iter()
                .skip(channel)
                .step_by(channels)
                .fold((0u64, 0u64), |(sum, squares), value| (sum + u64::from(*value), squares + u64::from(*value) * u64::from(*value)));
            self.sum[channel] += sum;
            self.squares[channel] += squares;
        }
    }

    fn merge(mut self, other: Self) -> Self {
        self.count += other.count;
        self.sum.iter_mut().zip(other.sum).for_each(|(a, b)| *a += b);
        self.squares.iter_mut().zip(other.squares).for_each(|(a, b)| *a += b);
        self
    }

    /// Mean and population standard deviation of each channel, 0 to 255; zeros when nothing was counted.
    pub fn mean_and_deviation(&self) -> (Vec<f64>, Vec<f64>) {
        let count = self.count.max(1) as f64;
        let mean: Vec<f64> = self.sum.iter().map(|sum| *sum as f64 / count).collect();
        let deviation =
            self.squares.iter().zip(&mean).map(|(squares, mean)| (*squares as f64 / count - mean * mean).max(0.0).sqrt()).collect();
        (mean, deviation)
    }
}

fn as_text(column: &ArrayRef) -> Result<ArrayRef, StageError> {
    cast(column, &DataType::Utf8).doing(|| "reading a column as text".into())
}

fn column_profile(batches: &[RecordBatch], index: usize) -> Result<ColumnProfile, StageError> {
    let field = batches[0].schema().field(index).clone();
    let mut profile = ColumnProfile { name: field.name().clone(), kind: field.data_type().to_string(), ..Default::default() };
    let columns: Vec<&ArrayRef> = batches.iter().map(|batch| batch.column(index)).collect();
    profile.nulls = columns.iter().map(|column| column.null_count() as u64).sum();
    match field.data_type() {
        kind if kind.is_numeric() => profile.numbers = numbers(&columns)?,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean => {
            let mut counts = BTreeMap::new();
            for column in columns {
                as_text(column)?.as_string::<i32>().iter().flatten().for_each(|value| *entry(&mut counts, value) += 1);
            }
            profile.distinct = Some(counts.len() as u64);
            let mut top: Vec<(String, u64)> = counts.into_iter().collect();
            top.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            top.truncate(TOP_VALUES);
            profile.top = top;
        }
        _ => {}
    }
    Ok(profile)
}

fn numbers(columns: &[&ArrayRef]) -> Result<Option<NumberProfile>, StageError> {
    let mut values = Vec::new();
    for column in columns {
        let column = cast(column, &DataType::Float64).doing(|| "reading a column as numbers".into())?;
        values.extend(column.as_primitive::<Float64Type>().iter().flatten().filter(|value| value.is_finite()));
    }
    if values.is_empty() {
        return Ok(None);
    }
    let (minimum, maximum) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(*value), high.max(*value)));
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let deviation = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt();
    let mut histogram = vec![0; HISTOGRAM_BINS];
    let width = (maximum - minimum) / HISTOGRAM_BINS as f64;
    for value in &values {
        let bin = if width > 0.0 { ((value - minimum) / width) as usize } else { 0 };
        histogram[bin.min(HISTOGRAM_BINS - 1)] += 1;
    }
    Ok(Some(NumberProfile { minimum, maximum, mean, deviation, histogram }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use arrow::array::{Float64Array, StringArray};

    use super::*;
    use crate::{ImageWriter, table};

    #[test]
    fn a_tables_numbers_agree_with_a_hand_calculation() {
        let batch = RecordBatch::try_from_iter([
            ("x", Arc::new(Float64Array::from(vec![Some(1.0), Some(3.0), None, Some(5.0)])) as ArrayRef),
            ("class", Arc::new(StringArray::from(vec![Some("b"), Some("a"), Some("b"), None])) as ArrayRef),
        ])
        .unwrap();
        let profile = Profile::of_table(&[batch], Some("class"), None).unwrap();
        assert_eq!((profile.rows, profile.unlabelled, profile.columns[0].nulls), (4, 1, 1));
        assert_eq!(profile.classes["b"][""], 2);
        let numbers = profile.columns[0].numbers.clone().unwrap();
        assert_eq!((numbers.minimum, numbers.maximum, numbers.mean), (1.0, 5.0, 3.0));
        assert!((numbers.deviation - (8.0f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!((numbers.histogram[0], numbers.histogram[10], numbers.histogram[19]), (1, 1, 1));
        assert_eq!(profile.columns[1].top, [("b".to_owned(), 2), ("a".to_owned(), 1)]);
    }

    #[test]
    fn channel_moments_leave_corrupt_images_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.parquet");
        let mut writer = ImageWriter::create(&path, ImageShape { height: 1, width: 2, channels: 2 }).unwrap();
        writer.push("0", Some("a"), None, Some(&[10, 0, 30, 0])).unwrap();
        writer.push("1", Some("a"), Some(Split::Test), None).unwrap();
        writer.finish().unwrap();
        let profile = Profile::of_images(&Images::read(&path).unwrap());
        let image = profile.image.clone().unwrap();
        assert_eq!((image.corrupt, image.mean, image.deviation), (1, vec![20.0, 0.0], vec![10.0, 0.0]));
        profile.write(dir.path()).unwrap();
        assert_eq!(Profile::read(dir.path()).unwrap(), profile);
        assert!(table::read_table(&path).is_ok());
    }
}
