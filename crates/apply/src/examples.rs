//! Examples to judge: processed or raw, images or rows; f is applied where it has not been.

use std::ops::Range;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float32Type;
use artifact::{Input, StageError, collect_in_order};
use dataset::{DATA_FILE, ImageShape, Images, Split, table};
use network::Normalisation;
use rayon::prelude::*;
use transform::{Fitted, ImageTransform, TableTransform};

/// Examples with what is known of them.
pub struct Examples {
    /// Their ids, in the order of the data.
    pub ids: Vec<String>,
    /// Their true labels, where known.
    pub labels: Vec<Option<String>>,
    /// Their splits, where the data has them.
    pub splits: Vec<Option<Split>>,
    values: Values,
}

enum Values {
    Images { images: Images, normalisation: Normalisation },
    Pictures { files: Vec<PathBuf>, shape: ImageShape, normalisation: Normalisation },
    Rows { values: Vec<f32>, columns: usize },
}

/// Where a batch is gathered; kept from batch to batch.
#[derive(Default)]
pub struct Gathered {
    /// Of images.
    bytes: Vec<u8>,
    /// Of a table.
    rows: Range<usize>,
}

impl Examples {
    /// Opens a processed dataset, a raw one, or a folder of pictures.
    ///
    /// # Errors
    /// When the data cannot be read or is not of the shape that f was fitted on.
    pub fn open(input: &Input, fitted: &Fitted) -> Result<Self, StageError> {
        let data = if input.path.is_dir() { input.path.join(DATA_FILE) } else { input.path.clone() };
        let is_processed = input.path.join(transform::FILE_NAME).is_file();
        match fitted {
            Fitted::Images(transform) if data.is_file() && data.extension().is_some_and(|ending| ending == "parquet") => {
                Self::of_images(&data, transform)
            }
            Fitted::Images(transform) => Self::of_pictures(input, transform),
            Fitted::Table(transform) if is_processed => Self::of_features(&data, transform),
            Fitted::Table(transform) => Self::of_rows(&data, transform),
        }
    }

    fn of_images(path: &Path, transform: &ImageTransform) -> Result<Self, StageError> {
        let images = Images::read(path)?;
        transform.check_shape(images.shape()).map_err(|error| error.at(path.display()))?;
        let rows = 0..images.len();
        Ok(Self {
            ids: rows.clone().map(|row| images.id(row).to_owned()).collect(),
            labels: rows.clone().map(|row| images.label(row).map(str::to_owned)).collect(),
            splits: rows.map(|row| images.split(row)).collect(),
            values: Values::Images { images, normalisation: normalisation(transform) },
        })
    }

    /// PNG and JPEG files, in the order of their paths, which are decoded when they are gathered; nothing is resized silently.
    fn of_pictures(input: &Input, transform: &ImageTransform) -> Result<Self, StageError> {
        let is_picture = |path: &Path| {
            path.extension().is_some_and(|ending| ["png", "jpg", "jpeg"].contains(&ending.to_ascii_lowercase().to_string_lossy().as_ref()))
        };
        let files: Vec<(String, PathBuf)> = input.files()?.into_iter().filter(|(_, path)| is_picture(path)).collect();
        if files.is_empty() {
            return Err(
                StageError::new("there is nothing to judge here: neither data.parquet nor PNG or JPEG files").at(input.path.display())
            );
        }
        let count = files.len();
        let (ids, files) = files.into_iter().unzip();
        let values = Values::Pictures { files, shape: transform.shape, normalisation: normalisation(transform) };
        Ok(Self { ids, labels: vec![None; count], splits: vec![None; count], values })
    }

