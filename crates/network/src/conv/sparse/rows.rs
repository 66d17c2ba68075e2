//! Any kernel: rows of a patch are taken as whole vectors of [`LANES`] values. What a vector reads past the end of a row meets zeros in
//! the weights, and lands in columns of the weights' gradient that [`Conv::gradient_by_patch`] leaves out.

use super::{Entry, Lists, Sparse, Strides};
use crate::{
    conv::{Conv, Kept, Sums},
    partition::CHUNK,
    scratch::{Aligned, Scratch, is_aligned, sized},
    simd::{for_each_level, multiply_add},
};

/// Values that are added at once.
const LANES: usize = 16;

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

    /// The summed gradient, `[filters, rows, row_pitch]`, in the order of the weights.
    pub(super) fn gradient_by_patch(&self, summed: &[f32], out: &mut [f32]) {
        let (row, pitch) = (self.columns * self.channels, self.row_pitch());
        for (filter, by_row) in summed.chunks_exact(self.rows * pitch).enumerate() {
            for k in 0..self.patch() {
                out[k * self.filters + filter] = by_row[k / row * pitch + k % row];
            }
        }
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
    let strides = Strides { pixel: conv.channels, filter: conv.rows * conv.row_pitch() };
    let together = ENTRIES.div_ceil(conv.out_height * conv.out_width).min(CHUNK);
    for tile in conv.whole_images(gradient.len() / output_len, together) {
        let mut staged = conv.staged(kept.input, tile, buffer);
        if conv.overreaches() || !is_aligned(staged) {
            let longer = sized(columns, staged.len() + LANES);
            longer[..staged.len()].copy_from_slice(staged);
            longer[staged.len()..].fill(0.0);
            staged = longer;
        }
        let sparse = Sparse::of(conv, tile.image..tile.image + tile.images, gradient, kept.winners);
        sparse.list_by_filter(conv, strides, tile.images * conv.out_height, lists);
        add_patches(conv, lists, staged, &mut sums.partial.weights);
        let Some(out) = sums.input.as_deref_mut() else { continue };
        let out = &mut out[tile.image * input_len..][..tile.images * input_len];
        let padded = sized(padded, tile.images * conv.padded_len() + LANES);
        padded.fill(0.0);
        for first in (0..conv.filters).step_by(FILTERS) {
            sparse.list_by_place(conv, strides, first..conv.filters.min(first + FILTERS), lists);
            add_filters(conv, lists, weights_by_filter, padded);
        }
        padded.chunks_exact(conv.padded_len()).zip(out.chunks_exact_mut(input_len)).for_each(|(padded, out)| conv.crop(padded, out));
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
