//! The convolution with 3 × 3 kernels and a stride of two, by minimal filtering of its *phases*: 25 products in place of 36 for each 2 × 2 outputs,
//! channel and filter.
//!
//! Along a line, outputs take the even values with the outer two weights and the odd values with the middle one: `y[i] = e[i] g[0] + o[i] g[1] + e[i+1] g[2]`.
//! The even part is F(2, 2), three products for two outputs (Karatsuba's), and the odd part fits its first two points: with
//! `m = [(e[0] - e[1]) g[0] + (o[0] - o[1]) g[1], e[1] (g[0] + g[2]) + o[1] g[1], (e[1] - e[2]) g[2]]` the outputs are `m[0] + m[1]` and `m[1] - m[2]`. Both ways,
//! 3 × 3 points sum up one, two or four phases of the channels. All transforms add and subtract, so it rounds little more than the direct sums.
#![expect(clippy::undocumented_unsafe_blocks, reason = "all of it rests on what the callers of the unsafe functions promise")]
#![cfg_attr(not(test), expect(clippy::needless_range_loop, reason = "rows and columns are places of several arrays"))]

use std::ops::Range;

use super::{BYTES, Block, WINDOWS, apart, column, finish_square, lines, multiply_unchecked, pitch, sizes, turn};
use crate::{
    conv::{Conv, Results, direct::Outputs, tile::for_filters},
    scratch::{Aligned, Scratch, sized, zeros},
    simd::vector::{Vector, for_each_vector},
};

/// Of a transformed window of 2 × 2 outputs, and of all its phases together.
const POINTS: usize = 9;
const PHASES: usize = 25;

impl Conv {
    /// Whether it is of the kind that can be computed so, and the products that are spared outweigh the transforms.
    pub(in crate::conv) fn is_minimal_with_strides(&self) -> bool {
        // A transform's loads, sums and stores for one value.
        const TRANSFORM: usize = 3;
        let (height, width) = self.computed();
        let (channels, filters) = (self.channels, self.filters);
        let direct = height * width * self.patch() * filters;
        let window = PHASES * channels * filters + TRANSFORM * (PHASES * channels + POINTS * filters);
        let minimal = height.div_ceil(2) * width.div_ceil(2) * window;
        (self.rows, self.columns, self.stride) == (3, 3, 2) && self.pool <= 2 && minimal + minimal / 8 < direct
    }

    /// The transformed weights: for each point `[filters / n, phases × channels, n]`, where `n` is what the kernel takes at once.
    pub(in crate::conv) fn minimal_weights_with_strides(&self, weights: &[f32]) -> Aligned {
        assert_eq!(weights.len(), self.weights_len());
        let mut all = Aligned::zeros(starts(|point| apart(depth(self, point), self.filters))[POINTS]);
        // SAFETY: the sizes were just made to fit.
        unsafe { weights_unchecked(self, weights, all.values_mut()) };
        all
    }
}

/// Whether each way the odd values, too, are among a point's sums: not at the last.
fn has_odd(point: usize) -> (bool, bool) {
    (point / 3 < 2, point % 3 < 2)
}

/// Products of a point's sums.
fn depth(conv: &Conv, point: usize) -> usize {
    let (rows, columns) = has_odd(point);
    conv.channels * (1 + usize::from(rows)) * (1 + usize::from(columns))
}

/// Where the channels of a phase begin among a point's products; the phase is odd or not in its rows and columns.
fn start_of_phase(conv: &Conv, point: usize, (row, column): (usize, usize)) -> usize {
    conv.channels * (row + column * (1 + usize::from(has_odd(point).0)))
}

/// Where each point's matrix begins, and where the last one ends.
fn starts(size: impl Fn(usize) -> usize) -> [usize; POINTS + 1] {
    let mut starts = [0; POINTS + 1];
    for point in 0..POINTS {
        starts[point + 1] = starts[point] + size(point);
    }
    starts
}

