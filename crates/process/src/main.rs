//! `episteme-process`: the process stages by themselves, from flags or a spec file.

use std::process::ExitCode;

fn main() -> ExitCode {
    artifact::cli::main("episteme-process", "Process (f): clean, split and encode a dataset; fit f on its train split", process::STAGES)
}
