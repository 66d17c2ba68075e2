//! The convolution with one filter a channel. Each value that is read meets but one weight a tap, so memory is what bounds it: plain loops
//! over the channels, sixteen at a time, that the compiler turns into vectors. Borders are left out rather than filled with zeros.

use std::ops::Range;

use super::Conv;
use crate::{
    layer::Activation,
    simd::{for_each_level, multiply_add},
};

/// Channels that are computed at once, and neighbouring outputs.
const LANES: usize = 16;
const PIXELS: usize = 4;

/// Outputs of these rows of some images without borders. Activations other than ReLU are left to the caller. `weights` is `[rows, columns, channels]`.
pub(super) fn forward(conv: &Conv, weights: &[f32], bias: &[f32], images: &[f32], rows: Range<usize>, output: &mut [f32]) {
    let per_image = rows.len() * conv.out_width * conv.channels;
    for (image, output) in images.chunks_exact(conv.input_len()).zip(output.chunks_exact_mut(per_image.max(1))) {
        for (y, line) in rows.clone().zip(output.chunks_exact_mut(conv.out_width * conv.channels)) {
            output_line(conv, weights, bias, image, y, line);
        }
    }
}

/// Adds some images' gradient of the weights. `gradient` is that of the sums (before bias and activation).
pub(super) fn add_weights_gradient(conv: &Conv, images: &[f32], gradient: &[f32], sums: &mut [f32]) {
    for (image, gradient) in images.chunks_exact(conv.input_len()).zip(gradient.chunks_exact(conv.output_len())) {
        for (y, line) in gradient.chunks_exact(conv.out_width * conv.channels).enumerate() {
            for row in taps(conv.rows, conv.height, y * conv.stride, conv.top, conv.dilation) {
                let sums = &mut sums[row * conv.columns * conv.channels..][..conv.columns * conv.channels];
                weights_line(conv, source(conv, image, y, row), line, sums);
            }
        }
    }
}

/// Adds some images' gradient of the input.
pub(super) fn add_input_gradient(conv: &Conv, weights: &[f32], gradient: &[f32], out: &mut [f32]) {
    for (out, gradient) in out.chunks_exact_mut(conv.input_len()).zip(gradient.chunks_exact(conv.output_len())) {
        for (y, line) in gradient.chunks_exact(conv.out_width * conv.channels).enumerate() {
            for row in taps(conv.rows, conv.height, y * conv.stride, conv.top, conv.dilation) {
                let from = (y * conv.stride + row * conv.dilation - conv.top) * conv.width * conv.channels;
                let weights = &weights[row * conv.columns * conv.channels..][..conv.columns * conv.channels];
                input_line(conv, weights, line, &mut out[from..from + conv.width * conv.channels]);
            }
        }
    }
}

/// The taps of a window along one axis that lie within the image: `start + tap * dilation - border` is from 0 to below `size`.
#[inline(always)]
fn taps(count: usize, size: usize, start: usize, border: usize, dilation: usize) -> Range<usize> {
    let first = border.saturating_sub(start).div_ceil(dilation);
    let end = (size + border).saturating_sub(start).div_ceil(dilation).min(count);
    first.min(end)..end
}

/// The line of an image that a row of taps sees for a row of outputs.
fn source<'a>(conv: &Conv, image: &'a [f32], y: usize, row: usize) -> &'a [f32] {
    let line = conv.width * conv.channels;
    &image[(y * conv.stride + row * conv.dilation - conv.top) * line..][..line]
}

for_each_level! {
    fn output_line(conv: &Conv, weights: &[f32], bias: &[f32], image: &[f32], y: usize, out: &mut [f32]) {
        // The outputs that see all columns of taps.
        let reach = (conv.columns - 1) * conv.dilation;
        let inside = conv.left.div_ceil(conv.stride)..(conv.width + conv.left).saturating_sub(reach).div_ceil(conv.stride).min(conv.out_width);
        let mut x = 0;
        while x < conv.out_width {
            let out = &mut out[x * conv.channels..];
            if inside.contains(&x) && x + PIXELS <= inside.end {
                outputs_at::<FMA, PIXELS>(conv, weights, bias, image, (y, x), out);
                x += PIXELS;
            } else {
                outputs_at::<FMA, 1>(conv, weights, bias, image, (y, x), out);
                x += 1;
            }
        }
    }
}

