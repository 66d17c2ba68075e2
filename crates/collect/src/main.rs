//! `episteme-collect`: the collecting stages by themselves.

use std::process::ExitCode;

fn main() -> ExitCode {
    artifact::cli::main(
        "episteme-collect",
        "Collects: downloads, folders and archives, generators; the world into checked raw files",
        collect::STAGES,
    )
}