/// Outputs of some images without borders. Activations other than ReLU are left to the caller. Of each image only the windows of
/// these rows are computed, and `results` has but these.
pub(in crate::conv) fn forward(
    conv: &Conv,
    weights: &[f32],
    bias: &[f32],
    images: &[f32],
    rows: Range<usize>,
    results: &mut Results<'_>,
    scratch: &mut Scratch,
) {
    let columns = conv.computed().1.div_ceil(2);
    let (count, per_image) = sizes(conv, bias, images, &rows, results);
    let of_weights = starts(|point| apart(depth(conv, point), conv.filters));
    // What the transforms and the kernel rely on.
    assert!(conv.is_minimal_with_strides() && weights.len() == of_weights[POINTS]);
    let window = (PHASES * conv.channels + POINTS * conv.filters) * size_of::<f32>();
    let (step, all) = (((BYTES / window).max(WINDOWS) / columns).max(1), count * rows.len());
    let border = zeros(&mut scratch.zeros, conv.width * conv.channels);
    for first in (0..all).step_by(step) {
        let block = Block { first, rows: step.min(all - first), of: rows.clone(), windows: step.min(all - first) * columns };
        let of_inputs = starts(|point| apart(block.windows, depth(conv, point)));
        let transformed = sized(&mut scratch.columns, of_inputs[POINTS]);
        let product = sized(&mut scratch.product, POINTS * apart(block.windows, conv.filters));
        // SAFETY: just checked, and the buffers were made to fit.
        unsafe {
            input_unchecked(conv, images, border, &block, &of_inputs, transformed);
            for point in 0..POINTS {
                let sizes = (block.windows, depth(conv, point), conv.filters);
                let out = &mut product[point * apart(block.windows, conv.filters)..];
                multiply_unchecked(sizes, &weights[of_weights[point]..], &transformed[of_inputs[point]..], out);
            }
            output_unchecked(conv, bias, product, &block, per_image, results);
        }
    }
}

/// The points of three even values.
#[inline(always)]
unsafe fn even_points<V: Vector>([a, b, c]: [V; 3]) -> [V; 3] {
    unsafe { [a.subtract(b), b, b.subtract(c)] }
}

/// The points of two odd values.
#[inline(always)]
unsafe fn odd_points<V: Vector>([a, b]: [V; 2]) -> [V; 2] {
    unsafe { [a.subtract(b), b] }
}

/// The points of three weights: those of the even values, then those of the odd ones.
#[inline(always)]
unsafe fn weight_points<V: Vector>([a, b, c]: [V; 3]) -> [[V; 3]; 2] {
    unsafe { [[a, a.add(c), c], [b, b, b]] }
}

/// Two outputs from the sums at three points.
#[inline(always)]
unsafe fn outputs<V: Vector>([a, b, c]: [V; 3]) -> [V; 2] {
    unsafe { [a.add(b), b.subtract(c)] }
}

for_each_vector! {
    unsafe fn weights_unchecked<V>(conv: &Conv, weights: &[f32], out: &mut [f32]) {
        let starts = starts(|point| apart(depth(conv, point), conv.filters));
        for_filters!(V, conv.filters, |filter, lanes, N| {
            for channel in 0..conv.channels {
                for n in 0..N {
                    let used = if n + 1 < N { V::LANES } else { lanes };
                    unsafe {
                        let from = weights.as_ptr().add(channel * conv.filters + filter + n * V::LANES);
                        let weight = |row: usize, column: usize| V::load_first(from.add((row * 3 + column) * conv.channels * conv.filters), used);
                        let mut by_row = [[[V::splat(0.0); 3]; 2]; 3];
                        for (row, points) in by_row.iter_mut().enumerate() {
                            *points = weight_points([weight(row, 0), weight(row, 1), weight(row, 2)]);
                        }
                        for odd_column in 0..2 {
                            for column in 0..3 - odd_column {
                                let down = weight_points([0, 1, 2].map(|row: usize| by_row[row][odd_column][column]));
                                for odd_row in 0..2 {
                                    for row in 0..3 - odd_row {
                                        let point = row * 3 + column;
                                        let at = start_of_phase(conv, point, (odd_row, odd_column)) + channel;
                                        let to = starts[point] + filter * depth(conv, point) + (at * N + n) * V::LANES;
                                        down[odd_row][row].store(out.as_mut_ptr().add(to));
                                    }
                                }
                            }
                        }
                    }
                }
            }
        });
    }
}

