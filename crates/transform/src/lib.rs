//! f as fitted parameters: what process fits on the train split and apply replays exactly.
//!
//! [`Fitted`] lies as `f.json` in every processed artifact and, copied, in every model. It holds numbers and words
//! only, no code: reading it back gives the same bits, so that a raw example becomes the same features in training and
//! in use.
//!
//! | module | holds |
//! |---|---|
//! | [`images`] | [`ImageTransform`]: shape, classes, one scale and shift per channel |
//! | [`table`] | [`TableTransform`]: raw row to feature vector, [`FeatureMatrix`] |
//! | [`source`] | [`Source`]: raw columns, casts, SQL: the part of a table's f that is declared, not fitted |
//! | [`feature`] | [`Feature`]: imputation, clipping, one-hot words, scaling: the part that is fitted |
//! | [`raw`] | Arrow arrays to typed values, every misfit named with column, row and value |
//! | [`sql`] | polars SQL, held to expressions that look at one row alone |
//! | [`classes`] | the order of classes |
//! | [`view`] | [`View`]: an image moved and mirrored |

pub mod classes;
pub mod feature;
pub mod images;
pub mod raw;
pub mod source;
pub mod sql;
pub mod table;
pub mod view;

use std::path::Path;

use artifact::{Doing, StageError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use feature::{CategoryEncoding, Encoding, Feature, NumberEncoding};
pub use images::ImageTransform;
pub use raw::{ColumnKind, RawColumn};
pub use source::{Derived, Source};
pub use table::{FeatureMatrix, TableTransform};
pub use view::View;

/// The file name of f within a processed or model artifact.
pub const FILE_NAME: &str = "f.json";
/// Version of the file's format.
const FORMAT: u64 = 1;

/// f, fitted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Fitted {
    /// For images.
    Images(ImageTransform),
    /// For tables.
    Table(TableTransform),
}

impl Fitted {
    /// Reads `dir/f.json`.
    ///
    /// # Errors
    /// When the file is missing, is no f, or has a newer format.
    pub fn read(dir: &Path) -> Result<Self, StageError> {
        let path = dir.join(FILE_NAME);
        let doing = || format!("reading the fitted transform {}", path.display());
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).doing(doing)?).doing(doing)?;
        match value.as_object_mut().and_then(|keys| keys.remove("format")).and_then(|format| format.as_u64()) {
            Some(FORMAT) => serde_json::from_value(value).doing(doing),
            Some(newer) => Err(StageError::new(format!("the fitted transform has format {newer}, and this program knows format {FORMAT}"))
                .at(path.display())
                .help("use the episteme version that made it, or a newer one")),
            None => Err(StageError::new("this is no fitted transform: it has no `format`").at(path.display())),
        }
    }

    /// Writes `dir/f.json`: keys sorted, every float such that reading gives the same bits.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<(), StageError> {
        let path = dir.join(FILE_NAME);
        let doing = || format!("writing the fitted transform {}", path.display());
        let mut value = serde_json::to_value(self).doing(doing)?;
        if let Some(keys) = value.as_object_mut() {
            keys.insert("format".into(), FORMAT.into());
        }
        let mut text = serde_json::to_vec_pretty(&value).doing(doing)?;
        text.push(b'\n');
        std::fs::write(&path, text).doing(doing)
    }

    /// The classes, in the order of the model's outputs.
    pub fn classes(&self) -> &[String] {
        match self {
            Self::Images(images) => &images.classes,
            Self::Table(table) => &table.classes,
        }
    }

    /// Numbers that the network takes for one example: pixels × channels, or features.
    pub fn input_size(&self) -> usize {
        match self {
            Self::Images(images) => images.shape.bytes(),
            Self::Table(table) => table.width(),
        }
    }

    /// This f, when it is for images.
    ///
    /// # Errors
    /// When it is for tables.
    pub fn images(&self) -> Result<&ImageTransform, StageError> {
        match self {
            Self::Images(images) => Ok(images),
            Self::Table(_) => Err(StageError::new("images are needed here, and this f was fitted on a table")),
        }
    }

    /// This f, when it is for tables.
    ///
    /// # Errors
    /// When it is for images.
    pub fn table(&self) -> Result<&TableTransform, StageError> {
        match self {
            Self::Table(table) => Ok(table),
            Self::Images(_) => Err(StageError::new("a table is needed here, and this f was fitted on images")),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn example() -> Fitted {
        // Numbers whose shortest decimal form a careless reader gets wrong in the last bit.
        let mean = vec![0.1 + 0.2, 5e-324, 1.797_693_134_862_315_7e308];
        let shape = dataset::ImageShape { height: 2, width: 2, channels: 3 };
        Fitted::Images(ImageTransform {
            shape,
            classes: vec!["a".into(), "b".into()],
            mean,
            std: vec![1.0 / 3.0, 2e-17, 123_456.789_012_345_67],
        })
    }

    #[test]
    fn a_fitted_transform_is_read_back_to_the_last_bit() {
        let dir = tempfile::tempdir().unwrap();
        example().write(dir.path()).unwrap();
        let first = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
        let read = Fitted::read(dir.path()).unwrap();
        assert_eq!(read, example());
        read.write(dir.path()).unwrap();
        assert_eq!(std::fs::read(dir.path().join(FILE_NAME)).unwrap(), first);
    }

    #[test]
    fn random_floats_survive_the_file() {
        let mut state = 7u64;
        let floats: Vec<f64> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            f64::from_bits(state)
        })
        .filter(|value| value.is_finite())
        .take(20_000)
        .collect();
        let text = serde_json::to_string(&floats).unwrap();
        let read: Vec<f64> = serde_json::from_str(&text).unwrap();
        assert!(floats.iter().zip(&read).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), r#"{"format":9,"kind":"images"}"#).unwrap();
        let text = Fitted::read(dir.path()).unwrap_err().to_string();
        assert!(text.contains("format 9") && text.contains(FILE_NAME), "{text}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Fitted::read(dir.path()).unwrap_err().to_string().contains(FILE_NAME));
    }
}
