//! `episteme-learn`: the learning stages by themselves.

use std::process::ExitCode;

/// A training step takes and frees the same buffers again and again: keep them, rather than ask the kernel anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    artifact::cli::main("episteme-learn", "Learns (g): a processed dataset to a model artifact K", learn::STAGES)
}
