//! K, read from a model artifact.

use std::path::Path;

use artifact::{Doing, Input, StageError};
use network::{Architecture, Network, Shape};
use serde::{Deserialize, Serialize};
use transform::Fitted;

/// f and g, ready to judge.
pub struct Knowledge {
    /// f, as it was fitted on the train split.
    pub fitted: Fitted,
    /// g.
    pub network: Network,
    /// The classes, in the order of the outputs.
    pub classes: Vec<String>,
    /// The epoch, from 1, whose weights these are.
    pub kept_epoch: u32,
}

/// `model.json`, as learn writes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Declaration {
    format: u32,
    architecture: Architecture,
    classes: Vec<String>,
    kept_epoch: u32,
}

impl Knowledge {
    /// Reads f, the declaration and the weights.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the three do not fit each other.
    pub fn read(dir: &Path) -> Result<Self, StageError> {
        let path = dir.join("model.json");
        let reading = || format!("reading the model {}", path.display());
        let declaration: Declaration = serde_json::from_slice(&std::fs::read(&path).doing(reading)?).doing(reading)?;
        if declaration.format != 1 {
            return Err(StageError::new(format!("the model has format {}, and this program knows format 1", declaration.format))
                .at(path.display())
                .help("use the episteme version that made it, or a newer one"));
        }
        let fitted = Fitted::read(dir)?;
        let weights = dir.join("weights.safetensors");
        let reading = || format!("reading the weights {}", weights.display());
        let network = Network::from_safetensors(&declaration.architecture, 0, &std::fs::read(&weights).doing(reading)?).doing(reading)?;
        if fitted.classes() != declaration.classes
            || fitted.input_size() != declaration.architecture.input.len()
            || network.classes() != declaration.classes.len()
        {
            return Err(StageError::new("f.json, model.json and weights.safetensors do not belong together")
                .at(dir.display())
                .help("take all files from one model artifact"));
        }
        Ok(Self { fitted, network, classes: declaration.classes, kept_epoch: declaration.kept_epoch })
    }

    /// Reads models that shall judge together.
    ///
    /// # Errors
    /// When one cannot be read, or they learnt from data that went through another f, or other classes.
    pub fn read_all(inputs: &[Input]) -> Result<Vec<Self>, StageError> {
        let all = inputs.iter().map(|input| Self::read(&input.path)).collect::<Result<Vec<_>, _>>()?;
        if let Some(other) = all.iter().position(|one| one.fitted != all[0].fitted) {
            let (first, other) = (inputs[0].path.display(), inputs[other].path.display());
            return Err(StageError::new(format!("models that judge together must have one f, and this one's is not that of {first}"))
                .at(other)
                .help("train them on one and the same processed dataset"));
        }
        Ok(all)
    }

    /// What one example is, once it has been through f.
    pub fn shape(&self) -> Shape {
        self.network.architecture().input
    }
}
