//! Tables as Arrow record batches.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use artifact::{Doing, StageError};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::ROW_GROUP_ROWS;
use crate::mapped::MappedFile;

/// Reads a Parquet file whole.
///
/// # Errors
/// When the file cannot be read or is no Parquet.
pub fn read_table(path: &Path) -> Result<(SchemaRef, Vec<RecordBatch>), StageError> {
    let doing = || format!("reading the Parquet file {}", path.display());
    let builder = ParquetRecordBatchReaderBuilder::try_new(MappedFile::open(path)?.bytes()).doing(doing)?;
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
