//! The convolution with 3 × 3 kernels by Winograd's minimal filtering F(2 × 4, 3 × 3) (Lavin and Gray 2016,
//! <https://arxiv.org/abs/1509.09308>): 24 products in place of 72 for each 2 × 4 outputs, channel and filter.
//!
//! With `d` a 4 × 6 window of the input and `g` a kernel, the outputs are `Aᵀ [(G g Hᵀ) ⊙ (Bᵀ d C)] D`. Over the channels the
//! products are sums, so there is a matrix product for each of the 24 *points* of the transformed window: windows × channels
//! times channels × filters. The weights' gradient is the same turned around: `Gᵀ [(Bᵀ d C) ⊙ (A y Dᵀ)] H`, summed over the windows.
//!
//! Down a column it is F(2, 3), whose transforms add, subtract and halve: it rounds less than the direct sums. Along a row it is F(4, 3), which rounds
//! more, and least with its polynomials taken at 0, ± 2/3, ± 3/2 and infinity. The two together round as the direct sums do (the tests
//! compare them). F(4 × 4, 3 × 3) would need a quarter fewer products, and its error be 1.8 times as large.
#![expect(clippy::undocumented_unsafe_blocks, reason = "all of it rests on what the callers of the unsafe functions promise")]

pub(super) mod five;
#[cfg(test)]
mod kinds;
pub(super) mod strided;

use std::ops::Range;

use super::{
    Conv, Results,
    direct::{AddTo, Outputs},
    tile::{Finish, Walk, even, for_filters, single, tile},
};
use crate::{
    scratch::{Aligned, Scratch, sized, zeros},
    simd::vector::{Vector, for_each_vector},
};

/// Columns of a window: neighbouring windows share two.
const COLUMNS: usize = 6;
/// Of a transformed window.
const POINTS: usize = 4 * COLUMNS;

/// Rows of the matrices are whole vectors of any kind.
const LANES: usize = 16;

/// Windows whose transforms are held at once take about this many bytes, to stay in the second-level cache; but there are at
/// least [`WINDOWS`], so that the weights do not come from further away too often.
const BYTES: usize = 512 * 1024;
const WINDOWS: usize = 72;

/// Channels whose products are summed up before those of the next: their weights for the filters of a tile, which each window reads anew, take
/// most of a first-level cache of 32 KiB.
const CHANNELS: usize = 192;

impl Conv {
    /// Whether it is of the kind that can be computed so, and the products that are spared outweigh the transforms.
    pub(super) fn is_minimal(&self) -> bool {
        let (height, width) = self.computed();
        let (rows, columns) = self.grid();
        // A transform's loads, sums and stores for one value of each of the points.
        const TRANSFORM: usize = 3 * POINTS;
        let direct = height * width * self.patch() * self.filters;
        let minimal = rows * columns * (POINTS * self.channels * self.filters + TRANSFORM * (self.channels + self.filters));
        (self.rows, self.columns, self.stride) == (3, 3, 1) && self.pool <= 2 && minimal + minimal / 8 < direct
    }

    /// Rows and columns of windows.
    pub(super) fn grid(&self) -> (usize, usize) {
        let (height, width) = self.computed();
        (height.div_ceil(2), width.div_ceil(4))
    }

    /// The transformed weights: `[points, filters / n, channels, n]`, where `n` is what the kernel takes at once.
    pub(super) fn minimal_weights(&self, weights: &[f32]) -> Aligned {
        assert_eq!(weights.len(), self.weights_len());
        let mut all = Aligned::zeros(POINTS * apart(self.channels, self.filters));
        // SAFETY: the sizes were just made to fit.
        unsafe { weights_unchecked(self, weights, all.values_mut()) };
        all
    }

    /// Rows of windows of all images that are computed at once.
    fn rows_at_once(&self) -> usize {
        let window = POINTS * (self.channels + self.filters) * size_of::<f32>();
        ((BYTES / window).max(WINDOWS) / self.grid().1).max(1)
    }
}

