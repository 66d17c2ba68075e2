//! Images out of a column: raw pixels, or PNG and JPEG files.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use artifact::{Doing, RunContext, StageError};
use dataset::{ImageShape, Split};
use rayon::prelude::*;
use serde_json::Value;

use super::file::ParquetFile;
use super::{ImageColumn, Parquet, PixelFormat};
use crate::decode::{Picture, Undecodable, Wanted, decode};
use crate::layout::split_of;
use crate::pictures::PictureWriter;

/// Rows read at once: encoded photographs take megabytes each.
const BATCH_ROWS: usize = 1024;

/// Writes all files' images as one dataset.
pub(super) fn write(config: &Parquet, image: &ImageColumn, files: &[ParquetFile], context: &RunContext) -> Result<(), StageError> {
    let mut writer = PictureWriter::new(context.output(), image.on_corrupt);
    let mut numbers = BTreeMap::new();
    let mut reader = ImageReader { config, image, raw: None };
    for file in files {
        let places = reader.places(file)?;
        let classes = reader.classes(file);
        let progress = context.progress(&file.name, None, "images");
        let mut batches = file.batches(&places, BATCH_ROWS)?;
        while let Some(batch) = batches.next()? {
            let rows = Rows::of(config, file, &batch, batches.rows - batch.num_rows())?;
            let pixels = reader.pixels(file, &batch)?;
            let mut start = 0;
            while start < batch.num_rows() {
                context.check_stop()?;
                let end = (start + writer.chunk_rows()).min(batch.num_rows());
                let decoded: Vec<_> = (start..end).into_par_iter().map(|row| reader.picture(&pixels, row)).collect();
                for (row, picture) in (start..end).zip(decoded) {
                    let split = rows.split(row)?.or(config.split_of_file(&file.name));
                    let label = rows.label(row, &classes)?;
                    let id = rows.id(row, split, &mut numbers)?;
                    writer.push(&id, label.as_deref(), split, picture)?;
                }
                progress.add((end - start) as u64);
                start = end;
            }
        }
    }
    writer.finish(context)
}

struct ImageReader<'a> {
    config: &'a Parquet,
    image: &'a ImageColumn,
    /// The shape of raw pixels, or none when images are encoded; known once the first image was seen.
    raw: Option<Option<ImageShape>>,
}

impl ImageReader<'_> {
    /// The places of the columns that are read.
    fn places(&self, file: &ParquetFile) -> Result<Vec<usize>, StageError> {
        let image = match file.schema().index_of(&self.image.column) {
            Ok(index) => index,
            Err(_) => file.index_of("image", self.image.column.split('.').next().unwrap_or_default())?,
        };
        let mut places = vec![image];
        for (key, column) in [("label", &self.config.label), ("id", &self.config.id), ("split", &self.config.split)] {
            if let Some(column) = column {
                places.push(file.index_of(key, column)?);
            }
        }
        places.sort_unstable();
        places.dedup();
        Ok(places)
    }

    /// Names of the classes: those of the config, or those that the file states as Hugging Face's library does.
    fn classes(&self, file: &ParquetFile) -> Vec<String> {
        if !self.config.classes.is_empty() {
            return self.config.classes.clone();
        }
        let stated = || {
            let about: Value = serde_json::from_str(file.schema().metadata().get("huggingface")?).ok()?;
            let names = about.pointer("/info/features")?.get(self.config.label.as_ref()?)?.get("names")?.as_array()?;
            names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
        };
        stated().unwrap_or_default()
    }

    /// The binary column of a batch; sees from its first image whether it holds raw pixels.
    fn pixels(&mut self, file: &ParquetFile, batch: &RecordBatch) -> Result<ArrayRef, StageError> {
        let pixels = binary_column(batch, &self.image.column).map_err(|error| error.at(&file.name))?;
        if self.raw.is_none()
            && let Some(first) = (0..pixels.len()).find_map(|row| bytes_of(&pixels, row))
        {
            self.raw = Some(self.raw_shape(first).map_err(|error| error.at(&file.name))?);
        }
        Ok(pixels)
    }

    fn raw_shape(&self, first: &[u8]) -> Result<Option<ImageShape>, StageError> {
        let encoded = first.starts_with(b"\xff\xd8\xff") || first.starts_with(b"\x89PNG");
        let stated = match (self.image.height, self.image.width, self.image.channels) {
            (Some(height), Some(width), Some(channels)) => Some(ImageShape { height: height as usize, width: width as usize, channels }),
            _ => None,
        };
        match (self.image.format, stated) {
            (PixelFormat::Encoded, _) => Ok(None),
            (PixelFormat::Auto, _) if encoded => Ok(None),
            (_, Some(shape)) => Ok(Some(shape)),
            (_, None) => Err(StageError::new(format!(
                "the first image of `{}` is neither PNG nor JPEG, so it must be raw pixels; it has {} bytes",
                self.image.column,
                first.len()
            ))
            .help("state its shape: image = { column = \"…\", height = 28, width = 28, channels = 1 }")),
        }
    }

    fn picture(&self, pixels: &ArrayRef, row: usize) -> Result<Picture, Undecodable> {
        let bytes = bytes_of(pixels, row).ok_or(Undecodable::Missing)?;
        match self.raw.flatten() {
            Some(shape) if bytes.len() == shape.bytes() => Ok(Picture { shape, pixels: bytes.to_vec(), had_alpha: false }),
            Some(shape) => Err(Undecodable::WrongLength { found: bytes.len(), shape }),
            None => {
                let size = self.image.height.zip(self.image.width).map(|(height, width)| [height, width]);
                decode(bytes, &Wanted { channels: self.image.channels, size, max_pixels: self.image.max_pixels })
            }
        }
    }
}

