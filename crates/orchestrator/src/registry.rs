//! Every stage type that this binary can run.

use artifact::StageType;

use crate::command::Command;

/// Of no step of the way in particular: any program.
const COMMAND: &[StageType] = &[StageType::of::<Command>()];

/// All stage types, in the order of the way: collect, store, process, learn, apply; then any program.
pub fn stages() -> Vec<StageType> {
    [collect::STAGES, store::STAGES, process::STAGES, learn::STAGES, apply::STAGES, COMMAND].concat()
}
