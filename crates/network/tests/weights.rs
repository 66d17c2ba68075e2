//! Weights in files and snapshots, and what is refused.
#![allow(clippy::unwrap_used)]

use network::{Architecture, Batch, Input, LossOptions, Network, Optimiser, OptimiserConfig, Shape};
use safetensors::SafeTensors;

fn net(layers: &[&str]) -> Architecture {
    let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
    Architecture { input: Shape::Image { height: 6, width: 6, channels: 2 }, layers }
}

fn architecture() -> Architecture {
    net(&["conv 4 3x3", "batchnorm relu", "pool 2", "dense 3"])
}

const IMAGE: usize = 72;

fn input(count: usize) -> Vec<f32> {
    (0..count * IMAGE).map(|i| ((i * i % 977) as f32 * 0.7).sin()).collect()
}

fn train(network: &mut Network, steps: usize) -> f32 {
    let mut optimiser = Optimiser::new(&OptimiserConfig::default(), network).unwrap();
    let input = input(6);
    let batch = Batch { input: Input::Floats(&input), labels: &[0, 1, 2, 0, 1, 2] };
    (0..steps).map(|_| network.train_step(batch, &mut optimiser, &LossOptions::default()).unwrap().loss).last().unwrap()
}

#[test]
fn a_file_has_the_documented_names_and_layouts_and_gives_the_network_back() {
    let mut network = Network::new(&architecture(), 7).unwrap();
    train(&mut network, 3);
    let bytes = network.to_safetensors().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut found: Vec<(String, Vec<usize>)> = file.tensors().iter().map(|(name, view)| (name.clone(), view.shape().to_vec())).collect();
    found.sort();
    let expected = [
        ("layers.0.bias", vec![4]),
        ("layers.0.weight", vec![3, 3, 2, 4]),
        ("layers.1.bias", vec![4]),
        ("layers.1.running_mean", vec![4]),
        ("layers.1.running_var", vec![4]),
        ("layers.1.weight", vec![4]),
        ("layers.3.bias", vec![3]),
        ("layers.3.weight", vec![16, 3]),
    ];
    assert_eq!(found, expected.map(|(name, shape)| (name.to_owned(), shape)));

    let again = Network::from_safetensors(&architecture(), 7, &bytes).unwrap();
    assert_eq!(again.to_safetensors().unwrap(), bytes);
    let input = input(5);
    assert_eq!(again.logits(Input::Floats(&input)).unwrap(), network.logits(Input::Floats(&input)).unwrap());
}

#[test]
fn a_resized_network_computes_as_one_of_that_size_with_its_weights_and_so_does_it_back() {
    let of_side = |side| Architecture {
        input: Shape::Image { height: side, width: side, channels: 2 },
        ..net(&["conv 20 3x3 same", "pool 2", "batchnorm gelu", "conv 20 3x3 same relu", "globalmaxpool", "dense 3"])
    };
    let (large, small) = (of_side(12), of_side(6));
    let mut network = Network::new(&large, 7).unwrap();
    let images = input(4 * 6);
    let (whole, smaller) = (Input::Floats(&images), Input::Floats(&images[..6 * IMAGE]));
    let before = network.logits(whole).unwrap();
    network.resize(small.input).unwrap();
    assert_eq!(network.architecture(), &small);
    let mut other = Network::from_safetensors(&small, 7, &network.to_safetensors().unwrap()).unwrap();
    assert_eq!(network.logits(smaller).unwrap(), other.logits(smaller).unwrap());
    network.resize(large.input).unwrap();
    assert_eq!(network.logits(whole).unwrap(), before);
    network.resize(small.input).unwrap();
    train(&mut network, 2);
    train(&mut other, 2);
    assert_eq!(network.to_safetensors().unwrap(), other.to_safetensors().unwrap());
}

#[test]
fn a_network_with_weights_for_each_place_is_not_resized() {
    let mut network = Network::new(&architecture(), 7).unwrap();
    let error = network.resize(Shape::Image { height: 8, width: 8, channels: 2 }).unwrap_err().to_string();
    assert!(error.contains("layer 4 `dense 3`: it has weights of its own for each place of 6x6x2"), "{error}");
    assert_eq!(network.architecture(), &architecture());
}

