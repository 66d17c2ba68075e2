//! What this crate's tests share.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use artifact::event::Collected;
use artifact::{Event, Input, Outcome, RunContext, Settings, Stage, StageError};
use dataset::{DATA_FILE, Images, Profile};
use image::{ExtendedColorType, ImageEncoder};
use serde_json::Value;
use tempfile::TempDir;

/// A stage that ran on a folder.
pub(crate) struct Ran {
    pub(crate) output: TempDir,
    pub(crate) result: Result<Outcome, StageError>,
    pub(crate) said: Vec<String>,
}

impl Ran {
    pub(crate) fn data(&self) -> PathBuf {
        self.output.path().join(DATA_FILE)
    }

    #[track_caller]
    pub(crate) fn images(&self) -> Images {
        assert!(self.result.is_ok(), "{:?}", self.result);
        Images::read(&self.data()).unwrap()
    }

    #[track_caller]
    pub(crate) fn profile(&self) -> Profile {
        assert!(self.result.is_ok(), "{:?}", self.result);
        Profile::read(self.output.path()).unwrap()
    }

    /// The failure, which must name all of these.
    #[track_caller]
    pub(crate) fn fails_naming(&self, texts: &[&str]) {
        let error = self.result.as_ref().expect_err("this must fail");
        let all = format!("{error} {}", error.help.clone().unwrap_or_default());
        texts.iter().for_each(|text| assert!(all.contains(text), "`{text}` is not in: {all}"));
    }

    #[track_caller]
    pub(crate) fn says(&self, text: &str) {
        assert!(self.said.iter().any(|line| line.contains(text)), "`{text}` is not in {:?}", self.said);
    }
}

/// Runs a stage on a folder; `config` lacks only `input`.
#[track_caller]
pub(crate) fn run<S: Stage>(mut config: Value, input: &Path) -> Ran {
    config["input"] = "raw".into();
    let stage: S = serde_json::from_value(config).unwrap();
    let problems = stage.check();
    assert!(problems.is_empty(), "{problems:?}");
    let output = tempfile::tempdir().unwrap();
    let (sink, stop) = (Collected::default(), AtomicBool::new(false));
    let inputs = BTreeMap::from([("input".to_owned(), vec![Input::open(input).unwrap()])]);
    let context = RunContext::new("tested", inputs, output.path().to_owned(), Settings::default(), &sink, &stop);
    let result = stage.run(&context);
    let said = sink.take().into_iter().filter_map(|event| match event {
        Event::Log { message, .. } => Some(message),
        _ => None,
    });
    Ran { result, said: said.collect(), output }
}

/// A folder with these files.
pub(crate) fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An IDX file with values of this type.
pub(crate) fn idx(code: u8, dimensions: &[u32], values: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, code, dimensions.len() as u8];
    dimensions.iter().for_each(|size| file.extend(size.to_be_bytes()));
    file.extend(values);
    file
}

/// Pixels as PNG.
pub(crate) fn png(width: u32, height: u32, colour: ExtendedColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::png::PngEncoder::new(&mut bytes).write_image(pixels, width, height, colour).unwrap();
    bytes
}

/// Pixels as JPEG of high quality.
pub(crate) fn jpeg(width: u32, height: u32, colour: ExtendedColorType, pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95).write_image(pixels, width, height, colour).unwrap();
    bytes
}

/// A file of the mirror of real data that `EPISTEME_MIRROR` names, or none with the reason printed.
pub(crate) fn mirrored(file: &str) -> Option<PathBuf> {
    let path = std::env::var_os("EPISTEME_MIRROR").map(|mirror| PathBuf::from(mirror).join(file)).filter(|path| path.exists());
    if path.is_none() {
        println!("skipped: {file} is not in a folder named by EPISTEME_MIRROR");
    }
    path
}
