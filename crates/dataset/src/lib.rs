//! Datasets on disk: Arrow schemas, Parquet reading and writing, statistics.
