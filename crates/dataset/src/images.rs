//! Reading an image dataset over a memory map.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BinaryViewArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use artifact::{Doing, StageError};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};

use crate::{ImageShape, MappedFile, ROW_GROUP_ROWS, Split};

/// An image dataset in memory: labels and ids decoded, pixels as views into the mapped file.
pub struct Images {
    shape: ImageShape,
    /// Distinct labels, in order of first appearance.
    label_names: Vec<String>,
    labels: Vec<Option<u32>>,
    splits: Vec<Option<Split>>,
    ids: Vec<StringArray>,
    pixels: Vec<BinaryViewArray>,
    /// First row of each batch, and the row count at the end.
    starts: Vec<usize>,
    file: MappedFile,
}

impl Images {
    /// Opens `data.parquet` of an image dataset.
    ///
    /// # Errors
    /// When the file cannot be read, is no image dataset, or holds an image of another size; each names the row.
    pub fn read(path: &Path) -> Result<Self, StageError> {
        let doing = || format!("reading the image dataset {}", path.display());
        let file = MappedFile::open(path)?;
        let bytes = file.bytes();
        let found = ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()).doing(doing)?;
        let shape = ImageShape::from_metadata(found.schema().metadata()).map_err(|error| error.at(path.display()))?;
        let options = ArrowReaderOptions::new().with_schema(Arc::new(as_views(found.schema(), path)?));
        let reader = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options)
            .doing(doing)?
            .with_batch_size(ROW_GROUP_ROWS)
            .build()
            .doing(doing)?;
        let mut images = Self {
            shape,
            label_names: Vec::new(),
            labels: Vec::new(),
            splits: Vec::new(),
            ids: Vec::new(),
            pixels: Vec::new(),
            starts: vec![0],
            file,
        };
        let mut codes = HashMap::new();
        for batch in reader {
            images.add(&batch.doing(doing)?, &mut codes).map_err(|error| error.at(path.display()))?;
        }
        Ok(images)
    }

    /// Tells the kernel that images will be read in no order, again and again; see [`MappedFile::will_be_read_at_random`].
    pub fn will_be_read_at_random(&self) {
        self.file.will_be_read_at_random();
    }

    fn add(&mut self, batch: &RecordBatch, codes: &mut HashMap<String, u32>) -> Result<(), StageError> {
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| StageError::new(format!("the column `{name}` is missing")));
        let text = |name: &str| Ok::<_, StageError>(column(name)?.as_string::<i32>().clone());
        let (ids, labels, splits, pixels) = (text("id")?, text("label")?, text("split")?, column("image")?.as_binary_view().clone());
        let start = self.len();
        for row in 0..batch.num_rows() {
            if pixels.is_valid(row) && pixels.value(row).len() != self.shape.bytes() {
                return Err(StageError::new(format!(
                    "row {} has {} bytes of pixels, and a {} image has {}",
                    start + row,
                    pixels.value(row).len(),
                    self.shape,
                    self.shape.bytes()
                )));
            }
            self.splits.push(
                splits
                    .is_valid(row)
                    .then(|| splits.value(row).parse())
                    .transpose()
                    .map_err(|error: StageError| error.at(format!("row {}", start + row)))?,
            );
        }
        self.labels.extend(labels.iter().map(|label| {
            label.map(|label| match codes.get(label) {
                Some(code) => *code,
                None => {
                    let code = u32::try_from(self.label_names.len()).unwrap_or(u32::MAX);
                    self.label_names.push(label.to_owned());
                    codes.insert(label.to_owned(), code);
                    code
                }
            })
        }));
        self.ids.push(ids);
        self.pixels.push(pixels);
        self.starts.push(start + batch.num_rows());
        Ok(())
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True when there is no example.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The shape that every image has.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// The example's id. Panics past the end, as indexing does.
    pub fn id(&self, row: usize) -> &str {
        let (batch, row) = self.place(row);
        self.ids[batch].value(row)
    }

    /// The example's label, where it has one.
    pub fn label(&self, row: usize) -> Option<&str> {
        self.labels[row].map(|code| self.label_names[code as usize].as_str())
    }

    /// The example's split, where it has one.
    pub fn split(&self, row: usize) -> Option<Split> {
        self.splits[row]
    }

    /// The example's pixels `[height, width, channels]`; none for a corrupt image.
    pub fn pixels(&self, row: usize) -> Option<&[u8]> {
        let (batch, row) = self.place(row);
        let pixels = &self.pixels[batch];
        pixels.is_valid(row).then(|| pixels.value(row))
    }

    /// Distinct labels, in order of first appearance.
    pub fn label_names(&self) -> &[String] {
        &self.label_names
    }

    /// Each example's place in [`Self::label_names`].
    pub fn label_codes(&self) -> &[Option<u32>] {
        &self.labels
    }

    fn place(&self, row: usize) -> (usize, usize) {
        let batch = self.starts.partition_point(|start| *start <= row) - 1;
        (batch, row - self.starts[batch])
    }
}