/// The binary column of this name; `bytes` of a struct, or its field after a dot.
fn binary_column(batch: &RecordBatch, name: &str) -> Result<ArrayRef, StageError> {
    let (mut array, mut field) = (batch.column_by_name(name), "bytes");
    if let (None, Some((column, inner))) = (array, name.split_once('.')) {
        (array, field) = (batch.column_by_name(column), inner);
    }
    let missing = || StageError::new(format!("the image column `{name}` is missing"));
    let array = array.ok_or_else(missing)?;
    let array = match array.as_struct_opt() {
        None => array,
        Some(fields) => fields.column_by_name(field).ok_or_else(|| {
            StageError::new(format!("the image column `{name}` is a struct without a field `{field}`"))
                .help(format!("its fields are {}; name one as `column.field`", fields.column_names().join(", ")))
        })?,
    };
    match array.data_type() {
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => Ok(array.clone()),
        other => Err(StageError::new(format!("the image column `{name}` has type {other}"))
            .help("images are read from a binary column, of raw pixels or of PNG or JPEG files; write it so")),
    }
}

fn bytes_of(array: &ArrayRef, row: usize) -> Option<&[u8]> {
    array.is_valid(row).then(|| match array.data_type() {
        DataType::LargeBinary => array.as_binary::<i64>().value(row),
        DataType::BinaryView => array.as_binary_view().value(row),
        DataType::FixedSizeBinary(_) => array.as_fixed_size_binary().value(row),
        _ => array.as_binary::<i32>().value(row),
    })
}

/// Labels, ids and splits of a batch, as text.
struct Rows<'a> {
    file: &'a ParquetFile,
    first: usize,
    labels: Option<StringArray>,
    ids: Option<StringArray>,
    splits: Option<StringArray>,
}

impl<'a> Rows<'a> {
    fn of(config: &Parquet, file: &'a ParquetFile, batch: &RecordBatch, first: usize) -> Result<Self, StageError> {
        let text = |column: &Option<String>| {
            let Some((name, array)) = column.as_ref().and_then(|name| Some((name, batch.column_by_name(name)?))) else { return Ok(None) };
            let text = cast(array, &DataType::Utf8).doing(|| format!("reading the column `{name}` of {} as text", file.name))?;
            Ok::<_, StageError>(Some(text.as_string::<i32>().clone()))
        };
        Ok(Self { file, first, labels: text(&config.label)?, ids: text(&config.id)?, splits: text(&config.split)? })
    }

    fn place(&self, row: usize) -> String {
        format!("{}, row {}", self.file.name, self.first + row)
    }

    fn label(&self, row: usize, classes: &[String]) -> Result<Option<String>, StageError> {
        let Some(label) = self.labels.as_ref().filter(|labels| labels.is_valid(row)).map(|labels| labels.value(row)) else {
            return Ok(None);
        };
        if classes.is_empty() {
            return Ok(Some(label.to_owned()));
        }
        // −1 is how Hugging Face writes "no label".
        if label == "-1" {
            return Ok(None);
        }
        let name =
            label.parse::<usize>().ok().and_then(|number| classes.get(number)).or_else(|| classes.iter().find(|class| *class == label));
        name.cloned().map(Some).ok_or_else(|| {
            StageError::new(format!("the label `{label}` is none of the {} classes: 0 to {}", classes.len(), classes.len() - 1))
                .at(self.place(row))
                .help("name every class with `classes`")
        })
    }

    fn split(&self, row: usize) -> Result<Option<Split>, StageError> {
        let Some(name) = self.splits.as_ref().filter(|splits| splits.is_valid(row)).map(|splits| splits.value(row)) else {
            return Ok(None);
        };
        split_of(name).map(Some).ok_or_else(|| {
            StageError::new(format!("`{name}` is no split"))
                .at(self.place(row))
                .help("the splits are train, validation (valid, val, dev) and test")
        })
    }

    fn id(&self, row: usize, split: Option<Split>, numbers: &mut BTreeMap<Option<Split>, usize>) -> Result<String, StageError> {
        if let Some(ids) = &self.ids {
            return match ids.is_valid(row) {
                true => Ok(ids.value(row).to_owned()),
                false => Err(StageError::new("this row has no id").at(self.place(row)).help("leave `id` out, and ids are made")),
            };
        }
        let number = numbers.entry(split).or_insert(0);
        *number += 1;
        Ok(format!("{}-{:05}", split.map_or("image", Split::name), *number - 1))
    }
}
