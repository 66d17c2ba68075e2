//! The fault programme at full length: what `tests/tests/faults` does in short.

use super::{Done, build, cargo, run};

/// Option, the variable that the tests read, and the full length.
const OPTIONS: [(&str, &str, &str); 4] = [
    ("--kills", "EPISTEME_FAULT_KILLS", "1000"),
    ("--crowds", "EPISTEME_FAULT_CROWDS", "20"),
    ("--disk", "EPISTEME_FAULT_DISK", "500"),
    ("--seed", "EPISTEME_FAULT_SEED", ""),
];

/// Builds the binaries and disturbs them, one programme after the other.
pub(super) fn faults(args: &[String]) -> Done {
    build(&["--workspace", "--bins"])?;
    let mut command = cargo();
    command.args(["test", "--release", "--package", "episteme-tests", "--test", "faults", "--", "--nocapture", "--test-threads", "1"]);
    for (_, variable, full) in OPTIONS.iter().filter(|(_, _, full)| !full.is_empty()) {
        command.env(variable, full);
    }
    for option in args.chunks(2) {
        let known = OPTIONS.iter().find(|(name, ..)| *name == option[0]);
        let (Some((_, variable, _)), Some(number)) = (known, option.get(1).filter(|number| number.parse::<u64>().is_ok())) else {
            eprintln!("cargo xtask faults [--kills N] [--crowds N] [--disk N] [--seed N]");
            return Err(2);
        };
        command.env(variable, number);
    }
    run(&mut command)
}
