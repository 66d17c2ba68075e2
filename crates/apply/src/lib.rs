//! Apply: K and data into predictions and reports.
//!
//! Stages: [`Predict`] (`apply.predict`).
//!
//! K is read from a model artifact: f from `f.json`, g from `model.json` and `weights.safetensors`. Raw examples go through
//! exactly that f.

mod examples;
mod knowledge;
mod predict;

use artifact::StageType;

pub use knowledge::Knowledge;
pub use predict::Predict;

/// The stages of this crate.
pub const STAGES: &[StageType] = &[StageType::of::<Predict>()];
