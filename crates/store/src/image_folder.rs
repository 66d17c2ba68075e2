//! `store.image_folder`: class folders of PNG and JPEG files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use artifact::{ConfigProblem, Doing, InputRef, Kind, Outcome, RunContext, Stage, StageError, StageName, collect_in_order};
use dataset::Split;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decode::{Picture, Undecodable, Wanted, decode};
use crate::layout::{Layout, Place, places, shared_root};
use crate::outcome;
use crate::pictures::PictureWriter;

/// Class folders of PNG and JPEG files to an image dataset: `train/cat/1.jpg`, or `cat/1.jpg`.
///
/// Files are found by their endings (.jpg, .jpeg, .jpe, .jfif, .png), told apart by their content and decoded in parallel;
/// rows stand in the order of their paths, which are their ids.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImageFolder {
    /// The stage that gives the files.
    pub input: StageName,
    /// How the folders are arranged.
    #[serde(default)]
    pub layout: Layout,
    /// The folder within the input that holds the class (or split) folders. Without it, folders that everything lies in
    /// are passed over.
    #[serde(default)]
    pub root: Option<String>,
    /// 1 for grey, 3 for red, green, blue. Without it, what the first image has; grey images among coloured ones become
    /// coloured, and a coloured one among grey ones is an error.
    #[serde(default)]
    pub channels: Option<usize>,
    /// Height and width to resize to, without regard to the proportions. Without it, all images must have one size.
    #[serde(default)]
    pub size: Option<[u32; 2]>,
    /// What an image that cannot be decoded is: a reason to fail, or a row without pixels, which `process.images` counts
    /// and drops.
    #[serde(default)]
    pub on_corrupt: OnCorrupt,
    /// An image with more pixels than this is not decoded, and counts as corrupt.
    #[serde(default = "default_max_pixels")]
    pub max_pixels: u64,
}

/// What to do with an image that cannot be decoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnCorrupt {
    /// Stop, and name it.
    #[default]
    Fail,
    /// Keep its row, without pixels.
    Null,
}

pub(crate) fn default_max_pixels() -> u64 {
    100_000_000
}

/// What is wrong with `channels` and `size`, as several stages have them.
pub(crate) fn check_shape(channels: Option<usize>, size: Option<[u32; 2]>, prefix: &str) -> Vec<ConfigProblem> {
    let mut problems = Vec::new();
    if let Some(channels) = channels.filter(|channels| ![1, 3].contains(channels)) {
        problems.push(
            ConfigProblem::at(&format!("{prefix}channels"), format!("`channels` is {channels}")).help("1 is grey, 3 is red, green, blue"),
        );
    }
    if let Some([height, width]) = size.filter(|sides| sides.iter().any(|side| !(1..=16_384).contains(side))) {
        let message = format!("`size` is [{height}, {width}], and a side has 1 to 16384 pixels");
        problems.push(ConfigProblem::at(&format!("{prefix}size"), message).help("size = [height, width]"));
    }
    problems
}

impl Stage for ImageFolder {
    const USES: &'static str = "store.image_folder";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Class folders of PNG and JPEG files to an image dataset";
    const GIVES: Kind = Kind::Dataset;

    fn inputs(&self) -> Vec<InputRef> {
        vec![InputRef::one("input", &self.input, &[Kind::Files])]
    }

    fn check(&self) -> Vec<ConfigProblem> {
        check_shape(self.channels, self.size, "")
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let files = context.input("input")?.files()?;
        let (files, ignored) = image_files(files);
        if let Some(text) = ignored {
            context.warn(text);
        }
        let examples = self.examples(&files, context)?;
        let wanted = Wanted { channels: self.channels, size: self.size, max_pixels: self.max_pixels };
        let progress = context.progress("decoding", Some(examples.len() as u64), "images");
        let mut writer = PictureWriter::new(context.output(), self.on_corrupt);
        let mut rest = &examples[..];
        while !rest.is_empty() {
            context.check_stop()?;
            let (chunk, later) = rest.split_at(writer.chunk_rows().min(rest.len()));
            let decoded = collect_in_order(chunk.par_iter().map(|example| decode_file(example.path, &wanted)))?;
            for (example, picture) in chunk.iter().zip(decoded) {
                writer.push(example.id, example.label, example.split, picture)?;
            }
            progress.add(chunk.len() as u64);
            rest = later;
        }
        writer.finish(context)?;
        outcome::of_images(context.output())
    }
}

