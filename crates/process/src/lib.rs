//! Process (f): datasets in, clean, split and encoded datasets out, with f itself as fitted parameters.
//!
//! Takes a dataset artifact. Gives a processed artifact: `data.parquet`, `f.json` ([`transform::Fitted`]),
//! `profile.json`, and `cleaning.json` ([`Cleaning`]: what was dropped or changed, and how many).
//!
//! | stage | does |
//! |---|---|
//! | `process.images` ([`Images`]) | drops corrupt and duplicate images, splits, encodes labels, fits the normalisation |
//! | `process.table` ([`Table`]) | types, SQL, missing values, duplicates, outliers, one-hot, scaling, splits |
//!
//! Whatever is fitted is fitted on the train split alone, so that nothing of the test split leaks into f. Rows, labels
//! and tables go through polars; pixels through rayon.

pub mod cleaning;
pub mod copies;
pub mod fit;
pub mod images;
pub mod labels;
pub mod split;
pub mod table;
pub mod table_config;
#[cfg(test)]
mod testing;

use artifact::StageType;

pub use cleaning::Cleaning;
pub use images::Images;
pub use split::SplitFractions;
pub use table_config::Table;

/// The stages of this crate.
pub static STAGES: &[StageType] = &[StageType::of::<Images>(), StageType::of::<Table>()];
