//! Temperature scaling (Guo et al. 2017, <https://arxiv.org/abs/1706.04599>): one number that logits are divided by, so that a network is as sure as it is
//! right. It does not change which class is the most probable.

use crate::{error::NetworkError, layer::LayerSpec, loss::argmax, network::Network};

/// Halvings of the interval: more than an `f32` can tell.
const HALVINGS: u32 = 40;

/// The temperature that the log loss of labelled examples is least with, from 1/20 to 20; `logits` are `[examples, classes]`.
///
/// They count as one example more, whose label is any class: so a few examples, all of them right, do not make a network sure of everything.
pub fn temperature(logits: &[f32], labels: &[u32]) -> f32 {
    // The loss is convex in the inverse: its derivative rises, and is zero at the least loss.
    let (mut low, mut high) = (-(20f64.ln()), 20f64.ln());
    for _ in 0..HALVINGS {
        let middle = (low + high) / 2.0;
        if slope(logits, labels, middle.exp()) > 0.0 { high = middle } else { low = middle }
    }
    (-(low + high) / 2.0).exp() as f32
}

/// The derivative of the summed loss with respect to the inverse temperature: of each example, the mean of the logits as the network has it, less the
/// label's own.
fn slope(logits: &[f32], labels: &[u32], inverse: f64) -> f64 {
    let classes = logits.len() / labels.len().max(1);
    let any = 1.0 / labels.len() as f64;
    let of_one = |(row, label): (&[f32], &u32)| {
        let largest = f64::from(row[argmax(row)]);
        let weight = |logit: &f32| ((f64::from(*logit) - largest) * inverse).exp();
        let mean = row.iter().map(|logit| f64::from(*logit) * weight(logit)).sum::<f64>() / row.iter().map(weight).sum::<f64>();
        let even = row.iter().map(|logit| f64::from(*logit)).sum::<f64>() / classes as f64;
        mean - f64::from(row[*label as usize]) + any * (mean - even)
    };
    logits.chunks_exact(classes.max(1)).zip(labels).map(of_one).sum()
}

impl Network {
    /// Divides all logits by `temperature` from now on: by way of the last layer, whose weights and bias become so much smaller. So whatever reads
    /// the weights has it.
    ///
    /// # Errors
    ///
    /// If the last layer is not `dense`; nothing has changed then.
    pub fn apply_temperature(&mut self, temperature: f32) -> Result<(), NetworkError> {
        if !matches!(self.architecture().layers.last(), Some(LayerSpec::Dense { .. })) {
            return Err(NetworkError::Option("a temperature goes into the weights of a last layer `dense CLASSES`".into()));
        }
        self.steps.take();
        for parameter in self.parameters.iter_mut().rev().take(2) {
            let values: Vec<f32> = parameter.values.iter().map(|value| value / temperature).collect();
            parameter.set(&values);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        Architecture, Input, Shape,
        loss::{LossOptions, cross_entropy},
    };

    /// Logits whose softmax is right as often as it says, times `factor`.
    fn drawn(factor: f32, count: usize) -> (Vec<f32>, Vec<u32>) {
        let mut draw = crate::init::uniform(7, 1);
        let (mut logits, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let row: Vec<f32> = (0..4).map(|_| 3.0 * draw()).collect();
            let weights: Vec<f32> = row.iter().map(|logit| logit.exp()).collect();
            let mut left = (draw() + 1.0) / 2.0 * weights.iter().sum::<f32>();
            let label = weights.iter().position(|weight| {
                left -= weight;
                left <= 0.0
            });
            labels.push(label.unwrap_or(3) as u32);
            logits.extend(row.iter().map(|logit| factor * logit));
        }
        (logits, labels)
    }

    #[test]
    fn logits_that_are_a_multiple_of_the_right_ones_are_divided_by_it() {
        for factor in [0.3, 1.0, 5.0] {
            let (logits, labels) = drawn(factor, 20_000);
            let found = temperature(&logits, &labels);
            assert!((found / factor - 1.0).abs() < 0.05, "{found} for {factor}");
        }
    }

    #[test]
    fn no_other_temperature_has_a_smaller_loss() {
        let (logits, labels) = drawn(2.0, 5_000);
        let best = temperature(&logits, &labels);
        let loss = |temperature: f32| {
            let cooled: Vec<f32> = logits.iter().map(|logit| logit / temperature).collect();
            cross_entropy(&cooled, &labels, &LossOptions::default(), None).loss
        };
        assert!(loss(best) < loss(1.0) && loss(best) <= loss(0.95 * best) && loss(best) <= loss(1.05 * best));
    }

    #[test]
    fn a_few_examples_that_are_all_right_do_not_make_it_sure_of_everything() {
        let found = temperature(&[2.0, 0.0, 0.0, 2.0, 2.0, 0.0], &[0, 1, 0]);
        assert!(found > 0.3, "{found}");
    }

    #[test]
    fn a_cooled_network_divides_its_logits_and_keeps_its_choices() {
        let architecture =
            Architecture { input: Shape::Features(3), layers: ["dense 8 relu", "dense 3"].map(|text| text.parse().unwrap()).to_vec() };
        let mut network = Network::new(&architecture, 7).unwrap();
        let input = [0.3, -0.8, 1.2, -1.0, 0.1, 0.5];
        let before = network.logits(Input::Floats(&input)).unwrap();
        network.apply_temperature(0.4).unwrap();
        let after = network.logits(Input::Floats(&input)).unwrap();
        assert!(before.iter().zip(&after).all(|(before, after)| (before / 0.4 - after).abs() < 1e-5), "{after:?} for {before:?}");
        let layers = ["conv 3 1x1", "globalpool"].map(|text| text.parse().unwrap()).to_vec();
        let pooled = Architecture { input: Shape::Image { height: 2, width: 2, channels: 1 }, layers };
        assert!(Network::new(&pooled, 7).unwrap().apply_temperature(0.4).is_err(), "there is no last dense layer");
    }
}
