//! Everything that a report is made of, read once.

use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float32Type;
use artifact::{Doing, Input, Manifest, StageError};
use dataset::{DATA_FILE, Images, Profile, table};
use network::metrics::Metrics;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::knowledge::Knowledge;
use crate::predict::PREDICTIONS_FILE;

/// One scored example.
pub struct Prediction {
    pub id: String,
    pub label: Option<String>,
    pub predicted: String,
    pub confidence: f32,
}

/// Loss and accuracy after an epoch, of `history.json`.
#[derive(Deserialize)]
pub struct Epoch {
    pub epoch: u32,
    pub train: Measured,
    pub validation: Measured,
}

#[derive(Deserialize)]
pub struct Measured {
    pub loss: f64,
    pub accuracy: f64,
}

/// All inputs, read.
pub struct Sources {
    pub knowledge: Knowledge,
    pub history: Vec<Epoch>,
    pub predictions: Vec<Prediction>,
    /// The split judged and its measures; none where no label was known.
    pub metrics: Option<(String, Metrics)>,
    pub profile: Option<Profile>,
    /// `cleaning.json`, where the data has one.
    pub cleaning: Option<Value>,
    pub images: Option<Images>,
    pub manifests: Vec<Manifest>,
    pub data: PathBuf,
}

impl Sources {
    pub fn read(model: &Input, predictions: &Input, data: &Input) -> Result<Self, StageError> {
        let knowledge = Knowledge::read(&model.path)?;
        let measured: std::collections::BTreeMap<String, Metrics> = json(&predictions.path.join("metrics.json"))?.unwrap_or_default();
        let is_images = knowledge.fitted.images().is_ok();
        Ok(Self {
            history: json(&model.path.join("history.json"))?.unwrap_or_default(),
            predictions: read_predictions(&predictions.path.join(PREDICTIONS_FILE))?,
            metrics: measured.into_iter().next(),
            profile: data.path.join(dataset::PROFILE_FILE).is_file().then(|| Profile::read(&data.path)).transpose()?,
            cleaning: json(&data.path.join("cleaning.json"))?,
            images: is_images.then(|| Images::read(&data.path.join(DATA_FILE))).transpose()?,
            manifests: [predictions, model, data].iter().filter_map(|input| input.manifest.clone()).collect(),
            data: data.path.clone(),
            knowledge,
        })
    }

    /// A heading for reports without one.
    pub fn title(&self) -> String {
        let classes = &self.knowledge.classes;
        let shown: Vec<&str> = classes.iter().take(3).map(String::as_str).collect();
        match classes.len() {
            2 => format!("{} or {}", classes[0], classes[1]),
            count if count > 3 => format!("{}, … ({count} classes)", shown.join(", ")),
            _ => shown.join(", "),
        }
    }
}

/// A JSON file; none where it is missing.
fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StageError> {
    let reading = || format!("reading {}", path.display());
    if !path.is_file() {
        return Ok(None);
    }
    serde_json::from_slice(&std::fs::read(path).doing(reading)?).doing(reading).map(Some)
}

fn read_predictions(path: &Path) -> Result<Vec<Prediction>, StageError> {
    let mut predictions = Vec::new();
    for batch in table::read_table(path)?.1 {
        let missing = |name: &str| StageError::new(format!("the column `{name}` is missing or of another type")).at(path.display());
        let text = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>()).ok_or_else(|| missing(name));
        let (ids, labels, predicted) = (text("id")?, text("label")?, text("predicted")?);
        let confidence = batch
            .column_by_name("confidence")
            .and_then(|column| column.as_primitive_opt::<Float32Type>())
            .ok_or_else(|| missing("confidence"))?;
        predictions.extend((0..batch.num_rows()).map(|row| Prediction {
            id: ids.value(row).to_owned(),
            label: labels.is_valid(row).then(|| labels.value(row).to_owned()),
            predicted: predicted.value(row).to_owned(),
            confidence: confidence.value(row),
        }));
    }
    Ok(predictions)
}
