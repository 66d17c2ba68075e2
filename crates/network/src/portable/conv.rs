//! The convolution block: patches are gathered to the rows of a matrix, and multiplied with the weights.

use std::sync::Arc;

use dfdx::{
    shapes::HasShape,
    tensor_ops::{Device, ReshapeTo, TryAdd, TryMatMul},
};

use super::{
    Back, Done, Forward, Maps, Matrix, Row, Weights,
    operations::{Places, as_maps, by_pixel, column_sums, flat, for_each_row, transposed},
    windows::Windows,
};
use crate::conv;

/// A convolution with its bias.
pub(super) struct Convolution<D: Device<f32>> {
    patches: Places<D>,
    /// For each point of a window, where the gradient of a pixel comes from; empty where nobody asks for it.
    back: Vec<Places<D>>,
    windows: Windows,
    channels: usize,
    groups: usize,
    filters: usize,
}

impl<D: Device<f32>> Convolution<D> {
    /// The convolution of a block, and its indices on the device.
    pub(super) fn new(conv: &conv::Conv, is_first: bool, device: &D) -> Done<Self, D> {
        let windows = Windows::of_conv(conv);
        let points = if is_first { 0 } else { windows.points() };
        Ok(Convolution {
            patches: Places::new(&windows.all(), device)?,
            back: (0..points).map(|point| Places::new(&windows.back_among_all(point), device)).collect::<Result<_, _>>()?,
            windows,
            channels: conv.channels,
            groups: conv.groups,
            filters: conv.filters,
        })
    }

    /// Weights `[rows, columns, channels of a group, filters]` as the matrix that whole patches are multiplied with: zero where a filter does
    /// not see a channel.
    pub(super) fn spread(&self, weights: &[f32]) -> Vec<f32> {
        if self.groups == 1 {
            return weights.to_vec();
        }
        let mut matrix = vec![0.0; self.windows.points() * self.channels * self.filters];
        self.each_weight(|place, index| matrix[place] = weights[index]);
        matrix
    }

    /// The gradient of the weights from that of the matrix: what [`Convolution::spread`] put there.
    pub(super) fn gathered(&self, matrix: Vec<f32>) -> Vec<f32> {
        if self.groups == 1 {
            return matrix;
        }
        let mut weights = vec![0.0; matrix.len() / self.groups];
        self.each_weight(|place, index| weights[index] = matrix[place]);
        weights
    }

    /// Each weight's place in the matrix and among the weights.
    fn each_weight(&self, mut work: impl FnMut(usize, usize)) {
        let (of_group, filters_of_group) = (self.channels / self.groups, self.filters / self.groups);
        for index in 0..self.windows.points() * of_group * self.filters {
            let (filter, row) = (index % self.filters, index / self.filters);
            let channel = filter / filters_of_group * of_group + row % of_group;
            work((row / of_group * self.channels + channel) * self.filters + filter, index);
        }
    }

    /// `[batch * outputs, points * channels]`.
    fn patches(&self, input: &Maps<D>) -> Done<Matrix<D>, D> {
        let (batch, _, channels) = *input.shape();
        self.patches.gather(input)?.try_reshape_like(&(batch * self.windows.outputs(), self.windows.points() * channels))
    }

    fn matrix(&self, weights: &Row<D>) -> Done<Matrix<D>, D> {
        weights.clone().try_reshape_like(&(self.windows.points() * self.channels, self.filters))
    }

    /// The outputs before pooling and activation, and the way back.
    pub(super) fn forward(self: &Arc<Self>, input: &Maps<D>, layer: Weights<D>, device: &D) -> Done<Forward<D>, D> {
        let (batch, ..) = *input.shape();
        let matrix = self.matrix(&layer.weights)?;
        let sums = self.patches(input)?.try_matmul(matrix.clone())?;
        let bias = for_each_row(&layer.bias, &sums)?;
        let output = as_maps(sums.try_add(bias)?, batch)?;
        let (conv, input, device) = (self.clone(), input.clone(), device.clone());
        let back: Back<D> = Box::new(move |gradient, found| {
            let gradient = by_pixel(gradient)?;
            found.put(layer.index + 1, column_sums(&gradient, &device)?);
            let of_matrix = transposed(conv.patches(&input)?)?.try_matmul(gradient.clone())?;
            found.put(layer.index, flat(of_matrix)?);
            conv.input_gradient(gradient, matrix, batch, &device)
        });
        Ok((output, back))
    }

    /// Of each pixel: what the windows that hold it have for it, point by point.
    fn input_gradient(&self, gradient: Matrix<D>, matrix: Matrix<D>, batch: usize, device: &D) -> Done<Maps<D>, D> {
        let mut sum: Maps<D> = device.try_zeros_like(&(batch, self.windows.pixels(), self.channels))?;
        if self.back.is_empty() {
            return Ok(sum);
        }
        let patches = gradient.try_matmul(transposed(matrix)?)?;
        let patches = patches.try_reshape_like(&(batch, self.windows.outputs() * self.windows.points(), self.channels))?;
        for places in &self.back {
            sum = sum.try_add(places.gather(&patches)?)?;
        }
        Ok(sum)
    }
}
