//! Batch normalisation (Ioffe and Szegedy 2015): each channel to zero mean and unit variance over the batch, then a learned
//! scale and shift. At inference the running mean and variance stand in, so a result does not depend on its batch.

use std::sync::Arc;

use dfdx::tensor::{Cpu, CpuError, Tape as _};
use rayon::prelude::*;

use crate::{
    layer::Activation,
    partition::one_by_one,
    recycle::Floats,
    scratch::{self, sized},
    simd::{for_each_level, multiply_add},
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

/// A batch norm at inference: `activation(value * factor + offset)`, by channel.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Affine {
    pub(crate) factor: Vec<f32>,
    pub(crate) offset: Vec<f32>,
    pub(crate) activation: Activation,
}

impl Affine {
    pub(crate) fn apply(&self, values: &[f32], output: &mut [f32]) {
        affine(values, &self.factor, &self.offset, output);
        self.activation.apply(output);
    }
}

impl BatchNorm {
    fn range(&self) -> usize {
        (RANGE / self.channels).max(1) * self.channels
    }

    /// What it does with the running statistics.
    pub(crate) fn affine(&self, scale: &[f32], shift: &[f32], running: &Running) -> Affine {
        let factor: Vec<f32> =
            running.variance.iter().zip(scale).map(|(variance, scale)| scale / (variance + self.epsilon).sqrt()).collect();
        let offset = running.mean.iter().zip(&factor).zip(shift).map(|((mean, factor), shift)| shift - mean * factor).collect();
        Affine { factor, offset, activation: self.activation }
    }

    /// Two sums a channel over all pixels: `add` gives those of one of the parts. In a fixed order, in f64.
    fn sums<P: Send>(
        &self,
        parts: impl IndexedParallelIterator<Item = P>,
        add: impl Fn(P, &mut [f64], &mut [f64]) + Sync,
    ) -> (Vec<f64>, Vec<f64>) {
        let zeros = || (vec![0.0; self.channels], vec![0.0; self.channels]);
        let sums_of = |part| {
            let (mut first, mut second) = zeros();
            add(part, &mut first, &mut second);
            (first, second)
        };
        let parts: Vec<(Vec<f64>, Vec<f64>)> = one_by_one(parts).map(sums_of).collect();
        let (mut first, mut second) = zeros();
        for part in &parts {
            first.iter_mut().zip(&part.0).for_each(|(sum, part)| *sum += part);
            second.iter_mut().zip(&part.1).for_each(|(sum, part)| *sum += part);
        }
        (first, second)
    }

