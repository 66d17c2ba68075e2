//! The network by dfdx's operations agrees with the engine of this crate, which plain loops and central differences vouch for; so do the kernels
//! for GPUs.
//!
//! All of it runs on dfdx's `Cpu`; with the feature `cuda` and `EPISTEME_TEST_DEVICE` (`cargo xtask cuda test`) on a GPU: by dfdx's operations there if it
//! is `cuda`, by our kernels if it is the precision that these shall take: `fp32`, `tf32` or `bf16`.

use super::*;
use crate::{
    Batch, Optimiser, OptimiserConfig, Precision,
    accelerator::{Accelerator, Lesson},
    portable::Portable,
};

/// A network of this case that computes by dfdx's operations.
fn portable(case: &Case) -> Network {
    on_portable(case.network())
}

fn on_portable(mut network: Network) -> Network {
    #[cfg(feature = "cuda")]
    if test_device() == "cuda" {
        network.accelerator = Some(crate::cuda::start_portable(&network).unwrap());
        return network;
    } else if let Some(precision) = precision() {
        network.place(crate::Device::Cuda, precision).unwrap();
        return network;
    }
    let (blocks, input) = (network.blocks.clone(), network.architecture().input);
    network.accelerator = Some(Accelerator::start(move || Portable::new(&blocks, input, dfdx::tensor::Cpu::default())).unwrap());
    network
}

fn test_device() -> String {
    std::env::var("EPISTEME_TEST_DEVICE").unwrap_or_default()
}

/// That of our kernels, where it is they that are tested.
fn precision() -> Option<Precision> {
    match test_device().as_str() {
        "fp32" => Some(Precision::Fp32),
        "tf32" => Some(Precision::Tf32),
        "bf16" => Some(Precision::Bf16),
        _ => None,
    }
}

/// How much more than fp32 the device that is tested may differ: by as much as it rounds more roughly, up to the cancelling of sums.
fn roughness() -> f32 {
    match precision() {
        None | Some(Precision::Fp32) => 1.0,
        Some(Precision::Tf32) => 10.0,
        Some(Precision::Bf16) => 60.0,
    }
}

/// How far all gradients together may be from where they should be, as a share of their length, where products are rounded: another winner of a
/// pooling window, or another side of a ReLU, changes some of them altogether; and of a few examples nearly all, so [`is_comparable`].
fn apart() -> Option<f64> {
    match precision()? {
        Precision::Fp32 => None,
        Precision::Tf32 => Some(0.1),
        Precision::Bf16 => Some(0.4),
    }
}

/// Where products are rounded, random networks have no kinks: another winner could turn the gradient of a small one around. Those that
/// [`each_kind_of_layer_agrees`] compares, always the same ones, have some.
fn is_comparable(case: &Case) -> bool {
    is_tame(case) && (apart().is_none() || !has_kink(&case.architecture.layers))
}

/// Loss and gradients by dfdx's operations.
fn learn(network: &Network, input: &[f32], labels: &[u32]) -> (f32, Vec<Vec<f32>>) {
    let input = Input::Floats(input).to_values();
    let lesson = Lesson { input, labels: labels.to_vec(), options: LossOptions::default(), seed: network.seed(), step: 0 };
    let learnt = network.accelerator.as_ref().unwrap().learn(network.state(), lesson).unwrap();
    (learnt.report.loss, learnt.gradients)
}

/// Two ways of one sum in f32 differ by this much, beside the largest of their kind.
const TOLERANCE: f32 = 2e-3;
/// And by this much where all of their kind are small.
const ROUNDING: f32 = 2e-4;

