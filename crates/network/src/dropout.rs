//! Dropout whose mask is a function of seed, layer, step and unit: the same at any thread count and after a resume.

use std::sync::Arc;

use dfdx::tensor::{Cpu, CpuError, Tape as _};
use rayon::prelude::*;

use crate::{
    partition::one_by_one,
    recycle::Floats,
    tape::{Flow, Tape, give, take},
};

/// Values that one thread masks.
const RANGE: usize = 16_384;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Dropout {
    pub(crate) rate: f32,
    /// The layer's place in the network: two dropout layers draw different masks.
    pub(crate) layer: usize,
    pub(crate) channels: usize,
}

/// A mixing function whose outputs for 0, 1, 2, … pass the usual tests of randomness (SplitMix64, Steele et al. 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

impl Dropout {
    /// What a step's mask is drawn from.
    pub(crate) fn key(&self, seed: u64, step: u64) -> u64 {
        mix(mix(mix(seed.wrapping_add(GOLDEN)) ^ step.wrapping_mul(GOLDEN)) ^ (self.layer as u64 + 1))
    }

    /// Values whose draw is below the first are dropped, the others scaled by the second.
    pub(crate) fn threshold_and_scale(&self) -> (u64, f32) {
        ((f64::from(self.rate) * 2f64.powi(64)) as u64, 1.0 / (1.0 - self.rate))
    }

    /// Zeroes a share of the values and scales the others up. Value `unit` of example `n` is number `n * len + unit`.
    pub(crate) fn mask(&self, key: u64, values: &mut [f32]) {
        let (threshold, scale) = self.threshold_and_scale();
        one_by_one(values.par_chunks_mut(RANGE)).enumerate().for_each(|(chunk, values)| {
            let first = (chunk * RANGE) as u64;
            for (index, value) in values.iter_mut().enumerate() {
                let draw = mix(key.wrapping_add((first + index as u64).wrapping_mul(GOLDEN)));
                *value = if draw < threshold { 0.0 } else { *value * scale };
            }
        });
    }

    /// Masks a batch and records the backward pass, which draws the same mask again in place of keeping it.
    pub(crate) fn forward_op(&self, seed: u64, step: u64, input: &Flow, device: &Cpu, tape: &mut Tape) -> Result<Flow, CpuError> {
        let (dropout, key) = (*self, self.key(seed, step));
        let mut values = Floats::clone(&input.values.to_floats(self.channels));
        self.mask(key, &mut values);
        let len = values.len();
        let (flow, node) = Flow::new(Arc::new(values), device)?;
        let Some(input_node) = input.node.clone() else { return Ok(flow) };
        tape.add_backward_op(move |grads| {
            let mut gradient = take(grads, &node, len)?;
            dropout.mask(key, &mut gradient);
            give(grads, &input_node, gradient)
        });
        Ok(flow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_asked_share_is_dropped_and_the_mean_is_kept() {
        let dropout = Dropout { rate: 0.3, layer: 2, channels: 1 };
        let mut values = vec![1.0; 100_000];
        dropout.mask(dropout.key(7, 1), &mut values);
        let dropped = values.iter().filter(|value| **value == 0.0).count();
        assert!((29_500..30_500).contains(&dropped), "{dropped}");
        let mean = values.iter().sum::<f32>() / 100_000.0;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
    }

    #[test]
    fn another_step_layer_or_seed_draws_another_mask() {
        let dropout = Dropout { rate: 0.5, layer: 2, channels: 1 };
        let drawn = |dropout: Dropout, seed, step| {
            let mut values = vec![1.0; 64];
            dropout.mask(dropout.key(seed, step), &mut values);
            values
        };
        let first = drawn(dropout, 7, 1);
        assert_eq!(first, drawn(dropout, 7, 1));
        assert_ne!(first, drawn(dropout, 7, 2));
        assert_ne!(first, drawn(dropout, 8, 1));
        assert_ne!(first, drawn(Dropout { layer: 3, ..dropout }, 7, 1));
    }
}