/// Outputs of some images without borders. Activations other than ReLU are left to the caller. Of each image only the windows of
/// these rows are computed, and `results` has but these.
pub(super) fn forward(
    conv: &Conv,
    weights: &[f32],
    bias: &[f32],
    images: &[f32],
    rows: Range<usize>,
    results: &mut Results<'_>,
    scratch: &mut Scratch,
) {
    let columns = conv.grid().1;
    let (count, per_image) = sizes(conv, bias, images, &rows, results);
    // What the transforms and the kernel rely on.
    assert!(conv.is_minimal() && weights.len() == POINTS * apart(conv.channels, conv.filters));
    let (step, all) = (conv.rows_at_once(), count * rows.len());
    let border = zeros(&mut scratch.zeros, conv.width * conv.channels);
    for first in (0..all).step_by(step) {
        let block = Block { first, rows: step.min(all - first), of: rows.clone(), windows: step.min(all - first) * columns };
        let transformed = sized(&mut scratch.columns, POINTS * apart(block.windows, conv.channels));
        let product = sized(&mut scratch.product, POINTS * apart(block.windows, conv.filters));
        // SAFETY: just checked, and the buffers were made to fit.
        unsafe {
            input_unchecked(conv, images, border, &block, transformed);
            for point in 0..POINTS {
                let weights = &weights[point * apart(conv.channels, conv.filters)..];
                let transformed = &transformed[point * apart(block.windows, conv.channels)..];
                let out = &mut product[point * apart(block.windows, conv.filters)..];
                multiply_unchecked((block.windows, conv.channels, conv.filters), weights, transformed, out);
            }
            output_unchecked(conv, bias, product, &block, per_image, results);
        }
    }
}

/// How many images there are, and the outputs of each in these rows of windows.
///
/// # Panics
///
/// If what is to be read and written is not as long: a fault of this crate.
fn sizes(conv: &Conv, bias: &[f32], images: &[f32], rows: &Range<usize>, results: &Results<'_>) -> (usize, usize) {
    let lines = (conv.computed().0.min(2 * rows.end) - 2 * rows.start) / conv.pool;
    let (count, per_image) = (images.len() / conv.input_len(), lines * conv.out_width * conv.filters);
    let is_whole = |values: usize| values == count * per_image;
    assert!(rows.end <= conv.grid().0 && images.len() == count * conv.input_len() && bias.len() == conv.filters);
    assert!(is_whole(results.output.len()) && (results.winners.is_empty() || is_whole(results.winners.len())));
    (count, per_image)
}

/// Adds some images' gradient of the weights, `[patch, filters]`. `gradient` is that of the sums (before bias and activation).
pub(super) fn add_weights_gradient(conv: &Conv, images: &[f32], gradient: &[f32], sums: &mut [f32], scratch: &mut Scratch) {
    let (rows, columns) = conv.grid();
    let count = images.len() / conv.input_len();
    assert!(conv.is_minimal() && conv.pool == 1 && images.len() == count * conv.input_len());
    assert!(gradient.len() == count * conv.output_len() && sums.len() == conv.weights_len());
    let (step, all) = (conv.rows_at_once(), count * rows);
    let border = zeros(&mut scratch.zeros, conv.width * conv.channels);
    let by_point = sized(&mut scratch.gradient, POINTS * apart(conv.channels, conv.filters));
    by_point.fill(0.0);
    for first in (0..all).step_by(step) {
        let block = Block { first, rows: step.min(all - first), of: 0..rows, windows: step.min(all - first) * columns };
        let transformed = sized(&mut scratch.columns, POINTS * apart(block.windows, conv.channels));
        let of_outputs = sized(&mut scratch.product, POINTS * apart(block.windows, conv.filters));
        // SAFETY: just checked, and the buffers were made to fit.
        unsafe {
            input_unchecked(conv, images, border, &block, transformed);
            gradient_unchecked(conv, gradient, &block, of_outputs);
            gradient_product_unchecked(conv, transformed, of_outputs, block.windows, by_point);
        }
    }
    // SAFETY: as above.
    unsafe { weights_gradient_unchecked(conv, by_point, sums) };
}

/// From one row of a matrix to the next.
fn pitch(values: usize) -> usize {
    values.next_multiple_of(LANES)
}

/// From one point's matrix to the next. A cache line more than it takes: as many points that lie powers of two apart would drive each
/// other out of the first-level cache.
fn apart(rows: usize, values: usize) -> usize {
    rows * pitch(values) + LANES
}

/// Some rows of windows of some images.
struct Block {
    /// The first of all images' rows that are asked for, and how many.
    first: usize,
    rows: usize,
    /// Those that are asked for of each image.
    of: Range<usize>,
    windows: usize,
}

