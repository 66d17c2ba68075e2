//! `store.idx`: IDX files, as MNIST and its kin are published.

use std::collections::BTreeMap;
use std::path::PathBuf;

use artifact::{ConfigProblem, InputRef, Kind, Outcome, RunContext, Stage, StageError, StageName, collect_in_order};
use dataset::{DATA_FILE, ImageShape, ImageWriter, Split};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::idx_file::{Element, IdxFile};
use crate::outcome;
use crate::select::{find, listing};

/// IDX files, plain or gzipped, to an image dataset: images of one shape, paired with their labels.
///
/// Ids are `train-00000`, `train-00001`, …, in the order of the file.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Idx {
    /// The stage that gives the files.
    pub input: StageName,
    /// Which files belong together, as `{ images = "a-idx3-ubyte.gz", labels = "a-idx1-ubyte.gz", split = "train" }`.
    /// Without it, the four names under which MNIST is published are looked for: `train-images-idx3-ubyte`,
    /// `train-labels-idx1-ubyte` (the train split), `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` (the test split),
    /// each with or without `.gz`.
    #[serde(default)]
    pub sets: Vec<IdxSet>,
    /// Names for the labels 0, 1, 2, …. Without it, a label is its number as text.
    #[serde(default)]
    pub classes: Vec<String>,
    /// Most bytes that one gzipped file may unpack to.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: u64,
}

/// Images and their labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdxSet {
    /// The file of images: `[count, height, width]` or `[count, height, width, channels]`, unsigned bytes.
    pub images: String,
    /// The file of labels: `[count]`, whole numbers. Without it, the images have none.
    #[serde(default)]
    pub labels: Option<String>,
    /// The split that these examples belong to. Without it, they belong to none yet.
    #[serde(default)]
    pub split: Option<Split>,
}

fn default_max_bytes() -> u64 {
    4 << 30
}

impl Stage for Idx {
    const USES: &'static str = "store.idx";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "IDX files, as MNIST is published, to an image dataset";
    const GIVES: Kind = Kind::Dataset;

    fn inputs(&self) -> Vec<InputRef> {
        vec![InputRef::one("input", &self.input, &[Kind::Files])]
    }

    fn check(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        for (index, set) in self.sets.iter().enumerate() {
            if self.sets[..index].iter().any(|earlier| earlier.images == set.images) {
                let message = format!("`{}` is in two sets: each of its images would be there twice", set.images);
                problems.push(ConfigProblem::at(&format!("sets.{index}.images"), message));
            }
        }
        for (index, class) in self.classes.iter().enumerate().filter(|(index, class)| self.classes[..*index].contains(class)) {
            problems.push(ConfigProblem::at(&format!("classes.{index}"), format!("two labels would be called `{class}`")));
        }
        problems
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let files = context.input("input")?.files()?;
        let sets = match self.sets.is_empty() {
            true => standard_sets(&files)?,
            false => self.sets.clone(),
        };
        let sets: Vec<Examples> = collect_in_order(sets.par_iter().map(|set| self.read(set, &files)))?;
        let shape = shape_of_all(&sets)?;
        let mut writer = ImageWriter::create(&context.output().join(DATA_FILE), shape)?;
        let mut next_number = BTreeMap::new();
        for set in &sets {
            self.write(set, shape, next_number.entry(set.split).or_insert(0), &mut writer, context)?;
        }
        writer.finish()?;
        outcome::of_images(context.output())
    }
}

/// One set, read and checked.
struct Examples {
    images: IdxFile,
    shape: ImageShape,
    labels: Option<(String, Vec<i32>)>,
    split: Option<Split>,
}

impl Idx {
    fn read(&self, set: &IdxSet, files: &[(String, PathBuf)]) -> Result<Examples, StageError> {
        let file = |wanted: &str| {
            let (name, path) = find(files, wanted)?;
            IdxFile::read(name, path, self.max_bytes)
        };
        let (images, labels) = rayon::join(|| file(&set.images), || set.labels.as_deref().map(file).transpose());
        let (images, labels) = (images?, labels?);
        let shape = shape_of(&images)?;
        let labels = labels.map(|labels| Ok::<_, StageError>((labels.name.clone(), labels_of(&labels, &images)?))).transpose()?;
        if let Some((name, labels)) = &labels {
            self.check_range(name, labels)?;
        }
        Ok(Examples { images, shape, labels, split: set.split })
    }

