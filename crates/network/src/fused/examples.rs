//! A set of examples on the GPU, and what a step sees of it.

use cudarc::driver::{DeviceRepr, result};

use super::{
    Done, Maps,
    gpu::{Buffer, Gpu, Pointer, in_memory, launch_each},
    layers::Operations,
};
use crate::{Sight, accelerator::WholeSet, architecture::Shape, examples::Values};

// SAFETY: six `i32` without padding, in C's order.
unsafe impl DeviceRepr for Sight {}

/// How images are seen, as `kernels/images.cuh` has it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Images {
    height: i32,
    width: i32,
    channels: i32,
    out_height: i32,
    out_width: i32,
    cutout: i32,
}

/// A set on the GPU. It is let go when all that reads it is done.
pub(super) struct Set {
    count: usize,
    values: Buffer,
    /// A scale and then a shift for each channel, where the values are bytes.
    scaling: Option<Buffer>,
    /// Of each example, and the colour of what is cut out of one: of a set that stays.
    labels: Option<Buffer>,
    fill: Option<Buffer>,
    shape: Shape,
    cutout: usize,
}

impl Set {
    /// Takes values to the GPU.
    pub(super) fn of(gpu: &Gpu, values: &Values, shape: Shape) -> Done<Self> {
        let (values, scaling, length) = match values {
            Values::Floats(floats) => (gpu.upload_aside(floats.as_ref())?, None, floats.len()),
            Values::Pixels { bytes, normalisation } => {
                let scaling = [&normalisation.scale[..], &normalisation.shift].concat();
                (gpu.upload_aside(bytes.as_ref())?, Some(gpu.upload_aside(&scaling)?), bytes.len())
            }
        };
        Ok(Set { count: length / shape.len(), values, scaling, labels: None, fill: None, shape, cutout: 0 })
    }

    /// The same of a set that stays, if it takes no more than half of the memory that is free.
    pub(super) fn hold(gpu: &Gpu, whole: &WholeSet) -> Done<Option<Self>> {
        let bytes = match &whole.values {
            Values::Pixels { bytes, .. } => bytes.len(),
            Values::Floats(floats) => 4 * floats.len(),
        };
        let is_small = result::mem_get_info().is_ok_and(|(free, _)| bytes <= free / 2);
        if !is_small {
            return Ok(None);
        }
        let (labels, fill) = (Some(gpu.upload_aside(&whole.labels)?), Some(gpu.upload_aside(&whole.fill)?));
        Ok(Some(Set { labels, fill, cutout: whole.cutout, ..Set::of(gpu, &whole.values, whole.shape)? }))
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// All examples as they are.
    pub(super) fn all(&self, operations: &Operations) -> Done<Maps> {
        self.see(operations, Pointer::NULL, self.count, self.shape)
    }

    /// Some examples, or all where `sights` is null, as images of that shape.
    pub(super) fn see(&self, operations: &Operations, sights: Pointer, count: usize, shape: Shape) -> Done<Maps> {
        let (gpu, precision) = (&operations.gpu, operations.precision);
        let (length, channels) = (count * shape.len(), shape.channels());
        let to = Maps::new(gpu.take(length, precision.bytes())?, count, shape.len() / channels, channels).learnt_if(false);
        let Some(scaling) = &self.scaling else {
            let features = self.shape.len() as i32;
            launch_each!(gpu, in_memory!(precision, "take"), length, self.values.pointer(), sights, features, to.pointer(), length as u64)?;
            return Ok(to);
        };
        let sides = |shape: Shape| match shape {
            Shape::Image { height, width, .. } => (height as i32, width as i32),
            Shape::Features(_) => (1, 1),
        };
        let ((height, width), (out_height, out_width)) = (sides(self.shape), sides(shape));
        let at = Images { height, width, channels: channels as i32, out_height, out_width, cutout: self.cutout as i32 };
        let (values, scaling) = (self.values.pointer(), scaling.pointer());
        let fill = self.fill.as_ref().map_or(Pointer::NULL, Buffer::pointer);
        launch_each!(gpu, in_memory!(precision, "see"), length, values, sights, fill, scaling, at, to.pointer(), length as u64)?;
        Ok(to)
    }

    /// The labels of some examples; a set that stays has them.
    pub(super) fn labels(&self, gpu: &Gpu, sights: Pointer, count: usize) -> Done<Buffer> {
        let (labels, set) = (gpu.take(count, 4)?, self.labels.as_ref().map_or(Pointer::NULL, Buffer::pointer));
        launch_each!(gpu, "labels_of", count, set, sights, labels.pointer(), count as u64)?;
        Ok(labels)
    }
}
