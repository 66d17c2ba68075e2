//! Nothing: this crate's dependency list is its purpose, see its `Cargo.toml`.
