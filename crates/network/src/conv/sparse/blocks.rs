//! 3×3 kernels over many channels: a block of as many channels as a vector has lanes at a time.
//!
//! Images and weights are packed block by block. The pixels of one block lie side by side, so that those of a few lines of windows fit
//! the first-level cache, as the block of some filters does; in an image as it comes, the same channels of its pixels lie far
//! apart, share few of the cache's sets and drive each other out. The nine sums of a list, one a tap, stay in registers, and each
//! multiply-add reads its other factor from that cache.

use rayon::prelude::*;

use super::{Lists, Sparse, Strides};
use crate::{
    conv::{Conv, Kept, Sums},
    partition::CHUNK,
    scratch::{Aligned, Scratch, sized},
    simd::{Level, level, vector::for_each_vector},
};

/// Rows times columns of the kernels that this is for.
const TAPS: usize = 9;

/// The fewest channels that are worth it.
const MIN_CHANNELS: usize = 16;

/// What is read again and again, lines of an image or weights, may take so many bytes of a first-level cache of 32 KiB; lists pass
/// through the rest.
const CACHED: usize = 24 * 1024;

pub(super) fn are_for(conv: &Conv) -> bool {
    (conv.rows, conv.columns) == (3, 3) && conv.channels >= MIN_CHANNELS
}

/// Channels of a block: the lanes of the vector that [`for_each_vector`] chooses.
fn lanes() -> usize {
    match level() {
        Level::Avx512 => 16,
        Level::Avx2 => 8,
        Level::Baseline => 4,
    }
}

/// Values of the weights, `[blocks, filters, taps, lanes]`.
pub(super) fn weights_len(conv: &Conv) -> usize {
    conv.filters * TAPS * conv.channels.next_multiple_of(lanes())
}

/// Filters that are taken together where values change their order: a line of the cache, so that each is read and written whole.
const SQUARE: usize = 16;

/// The weights as `[blocks, filters, taps, lanes]`, with zeros in the lanes behind the last channel; on all threads, which would wait
/// for it.
pub(super) fn reordered_weights(conv: &Conv, weights: &[f32]) -> Aligned {
    let (lanes, filters) = (lanes(), conv.filters);
    let mut blocks = Aligned::zeros(weights_len(conv));
    blocks.values_mut().par_chunks_mut(filters * TAPS * lanes).enumerate().for_each(|(block, out)| {
        let channels = block * lanes..conv.channels.min((block + 1) * lanes);
        for (square, out) in out.chunks_mut(SQUARE * TAPS * lanes).enumerate() {
            for tap in 0..TAPS {
                for (lane, channel) in channels.clone().enumerate() {
                    let from = &weights[(tap * conv.channels + channel) * filters + square * SQUARE..];
                    for (out, value) in out.chunks_exact_mut(TAPS * lanes).zip(from) {
                        out[tap * lanes + lane] = *value;
                    }
                }
            }
        }
    });
    blocks
}

/// The opposite of [`reordered_weights`], for the gradient.
pub(super) fn weights_gradient(conv: &Conv, summed: &[f32], out: &mut [f32]) {
    let (lanes, filters) = (lanes(), conv.filters);
    out.par_chunks_mut(conv.channels * filters).enumerate().for_each(|(tap, out)| {
        out.par_chunks_mut(lanes * filters).zip(summed.par_chunks(filters * TAPS * lanes)).for_each(|(out, summed)| {
            for (square, summed) in summed.chunks(SQUARE * TAPS * lanes).enumerate() {
                for (lane, out) in out.chunks_exact_mut(filters).enumerate() {
                    for (out, summed) in out[square * SQUARE..].iter_mut().zip(summed.chunks_exact(TAPS * lanes)) {
                        *out = summed[tap * lanes + lane];
                    }
                }
            }
        });
    });
}