struct Example<'a> {
    id: &'a str,
    path: &'a Path,
    label: Option<&'a str>,
    split: Option<Split>,
}

impl ImageFolder {
    /// The examples in the order of their paths.
    fn examples<'a>(&self, files: &'a [(String, PathBuf)], context: &RunContext) -> Result<Vec<Example<'a>>, StageError> {
        let root = self.root.as_deref().map(|root| format!("{}/", root.trim_matches('/'))).filter(|root| root != "/");
        let inside: Vec<&'a (String, PathBuf)> =
            files.iter().filter(|(id, _)| root.as_ref().is_none_or(|root| id.starts_with(root))).collect();
        if inside.is_empty() {
            let place = root.as_deref().unwrap_or("the input");
            return Err(StageError::new(format!("there is no PNG or JPEG file in {place}"))
                .help("files are known by their endings: .jpg, .jpeg, .jpe, .jfif and .png, in any case"));
        }
        let ids: Vec<&'a str> = inside.iter().map(|(id, _)| id.as_str()).collect();
        let start = root.as_ref().map_or_else(|| shared_root(&ids), String::len);
        let below: Vec<&'a str> = ids.iter().map(|id| &id[start..]).collect();
        let places = places(&below, self.layout)?;
        let unlabelled = places.iter().filter(|place| place.label.is_none()).count();
        if unlabelled > 0 && self.layout != Layout::Flat {
            let first = places.iter().position(|place| place.label.is_none()).map_or("", |row| ids[row]);
            context.warn(format!("{unlabelled} of {} images lie in no class folder and have no label, such as {first}", ids.len()));
        }
        let example =
            |((id, path), place): (&'a (String, PathBuf), Place<'a>)| Example { id, path, label: place.label, split: place.split };
        Ok(inside.into_iter().zip(places).map(example).collect())
    }
}

/// A read error fails the stage; bytes that cannot be decoded are the writer's to judge.
fn decode_file(path: &Path, wanted: &Wanted) -> Result<Result<Picture, Undecodable>, StageError> {
    let bytes = std::fs::read(path).doing(|| format!("reading {}", path.display()))?;
    Ok(decode(&bytes, wanted))
}

