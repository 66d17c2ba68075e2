//! Convolutions and dense layers: how a product is cut into tiles, and slices where tiles are few.

use std::rc::Rc;

use super::{
    Maps, Precision,
    gpu::{Buffer, Gpu, Pointer, in_memory, in_precision, launch, launch_each},
};
use crate::{conv::Conv, dense::Dense, error::NetworkError, layer::Activation};

/// As `kernels/tile.cuh` has them.
const ROWS: usize = 128;
const COLUMNS: usize = 64;
const DEPTH: usize = 32;
const THREADS: (u32, u32) = (256, 1);

/// Blocks that keep a large GPU busy. Slices are made until there are so many; it is a constant, so that sums are the same on any GPU.
const BUSY: usize = 256;
/// A slice has at least so many products of each sum.
const SLICE: usize = 4 * DEPTH;

/// A divisor as `kernels/numbers.cuh` has it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Divisor {
    by: u32,
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    fn new(by: usize) -> Self {
        let by = by as u32;
        let shift = u32::BITS - (by - 1).leading_zeros();
        let multiplier = ((1u64 << (32 + shift)).div_ceil(u64::from(by)) - (1 << 32)) as u32;
        Divisor { by, multiplier, shift }
    }
}

/// A convolution over a batch, as `kernels/conv.cuh` has it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Geometry {
    height: i32,
    width: i32,
    channels: i32,
    out_height: i32,
    out_width: i32,
    filters: i32,
    rows: i32,
    columns: i32,
    stride: i32,
    dilation: i32,
    top: i32,
    left: i32,
    group_channels: i32,
    group_filters: i32,
    inputs: i32,
    outputs: i32,
    patch: i32,
    back_patch: i32,
    by_width: Divisor,
    by_pixels: Divisor,
    by_out_width: Divisor,
    by_out_pixels: Divisor,
    by_columns: Divisor,
    by_group_channels: Divisor,
    by_group_filters: Divisor,
    by_stride: Divisor,
}

impl Geometry {
    /// Of a convolution, before its pooling.
    pub(super) fn of(conv: &Conv, batch: usize) -> Result<Self, NetworkError> {
        let (out_height, out_width) = (conv.out_height * conv.pool, conv.out_width * conv.pool);
        let (group_channels, group_filters) = (conv.channels / conv.groups, conv.filters / conv.groups);
        let (points, pixels, out_pixels) = (conv.rows * conv.columns, conv.height * conv.width, out_height * out_width);
        // Kernels count values of maps, and what they divide, below 2^31.
        let largest = batch * (pixels * conv.channels).max(out_pixels * conv.filters);
        if largest >= 1 << 31 {
            return Err(NetworkError::device(format!(
                "a layer has {largest} values in a batch; 2,147,483,647 are the most. A smaller `batch` has fewer, and so do its parts one after the other: `accumulate = 2`"
            )));
        }
        let int = |value: usize| value as i32;
        Ok(Geometry {
            height: int(conv.height),
            width: int(conv.width),
            channels: int(conv.channels),
            out_height: int(out_height),
            out_width: int(out_width),
            filters: int(conv.filters),
            rows: int(conv.rows),
            columns: int(conv.columns),
            stride: int(conv.stride),
            dilation: int(conv.dilation),
            top: int(conv.top),
            left: int(conv.left),
            group_channels: int(group_channels),
            group_filters: int(group_filters),
            inputs: int(batch * pixels),
            outputs: int(batch * out_pixels),
            patch: int(points * group_channels),
            back_patch: int(points * group_filters),
            by_width: Divisor::new(conv.width),
            by_pixels: Divisor::new(pixels),
            by_out_width: Divisor::new(out_width),
            by_out_pixels: Divisor::new(out_pixels),
            by_columns: Divisor::new(conv.columns),
            by_group_channels: Divisor::new(group_channels),
            by_group_filters: Divisor::new(group_filters),
            by_stride: Divisor::new(conv.stride),
        })
    }

    fn groups(&self) -> usize {
        (self.channels / self.group_channels) as usize
    }
}

/// The one pixel that a dense layer is a convolution over.
pub(super) fn dense_as_conv(dense: &Dense) -> Conv {
    use crate::layer::Padding;
    Conv::new((1, 1, dense.inputs), dense.units, (1, 1), 1, Padding::Valid, dense.activation, 1)
}

/// How a product of these sides is cut: blocks, slices, and the products of a sum that each slice has.
struct Cut {
    blocks: (u32, u32, u32),
    slices: usize,
    length: i32,
}

impl Cut {
    fn new(rows: usize, columns: usize, depth: usize, groups: usize) -> Self {
        let (down, across) = (rows.div_ceil(ROWS), columns.div_ceil(COLUMNS));
        let most = (BUSY / (down * across * groups).min(BUSY)).min(depth / SLICE).min(65_535 / groups).max(1);
        let length = depth.div_ceil(most).next_multiple_of(DEPTH);
        let slices = depth.div_ceil(length);
        Cut { blocks: (down as u32, across as u32, (groups * slices) as u32), slices, length: length as i32 }
    }
}

/// Weights and bias of a layer, in fp32.
pub(super) struct Weights {
    pub(super) weights: Rc<Buffer>,
    pub(super) bias: Rc<Buffer>,
}

/// What a product's forward pass gives: its outputs, and what they were before the activation where that was asked for.
pub(super) struct Given {
    pub(super) maps: Maps,
    pub(super) before: Option<Maps>,
}

/// A batch of products on a GPU.
pub(super) struct Product<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) precision: Precision,
    pub(super) at: Geometry,
}

