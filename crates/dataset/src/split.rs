//! Which part of a dataset an example belongs to.

use std::fmt;
use std::str::FromStr;

use artifact::StageError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Train, validation or test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Learnt from; the only one that f is fitted on.
    Train,
    /// Watched while learning: picks the best epoch.
    Validation,
    /// Looked at once, at the end.
    Test,
}

impl Split {
    /// All three, in this order.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// `train`, `validation` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Split {
    type Err = StageError;

    fn from_str(text: &str) -> Result<Self, StageError> {
        Self::ALL
            .into_iter()
            .find(|split| split.name() == text)
            .ok_or_else(|| StageError::new(format!("`{text}` is no split")).help("the splits are train, validation and test"))
    }
}
