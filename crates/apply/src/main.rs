//! `episteme-apply`: the applying stages by themselves.

use std::process::ExitCode;

/// A training step takes and frees the same buffers again and again: keep them, rather than ask the kernel anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    artifact::cli::main("episteme-apply", "Applies: K and data into predictions and reports", apply::STAGES)
}