impl Block {
    /// The image of a row and its place in the image, both from zero.
    fn place(&self, row: usize) -> (usize, usize) {
        let row = self.first + row;
        (row / self.of.len(), self.of.start + row % self.of.len())
    }
}

/// F(2, 3): what is done down a column with the points 0, 1, -1 and (minus) infinity.
mod two {
    use super::Vector;

    /// `Bᵀ d`.
    #[inline(always)]
    pub(super) unsafe fn input_points<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 4] {
        unsafe { [a.subtract(c), b.add(c), c.subtract(b), b.subtract(d)] }
    }

    /// `Aᵀ m`.
    #[inline(always)]
    pub(super) unsafe fn outputs<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 2] {
        unsafe { [a.add(b).add(c), b.subtract(c).subtract(d)] }
    }

    /// `G g`.
    #[inline(always)]
    pub(super) unsafe fn weight_points<V: Vector>([a, b, c]: [V; 3]) -> [V; 4] {
        unsafe {
            let (half, zero) = (V::splat(0.5), V::splat(0.0));
            let ends = a.add(c);
            [a, ends.add(b).multiply_add(half, zero), ends.subtract(b).multiply_add(half, zero), c]
        }
    }

    /// `A y`.
    #[inline(always)]
    pub(super) unsafe fn gradient_points<V: Vector>([a, b]: [V; 2]) -> [V; 4] {
        unsafe { [a, a.add(b), a.subtract(b), V::splat(0.0).subtract(b)] }
    }

    /// `Gᵀ u`.
    #[inline(always)]
    pub(super) unsafe fn weight_gradients<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 3] {
        unsafe {
            let half = V::splat(0.5);
            let both = b.add(c);
            [both.multiply_add(half, a), b.subtract(c).multiply_add(half, V::splat(0.0)), both.multiply_add(half, d)]
        }
    }
}

/// F(4, 3): what is done along a row with the points 0, ± `A`, ± `B` and infinity.
mod four {
    use super::Vector;

    const A: f32 = 2.0 / 3.0;
    /// The inverse of [`A`]: a factor of every transform is one by that.
    const B: f32 = 3.0 / 2.0;
    /// What Lagrange's polynomials are divided by at these points, `2 A² (A² - B²)` and the like, inverted.
    const WEIGHT_A: f32 = -81.0 / 130.0;
    const WEIGHT_B: f32 = 8.0 / 65.0;

    /// `sum ± difference`.
    #[inline(always)]
    unsafe fn both<V: Vector>(even: V, odd: V) -> [V; 2] {
        unsafe { [even.add(odd), even.subtract(odd)] }
    }

    /// `a * factor + b * other`.
    #[inline(always)]
    unsafe fn mixed<V: Vector>((a, factor): (V, f32), (b, other): (V, f32)) -> V {
        unsafe { a.multiply_add(V::splat(factor), b.multiply_add(V::splat(other), V::splat(0.0))) }
    }

    /// `Cᵀ d`.
    #[inline(always)]
    pub(super) unsafe fn input_points<V: Vector>([a, b, c, d, e, f]: [V; 6]) -> [V; 6] {
        unsafe {
            let minus_squares = V::splat(-(A * A + B * B));
            let [third, fourth] = both(c.multiply_add(V::splat(-A * A), e), mixed((d, B), (b, -A)));
            let [first, second] = both(c.multiply_add(V::splat(-B * B), e), mixed((d, A), (b, -B)));
            [c.multiply_add(minus_squares, a.add(e)), first, second, third, fourth, d.multiply_add(minus_squares, b.add(f))]
        }
    }

    /// `Dᵀ m`.
    #[inline(always)]
    pub(super) unsafe fn outputs<V: Vector>([a, b, c, d, e, f]: [V; 6]) -> [V; 4] {
        unsafe {
            let ([even_a, odd_a], [even_b, odd_b]) = (both(b, c), both(d, e));
            [
                a.add(even_a).add(even_b),
                mixed((odd_a, A), (odd_b, B)),
                mixed((even_a, A * A), (even_b, B * B)),
                mixed((odd_a, A * A * A), (odd_b, B * B * B)).add(f),
            ]
        }
    }

