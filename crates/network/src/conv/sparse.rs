//! The backward pass of a pooled convolution over the non-zeros of its gradient.
//!
//! Behind a 2×2 window at most a quarter of the gradient is not zero, and ReLU zeroes half of that. Each non-zero `g` of filter `f` adds
//! `g * patch` to the gradient of `f`'s weights and `g * weights[f]` to the gradient of the patch. Both are sums of scaled rows, so
//! each is one loop over a list that keeps its sum in registers: the list of one filter for the weights' gradient, that of
//! one place in the image for the input's.
//!
//! Rows of a patch are taken as whole vectors of [`LANES`] values. What a vector reads past the end of a row meets zeros in the
//! weights, and lands in columns of the weights' gradient that [`Conv::weights_gradient`] leaves out.

use std::ops::Range;

use super::{Conv, Kept, Sums};
use crate::{
    partition::CHUNK,
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
    /// Where each list's sum goes.
    targets: Vec<usize>,
    capacity: usize,
}

impl Lists {
    /// Empties them: one list for each target.
    fn reset(&mut self, targets: impl Iterator<Item = usize>, capacity: usize) {
        // One more than the capacity: where a zero behind a full list is written before it is not counted.
        self.capacity = capacity + 1;
        self.targets.clear();
        self.targets.extend(targets);
        self.counts.clear();
        self.counts.resize(self.targets.len(), 0);
        let len = self.targets.len() * self.capacity;
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

    /// Each list with its target.
    fn iter(&self) -> impl Iterator<Item = (&[Entry], usize)> + Clone {
        let lists = self.entries.chunks_exact(self.capacity).zip(&self.counts).zip(&self.targets);
        lists.map(|((entries, count), target)| (&entries[..*count as usize], *target))
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

/// So many images are taken at once that a filter's list may come to this length: fewer entries are not worth the way of their sum to the
/// registers and back, more do not fit the first-level cache.
const ENTRIES: usize = 64;

pub(super) fn backward(
    conv: &Conv,
    weights_by_filter: &[f32],
    kept: &Kept<'_>,
    gradient: &[f32],
    sums: &mut Sums<'_>,
    scratch: &mut Scratch,
) {
    let Scratch { image: buffer, columns, gradient: padded, lists, .. } = scratch;
    let (output_len, input_len) = (conv.output_len(), conv.input_len());
    add_rows(gradient, &mut sums.partial.bias);
    let together = ENTRIES.div_ceil(conv.out_height * conv.out_width).min(CHUNK);
    for tile in conv.whole_images(gradient.len() / output_len, together) {
        let mut staged = conv.staged(kept.input, tile, buffer);
        if conv.overreaches() || !is_aligned(staged) {
            let longer = sized(columns, staged.len() + LANES);
            longer[..staged.len()].copy_from_slice(staged);
            longer[staged.len()..].fill(0.0);
            staged = longer;
        }
        let range = tile.image * output_len..(tile.image + tile.images) * output_len;
        let sparse = Sparse { values: &gradient[range.clone()], winners: &kept.winners[range] };
        sparse.list_by_filter(conv, lists);
        add_patches(conv, lists, staged, &mut sums.partial.weights);
        let Some(out) = sums.input.as_deref_mut() else { continue };
        let out = &mut out[tile.image * input_len..][..tile.images * input_len];
        let padded = sized(padded, tile.images * conv.padded_len() + LANES);
        padded.fill(0.0);
        for first in (0..conv.filters).step_by(FILTERS) {
            sparse.list_by_place(conv, first..conv.filters.min(first + FILTERS), lists);
            add_filters(conv, lists, weights_by_filter, padded);
        }
        padded.chunks_exact(conv.padded_len()).zip(out.chunks_exact_mut(input_len)).for_each(|(padded, out)| conv.crop(padded, out));
    }
}

/// Where the patch of an output before pooling begins in the padded image.
fn corner(conv: &Conv, y: usize, x: usize) -> usize {
    (y * conv.stride * conv.padded_width + x * conv.stride) * conv.channels
}

/// Some images' gradient behind the pooling, and the place of each value in its window.
struct Sparse<'a> {
    values: &'a [f32],
    winners: &'a [u8],
}

impl Sparse<'_> {
    /// The values and winners of each pixel behind the pooling, image after image.
    fn pixels(&self, conv: &Conv) -> impl Iterator<Item = (&[f32], &[u8])> {
        self.values.chunks_exact(conv.filters).zip(self.winners.chunks_exact(conv.filters))
    }

    /// One list a filter: where each patch begins, and its factor.
    fn list_by_filter(&self, conv: &Conv, lists: &mut Lists) {
        let weights = conv.rows * conv.row_pitch();
        lists.reset((0..conv.filters).map(|filter| filter * weights), self.values.len() / conv.filters);
        let mut places = [0; 256];
        for (place, start) in places.iter_mut().enumerate().take(conv.pool * conv.pool) {
            *start = corner(conv, place / conv.pool, place % conv.pool);
        }
        let per_image = conv.out_height * conv.out_width;
        for (pixel, (values, winners)) in self.pixels(conv).enumerate() {
            let (image, pixel) = (pixel / per_image, pixel % per_image);
            let (y, x) = (pixel / conv.out_width * conv.pool, pixel % conv.out_width * conv.pool);
            let first = image * conv.padded_len() + corner(conv, y, x);
            for (filter, (value, winner)) in values.iter().zip(winners).enumerate() {
                lists.push(filter, first + places[usize::from(*winner)], *value);
            }
        }
    }

    /// One list a place before pooling, window by window: where the weights of each of these filters begin, and its factor.
    fn list_by_place(&self, conv: &Conv, filters: Range<usize>, lists: &mut Lists) {
        let window = conv.pool * conv.pool;
        let images = 0..self.values.len() / conv.output_len();
        let places = images.flat_map(|image| (0..conv.out_height).flat_map(move |y| (0..conv.out_width).map(move |x| (image, y, x))));
        let targets = places.flat_map(|(image, y, x)| {
            let at = move |place| corner(conv, y * conv.pool + place / conv.pool, x * conv.pool + place % conv.pool);
            (0..window).map(move |place| image * conv.padded_len() + at(place))
        });
        lists.reset(targets, filters.len());
        let weights = conv.rows * conv.row_pitch();
        for (pixel, (values, winners)) in self.pixels(conv).enumerate() {
            for (filter, (value, winner)) in filters.clone().zip(values[filters.clone()].iter().zip(&winners[filters.clone()])) {
                lists.push(pixel * window + usize::from(*winner), filter * weights, *value);
            }
        }
    }
}

/// Filters whose weights meet all places before the next ones do: the vectors of them that are added at once fit the first-level cache.
const FILTERS: usize = 64;

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

/// The same for `R` rows of any number of vectors, `pitch` values in all, and for all lists. The lists
/// change fastest: what the same vectors of all of them read stays in the cache.
///
/// # Safety
///
/// As [`add_scaled_rows`].
#[inline(always)]
unsafe fn add_scaled<const FMA: bool, const WIDE: bool, const R: usize>(
    lists: &Lists,
    source: &[f32],
    (source_line, sums_line): (usize, usize),
    pitch: usize,
    sums: &mut [f32],
) {
    let is_roomy = WIDE || R == 1;
    let most = if is_roomy { VECTORS } else { VECTORS_OF_THREE };
    for skip in (0..pitch).step_by(most * LANES) {
        let rows = Rows { skip, source_line, sums_line };
        macro_rules! add {
            ($vectors:expr, $ways:literal) => {
                for (entries, at) in lists.iter() {
                    if entries.is_empty() {
                        continue;
                    }
                    // SAFETY: as the caller says.
                    unsafe { add_scaled_rows::<FMA, R, { $vectors }, $ways>(entries, source, rows, &mut sums[at..]) };
                }
            };
        }
        match ((pitch - skip) / LANES).min(most) {
            1 if !is_roomy => add!(1, 2),
            2 if !is_roomy => add!(2, 1),
            1 => add!(1, 4),
            2 => add!(2, 2),
            3 => add!(3, 2),
            4 => add!(4, 1),
            5 => add!(5, 1),
            _ => add!(VECTORS, 1),
        }
    }
}

for_each_level! {
    /// Adds each filter's patches to its weights' gradient, `[filters, rows, pitch]`.
    fn add_patches(conv: &Conv, lists: &Lists, images: &[f32], weights_gradient: &mut [f32]) {
        let (rows, pitch, line) = (conv.rows, conv.row_pitch(), conv.padded_width * conv.channels);
        // SAFETY: the lists hold corners of patches, whose rows lie within the images and the vector of zeros behind them.
        unsafe {
            if rows == 3 {
                return add_scaled::<FMA, WIDE, 3>(lists, images, (line, pitch), pitch, weights_gradient);
            }
            for row in 0..rows {
                add_scaled::<FMA, WIDE, 1>(lists, &images[row * line..], (0, 0), pitch, &mut weights_gradient[row * pitch..]);
            }
        }
    }
}

for_each_level! {
    /// Adds to the patch at each place of some images the weights of its filters.
    fn add_filters(conv: &Conv, lists: &Lists, weights_by_filter: &[f32], gradient: &mut [f32]) {
        let (pitch, line) = (conv.row_pitch(), conv.padded_width * conv.channels);
        for row in 0..conv.rows {
            // SAFETY: the lists hold the beginnings of filters, each of which has this row.
            unsafe { add_scaled::<FMA, WIDE, 1>(lists, &weights_by_filter[row * pitch..], (0, 0), pitch, &mut gradient[row * line..]) };
        }
    }
}
