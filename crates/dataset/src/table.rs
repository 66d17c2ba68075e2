//! Tables as Arrow record batches.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use artifact::{Doing, StageError};
use bytes::Bytes;
use memmap2::Mmap;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::ROW_GROUP_ROWS;

/// A file's bytes over a memory map; an empty file gives no bytes.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub fn map_file(path: &Path) -> Result<Bytes, StageError> {
    let doing = || format!("opening {}", path.display());
    let file = File::open(path).doing(doing)?;
    if file.metadata().doing(doing)?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: artifacts are read-only and never written again once sealed; for other files a change while they are
    // mapped can change what is read or end this process (SIGBUS), which its orchestrator sees as this stage's failure.
    let map = unsafe { Mmap::map(&file) }.doing(doing)?;
    Ok(Bytes::from_owner(map))
}

/// Reads a Parquet file whole.
///
/// # Errors
/// When the file cannot be read or is no Parquet.
pub fn read_table(path: &Path) -> Result<(SchemaRef, Vec<RecordBatch>), StageError> {
    let doing = || format!("reading the Parquet file {}", path.display());
    let builder = ParquetRecordBatchReaderBuilder::try_new(map_file(path)?).doing(doing)?;
    let schema = Arc::clone(builder.schema());
    let reader = builder.with_batch_size(ROW_GROUP_ROWS).build().doing(doing)?;
    Ok((schema, reader.collect::<Result<Vec<_>, _>>().doing(doing)?))
}

/// Writes batches as one Parquet file (zstd level 1, dictionaries where they pay).
///
/// # Errors
/// When a batch has another schema, or the disk is full.
pub fn write_table(path: &Path, schema: &SchemaRef, batches: &[RecordBatch]) -> Result<u64, StageError> {
    let doing = || format!("writing {}", path.display());
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS * 8))
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).doing(doing)?))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path).doing(doing)?, Arc::clone(schema), Some(properties)).doing(doing)?;
    for batch in batches {
        writer.write(batch).doing(doing)?;
    }
    writer.close().doing(doing)?;
    Ok(batches.iter().map(|batch| batch.num_rows() as u64).sum())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow::array::{ArrayRef, Float64Array, StringArray};

    #[test]
    fn a_table_is_read_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.parquet");
        let batch = RecordBatch::try_from_iter([
            ("x", Arc::new(Float64Array::from(vec![Some(1.5), None])) as ArrayRef),
            ("name", Arc::new(StringArray::from(vec!["a", "ü"])) as ArrayRef),
        ])
        .unwrap();
        assert_eq!(write_table(&path, &batch.schema(), std::slice::from_ref(&batch)).unwrap(), 2);
        let (schema, read) = read_table(&path).unwrap();
        assert_eq!((schema, read), (batch.schema(), vec![batch]));
    }

    #[test]
    fn an_empty_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("empty.parquet");
        std::fs::write(&path, b"").unwrap();
        assert!(read_table(&path).unwrap_err().to_string().contains("empty.parquet"));
    }
}