#[test]
fn the_weights_of_residual_blocks_and_grouped_convolutions_are_named_by_their_place() {
    let block = r#"{"residual": ["conv 6 3x3 same groups 2", "batchnorm"], "shortcut": ["depthwise 1x1", "conv 6 1x1"]}"#;
    let mut architecture = net(&["conv 4 3x3", "dense 3"]);
    architecture.layers.insert(1, serde_json::from_str(block).unwrap());
    let mut network = Network::new(&architecture, 7).unwrap();
    train(&mut network, 2);
    let bytes = network.to_safetensors().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| file.tensor(&format!("layers.1.{name}")).unwrap().shape().to_vec();
    assert_eq!(shape("residual.0.weight"), [3, 3, 2, 6]);
    assert_eq!(shape("residual.1.running_var"), [6]);
    assert_eq!(shape("shortcut.0.weight"), [1, 1, 1, 4]);
    assert_eq!(shape("shortcut.1.bias"), [6]);
    assert_eq!(file.len(), 4 + 2 + 4 + 4);
    let again = Network::from_safetensors(&architecture, 7, &bytes).unwrap();
    let input = input(5);
    assert_eq!(again.logits(Input::Floats(&input)).unwrap(), network.logits(Input::Floats(&input)).unwrap());
}

#[test]
fn a_file_of_another_network_is_refused_with_all_that_differs() {
    let bytes = Network::new(&architecture(), 7).unwrap().to_safetensors().unwrap();
    let other = net(&["conv 5 3x3", "pool 2", "dense 3", "dense 3"]);
    let error = Network::from_safetensors(&other, 7, &bytes).err().unwrap().to_string();
    for part in [
        "`layers.0.weight` has shape [3, 3, 2, 4], the network needs [3, 3, 2, 5]",
        "`layers.2.weight` of shape [20, 3] is missing",
        "`layers.1.running_mean` belongs to no layer of this network",
    ] {
        assert!(error.contains(part), "{error}");
    }
    let error = Network::from_safetensors(&other, 7, &bytes[..bytes.len() / 2]).err().unwrap().to_string();
    assert!(error.contains("damaged or not in that format"), "{error}");
}

#[test]
fn an_optimiser_of_another_kind_is_refused() {
    let network = Network::new(&architecture(), 7).unwrap();
    let state = Optimiser::new(&OptimiserConfig::default(), &network).unwrap().to_safetensors(&network).unwrap();
    let sgd = OptimiserConfig::Sgd { learning_rate: 0.1, momentum: 0.9, nesterov: false, weight_decay: 0.0, bias_rate: 1.0 };
    let error = Optimiser::new(&sgd, &network).unwrap().load(&network, &state).err().unwrap().to_string();
    assert!(error.contains("`velocity.layers.0.weight` of shape [3, 3, 2, 4] is missing"), "{error}");
}

#[test]
fn a_snapshot_brings_back_weights_and_running_statistics() {
    let mut network = Network::new(&architecture(), 7).unwrap();
    train(&mut network, 2);
    let (snapshot, bytes) = (network.snapshot(), network.to_safetensors().unwrap());
    train(&mut network, 2);
    assert_ne!(network.to_safetensors().unwrap(), bytes);
    network.restore(&snapshot).unwrap();
    assert_eq!(network.to_safetensors().unwrap(), bytes);
    train(&mut network, 1);
    assert_ne!(network.to_safetensors().unwrap(), bytes, "training goes on after a restore");
    let mut other = Network::new(&net(&["dense 3"]), 7).unwrap();
    assert!(other.restore(&snapshot).is_err());
}

#[test]
fn training_lowers_the_loss_with_each_optimiser() {
    let nesterov = OptimiserConfig::Sgd { learning_rate: 0.02, momentum: 0.9, nesterov: true, weight_decay: 0.0, bias_rate: 1.0 };
    let plain = OptimiserConfig::Sgd { learning_rate: 0.05, momentum: 0.0, nesterov: false, weight_decay: 1e-4, bias_rate: 1.0 };
    let adamw = OptimiserConfig::Adam { learning_rate: 0.01, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, bias_rate: 1.0 };
    for config in [OptimiserConfig::default(), adamw, nesterov, plain] {
        let mut network = Network::new(&net(&["conv 4 3x3 relu", "pool 2", "dense 3"]), 7).unwrap();
        let mut optimiser = Optimiser::new(&config, &network).unwrap();
        let input = input(6);
        let batch = Batch { input: Input::Floats(&input), labels: &[0, 1, 2, 0, 1, 2] };
        let options = LossOptions::default();
        let before = network.evaluate(batch, &options).unwrap();
        let first = network.train_step(batch, &mut optimiser, &options).unwrap();
        assert!((before.loss - first.loss).abs() < 1e-5 && before.correct == first.correct);
        for _ in 0..600 {
            network.train_step(batch, &mut optimiser, &options).unwrap();
        }
        let after = network.evaluate(batch, &options).unwrap();
        assert!(after.loss < 0.8 * before.loss, "{config:?}: {} then {}", before.loss, after.loss);
    }
}