pub(super) fn backward(conv: &Conv, weights: &[f32], kept: &Kept<'_>, gradient: &[f32], sums: &mut Sums<'_>, scratch: &mut Scratch) {
    let Scratch { image: buffer, columns: packed, gradient: summed, lists, .. } = scratch;
    let (lanes, input_len) = (lanes(), conv.input_len());
    let blocks = conv.channels.div_ceil(lanes);
    let strides = Strides { pixel: lanes, filter: TAPS * lanes };
    let (image_line, filter_line) = (conv.padded_width * lanes, 3 * lanes);
    let cached = CACHED / size_of::<f32>();
    let filters = even(conv.filters, cached / strides.filter);
    let weights_block = conv.filters * strides.filter;
    let count = gradient.len() / conv.output_len();
    for first in (0..count).step_by(CHUNK) {
        let images = first..count.min(first + CHUNK);
        let values = images.start * input_len..images.end * input_len;
        let images_block = images.len() * strides.image(conv);
        let lines = even(images.len() * conv.out_height, cached / (image_line * conv.stride * conv.pool));
        let sparse = Sparse::of(conv, images, gradient, kept.winners);
        let packed = sized(packed, blocks * images_block);
        let input = conv.as_floats(kept.input.range(values.clone()), buffer);
        // SAFETY: the function has no requirement but its instruction set.
        unsafe { pack(conv, input, packed) };
        sparse.list_by_filter(conv, strides, lines, lists);
        let sums_by_block = sums.partial.weights.chunks_exact_mut(weights_block);
        for (packed, sums) in packed.chunks_exact(images_block).zip(sums_by_block) {
            // SAFETY: the lists hold corners of patches of these images.
            unsafe { add_scaled(lists, packed, image_line, sums, filter_line) };
        }
        let Some(out) = sums.input.as_deref_mut() else { continue };
        let summed = sized(summed, blocks * images_block);
        summed.fill(0.0);
        for first in (0..conv.filters).step_by(filters) {
            sparse.list_by_place(conv, strides, first..conv.filters.min(first + filters), lists);
            for (summed, weights) in summed.chunks_exact_mut(images_block).zip(weights.chunks_exact(weights_block)) {
                // SAFETY: the lists hold the beginnings of filters.
                unsafe { add_scaled(lists, weights, filter_line, summed, image_line) };
            }
        }
        // SAFETY: as above.
        unsafe { unpack(conv, summed, &mut out[values]) };
    }
}

/// The size of parts of at most `most` that are as even as can be.
fn even(count: usize, most: usize) -> usize {
    count.div_ceil(count.div_ceil(most.max(1)))
}

for_each_vector! {
    /// `sums[target + row * sums_line ..] += Σ value * source[at + row * source_line ..]` over the entries of each list, for three rows
    /// of three vectors.
    ///
    /// # Safety
    ///
    /// All rows of all entries lie within `source`.
    unsafe fn add_scaled<V>(lists: &Lists, source: &[f32], source_line: usize, sums: &mut [f32], sums_line: usize) {
        for (entries, target) in lists.iter() {
            let sums = &mut sums[target..][..2 * sums_line + 3 * V::LANES];
            // SAFETY: as the caller says; the rows of the sums lie within the slice.
            unsafe {
                let mut totals = [[V::splat(0.0); 3]; 3];
                for entry in entries {
                    debug_assert!(entry.at as usize + 2 * source_line + 3 * V::LANES <= source.len());
                    let value = V::splat(entry.value);
                    for (row, totals) in totals.iter_mut().enumerate() {
                        let from = source.as_ptr().add(entry.at as usize + row * source_line);
                        for (column, total) in totals.iter_mut().enumerate() {
                            *total = V::load(from.add(column * V::LANES)).multiply_add(value, *total);
                        }
                    }
                }
                for (row, totals) in totals.iter().enumerate() {
                    for (column, total) in totals.iter().enumerate() {
                        let to = sums.as_mut_ptr().add(row * sums_line + column * V::LANES);
                        V::load(to).add(*total).store(to);
                    }
                }
            }
        }
    }
}

for_each_vector! {
    /// Writes images as `[blocks, images, padded height, padded width, lanes]`.
    unsafe fn pack<V>(conv: &Conv, images: &[f32], packed: &mut [f32]) {
        if conv.is_padded() {
            packed.fill(0.0);
        }
        let blocks = conv.channels.div_ceil(V::LANES);
        let block_len = packed.len() / blocks;
        let line = conv.padded_width * V::LANES;
        for (line_index, pixels) in images.chunks_exact(conv.width * conv.channels).enumerate() {
            let (image, y) = (line_index / conv.height, line_index % conv.height);
            let at = (image * conv.padded_height + y + conv.top) * line + conv.left * V::LANES;
            for block in 0..blocks {
                let to = &mut packed[block * block_len + at..][..conv.width * V::LANES];
                let lanes = (conv.channels - block * V::LANES).min(V::LANES);
                for (pixel, to) in pixels.chunks_exact(conv.channels).zip(to.chunks_exact_mut(V::LANES)) {
                    let pixel = &pixel[block * V::LANES..][..lanes];
                    // SAFETY: both hold as many values.
                    unsafe {
                        let values = if lanes == V::LANES { V::load(pixel.as_ptr()) } else { V::load_first(pixel.as_ptr(), lanes) };
                        values.store(to.as_mut_ptr());
                    }
                }
            }
        }
    }
}

