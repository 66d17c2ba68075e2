//! A processed dataset in memory: pixels as views into the mapped file, features as one matrix.

use std::path::Path;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float32Type;
use artifact::StageError;
use dataset::{DATA_FILE, Images, Split, table};
use network::{Batch, Input, Network, NetworkError, Normalisation, Set, Shape, Sight};
use transform::Fitted;
use transform::view::{Size, shrink};

use crate::augment::{Augmentation, Drawn};

/// Labelled examples of a processed dataset, by split.
pub struct Examples {
    values: Values,
    shape: Shape,
    classes: Vec<String>,
    labels: Vec<u32>,
    train: Vec<usize>,
    validation: Vec<usize>,
    /// Rows that are in the dataset, labelled or not.
    rows: usize,
}

#[expect(clippy::large_enum_variant, reason = "there is one of them")]
enum Values {
    /// `fill` is the mean colour.
    Pixels {
        images: Images,
        normalisation: Normalisation,
        fill: Vec<u8>,
    },
    Floats(Vec<f32>),
}

/// How train images shall look in an epoch.
pub struct Look<'a> {
    /// What is done to them.
    pub augmentation: &'a Augmentation,
    /// Of the training.
    pub seed: u64,
    /// From 1.
    pub epoch: u32,
    /// Height and width that they are made smaller to.
    pub smaller: Option<[usize; 2]>,
}

impl Look<'_> {
    /// Writes an image as it shall look; `whole` is for what it looks like before it is made smaller.
    fn write(&self, pixels: &[u8], size: Size, fill: &[u8], row: usize, whole: &mut Vec<u8>, out: &mut [u8]) {
        let drawn = self.augmentation.draw(size, (self.seed, self.epoch, row));
        let apply = |out: &mut [u8]| self.augmentation.apply(drawn, pixels, size, fill, out);
        match self.smaller {
            None => apply(out),
            Some([height, width]) => {
                whole.resize(pixels.len(), 0);
                apply(whole);
                shrink(whole, size, (height, width), out);
            }
        }
    }
}

/// Where a batch is gathered; kept from batch to batch.
#[derive(Default)]
pub struct Gathered {
    bytes: Vec<u8>,
    floats: Vec<f32>,
    /// An image before it is made smaller.
    whole: Vec<u8>,
    /// The class of each gathered example.
    pub labels: Vec<u32>,
}

impl Examples {
    /// Opens `data.parquet` and `f.json` of a processed artifact.
    ///
    /// # Errors
    /// When they cannot be read or do not fit each other, or the train split is empty.
    pub fn read(dir: &Path) -> Result<Self, StageError> {
        let fitted = Fitted::read(dir)?;
        let path = dir.join(DATA_FILE);
        let (values, shape, labels, splits) = match &fitted {
            Fitted::Images(transform) => {
                let images = Images::read(&path)?;
                images.will_be_read_at_random();
                transform.check_shape(images.shape())?;
                let shape = Shape::Image { height: images.shape().height, width: images.shape().width, channels: images.shape().channels };
                let rows = 0..images.len();
                let labels: Vec<Option<String>> = rows.clone().map(|row| images.label(row).map(str::to_owned)).collect();
                let splits = rows.map(|row| images.split(row)).collect();
                let normalisation = Normalisation { scale: transform.scale(), shift: transform.shift() };
                // Where the scaled value is zero.
                let fill =
                    normalisation.scale.iter().zip(&normalisation.shift).map(|(scale, shift)| (-shift / scale).round() as u8).collect();
                (Values::Pixels { images, normalisation, fill }, shape, labels, splits)
            }
            Fitted::Table(transform) => {
                let names = transform.feature_names();
                let (floats, labels, splits) = read_features(&path, &names)?;
                (Values::Floats(floats), Shape::Features(names.len()), labels, splits)
            }
        };
        Self::new(values, shape, fitted.classes(), &labels, &splits).map_err(|error| error.at(path.display()))
    }

    fn new(
        values: Values,
        shape: Shape,
        classes: &[String],
        labels: &[Option<String>],
        splits: &[Option<Split>],
    ) -> Result<Self, StageError> {
        let code = |label: &str| classes.iter().position(|class| class == label).map(|code| code as u32);
        let codes: Vec<Option<u32>> = labels.iter().map(|label| label.as_deref().and_then(code)).collect();
        let of = |split: Split| (0..labels.len()).filter(|row| splits[*row] == Some(split) && codes[*row].is_some()).collect::<Vec<_>>();
        let (train, validation) = (of(Split::Train), of(Split::Validation));
        if train.is_empty() {
            return Err(StageError::new("the train split has no labelled example").help("look at `split` and `label` of the process stage"));
        }
        let rows = labels.len();
        Ok(Self {
            values,
            shape,
            classes: classes.to_vec(),
            labels: codes.into_iter().map(Option::unwrap_or_default).collect(),
            train,
            validation,
            rows,
        })
    }