/// The outputs of neighbours that see the same taps: a weight is read once for all of them. Each output sums its taps up in the same order,
/// however many come with it.
#[inline(always)]
fn outputs_at<const FMA: bool, const N: usize>(
    conv: &Conv,
    weights: &[f32],
    bias: &[f32],
    image: &[f32],
    (y, x): (usize, usize),
    out: &mut [f32],
) {
    let channels = conv.channels;
    let whole = channels / LANES * LANES;
    let rows = taps(conv.rows, conv.height, y * conv.stride, conv.top, conv.dilation);
    let columns = taps(conv.columns, conv.width, x * conv.stride, conv.left, conv.dilation);
    let pixel = |row: usize, column: usize| {
        let line = (y * conv.stride + row * conv.dilation - conv.top) * conv.width;
        (line + x * conv.stride + column * conv.dilation - conv.left) * channels
    };
    let finish = |sum: f32| if conv.activation == Activation::Relu && 0.0 > sum { 0.0 } else { sum };
    for first in (0..whole).step_by(LANES) {
        let mut sums = [lanes(bias, first); N];
        for row in rows.clone() {
            for column in columns.clone() {
                let factors = lanes(weights, (row * conv.columns + column) * channels + first);
                let from = &image[pixel(row, column) + first..];
                for (n, sums) in sums.iter_mut().enumerate() {
                    let values = lanes(from, n * conv.stride * channels);
                    for i in 0..LANES {
                        sums[i] = multiply_add::<FMA>(values[i], factors[i], sums[i]);
                    }
                }
            }
        }
        for (n, sums) in sums.iter().enumerate() {
            out[n * channels + first..][..LANES].copy_from_slice(&sums.map(finish));
        }
    }
    for (n, channel) in (0..N).flat_map(|n| (whole..channels).map(move |channel| (n, channel))) {
        let mut sum = bias[channel];
        for row in rows.clone() {
            for column in columns.clone() {
                let value = image[pixel(row, column) + n * conv.stride * channels + channel];
                sum = multiply_add::<FMA>(value, weights[(row * conv.columns + column) * channels + channel], sum);
            }
        }
        out[n * channels + channel] = finish(sum);
    }
}

for_each_level! {
    /// `sums` is that of one row of taps, `[columns, channels]`; `line` the image's line that it sees.
    fn weights_line(conv: &Conv, line: &[f32], gradient: &[f32], sums: &mut [f32]) {
        let channels = conv.channels;
        let whole = channels / LANES * LANES;
        for (column, sums) in sums.chunks_exact_mut(channels).enumerate() {
            let inside = outputs(conv, column);
            let pixel = |x: usize| (x * conv.stride + column * conv.dilation - conv.left) * channels;
            for first in (0..whole).step_by(LANES) {
                // Two chains of sums: the latency of one would be waited for.
                let mut totals = [lanes(sums, first), [0.0; LANES]];
                for x in inside.clone() {
                    let values = lanes(line, pixel(x) + first);
                    let gradients = lanes(gradient, x * channels + first);
                    let total = &mut totals[x % 2];
                    for i in 0..LANES {
                        total[i] = multiply_add::<FMA>(values[i], gradients[i], total[i]);
                    }
                }
                for i in 0..LANES {
                    sums[first + i] = totals[0][i] + totals[1][i];
                }
            }
            for x in inside {
                for channel in whole..channels {
                    sums[channel] = multiply_add::<FMA>(line[pixel(x) + channel], gradient[x * channels + channel], sums[channel]);
                }
            }
        }
    }
}

for_each_level! {
    /// `weights` are those of one row of taps; `out` the image's line that it sees.
    fn input_line(conv: &Conv, weights: &[f32], gradient: &[f32], out: &mut [f32]) {
        let channels = conv.channels;
        for (column, weights) in weights.chunks_exact(channels).enumerate() {
            for x in outputs(conv, column) {
                let pixel = (x * conv.stride + column * conv.dilation - conv.left) * channels;
                let (out, gradient) = (&mut out[pixel..pixel + channels], &gradient[x * channels..][..channels]);
                for i in 0..channels {
                    out[i] = multiply_add::<FMA>(gradient[i], weights[i], out[i]);
                }
            }
        }
    }
}

