//! A Parquet file that someone else wrote: opened, and read batch by batch, with whatever it may hold.

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use artifact::StageError;
use artifact::config::suggest;
use bytes::Bytes;
use dataset::MappedFile;

use crate::content::describe;
use crate::guard;
use crate::select::Chosen;

/// A file whose footer could be read.
pub(super) struct ParquetFile {
    pub(super) name: String,
    bytes: Bytes,
    metadata: ArrowReaderMetadata,
}

/// The batches of a file. A panic inside the reader becomes an error that names the file.
pub(super) struct Batches<'a> {
    file: &'a ParquetFile,
    reader: ParquetRecordBatchReader,
    /// Rows given so far.
    pub(super) rows: usize,
}

impl ParquetFile {
    /// Reads the footer.
    pub(super) fn open(file: &Chosen) -> Result<Self, StageError> {
        let bytes = MappedFile::open(file.path)?.bytes();
        check_magic(file.name, &bytes)?;
        let metadata = guard::caught(|| ArrowReaderMetadata::load(&bytes, ArrowReaderOptions::new()))
            .map_err(|panic| damaged(file.name).because(&Panicked(panic)))?
            .map_err(|error| unreadable(file.name, &error))?;
        Ok(Self { name: file.name.to_owned(), bytes, metadata })
    }

    /// The Arrow schema, as the file states it.
    pub(super) fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// The place of a column, or an error with a suggestion; `key` is the config's that names it.
    pub(super) fn index_of(&self, key: &str, column: &str) -> Result<usize, StageError> {
        self.schema().index_of(column).map_err(|_| {
            StageError::new(format!("`{key}` names the column `{column}`, and there is none"))
                .at(&self.name)
                .help(suggest(column, self.schema().fields().iter().map(|field| field.name().as_str())))
        })
    }

    /// Reads these columns (by their places), so many rows at a time.
    pub(super) fn batches(&self, columns: &[usize], batch_rows: usize) -> Result<Batches<'_>, StageError> {
        let reader = guard::caught(|| {
            let mask = ProjectionMask::roots(self.metadata.parquet_schema(), columns.iter().copied());
            ParquetRecordBatchReaderBuilder::new_with_metadata(self.bytes.clone(), self.metadata.clone())
                .with_projection(mask)
                .with_batch_size(batch_rows)
                .build()
        });
        match reader {
            Ok(Ok(reader)) => Ok(Batches { file: self, reader, rows: 0 }),
            Ok(Err(error)) => Err(unreadable(&self.name, &error)),
            Err(panic) => Err(damaged(&self.name).because(&Panicked(panic))),
        }
    }
}

impl Batches<'_> {
    /// The next batch, or none at the end.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, StageError> {
        match guard::caught(|| self.reader.next()) {
            Ok(None) => Ok(None),
            Ok(Some(Ok(batch))) => {
                self.rows += batch.num_rows();
                Ok(Some(batch))
            }
            Ok(Some(Err(error))) => Err(unreadable(&self.file.name, &error)),
            Err(panic) => Err(damaged(&self.file.name).because(&Panicked(panic))),
        }
    }
}

const HELP: &str = "write the file again, or get it again from where it came";

fn damaged(name: &str) -> StageError {
    StageError::new("this Parquet file is damaged, or written in a way that cannot be read").at(name).help(HELP)
}

fn unreadable(name: &str, error: &dyn std::error::Error) -> StageError {
    let text = error.to_string();
    match text.split_once("Disabled feature at compile time: ") {
        Some((_, codec)) => StageError::new(format!("this Parquet file is compressed with {codec}, which cannot be read here"))
            .at(name)
            .help("write it with zstd, snappy, lz4, gzip or without compression"),
        None => damaged(name).because(error),
    }
}

/// What a library's panic said.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Panicked(String);

/// The four bytes at both ends (the Parquet format's specification, "File format").
fn check_magic(name: &str, bytes: &[u8]) -> Result<(), StageError> {
    let error = |message: String| Err(StageError::new(message).at(name).help(HELP));
    if bytes.starts_with(b"PARE") || bytes.ends_with(b"PARE") {
        return Err(StageError::new("this Parquet file is encrypted").at(name).help("decrypt it where it was written"));
    }
    if !bytes.starts_with(b"PAR1") {
        return error(format!("this is no Parquet file; {}", describe(bytes)));
    }
    if bytes.len() < 12 || !bytes.ends_with(b"PAR1") {
        return error(format!("this Parquet file breaks off: its footer is missing at the end of {} bytes", bytes.len()));
    }
    Ok(())
}
