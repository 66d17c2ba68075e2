//! Writing an image dataset.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{BinaryBuilder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use artifact::{Doing, StageError};
use parquet::arrow::ArrowWriter;
use parquet::basic::Encoding;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::{ImageShape, ROW_GROUP_ROWS, Split};

/// Pixels in a row group, at most: the writer holds one in memory, and a binary array ends at 2 GiB, which 14,266 images of
/// 224×224×3 reach.
const ROW_GROUP_BYTES: usize = 128 << 20;

/// The Arrow schema of image datasets: `id`, `label`, `split`, `image`, with the shape in the metadata.
pub fn schema(shape: ImageShape) -> SchemaRef {
    let fields = vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("label", DataType::Utf8, true),
        Field::new("split", DataType::Utf8, true),
        Field::new("image", DataType::Binary, true),
    ];
    Arc::new(Schema::new_with_metadata(fields, shape.to_metadata()))
}

/// Writes an image dataset row by row; rows stand in the file in the order they came.
pub struct ImageWriter {
    path: PathBuf,
    shape: ImageShape,
    schema: SchemaRef,
    writer: ArrowWriter<File>,
    ids: StringBuilder,
    labels: StringBuilder,
    splits: StringBuilder,
    images: BinaryBuilder,
    rows: u64,
    waiting: usize,
}

impl ImageWriter {
    /// Creates the file.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, shape: ImageShape) -> Result<Self, StageError> {
        let doing = || format!("creating {}", path.display());
        let schema = schema(shape);
        let writer = ArrowWriter::try_new(File::create(path).doing(doing)?, Arc::clone(&schema), Some(properties())).doing(doing)?;
        Ok(Self {
            path: path.to_owned(),
            shape,
            schema,
            writer,
            ids: StringBuilder::new(),
            labels: StringBuilder::new(),
            splits: StringBuilder::new(),
            images: BinaryBuilder::with_capacity(ROW_GROUP_ROWS, (ROW_GROUP_ROWS * shape.bytes()).min(ROW_GROUP_BYTES)),
            rows: 0,
            waiting: 0,
        })
    }

    /// Adds one example. `pixels` are `[height, width, channels]`; none stands for a corrupt image.
    ///
    /// # Errors
    /// When the pixel count is not that of the shape, or the disk is full.
    pub fn push(&mut self, id: &str, label: Option<&str>, split: Option<Split>, pixels: Option<&[u8]>) -> Result<(), StageError> {
        if let Some(found) = pixels.map(<[u8]>::len).filter(|found| *found != self.shape.bytes()) {
            return Err(StageError::new(format!(
                "the image `{id}` has {found} bytes, and {} of this dataset's {} images are needed",
                self.shape.bytes(),
                self.shape
            )));
        }
        self.ids.append_value(id);
        self.labels.append_option(label);
        self.splits.append_option(split.map(Split::name));
        self.images.append_option(pixels);
        self.rows += 1;
        self.waiting += 1;
        let full = self.waiting == ROW_GROUP_ROWS || self.waiting * self.shape.bytes() >= ROW_GROUP_BYTES;
        if full { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StageError> {
        if self.waiting == 0 {
            return Ok(());
        }
        self.waiting = 0;
        let doing = || format!("writing {}", self.path.display());
        let batch = RecordBatch::try_new(
            Arc::clone(&self.schema),
            vec![
                Arc::new(self.ids.finish()),
                Arc::new(self.labels.finish()),
                Arc::new(self.splits.finish()),
                Arc::new(self.images.finish()),
            ],
        )
        .doing(doing)?;
        self.writer.write(&batch).doing(doing)?;
        self.writer.flush().doing(doing)
    }

    /// Writes what is left and the footer; the number of rows.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn finish(mut self) -> Result<u64, StageError> {
        self.flush()?;
        let Self { writer, path, rows, .. } = self;
        writer.close().doing(|| format!("closing {}", path.display()))?;
        Ok(rows)
    }
}

/// Pixels uncompressed in DELTA_LENGTH_BYTE_ARRAY: read over a memory map without a copy. They hardly compress, and
/// their minimum and maximum say nothing.
fn properties() -> WriterProperties {
    let image = ColumnPath::from("image");
    WriterProperties::builder()
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_column_dictionary_enabled(image.clone(), false)
        .set_column_encoding(image.clone(), Encoding::DELTA_LENGTH_BYTE_ARRAY)
        .set_column_statistics_enabled(image, EnabledStatistics::None)
        .build()
}
