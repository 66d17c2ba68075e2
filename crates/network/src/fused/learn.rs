//! Optimisers on the GPU: what `Optimiser` does on the processor, on weights that stay there.

use super::{
    Done,
    gpu::{Buffer, Gpu, Pointer, launch, launch_each},
    layers::ONE_BLOCK,
};
use crate::{
    accelerator::Rule,
    muon::{ITERATIONS, QUINTIC},
    optimiser::OptimiserConfig,
};

/// A tensor that is learned, on the GPU.
pub(super) struct Learner {
    pub(super) length: usize,
    pub(super) rule: Rule,
    /// As many as the optimiser keeps.
    pub(super) moments: Vec<Buffer>,
}

/// A step of the optimiser.
pub(super) struct Step<'a> {
    pub(super) gpu: &'a Gpu,
    /// From 1.
    pub(super) step: u64,
    pub(super) rate_factor: f64,
    /// What gradients are multiplied with, or null.
    pub(super) clip: Pointer,
}

impl Step<'_> {
    /// Moves weights along their gradient.
    pub(super) fn update(&self, weights: &Buffer, gradient: &Buffer, learner: &mut Learner) -> Done<()> {
        match learner.rule.config {
            OptimiserConfig::Adam { .. } => self.adam(weights, gradient, learner),
            OptimiserConfig::Sgd { .. } => self.sgd(weights, gradient, learner),
            OptimiserConfig::Muon { .. } => self.muon(weights, gradient, learner),
        }
    }

    fn adam(&self, weights: &Buffer, gradient: &Buffer, learner: &Learner) -> Done<()> {
        let (OptimiserConfig::Adam { learning_rate, beta1, beta2, epsilon, weight_decay, bias_rate }, [first, second, ..]) =
            (&learner.rule.config, &learner.moments[..])
        else {
            return Ok(());
        };
        let rate = learning_rate * self.rate_factor * learner.rule.role.rate(*bias_rate);
        let decay = if learner.rule.role.decays() { (rate * weight_decay) as f32 } else { 0.0 };
        let step = i32::try_from(self.step).unwrap_or(i32::MAX);
        let unbias = |beta: f64| 1.0 / (1.0 - (beta as f32).powi(step));
        let (unbias1, unbias2) = (unbias(*beta1), unbias(*beta2));
        let (rate, beta1, beta2, epsilon) = (rate as f32, *beta1 as f32, *beta2 as f32, *epsilon as f32);
        let (weights, gradient, first, second) = (weights.pointer(), gradient.pointer(), first.pointer(), second.pointer());
        let (length, gpu, clip) = (learner.length, self.gpu, self.clip);
        launch_each!(
            gpu,
            "adam_step",
            length,
            weights,
            gradient,
            first,
            second,
            length as u64,
            rate,
            beta1,
            beta2,
            epsilon,
            decay,
            unbias1,
            unbias2,
            clip
        )
    }

    fn sgd(&self, weights: &Buffer, gradient: &Buffer, learner: &Learner) -> Done<()> {
        let (OptimiserConfig::Sgd { learning_rate, momentum, nesterov, weight_decay, bias_rate }, [velocity, ..]) =
            (&learner.rule.config, &learner.moments[..])
        else {
            return Ok(());
        };
        let rate = (learning_rate * self.rate_factor * learner.rule.role.rate(*bias_rate)) as f32;
        let decay = if learner.rule.role.decays() { *weight_decay as f32 } else { 0.0 };
        let (momentum, nesterov, length) = (*momentum as f32, i32::from(*nesterov), learner.length);
        let (weights, gradient, velocity) = (weights.pointer(), gradient.pointer(), velocity.pointer());
        let (gpu, clip) = (self.gpu, self.clip);
        launch_each!(gpu, "sgd_step", length, weights, gradient, velocity, length as u64, rate, momentum, nesterov, decay, clip)
    }

    fn muon(&self, weights: &Buffer, gradient: &Buffer, learner: &Learner) -> Done<()> {
        let (OptimiserConfig::Muon { learning_rate, momentum, nesterov, weight_decay, normalise, .. }, [velocity, ..]) =
            (&learner.rule.config, &learner.moments[..])
        else {
            return Ok(());
        };
        let (gpu, length, columns) = (self.gpu, learner.length, learner.rule.columns);
        let rows = length / columns;
        let mut direction = gpu.floats(length)?;
        let (momentum, nesterov) = (*momentum as f32, i32::from(*nesterov));
        let (from, velocity, to) = (gradient.pointer(), velocity.pointer(), direction.pointer());
        launch_each!(gpu, "muon_momentum", length, from, velocity, to, length as u64, momentum, nesterov, self.clip)?;
        self.orthogonalise(&mut direction, rows, columns)?;
        // A matrix with more sums than inputs has room for longer steps.
        let rate = (learning_rate * self.rate_factor) as f32 * (columns as f32 / rows as f32).max(1.0).sqrt();
        let keep = 1.0 - (learning_rate * self.rate_factor * weight_decay) as f32;
        self.blend(&direction, weights, -rate, keep, length)?;
        if *normalise { self.normalise(weights, (columns as f32).sqrt(), length) } else { Ok(()) }
    }

    /// As `muon::orthogonalise`.
    fn orthogonalise(&self, values: &mut Buffer, rows: usize, columns: usize) -> Done<()> {
        let (gpu, length) = (self.gpu, rows * columns);
        self.normalise(values, 1.0, length)?;
        let [a, b, c] = QUINTIC;
        let is_tall = rows >= columns;
        let (short, long) = if is_tall { (columns, rows) } else { (rows, columns) };
        let (mut square, mut quartic, mut next) = (gpu.floats(short * short)?, gpu.floats(short * short)?, gpu.floats(length)?);
        for _ in 0..ITERATIONS {
            gpu.multiply((values, is_tall), (values, !is_tall), &mut square, (short, long, short))?;
            gpu.multiply((&square, false), (&square, false), &mut quartic, (short, short, short))?;
            self.blend(&square, &quartic, b, c, short * short)?;
            match is_tall {
                true => gpu.multiply((values, false), (&quartic, false), &mut next, (rows, columns, columns))?,
                false => gpu.multiply((&quartic, false), (values, false), &mut next, (rows, rows, columns))?,
            }
            self.blend(&next, values, 1.0, a, length)?;
        }
        Ok(())
    }

    /// `other = a · one + b · other`.
    pub(super) fn blend(&self, one: &Buffer, other: &Buffer, a: f32, b: f32, length: usize) -> Done<()> {
        launch_each!(self.gpu, "blend_with", length, one.pointer(), other.pointer(), a, b, length as u64)
    }

    fn normalise(&self, values: &Buffer, norm: f32, length: usize) -> Done<()> {
        let sum = self.gpu.take(1, 8)?;
        square_sum(self.gpu, values, length, sum.pointer())?;
        launch_each!(self.gpu, "normalise_to", length, values.pointer(), sum.pointer(), norm, length as u64)
    }
}

/// Writes the sum of squares, an `f64`.
pub(super) fn square_sum(gpu: &Gpu, values: &Buffer, length: usize, to: Pointer) -> Done<()> {
    let (blocks, threads) = ONE_BLOCK;
    launch!(gpu, "sum_of_squares", blocks, threads, values.pointer(), length as u64, to)
}
