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

/// A model and how it came to be.
pub struct Model {
    pub knowledge: Knowledge,
    pub history: Vec<Epoch>,
}

/// All inputs, read.
pub struct Sources {
    /// At least one.
    pub models: Vec<Model>,
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
    pub fn read(models: &[Input], predictions: &Input, data: &Input) -> Result<Self, StageError> {
        let manifests = [predictions].into_iter().chain(models).chain([data]).filter_map(|input| input.manifest.clone()).collect();
        let model = |(knowledge, input): (Knowledge, &Input)| {
            Ok(Model { knowledge, history: json(&input.path.join("history.json"))?.unwrap_or_default() })
        };
        let models = Knowledge::read_all(models)?.into_iter().zip(models).map(model).collect::<Result<Vec<_>, StageError>>()?;
        let measured: std::collections::BTreeMap<String, Metrics> = json(&predictions.path.join("metrics.json"))?.unwrap_or_default();
        let is_images = models[0].knowledge.fitted.images().is_ok();
        Ok(Self {
            predictions: read_predictions(&predictions.path.join(PREDICTIONS_FILE))?,
            metrics: measured.into_iter().next(),
            profile: data.path.join(dataset::PROFILE_FILE).is_file().then(|| Profile::read(&data.path)).transpose()?,
            cleaning: json(&data.path.join("cleaning.json"))?,
            images: is_images.then(|| Images::read(&data.path.join(DATA_FILE))).transpose()?,
            manifests,
            data: data.path.clone(),
            models,
        })
    }

    /// The classes, which all models share.
    pub fn classes(&self) -> &[String] {
        &self.models[0].knowledge.classes
    }

    /// A heading for reports without one.
    pub fn title(&self) -> String {
        let classes = self.classes();
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