    fn check_range(&self, name: &str, labels: &[i32]) -> Result<(), StageError> {
        let unnamed = |label: &i32| !self.classes.is_empty() && usize::try_from(*label).map_or(true, |label| label >= self.classes.len());
        match labels.iter().position(unnamed) {
            None => Ok(()),
            Some(row) => Err(StageError::new(format!(
                "label number {row} is {}, and `classes` names {}: 0 to {}",
                labels[row],
                self.classes.len(),
                self.classes.len() - 1
            ))
            .at(name)
            .help("name every class, or leave `classes` out")),
        }
    }

    fn write(
        &self,
        set: &Examples,
        shape: ImageShape,
        next: &mut usize,
        writer: &mut ImageWriter,
        context: &RunContext,
    ) -> Result<(), StageError> {
        let prefix = set.split.map_or("image", Split::name);
        let progress = context.progress(&set.images.name, Some(set.images.dimensions[0] as u64), "images");
        for (row, pixels) in set.images.values().chunks_exact(shape.bytes()).enumerate() {
            if row % dataset::ROW_GROUP_ROWS == 0 {
                context.check_stop()?;
            }
            let number = set.labels.as_ref().map(|(_, labels)| labels[row]);
            let name = number.and_then(|number| self.classes.get(usize::try_from(number).ok()?));
            let label = name.cloned().or_else(|| number.map(|number| number.to_string()));
            writer.push(&format!("{prefix}-{:05}", *next), label.as_deref(), set.split, Some(pixels))?;
            *next += 1;
            progress.add(1);
        }
        Ok(())
    }
}

/// The sets that are there under MNIST's published names.
fn standard_sets(files: &[(String, PathBuf)]) -> Result<Vec<IdxSet>, StageError> {
    let mut sets = Vec::new();
    for (prefix, split) in [("train", Split::Train), ("t10k", Split::Test)] {
        let images = standard_file(files, &format!("{prefix}-images-idx3-ubyte"))?;
        let labels = standard_file(files, &format!("{prefix}-labels-idx1-ubyte"))?;
        match (images, labels) {
            (Some(images), Some(labels)) => sets.push(IdxSet { images, labels: Some(labels), split: Some(split) }),
            (Some(there), None) => return Err(half_of_a_pair(&there, &format!("{prefix}-labels-idx1-ubyte"))),
            (None, Some(there)) => return Err(half_of_a_pair(&there, &format!("{prefix}-images-idx3-ubyte"))),
            (None, None) => {}
        }
    }
    if sets.is_empty() {
        return Err(StageError::new(format!(
            "no train-images-idx3-ubyte[.gz] and no t10k-images-idx3-ubyte[.gz] in the input: {}",
            listing(files)
        ))
        .help("say which files belong together: sets = [{ images = \"…\", labels = \"…\", split = \"train\" }]"));
    }
    Ok(sets)
}

fn half_of_a_pair(there: &str, missing: &str) -> StageError {
    StageError::new(format!("`{missing}` is missing, with or without .gz, and `{there}` is there"))
        .at(there)
        .help("add it to the input, or say with `sets` what to read: images can come without labels")
}

/// A file of this name in any folder; with `.gz`, and with the dot that some copies have before `idx`.
fn standard_file(files: &[(String, PathBuf)], name: &str) -> Result<Option<String>, StageError> {
    let fits = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.strip_suffix(".gz").unwrap_or(file).replace(".idx", "-idx") == name
    };
    let mut found = files.iter().map(|(path, _)| path).filter(|path| fits(path));
    match (found.next(), found.next()) {
        (Some(first), Some(second)) => Err(StageError::new(format!("both `{first}` and `{second}` could be {name}"))
            .help("say which to read: sets = [{ images = \"…\", labels = \"…\", split = \"train\" }]")),
        (first, _) => Ok(first.cloned()),
    }
}

fn shape_of(images: &IdxFile) -> Result<ImageShape, StageError> {
    if images.element != Element::U8 {
        return Err(StageError::new(format!("the pixels are of type {}", images.element.name()))
            .at(&images.name)
            .help("store.idx reads images of unsigned bytes (0x08), 0 to 255; write them so"));
    }
    let (height, width, channels) = match images.dimensions[..] {
        [_, height, width] => (height, width, 1),
        [_, height, width, channels] => (height, width, channels),
        ref other => {
            return Err(StageError::new(format!(
                "a file of images has 3 dimensions (count, height, width) or 4 (and channels), and this has {}",
                other.len()
            ))
            .at(&images.name)
            .help("are images and labels exchanged?"));
        }
    };
    if images.dimensions.contains(&0) {
        return Err(StageError::new(format!("there are no pixels: the dimensions are {:?}", images.dimensions)).at(&images.name));
    }
    if height.max(width).max(channels) > 1 << 20 {
        return Err(StageError::new(format!("an image of {height} × {width} × {channels} is larger than 1048576 a side")).at(&images.name));
    }
    Ok(ImageShape { height, width, channels })
}

