//! The end of a run: what it made is put beyond a power cut, and summed up.

use std::collections::BTreeMap;

use artifact::event::{StageResult, Status};
use artifact::{Event, Level};

use super::Run;
use super::states::State;

impl Run<'_> {
    /// At the end, what short stages made. False when a power cut may take it: the run is then not done.
    pub(super) fn settle_all(&mut self) -> bool {
        let settled = self.store.settle(&std::mem::take(&mut self.unsettled));
        if let Err(error) = &settled {
            let message = format!("what was made may not survive a power cut: {error}; run again when the disk is well");
            self.sink.emit(Event::Log { stage: self.plan.name.clone(), level: Level::Warning, message });
        }
        settled.is_ok()
    }

    /// Each stage's line in the sum.
    pub(super) fn results(&self) -> Vec<StageResult> {
        let stages = self.plan.stages.iter().zip(self.states.iter()).zip(&self.artifacts).zip(&self.facts);
        stages
            .zip(&self.options.selected.wanted)
            .filter(|(_, wanted)| **wanted)
            .map(|((((stage, state), artifact), (key, usage)), _)| {
                let (status, seconds) =
                    if let State::Done { status, seconds, .. } = state { (*status, *seconds) } else { (Status::Skipped, 0.0) };
                StageResult { name: stage.name.clone(), status, seconds, artifact: *artifact, key: *key, usage: *usage }
            })
            .collect()
    }

    /// What all stages measured and made, by name; a later stage's word stands over an earlier one's. Those of a variant have
    /// its values in their names.
    pub(super) fn metrics_and_outputs(&self) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
        let (mut metrics, mut outputs) = (BTreeMap::new(), BTreeMap::new());
        for index in self.wanted() {
            let State::Done { record: Some(record), .. } = &self.states[index] else { continue };
            let ending = self.plan.stages[index].name.split_once('@').map(|(_, values)| format!("@{values}")).unwrap_or_default();
            let named = |name: &String| format!("{name}{ending}");
            let object = self.store.object(&record.artifact);
            metrics.extend(record.metrics.iter().map(|(name, value)| (named(name), *value)));
            outputs.extend(record.outputs.iter().map(|(name, path)| (named(name), object.join(path).display().to_string())));
        }
        (metrics, outputs)
    }
}