fn tensor(network: &Network, name: &str) -> Vec<f32> {
    let bytes = network.to_safetensors().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

#[test]
fn what_muon_leaves_learns_as_it_would_by_the_rest_alone() {
    let layers = ["whiten 2x2 gelu", "conv 4 3x3", "batchnorm relu", "dense 3"];
    let after = |config: &OptimiserConfig| {
        let mut network = Network::new(&net(&layers), 7).unwrap();
        let mut optimiser = Optimiser::new(config, &network).unwrap();
        let input = input(6);
        let batch = Batch { input: Input::Floats(&input), labels: &[0, 1, 2, 0, 1, 2] };
        network.train_step(batch, &mut optimiser, &LossOptions::default()).unwrap();
        network
    };
    let sgd = OptimiserConfig::Sgd { learning_rate: 0.1, momentum: 0.9, nesterov: true, weight_decay: 0.01, bias_rate: 8.0 };
    for rest in [sgd, OptimiserConfig::default()] {
        let muon = |rest| OptimiserConfig::Muon {
            learning_rate: 0.02,
            momentum: 0.9,
            nesterov: true,
            weight_decay: 0.0,
            normalise: false,
            rest: Box::new(rest),
        };
        let (alone, beside) = (after(&rest), after(&muon(rest)));
        for name in ["layers.0.bias", "layers.1.bias", "layers.2.weight", "layers.2.bias", "layers.3.weight", "layers.3.bias"] {
            assert_eq!(tensor(&alone, name), tensor(&beside, name), "{name}");
        }
        assert_ne!(tensor(&alone, "layers.1.weight"), tensor(&beside, "layers.1.weight"));
        let twice = muon(muon(OptimiserConfig::default()));
        assert!(Optimiser::new(&twice, &alone).err().unwrap().to_string().contains("not by muon again"));
    }
}

#[test]
fn a_last_layer_of_zeros_says_at_first_that_all_classes_are_alike_and_learns() {
    let mut network = Network::new(&net(&["conv 4 3x3 relu", "dense 3 zeros"]), 7).unwrap();
    assert!(network.logits(Input::Floats(&input(5))).unwrap().iter().all(|logit| *logit == 0.0));
    let first = train(&mut network, 1);
    assert!((first - 3f32.ln()).abs() < 1e-6, "{first}");
    assert!(train(&mut network, 20) < first);
}

#[test]
fn a_scale_that_is_not_learned_stays_one_and_a_bias_rate_moves_shifts_by_as_much_more() {
    let shift_after = |layers: &[&str], bias_rate: f64| {
        let mut network = Network::new(&net(layers), 7).unwrap();
        let sgd = OptimiserConfig::Sgd { learning_rate: 1e-3, momentum: 0.0, nesterov: false, weight_decay: 0.0, bias_rate };
        let mut optimiser = Optimiser::new(&sgd, &network).unwrap();
        let input = input(6);
        let batch = Batch { input: Input::Floats(&input), labels: &[0, 1, 2, 0, 1, 2] };
        network.train_step(batch, &mut optimiser, &LossOptions::default()).unwrap();
        (tensor(&network, "layers.1.weight"), tensor(&network, "layers.1.bias"), tensor(&network, "layers.0.bias"))
    };
    let layers = ["conv 4 3x3", "batchnorm noscale relu", "dense 3"];
    let (scale, plain, conv_bias) = shift_after(&layers, 1.0);
    assert_eq!(scale, [1.0; 4]);
    let (_, fast, same_bias) = shift_after(&layers, 64.0);
    assert_eq!(conv_bias, same_bias, "only shifts are meant");
    for (plain, fast) in plain.iter().zip(&fast) {
        assert!(*plain != 0.0 && (fast / plain - 64.0).abs() < 1e-3, "{fast} for {plain}");
    }
    let (scale, _, _) = shift_after(&["conv 4 3x3", "batchnorm relu", "dense 3"], 1.0);
    assert_ne!(scale, [1.0; 4]);
}

#[test]
fn the_momentum_of_a_batch_norm_is_the_share_that_a_step_replaces() {
    let mean_after = |momentum: &str| {
        let mut network = Network::new(&net(&["conv 4 3x3", &format!("batchnorm momentum {momentum}"), "dense 3"]), 7).unwrap();
        train(&mut network, 1);
        tensor(&network, "layers.1.running_mean")
    };
    let (whole, part) = (mean_after("1"), mean_after("0.25"));
    assert!(whole.iter().zip(&part).all(|(whole, part)| (0.25 * whole - part).abs() < 1e-6), "{whole:?} {part:?}");
}

#[test]
fn a_dirac_convolution_passes_its_channels_on() {
    let network = Network::new(&net(&["conv 5 3x3 same dirac", "conv 2 3x3 same groups 1 dirac", "dense 3"]), 7).unwrap();
    for (layer, channels, filters) in [(0, 2, 5), (1, 5, 2)] {
        let weights = tensor(&network, &format!("layers.{layer}.weight"));
        for filter in 0..filters {
            let of_filter: Vec<f32> = weights.iter().skip(filter).step_by(filters).copied().collect();
            let ones = of_filter.iter().filter(|weight| **weight == 1.0).count();
            if filter < channels {
                assert_eq!((of_filter[4 * channels + filter], ones), (1.0, 1), "layer {layer}, filter {filter}");
                assert_eq!(of_filter.iter().sum::<f32>(), 1.0);
            } else {
                assert!(ones == 0 && of_filter.iter().all(|weight| *weight != 0.0), "the others stay random");
            }
        }
    }
}

#[test]
fn a_whitening_layer_keeps_its_filters_and_its_bias_learns_in_the_first_epochs_only() {
    let mut network = Network::new(&net(&["whiten 2x2 bias 2 gelu", "dense 3"]), 7).unwrap();
    let images = input(40);
    network.fit_whitening(Input::Floats(&images)).unwrap();
    let fitted = tensor(&network, "layers.0.weight");
    let mut biases = Vec::new();
    for epoch in 1..=4 {
        network.begin_epoch(epoch);
        train(&mut network, 1);
        biases.push(tensor(&network, "layers.0.bias"));
    }
    assert_eq!(tensor(&network, "layers.0.weight"), fitted);
    assert!(biases[0] != biases[1] && biases[1] == biases[2] && biases[2] == biases[3]);
}

#[test]
fn bad_batches_and_options_are_refused_and_change_nothing() {
    let mut network = Network::new(&architecture(), 7).unwrap();
    let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network).unwrap();
    let bytes = network.to_safetensors().unwrap();
    let input = input(2);
    let mut error = |input: &[f32], labels: &[u32]| {
        network.train_step(Batch { input: Input::Floats(input), labels }, &mut optimiser, &LossOptions::default()).unwrap_err().to_string()
    };
    assert!(error(&input[1..], &[0, 1]).contains("143 values were given, 144 are needed"));
    assert!(error(&input, &[0]).contains("the labels: 1 values were given, 2 are needed"));
    assert!(error(&[], &[]).contains("at least one"));
    assert!(error(&input, &[0, 3]).contains("example 1 of the batch has label 3, but the network has 3 classes (0 to 2)"));
    assert_eq!(network.to_safetensors().unwrap(), bytes);
    let config = OptimiserConfig::Adam { learning_rate: -1.0, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0, bias_rate: 1.0 };
    assert!(Optimiser::new(&config, &network).err().unwrap().to_string().contains("learning_rate must be above 0, not -1"));
}