for_each_vector! {
    /// The opposite of [`pack`]; leaves out the border.
    unsafe fn unpack<V>(conv: &Conv, packed: &[f32], images: &mut [f32]) {
        let blocks = conv.channels.div_ceil(V::LANES);
        let block_len = packed.len() / blocks;
        let line = conv.padded_width * V::LANES;
        for (line_index, pixels) in images.chunks_exact_mut(conv.width * conv.channels).enumerate() {
            let (image, y) = (line_index / conv.height, line_index % conv.height);
            let at = (image * conv.padded_height + y + conv.top) * line + conv.left * V::LANES;
            for block in 0..blocks {
                let from = &packed[block * block_len + at..][..conv.width * V::LANES];
                let lanes = (conv.channels - block * V::LANES).min(V::LANES);
                for (pixel, from) in pixels.chunks_exact_mut(conv.channels).zip(from.chunks_exact(V::LANES)) {
                    let pixel = &mut pixel[block * V::LANES..][..lanes];
                    // SAFETY: both hold as many values.
                    unsafe {
                        let values = V::load(from.as_ptr());
                        if lanes == V::LANES { values.store(pixel.as_mut_ptr()) } else { values.store_first(pixel.as_mut_ptr(), lanes) };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        conv::BackwardPath,
        examples::View,
        layer::{Activation, Padding},
    };

    fn conv() -> impl Strategy<Value = Conv> {
        let shape = (4..14usize, 4..14usize, MIN_CHANNELS..50, 1..40usize);
        (shape, any::<bool>(), 1..3usize, 2..4usize).prop_filter_map(
            "no window",
            |((height, width, channels, filters), same, stride, pool)| {
                let padding = if same { Padding::Same } else { Padding::Valid };
                let conv = Conv::new((height, width, channels), filters, (3, 3), stride, padding, Activation::None, pool);
                assert_eq!(conv.backward_path(), BackwardPath::NonZeros);
                (conv.out_height > 0 && conv.out_width > 0 && are_for(&conv)).then_some(conv)
            },
        )
    }

    /// Sums in f64 of the gradient of the weights and of the images.
    fn exact(conv: &Conv, weights: &[f32], images: &[f32], gradient: &[f32], winners: &[u8]) -> (Vec<f64>, Vec<f64>) {
        let (mut of_weights, mut of_images) = (vec![0.0; weights.len()], vec![0.0; images.len()]);
        for (index, (value, winner)) in gradient.iter().zip(winners).enumerate() {
            let (pixel, filter) = (index / conv.filters, index % conv.filters);
            let (line, x, winner) = (pixel / conv.out_width, pixel % conv.out_width, usize::from(*winner));
            let (image, y) = (line / conv.out_height, line % conv.out_height);
            let corner = ((y * conv.pool + winner / conv.pool) * conv.stride, (x * conv.pool + winner % conv.pool) * conv.stride);
            for tap in 0..TAPS {
                let (y, x) = ((corner.0 + tap / 3).wrapping_sub(conv.top), (corner.1 + tap % 3).wrapping_sub(conv.left));
                if y < conv.height && x < conv.width {
                    for channel in 0..conv.channels {
                        let weight = (tap * conv.channels + channel) * conv.filters + filter;
                        let input = ((image * conv.height + y) * conv.width + x) * conv.channels + channel;
                        of_weights[weight] += f64::from(*value) * f64::from(images[input]);
                        of_images[input] += f64::from(*value) * f64::from(weights[weight]);
                    }
                }
            }
        }
        (of_weights, of_images)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn gradients_are_those_of_plain_loops(conv in conv(), count in 1..20usize, zeros in 0..3u8, seed in any::<u64>()) {
            let mut draw = crate::init::uniform(seed, 1);
            let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| draw()).collect() };
            let (images, weights) = (numbers(count * conv.input_len()), numbers(conv.weights_len()));
            let mut gradient = numbers(count * conv.output_len());
            let places = (conv.pool * conv.pool) as f32;
            let winners: Vec<u8> = numbers(gradient.len()).iter().map(|x| ((x + 1.0) / 2.0 * places).min(places - 1.0) as u8).collect();
            // All of it, about half, or nothing.
            gradient.iter_mut().for_each(|x| *x = if *x < f32::from(zeros) - 1.0 || zeros == 2 { 0.0 } else { *x });

            let mut partial = conv.empty_partial();
            let (mut of_images, mut of_weights) = (vec![0.0; images.len()], vec![0.0; weights.len()]);
            let kept = Kept { input: View::Floats(&images), output: &[], before: &[], winners: &winners };
            let mut sums = Sums { partial: &mut partial, input: Some(&mut of_images) };
            let reordered = reordered_weights(&conv, &weights);
            backward(&conv, reordered.values(), &kept, &gradient, &mut sums, &mut Scratch::default());
            weights_gradient(&conv, &partial.weights, &mut of_weights);

            let expected = exact(&conv, &weights, &images, &gradient, &winners);
            for (found, expected) in of_weights.iter().zip(&expected.0).chain(of_images.iter().zip(&expected.1)) {
                prop_assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} for {expected}");
            }
        }
    }
}
