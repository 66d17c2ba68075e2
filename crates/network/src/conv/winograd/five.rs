//! The convolution with kernels of five columns by minimal filtering F(2, 5) along a row: six products in place of ten for each two outputs, row of
//! the kernel, channel and filter.
//!
//! It has as many points as F(4, 3), and at the same places, so the input's transform is the same. The rows of the kernel are summed up as they are:
//! their products are those of one long sum, over transformed lines that outputs above each other share.
#![expect(clippy::undocumented_unsafe_blocks, reason = "all of it rests on what the callers of the unsafe functions promise")]

use std::ops::Range;

use super::{BYTES, COLUMNS as POINTS, Store, apart, column, finish_square, four, lines, pitch, sizes};
use crate::{
    conv::{
        Conv, Results,
        direct::Outputs,
        tile::{Walk, even, for_filters, pair, tile},
    },
    scratch::{Aligned, Scratch, sized, zeros},
    simd::vector::{Vector, for_each_vector},
};

/// Fewer channels make runs of products too short.
const FEWEST: usize = 8;

impl Conv {
    /// Whether it is of the kind that can be computed so, and the products that are spared outweigh the transforms.
    pub(in crate::conv) fn is_minimal_in_rows(&self) -> bool {
        // A transform's loads, sums and stores for one value.
        const TRANSFORM: usize = 3 * POINTS;
        let (height, width) = self.computed();
        let (lines, windows) = (height.next_multiple_of(2), width.div_ceil(2));
        let direct = height * width * self.patch() * self.filters;
        let products = lines * windows * POINTS * self.rows * self.channels * self.filters;
        let transforms = TRANSFORM * windows * ((lines + self.rows - 1) * self.channels + lines * self.filters);
        (self.columns, self.stride) == (5, 1) && self.pool <= 2 && self.channels >= FEWEST && (products + transforms) * 9 / 8 < direct
    }

    /// The transformed weights: for each point `[filters / n, rows × channels, n]`, where `n` is what the kernel takes at once.
    pub(in crate::conv) fn minimal_weights_in_rows(&self, weights: &[f32]) -> Aligned {
        assert_eq!(weights.len(), self.weights_len());
        let mut all = Aligned::zeros(POINTS * apart(self.rows * self.channels, self.filters));
        // SAFETY: the sizes were just made to fit.
        unsafe { weights_unchecked(self, weights, all.values_mut()) };
        all
    }
}

/// Some pairs of lines of an image's outputs.
struct Part {
    /// The first pair, how many, and the first that is asked for of each image.
    first: usize,
    pairs: usize,
    start: usize,
    /// Windows of a line.
    windows: usize,
}

impl Part {
    /// Lines of the input that they see.
    fn lines(&self, conv: &Conv) -> usize {
        2 * self.pairs + conv.rows - 1
    }
}

/// Outputs of some images without borders. Activations other than ReLU are left to the caller. Of each image only these pairs of lines are
/// computed, and `results` has but these.
pub(in crate::conv) fn forward(
    conv: &Conv,
    weights: &[f32],
    bias: &[f32],
    images: &[f32],
    rows: Range<usize>,
    results: &mut Results<'_>,
    scratch: &mut Scratch,
) {
    let windows = conv.computed().1.div_ceil(2);
    let (_, per_image) = sizes(conv, bias, images, &rows, results);
    // What the transforms and the kernel rely on.
    assert!(conv.is_minimal_in_rows() && weights.len() == POINTS * apart(conv.rows * conv.channels, conv.filters));
    let step = (BYTES / (2 * windows * POINTS * (conv.channels + conv.filters) * size_of::<f32>())).max(1);
    let border = zeros(&mut scratch.zeros, conv.width * conv.channels);
    for (index, image) in images.chunks_exact(conv.input_len()).enumerate() {
        for first in rows.clone().step_by(step) {
            let part = Part { first, pairs: step.min(rows.end - first), start: rows.start, windows };
            let transformed = sized(&mut scratch.columns, POINTS * apart(part.lines(conv) * windows, conv.channels));
            let product = sized(&mut scratch.product, POINTS * apart(2 * part.pairs * windows, conv.filters));
            // SAFETY: just checked, and the buffers were made to fit.
            unsafe {
                input_unchecked(conv, image, border, &part, transformed);
                product_unchecked(conv, weights, transformed, &part, product);
                output_unchecked(conv, bias, product, &part, index * per_image, results);
            }
        }
    }
}