    /// `H g`.
    #[inline(always)]
    pub(super) unsafe fn weight_points<V: Vector>([a, b, c]: [V; 3]) -> [V; 6] {
        unsafe {
            let zero = V::splat(0.0);
            let [first, second] = both(mixed((a, WEIGHT_A), (c, WEIGHT_A * A * A)), b.multiply_add(V::splat(WEIGHT_A * A), zero));
            let [third, fourth] = both(mixed((a, WEIGHT_B), (c, WEIGHT_B * B * B)), b.multiply_add(V::splat(WEIGHT_B * B), zero));
            [a, first, second, third, fourth, c]
        }
    }

    /// The outputs of F(2, 5), which has the same points.
    #[inline(always)]
    pub(super) unsafe fn wide_outputs<V: Vector>([a, b, c, d, e, f]: [V; 6]) -> [V; 2] {
        unsafe {
            let ([even_a, odd_a], [even_b, odd_b]) = (both(b, c), both(d, e));
            [a.add(even_a).add(even_b), mixed((odd_a, A), (odd_b, B)).add(f)]
        }
    }

    /// Its weights.
    #[inline(always)]
    pub(super) unsafe fn wide_weight_points<V: Vector>([a, b, c, d, e]: [V; 5]) -> [V; 6] {
        unsafe {
            let pair = |factor: f32, at: f32| {
                let square = at * at;
                let even = e.multiply_add(V::splat(factor * square * square), mixed((a, factor), (c, factor * square)));
                both(even, mixed((b, factor * at), (d, factor * square * at)))
            };
            let ([first, second], [third, fourth]) = (pair(WEIGHT_A, A), pair(WEIGHT_B, B));
            [a, first, second, third, fourth, e]
        }
    }

    /// `D y`.
    #[inline(always)]
    pub(super) unsafe fn gradient_points<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 6] {
        unsafe {
            let [first, second] = both(c.multiply_add(V::splat(A * A), a), mixed((b, A), (d, A * A * A)));
            let [third, fourth] = both(c.multiply_add(V::splat(B * B), a), mixed((b, B), (d, B * B * B)));
            [a, first, second, third, fourth, d]
        }
    }

    /// `Hᵀ u`.
    #[inline(always)]
    pub(super) unsafe fn weight_gradients<V: Vector>([a, b, c, d, e, f]: [V; 6]) -> [V; 3] {
        unsafe {
            let ([even_a, odd_a], [even_b, odd_b]) = (both(b, c), both(d, e));
            [
                mixed((even_a, WEIGHT_A), (even_b, WEIGHT_B)).add(a),
                mixed((odd_a, WEIGHT_A * A), (odd_b, WEIGHT_B * B)),
                mixed((even_a, WEIGHT_A * A * A), (even_b, WEIGHT_B * B * B)).add(f),
            ]
        }
    }
}

/// Rows and columns change places.
#[inline(always)]
fn turn<V: Vector, const ROWS: usize, const COLUMNS: usize>(values: [[V; COLUMNS]; ROWS]) -> [[V; ROWS]; COLUMNS] {
    let mut turned = [[values[0][0]; ROWS]; COLUMNS];
    for row in 0..ROWS {
        for column in 0..COLUMNS {
            turned[column][row] = values[row][column];
        }
    }
    turned
}

for_each_vector! {
    unsafe fn weights_unchecked<V>(conv: &Conv, weights: &[f32], out: &mut [f32]) {
        let size = apart(conv.channels, conv.filters);
        for_filters!(V, conv.filters, |filter, lanes, N| {
            for channel in 0..conv.channels {
                for n in 0..N {
                    let used = if n + 1 < N { V::LANES } else { lanes };
                    unsafe {
                        let from = weights.as_ptr().add(channel * conv.filters + filter + n * V::LANES);
                        let mut by_row = [[V::splat(0.0); COLUMNS]; 3];
                        for (row, points) in by_row.iter_mut().enumerate() {
                            let mut kernel = [V::splat(0.0); 3];
                            for (column, value) in kernel.iter_mut().enumerate() {
                                *value = V::load_first(from.add((row * 3 + column) * conv.channels * conv.filters), used);
                            }
                            *points = four::weight_points(kernel);
                        }
                        let out = out.as_mut_ptr().add(filter * conv.channels + (channel * N + n) * V::LANES);
                        for (column, by_row) in turn(by_row).into_iter().enumerate() {
                            for (row, value) in two::weight_points(by_row).into_iter().enumerate() {
                                value.store(out.add((row * COLUMNS + column) * size));
                            }
                        }
                    }
                }
            }
        });
    }
}

