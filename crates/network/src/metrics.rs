//! How good predictions are: the confusion matrix and what the field derives from it.
//!
//! Precision, recall and F1 are those of van Rijsbergen (Information Retrieval, 1979, chapter 7), a class at a time; a ratio
//! whose denominator is zero counts as 0. Macro averages weigh classes alike, weighted averages by their support.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Probabilities below this count as this in the log loss, so that one sure mistake does not make it infinite.
const SMALLEST_PROBABILITY: f64 = 1e-15;

/// What became of the examples of each class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The classes, in the order of the model's outputs.
    pub classes: Vec<String>,
    /// Examples judged.
    pub examples: u64,
    /// Share of examples whose predicted class is the true one.
    pub accuracy: f64,
    /// Mean over classes of precision.
    pub macro_precision: f64,
    /// Mean over classes of recall; also known as balanced accuracy where every class has examples.
    pub macro_recall: f64,
    /// Mean over classes of F1.
    pub macro_f1: f64,
    /// Mean over classes of F1, weighted by support.
    pub weighted_f1: f64,
    /// Mean over examples of minus the logarithm of the true class's probability, in nats.
    pub log_loss: f64,
    /// For two classes, of the second: the chance that it is ranked above the first (Hanley and McNeil 1982).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roc_auc: Option<f64>,
    /// For two classes, of the second: the mean precision over its recall steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_precision: Option<f64>,
    /// Each class's own.
    pub per_class: Vec<ClassMetrics>,
    /// Examples by true class (row) and predicted class (column).
    pub confusion: Vec<Vec<u64>>,
}

/// One class's measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassMetrics {
    /// Of those predicted to be of this class, the share that is.
    pub precision: f64,
    /// Of those of this class, the share that was found.
    pub recall: f64,
    /// Harmonic mean of precision and recall.
    pub f1: f64,
    /// Examples of this class.
    pub support: u64,
}

impl Metrics {
    /// Judges predictions: `labels` are places in `classes`, `probabilities` are `[examples, classes]`. The predicted class is the
    /// most probable one, the first of equals.
    pub fn of(classes: &[String], labels: &[u32], probabilities: &[f32]) -> Self {
        let count = classes.len();
        let mut confusion = vec![vec![0u64; count]; count];
        let mut log_loss = 0.0;
        for (label, probabilities) in labels.iter().zip(probabilities.chunks_exact(count)) {
            confusion[*label as usize][argmax(probabilities)] += 1;
            log_loss -= f64::from(probabilities[*label as usize]).max(SMALLEST_PROBABILITY).ln();
        }
        let examples = labels.len() as u64;
        let per_class: Vec<ClassMetrics> = (0..count).map(|class| class_metrics(&confusion, class)).collect();
        let mean = |of: fn(&ClassMetrics) -> f64| ratio(per_class.iter().map(of).sum(), count as f64);
        let right: u64 = (0..count).map(|class| confusion[class][class]).sum();
        let second: Vec<(f32, bool)> = match count {
            2 => labels.iter().zip(probabilities.chunks_exact(2)).map(|(label, probabilities)| (probabilities[1], *label == 1)).collect(),
            _ => Vec::new(),
        };
        Self {
            classes: classes.to_vec(),
            examples,
            accuracy: ratio(right as f64, examples as f64),
            macro_precision: mean(|class| class.precision),
            macro_recall: mean(|class| class.recall),
            macro_f1: mean(|class| class.f1),
            weighted_f1: ratio(per_class.iter().map(|class| class.f1 * class.support as f64).sum(), examples as f64),
            log_loss: ratio(log_loss, examples as f64),
            roc_auc: ranked(&second).and_then(|groups| roc_auc(&groups)),
            average_precision: ranked(&second).and_then(|groups| average_precision(&groups)),
            per_class,
            confusion,
        }
    }

