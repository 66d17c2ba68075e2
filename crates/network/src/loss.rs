//! Softmax and cross-entropy in one operation.

use dfdx::tensor::{Cpu, CpuError, PutTape, Tape as _, Tensor, TensorFromVec};

use crate::{
    error::NetworkError,
    examples::Values,
    recycle::Floats,
    tape::{Flow, Tape, give},
};

/// How wrong logits are punished. `Default`: plain cross-entropy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossOptions {
    /// One weight a class, above zero; the loss of an example is multiplied by its class's weight, and a batch's loss is the
    /// weighted mean. For rare classes.
    pub class_weights: Option<Vec<f32>>,
    /// A share, from 0 to below 1, of each target that is spread evenly over all classes (Szegedy et al. 2016).
    pub label_smoothing: f32,
}

impl LossOptions {
    /// Checks the options against the number of classes.
    ///
    /// # Errors
    ///
    /// If a weight is missing, not finite or not above zero, or the smoothing is not a share.
    pub fn check(&self, classes: usize) -> Result<(), NetworkError> {
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let message = format!("label smoothing is a share from 0 to below 1, not {}", self.label_smoothing);
            return Err(NetworkError::Option(message));
        }
        let Some(weights) = &self.class_weights else { return Ok(()) };
        if weights.len() != classes {
            let message = format!("there are {} class weights for {classes} classes; give one for each", weights.len());
            return Err(NetworkError::Option(message));
        }
        match weights.iter().find(|weight| !(weight.is_finite() && **weight > 0.0)) {
            Some(weight) => Err(NetworkError::Option(format!("a class weight must be a number above zero, not {weight}"))),
            None => Ok(()),
        }
    }

    fn weight(&self, label: u32) -> f32 {
        self.class_weights.as_ref().map_or(1.0, |weights| weights[label as usize])
    }
}

/// The loss of a batch and how often the largest logit is the label's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean cross-entropy in nats (weighted by class where the options say so).
    pub loss: f32,
    /// Examples whose largest logit is that of their label.
    pub correct: usize,
}

/// Checks that each label has a logit.
pub(crate) fn check_labels(labels: &[u32], classes: usize) -> Result<(), NetworkError> {
    match labels.iter().position(|label| *label as usize >= classes) {
        Some(example) => Err(NetworkError::Label { example, label: labels[example], classes }),
        None => Ok(()),
    }
}

/// The place of the largest value; of equals the first.
pub(crate) fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

/// Replaces logits by probabilities: `exp(x - max) / Σ exp(x - max)`.
pub(crate) fn softmax(values: &mut [f32]) {
    log_softmax(values);
    values.iter_mut().for_each(|value| *value = value.exp());
}

/// `x - max - ln Σ exp(x - max)`; sums in f64.
fn log_softmax(values: &mut [f32]) {
    let largest = values[argmax(values)];
    let sum: f64 = values.iter().map(|value| f64::from(value - largest).exp()).sum();
    let log = sum.ln() as f32;
    values.iter_mut().for_each(|value| *value = *value - largest - log);
}

/// The loss of a batch; `gradient`, where given, has the logits' size and gets the gradient of the loss with respect to them.
pub(crate) fn cross_entropy(logits: &[f32], labels: &[u32], options: &LossOptions, mut gradient: Option<&mut [f32]>) -> StepReport {
    let classes = logits.len() / labels.len();
    let smoothing = options.label_smoothing;
    let total: f64 = labels.iter().map(|label| f64::from(options.weight(*label))).sum();
    let (mut loss, mut correct) = (0.0f64, 0);
    let mut row = vec![0.0; classes];
    for (example, (logits, label)) in logits.chunks_exact(classes).zip(labels).enumerate() {
        row.copy_from_slice(logits);
        correct += usize::from(argmax(logits) == *label as usize);
        log_softmax(&mut row);
        let target = |class: usize| smoothing / classes as f32 + if class == *label as usize { 1.0 - smoothing } else { 0.0 };
        let weight = f64::from(options.weight(*label)) / total;
        let one: f64 =
            row.iter().enumerate().map(|(class, log)| if target(class) > 0.0 { -f64::from(target(class) * log) } else { 0.0 }).sum();
        loss += weight * one;
        if let Some(gradient) = gradient.as_deref_mut() {
            for (class, (out, log)) in gradient[example * classes..][..classes].iter_mut().zip(&row).enumerate() {
                *out = weight as f32 * (log.exp() - target(class));
            }
        }
    }
    StepReport { loss: loss as f32, correct }
}

