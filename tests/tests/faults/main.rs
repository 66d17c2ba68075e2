//! Faults, injected by chance: kill -9 at any instant, fifty processes at once on one store, a full and a failing disk.
//!
//! Whatever happens, no artifact is damaged or lost, and the next run ends with the bytes of one that nobody disturbed. Here a
//! short part of it; `cargo xtask faults` runs it at full length. What fails can be made to fail again by its seed:
//!
//! | variable | means |
//! |---|---|
//! | `EPISTEME_FAULT_KILLS` | so many kills |
//! | `EPISTEME_FAULT_CROWDS` | so many crowds of fifty processes |
//! | `EPISTEME_FAULT_DISK` | so many faults of the disk |
//! | `EPISTEME_FAULT_SEED` | another seed |
//!
//! A scratch folder in which something went wrong is kept, and named.

mod chance;
mod crowd;
mod disk;
mod kills;
mod pipeline;
mod processes;

use episteme_tests::Scratch;

use crate::pipeline::{Pipelines, STAGES};

/// A number from the environment.
fn setting(name: &str, usual: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => usual,
    }
}

/// What all chance comes from.
fn seed() -> u64 {
    setting("EPISTEME_FAULT_SEED", 20_261_124)
}

/// Ends the programme where something is not as it must be, and keeps the folder to look at.
#[track_caller]
fn must(result: Result<(), String>, scratch: Scratch, when: &str) {
    if let Err(wrong) = result {
        panic!("seed {}, {when}: {wrong}\nkept: {}", seed(), scratch.keep().display());
    }
}

#[test]
fn every_stage_type_is_among_those_that_are_disturbed() {
    let scratch = Pipelines::new().scratch();
    let read = |text: String| serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
    let told = read(scratch.episteme(&["stages", "--json"]).ok().stdout);
    let pipeline = std::fs::read_to_string(scratch.path().join("all.toml")).expect("it was written");
    let types: Vec<&str> = told["stages"].as_array().expect("a list").iter().filter_map(|stage| stage["uses"].as_str()).collect();
    let missing: Vec<&&str> = types.iter().filter(|uses| !pipeline.contains(&format!("uses = \"{uses}\""))).collect();
    assert_eq!((types.len(), missing), (STAGES, Vec::<&&str>::new()));
}
