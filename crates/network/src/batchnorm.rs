//! Batch normalisation (Ioffe and Szegedy 2015): each channel to zero mean and unit variance over the batch, then a learned
//! scale and shift. At inference the running mean and variance stand in, so a result does not depend on its batch.

use std::{ops::Range, sync::Arc};

use dfdx::tensor::{Cpu, CpuError, Tape as _};
use rayon::prelude::*;

use crate::{
    layer::Activation,
    simd::for_each_level,
    tape::{Flow, LayerWeights, Tape, give, take},
};

/// Values that one thread takes, about; always whole pixels.
const RANGE: usize = 16_384;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BatchNorm {
    pub(crate) channels: usize,
    /// Added to the variance before its root.
    pub(crate) epsilon: f32,
    /// How much of the running statistics a step replaces.
    pub(crate) momentum: f32,
    pub(crate) activation: Activation,
}

/// Running mean and variance of each channel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Running {
    pub(crate) mean: Vec<f32>,
    pub(crate) variance: Vec<f32>,
}

impl Running {
    pub(crate) fn new(channels: usize) -> Self {
        Running { mean: vec![0.0; channels], variance: vec![1.0; channels] }
    }

    /// Moves towards the statistics of a batch.
    pub(crate) fn update(&mut self, batch: &Running, momentum: f32) {
        let towards = |running: &mut [f32], batch: &[f32]| {
            running.iter_mut().zip(batch).for_each(|(running, batch)| *running = (1.0 - momentum) * *running + momentum * batch);
        };
        towards(&mut self.mean, &batch.mean);
        towards(&mut self.variance, &batch.variance);
    }
}

impl BatchNorm {
    fn range(&self) -> usize {
        (RANGE / self.channels).max(1) * self.channels
    }

    /// Normalises with the running statistics, in place.
    pub(crate) fn infer(&self, scale: &[f32], shift: &[f32], running: &Running, values: &mut [f32]) {
        let factor: Vec<f32> =
            running.variance.iter().zip(scale).map(|(variance, scale)| scale / (variance + self.epsilon).sqrt()).collect();
        let offset: Vec<f32> = running.mean.iter().zip(&factor).zip(shift).map(|((mean, factor), shift)| shift - mean * factor).collect();
        affine(values, &factor, &offset);
        self.activation.apply(values);
    }

    /// Two sums a channel over all pixels: `add` adds those of a range of values. In a fixed order, in f64.
    fn sums(&self, len: usize, add: impl Fn(Range<usize>, &mut [f64], &mut [f64]) + Sync) -> (Vec<f64>, Vec<f64>) {
        let parts: Vec<(Vec<f64>, Vec<f64>)> = (0..len.div_ceil(self.range()))
            .into_par_iter()
            .map(|part| {
                let (mut first, mut second) = (vec![0.0; self.channels], vec![0.0; self.channels]);
                add(part * self.range()..((part + 1) * self.range()).min(len), &mut first, &mut second);
                (first, second)
            })
            .collect();
        let (mut first, mut second) = (vec![0.0; self.channels], vec![0.0; self.channels]);
        for part in &parts {
            first.iter_mut().zip(&part.0).for_each(|(sum, part)| *sum += part);
            second.iter_mut().zip(&part.1).for_each(|(sum, part)| *sum += part);
        }
        (first, second)
    }