/// A loss with the tape that leads back to the weights.
pub(crate) type Loss = Tensor<(), f32, Cpu, Tape>;

/// Records the loss on the tape; its `backward` gives all gradients.
pub(crate) fn forward_op(
    logits: &Flow,
    labels: &[u32],
    options: &LossOptions,
    device: &Cpu,
    mut tape: Tape,
) -> Result<(Loss, StepReport), CpuError> {
    let Values::Floats(values) = &logits.values else { return Err(CpuError::WrongNumElements) };
    let mut gradient = Floats::any(values.len());
    let report = cross_entropy(values, labels, options, Some(&mut gradient));
    let loss = device.try_tensor_from_vec(vec![report.loss], ())?;
    let (upstream, node) = (loss.clone(), logits.node.clone());
    tape.add_backward_op(move |grads| {
        let factor = grads.get_or_alloc_mut(&upstream)?[0];
        let Some(node) = node else { return Ok(()) };
        if factor != 1.0 {
            gradient.iter_mut().for_each(|value| *value *= factor);
        }
        give(grads, &node, gradient)
    });
    Ok((loss.put_tape(tape), report))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Three examples of four classes.
    const LOGITS: [f32; 12] = [2.0, -1.0, 0.5, 0.0, 0.1, 0.2, 0.3, 0.4, -3.0, 8.0, 1.0, 0.0];
    const LABELS: [u32; 3] = [0, 3, 2];

    #[test]
    fn the_loss_agrees_with_dfdx() {
        use dfdx::{losses::cross_entropy_with_logits_loss, tensor::AsArray};
        let device = Cpu::default();
        let logits = device.tensor_from_vec(LOGITS.to_vec(), (3usize, dfdx::shapes::Const::<4>));
        let mut targets = vec![0.0; 12];
        LABELS.iter().enumerate().for_each(|(row, label)| targets[row * 4 + *label as usize] = 1.0);
        let targets = device.tensor_from_vec(targets, (3usize, dfdx::shapes::Const::<4>));
        let expected = cross_entropy_with_logits_loss(logits, targets).array();
        let report = cross_entropy(&LOGITS, &LABELS, &LossOptions::default(), None);
        assert!((report.loss - expected).abs() < 1e-6, "{} for {expected}", report.loss);
        assert_eq!(report.correct, 2);
    }

    #[test]
    fn the_gradient_agrees_with_central_differences_for_all_options() {
        let weights = Some(vec![1.0, 2.0, 0.5, 3.0]);
        for options in [
            LossOptions::default(),
            LossOptions { class_weights: weights.clone(), label_smoothing: 0.0 },
            LossOptions { class_weights: weights, label_smoothing: 0.2 },
        ] {
            let mut gradient = [0.0; 12];
            cross_entropy(&LOGITS, &LABELS, &options, Some(&mut gradient));
            for i in 0..12 {
                let at = |step: f32| {
                    let mut logits = LOGITS;
                    logits[i] += step;
                    f64::from(cross_entropy(&logits, &LABELS, &options, None).loss)
                };
                let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((f64::from(gradient[i]) - difference).abs() < 2e-4, "{options:?} logit {i}: {} for {difference}", gradient[i]);
            }
        }
    }

    #[test]
    fn huge_logits_stay_finite() {
        let report = cross_entropy(&[1e4, -1e4], &[1], &LossOptions::default(), None);
        assert_eq!(report.loss, 2e4);
        let mut row = [1e30, 0.0];
        softmax(&mut row);
        assert_eq!(row, [1.0, 0.0]);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let weights = |weights: &[f32]| LossOptions { class_weights: Some(weights.to_vec()), label_smoothing: 0.0 };
        assert!(weights(&[1.0]).check(2).unwrap_err().to_string().contains("1 class weights for 2 classes"));
        assert!(weights(&[1.0, 0.0]).check(2).unwrap_err().to_string().contains("above zero"));
        let smoothing = LossOptions { class_weights: None, label_smoothing: 1.0 };
        assert!(smoothing.check(2).unwrap_err().to_string().contains("from 0 to below 1"));
        assert!(check_labels(&[0, 2], 2).unwrap_err().to_string().contains("example 1 of the batch has label 2"));
    }
}
