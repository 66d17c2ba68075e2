//! The backward pass of a pooled convolution over the non-zeros of its gradient.
//!
//! Behind a 2×2 window at most a quarter of the gradient is not zero, and ReLU zeroes half of that. Each non-zero `g` of filter `f` adds
//! `g * patch` to the gradient of `f`'s weights and `g * weights[f]` to the gradient of the patch. Filters are taken a few
//! at a time, so that their weights and weight gradients stay in the first-level cache while all pixels pass.

use super::{Conv, Kept, Partial, Tile, patches};
use crate::{
    architecture::MAX_WINDOW,
    scratch::{Scratch, sized},
    simd::{add_rows, for_each_level, multiply_add},
};

/// A non-zero of the gradient before pooling.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    /// Where its patch begins in what patches are read from.
    source: u32,
    /// Where its patch begins in the padded image.
    image: u32,
    filter: u32,
    value: f32,
}

/// Bytes of weights and weight gradients of the filters taken at once: they share 32 KiB with the patches.
const BLOCK_BYTES: usize = 20 * 1024;

pub(super) fn backward(
    conv: &Conv,
    weights_by_filter: &[f32],
    kept: &Kept<'_>,
    images: usize,
    gradient: &[f32],
    partial: &mut Partial,
    mut input_gradient: Option<&mut [f32]>,
    scratch: &mut Scratch,
) {
    let Scratch { image: buffer, columns, gradient: padded, entries, .. } = scratch;
    let (height, width) = conv.computed();
    let (output_len, input_len) = (conv.output_len(), conv.input_len());
    add_rows(gradient, &mut partial.bias);
    for image in 0..images {
        let tile = Tile { image, images: 1, row: 0, rows: height };
        let staged = conv.staged(kept.input, tile, buffer);
        let source = if conv.gathers_patches() {
            let columns = sized(columns, height * width * conv.pitch());
            patches::gather(conv, staged, 0, height, columns);
            &*columns
        } else {
            staged
        };
        let range = image * output_len..(image + 1) * output_len;
        let out = input_gradient.as_deref_mut().map(|out| &mut out[image * input_len..][..input_len]);
        let (gradient, winners) = (&gradient[range.clone()], &kept.winners[range]);
        match out {
            Some(out) if conv.is_padded() => {
                let padded = sized(padded, conv.padded_len());
                padded.fill(0.0);
                one_image(conv, weights_by_filter, source, gradient, winners, &mut partial.weights, Some(padded), entries);
                conv.crop(padded, out);
            }
            out => one_image(conv, weights_by_filter, source, gradient, winners, &mut partial.weights, out, entries),
        }
    }
}

fn one_image(
    conv: &Conv,
    weights_by_filter: &[f32],
    source: &[f32],
    gradient: &[f32],
    winners: &[u8],
    weights_gradient: &mut [f32],
    mut image_gradient: Option<&mut [f32]>,
    entries: &mut Vec<Entry>,
) {
    let pitch = conv.gradient_pitch();
    let is_gathered = conv.gathers_patches();
    let segment = conv.columns * conv.channels;
    let line = conv.padded_width * conv.channels;
    let per_filter = (pitch + if image_gradient.is_some() { conv.patch() } else { 0 }) * size_of::<f32>();
    let block = (BLOCK_BYTES / per_filter).clamp(1, conv.filters);
    let (source_rows, source_segment) = if is_gathered { (1, pitch) } else { (conv.rows, segment) };
    entries.resize(block.max(entries.len()), Entry::default());
    let places = Places::new(conv);
    for first in (0..conv.filters).step_by(block) {
        let last = (first + block).min(conv.filters);
        for pixel in 0..conv.out_height * conv.out_width {
            let range = pixel * conv.filters + first..pixel * conv.filters + last;
            let corner = starts(conv, pixel / conv.out_width * conv.pool, pixel % conv.out_width * conv.pool);
            let count = collect(&gradient[range.clone()], &winners[range], first, corner, &places, entries);
            let entries = &entries[..count];
            add_patches(entries, source, source_rows, source_segment, line, pitch, weights_gradient);
            if let Some(image_gradient) = image_gradient.as_deref_mut() {
                add_filters(entries, weights_by_filter, conv.rows, segment, line, image_gradient);
            }
        }
    }
}

/// Where the patches of a window's pixels begin, by place in the window, counted from the window's first.
struct Places {
    source: [u32; MAX_PLACES],
    image: [u32; MAX_PLACES],
}

/// Places in the largest window.
const MAX_PLACES: usize = MAX_WINDOW * MAX_WINDOW;

impl Places {
    fn new(conv: &Conv) -> Self {
        let mut places = Places { source: [0; MAX_PLACES], image: [0; MAX_PLACES] };
        for place in 0..conv.pool * conv.pool {
            let (source, image) = starts(conv, place / conv.pool, place % conv.pool);
            (places.source[place], places.image[place]) = (source, image);
        }
        places
    }
}

/// Where the patch of an output before pooling begins, in what patches are read from and in the padded image.
fn starts(conv: &Conv, y: usize, x: usize) -> (u32, u32) {
    let (_, width) = conv.computed();
    let image = (y * conv.stride * conv.padded_width + x * conv.stride) * conv.channels;
    let source = if conv.gathers_patches() { (y * width + x) * conv.pitch() } else { image };
    (source as u32, image as u32)
}

/// Writes the non-zeros of some filters at one pixel to the front of `entries`; gives their number. Without a branch on
/// the values, which no processor could foresee.
fn collect(gradient: &[f32], winners: &[u8], first: usize, corner: (u32, u32), places: &Places, entries: &mut [Entry]) -> usize {
    let mut count = 0;
    for (index, (value, winner)) in gradient.iter().zip(winners).enumerate() {
        let winner = usize::from(*winner);
        entries[count] = Entry {
            source: corner.0 + places.source[winner],
            image: corner.1 + places.image[winner],
            filter: (first + index) as u32,
            value: *value,
        };
        count += usize::from(*value != 0.0);
    }
    count
}

for_each_level! {
    /// `weights_gradient[filter] += value * patch` for each entry; a patch is `rows` pieces of `segment` values, `line` apart.
    fn add_patches(entries: &[Entry], source: &[f32], rows: usize, segment: usize, line: usize, pitch: usize, weights_gradient: &mut [f32]) {
        for entry in entries {
            let to = &mut weights_gradient[entry.filter as usize * pitch..][..rows * segment];
            for (row, to) in to.chunks_exact_mut(segment).enumerate() {
                let from = &source[entry.source as usize + row * line..][..segment];
                for (to, from) in to.iter_mut().zip(from) {
                    *to = multiply_add::<FMA>(entry.value, *from, *to);
                }
            }
        }
    }
}

for_each_level! {
    /// `patch of image_gradient += value * weights[filter]` for each entry.
    fn add_filters(entries: &[Entry], weights: &[f32], rows: usize, segment: usize, line: usize, image_gradient: &mut [f32]) {
        for entry in entries {
            let from = &weights[entry.filter as usize * rows * segment..][..rows * segment];
            for (row, from) in from.chunks_exact(segment).enumerate() {
                let to = &mut image_gradient[entry.image as usize + row * line..][..segment];
                for (to, from) in to.iter_mut().zip(from) {
                    *to = multiply_add::<FMA>(entry.value, *from, *to);
                }
            }
        }
    }
}