/// The same schema with text plain and pixels as views, which need no copy; refuses what has other types.
fn as_views(found: &Schema, path: &Path) -> Result<Schema, StageError> {
    let mut fields = Vec::new();
    for field in found.fields() {
        let kind = match (field.name().as_str(), field.data_type()) {
            ("image", DataType::Binary | DataType::BinaryView | DataType::LargeBinary) => DataType::BinaryView,
            ("id" | "label" | "split", DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8) => DataType::Utf8,
            (name @ ("image" | "id" | "label" | "split"), other) => {
                return Err(StageError::new(format!("the column `{name}` has type {other}"))
                    .at(path.display())
                    .help("image datasets have id, label, split as text and image as binary"));
            }
            (_, other) => other.clone(),
        };
        fields.push(Field::new(field.name(), kind, field.is_nullable()).with_metadata(field.metadata().clone()));
    }
    for name in ["id", "label", "split", "image"] {
        if found.field_with_name(name).is_err() {
            return Err(StageError::new(format!("the column `{name}` is missing")).at(path.display()));
        }
    }
    Ok(Schema::new_with_metadata(fields, found.metadata().clone()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ImageWriter;

    const SHAPE: ImageShape = ImageShape { height: 2, width: 3, channels: 1 };

    #[test]
    fn what_is_written_is_read_back_across_row_groups() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.parquet");
        let mut writer = ImageWriter::create(&path, SHAPE).unwrap();
        let rows = ROW_GROUP_ROWS + 10;
        for row in 0..rows {
            let pixels = [row as u8; 6];
            let split = Split::ALL.get(row % 4).copied();
            writer
                .push(&format!("r{row}"), (row % 5 != 0).then_some(["a", "b"][row % 2]), split, (row % 7 != 0).then_some(&pixels))
                .unwrap();
        }
        assert_eq!(writer.finish().unwrap(), rows as u64);
        let images = Images::read(&path).unwrap();
        assert_eq!((images.len(), images.shape()), (rows, SHAPE));
        for row in [0, 1, 5, 7, ROW_GROUP_ROWS - 1, ROW_GROUP_ROWS, rows - 1] {
            assert_eq!(images.id(row), format!("r{row}"));
            assert_eq!(images.label(row), (row % 5 != 0).then_some(["a", "b"][row % 2]));
            assert_eq!(images.split(row), Split::ALL.get(row % 4).copied());
            assert_eq!(images.pixels(row), (row % 7 != 0).then_some(&[row as u8; 6][..]));
        }
    }

    #[test]
    fn large_images_are_written_in_smaller_row_groups() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.parquet");
        let shape = ImageShape { height: 2048, width: 2048, channels: 1 };
        let mut writer = ImageWriter::create(&path, shape).unwrap();
        for row in 0..33u8 {
            writer.push(&row.to_string(), None, None, Some(&vec![row; shape.bytes()])).unwrap();
        }
        writer.finish().unwrap();
        let footer = ArrowReaderMetadata::load(&MappedFile::open(&path).unwrap().bytes(), ArrowReaderOptions::new()).unwrap();
        assert_eq!(footer.metadata().row_groups().iter().map(|group| group.num_rows()).collect::<Vec<_>>(), [32, 1]);
        let images = Images::read(&path).unwrap();
        assert!((0..33).all(|row| images.pixels(row).unwrap().iter().all(|pixel| usize::from(*pixel) == row)));
    }

    #[test]
    fn an_image_of_another_size_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = ImageWriter::create(&dir.path().join("data.parquet"), SHAPE).unwrap();
        let error = writer.push("odd", None, None, Some(&[0; 5])).unwrap_err();
        assert!(error.message.contains("`odd` has 5 bytes"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_parquet_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.parquet");
        std::fs::write(&path, b"PAR1 but not really").unwrap();
        assert!(Images::read(&path).err().unwrap().to_string().contains("data.parquet"));
    }
}