for_each_vector! {
    unsafe fn weights_unchecked<V>(conv: &Conv, weights: &[f32], out: &mut [f32]) {
        let (depth, tap) = (conv.rows * conv.channels, conv.channels * conv.filters);
        let size = apart(depth, conv.filters);
        for_filters!(V, conv.filters, |filter, lanes, N| {
            for at in 0..depth {
                let (row, channel) = (at / conv.channels, at % conv.channels);
                for n in 0..N {
                    let used = if n + 1 < N { V::LANES } else { lanes };
                    unsafe {
                        let from = weights.as_ptr().add(row * 5 * tap + channel * conv.filters + filter + n * V::LANES);
                        let mut kernel = [V::splat(0.0); 5];
                        for (column, value) in kernel.iter_mut().enumerate() {
                            *value = V::load_first(from.add(column * tap), used);
                        }
                        let out = out.as_mut_ptr().add(filter * depth + (at * N + n) * V::LANES);
                        for (point, value) in four::wide_weight_points(kernel).into_iter().enumerate() {
                            value.store(out.add(point * size));
                        }
                    }
                }
            }
        });
    }
}

for_each_vector! {
    /// The points of each line's windows, `[points, lines, windows, channels]`.
    unsafe fn input_unchecked<V>(conv: &Conv, image: &[f32], border: &[f32], part: &Part, out: &mut [f32]) {
        let pitch = pitch(conv.channels);
        let point = apart(part.lines(conv) * part.windows, conv.channels);
        for index in 0..part.lines(conv) {
            let [line] = lines(conv, image, border, 2 * part.first + index);
            for channel in (0..conv.channels).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.channels - channel);
                for window in 0..part.windows {
                    unsafe {
                        let mut values = [V::splat(0.0); POINTS];
                        for (place, value) in values.iter_mut().enumerate() {
                            [*value] = column(conv, [line.wrapping_add(channel)], lanes, 2 * window + place);
                        }
                        let out = out.as_mut_ptr().add((index * part.windows + window) * pitch + channel);
                        for (at, value) in four::input_points(values).into_iter().enumerate() {
                            value.store(out.add(at * point));
                        }
                    }
                }
            }
        }
    }
}

for_each_vector! {
    /// For each point and pair of lines: the sums over the kernel's rows and the channels, `[points, lines, windows, filters]`.
    unsafe fn product_unchecked<V>(conv: &Conv, weights: &[f32], transformed: &[f32], part: &Part, out: &mut [f32]) {
        let (from, to) = (pitch(conv.channels), pitch(conv.filters));
        let depth = conv.rows * conv.channels;
        for point in 0..POINTS {
            let weights = &weights[point * apart(depth, conv.filters)..];
            let transformed = &transformed[point * apart(part.lines(conv) * part.windows, conv.channels)..];
            let out = &mut out[point * apart(2 * part.pairs * part.windows, conv.filters)..];
            for_filters!(V, conv.filters, |filter, _lanes, N| {
                let walk = Walk {
                    down: part.windows * from,
                    right: from,
                    step: 1,
                    run: conv.channels,
                    line: part.windows * from,
                    rows: conv.rows,
                    image: 0,
                    images: 1,
                    vector: N * V::LANES,
                    lanes: V::LANES,
                };
                let most = even(part.windows, pair::<V, N>());
                let vectors = weights[filter * depth..].as_ptr();
                for lines in 0..part.pairs {
                    for first in (0..part.windows).step_by(most) {
                        let place = 2 * lines * part.windows + first;
                        let out = Store { to: out[place * to + filter..].as_mut_ptr(), pitch: to, down: part.windows * to, adds: false };
                        let scalars = transformed[place * from..].as_ptr();
                        unsafe { tile::<V, N>((2, most.min(part.windows - first)), &walk, scalars, vectors, out) };
                    }
                }
            });
        }
    }
}

/// Two outputs from their points.
#[inline(always)]
unsafe fn two_outputs<V: Vector>(product: *const f32, point: usize) -> [[V; 1]; 2] {
    unsafe {
        let mut points = [V::splat(0.0); POINTS];
        for (at, value) in points.iter_mut().enumerate() {
            *value = V::load(product.add(at * point));
        }
        let [first, second] = four::wide_outputs(points);
        [[first], [second]]
    }
}

for_each_vector! {
    /// From points to outputs, with what follows the convolution; `first` is that of the image's outputs.
    unsafe fn output_unchecked<V>(conv: &Conv, bias: &[f32], product: &[f32], part: &Part, first: usize, results: &mut Results<'_>) {
        let ((height, width), pitch) = (conv.computed(), pitch(conv.filters));
        let point = apart(2 * part.pairs * part.windows, conv.filters);
        for lines in 0..part.pairs {
            for filter in (0..conv.filters).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.filters - filter);
                let bias = [unsafe { V::load_first(bias[filter..].as_ptr(), lanes) }];
                for window in 0..part.windows {
                    let product = &product[(2 * lines * part.windows + window) * pitch + filter..];
                    unsafe {
                        let u = two_outputs::<V>(product.as_ptr(), point);
                        let l = two_outputs::<V>(product.as_ptr().add(part.windows * pitch), point);
                        let (y, x) = (2 * (part.first + lines - part.start), 2 * window);
                        let out = Outputs { conv, results: &mut *results, first: first + filter, y, x, lanes, bias };
                        finish_square(out, [u, l], height - 2 * (part.first + lines), width - x);
                    }
                }
            }
        }
    }
}