for_each_vector! {
    /// The windows' points, `[points, windows, channels]`.
    unsafe fn input_unchecked<V>(conv: &Conv, images: &[f32], border: &[f32], block: &Block, out: &mut [f32]) {
        let (columns, pitch, point) = (conv.grid().1, pitch(conv.channels), apart(block.windows, conv.channels));
        for row in 0..block.rows {
            let (image, place) = block.place(row);
            let image = &images[image * conv.input_len()..];
            let lines: [*const f32; 4] = lines(conv, image, border, 2 * place);
            for channel in (0..conv.channels).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.channels - channel);
                let out = unsafe { out.as_mut_ptr().add(row * columns * pitch + channel) };
                unsafe { input_row::<V>(conv, lines.map(|line| line.wrapping_add(channel)), lanes, point, pitch, out) };
            }
        }
    }
}

/// Neighbouring windows share two columns, whose first transform is kept.
#[inline(always)]
unsafe fn input_row<V: Vector>(conv: &Conv, lines: [*const f32; 4], lanes: usize, point: usize, pitch: usize, out: *mut f32) {
    unsafe {
        let mut kept = [input_column::<V>(conv, lines, lanes, 0), input_column::<V>(conv, lines, lanes, 1)];
        for window in 0..conv.grid().1 {
            let column = |place: usize| input_column::<V>(conv, lines, lanes, 4 * window + place);
            let next = [column(2), column(3), column(4), column(5)];
            let out = out.add(window * pitch);
            for row in 0..4 {
                let values = [kept[0][row], kept[1][row], next[0][row], next[1][row], next[2][row], next[3][row]];
                for (column, value) in four::input_points(values).into_iter().enumerate() {
                    value.store(out.add((row * COLUMNS + column) * point));
                }
            }
            kept = [next[2], next[3]];
        }
    }
}

#[inline(always)]
unsafe fn input_column<V: Vector>(conv: &Conv, lines: [*const f32; 4], lanes: usize, x: usize) -> [V; 4] {
    unsafe { two::input_points(column(conv, lines, lanes, x)) }
}

/// Where lines of an image with its border begin, from the line `first` on.
#[inline(always)]
fn lines<const N: usize>(conv: &Conv, image: &[f32], border: &[f32], first: usize) -> [*const f32; N] {
    let mut lines = [border.as_ptr(); N];
    for (y, at) in lines.iter_mut().enumerate() {
        // What is above the image wraps around to a large number.
        let y = (first + y).wrapping_sub(conv.top);
        if y < conv.height {
            *at = image[y * conv.width * conv.channels..].as_ptr();
        }
    }
    lines
}

/// A vector of channels at the column `x` of each line, counted with the border.
#[inline(always)]
unsafe fn column<V: Vector, const N: usize>(conv: &Conv, lines: [*const f32; N], lanes: usize, x: usize) -> [V; N] {
    unsafe {
        let mut values = [V::splat(0.0); N];
        let x = x.wrapping_sub(conv.left);
        if x < conv.width {
            for (value, line) in values.iter_mut().zip(lines) {
                let from = line.add(x * conv.channels);
                *value = if lanes == V::LANES { V::load(from) } else { V::load_first(from, lanes) };
            }
        }
        values
    }
}

/// Finishes a window of 2 × 2 outputs, of which as many lines and columns are there.
#[inline(always)]
unsafe fn finish_square<V: Vector>(out: Outputs<'_, '_, V, 1>, [u, l]: [[[V; 1]; 2]; 2], lines: usize, columns: usize) {
    unsafe {
        match (lines > 1, columns > 1) {
            (true, true) => out.finish([u, l]),
            (true, false) => out.finish([[u[0]], [l[0]]]),
            (false, true) => out.finish([u]),
            (false, false) => out.finish([[u[0]]]),
        }
    }
}