for_each_vector! {
    /// The windows' points, each `[windows, phases × channels]`.
    unsafe fn input_unchecked<V>(conv: &Conv, images: &[f32], border: &[f32], block: &Block, starts: &[usize; POINTS + 1], out: &mut [f32]) {
        let columns = conv.computed().1.div_ceil(2);
        for row in 0..block.rows {
            let (image, place) = block.place(row);
            let image = &images[image * conv.input_len()..];
            let lines: [*const f32; 5] = lines(conv, image, border, 4 * place);
            for channel in (0..conv.channels).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.channels - channel);
                let lines = lines.map(|line| line.wrapping_add(channel));
                let mut to = Points { conv, starts, out: out.as_mut_ptr().wrapping_add(channel), window: row * columns, lanes };
                unsafe { input_row::<V>(conv, lines, lanes, columns, &mut to) };
            }
        }
    }
}

/// Where the points of a window go.
struct Points<'a> {
    conv: &'a Conv,
    starts: &'a [usize; 10],
    out: *mut f32,
    window: usize,
    lanes: usize,
}

impl Points<'_> {
    #[inline(always)]
    unsafe fn store<V: Vector>(&self, point: usize, phase: (usize, usize), value: V) {
        let at = self.starts[point] + self.window * pitch(depth(self.conv, point)) + start_of_phase(self.conv, point, phase);
        unsafe {
            let to = self.out.add(at);
            if self.lanes == V::LANES { value.store(to) } else { value.store_first(to, self.lanes) }
        }
    }
}

/// Neighbouring windows share a column, whose first transform is kept.
#[inline(always)]
unsafe fn input_row<V: Vector>(conv: &Conv, lines: [*const f32; 5], lanes: usize, columns: usize, to: &mut Points<'_>) {
    unsafe {
        let mut kept = input_column::<V>(conv, lines, lanes, 0);
        for window in 0..columns {
            let at = |place: usize| input_column::<V>(conv, lines, lanes, 4 * window + place);
            let all = [kept, at(1), at(2), at(3), at(4)];
            for odd_row in 0..2 {
                for row in 0..3 - odd_row {
                    let value = |place: usize| all[place][odd_row][row];
                    for (column, value) in even_points([value(0), value(2), value(4)]).into_iter().enumerate() {
                        to.store(row * 3 + column, (odd_row, 0), value);
                    }
                    for (column, value) in odd_points([value(1), value(3)]).into_iter().enumerate() {
                        to.store(row * 3 + column, (odd_row, 1), value);
                    }
                }
            }
            kept = all[4];
            to.window += 1;
        }
    }
}

/// The points of a column's even rows, then those of its odd ones.
#[inline(always)]
unsafe fn input_column<V: Vector>(conv: &Conv, lines: [*const f32; 5], lanes: usize, x: usize) -> [[V; 3]; 2] {
    unsafe {
        let values: [V; 5] = column(conv, lines, lanes, x);
        let [first, second] = odd_points([values[1], values[3]]);
        [even_points([values[0], values[2], values[4]]), [first, second, V::splat(0.0)]]
    }
}

for_each_vector! {
    /// From points to outputs, with what follows the convolution.
    unsafe fn output_unchecked<V>(conv: &Conv, bias: &[f32], product: &[f32], block: &Block, per_image: usize, results: &mut Results<'_>) {
        let ((height, width), pitch) = (conv.computed(), pitch(conv.filters));
        let (columns, point) = (width.div_ceil(2), apart(block.windows, conv.filters));
        for row in 0..block.rows {
            let (image, place) = block.place(row);
            for filter in (0..conv.filters).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.filters - filter);
                let bias = [unsafe { V::load_first(bias[filter..].as_ptr(), lanes) }];
                for column in 0..columns {
                    let product = &product[(row * columns + column) * pitch + filter..];
                    unsafe {
                        let mut by_row = [[V::splat(0.0); 2]; 3];
                        for (row, outputs_of) in by_row.iter_mut().enumerate() {
                            let mut sums = [V::splat(0.0); 3];
                            for (column, sum) in sums.iter_mut().enumerate() {
                                *sum = V::load(product.as_ptr().add((row * 3 + column) * point));
                            }
                            *outputs_of = outputs(sums);
                        }
                        let [upper, lower] = turn(by_row);
                        let by_column = [outputs(upper), outputs(lower)];
                        let [u, l] = turn(by_column).map(|line| line.map(|value| [value]));
                        let (y, x) = (2 * (place - block.of.start), 2 * column);
                        let out = Outputs { conv, results: &mut *results, first: image * per_image + filter, y, x, lanes, bias };
                        finish_square(out, [u, l], height - 2 * place, width - x);
                    }
                }
            }
        }
    }
}
