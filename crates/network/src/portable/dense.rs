//! The fully connected layer: one matrix product.

use dfdx::{
    shapes::HasShape,
    tensor_ops::{Device, ReshapeTo, TryAdd, TryMatMul},
};

use super::{
    Back, Done, Forward, Maps, Weights,
    operations::{as_maps, by_pixel, column_sums, flat, for_each_row, transposed},
};
use crate::dense::Dense;

/// The outputs before the activation, and the way back. What reaches the layer is taken as it lies in memory.
pub(super) fn forward<D: Device<f32>>(dense: &Dense, input: Maps<D>, layer: Weights<D>, device: &D) -> Done<Forward<D>, D> {
    let shape = *input.shape();
    let input = input.try_reshape_like(&(shape.0, dense.inputs))?;
    let weights = layer.weights.try_reshape_like(&(dense.inputs, dense.units))?;
    let sums = input.clone().try_matmul(weights.clone())?;
    let bias = for_each_row(&layer.bias, &sums)?;
    let output = as_maps(sums.try_add(bias)?, shape.0)?;
    let device = device.clone();
    let back: Back<D> = Box::new(move |gradient, found| {
        let gradient = by_pixel(gradient)?;
        found.put(layer.index + 1, column_sums(&gradient, &device)?);
        found.put(layer.index, flat(transposed(input)?.try_matmul(gradient.clone())?)?);
        gradient.try_matmul(transposed(weights)?)?.try_reshape_like(&shape)
    });
    Ok((output, back))
}
