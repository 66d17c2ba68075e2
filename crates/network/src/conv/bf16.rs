//! The convolution as products of bf16 factors on a processor's matrix tiles ([`amx`](crate::amx)).
//!
//! A block of 32 × 32 sums takes 32 pixels that follow each other. So images are rounded to *planes*, one after the other, line after line, with as
//! few zeros between lines and between images as a window can reach: then each point of a kernel reads a plane from one offset on, whatever
//! line a pixel is in, and nothing is copied to patches. What is summed up at the zeros' own places is never read.
//!
//! Seen so, outputs are Σ plane\[pixel + offset\] × weights over the points and channels, the input's gradient is Σ gradient plane\[pixel - offset\] ×
//! weights over the points and filters, and the weights' gradient at a point is Σ plane\[pixel + offset\] × gradient plane\[pixel\] over the pixels.

use std::ops::Range;

use rayon::prelude::*;

use super::{Conv, Kept, Results, Sums, pooling};
use crate::{
    amx::{
        BLOCK, PAIRS, Unit,
        products::{add_products, as_pairs, multiply, pair_pixels, pitch, row_of, transpose, write_pixels},
        round,
    },
    partition::one_by_one,
    scratch::{Aligned, Scratch, sized},
    simd::{add, add_rows, for_each_level},
};

/// Fewer channels or filters leave most of a block empty.
const FEWEST: usize = 16;

/// Pixels of the images whose planes are held at once, so that they stay in the second-level cache: forward, and backward, where each sum of the weights'
/// gradient is read and written once for so many.
const FORWARD: usize = 512;
const BACKWARD: usize = 1024;

/// How pixels lie in planes.
#[derive(Clone, Copy)]
struct Plane {
    /// From one line of an image to the next, and from one image to the next.
    line: usize,
    image: usize,
    /// Zeros before the first image and behind the last.
    margin: usize,
}

impl Plane {
    fn of(conv: &Conv) -> Self {
        let (bottom, right) = (conv.padded_height - conv.height - conv.top, conv.padded_width - conv.width - conv.left);
        let line = conv.width + conv.left.max(right);
        Plane { line, image: (conv.height + conv.top.max(bottom)) * line, margin: (conv.rows - 1) * line + conv.columns - 1 }
    }

    /// Whole blocks of the pixels of so many images.
    fn pixels(&self, images: usize) -> usize {
        (images * self.image).next_multiple_of(BLOCK)
    }

    /// The same with the margins.
    fn all(&self, images: usize) -> usize {
        self.margin + self.pixels(images) + self.margin
    }

    /// Parts of so many images, each of about `pixels` pixels.
    fn parts(&self, count: usize, pixels: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let most = (pixels / self.image).max(1);
        (0..count).step_by(most).map(move |first| first..count.min(first + most))
    }
}

impl Conv {
    /// Whether it is computed so, if there is a unit for it.
    pub(super) fn fits_tiles(&self) -> bool {
        (self.stride, self.dilation, self.groups) == (1, 1, 1) && self.channels.min(self.filters) >= FEWEST
    }

    /// How many pixels from an output's place in its plane the values lie that a kernel's points take.
    fn offsets(&self, plane: &Plane) -> Vec<isize> {
        let point = |row: usize, column: usize| {
            let (down, right) = (row as isize - self.top as isize, column as isize - self.left as isize);
            down * plane.line as isize + right
        };
        (0..self.rows).flat_map(|row| (0..self.columns).map(move |column| point(row, column))).collect()
    }

    /// The weights as packed pairs of channels: `[filters / 32, points, channels / 32]` times [`PAIRS`].
    pub(super) fn channel_pairs(&self, weights: &[f32]) -> Aligned {
        let filters = self.filters;
        pairs(self.rows * self.columns, self.channels, filters, |point, channel, filter| {
            weights[(point * self.channels + channel) * filters + filter]
        })
    }

    /// The weights as packed pairs of filters: `[channels / 32, points, filters / 32]` times [`PAIRS`].
    pub(super) fn filter_pairs(&self, weights: &[f32]) -> Aligned {
        let filters = self.filters;
        pairs(self.rows * self.columns, filters, self.channels, |point, filter, channel| {
            weights[(point * self.channels + channel) * filters + filter]
        })
    }
}