/// Adam's algorithm 1 in f64, on the gradients of a network of one layer, for three steps.
#[test]
fn adam_steps_as_its_paper_says() {
    let architecture = Architecture { input: Shape::Features(2), layers: vec!["dense 2".parse().unwrap()] };
    let mut network = Network::new(&architecture, 7).unwrap();
    let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network).unwrap();
    let weights = |network: &Network| -> Vec<f64> {
        let bytes = network.to_safetensors().unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let raw = file.tensor("layers.0.weight").unwrap().data().to_vec();
        raw.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
    };
    let (x, mut w, mut b) = ([0.5f64, -1.5], weights(&network), [0.0; 2]);
    let (mut m, mut v) = ([0.0; 6], [0.0; 6]);
    for step in 1..=3 {
        // The gradient of the softmax's cross-entropy for label 0.
        let logits: Vec<f64> = (0..2).map(|j| b[j] + x[0] * w[j] + x[1] * w[2 + j]).collect();
        let p = 1.0 / (1.0 + (logits[1] - logits[0]).exp());
        let d = [p - 1.0, 1.0 - p];
        let gradient = [x[0] * d[0], x[0] * d[1], x[1] * d[0], x[1] * d[1], d[0], d[1]];
        for i in 0..6 {
            m[i] = 0.9 * m[i] + 0.1 * gradient[i];
            v[i] = 0.999 * v[i] + 0.001 * gradient[i] * gradient[i];
            let (m_hat, v_hat) = (m[i] / (1.0 - 0.9f64.powi(step)), v[i] / (1.0 - 0.999f64.powi(step)));
            let change = 1e-3 * m_hat / (v_hat.sqrt() + 1e-8);
            if i < 4 { w[i] -= change } else { b[i - 4] -= change }
        }
        let batch = Batch { input: Input::Floats(&[0.5, -1.5]), labels: &[0] };
        network.train_step(batch, &mut optimiser, &LossOptions::default()).unwrap();
        for (found, expected) in weights(&network).iter().zip(&w) {
            assert!((found - expected).abs() < 1e-6, "step {step}: {found} for {expected}");
        }
    }
}

