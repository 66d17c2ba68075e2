//! Datasets on disk: one form that every stage reads and writes.
//!
//! Images lie in one binary column of raw pixels (`[height, width, channels]`, 8 bits, row by row), never in a list of
//! bytes, which Parquet stores as 32-bit integers. Tables keep their typed columns.
//!
//! | module | holds |
//! |---|---|
//! | [`shape`] | [`ImageShape`]: height, width, channels |
//! | [`split`] | [`Split`]: train, validation, test |
//! | [`writer`] | [`ImageWriter`]: an image dataset, row by row |
//! | [`images`] | [`Images`]: an image dataset over a memory map, pixels not copied |
//! | [`ahead`] | [`each_ahead`]: the next batch gathered beside the work on this one |
//! | [`mapped`] | [`MappedFile`]: a file as a memory map |
//! | [`table`] | tables as Arrow record batches, read and written |
//! | [`profile`] | [`Profile`]: counts and statistics, what the report draws |

pub mod ahead;
pub mod images;
pub mod mapped;
pub mod profile;
pub mod shape;
pub mod split;
pub mod table;
pub mod writer;

pub use ahead::each_ahead;
pub use images::Images;
pub use mapped::MappedFile;
pub use profile::{ColumnProfile, ImageProfile, Profile};
pub use shape::ImageShape;
pub use split::Split;
pub use writer::ImageWriter;

/// The Parquet file of every dataset artifact.
pub const DATA_FILE: &str = "data.parquet";
/// The profile beside it.
pub const PROFILE_FILE: &str = "profile.json";
/// Rows in a row group, and in a batch: what polars and the memory-mapped reader like best.
pub const ROW_GROUP_ROWS: usize = 16_384;
