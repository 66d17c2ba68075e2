//! Collect: the world into checked raw files.
//!
//! Stages: [`Synthetic`] (`collect.synthetic`).

mod pen;
mod strokes;
mod synthetic;

use artifact::StageType;

pub use synthetic::Synthetic;

/// The stages of this crate.
pub const STAGES: &[StageType] = &[StageType::of::<Synthetic>()];