    /// A processed table: f has been applied.
    fn of_features(path: &Path, transform: &TableTransform) -> Result<Self, StageError> {
        let names = transform.feature_names();
        let (mut ids, mut labels, mut splits, mut values) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for batch in table::read_table(path)?.1 {
            let missing = |name: &str| {
                StageError::new(format!("the processed data has no column `{name}` of the right type, and the model needs it"))
                    .at(path.display())
                    .help("take the processed data that belongs to this model, or give the raw data")
            };
            let text =
                |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>()).ok_or_else(|| missing(name));
            let feature = |name: &String| {
                batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Float32Type>()).ok_or_else(|| missing(name))
            };
            let features = names.iter().map(feature).collect::<Result<Vec<_>, _>>()?;
            (0..batch.num_rows()).for_each(|row| {
                values.extend(features.iter().map(|feature| if feature.is_valid(row) { feature.value(row) } else { f32::NAN }))
            });
            ids.extend(text("id")?.iter().map(|id| id.unwrap_or_default().to_owned()));
            labels.extend(text("label")?.iter().map(|label| label.map(str::to_owned)));
            for split in text("split")?.iter() {
                splits.push(split.map(str::parse).transpose()?);
            }
        }
        Ok(Self { ids, labels, splits, values: Values::Rows { values, columns: names.len() } })
    }

    /// A raw table: f is applied here.
    fn of_rows(path: &Path, transform: &TableTransform) -> Result<Self, StageError> {
        let (_, batches) = table::read_table(path)?;
        let matrix = transform.apply(&batches).map_err(|error| if error.place.is_some() { error } else { error.at(path.display()) })?;
        Ok(Self {
            ids: matrix.ids,
            labels: matrix.labels,
            splits: vec![None; matrix.rows],
            values: Values::Rows { values: matrix.values, columns: matrix.columns },
        })
    }

    /// Gathers these rows for the network.
    ///
    /// # Errors
    /// When an image could not be decoded when it was stored, or a picture cannot be: the error names it.
    pub fn gather(&self, rows: &[usize], into: &mut Gathered) -> Result<(), StageError> {
        into.bytes.clear();
        match &self.values {
            Values::Images { images, .. } => {
                for row in rows {
                    let pixels = images.pixels(*row).ok_or_else(|| {
                        StageError::new(format!("the image `{}` could not be decoded when it was stored", self.ids[*row]))
                            .help("drop such images with process.images, or set `on_corrupt` of the store stage")
                    })?;
                    into.bytes.extend_from_slice(pixels);
                }
            }
            Values::Pictures { files, shape, .. } => {
                let pictures = collect_in_order(rows.par_iter().map(|row| picture(&files[*row], *shape)))?;
                pictures.iter().for_each(|pixels| into.bytes.extend_from_slice(pixels));
            }
            // Rows that are judged follow each other; where they do not, the caller takes them one run at a time.
            Values::Rows { .. } => into.rows = rows.first().copied().unwrap_or_default()..rows.last().map_or(0, |last| last + 1),
        }
        Ok(())
    }

    /// What was gathered, as the network takes it.
    pub fn input<'a>(&'a self, gathered: &'a Gathered) -> network::Input<'a> {
        match &self.values {
            Values::Images { normalisation, .. } | Values::Pictures { normalisation, .. } => {
                network::Input::Pixels { bytes: &gathered.bytes, normalisation }
            }
            Values::Rows { values, columns } => network::Input::Floats(&values[gathered.rows.start * columns..gathered.rows.end * columns]),
        }
    }

    /// True when a batch must be of rows that follow each other.
    pub fn in_runs(&self) -> bool {
        matches!(self.values, Values::Rows { .. })
    }
}

fn normalisation(transform: &ImageTransform) -> Normalisation {
    Normalisation { scale: transform.scale(), shift: transform.shift() }
}

/// One picture's pixels `[height, width, channels]`.
fn picture(path: &Path, shape: ImageShape) -> Result<Vec<u8>, StageError> {
    let failed = |error: &dyn std::error::Error| StageError::new("this picture cannot be decoded").at(path.display()).because(error);
    let reader = image::ImageReader::open(path).map_err(|error| failed(&error))?.with_guessed_format().map_err(|error| failed(&error))?;
    let picture = reader.decode().map_err(|error| failed(&error))?;
    let found = (picture.height() as usize, picture.width() as usize);
    if found != (shape.height, shape.width) {
        return Err(StageError::new(format!("this picture is {}×{}, and the model learnt from {shape}", found.0, found.1))
            .at(path.display())
            .help("nothing is resized silently: make a dataset with store.image_folder and its `size`, as for the model's own data"));
    }
    match shape.channels {
        1 => Ok(picture.to_luma8().into_raw()),
        3 => Ok(picture.to_rgb8().into_raw()),
        other => Err(StageError::new(format!("a picture has 1 or 3 channels, and the model takes {other}")).at(path.display())),
    }
}
