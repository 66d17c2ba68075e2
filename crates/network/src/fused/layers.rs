//! What is no product: pooling, batch norms, activations, dropout, sums of two ways, the loss.

use std::rc::Rc;

use super::{
    Maps, Precision,
    gpu::{Buffer, Gpu, Pointer, in_memory, launch, launch_each},
};
use crate::{
    batchnorm::{BatchNorm, Running},
    dropout::Dropout,
    error::NetworkError,
    layer::{Activation, PoolKind},
    loss::LossOptions,
    pool::Pool,
};

/// Threads of the loss's block, and of other sums by one block.
pub(super) const ONE_BLOCK: ((u32, u32, u32), (u32, u32)) = ((1, 1, 1), (256, 1));

/// Channels and pixels that a block takes at once for sums over pixels, as `kernels/layers.cuh` has them.
const LANES: (u32, u32) = (32, 8);
/// Pixels of a slice of such sums, at least, and the most slices.
const SLICE: usize = 256;
const SLICES: usize = 256;

/// Pooling windows, as `kernels/layers.cuh` has them.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Windows {
    height: i32,
    width: i32,
    channels: i32,
    out_height: i32,
    out_width: i32,
    rows: i32,
    columns: i32,
    stride: i32,
    is_mean: i32,
}

impl Windows {
    pub(super) fn of(pool: &Pool) -> Self {
        let int = |value: usize| value as i32;
        let (out_height, out_width) = pool.out_size();
        Windows {
            height: int(pool.height),
            width: int(pool.width),
            channels: int(pool.channels),
            out_height: int(out_height),
            out_width: int(out_width),
            rows: int(pool.rows),
            columns: int(pool.columns),
            stride: int(pool.stride),
            is_mean: i32::from(pool.kind == PoolKind::Mean),
        }
    }
}

/// A batch norm's numbers, as `kernels/layers.cuh` has them.
#[derive(Clone, Copy)]
#[repr(C)]
struct Norm {
    mean: Pointer,
    inverse: Pointer,
    scale: Pointer,
    shift: Pointer,
    activation: i32,
}

/// Two sums a channel over pixels, cut into slices of so many, `[slices, 2, channels]`.
struct PixelSums {
    blocks: (u32, u32, u32),
    length: u32,
    slices: i32,
    sums: Buffer,
}

/// What a batch norm normalised with.
pub(super) struct Statistics {
    pub(super) channels: usize,
    pub(super) mean: Buffer,
    inverse: Buffer,
    /// Unbiased, for the running statistics.
    pub(super) variance: Buffer,
}

/// How wrong logits are punished: [`LossOptions`] on the GPU.
pub(super) struct LossTerms {
    class_weights: Option<Buffer>,
    label_smoothing: f32,
}

impl LossTerms {
    pub(super) fn upload(gpu: &Gpu, options: &LossOptions) -> Result<Self, NetworkError> {
        let class_weights = options.class_weights.as_ref().map(|weights| gpu.upload(weights)).transpose()?;
        Ok(LossTerms { class_weights, label_smoothing: options.label_smoothing })
    }
}

/// The operations of a batch on a GPU.
#[derive(Clone)]
pub(super) struct Operations {
    pub(super) gpu: Rc<Gpu>,
    pub(super) precision: Precision,
}

impl Operations {
    fn maps(&self, like: &Maps, pixels: usize) -> Result<Maps, NetworkError> {
        let length = like.batch * pixels * like.channels;
        Ok(Maps::new(self.gpu.take(length, self.precision.bytes())?, like.batch, pixels, like.channels))
    }

    /// `activation(pool(input))`.
    pub(super) fn pool(&self, input: &Maps, at: Windows, activation: Activation) -> Result<Maps, NetworkError> {
        let output = self.maps(input, (at.out_height * at.out_width) as usize)?;
        let (length, activation) = (output.len(), activation as i32);
        launch_each!(
            self.gpu,
            in_memory!(self.precision, "pool"),
            length,
            input.pointer(),
            output.pointer(),
            length as u32,
            activation,
            at
        )?;
        Ok(output)
    }

    pub(super) fn pool_back(&self, input: &Maps, gradient: &Maps, at: Windows) -> Result<Maps, NetworkError> {
        let output = self.maps(input, input.pixels)?;
        let length = output.len();
        let kernel = in_memory!(self.precision, "pool_back");
        launch_each!(self.gpu, kernel, length, input.pointer(), gradient.pointer(), output.pointer(), length as u32, at)?;
        Ok(output)
    }