/// The image files, sorted by path, and a sentence on what is ignored.
fn image_files(mut files: Vec<(String, PathBuf)>) -> (Vec<(String, PathBuf)>, Option<String>) {
    let mut ignored: BTreeMap<String, usize> = BTreeMap::new();
    files.retain(|(path, _)| {
        let name = path.rsplit('/').next().unwrap_or(path);
        let kind = if path.split('/').any(|part| part.starts_with('.') || part == "__MACOSX") {
            "hidden".to_owned()
        } else {
            match name.rsplit_once('.') {
                Some((_, ending)) => format!(".{}", ending.to_ascii_lowercase()),
                None => "without an ending".to_owned(),
            }
        };
        let is_image = [".jpg", ".jpeg", ".jpe", ".jfif", ".png"].contains(&kind.as_str());
        if !is_image {
            *ignored.entry(kind).or_default() += 1;
        }
        is_image
    });
    files.sort();
    let count: usize = ignored.values().sum();
    let kinds = ignored.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ");
    let text = format!("{count} {} ignored, since only PNG and JPEG are read: {kinds}", if count == 1 { "file is" } else { "files are" });
    (files, (count > 0).then_some(text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use image::ExtendedColorType::{L8, Rgb8};
    use serde_json::json;

    use super::*;
    use crate::testing::{folder, jpeg, mirrored, png, run};

    #[test]
    fn split_and_class_folders_become_rows_in_the_order_of_their_paths() {
        let (red, blue) = (png(2, 1, Rgb8, &[255, 0, 0, 255, 0, 0]), png(2, 1, Rgb8, &[0, 0, 255, 0, 0, 255]));
        let input = folder(&[
            ("set/train/red/b.png", &red),
            ("set/train/red/a.PNG", &red),
            ("set/val/blue/1.png", &blue),
            ("set/test/blue/deep/1.png", &blue),
            ("set/README.md", b"hello"),
            ("set/train/.DS_Store", b"x"),
            ("set/train/red/Thumbs.db", b"x"),
        ]);
        let ran = run::<ImageFolder>(json!({}), input.path());
        let data = ran.images();
        assert_eq!(
            (0..4).map(|row| (data.id(row), data.label(row).unwrap(), data.split(row).unwrap())).collect::<Vec<_>>(),
            [
                ("set/test/blue/deep/1.png", "blue", Split::Test),
                ("set/train/red/a.PNG", "red", Split::Train),
                ("set/train/red/b.png", "red", Split::Train),
                ("set/val/blue/1.png", "blue", Split::Validation),
            ]
        );
        assert_eq!(data.pixels(1).unwrap(), [255, 0, 0, 255, 0, 0]);
        ran.says("3 files are ignored, since only PNG and JPEG are read: 1 .db, 1 .md, 1 hidden");
    }

    #[test]
    fn a_jpeg_that_is_no_jpeg_is_named_with_its_first_bytes() {
        let input = folder(&[("cat/1.jpg", b"<html>404 not found</html>"), ("cat/2.png", &png(1, 1, L8, &[0]))]);
        run::<ImageFolder>(json!({}), input.path()).fails_naming(&["cat/1.jpg", "`<html>404 not fo`", "an HTML page", "on_corrupt"]);
    }

    #[test]
    fn corrupt_images_are_kept_without_pixels_when_asked_and_counted() {
        let whole = jpeg(8, 8, L8, &[99; 64]);
        let input = folder(&[("a/0.jpg", b""), ("a/1.jpg", &whole[..whole.len() / 2]), ("b/2.jpg", &whole), ("b/3.png", b"no")]);
        let ran = run::<ImageFolder>(json!({ "on_corrupt": "null" }), input.path());
        let data = ran.images();
        assert_eq!((0..4).map(|row| data.pixels(row).is_some()).collect::<Vec<_>>(), [false, false, true, false]);
        assert_eq!((data.label(0), data.label(3)), (Some("a"), Some("b")));
        assert_eq!(ran.profile().image.unwrap().corrupt, 3);
        ran.says("3 of 4 images cannot be decoded and are kept without pixels; the first is a/0.jpg");
    }

    #[test]
    fn a_folder_of_nothing_but_corrupt_images_is_no_dataset() {
        let input = folder(&[("a/0.jpg", b"x"), ("a/1.jpg", b"y")]);
        run::<ImageFolder>(json!({ "on_corrupt": "null" }), input.path()).fails_naming(&["none of the 2 images can be decoded", "a/0.jpg"]);
    }

    #[test]
    fn an_image_of_another_size_is_named_and_can_be_resized() {
        let input = folder(&[("a/0.png", &png(2, 2, L8, &[7; 4])), ("a/1.png", &png(3, 2, L8, &[7; 6]))]);
        run::<ImageFolder>(json!({}), input.path()).fails_naming(&["a/1.png", "2×3×1", "2×2×1", "a/0.png", "size ="]);
        let data = run::<ImageFolder>(json!({ "size": [4, 5] }), input.path()).images();
        assert_eq!((data.shape().to_string(), data.pixels(1)), ("4×5×1".to_owned(), Some(&[7; 20][..])));
    }

    #[test]
    fn grey_among_colour_becomes_colour_and_colour_among_grey_is_named() {
        let (grey, colour) = (png(1, 1, L8, &[9]), png(1, 1, Rgb8, &[1, 2, 3]));
        let data = run::<ImageFolder>(json!({}), folder(&[("a/0.png", &colour), ("a/1.png", &grey)]).path()).images();
        assert_eq!(data.pixels(1).unwrap(), [9, 9, 9]);
        let input = folder(&[("a/0.png", &grey), ("a/1.png", &colour)]);
        run::<ImageFolder>(json!({}), input.path()).fails_naming(&["a/1.png", "channels = 3"]);
        assert_eq!(run::<ImageFolder>(json!({ "channels": 1 }), input.path()).images().shape().channels, 1);
    }

    #[test]
    fn an_image_of_huge_dimensions_is_refused_by_name() {
        let input = folder(&[("a/0.png", &png(40, 40, L8, &[0; 1600]))]);
        run::<ImageFolder>(json!({ "max_pixels": 1000 }), input.path()).fails_naming(&["a/0.png", "40 × 40", "`max_pixels` is 1000"]);
    }

    #[test]
    fn images_without_a_class_have_no_label_and_are_counted() {
        let grey = png(1, 1, L8, &[9]);
        let input = folder(&[("a/0.png", &grey), ("1.png", &grey)]);
        let ran = run::<ImageFolder>(json!({}), input.path());
        assert_eq!((ran.images().label(0), ran.images().label(1)), (None, Some("a")));
        ran.says("1 of 2 images lie in no class folder and have no label, such as 1.png");
        let flat = run::<ImageFolder>(json!({ "layout": "flat" }), input.path());
        assert!(flat.images().label(1).is_none() && flat.said.is_empty());
    }

    #[test]
    fn a_root_is_where_the_classes_begin() {
        let grey = png(1, 1, L8, &[9]);
        let input = folder(&[("x/y/cat/0.png", &grey), ("x/other.png", &grey)]);
        let data = run::<ImageFolder>(json!({ "root": "x/y" }), input.path()).images();
        assert_eq!((data.len(), data.label(0)), (1, Some("cat")));
        run::<ImageFolder>(json!({ "root": "z" }), input.path()).fails_naming(&["no PNG or JPEG file in z/"]);
    }

    #[test]
    fn an_empty_folder_is_named() {
        run::<ImageFolder>(json!({}), folder(&[("notes.txt", b"hello")]).path()).fails_naming(&["no PNG or JPEG file in the input"]);
    }

    #[test]
    fn wrong_shapes_are_problems_of_the_config() {
        let stage: ImageFolder = serde_json::from_value(json!({ "input": "raw", "channels": 2, "size": [0, 5] })).unwrap();
        assert_eq!(stage.check().iter().map(|problem| problem.path.join(".")).collect::<Vec<_>>(), ["channels", "size"]);
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let pictures: Vec<(String, Vec<u8>)> = (0..300u32)
            .map(|i| (format!("{}/{i}.jpg", i % 3), jpeg(8, 8, L8, &(0..64).map(|p| (p * i) as u8).collect::<Vec<_>>())))
            .collect();
        let input = folder(&pictures.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect::<Vec<_>>());
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let ran = pool.install(|| run::<ImageFolder>(json!({}), input.path()));
            (std::fs::read(ran.data()).unwrap(), ran.result.unwrap())
        };
        assert!(with(1) == with(3));
    }

    #[test]
    fn cifar_folders_have_their_known_counts() {
        let Some(archive) = mirrored("cifar10-images/cifar10-images.tar.gz") else { return };
        let dir = tempfile::tempdir().unwrap();
        // The test folder only: making 60,000 files takes longer than all other tests together.
        let tar = std::process::Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(dir.path()).arg("cifar10-images/test").status();
        if !tar.is_ok_and(|status| status.success()) {
            println!("skipped: tar cannot unpack {}", archive.display());
            return;
        }
        let ran = run::<ImageFolder>(json!({}), dir.path());
        let profile = ran.profile();
        assert_eq!((profile.splits["test"], profile.classes.len()), (10_000, 10));
        assert!(profile.classes.values().all(|splits| splits["test"] == 1000));
        assert_eq!(ran.images().shape(), dataset::ImageShape { height: 32, width: 32, channels: 3 });
        // The channel means of CIFAR-10's test images; the JPEG files are a re-encoding.
        let mean = profile.image.unwrap().mean;
        assert!(mean.iter().zip([0.4942, 0.4851, 0.4504]).all(|(found, known)| (found / 255.0 - known).abs() < 0.003), "{mean:?}");
    }
}
