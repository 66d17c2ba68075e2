//! What holds for each kind of minimal filtering.

use proptest::prelude::*;

use crate::{
    conv::{BackwardPath, Conv, ForwardPath, Results, Weighted, direct},
    examples::View,
    layer::{Activation, Padding},
    scratch::Scratch,
};

/// Of every filter.
pub(super) const BIAS: f32 = 0.25;

pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut draw = crate::init::uniform(seed, 1);
    (0..count).map(|_| draw()).collect()
}

fn conv() -> impl Strategy<Value = Conv> {
    let kernel = prop_oneof![Just(((3, 3), 1)), Just(((3, 3), 2)), (1..6usize).prop_map(|rows| ((rows, 5), 1))];
    let shape = (3..16usize, 3..16usize, 8..40usize, 8..40usize, kernel, any::<bool>(), 1..3usize);
    shape.prop_filter_map("not of the kind", |(height, width, channels, filters, (kernel, stride), same, pool)| {
        let padding = if same { Padding::Same } else { Padding::Valid };
        let conv = Conv::new((height, width, channels), filters, kernel, stride, padding, Activation::None, pool);
        let is_of_them =
            matches!(conv.forward_path(), ForwardPath::Winograd | ForwardPath::WinogradWithStrides | ForwardPath::WinogradInRows);
        (conv.out_height > 0 && conv.out_width > 0 && is_of_them).then_some(conv)
    })
}

pub(super) fn outputs_of(conv: &Conv, weights: &[f32], images: &[f32], count: usize, winners: &mut [u8]) -> Vec<f32> {
    let bias = vec![BIAS; conv.filters];
    let prepared = conv.prepared_weights(weights);
    let layer = Weighted { weights, prepared: prepared.values(), bias: &bias };
    let mut output = vec![0.0; count * conv.output_len()];
    let mut results = Results { output: &mut output, before: &mut [], winners };
    conv.forward(&layer, View::Floats(images), &mut results, &mut Scratch::default());
    output
}

/// The same directly.
pub(super) fn direct_outputs(conv: &Conv, weights: &[f32], images: &[f32], count: usize, winners: &mut [u8]) -> Vec<f32> {
    let mut output = vec![0.0; count * conv.output_len()];
    let mut staged = vec![0.0; count * conv.padded_len()];
    conv.write_padded(View::Floats(images), count, &mut staged);
    let mut results = Results { output: &mut output, before: &mut [], winners };
    direct::forward(conv, conv.packed_weights(weights).values(), &vec![BIAS; conv.filters], &staged, &mut results);
    output
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Which plain loops are held against elsewhere.
    #[test]
    fn outputs_are_those_of_the_direct_sums(conv in conv(), count in 1..6usize, seed in any::<u64>()) {
        let (images, weights) = (numbers(count * conv.input_len(), seed), numbers(conv.weights_len(), seed ^ 1));
        let mut winners = vec![9; if conv.pool > 1 { count * conv.output_len() } else { 0 }];
        let mut expected_winners = winners.clone();
        let found = outputs_of(&conv, &weights, &images, count, &mut winners);
        let expected = direct_outputs(&conv, &weights, &images, count, &mut expected_winners);
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!((found - expected).abs() < 1e-5 + 2e-7 * conv.patch() as f32, "{found} for {expected}");
        }
        // Two that are as large but for the rounding may change places.
        let others = winners.iter().zip(&expected_winners).filter(|(found, expected)| found != expected).count();
        prop_assert!(others <= winners.len() / 500, "{others} of {}", winners.len());
    }

    #[test]
    fn an_image_in_bands_has_the_same_bits(conv in conv(), seed in any::<u64>()) {
        let (image, weights) = (numbers(conv.input_len(), seed), numbers(conv.weights_len(), seed ^ 1));
        let whole = outputs_of(&conv, &weights, &image, 1, &mut []);
        let bias = vec![BIAS; conv.filters];
        let prepared = conv.prepared_weights(&weights);
        let layer = Weighted { weights: &weights, prepared: prepared.values(), bias: &bias };
        for threads in [2, 3, 64] {
            let mut output = vec![0.0; conv.output_len()];
            conv.bands_of_windows(threads, &layer, View::Floats(&image), &mut output);
            prop_assert_eq!(&output, &whole);
        }
    }
}

#[test]
fn gradients_are_taken_directly() {
    let of = |kernel, stride| {
        let conv = Conv::new((8, 8, 32), 64, kernel, stride, Padding::Same, Activation::None, 1);
        (conv.forward_path(), conv.backward_path())
    };
    assert_eq!(of((3, 3), 2), (ForwardPath::WinogradWithStrides, BackwardPath::Direct));
    assert_eq!(of((5, 5), 1), (ForwardPath::WinogradInRows, BackwardPath::Direct));
}

/// The root mean square of the error, relative to that of the values, against sums in f64.
#[test]
fn the_rounding_is_little_more_than_that_of_the_direct_sums() {
    for (kernel, stride) in [((3, 3), 1), ((3, 3), 2), ((5, 5), 1)] {
        let conv = Conv::new((16, 16, 128), 64, kernel, stride, Padding::Valid, Activation::None, 1);
        let (image, weights) = (numbers(conv.input_len(), 1), numbers(conv.weights_len(), 2));
        let error = |found: &[f32]| {
            let (mut errors, mut squares) = (0.0, 0.0);
            for (index, found) in found.iter().enumerate() {
                let (y, x, filter) = (index / conv.filters / conv.out_width, index / conv.filters % conv.out_width, index % conv.filters);
                let mut sum = f64::from(BIAS);
                for (tap, channel) in (0..conv.rows * conv.columns).flat_map(|tap| (0..conv.channels).map(move |channel| (tap, channel))) {
                    let pixel = (stride * y + tap / conv.columns) * conv.width + stride * x + tap % conv.columns;
                    let weight = weights[(tap * conv.channels + channel) * conv.filters + filter];
                    sum += f64::from(image[pixel * conv.channels + channel]) * f64::from(weight);
                }
                (errors, squares) = (errors + (f64::from(*found) - sum).powi(2), squares + sum * sum);
            }
            (errors / squares).sqrt()
        };
        let minimal = error(&outputs_of(&conv, &weights, &image, 1, &mut []));
        let direct = error(&direct_outputs(&conv, &weights, &image, 1, &mut []));
        println!("relative rounding of {kernel:?}, stride {stride}: {minimal:.1e} by minimal filtering, {direct:.1e} directly");
        assert!(minimal < 1.5 * direct && minimal < 2e-6, "{minimal:e} by minimal filtering, {direct:e} directly");
    }
}