#[test]
fn a_batch_in_parts_learns_what_the_whole_batch_does() {
    // Without batch norm, whose statistics are those of a part.
    let layers = ["conv 5 3x3 relu", "pool 2", "dense 3"].iter().map(|text| text.parse().unwrap()).collect();
    let architecture = Architecture { layers, ..architecture() };
    let values: Vec<f32> = (0..10 * architecture.input.len()).map(|i| (i as f32 * 0.37).sin()).collect();
    let labels: Vec<u32> = (0..10).map(|i| i % 3).collect();
    let trained = |parts: usize| {
        let mut network = Network::new(&architecture, 7).unwrap();
        let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network).unwrap();
        let size = 10 / parts;
        let inputs = values.chunks(size * architecture.input.len()).zip(labels.chunks(size));
        let batches: Vec<Batch<'_>> = inputs.map(|(values, labels)| Batch { input: Input::Floats(values), labels }).collect();
        let report = network.train_step_in_parts(&batches, &mut optimiser, &LossOptions::default()).unwrap();
        (report, network.logits(Input::Floats(&values)).unwrap())
    };
    let (whole, in_parts) = (trained(1), trained(5));
    assert_eq!(whole.0.correct, in_parts.0.correct);
    assert!((whole.0.loss - in_parts.0.loss).abs() < 1e-5);
    assert!(whole.1.iter().zip(&in_parts.1).all(|(a, b)| (a - b).abs() < 1e-3), "{:?}", (whole.1, in_parts.1));
}

#[test]
fn clipped_gradients_make_a_shorter_step_in_the_same_direction() {
    let sgd = OptimiserConfig::Sgd { learning_rate: 1.0, momentum: 0.0, nesterov: false, weight_decay: 0.0, bias_rate: 1.0 };
    let architecture = Architecture { input: network::Shape::Features(2), layers: vec!["dense 2".parse().unwrap()] };
    let step = |clip: Option<f64>| {
        let mut network = Network::new(&architecture, 7).unwrap();
        let before = network.logits(Input::Floats(&[1.0, 2.0])).unwrap();
        let mut optimiser = Optimiser::new(&sgd, &network).unwrap();
        optimiser.set_clip_norm(clip);
        let batch = Batch { input: Input::Floats(&[1.0, 2.0]), labels: &[0] };
        network.train_step(batch, &mut optimiser, &LossOptions::default()).unwrap();
        let after = network.logits(Input::Floats(&[1.0, 2.0])).unwrap();
        after.iter().zip(before).map(|(after, before)| after - before).collect::<Vec<f32>>()
    };
    let (free, clipped) = (step(None), step(Some(0.1)));
    // A logit moves by the gradient times 1 + 1 + 4; the gradient of weights and bias together has norm 0.1.
    let moved = (clipped[0] * clipped[0] + clipped[1] * clipped[1]).sqrt();
    assert!((moved - 0.1 * 6f32.sqrt()).abs() < 1e-4, "{clipped:?}");
    assert!((free[0] / clipped[0] - free[1] / clipped[1]).abs() < 1e-3 && free[0] / clipped[0] > 1.0);
    assert_eq!(step(Some(1e6)), free);
}

#[test]
fn an_average_of_weights_follows_them() {
    let mut network = Network::new(&architecture(), 7).unwrap();
    let mut average = network.snapshot();
    let first = network.snapshot();
    train(&mut network, 2);
    network.average_into(&mut average, 1.0).unwrap();
    assert_eq!(average, first);
    network.average_into(&mut average, 0.0).unwrap();
    let bytes = network.to_safetensors().unwrap();
    let last = network.snapshot();
    network.restore(&average).unwrap();
    let rounded = network.to_safetensors().unwrap();
    assert_eq!(rounded.len(), bytes.len());
    network.restore(&last).unwrap();
    assert_eq!(network.to_safetensors().unwrap(), bytes);
}