/// The outputs of a line for which a column of taps lies within the image.
#[inline(always)]
fn outputs(conv: &Conv, column: usize) -> Range<usize> {
    let offset = column * conv.dilation;
    let first = conv.left.saturating_sub(offset).div_ceil(conv.stride);
    let end = (conv.width + conv.left).saturating_sub(offset).div_ceil(conv.stride).min(conv.out_width);
    first.min(end)..end
}

#[inline(always)]
fn lanes(values: &[f32], first: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&values[first..first + LANES]);
    lanes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layer::{Axes, Convolution, Padding};

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut draw = crate::init::uniform(seed, 1);
        (0..count).map(|_| draw()).collect()
    }

    fn conv() -> impl Strategy<Value = Conv> {
        let sizes = (1..12usize, 1..12usize, 2..40usize, 1..5usize, 1..5usize);
        (sizes, 1..4usize, 1..4usize, any::<bool>()).prop_filter_map(
            "it does not fit",
            |((height, width, channels, rows, columns), stride, dilation, same)| {
                let padding = if same { Padding::Same } else { Padding::Valid };
                let kernel = (rows, columns);
                let activation = Activation::None;
                let spec = Convolution {
                    axes: Axes::Image,
                    filters: None,
                    kernel,
                    stride,
                    dilation,
                    groups: 1,
                    padding,
                    dirac: false,
                    activation,
                };
                let conv = Conv::of((height, width, channels), &spec, 1);
                (conv.out_height > 0 && conv.out_width > 0).then_some(conv)
            },
        )
    }

    /// Calls `see` with the places in output, image and weights of each product there is.
    fn products(conv: &Conv, mut see: impl FnMut(usize, usize, usize)) {
        for y in 0..conv.out_height {
            for x in 0..conv.out_width {
                for row in 0..conv.rows {
                    for column in 0..conv.columns {
                        let from_y = (y * conv.stride + row * conv.dilation).wrapping_sub(conv.top);
                        let from_x = (x * conv.stride + column * conv.dilation).wrapping_sub(conv.left);
                        if from_y < conv.height && from_x < conv.width {
                            for c in 0..conv.channels {
                                let at = |place: usize| place * conv.channels + c;
                                see(at(y * conv.out_width + x), at(from_y * conv.width + from_x), at(row * conv.columns + column));
                            }
                        }
                    }
                }
            }
        }
    }

    fn close(found: &[f32], expected: &[f64]) -> Result<(), TestCaseError> {
        for (found, expected) in found.iter().zip(expected) {
            prop_assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} for {expected}");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn outputs_and_gradients_are_those_of_plain_loops(conv in conv(), seed in any::<u64>()) {
            let (image, weights, bias) = (numbers(conv.input_len(), seed), numbers(conv.weights_len(), seed ^ 1), numbers(conv.channels, seed ^ 2));
            let gradient = numbers(conv.output_len(), seed ^ 3);
            let exact = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<f64>>();
            let mut output: Vec<f64> = (0..conv.output_len()).map(|at| f64::from(bias[at % conv.channels])).collect();
            let (mut of_weights, mut of_input) = (exact(&weights), exact(&image));
            products(&conv, |out, from, weight| {
                output[out] += f64::from(image[from]) * f64::from(weights[weight]);
                of_weights[weight] += f64::from(image[from]) * f64::from(gradient[out]);
                of_input[from] += f64::from(weights[weight]) * f64::from(gradient[out]);
            });
            let mut found = vec![9.0; conv.output_len()];
            forward(&conv, &weights, &bias, &image, 0..conv.out_height, &mut found);
            close(&found, &output)?;
            // Both gradients are added to what is there.
            let (mut found_weights, mut found_input) = (weights.clone(), image.clone());
            add_weights_gradient(&conv, &image, &gradient, &mut found_weights);
            close(&found_weights, &of_weights)?;
            add_input_gradient(&conv, &weights, &gradient, &mut found_input);
            close(&found_input, &of_input)?;
        }
    }
}
