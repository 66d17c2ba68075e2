//! Store: raw files into datasets in Parquet, with schema, counts and profile.