for_each_vector! {
    /// Windows × channels times channels × filters, `[windows, filters]`.
    unsafe fn multiply_unchecked<V>(sizes: (usize, usize, usize), weights: &[f32], transformed: &[f32], out: &mut [f32]) {
        let (windows, channels, filters) = sizes;
        let (from, to) = (pitch(channels), pitch(filters));
        for_filters!(V, filters, |filter, _lanes, N| {
            let (depth, most) = (even(channels, CHANNELS), even(windows, single::<V, N>()));
            for channel in (0..channels).step_by(depth) {
                let walk = Walk {
                    down: 0,
                    right: from,
                    step: 1,
                    run: depth.min(channels - channel),
                    line: 0,
                    rows: 1,
                    image: 0,
                    images: 1,
                    vector: N * V::LANES,
                    lanes: V::LANES,
                };
                let vectors = weights[filter * channels + channel * N * V::LANES..].as_ptr();
                for first in (0..windows).step_by(most) {
                    let out = Store { to: out[first * to + filter..].as_mut_ptr(), pitch: to, down: 0, adds: channel > 0 };
                    let scalars = transformed[first * from + channel..].as_ptr();
                    unsafe { tile::<V, N>((1, most.min(windows - first)), &walk, scalars, vectors, out) };
                }
            }
        });
    }
}

/// Writes a tile to rows of a matrix.
struct Store {
    to: *mut f32,
    pitch: usize,
    /// From the first of a row's to that of the next row's.
    down: usize,
    /// Whether it is added to what is there.
    adds: bool,
}

impl<V: Vector, const N: usize> Finish<V, N> for Store {
    #[inline(always)]
    unsafe fn finish<const ROWS: usize, const COLUMNS: usize>(self, sums: [[[V; N]; COLUMNS]; ROWS]) {
        for (row, sums) in sums.iter().enumerate() {
            for (column, sums) in sums.iter().enumerate() {
                for (n, sum) in sums.iter().enumerate() {
                    unsafe {
                        let to = self.to.add(row * self.down + column * self.pitch + n * V::LANES);
                        let sum = if self.adds { V::load(to).add(*sum) } else { *sum };
                        sum.store(to);
                    }
                }
            }
        }
    }
}

for_each_vector! {
    /// From points to outputs, with what follows the convolution.
    unsafe fn output_unchecked<V>(conv: &Conv, bias: &[f32], product: &[f32], block: &Block, per_image: usize, results: &mut Results<'_>) {
        let (columns, pitch) = (conv.grid().1, pitch(conv.filters));
        let (height, width) = conv.computed();
        let point = apart(block.windows, conv.filters);
        for row in 0..block.rows {
            let (image, place) = block.place(row);
            for filter in (0..conv.filters).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.filters - filter);
                let bias = [unsafe { V::load_first(bias[filter..].as_ptr(), lanes) }];
                for column in 0..columns {
                    let product = &product[(row * columns + column) * pitch + filter..];
                    unsafe {
                        let mut by_column = [[V::splat(0.0); 2]; COLUMNS];
                        for (column, outputs) in by_column.iter_mut().enumerate() {
                            let mut points = [V::splat(0.0); 4];
                            for (row, value) in points.iter_mut().enumerate() {
                                *value = V::load(product.as_ptr().add((row * COLUMNS + column) * point));
                            }
                            *outputs = two::outputs(points);
                        }
                        let [upper, lower] = turn(by_column);
                        let (u, l) = (four::outputs(upper).map(|value| [value]), four::outputs(lower).map(|value| [value]));
                        let (y, x) = (2 * (place - block.of.start), 4 * column);
                        let out = Outputs { conv, results: &mut *results, first: image * per_image + filter, y, x, lanes, bias };
                        match (height - 2 * place > 1, width - x) {
                            (true, 1) => out.finish([[u[0]], [l[0]]]),
                            (true, 2) => out.finish([[u[0], u[1]], [l[0], l[1]]]),
                            (true, 3) => out.finish([[u[0], u[1], u[2]], [l[0], l[1], l[2]]]),
                            (true, _) => out.finish([u, l]),
                            (false, 1) => out.finish([[u[0]]]),
                            (false, 2) => out.finish([[u[0], u[1]]]),
                            (false, 3) => out.finish([[u[0], u[1], u[2]]]),
                            (false, _) => out.finish([u]),
                        }
                    }
                }
            }
        }
    }
}

