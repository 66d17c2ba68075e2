//! `store.parquet`: Parquet files that others wrote.

mod file;
mod images;
mod table;

use std::collections::BTreeMap;

use artifact::config::suggest;
use artifact::{ConfigProblem, InputRef, Kind, Outcome, RunContext, Stage, StageError, StageName};
use dataset::Split;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::csv::ColumnType;
use crate::image_folder::{OnCorrupt, check_shape, default_max_pixels};
use crate::outcome;
use crate::select::{Chosen, select_files};
use file::ParquetFile;

/// Parquet files that others wrote to a dataset in the form that every stage reads: a table, or, with `image`, an image
/// dataset out of a column of raw pixels or of PNG or JPEG files.
///
/// The schema is read first, and columns of types that later stages cannot handle are refused by name. Several files with
/// the same columns become one dataset, in the order of their names.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Parquet {
    /// The stage that gives the files.
    pub input: StageName,
    /// The files to read, in this order. Without it: all that end with .parquet or .pq, sorted by name; or the only file.
    #[serde(default)]
    pub files: Vec<String>,
    /// The columns of a table to keep, in this order. Without it, all.
    #[serde(default)]
    pub columns: Vec<String>,
    /// Types to convert columns of a table to: `int64`, `float64`, `bool`, `utf8`, `date`, `datetime`. Needed for decimals,
    /// times, durations and extension types; the others are kept as they are.
    #[serde(default)]
    pub types: BTreeMap<String, ColumnType>,
    /// The column that becomes an image: makes an image dataset.
    #[serde(default)]
    pub image: Option<ImageColumn>,
    /// The column that holds the classes: the label of images; for tables, what the profile counts.
    #[serde(default)]
    pub label: Option<String>,
    /// Names for the labels 0, 1, 2, … of images. Without it: the names that the file itself states (as those of Hugging
    /// Face do), or else the label as text.
    #[serde(default)]
    pub classes: Vec<String>,
    /// The column of ids, for images. Without it: `train-00000`, `train-00001`, ….
    #[serde(default)]
    pub id: Option<String>,
    /// The column that says which split a row belongs to: train, validation (valid, val, dev) or test.
    #[serde(default)]
    pub split: Option<String>,
    /// Splits that whole files are, by name: `{ "train.parquet" = "train", "test.parquet" = "test" }`.
    #[serde(default)]
    pub splits: BTreeMap<String, Split>,
}

/// The column that holds images.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageColumn {
    /// Its name: binary, or a struct with a binary field `bytes` (as Hugging Face writes it); other fields as
    /// `column.field`.
    pub column: String,
    /// Rows of pixels: of raw images what they have, of encoded ones what to resize to.
    #[serde(default)]
    pub height: Option<u32>,
    /// Columns of pixels: of raw images what they have, of encoded ones what to resize to.
    #[serde(default)]
    pub width: Option<u32>,
    /// 1 for grey, 3 for red, green, blue: of raw images what they have, of encoded ones what to bring them to.
    #[serde(default)]
    pub channels: Option<usize>,
    /// Raw pixels `[height, width, channels]`, or PNG and JPEG files. Without it, the first image's first bytes tell.
    #[serde(default)]
    pub format: PixelFormat,
    /// What an image that is missing or cannot be decoded is: a reason to fail, or a row without pixels, which
    /// `process.images` counts and drops.
    #[serde(default)]
    pub on_corrupt: OnCorrupt,
    /// An image with more pixels than this is not decoded, and counts as corrupt.
    #[serde(default = "default_max_pixels")]
    pub max_pixels: u64,
}

/// What a binary column's bytes are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PixelFormat {
    /// As the first image's first bytes tell.
    #[default]
    Auto,
    /// One byte a pixel and channel.
    Raw,
    /// PNG or JPEG.
    Encoded,
}

impl Stage for Parquet {
    const USES: &'static str = "store.parquet";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Parquet files that others wrote to a dataset: a table, or images out of a binary column";
    const GIVES: Kind = Kind::Dataset;

    fn inputs(&self) -> Vec<InputRef> {
        vec![InputRef::one("input", &self.input, &[Kind::Files])]
    }

    fn check(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        if self.split.is_some() && !self.splits.is_empty() {
            problems
                .push(ConfigProblem::at("splits", "`split` and `splits` both say which split a row belongs to").help("keep one of them"));
        }
        match &self.image {
            Some(image) => {
                let size = image.height.zip(image.width).map(|(height, width)| [height, width]);
                problems.extend(check_shape(image.channels, size, "image."));
                if image.height.is_some() != image.width.is_some() {
                    problems.push(ConfigProblem::at("image", "`height` and `width` come together"));
                }
                let whole = size.is_some() && image.channels.is_some();
                if image.format == PixelFormat::Raw && !whole {
                    problems.push(ConfigProblem::at("image", "raw pixels need `height`, `width` and `channels`"));
                }
                for (key, set) in [("columns", !self.columns.is_empty()), ("types", !self.types.is_empty())] {
                    if set {
                        problems.push(ConfigProblem::at(
                            key,
                            format!("`{key}` is for tables: an image dataset has id, label, split and image"),
                        ));
                    }
                }
            }
            None => {
                for (key, set) in [("id", self.id.is_some()), ("classes", !self.classes.is_empty())] {
                    if set {
                        problems.push(ConfigProblem::at(key, format!("`{key}` is for images; a table keeps its columns as they are")));
                    }
                }
            }
        }
        problems
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let files = context.input("input")?.files()?;
        let chosen = select_files(&files, &self.files, &[".parquet", ".pq"], "Parquet file")?;
        if let Some(unknown) = self.splits.keys().find(|name| !chosen.iter().any(|file| file.is(name))) {
            return Err(StageError::new(format!("`splits` names `{unknown}`, which is not among the files read"))
                .help(suggest(unknown, chosen.iter().map(|file| file.name))));
        }
        let opened = chosen.iter().map(ParquetFile::open).collect::<Result<Vec<_>, _>>()?;
        match &self.image {
            Some(image) => {
                images::write(self, image, &opened, context)?;
                outcome::of_images(context.output())
            }
            None => {
                let (schema, batches) = table::read(self, &opened, context)?;
                let split = self.split.as_deref().or((!self.splits.is_empty()).then_some("split"));
                outcome::of_table(context.output(), &schema, &batches, self.label.as_deref(), split)
            }
        }
    }
}

impl Parquet {
    /// The split that a whole file is.
    fn split_of_file(&self, name: &str) -> Option<Split> {
        let file = Chosen { name, path: std::path::Path::new("") };
        self.splits.iter().find(|(wanted, _)| file.is(wanted)).map(|(_, split)| *split)
    }
}

#[cfg(test)]
mod tests;
