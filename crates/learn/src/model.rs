//! The model artifact K: f, the network, how it came about and how good it is.

use std::collections::BTreeMap;
use std::path::Path;

use artifact::{Doing, Outcome, StageError};
use network::metrics::Metrics;
use network::{Architecture, Network};
use serde::{Deserialize, Serialize};

use crate::card;
use crate::classifier::Classifier;
use crate::examples::Examples;
use crate::training::{Trained, failed};

/// The network's declaration.
pub const MODEL_FILE: &str = "model.json";
/// The network's weights.
pub const WEIGHTS_FILE: &str = "weights.safetensors";

/// `model.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Declaration {
    /// Version of this format: 1.
    pub format: u32,
    /// Input and layers.
    pub architecture: Architecture,
    /// The classes, in the order of the outputs.
    pub classes: Vec<String>,
    /// The epoch, from 1, whose weights are kept.
    pub kept_epoch: u32,
    /// What the logits have been divided by to calibrate them; the weights have it already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
}

/// Measures after an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Mean cross-entropy, in nats. On the train split as it was while learning, so with dropout and before the epoch's end.
    pub loss: f64,
    /// Share of right predictions.
    pub accuracy: f64,
    /// Mean F1 over classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub macro_f1: Option<f64>,
}

/// One epoch of `history.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: u32,
    /// On the train split.
    pub train: Measured,
    /// On the validation split.
    pub validation: Measured,
}

/// K, about to be written.
pub struct Model {
    /// What `model.json` says.
    pub declaration: Declaration,
    /// How it came about.
    pub history: Vec<Epoch>,
    /// How good it is.
    pub metrics: Metrics,
    /// The network.
    pub network: Network,
    /// How it was trained.
    pub config: Classifier,
    /// The GPU that computed, if one did.
    pub gpu: Option<String>,
}

impl Model {
    /// K of a training.
    pub fn new(config: &Classifier, examples: &Examples, trained: Trained) -> Self {
        let declaration = Declaration {
            format: 1,
            architecture: trained.network.architecture().clone(),
            classes: examples.classes().to_vec(),
            kept_epoch: trained.kept,
            temperature: trained.temperature,
        };
        Self {
            declaration,
            history: trained.history,
            metrics: trained.metrics,
            network: trained.network,
            config: config.clone(),
            gpu: trained.gpu,
        }
    }

    /// Writes all files of the artifact; `f.json` is copied byte for byte.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path, processed: &Path, examples: &Examples) -> Result<(), StageError> {
        let write = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            std::fs::write(&path, bytes).doing(|| format!("writing {}", path.display()))
        };
        write(MODEL_FILE, &json(&self.declaration)?)?;
        write(WEIGHTS_FILE, &self.network.to_safetensors().map_err(failed)?)?;
        write("history.json", &json(&self.history)?)?;
        write("metrics.json", &json(&BTreeMap::from([(self.split(examples), &self.metrics)]))?)?;
        write("card.md", card::card(self, examples).as_bytes())?;
        let f = processed.join(transform::FILE_NAME);
        write(transform::FILE_NAME, &std::fs::read(&f).doing(|| format!("reading {}", f.display()))?)
    }

    /// The split that [`Self::metrics`] were measured on.
    pub fn split(&self, examples: &Examples) -> &'static str {
        if examples.validation().is_empty() { "train" } else { "validation" }
    }

    /// What the manifest says of it.
    pub fn outcome(&self) -> Outcome {
        let metrics = BTreeMap::from([
            ("validation.accuracy".to_owned(), self.metrics.accuracy),
            ("validation.macro_f1".to_owned(), self.metrics.macro_f1),
            ("validation.log_loss".to_owned(), self.metrics.log_loss),
        ]);
        let report = self.network.report();
        let mut schema =
            serde_json::json!({ "classes": self.declaration.classes, "parameters": report.parameters(), "flops": report.flops() });
        if let Some(gpu) = &self.gpu {
            schema["gpu"] = gpu.as_str().into();
        }
        let outputs = [("weights", WEIGHTS_FILE), ("card", "card.md")].map(|(name, path)| (name.to_owned(), path.to_owned()));
        Outcome { rows: None, schema, metrics, outputs: outputs.into() }
    }
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, StageError> {
    let mut text = serde_json::to_vec_pretty(value).doing(|| "writing JSON".into())?;
    text.push(b'\n');
    Ok(text)
}
