//! The contract that the stages share, and nothing else.
//!
//! A **stage** ([`Stage`]) is a typed config and a `run`: it takes input artifacts and writes one output **artifact**, a
//! directory sealed by `artifact.json` ([`Manifest`]) with the BLAKE3 digest of every file and the lineage back to the
//! raw data. While it runs it tells what happens through one **event stream** ([`Event`]) that the terminal, the log
//! file and `--json` all read. Stages never meet in memory: they meet in artifacts on disk.
//!
//! | module | holds |
//! |---|---|
//! | [`stage`] | the trait, its erased form [`StageType`], the [`RunContext`] a stage runs in |
//! | [`config`] | TOML to typed config, every mistake at once with its span |
//! | [`manifest`] | what `artifact.json` says, sealing and checking a directory |
//! | [`digest`] | BLAKE3 digests: one hash for everything |
//! | [`durable`] | temporary place, sync, rename: the one way to write what must last |
//! | [`object_store`] | the content-addressed store and its cache records |
//! | [`outside`] | files outside the store: found and digested, by a [`stat_cache`] where they are many |
//! | [`event`] | the event stream |
//! | [`worker`] | a stage in its own process, driven by a [`StageSpec`] file |
//! | [`cli`] | the command line of the stage crates' binaries, made from the config types |

pub mod cli;
pub mod config;
pub mod digest;
pub mod durable;
pub mod error;
pub mod event;
pub mod manifest;
pub mod object_store;
pub mod outside;
mod parallel;
pub mod spec;
pub mod stage;
pub mod stat_cache;
pub mod worker;

pub use config::ConfigProblem;
pub use digest::Digest;
pub use error::{Doing, StageError};
pub use event::{Event, Level, Sink};
pub use manifest::{FileEntry, Kind, Manifest, Outcome};
pub use object_store::{CacheRecord, Hit, ObjectStore};
pub use parallel::collect_in_order;
pub use spec::{Settings, StageSpec};
pub use stage::{Input, InputRef, RunContext, Stage, StageName, StageType, Stages};
