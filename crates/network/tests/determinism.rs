//! The same seed and batches give the same bytes: at any number of threads, after a resume, and beside any other examples.
#![allow(clippy::unwrap_used)]

use network::{Architecture, Batch, Device, Input, LossOptions, Network, Normalisation, Optimiser, OptimiserConfig, Precision, Shape};

const IMAGE: usize = 18 * 17 * 3;
const BATCH: usize = 53;

/// All kinds of layers.
fn architecture() -> Architecture {
    let layers = [
        "conv 20 3x3 relu",
        "pool 2",
        "conv 12 3x3 same",
        "batchnorm relu",
        r#"{"residual": ["depthwise 3x3 same relu", "conv 12 3x3 dilation 2 groups 3 same"], "shortcut": ["conv 12 1x1"], "activation": "relu"}"#,
        r#"{"residual": ["batchnorm", "dropout 0.2", "conv 12 1x1 silu"]}"#,
        "pool 3 stride 2",
        "conv 9 2x2 gelu",
        "dropout 0.3",
        "avgpool 2 stride 1",
        "dense 33 silu",
        "batchnorm",
        "dense 5",
    ];
    let read = |text: &&str| if text.starts_with('{') { serde_json::from_str(text).unwrap() } else { text.parse().unwrap() };
    Architecture { input: Shape::Image { height: 18, width: 17, channels: 3 }, layers: layers.iter().map(read).collect() }
}

fn pixels(count: usize) -> Vec<u8> {
    let mut state = 12_345u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count * IMAGE).map(|_| draw()).collect()
}

fn labels() -> Vec<u32> {
    (0..BATCH as u32).map(|n| n % 5).collect()
}

fn step(network: &mut Network, optimiser: &mut Optimiser, index: usize, pixels: &[u8]) {
    let normalisation = Normalisation::standard(&[0.4, 0.5, 0.6], &[0.2, 0.3, 0.25]);
    let bytes = &pixels[index % 3 * BATCH * IMAGE..][..BATCH * IMAGE];
    let input = Input::Pixels { bytes, normalisation: &normalisation };
    let options = LossOptions { class_weights: Some(vec![1.0, 2.0, 1.0, 0.5, 1.5]), label_smoothing: 0.1 };
    let report = network.train_step(Batch { input, labels: &labels() }, optimiser, &options).unwrap();
    assert!(report.loss.is_finite());
}

fn muon(rest: &OptimiserConfig) -> OptimiserConfig {
    OptimiserConfig::Muon {
        learning_rate: 0.02,
        momentum: 0.9,
        nesterov: true,
        weight_decay: 1e-3,
        normalise: true,
        rest: Box::new(rest.clone()),
    }
}

/// Weights, optimiser state and logits after a few steps.
fn trained(config: &OptimiserConfig, steps: usize) -> (Vec<u8>, Vec<u8>, Vec<f32>) {
    let mut network = Network::new(&architecture(), 7).unwrap();
    let mut optimiser = Optimiser::new(config, &network).unwrap();
    let pixels = pixels(3 * BATCH);
    (0..steps).for_each(|index| step(&mut network, &mut optimiser, index, &pixels));
    let normalisation = Normalisation::unit(3);
    let logits = network.logits(Input::Pixels { bytes: &pixels, normalisation: &normalisation }).unwrap();
    (network.to_safetensors().unwrap(), optimiser.to_safetensors(&network).unwrap(), logits)
}

#[test]
fn one_two_and_three_threads_train_the_same_bytes() {
    let config = OptimiserConfig::default();
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| trained(&config, 4));
    let one = on(1);
    assert!(one == on(2), "two threads gave other bytes than one");
    assert!(one == on(3), "three threads gave other bytes than one");
}

#[test]
fn a_network_that_whitens_trains_the_same_bytes_at_any_number_of_threads() {
    let layers = ["whiten 2x2 gelu", "conv 12 3x3 dirac", "batchnorm noscale momentum 0.4 gelu", "dense 5"];
    let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
    let architecture = Architecture { input: Shape::Image { height: 18, width: 17, channels: 3 }, layers };
    let trained = || {
        let mut network = Network::new(&architecture, 7).unwrap();
        let pixels = pixels(3 * BATCH);
        let normalisation = Normalisation::unit(3);
        network.fit_whitening(Input::Pixels { bytes: &pixels, normalisation: &normalisation }).unwrap();
        let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network).unwrap();
        (0..3).for_each(|index| step(&mut network, &mut optimiser, index, &pixels));
        network.to_safetensors().unwrap()
    };
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(trained);
    let one = on(1);
    assert!(one == on(2) && one == on(3));
}

