//! `episteme-apply`: the applying stages by themselves.

use std::process::ExitCode;

fn main() -> ExitCode {
    artifact::cli::main("episteme-apply", "Applies: K and data into predictions and reports", apply::STAGES)
}