    /// What one example is.
    pub fn shape(&self) -> Shape {
        self.shape
    }
    /// The classes, in the order of the model's outputs.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }
    /// Rows of the train split, in the order of the file.
    pub fn train(&self) -> &[usize] {
        &self.train
    }
    /// Rows of the validation split, in the order of the file.
    pub fn validation(&self) -> &[usize] {
        &self.validation
    }
    /// All rows of the dataset.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// The class of a row of the train or validation split.
    pub fn label(&self, row: usize) -> u32 {
        self.labels[row]
    }

    /// Gathers these rows, example after example; images with that look, if there is one.
    pub fn gather(&self, rows: &[usize], look: Option<&Look<'_>>, into: &mut Gathered) {
        into.labels.clear();
        into.labels.extend(rows.iter().map(|row| self.labels[*row]));
        match &self.values {
            Values::Pixels { images, fill, .. } => {
                let shape = images.shape();
                let [height, width] = look.and_then(|look| look.smaller).unwrap_or([shape.height, shape.width]);
                let size = height * width * shape.channels;
                let shape = (shape.height, shape.width, shape.channels);
                into.bytes.resize(rows.len() * size, 0);
                for (out, row) in into.bytes.chunks_exact_mut(size).zip(rows) {
                    match (images.pixels(*row), look) {
                        (Some(pixels), Some(look)) => look.write(pixels, shape, fill, *row, &mut into.whole, out),
                        (Some(pixels), None) => out.copy_from_slice(pixels),
                        // A processed dataset holds no corrupt image; were there one, its place would be black.
                        (None, _) => out.fill(0),
                    }
                }
            }
            Values::Floats(values) => {
                into.floats.clear();
                let size = self.shape.len();
                rows.iter().for_each(|row| into.floats.extend_from_slice(&values[row * size..(row + 1) * size]));
            }
        }
    }

    /// Takes the train split to the GPU that the network computes on; false where it computes here, or there is no room for it.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn hold(&self, network: &mut Network, augmentation: &Augmentation) -> Result<bool, NetworkError> {
        if !network.holds_sets() {
            return Ok(false);
        }
        let mut gathered = Gathered::default();
        self.gather(&self.train, None, &mut gathered);
        let Batch { input, labels } = self.batch(&gathered);
        let fill = match &self.values {
            Values::Pixels { fill, .. } => fill,
            Values::Floats(_) => &[][..],
        };
        network.hold(Set { input, labels, cutout: augmentation.cutout, fill })
    }

    /// How a step on the GPU sees a row of the train split.
    pub fn sight(&self, row: usize, look: &Look<'_>) -> Sight {
        let at = self.train.partition_point(|other| *other < row) as i32;
        let Values::Pixels { images, .. } = &self.values else { return Sight { row: at, ..Sight::default() } };
        let shape = images.shape();
        let Drawn { view, cut } = look.augmentation.draw((shape.height, shape.width, shape.channels), (look.seed, look.epoch, row));
        let ((down, right), (cut_y, cut_x)) = (view.shift, cut.unwrap_or_default());
        Sight {
            row: at,
            down: down as i32,
            right: right as i32,
            is_mirrored: i32::from(view.is_mirrored),
            cut_y: cut_y as i32,
            cut_x: cut_x as i32,
        }
    }

    /// What was gathered, as the network takes it.
    pub fn batch<'a>(&'a self, gathered: &'a Gathered) -> Batch<'a> {
        let input = match &self.values {
            Values::Pixels { normalisation, .. } => Input::Pixels { bytes: &gathered.bytes, normalisation },
            Values::Floats(_) => Input::Floats(&gathered.floats),
        };
        Batch { input, labels: &gathered.labels }
    }
}

type Rows = (Vec<f32>, Vec<Option<String>>, Vec<Option<Split>>);

/// Features `[rows, features]`, labels and splits of a processed table.
fn read_features(path: &Path, names: &[String]) -> Result<Rows, StageError> {
    let (_, batches) = table::read_table(path)?;
    let (mut values, mut labels, mut splits) = (Vec::new(), Vec::new(), Vec::new());
    for batch in &batches {
        let column = |name: &str| {
            batch.column_by_name(name).ok_or_else(|| StageError::new(format!("the column `{name}` is missing")).at(path.display()))
        };
        let text = |name: &str| {
            column(name)?
                .as_string_opt::<i32>()
                .cloned()
                .ok_or_else(|| StageError::new(format!("the column `{name}` is no text")).at(path.display()))
        };
        let features = names
            .iter()
            .map(|name| {
                let column = column(name)?;
                let numbers = column.as_primitive_opt::<Float32Type>().filter(|column| column.null_count() == 0);
                numbers
                    .cloned()
                    .ok_or_else(|| StageError::new(format!("the feature `{name}` is no complete Float32 column")).at(path.display()))
            })
            .collect::<Result<Vec<_>, StageError>>()?;
        (0..batch.num_rows()).for_each(|row| values.extend(features.iter().map(|feature| feature.value(row))));
        labels.extend(text("label")?.iter().map(|label| label.map(str::to_owned)));
        for split in text("split")?.iter() {
            splits.push(split.map(str::parse).transpose()?);
        }
    }
    Ok((values, labels, splits))
}
