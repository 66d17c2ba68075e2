//! The binary of the store stages alone.

use std::process::ExitCode;

fn main() -> ExitCode {
    artifact::cli::main("episteme-store", "Store: raw files into datasets in Parquet, with schema, counts and profile.", store::STAGES)
}