fn labels_of(labels: &IdxFile, images: &IdxFile) -> Result<Vec<i32>, StageError> {
    let (count, images_count) = (labels.dimensions[0], images.dimensions[0]);
    if labels.dimensions.len() != 1 {
        let message = format!("a file of labels has 1 dimension, and this has {}", labels.dimensions.len());
        return Err(StageError::new(message).at(&labels.name).help("are images and labels exchanged?"));
    }
    if count != images_count {
        return Err(StageError::new(format!("{images_count} images in {}, and {count} labels in {}", images.name, labels.name))
            .at(&labels.name)
            .help("the two files do not belong together, or one of them is incomplete"));
    }
    labels.integers().ok_or_else(|| {
        StageError::new(format!("the labels are of type {}", labels.element.name())).at(&labels.name).help("labels are whole numbers")
    })
}

/// The shape that all sets share.
fn shape_of_all(sets: &[Examples]) -> Result<ImageShape, StageError> {
    let first = &sets[0];
    match sets.iter().find(|set| set.shape != first.shape) {
        None => Ok(first.shape),
        Some(odd) => {
            Err(StageError::new(format!("images of {} in {}, and of {} in {}", first.shape, first.images.name, odd.shape, odd.images.name))
                .at(&odd.images.name)
                .help("a dataset's images have one shape: store them as two datasets"))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::testing::{folder, gzip, idx, mirrored, run};

    fn images(count: u32) -> Vec<u8> {
        idx(8, &[count, 2, 2], &(0..count * 4).map(|value| value as u8).collect::<Vec<_>>())
    }

    #[test]
    fn the_standard_names_give_the_train_and_test_splits_in_any_folder_plain_or_gzipped() {
        let input = folder(&[
            ("mnist/train-images-idx3-ubyte.gz", &gzip(&images(3))),
            ("mnist/train-labels-idx1-ubyte", &idx(8, &[3], &[7, 0, 7])),
            ("mnist/t10k-images.idx3-ubyte", &images(1)),
            ("mnist/t10k-labels-idx1-ubyte.gz", &gzip(&idx(8, &[1], &[9]))),
            ("mnist/README", b"hello"),
        ]);
        let ran = run::<Idx>(json!({}), input.path());
        let data = ran.images();
        assert_eq!((data.len(), data.shape()), (4, ImageShape { height: 2, width: 2, channels: 1 }));
        assert_eq!(
            (data.id(1), data.label(1), data.split(1), data.pixels(1)),
            ("train-00001", Some("0"), Some(Split::Train), Some(&[4, 5, 6, 7][..]))
        );
        assert_eq!((data.id(3), data.label(3), data.split(3)), ("test-00000", Some("9"), Some(Split::Test)));
        let outcome = ran.result.as_ref().unwrap();
        assert_eq!(outcome.rows, Some(4));
        assert_eq!(outcome.schema["classes"], json!(["0", "7", "9"]));
        assert_eq!(outcome.schema["shape"], json!({ "height": 2, "width": 2, "channels": 1 }));
        assert_eq!(ran.profile().classes["7"]["train"], 2);
    }

    #[test]
    fn sets_may_have_names_colours_and_no_labels() {
        let input =
            folder(&[("a", &idx(8, &[2, 1, 2, 3], &[1; 12])), ("b", &idx(8, &[1, 1, 2, 3], &[2; 6])), ("l", &idx(8, &[2], &[1, 0]))]);
        let sets = json!([{ "images": "a", "labels": "l" }, { "images": "b" }]);
        let data = run::<Idx>(json!({ "sets": sets, "classes": ["cat", "dog"] }), input.path()).images();
        assert_eq!(data.shape(), ImageShape { height: 1, width: 2, channels: 3 });
        assert_eq!(
            (0..3).map(|row| (data.id(row), data.label(row), data.split(row))).collect::<Vec<_>>(),
            [("image-00000", Some("dog"), None), ("image-00001", Some("cat"), None), ("image-00002", None, None)]
        );
    }

    #[test]
    fn fewer_labels_than_images_are_counted_and_both_files_named() {
        let input = folder(&[("train-images-idx3-ubyte", &images(3)), ("train-labels-idx1-ubyte", &idx(8, &[2], &[0, 1]))]);
        run::<Idx>(json!({}), input.path()).fails_naming(&["3 images in train-images-idx3-ubyte", "2 labels in train-labels-idx1-ubyte"]);
    }

    #[test]
    fn a_header_that_lies_fails_the_stage_and_names_the_file() {
        let input =
            folder(&[("train-images-idx3-ubyte", &idx(8, &[9, 2, 2], &[0; 8])), ("train-labels-idx1-ubyte", &idx(8, &[9], &[0; 9]))]);
        run::<Idx>(json!({}), input.path()).fails_naming(&["train-images-idx3-ubyte", "9 × 2 × 2", "24 bytes"]);
    }

    #[test]
    fn a_truncated_gzip_fails_the_stage_and_names_the_file() {
        let packed = gzip(&images(60));
        let input =
            folder(&[("train-images-idx3-ubyte.gz", &packed[..packed.len() - 9]), ("train-labels-idx1-ubyte", &idx(8, &[60], &[0; 60]))]);
        run::<Idx>(json!({}), input.path()).fails_naming(&["train-images-idx3-ubyte.gz", "breaks off"]);
    }

    #[test]
    fn pixels_that_are_no_bytes_are_refused_with_their_type() {
        let input =
            folder(&[("train-images-idx3-ubyte", &idx(0x0d, &[1, 1, 1], &[0; 4])), ("train-labels-idx1-ubyte", &idx(8, &[1], &[0]))]);
        run::<Idx>(json!({}), input.path()).fails_naming(&["float (0x0d)", "unsigned bytes"]);
    }

    #[test]
    fn exchanged_files_and_missing_halves_are_explained() {
        let input = folder(&[("x", &images(1)), ("y", &idx(8, &[1], &[0]))]);
        run::<Idx>(json!({ "sets": [{ "images": "y", "labels": "x" }] }), input.path()).fails_naming(&["are images and labels exchanged?"]);
        run::<Idx>(json!({}), input.path()).fails_naming(&["train-images-idx3-ubyte", "it holds x, y", "sets ="]);
        run::<Idx>(json!({ "sets": [{ "images": "z" }] }), input.path()).fails_naming(&["`z` is not in the input"]);
        let input = folder(&[("t10k-images-idx3-ubyte", &images(1))]);
        run::<Idx>(json!({}), input.path()).fails_naming(&["`t10k-labels-idx1-ubyte` is missing"]);
    }

    #[test]
    fn sets_of_two_shapes_and_empty_sets_are_refused() {
        let input = folder(&[("a", &images(1)), ("b", &idx(8, &[1, 3, 3], &[0; 9])), ("none", &idx(8, &[0, 2, 2], &[]))]);
        run::<Idx>(json!({ "sets": [{ "images": "a" }, { "images": "b" }] }), input.path()).fails_naming(&["2×2×1 in a", "3×3×1 in b"]);
        run::<Idx>(json!({ "sets": [{ "images": "none" }] }), input.path()).fails_naming(&["no pixels", "none"]);
    }

    #[test]
    fn a_label_without_a_name_is_shown_with_its_row() {
        let input = folder(&[("a", &images(2)), ("l", &idx(8, &[2], &[1, 2]))]);
        run::<Idx>(json!({ "sets": [{ "images": "a", "labels": "l" }], "classes": ["cat", "dog"] }), input.path())
            .fails_naming(&["label number 1 is 2", "0 to 1"]);
    }

    #[test]
    fn a_file_in_two_sets_is_a_problem_of_the_config() {
        let stage: Idx =
            serde_json::from_value(json!({ "input": "raw", "sets": [{ "images": "a" }, { "images": "a" }], "classes": ["x", "x"] }))
                .unwrap();
        let paths: Vec<String> = stage.check().iter().map(|problem| problem.path.join(".")).collect();
        assert_eq!(paths, ["sets.1.images", "classes.1"]);
    }

    #[test]
    fn mnist_has_its_known_counts() {
        let Some(mnist) = mirrored("mnist") else { return };
        let clock = std::time::Instant::now();
        let ran = run::<Idx>(json!({}), &mnist);
        println!("70,000 images in {:.3} s", clock.elapsed().as_secs_f64());
        let profile = ran.profile();
        assert_eq!((profile.rows, profile.splits["train"], profile.splits["test"]), (70_000, 60_000, 10_000));
        let train: Vec<u64> = (0..10).map(|digit| profile.classes[&digit.to_string()]["train"]).collect();
        assert_eq!(train, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
        let data = ran.images();
        // The published first labels, and the train mean over 60,000 and 10,000 images together.
        assert_eq!((0..5).filter_map(|row| data.label(row)).collect::<Vec<_>>(), ["5", "0", "4", "1", "9"]);
        let mean = profile.image.unwrap().mean[0] / 255.0;
        assert!((mean - (0.1306604 * 6.0 + 0.1325145) / 7.0).abs() < 2e-5, "{mean}");
        // The same files give the same bytes.
        let again = run::<Idx>(json!({}), &mnist);
        assert!(std::fs::read(ran.data()).unwrap() == std::fs::read(again.data()).unwrap());
    }
}
