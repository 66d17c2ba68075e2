//! Collect: the world into checked raw files.
//!
//! Stages: [`Synthetic`] (`collect.synthetic`), [`Http`] (`collect.http`), [`Files`] (`collect.files`).

mod archive;
mod files;
mod http;
mod pen;
mod source;
mod strokes;
mod synthetic;
mod transfer;

use artifact::StageType;

pub use files::Files;
pub use http::{Http, Pinned};
pub use synthetic::Synthetic;

/// The stages of this crate.
pub static STAGES: &[StageType] = &[StageType::of::<Synthetic>(), StageType::of::<Http>(), StageType::of::<Files>()];
