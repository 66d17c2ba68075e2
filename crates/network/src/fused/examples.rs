//! A set of examples on the GPU, and what a step sees of it.

use cudarc::driver::{DeviceRepr, result};

use super::{
    Done, Maps,
    gpu::{Buffer, Gpu, Pointer, launch_each},
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
    /// Scale, shift and the cutout's colour of each channel, where the values are bytes.
    pixels: Option<(Buffer, Buffer, Buffer)>,
    labels: Option<Buffer>,
    shape: Shape,
    cutout: usize,
    /// Of all examples; they are let go together with the set.
    sights: Option<Buffer>,
}

impl Set {
    /// Takes values to the GPU; the colour of what is cut out matters only where something is.
    pub(super) fn of(gpu: &Gpu, values: &Values, shape: Shape, whole: Option<&WholeSet>) -> Done<Self> {
        let fill = whole.map(|whole| whole.fill.clone()).filter(|fill| !fill.is_empty()).unwrap_or_else(|| vec![0; shape.channels()]);
        let (held, pixels, count) = match values {
            Values::Floats(floats) => (gpu.upload_aside(floats.as_ref())?, None, floats.len()),
            Values::Pixels { bytes, normalisation } => {
                let (scale, shift) = (gpu.upload_aside(&normalisation.scale)?, gpu.upload_aside(&normalisation.shift)?);
                (gpu.upload_aside(bytes.as_ref())?, Some((scale, shift, gpu.upload_aside(&fill)?)), bytes.len())
            }
        };
        let labels = whole.map(|whole| gpu.upload_aside(&whole.labels)).transpose()?;
        Ok(Set {
            count: count / shape.len(),
            values: held,
            pixels,
            labels,
            shape,
            cutout: whole.map_or(0, |whole| whole.cutout),
            sights: None,
        })
    }

    /// The same of a set that stays, if it takes no more than half of the memory that is free.
    pub(super) fn hold(gpu: &Gpu, whole: &WholeSet) -> Done<Option<Self>> {
        let bytes = match &whole.values {
            Values::Pixels { bytes, .. } => bytes.len(),
            Values::Floats(floats) => 4 * floats.len(),
        };
        let is_small = result::mem_get_info().is_ok_and(|(free, _)| bytes <= free / 2);
        is_small.then(|| Set::of(gpu, &whole.values, whole.shape, Some(whole))).transpose()
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// All examples as they are.
    pub(super) fn all(&mut self, operations: &Operations) -> Done<Maps> {
        let sights: Vec<Sight> = (0..self.count as i32).map(|row| Sight { row, ..Sight::default() }).collect();
        let sights = operations.gpu.upload_aside(&sights)?;
        let maps = self.see(operations, sights.pointer(), self.count, self.shape)?;
        self.sights = Some(sights);
        Ok(maps)
    }

    /// Some examples, as images of that shape.
    pub(super) fn see(&self, operations: &Operations, sights: Pointer, count: usize, shape: Shape) -> Done<Maps> {
        let (gpu, memory) = (&operations.gpu, operations.precision.memory());
        let (length, channels) = (count * shape.len(), shape.channels());
        let to = Maps::new(gpu.take(length, operations.precision.bytes())?, count, shape.len() / channels, channels).learnt_if(false);
        let Some((scale, shift, fill)) = &self.pixels else {
            let features = self.shape.len() as i32;
            launch_each!(gpu, format!("take_{memory}"), length, self.values.pointer(), sights, features, to.pointer(), length as u64)?;
            return Ok(to);
        };
        let sides = |shape: Shape| match shape {
            Shape::Image { height, width, .. } => (height as i32, width as i32),
            Shape::Features(_) => (1, 1),
        };
        let ((height, width), (out_height, out_width)) = (sides(self.shape), sides(shape));
        let at = Images { height, width, channels: channels as i32, out_height, out_width, cutout: self.cutout as i32 };
        let (values, fill, scale, shift) = (self.values.pointer(), fill.pointer(), scale.pointer(), shift.pointer());
        launch_each!(gpu, format!("see_{memory}"), length, values, sights, fill, scale, shift, at, to.pointer(), length as u64)?;
        Ok(to)
    }

    /// The labels of some examples; a set that stays has them.
    pub(super) fn labels(&self, gpu: &Gpu, sights: Pointer, count: usize) -> Done<Buffer> {
        let (labels, set) = (gpu.take(count, 4)?, self.labels.as_ref().map_or(Pointer::NULL, Buffer::pointer));
        launch_each!(gpu, "labels_of", count, set, sights, labels.pointer(), count as u64)?;
        Ok(labels)
    }
}