/// `value(point, inner, outer)` as packed pairs of inner ones, on all threads.
fn pairs(points: usize, inner: usize, outer: usize, value: impl Fn(usize, usize, usize) -> f32 + Sync) -> Aligned {
    let (steps, blocks) = (inner.div_ceil(BLOCK), outer.div_ceil(BLOCK));
    let mut all = Aligned::zeros(blocks * points * steps * PAIRS);
    one_by_one(all.values_mut().par_chunks_mut(steps * PAIRS)).enumerate().for_each(|(index, out)| {
        let (block, point) = (index / points, index % points);
        for at in 0..inner {
            for (column, outer) in (block * BLOCK..outer.min((block + 1) * BLOCK)).enumerate() {
                let to = at / BLOCK * PAIRS + column / 16 * 256 + at % BLOCK / 2 * 16 + column % 16;
                out[to] = f32::from_bits(out[to].to_bits() | u32::from(round(value(point, at, outer))) << (at % 2 * 16));
            }
        }
    });
    all
}

/// Outputs of some images, which have no borders.
pub(super) fn forward(
    conv: &Conv,
    unit: Unit,
    weights: &[f32],
    bias: &[f32],
    images: &[f32],
    results: &mut Results<'_>,
    scratch: &mut Scratch,
) {
    let (plane, len, filters) = (Plane::of(conv), conv.output_len(), pitch(conv.filters));
    let offsets = conv.offsets(&plane);
    let Scratch { plane: rounded, product, columns, .. } = scratch;
    for images_of in plane.parts(images.len() / conv.input_len(), FORWARD) {
        let count = images_of.len();
        let rounded = sized(rounded, plane.all(count) * pitch(conv.channels));
        write_images(conv, &plane, &images[images_of.start * conv.input_len()..images_of.end * conv.input_len()], rounded);
        let product = sized(product, plane.pixels(count) * filters);
        multiply(unit, rounded, plane.margin, &offsets, as_pairs(weights), product, filters);
        let mut results = results.part(images_of.start * len..images_of.end * len);
        for index in 0..count {
            let product = &product[index * plane.image * filters..];
            take_outputs(conv, &plane, product, index, &mut results, columns);
        }
        pooling::add_bias(results.output, bias);
        if !results.before.is_empty() {
            results.before.copy_from_slice(results.output);
        }
        conv.activation.apply(results.output);
    }
}

/// Adds the gradients of some images; `weights` are [`Conv::filter_pairs`]. `gradient` is overwritten.
pub(super) fn backward(
    conv: &Conv,
    unit: Unit,
    weights: &[f32],
    kept: &Kept<'_>,
    gradient: &mut [f32],
    sums: &mut Sums<'_>,
    scratch: &mut Scratch,
) {
    let reference = if conv.activation.needs_input() { kept.before } else { kept.output };
    conv.activation.backward(reference, gradient);
    add_rows(gradient, &mut sums.partial.bias);
    let (plane, len, input_len) = (Plane::of(conv), conv.output_len(), conv.input_len());
    let (channels, filters) = (pitch(conv.channels), pitch(conv.filters));
    let offsets = conv.offsets(&plane);
    let backwards: Vec<isize> = offsets.iter().map(|offset| -offset).collect();
    let Scratch { image, plane: rounded, gradient_plane, transposed, pairs, product, gradient: by_point, .. } = scratch;
    let by_point = sized(by_point, offsets.len() * channels * filters);
    by_point.fill(0.0);
    for images in plane.parts(gradient.len() / len, BACKWARD) {
        let (count, outputs) = (images.len(), images.start * len..images.end * len);
        let inputs = images.start * input_len..images.end * input_len;
        let all = plane.all(count);
        let of_outputs = sized(gradient_plane, all * filters);
        let winners = if conv.pool > 1 { &kept.winners[outputs.clone()] } else { &[] };
        write_gradient(conv, &plane, &gradient[outputs], winners, of_outputs);
        if let Some(out) = sums.input.as_deref_mut() {
            let product = sized(product, plane.pixels(count) * channels);
            multiply(unit, of_outputs, plane.margin, &backwards, as_pairs(weights), product, channels);
            for (out, product) in out[inputs.clone()].chunks_exact_mut(input_len).zip(product.chunks(plane.image * channels)) {
                take_lines(product, plane.line, channels, (conv.width, conv.channels), out);
            }
        }
        let rounded = sized(rounded, all * channels);
        write_images(conv, &plane, conv.as_floats(kept.input.range(inputs), image), rounded);
        let row = row_of(all);
        let transposed = sized(transposed, channels * row);
        transpose(rounded, channels, row, transposed);
        let pairs = sized(pairs, plane.pixels(count) / 2 * filters);
        pair_pixels(&of_outputs[plane.margin * filters..][..plane.pixels(count) * filters], filters, pairs);
        add_products(unit, (transposed, row, plane.margin), &offsets, (pairs, plane.pixels(count)), by_point, filters);
    }
    for (index, sums) in sums.partial.weights.chunks_exact_mut(conv.filters).enumerate() {
        let (point, channel) = (index / conv.channels, index % conv.channels);
        add(&by_point[(point * channels + channel) * filters..][..conv.filters], sums);
    }
}

