//! The convolution with 3 × 3 kernels by Winograd's minimal filtering F(2 × 2, 3 × 3) (Lavin and Gray 2016,
//! <https://arxiv.org/abs/1509.09308>): 16 products in place of 36 for each 2 × 2 outputs, channel and filter.
//!
//! With `d` a 4 × 4 window of the input and `g` a kernel, the outputs are `Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`. Over the channels the
//! products are sums, so there is a matrix product for each of the 16 *points* of the transformed window: windows × channels
//! times channels × filters. The weights' gradient is the same turned around: `Gᵀ [(Bᵀ d B) ⊙ (A y Aᵀ)] G`, summed over the windows.
//!
//! The transforms only add, subtract and halve, so the rounding stays that of f32 (the tests compare it with the direct sums').
#![expect(clippy::undocumented_unsafe_blocks, reason = "all of it rests on what the callers of the unsafe functions promise")]

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

/// Of a transformed window.
const POINTS: usize = 16;

/// Rows of the matrices are whole vectors of any kind.
const LANES: usize = 16;

/// Windows whose transforms are held at once take about this many bytes, to stay in the second-level cache; but there are at
/// least [`WINDOWS`], so that the weights do not come from further away too often.
const BYTES: usize = 512 * 1024;
const WINDOWS: usize = 72;

impl Conv {
    /// Whether it is of the kind that can be computed so, and the products that are spared outweigh the transforms.
    pub(super) fn is_minimal(&self) -> bool {
        let (height, width) = self.computed();
        let (rows, columns) = self.grid();
        // A transform's loads, sums and stores for one value of each of the 16 points.
        const TRANSFORM: usize = 48;
        let direct = height * width * self.patch() * self.filters;
        let minimal = rows * columns * (POINTS * self.channels * self.filters + TRANSFORM * (self.channels + self.filters));
        (self.rows, self.columns, self.stride) == (3, 3, 1) && self.pool <= 2 && minimal + minimal / 8 < direct
    }

    /// Rows and columns of windows.
    pub(super) fn grid(&self) -> (usize, usize) {
        let (height, width) = self.computed();
        (height.div_ceil(2), width.div_ceil(2))
    }

