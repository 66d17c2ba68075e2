//! `episteme`: plans, caches and runs pipelines that one TOML file declares.
//!
//! Only the orchestrator and the stages meet here, so that a change to a stage rebuilds the stage and this file.

use std::process::ExitCode;

/// A training step takes and frees the same buffers again and again: keep them, rather than ask the kernel anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    orchestrator::main(&[collect::STAGES, store::STAGES, process::STAGES, learn::STAGES, apply::STAGES])
}
