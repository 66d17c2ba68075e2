//! Learn (g): a processed dataset to a model artifact K.
//!
//! Stages: [`Classifier`] (`learn.classifier`).
//!
//! A model artifact holds f as it was fitted (`f.json`), the network (`model.json`, `weights.safetensors`), how it came
//! about (`history.json`), how good it is (`metrics.json`), and a card for people (`card.md`).

mod augment;
mod card;
mod checkpoint;
mod classifier;
mod examples;
mod model;
mod progressive;
mod schedule;
mod training;

use artifact::StageType;

pub use augment::{Augmentation, Flip};
pub use classifier::{Checkpoint, ClassWeights, Classifier, EarlyStopping, Keep, Watch};
pub use model::{Epoch, MODEL_FILE, Model, WEIGHTS_FILE};
pub use progressive::Smaller;
pub use schedule::Schedule;

/// The stages of this crate.
pub static STAGES: &[StageType] = &[StageType::of::<Classifier>()];
