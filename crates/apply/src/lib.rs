//! Apply: K and new data into predictions and reports.

use artifact::StageType;

/// The stages of this crate.
pub const STAGES: &[StageType] = &[];