/// On a processor without matrix tiles this is fp32 once more.
#[test]
fn products_of_rounded_factors_train_the_same_bytes_at_any_number_of_threads() {
    let layers = ["conv 20 3x3 relu", "pool 2", "conv 35 3x3 same", "batchnorm gelu", "conv 16 2x2 same relu", "pool 2", "dense 5"];
    let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
    let architecture = Architecture { input: Shape::Image { height: 18, width: 17, channels: 3 }, layers };
    let trained = |precision: Precision| {
        let mut network = Network::new(&architecture, 7).unwrap();
        let note = network.place(Device::Cpu, precision).unwrap().note();
        let mut optimiser = Optimiser::new(&muon(&OptimiserConfig::default()), &network).unwrap();
        let pixels = pixels(3 * BATCH);
        (0..3).for_each(|index| step(&mut network, &mut optimiser, index, &pixels));
        (network.to_safetensors().unwrap(), note)
    };
    let on = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| trained(Precision::Bf16));
    let one = on(1);
    assert!(one == on(2) && one == on(3));
    let has_tiles = one.1.as_ref().is_some_and(|note| note.contains("multiplies in bf16"));
    assert_eq!(trained(Precision::Fp32).0 != one.0, has_tiles, "{:?}", one.1);
}

#[test]
fn a_resumed_training_ends_with_the_bytes_of_one_that_was_not_interrupted() {
    let sgd = OptimiserConfig::Sgd { learning_rate: 0.01, momentum: 0.9, nesterov: true, weight_decay: 1e-4, bias_rate: 1.0 };
    let adamw = OptimiserConfig::Adam { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, bias_rate: 1.0 };
    for config in [muon(&sgd), muon(&adamw), sgd, adamw] {
        let whole = trained(&config, 5);
        let (weights, state, _) = trained(&config, 3);
        let mut network = Network::from_safetensors(&architecture(), 7, &weights).unwrap();
        let mut optimiser = Optimiser::new(&config, &network).unwrap();
        optimiser.load(&network, &state).unwrap();
        assert_eq!(optimiser.step(), 3);
        let pixels = pixels(3 * BATCH);
        (3..5).for_each(|index| step(&mut network, &mut optimiser, index, &pixels));
        assert!(network.to_safetensors().unwrap() == whole.0, "{config:?}: other weights");
        assert!(optimiser.to_safetensors(&network).unwrap() == whole.1, "{config:?}: other state");
    }
}

#[test]
fn logits_do_not_depend_on_the_examples_beside_them() {
    let mut network = Network::new(&architecture(), 7).unwrap();
    let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network).unwrap();
    let pixels = pixels(3 * BATCH);
    step(&mut network, &mut optimiser, 0, &pixels);
    let normalisation = Normalisation::unit(3);
    let logits = |images: std::ops::Range<usize>| {
        let bytes = &pixels[images.start * IMAGE..images.end * IMAGE];
        network.logits(Input::Pixels { bytes, normalisation: &normalisation }).unwrap()
    };
    let all = logits(0..BATCH);
    for range in [0..1, 5..6, 3..20, 40..BATCH, 1..BATCH] {
        assert_eq!(logits(range.clone()), all[range.start * 5..range.end * 5], "{range:?}");
    }
    // Scaled pixels and numbers that the caller has scaled are the same thing.
    let floats: Vec<f32> = pixels[..BATCH * IMAGE].iter().map(|byte| f32::from(*byte) * (1.0 / 255.0)).collect();
    assert_eq!(network.logits(Input::Floats(&floats)).unwrap(), all);
}

#[test]
fn another_seed_gives_another_network() {
    let bytes = |seed| Network::new(&architecture(), seed).unwrap().to_safetensors().unwrap();
    assert!(bytes(7) == bytes(7));
    assert!(bytes(7) != bytes(8));
}
