//! The backward pass of a pooled convolution over the non-zeros of its gradient.
//!
//! Behind a 2×2 window at most a quarter of the gradient is not zero, and ReLU zeroes half of that. Each non-zero `g` of filter `f` adds
//! `g * patch` to the gradient of `f`'s weights and `g * weights[f]` to the gradient of the patch. Both are sums of scaled rows, so
//! each is one loop over a list that keeps its sum in registers: the list of one filter for the weights' gradient, that of
//! one place in the image for the input's. [`blocks`] takes few channels of many pixels at a time, [`rows`] whole rows of a patch.

mod blocks;
mod rows;

use std::ops::Range;

use super::{Conv, Kept, Sums};
use crate::{
    scratch::{Aligned, Scratch},
    simd::add_rows,
};

/// A non-zero and where the row that it scales begins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    at: u32,
    value: f32,
}

/// Where a list lies among the entries, and where its sum goes.
#[derive(Clone, Copy)]
struct List {
    start: usize,
    end: usize,
    target: usize,
}

/// Lists of entries.
#[derive(Default)]
pub(crate) struct Lists {
    entries: Vec<Entry>,
    lists: Vec<List>,
}

impl Lists {
    /// Makes room for so many entries behind `start`.
    fn reserve(&mut self, start: usize, count: usize) -> &mut [Entry] {
        if self.entries.len() < start + count {
            self.entries.resize(start + count, Entry::default());
        }
        &mut self.entries[start..start + count]
    }

    /// Empties them: one list for each target, with room for `capacity` entries.
    fn reset(&mut self, targets: impl Iterator<Item = usize>, capacity: usize) {
        // One more than the capacity: where a zero behind a full list is written before it is not counted.
        let room = capacity + 1;
        self.lists.clear();
        self.lists.extend(targets.enumerate().map(|(index, target)| List { start: index * room, end: index * room, target }));
        self.reserve(0, self.lists.len() * room);
    }

    /// Appends the entry if it is not zero; without a branch, which no processor could foresee.
    #[inline(always)]
    fn push(&mut self, list: usize, at: usize, value: f32) {
        let end = &mut self.lists[list].end;
        self.entries[*end] = Entry { at: at as u32, value };
        *end += usize::from(value != 0.0);
    }

    /// Appends one list a target with the entries of its index that are not zero. Lists that are appended lie one behind the
    /// other: read as one stream, they are in the cache before they are asked for.
    fn append(&mut self, targets: impl ExactSizeIterator<Item = usize>, entries: impl ExactSizeIterator<Item = (u8, Entry)>) {
        let mut start = self.lists.last().map_or(0, |list| list.end);
        let (lists, room) = (targets.len(), entries.len() + 1);
        let sorted = self.reserve(start, lists * room);
        let mut counts = [0; 256];
        if lists <= 4 {
            // In one register: each count would have to wait for the last one's way through memory.
            let mut packed = 0u64;
            for (list, entry) in entries {
                let shift = u32::from(list) % 4 * 16;
                sorted[usize::from(list) * room + (packed >> shift) as usize % 0x1_0000] = entry;
                packed += u64::from(entry.value != 0.0) << shift;
            }
            (0..4).for_each(|list| counts[list] = (packed >> (list * 16)) as usize % 0x1_0000);
        } else {
            for (list, entry) in entries {
                let count = &mut counts[usize::from(list)];
                sorted[usize::from(list) * room + *count] = entry;
                *count += usize::from(entry.value != 0.0);
            }
        }
        let mut end = counts[0];
        for (list, count) in counts[..lists].iter().enumerate().skip(1) {
            sorted.copy_within(list * room..list * room + count, end);
            end += count;
        }
        for (target, count) in targets.zip(counts) {
            self.lists.push(List { start, end: start + count, target });
            start += count;
        }
    }

    /// Each list with its target.
    fn iter(&self) -> impl Iterator<Item = (&[Entry], usize)> + Clone {
        self.lists.iter().map(|list| (&self.entries[list.start..list.end], list.target))
    }
}

/// The weights as the backward pass reads them.
pub(super) fn reordered_weights(conv: &Conv, weights: &[f32]) -> Aligned {
    if blocks::are_for(conv) { blocks::reordered_weights(conv, weights) } else { conv.weights_by_filter(weights) }
}

/// Values of the weights' gradient as the backward pass sums it up.
pub(super) fn partial_len(conv: &Conv) -> usize {
    if blocks::are_for(conv) { blocks::weights_len(conv) } else { conv.filters * conv.rows * conv.row_pitch() }
}