fn check(case: &Case) -> Result<(), TestCaseError> {
    let (engine, portable, input, labels) = (case.network(), portable(case), case.input(), case.labels());
    let (loss, found) = learn(&portable, &input, &labels);
    let exact: Vec<f64> = input.iter().map(|value| f64::from(*value)).collect();
    let expected = cross_entropy(&logits(&case.architecture, &engine.reference_weights(), &exact), &labels);
    let roughness = roughness();
    prop_assert!((f64::from(loss) - expected).abs() < 1e-3 * f64::from(roughness) * expected.max(1.0), "a loss of {loss} for {expected}");
    let expected = gradients(&engine, &input, &labels);
    // A norm magnifies a channel that hardly varies by up to 300, and with it the rounding of sums that are zero in truth.
    let rounding = if has_norm(&case.architecture.layers) { 10.0 * ROUNDING } else { ROUNDING };
    let (mut all, mut differ) = (0.0, 0.0);
    for ((parameter, found), expected) in engine.parameters.iter().zip(&found).zip(&expected) {
        if parameter.is_frozen {
            continue;
        }
        all += expected.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        differ += found.iter().zip(expected).map(|(found, expected)| f64::from(found - expected).powi(2)).sum::<f64>();
        prop_assert_eq!(found.len(), expected.len(), "{}", &parameter.name);
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let differs = (found - expected).abs();
            let is_near = apart().is_some() || differs <= rounding + TOLERANCE * largest;
            prop_assert!(is_near, "{} [{index}]: {found} for {expected}", parameter.name);
        }
    }
    let share = (differ / all.max(1e-6)).sqrt();
    prop_assert!(apart().is_none_or(|most| share < most), "the gradients are {share} of their length apart");
    let (found, expected) = (portable.logits(Input::Floats(&input)).unwrap(), engine.logits(Input::Floats(&input)).unwrap());
    let largest = expected.iter().fold(1.0f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        prop_assert!((found - expected).abs() < 1e-3 * roughness * largest, "{found} for {expected} at inference");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn losses_gradients_and_logits_of_random_networks_agree(case in case().prop_filter("comparable", is_comparable)) {
        check(&case)?;
    }

    #[test]
    fn those_of_random_series_agree(case in series_case().prop_filter("comparable", is_comparable)) {
        check(&case)?;
    }
}