    /// The mean of each channel and its biased variance.
    fn moments(&self, values: &[f32]) -> (Vec<f32>, Vec<f64>) {
        let count = (values.len() / self.channels) as f64;
        // Moments about some value of the batch, not about zero: there, squares of a far-off mean would swallow the variance.
        let origin = &values[..self.channels];
        let (sum, squares) = self.sums(values.par_chunks(self.range()), |values, sum, squares| add_moments(values, origin, sum, squares));
        let mean = sum.iter().zip(origin).map(|(sum, origin)| (f64::from(*origin) + sum / count) as f32).collect();
        let variance = sum.iter().zip(&squares).map(|(sum, squares)| (squares / count - (sum / count).powi(2)).max(0.0)).collect();
        (mean, variance)
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
        let (mean, variance) = self.moments(&values);
        let inverse: Vec<f32> = variance.iter().map(|variance| 1.0 / (*variance as f32 + self.epsilon).sqrt()).collect();
        let unbiased = variance.iter().map(|variance| (variance * count / (count - 1.0).max(1.0)) as f32).collect();
        let batch = Running { mean: mean.clone(), variance: unbiased };

        let factor: Vec<f32> = inverse.iter().zip(layer.weights.iter()).map(|(inverse, scale)| inverse * scale).collect();
        let offset: Vec<f32> =
            mean.iter().zip(&factor).zip(layer.bias.iter()).map(|((mean, factor), shift)| shift - mean * factor).collect();
        let mut output = Floats::any(values.len());
        one_by_one(output.par_chunks_mut(self.range()).zip(values.par_chunks(self.range()))).for_each(|(output, values)| {
            affine(values, &factor, &offset, output);
            self.activation.apply(output);
        });

        let (flow, node) = Flow::new(Arc::new(output), device)?;
        let (norm, layer, input_node) = (self.clone(), layer.clone(), input.node.clone());
        tape.add_backward_op(move |grads| {
            let mut gradient = take(grads, &node, values.len())?;
            let parts = gradient.par_chunks_mut(norm.range()).zip(values.par_chunks(norm.range()));
            let (shift_sum, scale_sum) = norm.sums(parts, |(gradient, values), shift, scale| {
                if norm.activation != Activation::None {
                    // What the activation saw is made anew: cheaper than to write it in the forward pass and to read it here.
                    scratch::with(|scratch| {
                        let before = sized(&mut scratch.product, values.len());
                        affine(values, &factor, &offset, before);
                        norm.activation.backward(before, gradient);
                    });
                }
                add_gradients(values, gradient, &mean, &inverse, shift, scale);
            });
            write(grads.get_or_alloc_mut(&layer.weights_tensor)?, &scale_sum);
            write(grads.get_or_alloc_mut(&layer.bias_tensor)?, &shift_sum);
            let Some(input_node) = input_node else { return Ok(()) };
            // The paper's chain rule, gathered: dx = scale / σ (g - mean(g) - x̂ mean(g x̂)).
            let mean_g: Vec<f32> = shift_sum.iter().map(|sum| (sum / count) as f32).collect();
            let mean_gx: Vec<f32> = scale_sum.iter().map(|sum| (sum / count) as f32).collect();
            one_by_one(gradient.par_chunks_mut(norm.range()).zip(values.par_chunks(norm.range()))).for_each(|(gradient, values)| {
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

/// Channels whose sums the registers hold, and pixels whose sums are f32 before they go into those in f64: few enough that the
/// rounding stays that of the values.
const LANES: usize = 16;
const PIXELS: usize = 16;

for_each_level! {
    /// Adds the values' distances from `origin`, and the squares of these, by channel.
    fn add_moments(values: &[f32], origin: &[f32], sum: &mut [f64], squares: &mut [f64]) {
        let channels = sum.len();
        for pixels in values.chunks(PIXELS * channels) {
            for first in (0..channels).step_by(LANES) {
                let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
                let origin = lanes(&origin[first..]);
                for pixel in pixels.chunks_exact(channels) {
                    let pixel = lanes(&pixel[first..]);
                    for lane in 0..LANES {
                        let value = pixel[lane] - origin[lane];
                        sums[lane] += value;
                        products[lane] = multiply_add::<FMA>(value, value, products[lane]);
                    }
                }
                add_lanes(&sums, &mut sum[first..]);
                add_lanes(&products, &mut squares[first..]);
            }
        }
    }
}

for_each_level! {
    /// Adds gradients, and their products with the normalised values, by channel.
    fn add_gradients(values: &[f32], gradient: &[f32], mean: &[f32], inverse: &[f32], shift: &mut [f64], scale: &mut [f64]) {
        let channels = mean.len();
        for (pixels, gradients) in values.chunks(PIXELS * channels).zip(gradient.chunks(PIXELS * channels)) {
            for first in (0..channels).step_by(LANES) {
                let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
                let (mean, inverse) = (lanes(&mean[first..]), lanes(&inverse[first..]));
                for (pixel, gradient) in pixels.chunks_exact(channels).zip(gradients.chunks_exact(channels)) {
                    let (pixel, gradient) = (lanes(&pixel[first..]), lanes(&gradient[first..]));
                    for lane in 0..LANES {
                        let normal = (pixel[lane] - mean[lane]) * inverse[lane];
                        sums[lane] += gradient[lane];
                        products[lane] = multiply_add::<FMA>(gradient[lane], normal, products[lane]);
                    }
                }
                add_lanes(&sums, &mut shift[first..]);
                add_lanes(&products, &mut scale[first..]);
            }
        }
    }
}

/// The first values, or all of fewer and zeros.
#[inline(always)]
fn lanes(values: &[f32]) -> [f32; LANES] {
    if let Some(lanes) = values.first_chunk() {
        return *lanes;
    }
    let mut lanes = [0.0; LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

#[inline(always)]
fn add_lanes(lanes: &[f32; LANES], sums: &mut [f64]) {
    sums.iter_mut().zip(lanes).for_each(|(sum, lane)| *sum += f64::from(*lane));
}

for_each_level! {
    fn affine(values: &[f32], factor: &[f32], offset: &[f32], out: &mut [f32]) {
        let channels = factor.len();
        let offset = &offset[..channels];
        for (pixel, out) in values.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            for c in 0..channels {
                out[c] = multiply_add::<FMA>(pixel[c], factor[c], offset[c]);
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
