//! `process.images`: clean, split and encode an image dataset.

use std::collections::HashMap;

use artifact::{ConfigProblem, InputRef, Kind, Outcome, RunContext, Stage, StageError, StageName};
use dataset::profile::ChannelMoments;
use dataset::{DATA_FILE, ImageWriter, Profile, Split};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use transform::{Fitted, ImageTransform};

use crate::cleaning::Cleaning;
use crate::copies::{self, Row};
use crate::labels::{self, Unlabelled, some_of};
use crate::split::{self, Member, SplitFractions};

/// Cleans, splits and encodes an image dataset, and fits its normalisation on the train split.
///
/// Corrupt images are dropped, and exact copies: of images with the same pixels one stays, the one in test before the one
/// in validation before the one in train, so that nothing is learnt that is tested; copies with different labels all go.
/// A test split that the data came with stays as it came. Splits that the data came with are honoured; what is missing is
/// cut from train, each class with its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// The image dataset to clean.
    pub input: StageName,
    /// Shares to cut for validation and test where the data came without: `{ validation = 0.1, test = 0.1 }`.
    #[serde(default)]
    pub split: SplitFractions,
    /// How pixels are scaled: `standard` (mean 0, deviation 1 per channel over train), `unit` (0 to 1) or `none`.
    #[serde(default)]
    pub normalise: Normalise,
    /// Drop all but one of images with the same pixels.
    #[serde(default = "yes")]
    pub drop_duplicates: bool,
    /// Images without a label: `fail`, `drop`, or `keep` them in the test split to be predicted.
    #[serde(default)]
    pub unlabelled: Unlabelled,
    /// Seed of the split; the pipeline's when left out.
    #[serde(default)]
    pub seed: Option<u64>,
}

/// How pixels are scaled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Normalise {
    /// Mean 0 and standard deviation 1 for each channel, over the train split.
    #[default]
    Standard,
    /// 0 to 255 becomes 0 to 1.
    Unit,
    /// 0 to 255 as it is.
    None,
}

fn yes() -> bool {
    true
}

impl Stage for Images {
    const USES: &'static str = "process.images";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "Clean, split and encode images; fit their normalisation on train";
    const GIVES: Kind = Kind::Processed;

    fn inputs(&self) -> Vec<InputRef> {
        vec![InputRef::one("input", &self.input, &[Kind::Dataset])]
    }

    fn check(&self) -> Vec<ConfigProblem> {
        self.split.check()
    }

    fn set_seed(&mut self, pipeline_seed: u64) {
        self.seed.get_or_insert(pipeline_seed);
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let images = dataset::Images::read(&context.input("input")?.path.join(DATA_FILE))?;
        if images.is_empty() {
            return Err(StageError::new("the dataset has no images"));
        }
        let mut cleaning = Cleaning { rows_in: images.len() as u64, ..Cleaning::default() };
        let kept = self.clean(context, &images, &mut cleaning)?;
        let splits = self.split(&images, &kept)?;
        for problem in split::check(&splits)? {
            context.warn(problem);
        }
        let classes = labels::classes(kept.iter().zip(&splits).map(|(row, split)| (images.label(*row), *split)))?;
        let transform = self.fit(context, &images, &kept, &splits, classes);
        write(context, &images, &kept, &splits)?;
        let profile = Profile::of_images(&dataset::Images::read(&context.output().join(DATA_FILE))?);
        profile.write(context.output())?;
        cleaning.rows_out = kept.len() as u64;
        cleaning.write(context.output())?;
        let [train, validation, test] = split::counts(&splits);
        context.info(format!(
            "{}; {train} train, {validation} validation, {test} test; {} classes",
            cleaning.summary(),
            transform.classes.len()
        ));
        cleaning.notes.iter().for_each(|note| context.warn(note));
        let schema = serde_json::json!({
            "shape": transform.shape,
            "classes": transform.classes,
            "splits": { "train": train, "validation": validation, "test": test },
            "dropped": cleaning.dropped,
        });
        Fitted::Images(transform).write(context.output())?;
        Ok(Outcome { rows: Some(kept.len() as u64), schema, ..Outcome::default() })
    }
}