    /// The transformed weights: `[points, filters / n, channels, n]`, where `n` is what the kernel takes at once.
    pub(super) fn minimal_weights(&self, weights: &[f32]) -> Aligned {
        assert_eq!(weights.len(), self.weights_len());
        let mut all = Aligned::zeros(POINTS * self.channels * self.filters.next_multiple_of(LANES));
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
    let (height, columns) = (conv.computed().0, conv.grid().1);
    let lines = (height.min(2 * rows.end) - 2 * rows.start) / conv.pool;
    let per_image = lines * conv.out_width * conv.filters;
    let count = images.len() / conv.input_len();
    // What the transforms and the kernel rely on.
    assert!(conv.is_minimal() && rows.end <= conv.grid().0 && images.len() == count * conv.input_len());
    assert!(weights.len() == POINTS * conv.channels * conv.filters.next_multiple_of(LANES) && bias.len() == conv.filters);
    assert!(results.output.len() == count * per_image && (results.winners.is_empty() || results.winners.len() == count * per_image));
    let (step, all) = (conv.rows_at_once(), count * rows.len());
    let border = zeros(&mut scratch.zeros, conv.width * conv.channels);
    for first in (0..all).step_by(step) {
        let block = Block { first, rows: step.min(all - first), of: rows.clone(), windows: step.min(all - first) * columns };
        let transformed = sized(&mut scratch.columns, POINTS * block.windows * pitch(conv.channels));
        let product = sized(&mut scratch.product, POINTS * block.windows * pitch(conv.filters));
        // SAFETY: just checked, and the buffers were made to fit.
        unsafe {
            input_unchecked(conv, images, border, &block, transformed);
            product_unchecked(conv, weights, transformed, block.windows, product);
            output_unchecked(conv, bias, product, &block, per_image, results);
        }
    }
}

/// Adds some images' gradient of the weights, `[patch, filters]`. `gradient` is that of the sums (before bias and activation).
pub(super) fn add_weights_gradient(conv: &Conv, images: &[f32], gradient: &[f32], sums: &mut [f32], scratch: &mut Scratch) {
    let (rows, columns) = conv.grid();
    let count = images.len() / conv.input_len();
    assert!(conv.is_minimal() && conv.pool == 1 && images.len() == count * conv.input_len());
    assert!(gradient.len() == count * conv.output_len() && sums.len() == conv.weights_len());
    let (step, all) = (conv.rows_at_once(), count * rows);
    let border = zeros(&mut scratch.zeros, conv.width * conv.channels);
    let by_point = sized(&mut scratch.gradient, POINTS * conv.channels * pitch(conv.filters));
    by_point.fill(0.0);
    for first in (0..all).step_by(step) {
        let block = Block { first, rows: step.min(all - first), of: 0..rows, windows: step.min(all - first) * columns };
        let transformed = sized(&mut scratch.columns, POINTS * block.windows * pitch(conv.channels));
        let of_outputs = sized(&mut scratch.product, POINTS * block.windows * pitch(conv.filters));
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

// `Bᵀ d`, `Aᵀ m`, `G g`, `A y` and `Gᵀ u` of one column (or row).

#[inline(always)]
unsafe fn input_points<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 4] {
    unsafe { [a.subtract(c), b.add(c), c.subtract(b), b.subtract(d)] }
}

#[inline(always)]
unsafe fn outputs<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 2] {
    unsafe { [a.add(b).add(c), b.subtract(c).subtract(d)] }
}

#[inline(always)]
unsafe fn weight_points<V: Vector>([a, b, c]: [V; 3]) -> [V; 4] {
    unsafe {
        let (half, zero) = (V::splat(0.5), V::splat(0.0));
        let ends = a.add(c);
        [a, ends.add(b).multiply_add(half, zero), ends.subtract(b).multiply_add(half, zero), c]
    }
}

#[inline(always)]
unsafe fn gradient_points<V: Vector>([a, b]: [V; 2]) -> [V; 4] {
    unsafe { [a, a.add(b), a.subtract(b), V::splat(0.0).subtract(b)] }
}

#[inline(always)]
unsafe fn weight_gradients<V: Vector>([a, b, c, d]: [V; 4]) -> [V; 3] {
    unsafe {
        let half = V::splat(0.5);
        let both = b.add(c);
        [both.multiply_add(half, a), b.subtract(c).multiply_add(half, V::splat(0.0)), both.multiply_add(half, d)]
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
        let size = conv.channels * pitch(conv.filters);
        for_filters!(V, conv.filters, |filter, lanes, N| {
            for channel in 0..conv.channels {
                for n in 0..N {
                    let used = if n + 1 < N { V::LANES } else { lanes };
                    unsafe {
                        let from = weights.as_ptr().add(channel * conv.filters + filter + n * V::LANES);
                        let mut by_row = [[V::splat(0.0); 4]; 3];
                        for (row, points) in by_row.iter_mut().enumerate() {
                            let mut kernel = [V::splat(0.0); 3];
                            for (column, value) in kernel.iter_mut().enumerate() {
                                *value = V::load_first(from.add((row * 3 + column) * conv.channels * conv.filters), used);
                            }
                            *points = weight_points(kernel);
                        }
                        let out = out.as_mut_ptr().add(filter * conv.channels + (channel * N + n) * V::LANES);
                        for (column, by_row) in turn(by_row).into_iter().enumerate() {
                            for (row, value) in weight_points(by_row).into_iter().enumerate() {
                                value.store(out.add((row * 4 + column) * size));
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
        let (columns, pitch) = (conv.grid().1, pitch(conv.channels));
        let line = conv.width * conv.channels;
        for row in 0..block.rows {
            let (image, place) = block.place(row);
            let image = &images[image * conv.input_len()..];
            let mut lines = [border.as_ptr(); 4];
            for (y, at) in lines.iter_mut().enumerate() {
                // What is above the image wraps around to a large number.
                let y = (2 * place + y).wrapping_sub(conv.top);
                if y < conv.height {
                    *at = image[y * line..].as_ptr();
                }
            }
            for channel in (0..conv.channels).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.channels - channel);
                let out = unsafe { out.as_mut_ptr().add(row * columns * pitch + channel) };
                unsafe { input_row::<V>(conv, lines.map(|line| line.wrapping_add(channel)), lanes, block.windows * pitch, pitch, out) };
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
            let next = [input_column::<V>(conv, lines, lanes, 2 * window + 2), input_column::<V>(conv, lines, lanes, 2 * window + 3)];
            let out = out.add(window * pitch);
            for row in 0..4 {
                let values = input_points([kept[0][row], kept[1][row], next[0][row], next[1][row]]);
                for (column, value) in values.into_iter().enumerate() {
                    value.store(out.add((row * 4 + column) * point));
                }
            }
            kept = next;
        }
    }
}

#[inline(always)]
unsafe fn input_column<V: Vector>(conv: &Conv, lines: [*const f32; 4], lanes: usize, x: usize) -> [V; 4] {
    unsafe {
        let mut values = [V::splat(0.0); 4];
        let x = x.wrapping_sub(conv.left);
        if x < conv.width {
            for (value, line) in values.iter_mut().zip(lines) {
                let from = line.add(x * conv.channels);
                *value = if lanes == V::LANES { V::load(from) } else { V::load_first(from, lanes) };
            }
        }
        input_points(values)
    }
}

for_each_vector! {
    /// For each point: windows × channels times channels × filters, `[points, windows, filters]`.
    unsafe fn product_unchecked<V>(conv: &Conv, weights: &[f32], transformed: &[f32], windows: usize, out: &mut [f32]) {
        let (from, to) = (pitch(conv.channels), pitch(conv.filters));
        for point in 0..POINTS {
            let weights = &weights[point * conv.channels * to..];
            let transformed = &transformed[point * windows * from..];
            let out = &mut out[point * windows * to..];
            for_filters!(V, conv.filters, |filter, _lanes, N| {
                let walk = Walk {
                    down: 0,
                    right: from,
                    step: 1,
                    run: conv.channels,
                    line: 0,
                    rows: 1,
                    image: 0,
                    images: 1,
                    vector: N * V::LANES,
                    lanes: V::LANES,
                };
                let most = even(windows, single::<V, N>());
                for first in (0..windows).step_by(most) {
                    let out = Store { to: out[first * to + filter..].as_mut_ptr(), pitch: to };
                    let scalars = transformed[first * from..].as_ptr();
                    unsafe { tile::<V, N>((1, most.min(windows - first)), &walk, scalars, weights[filter * conv.channels..].as_ptr(), out) };
                }
            });
        }
    }
}

/// Writes a tile of one row to rows of a matrix.
struct Store {
    to: *mut f32,
    pitch: usize,
}

impl<V: Vector, const N: usize> Finish<V, N> for Store {
    #[inline(always)]
    unsafe fn finish<const ROWS: usize, const COLUMNS: usize>(self, sums: [[[V; N]; COLUMNS]; ROWS]) {
        for (column, sums) in sums[0].iter().enumerate() {
            for (n, sum) in sums.iter().enumerate() {
                unsafe { sum.store(self.to.add(column * self.pitch + n * V::LANES)) };
            }
        }
    }
}

for_each_vector! {
    /// From points to outputs, with what follows the convolution.
    unsafe fn output_unchecked<V>(conv: &Conv, bias: &[f32], product: &[f32], block: &Block, per_image: usize, results: &mut Results<'_>) {
        let (columns, pitch) = (conv.grid().1, pitch(conv.filters));
        let (height, width) = conv.computed();
        let point = block.windows * pitch;
        for row in 0..block.rows {
            let (image, place) = block.place(row);
            for filter in (0..conv.filters).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.filters - filter);
                let bias = [unsafe { V::load_first(bias[filter..].as_ptr(), lanes) }];
                for column in 0..columns {
                    let product = &product[(row * columns + column) * pitch + filter..];
                    unsafe {
                        let mut by_row = [[V::splat(0.0); 4]; 4];
                        for (row, by_row) in by_row.iter_mut().enumerate() {
                            for (column, value) in by_row.iter_mut().enumerate() {
                                *value = V::load(product.as_ptr().add((row * 4 + column) * point));
                            }
                        }
                        let by_column = turn([outputs(by_row[0]), outputs(by_row[1]), outputs(by_row[2]), outputs(by_row[3])]);
                        let [left, right] = [outputs(by_column[0]), outputs(by_column[1])];
                        let (y, x) = (2 * (place - block.of.start), 2 * column);
                        let out = Outputs { conv, results: &mut *results, first: image * per_image + filter, y, x, lanes, bias };
                        match (height - 2 * place > 1, width - x > 1) {
                            (true, true) => out.finish([[[left[0]], [right[0]]], [[left[1]], [right[1]]]]),
                            (true, false) => out.finish([[[left[0]]], [[left[1]]]]),
                            (false, true) => out.finish([[[left[0]], [right[0]]]]),
                            (false, false) => out.finish([[[left[0]]]]),
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
        let point = block.windows * pitch;
        for row in 0..block.rows {
            let (image, place) = block.place(row);
            let gradient = &gradient[image * conv.output_len()..][..conv.output_len()];
            for filter in (0..conv.filters).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.filters - filter);
                for column in 0..columns {
                    unsafe {
                        let mut by_row = [[V::splat(0.0); 2]; 2];
                        for (row, by_row) in by_row.iter_mut().enumerate() {
                            for (place_in_row, value) in by_row.iter_mut().enumerate() {
                                let (y, x) = (2 * place + row, 2 * column + place_in_row);
                                if y < conv.out_height && x < conv.out_width {
                                    *value = V::load_first(gradient.as_ptr().add((y * conv.out_width + x) * conv.filters + filter), lanes);
                                }
                            }
                        }
                        let by_column = turn([gradient_points(by_row[0]), gradient_points(by_row[1])]);
                        let out = out.as_mut_ptr().add((row * columns + column) * pitch + filter);
                        for (column, by_row) in by_column.into_iter().enumerate() {
                            for (row, value) in gradient_points(by_row).into_iter().enumerate() {
                                value.store(out.add((row * 4 + column) * point));
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
            let transformed = &transformed[point * windows * from..];
            let gradient = &gradient[point * windows * to..];
            let sums = &mut sums[point * conv.channels * to..];
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
        let pitch = pitch(conv.filters);
        for channel in 0..conv.channels {
            for filter in (0..conv.filters).step_by(V::LANES) {
                let lanes = V::LANES.min(conv.filters - filter);
                unsafe {
                    let from = by_point.as_ptr().add(channel * pitch + filter);
                    let mut by_row = [[V::splat(0.0); 3]; 4];
                    for (row, gradients) in by_row.iter_mut().enumerate() {
                        let mut points = [V::splat(0.0); 4];
                        for (column, value) in points.iter_mut().enumerate() {
                            *value = V::load(from.add((row * 4 + column) * conv.channels * pitch));
                        }
                        *gradients = weight_gradients(points);
                    }
                    for (column, by_row) in turn(by_row).into_iter().enumerate() {
                        for (row, value) in weight_gradients(by_row).into_iter().enumerate() {
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

    use super::*;
    use crate::{
        conv::{ForwardPath, Weighted, direct},
        examples::View,
        layer::{Activation, Padding},
    };

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut draw = crate::init::uniform(seed, 1);
        (0..count).map(|_| draw()).collect()
    }

    fn conv() -> impl Strategy<Value = Conv> {
        let shape = (3..12usize, 3..12usize, 6..40usize, 6..40usize, any::<bool>(), 1..3usize);
        shape.prop_filter_map("not of the kind", |(height, width, channels, filters, same, pool)| {
            let padding = if same { Padding::Same } else { Padding::Valid };
            let conv = Conv::new((height, width, channels), filters, (3, 3), 1, padding, Activation::None, pool);
            (conv.out_height > 0 && conv.out_width > 0 && conv.forward_path() == ForwardPath::Winograd).then_some(conv)
        })
    }

    /// The sum at one place before pooling, in f64, and the sum of the products' magnitudes.
    fn exact(conv: &Conv, weights: &[f32], image: &[f32], (y, x, filter): (usize, usize, usize)) -> (f64, f64) {
        let (mut sum, mut magnitude) = (0.0, 0.0);
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

    fn outputs_of(conv: &Conv, weights: &[f32], images: &[f32], count: usize, winners: &mut [u8]) -> Vec<f32> {
        let bias = vec![0.0; conv.filters];
        let prepared = conv.prepared_weights(weights);
        let layer = Weighted { weights, prepared: prepared.values(), bias: &bias };
        let mut output = vec![0.0; count * conv.output_len()];
        let mut results = Results { output: &mut output, before: &mut [], winners };
        conv.forward(&layer, View::Floats(images), &mut results, &mut Scratch::default());
        output
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
        fn an_image_in_bands_has_the_same_bits(conv in conv(), seed in any::<u64>()) {
            let (image, weights) = (numbers(conv.input_len(), seed), numbers(conv.weights_len(), seed ^ 1));
            let whole = outputs_of(&conv, &weights, &image, 1, &mut []);
            let bias = vec![0.0; conv.filters];
            let prepared = conv.prepared_weights(&weights);
            let layer = Weighted { weights: &weights, prepared: prepared.values(), bias: &bias };
            for threads in [2, 3, 64] {
                let mut output = vec![0.0; conv.output_len()];
                conv.bands_of_windows(threads, &layer, View::Floats(&image), &mut output);
                prop_assert_eq!(&output, &whole);
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
                let (mut sum, mut magnitude) = (f64::from(before[index]), 1.0);
                for (image, gradient) in images.chunks(conv.input_len()).zip(gradient.chunks(conv.output_len())) {
                    for (at, gradient) in gradient.chunks(conv.filters).enumerate() {
                        let y = (at / conv.out_width + row).wrapping_sub(conv.top);
                        let x = (at % conv.out_width + column).wrapping_sub(conv.left);
                        if y < conv.height && x < conv.width {
                            let value = f64::from(image[(y * conv.width + x) * conv.channels + channel]) * f64::from(gradient[filter]);
                            (sum, magnitude) = (sum + value, magnitude + value.abs());
                        }
                    }
                }
                prop_assert!((f64::from(*found) - sum).abs() < 1e-6 * magnitude, "{found} for {sum}");
            }
        }
    }

    /// The root mean square of the error, relative to that of the values, against sums in f64.
    #[test]
    fn the_rounding_is_that_of_the_direct_sums() {
        let conv = Conv::new((16, 16, 128), 64, (3, 3), 1, Padding::Same, Activation::None, 1);
        let (image, weights) = (numbers(conv.input_len(), 1), numbers(conv.weights_len(), 2));
        let minimal = outputs_of(&conv, &weights, &image, 1, &mut []);
        let mut direct = vec![0.0; conv.output_len()];
        let mut staged = vec![0.0; conv.padded_len()];
        conv.write_padded(View::Floats(&image), 1, &mut staged);
        let mut results = Results { output: &mut direct, before: &mut [], winners: &mut [] };
        direct::forward(&conv, conv.packed_weights(&weights).values(), &vec![0.0; conv.filters], &staged, &mut results);
        let error = |found: &[f32]| {
            let (mut errors, mut squares) = (0.0, 0.0);
            for (index, found) in found.iter().enumerate() {
                let place = (index / conv.filters / conv.out_width, index / conv.filters % conv.out_width, index % conv.filters);
                let expected = exact(&conv, &weights, &image, place).0;
                (errors, squares) = (errors + (f64::from(*found) - expected).powi(2), squares + expected * expected);
            }
            (errors / squares).sqrt()
        };
        let (minimal, direct) = (error(&minimal), error(&direct));
        assert!(minimal < 1.5 * direct && minimal < 2e-6, "{minimal:e} by minimal filtering, {direct:e} directly");
        println!("relative rounding: {minimal:.1e} by minimal filtering, {direct:.1e} directly");
    }
}
