//! The backward pass of a pooled convolution over the non-zeros of its gradient.
//!
//! Behind a 2×2 window at most a quarter of the gradient is not zero, and ReLU zeroes half of that. Each non-zero `g` of filter `f` adds
//! `g * patch` to the gradient of `f`'s weights and `g * weights[f]` to the gradient of the patch. Both are sums of scaled rows, so
//! each is one loop over a list that keeps its sum in registers: the list of one filter for the weights' gradient, that of
//! one place in the image for the input's.
//!
//! Rows of a patch are taken as whole vectors of [`LANES`] values. What a vector reads past the end of a row meets zeros in the
//! weights, and lands in columns of the weights' gradient that [`Conv::weights_gradient`] leaves out.

use super::{Conv, Kept, Sums, Tile};
use crate::{
    scratch::{Aligned, Scratch, is_aligned, sized},
    simd::{add_rows, for_each_level, multiply_add},
};

/// Values that are added at once.
pub(super) const LANES: usize = 16;

/// A non-zero and where the row that it scales begins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    at: u32,
    value: f32,
}

/// Lists of entries of a fixed capacity each.
#[derive(Default)]
pub(crate) struct Lists {
    entries: Vec<Entry>,
    counts: Vec<u32>,
    capacity: usize,
}

impl Lists {
    fn reset(&mut self, lists: usize, capacity: usize) {
        // One more than the capacity: where a zero behind a full list is written before it is not counted.
        self.capacity = capacity + 1;
        self.counts.clear();
        self.counts.resize(lists, 0);
        let len = lists * self.capacity;
        if self.entries.len() < len {
            self.entries.resize(len, Entry::default());
        }
    }

    /// Appends the entry if it is not zero; without a branch, which no processor could foresee.
    #[inline(always)]
    fn push(&mut self, list: usize, at: usize, value: f32) {
        let count = &mut self.counts[list];
        self.entries[list * self.capacity + *count as usize] = Entry { at: at as u32, value };
        *count += u32::from(value != 0.0);
    }

    fn list(&self, list: usize) -> &[Entry] {
        &self.entries[list * self.capacity..][..self.counts[list] as usize]
    }
}

impl Conv {
    /// Values of a row of a patch, up to whole vectors.
    pub(super) fn row_pitch(&self) -> usize {
        (self.columns * self.channels).next_multiple_of(LANES)
    }

    /// The weights as `[filters, rows, row_pitch]`, with zeros behind each row.
    pub(super) fn weights_by_filter(&self, weights: &[f32]) -> Aligned {
        let (row, pitch) = (self.columns * self.channels, self.row_pitch());
        let mut by_filter = Aligned::zeros(self.filters * self.rows * pitch);
        let out = by_filter.values_mut();
        for (k, values) in weights.chunks_exact(self.filters).enumerate() {
            for (filter, value) in values.iter().enumerate() {
                out[(filter * self.rows + k / row) * pitch + k % row] = *value;
            }
        }
        by_filter
    }

    /// Whether vectors reach past the rows of a patch, and so past the end of an image.
    fn overreaches(&self) -> bool {
        self.row_pitch() != self.columns * self.channels
    }
}

pub(super) fn backward(
    conv: &Conv,
    weights_by_filter: &[f32],
    kept: &Kept<'_>,
    gradient: &[f32],
    sums: &mut Sums<'_>,
    scratch: &mut Scratch,
) {
    let Scratch { image: buffer, columns, gradient: padded, lists, .. } = scratch;
    let (height, _) = conv.computed();
    let (output_len, input_len) = (conv.output_len(), conv.input_len());
    let line = conv.padded_width * conv.channels;
    add_rows(gradient, &mut sums.partial.bias);
    for image in 0..gradient.len() / output_len {
        let tile = Tile { image, images: 1, row: 0, rows: height };
        let mut staged = conv.staged(kept.input, tile, buffer);
        if conv.overreaches() || !is_aligned(staged) {
            let longer = sized(columns, staged.len() + LANES);
            longer[..staged.len()].copy_from_slice(staged);
            longer[staged.len()..].fill(0.0);
            staged = longer;
        }
        let range = image * output_len..(image + 1) * output_len;
        let (gradient, winners) = (&gradient[range.clone()], &kept.winners[range]);
        list_by_filter(conv, gradient, winners, lists);
        add_patches(lists, staged, conv.filters, conv.rows, conv.row_pitch(), line, &mut sums.partial.weights);
        let Some(out) = sums.input.as_deref_mut() else { continue };
        let out = &mut out[image * input_len..][..input_len];
        list_by_place(conv, gradient, winners, lists);
        let padded = sized(padded, conv.padded_len() + LANES);
        padded.fill(0.0);
        add_filters(conv, lists, weights_by_filter, padded);
        conv.crop(padded, out);
    }
}

