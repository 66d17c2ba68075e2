//! The episteme binary: plans, caches and runs pipelines declared in TOML.