for_each_vector! {
    /// The points of the outputs' gradient, `[points, windows, filters]`.
    unsafe fn gradient_unchecked<V>(conv: &Conv, gradient: &[f32], block: &Block, out: &mut [f32]) {
        let (columns, pitch) = (conv.grid().1, pitch(conv.filters));
        let point = apart(block.windows, conv.filters);
        for row in 0..block.rows {
            let (image, place) = block.place(row);
            let gradient = &gradient[image * conv.output_len()..][..conv.output_len()];
            for filter in (0..conv.filters).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.filters - filter);
                for column in 0..columns {
                    unsafe {
                        let mut by_row = [[V::splat(0.0); 4]; 2];
                        for (row, by_row) in by_row.iter_mut().enumerate() {
                            for (place_in_row, value) in by_row.iter_mut().enumerate() {
                                let (y, x) = (2 * place + row, 4 * column + place_in_row);
                                if y < conv.out_height && x < conv.out_width {
                                    *value = V::load_first(gradient.as_ptr().add((y * conv.out_width + x) * conv.filters + filter), lanes);
                                }
                            }
                        }
                        let by_column = turn([four::gradient_points(by_row[0]), four::gradient_points(by_row[1])]);
                        let out = out.as_mut_ptr().add((row * columns + column) * pitch + filter);
                        for (column, by_row) in by_column.into_iter().enumerate() {
                            for (row, value) in two::gradient_points(by_row).into_iter().enumerate() {
                                value.store(out.add((row * COLUMNS + column) * point));
                            }
                        }
                    }
                }
            }
        }
    }
}

for_each_vector! {
    /// For each point: adds channels × windows times windows × filters, `[points, channels, filters]`.
    unsafe fn gradient_product_unchecked<V>(conv: &Conv, transformed: &[f32], gradient: &[f32], windows: usize, sums: &mut [f32]) {
        let (from, to) = (pitch(conv.channels), pitch(conv.filters));
        for point in 0..POINTS {
            let transformed = &transformed[point * apart(windows, conv.channels)..];
            let gradient = &gradient[point * apart(windows, conv.filters)..];
            let sums = &mut sums[point * apart(conv.channels, conv.filters)..];
            for_filters!(V, conv.filters, |filter, _lanes, N| {
                let walk = Walk {
                    down: 0,
                    right: 1,
                    step: from,
                    run: windows,
                    line: 0,
                    rows: 1,
                    image: 0,
                    images: 1,
                    vector: to,
                    lanes: V::LANES,
                };
                let most = even(conv.channels, single::<V, N>());
                for first in (0..conv.channels).step_by(most) {
                    let out = AddTo::<V, N>::rows(&mut sums[first * to + filter..], to, V::LANES);
                    let columns = (1, most.min(conv.channels - first));
                    unsafe { tile(columns, &walk, transformed[first..].as_ptr(), gradient[filter..].as_ptr(), out) };
                }
            });
        }
    }
}