/// Where the patch of an output before pooling begins in the padded image.
fn corner(conv: &Conv, y: usize, x: usize) -> usize {
    (y * conv.stride * conv.padded_width + x * conv.stride) * conv.channels
}

/// One list a filter: where each patch begins, and its factor.
fn list_by_filter(conv: &Conv, gradient: &[f32], winners: &[u8], lists: &mut Lists) {
    lists.reset(conv.filters, conv.out_height * conv.out_width);
    let mut places = [0; 256];
    for (place, start) in places.iter_mut().enumerate().take(conv.pool * conv.pool) {
        *start = corner(conv, place / conv.pool, place % conv.pool);
    }
    let pixels = gradient.chunks_exact(conv.filters).zip(winners.chunks_exact(conv.filters)).enumerate();
    for (pixel, (gradient, winners)) in pixels {
        let first = corner(conv, pixel / conv.out_width * conv.pool, pixel % conv.out_width * conv.pool);
        for (filter, (value, winner)) in gradient.iter().zip(winners).enumerate() {
            lists.push(filter, first + places[usize::from(*winner)], *value);
        }
    }
}

/// One list a place before pooling, window by window: where each filter's weights begin, and its factor.
fn list_by_place(conv: &Conv, gradient: &[f32], winners: &[u8], lists: &mut Lists) {
    let window = conv.pool * conv.pool;
    lists.reset(conv.out_height * conv.out_width * window, conv.filters);
    let pitch = conv.rows * conv.row_pitch();
    let pixels = gradient.chunks_exact(conv.filters).zip(winners.chunks_exact(conv.filters)).enumerate();
    for (pixel, (gradient, winners)) in pixels {
        for (filter, (value, winner)) in gradient.iter().zip(winners).enumerate() {
            lists.push(pixel * window + usize::from(*winner), filter * pitch, *value);
        }
    }
}

/// The most vectors whose sum is kept in registers at once: of one row, and of each of three rows where registers are
/// [wide](for_each_level) and where they are not.
const VECTORS: usize = 6;
const VECTORS_OF_THREE: usize = 2;

/// Rows of values that are `source_line` apart in what is read and `sums_line` in what is added to; each `skip` values further on.
#[derive(Clone, Copy)]
struct Rows {
    skip: usize,
    source_line: usize,
    sums_line: usize,
}

/// `sums[r] += Σ value * source[at + r * source_line ..]` over the entries, for `R` rows of `N` vectors. A fused multiply-add takes
/// four cycles, so few vectors are summed in several `WAYS`, entry by entry in turn, which add up at the end.
///
/// # Safety
///
/// All rows of all entries lie within `source`.
#[inline(always)]
unsafe fn add_scaled_rows<const FMA: bool, const R: usize, const N: usize, const WAYS: usize>(
    entries: &[Entry],
    source: &[f32],
    rows: Rows,
    sums: &mut [f32],
) {
    let mut totals = [[[[0.0f32; LANES]; N]; R]; WAYS];
    let (turns, rest) = entries.as_chunks::<WAYS>();
    for turn in turns {
        for (entry, totals) in turn.iter().zip(&mut totals) {
            // SAFETY: as the caller says.
            unsafe { add_entry::<FMA, R, N>(entry, source, rows, totals) };
        }
    }
    for entry in rest {
        // SAFETY: as above.
        unsafe { add_entry::<FMA, R, N>(entry, source, rows, &mut totals[0]) };
    }
    for row in 0..R {
        let sums = sums[rows.skip + row * rows.sums_line..][..N * LANES].as_chunks_mut::<LANES>().0;
        for totals in &totals {
            for (sums, total) in sums.iter_mut().zip(&totals[row]) {
                for (sum, total) in sums.iter_mut().zip(total) {
                    *sum += *total;
                }
            }
        }
    }
}