/// Writes the summed gradient in the order of the weights, `[patch, filters]`.
pub(super) fn weights_gradient(conv: &Conv, summed: &[f32], out: &mut [f32]) {
    if blocks::are_for(conv) { blocks::weights_gradient(conv, summed, out) } else { conv.gradient_by_patch(summed, out) }
}

/// `weights` are the [`reordered_weights`].
pub(super) fn backward(conv: &Conv, weights: &[f32], kept: &Kept<'_>, gradient: &[f32], sums: &mut Sums<'_>, scratch: &mut Scratch) {
    add_rows(gradient, &mut sums.partial.bias);
    let backward = if blocks::are_for(conv) { blocks::backward } else { rows::backward };
    backward(conv, weights, kept, gradient, sums, scratch);
}

/// How far the pixels of an image lie apart, and the filters of the weights.
#[derive(Clone, Copy)]
struct Strides {
    pixel: usize,
    filter: usize,
}

impl Strides {
    /// Where the patch of an output before pooling begins in the padded image.
    fn corner(self, conv: &Conv, y: usize, x: usize) -> usize {
        (y * conv.padded_width + x) * conv.stride * self.pixel
    }

    /// Values from one padded image to the next.
    fn image(self, conv: &Conv) -> usize {
        conv.padded_height * conv.padded_width * self.pixel
    }
}

/// Some images' gradient behind the pooling, and the place of each value in its window.
struct Sparse<'a> {
    values: &'a [f32],
    winners: &'a [u8],
}

impl<'a> Sparse<'a> {
    fn of(conv: &Conv, images: Range<usize>, gradient: &'a [f32], winners: &'a [u8]) -> Self {
        let range = images.start * conv.output_len()..images.end * conv.output_len();
        Sparse { values: &gradient[range.clone()], winners: &winners[range] }
    }

    /// The values and winners of each pixel behind the pooling, image after image.
    fn pixels(&self, conv: &Conv) -> impl Iterator<Item = (&[f32], &[u8])> {
        self.values.chunks_exact(conv.filters).zip(self.winners.chunks_exact(conv.filters))
    }

    /// For each `lines` lines of windows, of all images in a row, one list a filter: where each patch begins, and its factor.
    fn list_by_filter(&self, conv: &Conv, strides: Strides, lines: usize, lists: &mut Lists) {
        let parts = (self.values.len() / (conv.out_width * conv.filters)).div_ceil(lines);
        lists.reset((0..parts).flat_map(|_| (0..conv.filters).map(|filter| filter * strides.filter)), lines * conv.out_width);
        let mut places = [0; 256];
        for (place, start) in places.iter_mut().enumerate().take(conv.pool * conv.pool) {
            *start = strides.corner(conv, place / conv.pool, place % conv.pool);
        }
        for (pixel, (values, winners)) in self.pixels(conv).enumerate() {
            let (line, x) = (pixel / conv.out_width, pixel % conv.out_width);
            let (image, y) = (line / conv.out_height, line % conv.out_height);
            let first = image * strides.image(conv) + strides.corner(conv, y * conv.pool, x * conv.pool);
            let list = line / lines * conv.filters;
            for (filter, (value, winner)) in values.iter().zip(winners).enumerate() {
                lists.push(list + filter, first + places[usize::from(*winner)], *value);
            }
        }
    }

    /// One list a place before pooling, window by window: where the weights of each of these filters begin, and its factor.
    fn list_by_place(&self, conv: &Conv, strides: Strides, filters: Range<usize>, lists: &mut Lists) {
        lists.lists.clear();
        for (pixel, (values, winners)) in self.pixels(conv).enumerate() {
            let (line, x) = (pixel / conv.out_width, pixel % conv.out_width);
            let (image, y) = (line / conv.out_height, line % conv.out_height);
            let at = |place| strides.corner(conv, y * conv.pool + place / conv.pool, x * conv.pool + place % conv.pool);
            let targets = (0..conv.pool * conv.pool).map(|place| image * strides.image(conv) + at(place));
            let window = values[filters.clone()].iter().zip(&winners[filters.clone()]);
            let entry = |(index, (value, winner)): (usize, (&f32, &u8))| {
                (*winner, Entry { at: ((filters.start + index) * strides.filter) as u32, value: *value })
            };
            lists.append(targets, window.enumerate().map(entry));
        }
    }
}