for_each_vector! {
    /// From points to the weights' gradient, which is added.
    unsafe fn weights_gradient_unchecked<V>(conv: &Conv, by_point: &[f32], sums: &mut [f32]) {
        let (pitch, point) = (pitch(conv.filters), apart(conv.channels, conv.filters));
        for channel in 0..conv.channels {
            for filter in (0..conv.filters).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.filters - filter);
                unsafe {
                    let from = by_point.as_ptr().add(channel * pitch + filter);
                    let mut by_row = [[V::splat(0.0); 3]; 4];
                    for (row, gradients) in by_row.iter_mut().enumerate() {
                        let mut points = [V::splat(0.0); COLUMNS];
                        for (column, value) in points.iter_mut().enumerate() {
                            *value = V::load(from.add((row * COLUMNS + column) * point));
                        }
                        *gradients = four::weight_gradients(points);
                    }
                    for (column, by_row) in turn(by_row).into_iter().enumerate() {
                        for (row, value) in two::weight_gradients(by_row).into_iter().enumerate() {
                            let to = sums.as_mut_ptr().add(((row * 3 + column) * conv.channels + channel) * conv.filters + filter);
                            V::load_first(to, lanes).add(value).store_first(to, lanes);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        kinds::{BIAS, numbers, outputs_of},
        *,
    };
    use crate::{
        conv::ForwardPath,
        layer::{Activation, Padding},
    };

    fn conv() -> impl Strategy<Value = Conv> {
        // Rarely so many channels that their products are summed up in parts.
        let channels = prop_oneof![9 => 6..40usize, 1 => CHANNELS + 1..2 * CHANNELS + 9];
        let shape = (3..12usize, 3..12usize, channels, 6..40usize, any::<bool>(), 1..3usize);
        shape.prop_filter_map("not of the kind", |(height, width, channels, filters, same, pool)| {
            let padding = if same { Padding::Same } else { Padding::Valid };
            let conv = Conv::new((height, width, channels), filters, (3, 3), 1, padding, Activation::None, pool);
            (conv.out_height > 0 && conv.out_width > 0 && conv.forward_path() == ForwardPath::Winograd).then_some(conv)
        })
    }

    /// The sum at one place before pooling, in f64, and the sum of the products' magnitudes.
    fn exact(conv: &Conv, weights: &[f32], image: &[f32], (y, x, filter): (usize, usize, usize)) -> (f64, f64) {
        let (mut sum, mut magnitude) = (f64::from(BIAS), 0.0);
        for row in 0..3 {
            for column in 0..3 {
                let (y, x) = ((y + row).wrapping_sub(conv.top), (x + column).wrapping_sub(conv.left));
                if y < conv.height && x < conv.width {
                    for channel in 0..conv.channels {
                        let value = f64::from(image[(y * conv.width + x) * conv.channels + channel]);
                        let product = value * f64::from(weights[((row * 3 + column) * conv.channels + channel) * conv.filters + filter]);
                        (sum, magnitude) = (sum + product, magnitude + product.abs());
                    }
                }
            }
        }
        (sum, magnitude)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        #[test]
        fn outputs_are_those_of_plain_loops(conv in conv(), count in 1..6usize, seed in any::<u64>()) {
            let (images, weights) = (numbers(count * conv.input_len(), seed), numbers(conv.weights_len(), seed ^ 1));
            let mut winners = vec![9; if conv.pool > 1 { count * conv.output_len() } else { 0 }];
            let found = outputs_of(&conv, &weights, &images, count, &mut winners);
            for (index, found) in found.iter().enumerate() {
                let (image, at) = (index / conv.output_len(), index % conv.output_len());
                let (y, x, filter) = (at / conv.filters / conv.out_width, at / conv.filters % conv.out_width, at % conv.filters);
                let image = &images[image * conv.input_len()..][..conv.input_len()];
                let window: Vec<(f64, f64)> = (0..conv.pool * conv.pool)
                    .map(|place| exact(&conv, &weights, image, (y * conv.pool + place / conv.pool, x * conv.pool + place % conv.pool, filter)))
                    .collect();
                let (largest, magnitude) = window.iter().fold((f64::MIN, 0.0f64), |(l, m), (sum, magnitude)| (l.max(*sum), m.max(*magnitude)));
                let tolerance = 1e-6 * magnitude;
                prop_assert!((f64::from(*found) - largest).abs() < tolerance, "{found} for {largest}");
                if conv.pool > 1 {
                    prop_assert!(window[usize::from(winners[index])].0 > largest - 2.0 * tolerance, "not the place of the maximum");
                }
            }
        }

        #[test]
        fn the_gradient_of_the_weights_is_that_of_plain_loops(conv in conv(), count in 1..6usize, seed in any::<u64>()) {
            let conv = Conv { pool: 1, out_height: conv.computed().0, out_width: conv.computed().1, ..conv };
            let (images, gradient) = (numbers(count * conv.input_len(), seed), numbers(count * conv.output_len(), seed ^ 1));
            let mut found = numbers(conv.weights_len(), seed ^ 2);
            let before = found.clone();
            add_weights_gradient(&conv, &images, &gradient, &mut found, &mut Scratch::default());
            for (index, found) in found.iter().enumerate() {
                let (place, filter) = (index / conv.filters, index % conv.filters);
                let (row, column, channel) = (place / conv.channels / 3, place / conv.channels % 3, place % conv.channels);
                // What a window's transform rounds is as large as the largest of its values, also where a border leaves few products.
                let (mut sum, mut magnitude) = (f64::from(before[index]), 1.0);
                for (image, gradient) in images.chunks(conv.input_len()).zip(gradient.chunks(conv.output_len())) {
                    let largest = image.iter().skip(channel).step_by(conv.channels).fold(0.0f32, |largest, value| largest.max(value.abs()));
                    for (at, gradient) in gradient.chunks(conv.filters).enumerate() {
                        let y = (at / conv.out_width + row).wrapping_sub(conv.top);
                        let x = (at % conv.out_width + column).wrapping_sub(conv.left);
                        magnitude += f64::from(largest * gradient[filter].abs());
                        if y < conv.height && x < conv.width {
                            sum += f64::from(image[(y * conv.width + x) * conv.channels + channel]) * f64::from(gradient[filter]);
                        }
                    }
                }
                prop_assert!((f64::from(*found) - sum).abs() < 1e-6 * magnitude, "{found} for {sum}");
            }
        }
    }
}
