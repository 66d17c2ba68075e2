//! Running a stage in a scratch folder.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use artifact::event::Collected;
use artifact::{Event, Input, RunContext, Settings, Stage, StageError};

use crate::Cleaning;

/// A stage's output, and what it said.
pub(crate) struct Ran {
    scratch: tempfile::TempDir,
    pub(crate) events: Vec<Event>,
}

impl Ran {
    pub(crate) fn dir(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn output(&self, file: &str) -> PathBuf {
        self.scratch.path().join(file)
    }

    pub(crate) fn cleaning(&self) -> Cleaning {
        serde_json::from_slice(&std::fs::read(self.output(crate::cleaning::FILE_NAME)).unwrap()).unwrap()
    }

    pub(crate) fn said(&self, text: &str) -> bool {
        self.events.iter().any(|event| matches!(event, Event::Log { message, .. } if message.contains(text)))
    }
}

/// Runs a stage on the data file that `write` makes.
pub(crate) fn run(stage: &impl Stage, write: impl FnOnce(&Path)) -> Result<Ran, StageError> {
    let input = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    write(&input.path().join(dataset::DATA_FILE));
    let inputs = BTreeMap::from([("input".to_owned(), vec![Input::open(input.path())?])]);
    let (sink, stop) = (Collected::default(), AtomicBool::new(false));
    let context = RunContext::new("clean", inputs, scratch.path().to_owned(), Settings::default(), &sink, &stop);
    let done = stage.run(&context);
    done.map(|_| Ran { scratch, events: sink.take() })
}