/// # Safety
///
/// As [`add_scaled_rows`].
#[inline(always)]
unsafe fn add_entry<const FMA: bool, const R: usize, const N: usize>(
    entry: &Entry,
    source: &[f32],
    rows: Rows,
    totals: &mut [[[f32; LANES]; N]; R],
) {
    for (row, total) in totals.iter_mut().enumerate() {
        let at = entry.at as usize + rows.skip + row * rows.source_line;
        debug_assert!(at + N * LANES <= source.len());
        // SAFETY: as the caller says.
        let from = unsafe { &*source.as_ptr().add(at).cast::<[[f32; LANES]; N]>() };
        for (total, from) in total.iter_mut().zip(from) {
            for (total, from) in total.iter_mut().zip(from) {
                *total = multiply_add::<FMA>(entry.value, *from, *total);
            }
        }
    }
}

/// The same for `R` rows of any number of vectors, `pitch` values in all.
///
/// # Safety
///
/// As [`add_scaled_rows`].
#[inline(always)]
unsafe fn add_scaled<const FMA: bool, const WIDE: bool, const R: usize>(
    entries: &[Entry],
    source: &[f32],
    (source_line, sums_line): (usize, usize),
    pitch: usize,
    sums: &mut [f32],
) {
    let is_roomy = WIDE || R == 1;
    let most = if is_roomy { VECTORS } else { VECTORS_OF_THREE };
    for skip in (0..pitch).step_by(most * LANES) {
        let rows = Rows { skip, source_line, sums_line };
        // SAFETY: as the caller says.
        unsafe {
            match ((pitch - skip) / LANES).min(most) {
                1 if !is_roomy => add_scaled_rows::<FMA, R, 1, 2>(entries, source, rows, sums),
                2 if !is_roomy => add_scaled_rows::<FMA, R, 2, 1>(entries, source, rows, sums),
                1 => add_scaled_rows::<FMA, R, 1, 4>(entries, source, rows, sums),
                2 => add_scaled_rows::<FMA, R, 2, 2>(entries, source, rows, sums),
                3 => add_scaled_rows::<FMA, R, 3, 2>(entries, source, rows, sums),
                4 => add_scaled_rows::<FMA, R, 4, 1>(entries, source, rows, sums),
                5 => add_scaled_rows::<FMA, R, 5, 1>(entries, source, rows, sums),
                _ => add_scaled_rows::<FMA, R, VECTORS, 1>(entries, source, rows, sums),
            }
        }
    }
}

for_each_level! {
    /// Adds each filter's patches to its weights' gradient, `[filters, rows, pitch]`.
    fn add_patches(lists: &Lists, image: &[f32], filters: usize, rows: usize, pitch: usize, line: usize, weights_gradient: &mut [f32]) {
        for filter in 0..filters {
            let entries = lists.list(filter);
            let sums = &mut weights_gradient[filter * rows * pitch..][..rows * pitch];
            // SAFETY: the lists hold corners of patches, whose rows lie within the image and the vector of zeros behind it.
            unsafe {
                if rows == 3 {
                    add_scaled::<FMA, WIDE, 3>(entries, image, (line, pitch), pitch, sums);
                } else {
                    for row in 0..rows {
                        add_scaled::<FMA, WIDE, 1>(entries, &image[row * line..], (0, 0), pitch, &mut sums[row * pitch..]);
                    }
                }
            }
        }
    }
}

for_each_level! {
    /// Adds to the patch at each place the weights of its filters. Row by row of the kernel, so that the rows of all filters'
    /// weights that are in use fit the first-level cache.
    fn add_filters(conv: &Conv, lists: &Lists, weights_by_filter: &[f32], image_gradient: &mut [f32]) {
        let pitch = conv.row_pitch();
        let line = conv.padded_width * conv.channels;
        let window = conv.pool * conv.pool;
        for row in 0..conv.rows {
            for list in 0..conv.out_height * conv.out_width * window {
                let entries = lists.list(list);
                if entries.is_empty() {
                    continue;
                }
                let (pixel, place) = (list / window, list % window);
                let y = pixel / conv.out_width * conv.pool + place / conv.pool;
                let x = pixel % conv.out_width * conv.pool + place % conv.pool;
                let sums = &mut image_gradient[corner(conv, y, x) + row * line..];
                // SAFETY: the lists hold the beginnings of filters, each of which has this row.
                unsafe { add_scaled::<FMA, WIDE, 1>(entries, &weights_by_filter[row * pitch..], (0, 0), pitch, sums) };
            }
        }
    }
}