    /// The gradient before an activation; `kept` is its result for ReLU, what went in for others.
    pub(super) fn activation_back(&self, activation: Activation, kept: &Maps, gradient: Maps) -> Result<Maps, NetworkError> {
        if activation == Activation::None {
            return Ok(gradient);
        }
        let output = self.maps(&gradient, gradient.pixels)?;
        let (length, activation) = (output.len(), activation as i32);
        let kernel = in_memory!(self.precision, "activation_back");
        launch_each!(self.gpu, kernel, length, activation, kept.pointer(), gradient.pointer(), output.pointer(), length as u64)?;
        Ok(output)
    }

    /// `activation(one + other)`; and what it was before where that is asked for.
    pub(super) fn join(
        &self,
        one: &Maps,
        other: &Maps,
        activation: Activation,
        keeps_before: bool,
    ) -> Result<(Maps, Option<Maps>), NetworkError> {
        let output = self.maps(one, one.pixels)?;
        let before = keeps_before.then(|| self.maps(one, one.pixels)).transpose()?;
        let kept = before.as_ref().map_or(Pointer::NULL, Maps::pointer);
        let (length, activation, kernel) = (output.len(), activation as i32, in_memory!(self.precision, "join"));
        launch_each!(self.gpu, kernel, length, one.pointer(), other.pointer(), activation, kept, output.pointer(), length as u64)?;
        Ok((output, before))
    }

    /// Also its own way back.
    pub(super) fn dropout(&self, dropout: &Dropout, key: u64, values: &Maps) -> Result<Maps, NetworkError> {
        let output = self.maps(values, values.pixels)?;
        let (length, (threshold, scale)) = (output.len(), dropout.threshold_and_scale());
        let kernel = in_memory!(self.precision, "dropout");
        launch_each!(self.gpu, kernel, length, values.pointer(), key, threshold, scale, output.pointer(), length as u64)?;
        Ok(output)
    }

    /// The sum over all pixels, of each channel: the gradient of a bias.
    pub(super) fn sum(&self, values: &Maps) -> Result<Buffer, NetworkError> {
        let (pixels, channels) = (values.all_pixels(), values.channels);
        let sums = self.pixel_sums(pixels, channels)?;
        let (count, width) = (pixels as u32, channels as i32);
        launch!(
            self.gpu,
            in_memory!(self.precision, "sum"),
            sums.blocks,
            LANES,
            values.pointer(),
            count,
            width,
            sums.length,
            sums.sums.pointer()
        )?;
        self.total(&sums, channels, 0)
    }

    fn pixel_sums(&self, pixels: usize, channels: usize) -> Result<PixelSums, NetworkError> {
        let length = pixels.div_ceil((pixels / SLICE).clamp(1, SLICES));
        let slices = pixels.div_ceil(length);
        let blocks = (channels.div_ceil(LANES.0 as usize) as u32, slices as u32, 1);
        Ok(PixelSums { blocks, length: length as u32, slices: slices as i32, sums: self.gpu.floats(2 * slices * channels)? })
    }

    /// The first or the second of both sums, over all slices.
    fn total(&self, sums: &PixelSums, channels: usize, which: i32) -> Result<Buffer, NetworkError> {
        let to = self.gpu.floats(channels)?;
        launch_each!(self.gpu, "all_slices_fp32", channels, sums.sums.pointer(), sums.slices, channels as i32, which, to.pointer())?;
        Ok(to)
    }

    /// Mean and variance of each channel of a batch.
    pub(super) fn statistics(&self, norm: &BatchNorm, input: &Maps) -> Result<Statistics, NetworkError> {
        let (pixels, channels) = (input.all_pixels(), norm.channels);
        let PixelSums { blocks, length, slices, sums } = self.pixel_sums(pixels, channels)?;
        let (count, width) = (pixels as u32, channels as i32);
        launch!(self.gpu, in_memory!(self.precision, "moments"), blocks, LANES, input.pointer(), count, width, length, sums.pointer())?;
        let floats = || self.gpu.floats(channels);
        let found = Statistics { channels, mean: floats()?, inverse: floats()?, variance: floats()? };
        let (mean, inverse, variance) = (found.mean.pointer(), found.inverse.pointer(), found.variance.pointer());
        let (kernel, epsilon) = (in_memory!(self.precision, "norm_statistics"), norm.epsilon);
        launch_each!(self.gpu, kernel, channels, sums.pointer(), slices, input.pointer(), count, epsilon, width, mean, inverse, variance)?;
        Ok(found)
    }

