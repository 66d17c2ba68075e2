//! The few operations that all blocks are made of.
//!
//! Each is deterministic on every device: sums are matrix products, or additions in the order of the program. What is left out on purpose:
//! dfdx's sums, and its gradients of gathers and of broadcasts (on a GPU, threads add to one place in the order in which they come), and what
//! dfdx compiles at run time there (`reshape` of what does not lie in a row, `to_dtype`, `concat`, `stack`).

use dfdx::{
    shapes::{Axes2, Axis, HasShape, Shape},
    tensor::Tensor,
    tensor_ops::{
        BroadcastTo, ChooseFrom, Device, GatherTo, PermuteTo, ReshapeTo, TryAdd, TryDiv, TryGt, TryLt, TryMatMul, TryMul, TrySub,
    },
};

use super::{Done, Maps, Matrix, Row};
use crate::layer::Activation;

/// `1 / √(2π)`: the standard normal density at zero.
const DENSITY_AT_ZERO: f32 = 0.398_942_3;

/// Where a gather reads: for each value that comes out the place it comes from, or none for a zero.
pub(super) struct Places<D: Device<f32>> {
    places: Tensor<(usize,), usize, D>,
    /// One where a value is read, zero where there is none; absent where all are read.
    mask: Option<Row<D>>,
}

impl<D: Device<f32>> Places<D> {
    pub(super) fn new(places: &[Option<usize>], device: &D) -> Done<Self, D> {
        let len = (places.len(),);
        let mask = places.iter().map(|place| f32::from(u8::from(place.is_some()))).collect();
        let is_whole = places.iter().all(Option::is_some);
        Ok(Places {
            places: device.try_tensor_from_vec(places.iter().map(|place| place.unwrap_or_default()).collect(), len)?,
            mask: if is_whole { None } else { Some(device.try_tensor_from_vec::<(usize,)>(mask, len)?) },
        })
    }

    /// `[batch, places, channels]` of `[batch, pixels, channels]`.
    pub(super) fn gather(&self, from: &Maps<D>) -> Done<Maps<D>, D> {
        let (batch, _, channels) = *from.shape();
        let (count,) = *self.places.shape();
        let places: Tensor<(usize, usize), usize, D> = self.places.clone().try_broadcast_like::<_, Axis<0>>(&(batch, count))?;
        let found: Maps<D> = from.clone().try_gather(places)?;
        match &self.mask {
            None => Ok(found),
            Some(mask) => found.try_mul(mask.clone().try_broadcast_like::<_, Axes2<0, 2>>(&(batch, count, channels))?),
        }
    }
}

/// Maps as a matrix: a row a pixel, a column a channel. Nothing is copied.
pub(super) fn by_pixel<D: Device<f32>>(maps: Maps<D>) -> Done<Matrix<D>, D> {
    let (batch, pixels, channels) = *maps.shape();
    maps.try_reshape_like(&(batch * pixels, channels))
}

/// The other way round.
pub(super) fn as_maps<D: Device<f32>>(matrix: Matrix<D>, batch: usize) -> Done<Maps<D>, D> {
    let (rows, columns) = *matrix.shape();
    matrix.try_reshape_like(&(batch, rows / batch, columns))
}

/// A matrix seen along its columns, as matrix products take it. Nothing is copied.
pub(super) fn transposed<D: Device<f32>>(matrix: Matrix<D>) -> Done<Matrix<D>, D> {
    matrix.try_permute::<_, Axes2<1, 0>>()
}

/// A matrix as one row of values.
pub(super) fn flat<D: Device<f32>>(matrix: Matrix<D>) -> Done<Row<D>, D> {
    let (rows, columns) = *matrix.shape();
    matrix.try_reshape_like(&(rows * columns,))
}

/// Ones, made on the device.
pub(super) fn ones<D: Device<f32>, S: Shape>(shape: S, device: &D) -> Done<Tensor<S, f32, D>, D> {
    let zeros: Tensor<S, f32, D> = device.try_zeros_like(&shape)?;
    zeros.try_add(1.0)
}

/// The sum of each column, as a product with a row of ones.
pub(super) fn column_sums<D: Device<f32>>(matrix: &Matrix<D>, device: &D) -> Done<Row<D>, D> {
    let (rows, columns) = *matrix.shape();
    ones((1, rows), device)?.try_matmul(matrix.clone())?.try_reshape_like(&(columns,))
}

/// One row for every row of a matrix.
pub(super) fn for_each_row<D: Device<f32>>(row: &Row<D>, matrix: &Matrix<D>) -> Done<Matrix<D>, D> {
    row.clone().try_broadcast_like::<_, Axis<0>>(matrix.shape())
}

/// The activation of each value. A NaN stays a NaN: a diverged training must show.
pub(super) fn activate<D: Device<f32>>(activation: Activation, values: &Maps<D>, device: &D) -> Done<Maps<D>, D> {
    let values = values.clone();
    match activation {
        Activation::None => Ok(values),
        Activation::Relu => values.try_lt(0.0)?.try_choose(device.try_zeros_like(&values)?, values),
        Activation::Gelu => values.try_accurate_gelu(),
        Activation::Silu => values.clone().try_sigmoid()?.try_mul(values),
    }
}

/// The gradient before an activation, from that behind it and the values before it.
pub(super) fn activation_gradient<D: Device<f32>>(
    activation: Activation,
    values: &Maps<D>,
    gradient: Maps<D>,
    device: &D,
) -> Done<Maps<D>, D> {
    match activation {
        Activation::None => Ok(gradient),
        Activation::Relu => {
            let zeros = device.try_zeros_like(&gradient)?;
            values.try_gt(0.0)?.try_choose(gradient, zeros)
        }
        // Φ(x) + x φ(x). dfdx's own derivative has √2 times the second term. Φ is the activation over x, and its tangent where that is 0 / 0.
        Activation::Gelu => {
            let density = values.clone().try_square()?.try_mul(-0.5)?.try_exp()?.try_mul(DENSITY_AT_ZERO)?;
            let quotient = values.clone().try_accurate_gelu()?.try_div(values.clone())?;
            let tangent = values.clone().try_mul(DENSITY_AT_ZERO)?.try_add(0.5)?;
            let distribution = values.clone().try_square()?.try_lt(1e-6)?.try_choose(tangent, quotient)?;
            distribution.try_add(values.clone().try_mul(density)?)?.try_mul(gradient)
        }
        // With s the logistic function of x: s (1 + x - x s).
        Activation::Silu => {
            let s = values.clone().try_sigmoid()?;
            let xs = values.clone().try_mul(s.clone())?;
            values.clone().try_sub(xs)?.try_add(1.0)?.try_mul(s)?.try_mul(gradient)
        }
    }
}
