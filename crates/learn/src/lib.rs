//! Learn (g): trains a network and gives the model artifact K.

use artifact::StageType;

/// The stages of this crate.
pub const STAGES: &[StageType] = &[];
