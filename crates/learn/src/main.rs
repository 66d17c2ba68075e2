//! `episteme-learn`: the learning stages by themselves.

use std::process::ExitCode;

fn main() -> ExitCode {
    artifact::cli::main("episteme-learn", "Learns (g): a processed dataset to a model artifact K", learn::STAGES)
}
