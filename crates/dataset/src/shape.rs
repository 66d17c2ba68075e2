//! The shape of an image.

use std::collections::HashMap;
use std::fmt;

use arrow::datatypes::Metadata;
use artifact::StageError;
use serde::{Deserialize, Serialize};

/// Height, width and channels, in pixels; pixels are interleaved: `[height, width, channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageShape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// 1 (grey) or 3 (red, green, blue), or as many as the data has.
    pub channels: usize,
}

const KEYS: [&str; 3] = ["episteme.height", "episteme.width", "episteme.channels"];

impl ImageShape {
    /// Bytes of one image.
    pub fn bytes(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// As entries of an Arrow schema's metadata.
    pub fn to_metadata(self) -> HashMap<String, String> {
        KEYS.iter().zip([self.height, self.width, self.channels]).map(|(key, value)| ((*key).to_owned(), value.to_string())).collect()
    }

    /// From an Arrow schema's metadata.
    ///
    /// # Errors
    /// When an entry is missing, no number, or the product overflows.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, StageError> {
        let value = |key: &str| {
            metadata.get(key).and_then(|text| text.parse::<usize>().ok()).filter(|value| (1..=1 << 20).contains(value)).ok_or_else(|| {
                StageError::new(format!("this is no image dataset: its schema lacks `{key}`"))
                    .help("image datasets are made by store.idx, store.image_folder or store.parquet with `image`")
            })
        };
        Ok(Self { height: value(KEYS[0])?, width: value(KEYS[1])?, channels: value(KEYS[2])? })
    }
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}×{}×{}", self.height, self.width, self.channels)
    }
}