#[test]
fn each_kind_of_layer_agrees() {
    for text in [
        "conv 4 3x3 relu",
        "conv 6 3x2 stride 2 same gelu",
        "conv 6 3x3 dilation 2 same silu",
        "conv 10 2x3 groups 5 relu",
        "conv 10 3x3 groups 5 stride 2 dilation 2 same",
        "depthwise 3x3 same relu",
        "pool 2",
        "pool 3 stride 2",
        "pool 2 stride 3",
        "avgpool 2",
        "avgpool 3 stride 1",
        "globalpool",
        "batchnorm relu",
        "batchnorm noscale epsilon 1e-3 silu",
        "dense 7 gelu",
        r#"{"residual": ["batchnorm relu", "conv 5 3x3 same", {"residual": ["conv 5 1x1 silu"]}]}"#,
        r#"{"residual": ["conv 9 3x3 stride 2 same relu", "batchnorm"], "shortcut": ["conv 9 1x1 stride 2", "batchnorm"], "activation": "relu"}"#,
        r#"{"residual": ["pool 2", "conv 4 1x1"], "shortcut": ["conv 4 2x2 stride 2 gelu"], "activation": "gelu"}"#,
    ] {
        for (height, width, channels, batch) in [(8, 8, 2, 5), (9, 7, 3, 17)] {
            let layers = layers(&["conv 5 2x2 same silu", text, "dense 3"]);
            let architecture = Architecture { input: Shape::Image { height, width, channels }, layers };
            check(&Case { architecture, batch, seed: 7 }).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }
}

#[test]
fn products_of_several_tiles_and_long_sums_agree() {
    let layers = layers(&["conv 72 3x3 same relu", "conv 130 3x3 stride 2 groups 2 gelu", "dense 70 relu", "dense 3"]);
    let architecture = Architecture { input: Shape::Image { height: 9, width: 8, channels: 40 }, layers };
    check(&Case { architecture, batch: 5, seed: 7 }).unwrap();
}

#[test]
fn first_layers_agree_a_fitted_one_and_one_that_pools_and_a_series_behind_a_dense_one() {
    let image = Shape::Image { height: 10, width: 9, channels: 2 };
    for (input, texts) in [
        (image, &["whiten 2x2 gelu", "conv 3 3x3 relu", "pool 2", "dense 3"][..]),
        (image, &["pool 2", "conv 3 3x3 relu", "dense 3"]),
        (image, &["batchnorm", "dense 3"]),
        (Shape::Features(9), &["dense 24 relu", "series 8x3", "conv1d 4 3 causal gelu", "batchnorm relu", "pool1d 2", "dense 3"]),
    ] {
        check(&Case { architecture: Architecture { input, layers: layers(texts) }, batch: 9, seed: 7 }).unwrap();
    }
}

/// All kinds of layers, in a network that learns.
fn trained_network() -> Network {
    let texts = [
        "conv 8 3x3 same",
        "batchnorm relu",
        "dropout 0.1",
        r#"{"residual": ["conv 8 3x3 same", "batchnorm relu", "depthwise 3x3 same"], "activation": "relu"}"#,
        r#"{"residual": ["conv 12 3x3 stride 2 same gelu"], "shortcut": ["conv 12 1x1 stride 2"]}"#,
        "conv 12 2x2 relu",
        "pool 2",
        "dropout 0.2",
        "dense 16 silu",
        "dense 3",
    ];
    Network::new(&Architecture { input: Shape::Image { height: 12, width: 12, channels: 2 }, layers: layers(&texts) }, 7).unwrap()
}

/// Noise, brighter in the upper, middle or lower rows.
fn stripes(step: usize, count: usize) -> (Vec<f32>, Vec<u32>) {
    let mut draw = crate::init::uniform(11, step as u64);
    let labels: Vec<u32> = (0..count).map(|n| (n % 3) as u32).collect();
    let place = |label: u32| (0..144).map(move |pixel| pixel / 48 == label as usize);
    let bright = labels.iter().copied().flat_map(place).flat_map(|is_bright| [is_bright, false]);
    let values = bright.map(|is_bright| 0.7 * draw() + f32::from(u8::from(is_bright))).collect();
    (values, labels)
}

/// The loss of each step, and the weights at the end.
fn train(mut network: Network, config: &OptimiserConfig, steps: usize) -> (Vec<f32>, Vec<u8>, Network) {
    let mut optimiser = Optimiser::new(config, &network).unwrap();
    let mut losses = Vec::new();
    for step in 0..steps {
        let (values, labels) = stripes(step, 24);
        let batch = Batch { input: Input::Floats(&values), labels: &labels };
        losses.push(network.train_step(batch, &mut optimiser, &LossOptions { label_smoothing: 0.1, class_weights: None }).unwrap().loss);
    }
    let bytes = network.to_safetensors().unwrap();
    (losses, bytes, network)
}

/// How far the losses of a training by dfdx's operations may be from those of the engine, at any of its steps: about 1 in value, they were found
/// 7e-7 apart on one kind of processor.
const LOSS_TOLERANCE: f32 = 2e-3;

#[test]
fn the_loss_of_a_whole_training_goes_the_same_way_as_that_of_the_engine() {
    let config = OptimiserConfig::Adam { learning_rate: 3e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, bias_rate: 1.0 };
    let (expected, _, engine) = train(trained_network(), &config, 60);
    let (found, _, portable) = train(on_portable(trained_network()), &config, 60);
    let apart = found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
    assert!(apart < roughness() * LOSS_TOLERANCE, "{apart} apart: {found:?} for {expected:?}");
    let end = |losses: &[f32]| losses[50..].iter().sum::<f32>() / 10.0;
    assert!(end(&expected) < 0.6 * expected[0], "it learns: {expected:?}");
    // What was learnt, with running statistics and without dropout, judges alike.
    let (values, labels) = stripes(1_000, 60);
    let judged = |network: &Network| {
        network.evaluate(Batch { input: Input::Floats(&values), labels: &labels }, &LossOptions::default()).unwrap().loss
    };
    assert!(
        (judged(&portable) - judged(&engine)).abs() < 3.0 * roughness() * LOSS_TOLERANCE,
        "{} for {}",
        judged(&portable),
        judged(&engine)
    );
}

#[test]
fn a_training_by_dfdxs_operations_gives_the_same_bytes_each_time() {
    let config = OptimiserConfig::Sgd { learning_rate: 0.02, momentum: 0.9, nesterov: true, weight_decay: 1e-3, bias_rate: 1.0 };
    let once = || train(on_portable(trained_network()), &config, 8).1;
    assert!(once() == once());
}

#[test]
fn batches_that_are_begun_ahead_come_out_as_by_themselves() {
    let architecture = Architecture {
        input: Shape::Image { height: 7, width: 6, channels: 2 },
        layers: layers(&["conv 5 3x3", "batchnorm relu", "dense 3"]),
    };
    let case = |batch| Case { architecture: architecture.clone(), batch, seed: 7 };
    let network = portable(&case(1));
    let inputs: Vec<Vec<f32>> = [3, 200, 1, 17, 200].into_iter().map(|batch| case(batch).input()).collect();
    let alone: Vec<Vec<f32>> = inputs.iter().map(|input| network.logits(Input::Floats(input)).unwrap()).collect();
    let mut begun: Vec<_> = inputs.iter().map(|input| network.begin(Input::Floats(input)).unwrap()).collect();
    drop(begun.remove(3));
    let together: Vec<Vec<f32>> = begun.into_iter().rev().map(|pending| pending.logits().unwrap()).collect();
    for (found, at) in together.iter().zip([4, 2, 1, 0]) {
        assert!(*found == alone[at], "batch {at}");
    }
}

#[test]
fn pixels_are_scaled_on_their_way_to_the_device() {
    let architecture =
        Architecture { input: Shape::Image { height: 6, width: 5, channels: 2 }, layers: layers(&["conv 3 3x3 relu", "dense 3"]) };
    let case = Case { architecture, batch: 4, seed: 3 };
    let bytes: Vec<u8> = (0..240u8).collect();
    let normalisation = crate::Normalisation::standard(&[0.4, 0.5], &[0.2, 0.3]);
    let input = Input::Pixels { bytes: &bytes, normalisation: &normalisation };
    let (found, expected) = (portable(&case).logits(input).unwrap(), case.network().logits(input).unwrap());
    assert!(
        found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-3 * roughness()),
        "{found:?} for {expected:?}"
    );
}

#[test]
fn frozen_weights_stay_and_shorter_gradients_are_clipped_alike() {
    let architecture =
        Architecture { input: Shape::Image { height: 6, width: 6, channels: 1 }, layers: layers(&["whiten 2x2 bias 1 relu", "dense 3"]) };
    let step = |network: Network| {
        let mut network = network;
        let before = network.parameters[0].values.to_vec();
        let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network).unwrap();
        optimiser.set_clip_norm(Some(0.01));
        network.begin_epoch(2);
        let values: Vec<f32> = (0..4 * 36).map(|i| (i as f32 * 0.7).sin()).collect();
        let batch = Batch { input: Input::Floats(&values), labels: &[0, 1, 2, 0] };
        network.train_step(batch, &mut optimiser, &LossOptions::default()).unwrap();
        assert_eq!(before, network.parameters[0].values.to_vec());
        network.parameters[2].values.to_vec()
    };
    let new = || Network::new(&architecture, 7).unwrap();
    let (found, expected) = (step(on_portable(new())), step(new()));
    assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-5 * roughness()));
}
