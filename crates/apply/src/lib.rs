//! Apply: K and data into predictions and reports.
//!
//! Stages: [`Predict`] (`apply.predict`), [`Report`] (`apply.report`).
//!
//! K is read from a model artifact: f from `f.json`, g from `model.json` and `weights.safetensors`. Raw examples go through
//! exactly that f.

mod examples;
mod knowledge;
mod predict;
mod report;
mod views;

use artifact::StageType;

pub use knowledge::Knowledge;
pub use predict::{PREDICTIONS_FILE, Predict, Scope};
pub use report::Report;
pub use views::Views;

/// The stages of this crate.
pub static STAGES: &[StageType] = &[StageType::of::<Predict>(), StageType::of::<Report>()];
