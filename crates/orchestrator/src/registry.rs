//! Every stage type that this binary can run.

use artifact::StageType;

/// All stage types, in the order of the way: collect, store, process, learn, apply.
pub fn stages() -> Vec<StageType> {
    [collect::STAGES, store::STAGES, process::STAGES, learn::STAGES, apply::STAGES].concat()
}