    /// Normalises a batch with its own statistics and records the backward pass. The second result are the batch's mean
    /// and unbiased variance, for the running statistics.
    pub(crate) fn forward_op(
        &self,
        layer: &LayerWeights,
        input: &Flow,
        device: &Cpu,
        tape: &mut Tape,
    ) -> Result<(Flow, Running), CpuError> {
        let values = input.values.to_floats(self.channels);
        let count = (values.len() / self.channels) as f64;
        let (sum, squares) = self.sums(values.len(), |range, sum, squares| add_moments(&values[range], sum, squares));
        let mean: Vec<f32> = sum.iter().map(|sum| (sum / count) as f32).collect();
        let variance: Vec<f64> =
            sum.iter().zip(&squares).map(|(sum, squares)| (squares / count - (sum / count).powi(2)).max(0.0)).collect();
        let inverse: Vec<f32> = variance.iter().map(|variance| 1.0 / (*variance as f32 + self.epsilon).sqrt()).collect();
        let unbiased = variance.iter().map(|variance| (variance * count / (count - 1.0).max(1.0)) as f32).collect();
        let batch = Running { mean: mean.clone(), variance: unbiased };

        let factor: Vec<f32> = inverse.iter().zip(layer.weights.iter()).map(|(inverse, scale)| inverse * scale).collect();
        let offset: Vec<f32> =
            mean.iter().zip(&factor).zip(layer.bias.iter()).map(|((mean, factor), shift)| shift - mean * factor).collect();
        let mut output = values.to_vec();
        output.par_chunks_mut(self.range()).for_each(|output| affine(output, &factor, &offset));
        let before = if self.activation.needs_input() { output.clone() } else { Vec::new() };
        output.par_chunks_mut(self.range()).for_each(|output| self.activation.apply(output));

        let output = Arc::new(output);
        let (flow, node) = Flow::new(output.clone(), device)?;
        let (norm, layer, input_node) = (self.clone(), layer.clone(), input.node.clone());
        tape.add_backward_op(move |grads| {
            let mut gradient = take(grads, &node, values.len())?;
            let kept: &[f32] = if norm.activation.needs_input() { &before } else { &output };
            let parts = gradient.par_chunks_mut(norm.range()).zip(kept.par_chunks(norm.range()));
            parts.for_each(|(gradient, kept)| norm.activation.backward(kept, gradient));
            let (shift_sum, scale_sum) = norm.sums(values.len(), |range, shift, scale| {
                add_gradients(&values[range.clone()], &gradient[range], &mean, &inverse, shift, scale);
            });
            write(grads.get_or_alloc_mut(&layer.weights_tensor)?, &scale_sum);
            write(grads.get_or_alloc_mut(&layer.bias_tensor)?, &shift_sum);
            let Some(input_node) = input_node else { return Ok(()) };
            // The paper's chain rule, gathered: dx = scale / σ (g - mean(g) - x̂ mean(g x̂)).
            let mean_g: Vec<f32> = shift_sum.iter().map(|sum| (sum / count) as f32).collect();
            let mean_gx: Vec<f32> = scale_sum.iter().map(|sum| (sum / count) as f32).collect();
            gradient.par_chunks_mut(norm.range()).zip(values.par_chunks(norm.range())).for_each(|(gradient, values)| {
                input_gradient(gradient, values, &mean, &inverse, &factor, &mean_g, &mean_gx);
            });
            give(grads, &input_node, gradient)
        });
        Ok((flow, batch))
    }
}

fn write(out: &mut [f32], sums: &[f64]) {
    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = *sum as f32);
}

for_each_level! {
    /// Adds values and their squares by channel.
    fn add_moments(values: &[f32], sum: &mut [f64], squares: &mut [f64]) {
        let _ = FMA;
        let channels = sum.len();
        let squares = &mut squares[..channels];
        for pixel in values.chunks_exact(channels) {
            for c in 0..channels {
                let value = f64::from(pixel[c]);
                sum[c] += value;
                squares[c] += value * value;
            }
        }
    }
}

for_each_level! {
    /// Adds gradients, and their products with the normalised values, by channel.
    fn add_gradients(values: &[f32], gradient: &[f32], mean: &[f32], inverse: &[f32], shift: &mut [f64], scale: &mut [f64]) {
        let _ = FMA;
        let channels = mean.len();
        let (inverse, shift, scale) = (&inverse[..channels], &mut shift[..channels], &mut scale[..channels]);
        for (pixel, gradient) in values.chunks_exact(channels).zip(gradient.chunks_exact(channels)) {
            for c in 0..channels {
                let g = f64::from(gradient[c]);
                shift[c] += g;
                scale[c] += g * f64::from((pixel[c] - mean[c]) * inverse[c]);
            }
        }
    }
}

for_each_level! {
    fn affine(values: &mut [f32], factor: &[f32], offset: &[f32]) {
        let channels = factor.len();
        let offset = &offset[..channels];
        for pixel in values.chunks_exact_mut(channels) {
            for c in 0..channels {
                pixel[c] = crate::simd::multiply_add::<FMA>(pixel[c], factor[c], offset[c]);
            }
        }
    }
}

for_each_level! {
    fn input_gradient(gradient: &mut [f32], values: &[f32], mean: &[f32], inverse: &[f32], factor: &[f32], mean_g: &[f32], mean_gx: &[f32]) {
        let _ = FMA;
        let channels = mean.len();
        let (inverse, factor, mean_g, mean_gx) = (&inverse[..channels], &factor[..channels], &mean_g[..channels], &mean_gx[..channels]);
        for (gradient, values) in gradient.chunks_exact_mut(channels).zip(values.chunks_exact(channels)) {
            for c in 0..channels {
                let normal = (values[c] - mean[c]) * inverse[c];
                gradient[c] = factor[c] * (gradient[c] - mean_g[c] - normal * mean_gx[c]);
            }
        }
    }
}
