//! Examples to judge: processed or raw, images or rows; f is applied where it has not been.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float32Type;
use artifact::{Input, StageError};
use dataset::{DATA_FILE, ImageShape, Images, Split, table};
use network::Normalisation;
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
    Pictures { pixels: Vec<u8>, size: usize, normalisation: Normalisation },
    Rows { values: Vec<f32>, columns: usize },
}

/// Where a batch is gathered; kept from batch to batch.
#[derive(Default)]
pub struct Gathered {
    bytes: Vec<u8>,
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

    /// PNG and JPEG files, in the order of their paths; nothing is resized silently.
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
        let mut pixels = Vec::with_capacity(files.len() * transform.shape.bytes());
        for (_, path) in &files {
            pixels.extend(picture(path, transform.shape)?);
        }
        let count = files.len();
        let ids = files.into_iter().map(|(name, _)| name).collect();
        let values = Values::Pictures { pixels, size: transform.shape.bytes(), normalisation: normalisation(transform) };
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
    /// When an image could not be decoded when it was stored: the error names its id.
    pub fn gather<'a>(&'a self, rows: &[usize], into: &'a mut Gathered) -> Result<network::Input<'a>, StageError> {
        into.bytes.clear();
        match &self.values {
            Values::Images { images, normalisation } => {
                for row in rows {
                    let pixels = images.pixels(*row).ok_or_else(|| {
                        StageError::new(format!("the image `{}` could not be decoded when it was stored", self.ids[*row]))
                            .help("drop such images with process.images, or set `on_corrupt` of the store stage")
                    })?;
                    into.bytes.extend_from_slice(pixels);
                }
                Ok(network::Input::Pixels { bytes: &into.bytes, normalisation })
            }
            Values::Pictures { pixels, size, normalisation, .. } => {
                rows.iter().for_each(|row| into.bytes.extend_from_slice(&pixels[row * size..(row + 1) * size]));
                Ok(network::Input::Pixels { bytes: &into.bytes, normalisation })
            }
            // Rows that are judged follow each other; where they do not, the caller takes them one run at a time.
            Values::Rows { values, columns } => {
                let (first, last) = (rows.first().copied().unwrap_or_default(), rows.last().map_or(0, |last| last + 1));
                Ok(network::Input::Floats(&values[first * columns..last * columns]))
            }
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