impl Images {
    /// The rows that stay, in their order.
    fn clean(&self, context: &RunContext, images: &dataset::Images, cleaning: &mut Cleaning) -> Result<Vec<usize>, StageError> {
        let digests = digests(context, images)?;
        let rows: Vec<Row> = digests
            .into_iter()
            .enumerate()
            .map(|(row, digest)| Row { id: images.id(row), label: images.label(row), given: images.split(row), digest })
            .collect();
        refuse_repeated_ids(&rows)?;
        let mut keep = vec![true; rows.len()];
        for (row, one) in rows.iter().enumerate().filter(|(_, row)| row.digest.is_none()) {
            keep[row] = false;
            cleaning.drop_row(one.id, "corrupt", None);
        }
        self.judge_unlabelled(&rows, &mut keep, cleaning)?;
        if self.drop_duplicates {
            let compared: Vec<Row> =
                rows.iter().zip(&keep).map(|(row, keep)| Row { digest: row.digest.filter(|_| *keep), ..row.clone() }).collect();
            let groups = copies::groups(&compared)?;
            copies::carry_out(&copies::judge(&groups), &rows, &mut keep, cleaning);
            cleaning.notes.extend(copies::notes(&groups, "images"));
        }
        let kept: Vec<usize> = (0..rows.len()).filter(|row| keep[*row]).collect();
        match kept.is_empty() {
            true => Err(StageError::new(format!("no image is left: {}", cleaning.summary()))),
            false => Ok(kept),
        }
    }

    fn judge_unlabelled(&self, rows: &[Row], keep: &mut [bool], cleaning: &mut Cleaning) -> Result<(), StageError> {
        let unlabelled: Vec<usize> = (0..rows.len()).filter(|row| keep[*row] && rows[*row].label.is_none()).collect();
        match self.unlabelled {
            Unlabelled::Fail => labels::refuse_unlabelled(&unlabelled.iter().map(|row| rows[*row].id).collect::<Vec<_>>(), rows.len())?,
            Unlabelled::Drop => unlabelled.into_iter().for_each(|row| {
                keep[row] = false;
                cleaning.drop_row(rows[row].id, "unlabelled", None);
            }),
            Unlabelled::Keep if unlabelled.is_empty() => {}
            Unlabelled::Keep => cleaning.notes.push(format!("{} images without a label are kept in the test split", unlabelled.len())),
        }
        Ok(())
    }

    fn split(&self, images: &dataset::Images, kept: &[usize]) -> Result<Vec<Split>, StageError> {
        // Codes in the order of the sorted names, so that the order of rows plays no part.
        let names = transform::classes::sorted(images.label_names().iter().map(String::as_str));
        let codes: HashMap<&str, usize> = names.iter().enumerate().map(|(code, name)| (name.as_str(), code)).collect();
        let member = |row: &usize| Member {
            key: images.id(*row).as_bytes(),
            class: images.label(*row).and_then(|label| codes.get(label).copied()),
            given: images.split(*row),
        };
        Ok(split::assign(&kept.iter().map(member).collect::<Vec<_>>(), &self.split, self.seed.unwrap_or_default()))
    }

    fn fit(
        &self,
        context: &RunContext,
        images: &dataset::Images,
        kept: &[usize],
        splits: &[Split],
        classes: Vec<String>,
    ) -> ImageTransform {
        let (shape, channels) = (images.shape(), images.shape().channels);
        let (mean, std) = match self.normalise {
            Normalise::Unit => (vec![0.0; channels], vec![255.0; channels]),
            Normalise::None => (vec![0.0; channels], vec![1.0; channels]),
            Normalise::Standard => {
                let train: Vec<usize> = kept.iter().zip(splits).filter(|(_, split)| **split == Split::Train).map(|(row, _)| *row).collect();
                ChannelMoments::of(images, &train).mean_and_deviation()
            }
        };
        for (channel, _) in std.iter().enumerate().filter(|(_, std)| **std == 0.0) {
            context.warn(format!("channel {channel} has the same value in every pixel of the train split: it tells nothing"));
        }
        let std = std.into_iter().map(|std| if std == 0.0 { 1.0 } else { std }).collect();
        ImageTransform { shape, classes, mean, std }
    }
}

/// Rows between two looks at whether to stop.
const BLOCK: usize = 8192;

/// BLAKE3 of every image's pixels; none for corrupt ones.
fn digests(context: &RunContext, images: &dataset::Images) -> Result<Vec<Option<[u8; 32]>>, StageError> {
    let progress = context.progress("comparing", Some(images.len() as u64), "images");
    let mut digests = Vec::with_capacity(images.len());
    while digests.len() < images.len() {
        context.check_stop()?;
        let block = digests.len()..(digests.len() + BLOCK).min(images.len());
        progress.add(block.len() as u64);
        digests.par_extend(block.into_par_iter().map(|row| images.pixels(row).map(|pixels| *blake3::hash(pixels).as_bytes())));
    }
    Ok(digests)
}

