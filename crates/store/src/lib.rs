//! Store: raw files into datasets.
//!
//! Takes a files artifact (or a plain folder) and gives a dataset artifact: `data.parquet` with a stated Arrow schema and
//! `profile.json` with row counts, class counts per split, and column or channel statistics. Rows keep a fixed order, so
//! the same files give the same bytes.
//!
//! | stage | takes |
//! |---|---|
//! | [`store.idx`](idx::Idx) | IDX files as MNIST is published, plain or gzipped |
//! | [`store.image_folder`](image_folder::ImageFolder) | class folders of PNG and JPEG files |
//! | [`store.csv`](csv::Csv) | text tables, typed |
//! | [`store.parquet`](parquet::Parquet) | Parquet files that others wrote: tables, or images in a binary column |
//!
//! Nothing is believed that can be checked: lengths in headers are compared with what is there before memory is taken for
//! them, and every error names the file and the line, row or byte.

pub mod csv;
pub mod idx;
pub mod image_folder;
pub mod layout;
pub mod parquet;

mod content;
mod decode;
mod guard;
mod idx_file;
mod outcome;
mod pictures;
mod select;
#[cfg(test)]
mod testing;

use artifact::StageType;

/// The stages of this crate.
pub static STAGES: &[StageType] = &[
    StageType::of::<idx::Idx>(),
    StageType::of::<image_folder::ImageFolder>(),
    StageType::of::<csv::Csv>(),
    StageType::of::<parquet::Parquet>(),
];