/// Rounds images to planes.
fn write_images(conv: &Conv, plane: &Plane, images: &[f32], out: &mut [u16]) {
    let (channels, line) = (pitch(conv.channels), conv.width * conv.channels);
    let mut done = 0;
    for (index, values) in images.chunks_exact(line).enumerate() {
        let start = (plane.margin + index / conv.height * plane.image + index % conv.height * plane.line) * channels;
        out[done..start].fill(0);
        done = start + conv.width * channels;
        write_pixels(values, conv.channels, channels, &mut out[start..done]);
    }
    out[done..].fill(0);
}

/// Rounds the gradient of some images' sums to planes; behind a pooling it is that of the maxima.
fn write_gradient(conv: &Conv, plane: &Plane, gradient: &[f32], winners: &[u8], out: &mut [u16]) {
    let filters = pitch(conv.filters);
    let (_, width) = conv.computed();
    let start = |image: usize, y: usize| (plane.margin + image * plane.image + y * plane.line) * filters;
    let line = conv.out_width * conv.filters;
    let mut done = 0;
    for (index, values) in gradient.chunks_exact(line).enumerate() {
        let (image, y) = (index / conv.out_height, index % conv.out_height * conv.pool);
        for row in 0..conv.pool {
            let start = start(image, y + row);
            out[done..start].fill(0);
            done = start + width * filters;
            let out = &mut out[start..done];
            if conv.pool == 1 {
                write_pixels(values, conv.filters, filters, out);
            } else {
                let winners = &winners[index * line..][..line];
                for (x, (values, winners)) in values.chunks_exact(conv.filters).zip(winners.chunks_exact(conv.filters)).enumerate() {
                    for column in 0..conv.pool {
                        let to = &mut out[(x * conv.pool + column) * filters..][..filters];
                        write_winners(values, winners, (row * conv.pool + column) as u8, to);
                    }
                }
            }
        }
    }
    out[done..].fill(0);
}

for_each_level! {
    /// Rounds those values of a pixel that come from this place of their windows; the others are zero.
    fn write_winners(values: &[f32], winners: &[u8], place: u8, out: &mut [u16]) {
        let _ = FMA;
        for ((out, value), winner) in out.iter_mut().zip(values).zip(winners) {
            *out = if *winner == place { round(*value) } else { 0 };
        }
        out[values.len()..].fill(0);
    }
}

/// Takes an image's outputs from its products, which have zeros between: the maxima where they are pooled.
fn take_outputs(conv: &Conv, plane: &Plane, product: &[f32], index: usize, results: &mut Results<'_>, buffer: &mut Vec<f32>) {
    let (len, filters) = (conv.output_len(), pitch(conv.filters));
    let range = index * len..(index + 1) * len;
    if conv.pool == 1 {
        return take_lines(product, plane.line, filters, (conv.out_width, conv.filters), &mut results.output[range]);
    }
    let (height, width) = conv.computed();
    let (product, line) = if filters == conv.filters {
        (product, plane.line)
    } else {
        let lines = sized(buffer, height * width * conv.filters);
        take_lines(product, plane.line, filters, (width, conv.filters), lines);
        (&*lines, width)
    };
    let winners = if results.winners.is_empty() { &mut [][..] } else { &mut results.winners[range.clone()] };
    let output = &mut results.output[range];
    pooling::pool_lines(product, conv.out_height, line, conv.out_width, conv.filters, conv.pool, output, winners);
}