    /// Every measure under its dotted name: `test.accuracy`, `test.cat.recall`, ….
    pub fn named(&self, split: &str) -> BTreeMap<String, f64> {
        let mut named = BTreeMap::new();
        let mut put = |name: String, value: f64| {
            named.insert(format!("{split}.{name}"), value);
        };
        put("accuracy".into(), self.accuracy);
        put("macro_precision".into(), self.macro_precision);
        put("macro_recall".into(), self.macro_recall);
        put("macro_f1".into(), self.macro_f1);
        put("weighted_f1".into(), self.weighted_f1);
        put("log_loss".into(), self.log_loss);
        self.roc_auc.into_iter().for_each(|value| put("roc_auc".into(), value));
        self.average_precision.into_iter().for_each(|value| put("average_precision".into(), value));
        for (name, class) in self.classes.iter().zip(&self.per_class) {
            put(format!("{name}.precision"), class.precision);
            put(format!("{name}.recall"), class.recall);
            put(format!("{name}.f1"), class.f1);
        }
        named
    }
}

/// The place of the largest value, the first of equals.
pub fn argmax(values: &[f32]) -> usize {
    values.iter().enumerate().fold(0, |best, (place, value)| if *value > values[best] { place } else { best })
}

fn class_metrics(confusion: &[Vec<u64>], class: usize) -> ClassMetrics {
    let found = confusion[class][class] as f64;
    let predicted: u64 = confusion.iter().map(|row| row[class]).sum();
    let support: u64 = confusion[class].iter().sum();
    ClassMetrics {
        precision: ratio(found, predicted as f64),
        recall: ratio(found, support as f64),
        f1: ratio(2.0 * found, (predicted + support) as f64),
        support,
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Counts of (second class, first class) among examples of equal score, highest score first; none unless both are there.
fn ranked(scores: &[(f32, bool)]) -> Option<Vec<(f64, f64)>> {
    let mut scores = scores.to_vec();
    scores.sort_by(|a, b| b.0.total_cmp(&a.0));
    let positives = scores.iter().filter(|(_, positive)| *positive).count();
    if positives == 0 || positives == scores.len() {
        return None;
    }
    let groups = scores.chunk_by(|a, b| a.0 == b.0);
    Some(
        groups
            .map(|group| {
                group.iter().fold((0.0, 0.0), |(yes, no), (_, positive)| if *positive { (yes + 1.0, no) } else { (yes, no + 1.0) })
            })
            .collect(),
    )
}

/// Area under the receiver operating characteristic, by trapezoids: ties count half.
fn roc_auc(groups: &[(f64, f64)]) -> Option<f64> {
    let (positives, negatives) = totals(groups);
    let mut found = 0.0;
    let mut area = 0.0;
    for (yes, no) in groups {
        area += no * (found + yes / 2.0);
        found += yes;
    }
    Some(area / (positives * negatives))
}

/// Σ (Rₙ − Rₙ₋₁) Pₙ over the thresholds, as scikit-learn defines it: no interpolation.
fn average_precision(groups: &[(f64, f64)]) -> Option<f64> {
    let (positives, _) = totals(groups);
    let (mut found, mut seen, mut sum) = (0.0, 0.0, 0.0);
    for (yes, no) in groups {
        found += yes;
        seen += yes + no;
        sum += yes / positives * found / seen;
    }
    Some(sum)
}

fn totals(groups: &[(f64, f64)]) -> (f64, f64) {
    groups.iter().fold((0.0, 0.0), |(yes, no), group| (yes + group.0, no + group.1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        classes: Vec<String>,
        labels: Vec<u32>,
        probabilities: Vec<f32>,
        expected: BTreeMap<String, f64>,
    }

    #[test]
    fn every_measure_agrees_with_scikit_learn() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../tests/fixtures/metrics.json")).unwrap();
        for case in cases {
            let named = Metrics::of(&case.classes, &case.labels, &case.probabilities).named("t");
            for (name, expected) in &case.expected {
                let ours = named[&format!("t.{name}")];
                assert!((ours - expected).abs() < 1e-12, "{name}: {ours} and {expected}");
            }
            assert_eq!(named.len(), case.expected.len());
        }
    }

    #[test]
    fn no_examples_give_zeros_and_no_division_by_zero() {
        let metrics = Metrics::of(&["a".into(), "b".into()], &[], &[]);
        assert_eq!((metrics.examples, metrics.accuracy, metrics.macro_f1, metrics.roc_auc), (0, 0.0, 0.0, None));
    }
}