/// Ids name rows in predictions and decide the split: each must be there once.
fn refuse_repeated_ids(rows: &[Row]) -> Result<(), StageError> {
    let mut seen = std::collections::HashSet::with_capacity(rows.len());
    let repeated: Vec<&str> = rows.iter().filter(|row| !seen.insert(row.id)).map(|row| row.id).collect();
    match repeated.is_empty() {
        true => Ok(()),
        false => Err(StageError::new(format!("{} ids occur more than once", repeated.len()))
            .at(format!("id {}", some_of(repeated.iter().copied())))
            .help("predictions are joined to the data by id: give every image its own")),
    }
}

fn write(context: &RunContext, images: &dataset::Images, kept: &[usize], splits: &[Split]) -> Result<(), StageError> {
    let progress = context.progress("writing", Some(kept.len() as u64), "images");
    let mut writer = ImageWriter::create(&context.output().join(DATA_FILE), images.shape())?;
    for (rows, splits) in kept.chunks(BLOCK).zip(splits.chunks(BLOCK)) {
        context.check_stop()?;
        for (row, split) in rows.iter().zip(splits) {
            writer.push(images.id(*row), images.label(*row), Some(*split), images.pixels(*row))?;
        }
        progress.add(rows.len() as u64);
    }
    writer.finish().map(|_| ())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{Ran, run};

    struct Example {
        id: String,
        label: Option<&'static str>,
        split: Option<Split>,
        pixels: Option<[u8; 4]>,
    }

    fn example(row: usize) -> Example {
        let label = Some(["10", "9", "2"][row % 3]);
        Example { id: format!("r{row:03}"), label, split: None, pixels: Some([row as u8, 1, 2, (row / 256) as u8]) }
    }

    fn stage(toml: &str) -> Images {
        toml::from_str(&format!("input = 'x'\nseed = 7\n{toml}")).unwrap()
    }

    fn run_on(examples: &[Example], toml: &str) -> Result<Ran, StageError> {
        let shape = dataset::ImageShape { height: 2, width: 2, channels: 1 };
        run(&stage(toml), |path| {
            let mut writer = ImageWriter::create(path, shape).unwrap();
            for one in examples {
                writer.push(&one.id, one.label, one.split, one.pixels.as_ref().map(|pixels| pixels.as_slice())).unwrap();
            }
            writer.finish().unwrap();
        })
    }

    fn splits_by_id(ran: &Ran) -> std::collections::BTreeMap<String, Split> {
        let images = dataset::Images::read(&ran.output(DATA_FILE)).unwrap();
        (0..images.len()).map(|row| (images.id(row).to_owned(), images.split(row).unwrap())).collect()
    }

    #[test]
    fn corrupt_images_are_dropped_and_counted() {
        let mut examples: Vec<Example> = (0..60).map(example).collect();
        examples[5].pixels = None;
        examples[50].pixels = None;
        let ran = run_on(&examples, "").unwrap();
        assert_eq!((ran.cleaning().dropped["corrupt"], ran.cleaning().rows_out), (2, 58));
        assert!(ran.said("dropped 2 corrupt of 60 rows"), "{:?}", ran.events);
        assert!(!splits_by_id(&ran).contains_key("r005"));
    }

    #[test]
    fn a_duplicate_across_splits_leaves_train_and_test_stays_whole() {
        let mut examples: Vec<Example> = (0..60).map(example).collect();
        examples.iter_mut().enumerate().for_each(|(row, one)| one.split = Some(if row < 45 { Split::Train } else { Split::Test }));
        examples[3].pixels = examples[45].pixels; // a leak: 3 and 45 have the same label
        examples[7].pixels = examples[1].pixels; // a plain duplicate
        examples[10].pixels = examples[11].pixels; // a conflict
        let ran = run_on(&examples, "").unwrap();
        let dropped = ran.cleaning().dropped;
        assert_eq!((dropped["leak"], dropped["duplicate"], dropped["conflict"]), (1, 1, 2));
        let splits = splits_by_id(&ran);
        assert_eq!(splits.values().filter(|split| **split == Split::Test).count(), 15);
        assert!(["r003", "r007", "r010", "r011"].iter().all(|id| !splits.contains_key(*id)));
        let leak = ran.cleaning().rows.into_iter().find(|row| row.reason == "leak").unwrap();
        assert_eq!((leak.id.as_str(), leak.kept.as_deref()), ("r003", Some("r045")));
        assert!(run_on(&examples, "drop_duplicates = false").unwrap().cleaning().dropped.is_empty());
    }

    #[test]
    fn the_normalisation_sees_the_train_split_alone() {
        let with_test = |pixel: u8| {
            let mut examples: Vec<Example> = (0..60).map(example).collect();
            examples.iter_mut().enumerate().filter(|(row, _)| row % 4 == 0).for_each(|(_, one)| {
                one.split = Some(Split::Test);
                one.pixels = one.pixels.map(|pixels| [pixels[0], pixel, pixel, pixel]);
            });
            std::fs::read(run_on(&examples, "").unwrap().output(transform::FILE_NAME)).unwrap()
        };
        assert_eq!(with_test(0), with_test(255));
    }

    #[test]
    fn classes_are_sorted_as_numbers_and_the_constants_are_those_of_train() {
        let examples: Vec<Example> = (0..60).map(example).collect();
        let ran = run_on(&examples, "split = { validation = 0.2, test = 0.2 }").unwrap();
        let fitted = Fitted::read(ran.dir()).unwrap();
        let transform = fitted.images().unwrap();
        assert_eq!(transform.classes, ["2", "9", "10"]);
        let splits = splits_by_id(&ran);
        let train = examples.iter().filter(|one| splits[&one.id] == Split::Train);
        let values: Vec<f64> = train.flat_map(|one| one.pixels.unwrap()).map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let std = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!((transform.mean[0] - mean).abs() < 1e-9 && (transform.std[0] - std).abs() < 1e-9);
    }

    #[test]
    fn the_order_of_rows_changes_neither_the_splits_nor_f() {
        let mut examples: Vec<Example> = (0..90).map(example).collect();
        examples[80].pixels = examples[8].pixels;
        let first = run_on(&examples, "").unwrap();
        examples.reverse();
        let second = run_on(&examples, "").unwrap();
        assert_eq!(splits_by_id(&first), splits_by_id(&second));
        let f = |ran: &Ran| std::fs::read(ran.output(transform::FILE_NAME)).unwrap();
        assert_eq!(f(&first), f(&second));
        assert_ne!(
            splits_by_id(&first),
            splits_by_id(&run_on(&examples, "").map(|_| run_on(&examples, "split = { validation = 0.3 }").unwrap()).unwrap())
        );
    }

    #[test]
    fn an_image_without_a_label_is_refused_named_dropped_or_kept_as_asked() {
        let mut examples: Vec<Example> = (0..60).map(example).collect();
        examples[9].label = None;
        let text = run_on(&examples, "").err().unwrap().to_string();
        assert!(text.contains("1 of 60 rows has no label") && text.contains("r009"), "{text}");
        assert_eq!(run_on(&examples, "unlabelled = 'drop'").unwrap().cleaning().dropped["unlabelled"], 1);
        let kept = run_on(&examples, "unlabelled = 'keep'").unwrap();
        assert_eq!(splits_by_id(&kept)["r009"], Split::Test);
    }

    #[test]
    fn an_id_that_occurs_twice_is_named() {
        let mut examples: Vec<Example> = (0..10).map(example).collect();
        examples[9].id = "r000".into();
        assert!(run_on(&examples, "").err().unwrap().to_string().contains("r000"));
    }

    #[test]
    fn unit_and_none_need_no_data() {
        let examples: Vec<Example> = (0..60).map(example).collect();
        for (normalise, std) in [("unit", 255.0), ("none", 1.0)] {
            let fitted = Fitted::read(run_on(&examples, &format!("normalise = '{normalise}'")).unwrap().dir()).unwrap();
            assert_eq!((fitted.images().unwrap().mean[0], fitted.images().unwrap().std[0]), (0.0, std));
        }
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let examples: Vec<Example> = (0..200).map(example).collect();
        let bytes = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let ran = pool.install(|| run_on(&examples, "").unwrap());
            [DATA_FILE, transform::FILE_NAME, "profile.json", "cleaning.json"].map(|file| std::fs::read(ran.output(file)).unwrap())
        };
        assert_eq!(bytes(1), bytes(3));
    }
}