/// Takes `values` values of each of `width` pixels of each line.
fn take_lines(from: &[f32], line: usize, pitch: usize, (width, values): (usize, usize), out: &mut [f32]) {
    for (y, out) in out.chunks_exact_mut(width * values).enumerate() {
        let from = &from[y * line * pitch..][..width * pitch];
        if values == pitch {
            out.copy_from_slice(from);
        } else {
            out.chunks_exact_mut(values).zip(from.chunks_exact(pitch)).for_each(|(out, from)| out.copy_from_slice(&from[..values]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        amx::tiles,
        conv::{BackwardPath, ForwardPath, Weighted, Weights},
        examples::View,
        layer::{Activation, Padding},
    };

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut draw = crate::init::uniform(seed, 1);
        (0..count).map(|_| draw()).collect()
    }

    fn units() -> impl Iterator<Item = Unit> {
        std::iter::once(Unit::Loops).chain(tiles())
    }

    fn conv() -> impl Strategy<Value = Conv> {
        let padding = prop_oneof![Just(Padding::Valid), Just(Padding::Same), Just(Padding::Causal)];
        let activation = prop_oneof![Just(Activation::None), Just(Activation::Relu), Just(Activation::Gelu)];
        let shape = (1..9usize, 1..9usize, 16..50usize, 16..50usize, (1..4usize, 1..4usize), padding, activation, 1..4usize);
        shape.prop_filter_map("a window fits", |(height, width, channels, filters, kernel, padding, activation, pool)| {
            // A causal one is of one line.
            let (height, rows) = if padding == Padding::Causal { (1, 1) } else { (height, kernel.0) };
            let activation = if pool > 1 && !activation.is_monotone() { Activation::None } else { activation };
            let conv = Conv::new((height, width, channels), filters, (rows, kernel.1), 1, padding, activation, pool);
            (conv.out_height > 0 && conv.out_width > 0).then_some(conv)
        })
    }

    fn rounded(values: &[f32]) -> Vec<f64> {
        values.iter().map(|value| f64::from(f32::from_bits(u32::from(round(*value)) << 16))).collect()
    }

    /// Calls `each(input, weight, output before pooling)` with the places of the factors of each product of an image.
    fn products(conv: &Conv, mut each: impl FnMut(usize, usize, usize)) {
        let (height, width) = conv.computed();
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            for (row, column) in (0..conv.rows).flat_map(|row| (0..conv.columns).map(move |column| (row, column))) {
                let (from_y, from_x) = ((y + row).wrapping_sub(conv.top), (x + column).wrapping_sub(conv.left));
                if from_y >= conv.height || from_x >= conv.width {
                    continue;
                }
                for (channel, filter) in (0..conv.channels).flat_map(|channel| (0..conv.filters).map(move |filter| (channel, filter))) {
                    each(
                        (from_y * conv.width + from_x) * conv.channels + channel,
                        ((row * conv.columns + column) * conv.channels + channel) * conv.filters + filter,
                        (y * width + x) * conv.filters + filter,
                    );
                }
            }
        }
    }

    fn all_close(found: &[f32], expected: &[f64], tolerance: f64) -> Result<(), TestCaseError> {
        prop_assert_eq!(found.len(), expected.len());
        for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
            prop_assert!((f64::from(*found) - expected).abs() < tolerance, "{found} for {expected} at {at}");
        }
        Ok(())
    }

    /// The outputs, and what the backward pass reads.
    fn outputs_of(conv: &Conv, weights: &[f32], bias: &[f32], images: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<u8>) {
        let size = images.len() / conv.input_len() * conv.output_len();
        let (mut output, mut winners) = (vec![0.0; size], vec![0; if conv.pool > 1 { size } else { 0 }]);
        let mut before = vec![0.0; if conv.activation.needs_input() { size } else { 0 }];
        let prepared = conv.prepared_weights(weights);
        let layer = Weighted { weights, prepared: prepared.values(), bias };
        let mut results = Results { output: &mut output, before: &mut before, winners: &mut winners };
        conv.forward(&layer, View::Floats(images), &mut results, &mut Scratch::default());
        (output, before, winners)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        #[test]
        fn outputs_and_gradients_are_those_of_plain_loops_over_rounded_factors(conv in conv(), count in 1..4usize, seed in any::<u64>()) {
            let (height, width) = conv.computed();
            let (images, weights) = (numbers(count * conv.input_len(), seed), numbers(conv.weights_len(), seed ^ 1));
            let (bias, gradient) = (numbers(conv.filters, seed ^ 2), numbers(count * conv.output_len(), seed ^ 3));
            for unit in units() {
                let conv = Conv { unit: Some(unit), ..conv.clone() };
                prop_assert_eq!((conv.forward_path(), conv.backward_path()), (ForwardPath::Tiles(unit), BackwardPath::Tiles(unit)));
                let (output, before, winners) = outputs_of(&conv, &weights, &bias, &images);
                let mut given = gradient.clone();
                let mut of_images = vec![9.0; images.len()];
                let mut partial = conv.empty_partial();
                let reordered = conv.reordered_weights(&weights);
                let kept = Kept { input: View::Floats(&images), output: &output, before: &before, winners: &winners };
                let mut sums = Sums { partial: &mut partial, input: Some(&mut of_images) };
                conv.backward(Weights { by_patch: &weights, reordered: reordered.values() }, &kept, &mut given, &mut sums, &mut Scratch::default());

                // What the activation leaves of the gradient is tested elsewhere.
                let (of_sums, factors) = (rounded(&given), rounded(&weights));
                let mut expected_weights = vec![0.0; weights.len()];
                let mut expected_bias = vec![0.0; conv.filters];
                for image in 0..count {
                    let values = rounded(&images[image * conv.input_len()..][..conv.input_len()]);
                    let outputs = image * conv.output_len()..(image + 1) * conv.output_len();
                    let mut sums = vec![0.0; height * width * conv.filters];
                    products(&conv, |input, weight, at| sums[at] += values[input] * factors[weight]);
                    let mut dense = vec![0.0; sums.len()];
                    let mut expected = Vec::new();
                    for (index, at) in outputs.clone().enumerate() {
                        let (pixel, filter) = (index / conv.filters, index % conv.filters);
                        let (y, x) = (pixel / conv.out_width * conv.pool, pixel % conv.out_width * conv.pool);
                        let place = |place: usize| ((y + place / conv.pool) * width + x + place % conv.pool) * conv.filters + filter;
                        let largest = (0..conv.pool * conv.pool).map(|at| sums[place(at)]).fold(f64::MIN, f64::max);
                        let winner = place(winners.get(at).map_or(0, |winner| usize::from(*winner)));
                        prop_assert!(sums[winner] > largest - 1e-4, "not the place of the maximum");
                        dense[winner] = of_sums[at];
                        expected_bias[filter] += f64::from(given[at]);
                        let mut value = [largest as f32 + bias[filter]];
                        conv.activation.apply(&mut value);
                        expected.push(f64::from(value[0]));
                    }
                    all_close(&output[outputs], &expected, 1e-4)?;
                    let mut expected = vec![0.0; conv.input_len()];
                    products(&conv, |input, weight, at| {
                        expected[input] += dense[at] * factors[weight];
                        expected_weights[weight] += dense[at] * values[input];
                    });
                    all_close(&of_images[image * conv.input_len()..][..conv.input_len()], &expected, 1e-4)?;
                }
                all_close(&partial.weights, &expected_weights, 1e-4)?;
                all_close(&partial.bias, &expected_bias, 1e-4)?;
            }
        }
    }

    /// So many images that they are taken in parts.
    #[test]
    fn an_image_has_the_same_outputs_whatever_images_are_beside_it() {
        for unit in units() {
            let conv = Conv::new((9, 9, 20), 20, (3, 3), 1, Padding::Same, Activation::Relu, 2);
            let conv = Conv { unit: Some(unit), ..conv };
            let (images, weights, bias) = (numbers(13 * conv.input_len(), 1), numbers(conv.weights_len(), 2), numbers(conv.filters, 3));
            let (together, _, winners) = outputs_of(&conv, &weights, &bias, &images);
            for (index, image) in images.chunks(conv.input_len()).enumerate() {
                let range = index * conv.output_len()..(index + 1) * conv.output_len();
                let (alone, _, alone_winners) = outputs_of(&conv, &weights, &bias, image);
                assert_eq!((&together[range.clone()], &winners[range]), (&alone[..], &alone_winners[..]));
            }
        }
    }

    /// The root mean square of the error, relative to that of the values.
    #[test]
    fn an_output_is_as_exact_as_its_rounded_factors() {
        let conv = Conv::new((16, 16, 128), 64, (3, 3), 1, Padding::Same, Activation::None, 1);
        let (image, weights) = (numbers(conv.input_len(), 1), numbers(conv.weights_len(), 2));
        let exact = {
            let mut sums = vec![0.0; conv.output_len()];
            products(&conv, |input, weight, at| sums[at] += f64::from(image[input]) * f64::from(weights[weight]));
            sums
        };
        for unit in units() {
            let conv = Conv { unit: Some(unit), ..conv.clone() };
            let (found, ..) = outputs_of(&conv, &weights, &vec![0.0; conv.filters], &image);
            let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
            let errors = square(&mut found.iter().zip(&exact).map(|(found, exact)| f64::from(*found) - exact));
            let error = (errors / square(&mut exact.iter().copied())).sqrt();
            assert!((1e-4..3e-3).contains(&error), "{error:e}");
            println!("relative error of {unit:?}: {error:.1e}");
        }
    }
}