impl Product<'_> {
    /// `activation(patches · weights + bias)`; logits stay in fp32.
    pub(super) fn forward(
        &self,
        input: &Maps,
        layer: &Weights,
        activation: Activation,
        keeps_before: bool,
        are_logits: bool,
    ) -> Result<Given, NetworkError> {
        let (gpu, at) = (self.gpu, self.at);
        let (outputs, filters) = (at.outputs as usize, at.filters as usize);
        let bytes = if are_logits { 4 } else { self.precision.bytes() };
        let take = || Ok::<_, NetworkError>(Maps::new(gpu.take(outputs * filters, bytes)?, input.batch, outputs / input.batch, filters));
        let maps = take()?;
        let before = keeps_before.then(take).transpose()?;
        let activation = activation as i32;
        let cut = Cut::new(outputs, at.group_filters as usize, at.patch as usize, at.groups());
        let slices = (cut.slices > 1).then(|| gpu.floats(cut.slices * outputs * filters)).transpose()?;
        let is_widened = are_logits && self.precision == Precision::Bf16;
        let kernel = if is_widened { "forward_bf16_to_fp32" } else { in_precision!(self.precision, "forward") };
        let (to, kept) = (maps.pointer(), before.as_ref().map_or(Pointer::NULL, Maps::pointer));
        let sliced = slices.as_ref().map_or(Pointer::NULL, Buffer::pointer);
        let (weights, bias) = (layer.weights.pointer(), layer.bias.pointer());
        launch!(gpu, kernel, cut.blocks, THREADS, input.pointer(), weights, bias, to, kept, sliced, cut.length, activation, at)?;
        if slices.is_some() {
            let length = outputs * filters;
            let kernel = if are_logits { "add_slices_fp32" } else { in_memory!(self.precision, "add_slices") };
            let (count, columns) = (cut.slices as i32, at.filters);
            launch_each!(gpu, kernel, length, sliced, count, length as u64, columns, bias, activation, kept, to)?;
        }
        Ok(Given { maps, before })
    }

    /// The gradient of the input.
    pub(super) fn backward_input(&self, gradient: &Maps, weights: &Buffer) -> Result<Maps, NetworkError> {
        let (gpu, at) = (self.gpu, self.at);
        let (inputs, channels) = (at.inputs as usize, at.channels as usize);
        let maps = Maps::new(gpu.take(inputs * channels, self.precision.bytes())?, gradient.batch, inputs / gradient.batch, channels);
        let cut = Cut::new(inputs, at.group_channels as usize, at.back_patch as usize, at.groups());
        let slices = (cut.slices > 1).then(|| gpu.floats(cut.slices * inputs * channels)).transpose()?;
        let (sliced, to) = (slices.as_ref().map_or(Pointer::NULL, Buffer::pointer), maps.pointer());
        let kernel = in_precision!(self.precision, "backward_input");
        launch!(gpu, kernel, cut.blocks, THREADS, gradient.pointer(), weights.pointer(), to, sliced, cut.length, at)?;
        if slices.is_some() {
            self.add_slices(in_memory!(self.precision, "add_slices"), sliced, cut.slices, inputs * channels, to)?;
        }
        Ok(maps)
    }

    /// The gradient of the weights, in fp32.
    pub(super) fn backward_weights(&self, input: &Maps, gradient: &Maps) -> Result<Buffer, NetworkError> {
        let (gpu, at) = (self.gpu, self.at);
        let length = at.patch as usize * at.filters as usize;
        let cut = Cut::new(at.patch as usize, at.group_filters as usize, at.outputs as usize, at.groups());
        let slices = gpu.floats(cut.slices * length)?;
        let kernel = in_precision!(self.precision, "backward_weights");
        launch!(gpu, kernel, cut.blocks, THREADS, input.pointer(), gradient.pointer(), slices.pointer(), cut.length, at)?;
        if cut.slices == 1 {
            return Ok(slices);
        }
        let sum = gpu.floats(length)?;
        self.add_slices("add_slices_fp32", slices.pointer(), cut.slices, length, sum.pointer())?;
        Ok(sum)
    }

    fn add_slices(&self, kernel: &'static str, slices: Pointer, count: usize, length: usize, to: Pointer) -> Result<(), NetworkError> {
        let (none, null) = (Activation::None as i32, Pointer::NULL);
        launch_each!(self.gpu, kernel, length, slices, count as i32, length as u64, 1i32, null, none, null, to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_division_by_a_product_is_a_division() {
        for by in (1..300).chain([1 << 20, (1 << 20) + 1, i32::MAX as usize]) {
            let divisor = Divisor::new(by);
            for n in (0..2_000u32).chain([by as u32 - 1, by as u32, 1 << 30, i32::MAX as u32 - 1, i32::MAX as u32]) {
                let high = ((u64::from(n) * u64::from(divisor.multiplier)) >> 32) as u32;
                assert_eq!((high + n) >> divisor.shift, n / by as u32, "{n} / {by}");
            }
        }
    }

    #[test]
    fn slices_cover_each_sum_once_and_tiles_that_are_many_are_not_cut() {
        for (rows, columns, depth, groups) in [(64, 64, 2304, 1), (131_072, 384, 3456, 1), (27, 24, 1_000_000, 1), (9, 1, 50_000, 512)] {
            let cut = Cut::new(rows, columns, depth, groups);
            assert!((cut.slices - 1) * cut.length as usize <= depth && cut.slices * cut.length as usize >= depth);
            assert!(cut.slices == 1 || cut.blocks.0 * cut.blocks.1 * cut.blocks.2 <= 2 * BUSY as u32);
        }
        assert_eq!(Cut::new(131_072, 384, 3456, 1).slices, 1);
    }
}
