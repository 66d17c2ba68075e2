//! Batch normalisation by its definition: the sums over a batch are products with a row of ones.

use dfdx::{
    shapes::HasShape,
    tensor_ops::{Device, TryAdd, TryMul, TrySub},
};

use super::{
    Back, Done, Forward, Maps, Row, Weights,
    operations::{as_maps, by_pixel, column_sums, for_each_row},
};
use crate::batchnorm::{BatchNorm, Running};

/// A batch's mean and biased variance, still on the device.
pub(super) struct Statistics<D: Device<f32>> {
    mean: Row<D>,
    variance: Row<D>,
    count: usize,
}

impl<D: Device<f32>> Statistics<D> {
    /// Mean and unbiased variance, for the running statistics.
    pub(super) fn read(&self) -> Running {
        let correction = self.count as f32 / (self.count as f32 - 1.0).max(1.0);
        Running { mean: self.mean.as_vec(), variance: self.variance.as_vec().iter().map(|variance| variance * correction).collect() }
    }
}

/// Normalises a batch with its own statistics, before the activation; and the way back.
pub(super) fn forward<D: Device<f32>>(
    norm: &BatchNorm,
    input: &Maps<D>,
    layer: Weights<D>,
    device: &D,
) -> Done<(Forward<D>, Statistics<D>), D> {
    let (batch, pixels, _) = *input.shape();
    let (count, share) = (batch * pixels, 1.0 / (batch * pixels) as f32);
    let values = by_pixel(input.clone())?;
    let mean = column_sums(&values, device)?.try_mul(share)?;
    let centred = values.clone().try_sub(for_each_row(&mean, &values)?)?;
    let variance = column_sums(&centred.clone().try_square()?, device)?.try_mul(share)?;
    let inverse = variance.clone().try_add(norm.epsilon)?.try_sqrt()?.try_recip()?;
    let normal = centred.try_mul(for_each_row(&inverse, &values)?)?;
    let scaled = normal.clone().try_mul(for_each_row(&layer.weights, &values)?)?;
    let output = as_maps(scaled.try_add(for_each_row(&layer.bias, &values)?)?, batch)?;

    let device = device.clone();
    let back: Back<D> = Box::new(move |gradient, found| {
        let gradient = by_pixel(gradient)?;
        let shift = column_sums(&gradient, &device)?;
        let scale = column_sums(&gradient.clone().try_mul(normal.clone())?, &device)?;
        found.put(layer.index, scale.clone());
        found.put(layer.index + 1, shift.clone());
        // The paper's chain rule, gathered: dx = scale / σ (g - mean(g) - x̂ mean(g x̂)).
        let along = normal.clone().try_mul(for_each_row(&scale.try_mul(share)?, &normal)?)?;
        let centred = gradient.try_sub(for_each_row(&shift.try_mul(share)?, &normal)?)?.try_sub(along)?;
        let factor = inverse.try_mul(layer.weights)?;
        as_maps(centred.try_mul(for_each_row(&factor, &normal)?)?, batch)
    });
    Ok(((output, back), Statistics { mean, variance, count }))
}

/// Normalises with the running statistics, before the activation.
pub(super) fn infer<D: Device<f32>>(
    norm: &BatchNorm,
    input: &Maps<D>,
    layer: &Weights<D>,
    running: &Running,
    device: &D,
) -> Done<Maps<D>, D> {
    let len = (norm.channels,);
    let inverse: Vec<f32> = running.variance.iter().map(|variance| 1.0 / (variance + norm.epsilon).sqrt()).collect();
    let (inverse, mean): (Row<D>, Row<D>) =
        (device.try_tensor_from_vec(inverse, len)?, device.try_tensor_from_vec(running.mean.clone(), len)?);
    let factor = inverse.try_mul(layer.weights.clone())?;
    let offset = layer.bias.clone().try_sub(mean.try_mul(factor.clone())?)?;
    let values = by_pixel(input.clone())?;
    let scaled = values.clone().try_mul(for_each_row(&factor, &values)?)?;
    let (batch, ..) = *input.shape();
    as_maps(scaled.try_add(for_each_row(&offset, &values)?)?, batch)
}
