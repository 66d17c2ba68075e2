//! Collect: downloads, folders and archives, generators; the world into checked raw files.

use artifact::StageType;

/// The stages of this crate.
pub const STAGES: &[StageType] = &[];