    /// Running statistics, as a batch norm with that epsilon normalises with them at inference.
    pub(super) fn running(&self, epsilon: f32, running: &Running) -> Result<Statistics, NetworkError> {
        let channels = running.mean.len();
        let (mean, variance) = (self.gpu.upload(&running.mean)?, self.gpu.upload(&running.variance)?);
        let inverse = self.gpu.floats(channels)?;
        launch_each!(self.gpu, "running_inverse", channels, variance.pointer(), epsilon, inverse.pointer(), channels as u64)?;
        Ok(Statistics { channels, mean, inverse, variance })
    }

    fn norm_of(norm: &BatchNorm, statistics: &Statistics, scale: &Buffer, shift: &Buffer) -> Norm {
        Norm {
            mean: statistics.mean.pointer(),
            inverse: statistics.inverse.pointer(),
            scale: scale.pointer(),
            shift: shift.pointer(),
            activation: norm.activation as i32,
        }
    }

    /// `activation(scale · (input − mean) · inverse + shift)`.
    pub(super) fn norm(
        &self,
        norm: &BatchNorm,
        statistics: &Statistics,
        (scale, shift): (&Buffer, &Buffer),
        input: &Maps,
    ) -> Result<Maps, NetworkError> {
        let output = self.maps(input, input.pixels)?;
        let (at, length, kernel) = (Self::norm_of(norm, statistics, scale, shift), output.len(), in_memory!(self.precision, "norm"));
        launch_each!(self.gpu, kernel, length, input.pointer(), at, norm.channels as i32, output.pointer(), length as u64)?;
        Ok(output)
    }

    /// The gradients of scale, shift and input.
    pub(super) fn norm_back(
        &self,
        norm: &BatchNorm,
        statistics: &Statistics,
        (scale, shift): (&Buffer, &Buffer),
        input: &Maps,
        gradient: &Maps,
    ) -> Result<(Buffer, Buffer, Maps), NetworkError> {
        let (pixels, channels) = (input.all_pixels(), norm.channels);
        let sums = self.pixel_sums(pixels, channels)?;
        let (at, count, width) = (Self::norm_of(norm, statistics, scale, shift), pixels as u32, channels as i32);
        let (values, given) = (input.pointer(), gradient.pointer());
        let kernel = in_memory!(self.precision, "norm_slopes");
        launch!(self.gpu, kernel, sums.blocks, LANES, values, given, at, count, width, sums.length, sums.sums.pointer())?;
        let (shift_gradient, scale_gradient) = (self.total(&sums, channels, 0)?, self.total(&sums, channels, 1)?);
        let output = self.maps(input, input.pixels)?;
        let (length, to, kernel) = (output.len(), output.pointer(), in_memory!(self.precision, "norm_back"));
        let (of_shift, of_scale) = (shift_gradient.pointer(), scale_gradient.pointer());
        launch_each!(self.gpu, kernel, length, values, given, at, of_shift, of_scale, count, width, to, length as u64)?;
        Ok((scale_gradient, shift_gradient, output))
    }

    /// Logits as fp32, as the last layer gives them unless it is an uncommon one.
    pub(super) fn to_floats(&self, maps: Maps, are_floats: bool) -> Result<Maps, NetworkError> {
        if are_floats || self.precision.bytes() == 4 {
            return Ok(maps);
        }
        let (length, floats) = (maps.len(), self.gpu.floats(maps.len())?);
        launch_each!(self.gpu, "to_fp32", length, maps.pointer(), floats.pointer(), length as u64)?;
        Ok(Maps::new(floats, maps.batch, maps.pixels, maps.channels))
    }

    /// Adds a batch's loss, times its examples, and how many are right to `report`, two `f64`; the gradient, times `share`.
    pub(super) fn loss(
        &self,
        logits: &Maps,
        labels: Pointer,
        loss_terms: &LossTerms,
        share: f32,
        report: &Buffer,
    ) -> Result<Maps, NetworkError> {
        let weights = loss_terms.class_weights.as_ref().map_or(Pointer::NULL, Buffer::pointer);
        let gradient = self.maps(logits, logits.pixels)?;
        let (batch, classes) = (logits.batch as i32, (logits.pixels * logits.channels) as i32);
        let (kernel, (blocks, threads), smoothing) = (in_memory!(self.precision, "loss"), ONE_BLOCK, loss_terms.label_smoothing);
        let (to, report) = (gradient.pointer(), report.pointer());
        launch!(self.gpu, kernel, blocks, threads, logits.pointer(), labels, weights, smoothing, share, batch, classes, to, report)?;
        Ok(gradient)
    }
}
