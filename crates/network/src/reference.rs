//! The whole network as plain loops in f64, and the properties that hold against it: the same logits for random shapes, and
//! gradients that agree with central finite differences.
#![allow(clippy::unwrap_used)]

mod portable;

use std::collections::BTreeMap;

use dfdx::tensor::AsArray;
use dfdx::tensor_ops::Backward;
use proptest::prelude::*;

use crate::{
    architecture::{Architecture, Shape, same_padding, windows},
    examples::Input,
    layer::{Activation, Axes, BatchNormalisation, Convolution, LayerSpec, Padding, PoolKind, Pooling, Residual},
    loss::{self, LossOptions},
    network::Network,
    plan::Role,
    simd::{Level, level},
};

/// Tensors by their names in files.
type Weights = BTreeMap<String, Vec<f64>>;

/// Some images (or lists of features, as images of one pixel).
#[derive(Clone)]
struct Images {
    height: usize,
    width: usize,
    channels: usize,
    /// `[batch, height, width, channels]`.
    values: Vec<f64>,
}

impl Images {
    fn batch(&self) -> usize {
        self.values.len() / (self.height * self.width * self.channels)
    }

    /// The value at a place; zero outside of the image.
    fn at(&self, n: usize, y: isize, x: isize, c: usize) -> f64 {
        let inside = (0..self.height as isize).contains(&y) && (0..self.width as isize).contains(&x);
        if inside { self.values[((n * self.height + y as usize) * self.width + x as usize) * self.channels + c] } else { 0.0 }
    }

    /// An image of another size whose values are computed one by one.
    fn map(&self, height: usize, width: usize, channels: usize, value: impl Fn(usize, usize, usize, usize) -> f64) -> Images {
        let mut values = Vec::new();
        for n in 0..self.batch() {
            for y in 0..height {
                for x in 0..width {
                    for c in 0..channels {
                        values.push(value(n, y, x, c));
                    }
                }
            }
        }
        Images { height, width, channels, values }
    }
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Gelu => x * 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// The error function by its Maclaurin series; beyond 4, where its terms grow too large to cancel, it is 1 within 2e-8.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
        if term.abs() < 1e-18 {
            break;
        }
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn convolution(conv: &Convolution, input: &Images, weight: &[f64], bias: &[f64]) -> Images {
    let Convolution { kernel: (rows, columns), stride, dilation, padding, activation, .. } = *conv;
    let (filters, groups) = (conv.filters.unwrap_or(input.channels), if conv.filters.is_some() { conv.groups } else { input.channels });
    let extent = |points: usize| (points - 1) * dilation + 1;
    let border = |size, points| match padding {
        Padding::Valid => (0, 0),
        Padding::Same => same_padding(size, extent(points), stride),
        Padding::Causal => (extent(points) - 1, 0),
    };
    let ((top, bottom), (left, right)) = (border(input.height, rows), border(input.width, columns));
    let out_height = windows(input.height + top + bottom, extent(rows), stride).unwrap();
    let out_width = windows(input.width + left + right, extent(columns), stride).unwrap();
    let (channels, of_group) = (input.channels / groups, filters / groups);
    input.map(out_height, out_width, filters, |n, y, x, f| {
        let mut sum = bias[f];
        for i in 0..rows {
            for j in 0..columns {
                let y = (y * stride + i * dilation) as isize - top as isize;
                let x = (x * stride + j * dilation) as isize - left as isize;
                for c in 0..channels {
                    sum += input.at(n, y, x, f / of_group * channels + c) * weight[((i * columns + j) * channels + c) * filters + f];
                }
            }
        }
        activate(activation, sum)
    })
}

/// One layer; batch norms use the running mean and variance where there are any, else the batch's, as in training. Dropout is left out.
fn layer(layer: &LayerSpec, input: &Images, weight: &[f64], bias: &[f64], running: [&[f64]; 2]) -> Images {
    let (height, width, channels) = (input.height, input.width, input.channels);
    match *layer {
        LayerSpec::Conv(ref conv) => convolution(conv, input, weight, bias),
        LayerSpec::Pool(pool) => {
            let (rows, columns) = pool.sides();
            let (out_height, out_width) = (windows(height, rows, pool.stride).unwrap(), windows(width, columns, pool.stride).unwrap());
            input.map(out_height, out_width, channels, |n, y, x, c| {
                let place = |p: usize| ((y * pool.stride + p / columns) as isize, (x * pool.stride + p % columns) as isize);
                let values = (0..rows * columns).map(place).map(|(y, x)| input.at(n, y, x, c));
                match pool.kind {
                    PoolKind::Mean => values.sum::<f64>() / (rows * columns) as f64,
                    PoolKind::Maximum => values.fold(f64::NEG_INFINITY, f64::max),
                }
            })
        }
        LayerSpec::GlobalPool(kind) => input.map(1, 1, channels, |n, _, _, c| {
            let values = (0..height * width).map(|p| input.at(n, (p / width) as isize, (p % width) as isize, c));
            match kind {
                PoolKind::Mean => values.sum::<f64>() / (height * width) as f64,
                PoolKind::Maximum => values.fold(f64::NEG_INFINITY, f64::max),
            }
        }),
        LayerSpec::Dense { units, activation, .. } => {
            let inputs = height * width * channels;
            input.map(1, 1, units, |n, _, _, unit| {
                let products = (0..inputs).map(|i| input.values[n * inputs + i] * weight[i * units + unit]);
                activate(activation, bias[unit] + products.sum::<f64>())
            })
        }
        LayerSpec::Whiten { kernel, activation, .. } => {
            let filters = Some(bias.len());
            let (axes, padding) = (Axes::Image, Padding::Valid);
            let conv = Convolution { axes, filters, kernel, stride: 1, dilation: 1, groups: 1, padding, dirac: false, activation };
            convolution(&conv, input, weight, bias)
        }
        LayerSpec::BatchNorm(BatchNormalisation { epsilon, activation, .. }) => {
            let count = (input.values.len() / channels) as f64;
            let channel = |c: usize| input.values.iter().skip(c).step_by(channels);
            let batch_mean = |c: usize| channel(c).sum::<f64>() / count;
            let batch_variance = |c: usize| channel(c).map(|x| (x - batch_mean(c)).powi(2)).sum::<f64>() / count;
            let [mean, variance] = match running {
                [[], []] => [(0..channels).map(batch_mean).collect(), (0..channels).map(batch_variance).collect()],
                running => running.map(<[f64]>::to_vec),
            };
            input.map(height, width, channels, |n, y, x, c| {
                let normal = (input.at(n, y as isize, x as isize, c) - mean[c]) / (variance[c] + f64::from(epsilon)).sqrt();
                activate(activation, normal * weight[c] + bias[c])
            })
        }
        LayerSpec::Dropout { .. } => input.clone(),
        LayerSpec::Series { steps, channels } => Images { height: 1, width: steps, channels, values: input.values.clone() },
        LayerSpec::Residual(_) => unreachable!("its layers are walked one by one"),
    }
}

/// Layers that follow each other; `prefix` is what their weights' names begin with.
fn sequence(layers: &[LayerSpec], prefix: &str, weights: &Weights, input: Images) -> Images {
    layers.iter().enumerate().fold(input, |input, (index, spec)| {
        let name = format!("{prefix}.{index}");
        let tensor = |part: &str| weights.get(&format!("{name}.{part}")).map_or(&[][..], Vec::as_slice);
        let LayerSpec::Residual(residual) = spec else {
            return layer(spec, &input, tensor("weight"), tensor("bias"), ["running_mean", "running_var"].map(tensor));
        };
        let mut sum = sequence(&residual.layers, &format!("{name}.residual"), weights, input.clone());
        let other = sequence(&residual.shortcut, &format!("{name}.shortcut"), weights, input);
        sum.values.iter_mut().zip(&other.values).for_each(|(sum, other)| *sum = activate(residual.activation, *sum + other));
        sum
    })
}

fn logits(architecture: &Architecture, weights: &Weights, input: &[f64]) -> Vec<f64> {
    let (height, width, channels) = match architecture.input {
        Shape::Image { height, width, channels } => (height, width, channels),
        Shape::Features(n) => (1, 1, n),
    };
    let images = Images { height, width, channels, values: input.to_vec() };
    sequence(&architecture.layers, "layers", weights, images).values
}

fn cross_entropy(logits: &[f64], labels: &[u32]) -> f64 {
    let classes = logits.len() / labels.len();
    let one = |(row, label): (&[f64], &u32)| row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[*label as usize];
    logits.chunks(classes).zip(labels).map(one).sum::<f64>() / labels.len() as f64
}

/// A random case: an architecture that passes its check, a batch, and a seed.
#[derive(Clone, Debug)]
struct Case {
    architecture: Architecture,
    batch: usize,
    seed: u64,
}

impl Case {
    fn network(&self) -> Network {
        let mut network = Network::new(&self.architecture, self.seed).unwrap();
        // Biases, scales, shifts and statistics begin as constants; make them differ, or nothing would tell them apart.
        network.spread_constants(self.seed);
        network
    }

    fn input(&self) -> Vec<f32> {
        let mut draw = crate::init::uniform(self.seed, 1_000);
        (0..self.batch * self.architecture.input.len()).map(|_| draw()).collect()
    }

    fn labels(&self) -> Vec<u32> {
        let classes = self.architecture.check().unwrap().classes() as u32;
        (0..self.batch as u32).map(|n| (n * 7 + 3) % classes).collect()
    }
}

impl Network {
    fn spread_constants(&mut self, seed: u64) {
        for (index, parameter) in self.parameters.iter_mut().enumerate() {
            if parameter.shape.len() == 1 {
                let mut draw = crate::init::uniform(seed, 2_000 + index as u64);
                let mut values: Vec<f32> = parameter.values.iter().map(|value| value + 0.3 * draw()).collect();
                if parameter.role == Role::Scale && seed.is_multiple_of(3) {
                    // Turned around: what was the largest is the smallest then.
                    values[0] = -values[0];
                }
                parameter.set(&values);
            }
        }
        for (index, running) in self.running.iter_mut().enumerate() {
            let mut draw = crate::init::uniform(seed, 4_000 + index as u64);
            running.mean.iter_mut().for_each(|mean| *mean += 0.3 * draw());
            running.variance.iter_mut().for_each(|variance| *variance += 0.5 * draw());
        }
    }

    /// With the running statistics.
    fn inference_weights(&self) -> Weights {
        let values = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
        let statistics = self.norm_layers().zip(&self.running).flat_map(|(layer, running)| {
            [("running_mean", &running.mean), ("running_var", &running.variance)]
                .map(|(name, statistic)| (format!("layers.{layer}.{name}"), values(statistic)))
        });
        self.reference_weights().into_iter().chain(statistics).collect()
    }

    fn reference_weights(&self) -> Weights {
        let values = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect();
        self.parameters.iter().map(|parameter| (parameter.name.clone(), values(&parameter.values))).collect()
    }
}

fn activation() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just(""), Just(" relu"), Just(" gelu"), Just(" silu")]
}

fn conv() -> impl Strategy<Value = String> {
    (1..40usize, 1..5usize, 1..5usize, 1..3usize, any::<bool>(), activation()).prop_map(
        |(filters, rows, columns, stride, same, activation)| {
            format!("conv {filters} {rows}x{columns} stride {stride}{}{activation}", if same { " same" } else { "" })
        },
    )
}

/// A convolution that is spread out, in groups, or both; of 6 channels, which most groups divide.
fn spread_conv() -> impl Strategy<Value = Vec<LayerSpec>> {
    let numbers = (1..4usize, 1..4usize, 1..3usize, 1..4usize);
    let groups = prop_oneof![Just(Some(1)), Just(Some(2)), Just(Some(3)), Just(Some(6)), Just(None)];
    (numbers, 1..3usize, groups, any::<bool>(), activation()).prop_map(
        |((rows, columns, stride, dilation), wide, groups, same, activation)| {
            let kind = groups.map_or("depthwise".to_owned(), |_| format!("conv {}", 6 * wide));
            let groups = groups.map_or(String::new(), |groups| format!(" groups {groups}"));
            let same = if same { " same" } else { "" };
            let text = format!("{kind} {rows}x{columns} stride {stride} dilation {dilation}{groups}{same}{activation}");
            ["conv 6 2x2 same", &text].iter().map(|text| text.parse().unwrap()).collect()
        },
    )
}

fn plain_layer() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => conv(),
        3 => (2..4usize).prop_map(|side| format!("pool {side}")),
        1 => (2..4usize, 1..3usize).prop_map(|(side, stride)| format!("pool {side} stride {stride}")),
        1 => (2..4usize, 1..3usize).prop_map(|(side, stride)| format!("avgpool {side} stride {stride}")),
        1 => Just("globalpool".to_owned()),
        1 => Just("globalmaxpool".to_owned()),
        1 => activation().prop_map(|activation| format!("batchnorm{activation}")),
        1 => (1..20usize, activation()).prop_map(|(units, activation)| format!("dense {units}{activation}")),
    ]
}

/// A residual block whose ways end alike: a shortcut of its own, or layers that keep the shape of what a convolution before them gives.
fn residual() -> impl Strategy<Value = Vec<LayerSpec>> {
    let sizes = (1..12usize, 1..4usize, 1..3usize, any::<bool>());
    let words = (activation(), activation(), activation());
    (sizes, words, any::<bool>()).prop_map(|((filters, side, stride, has_norm), (first, second, sum), has_shortcut)| {
        let norm = |activation: &str| has_norm.then(|| format!("batchnorm{activation}"));
        let stride = if has_shortcut { format!(" stride {stride}") } else { String::new() };
        let branch = [Some(format!("conv {filters} {side}x{side}{stride} same{first}")), norm(second)];
        let branch = branch.into_iter().flatten().map(|text| text.parse().unwrap()).collect();
        let activation = serde_json::from_value(if sum.is_empty() { "none" } else { sum.trim() }.into()).unwrap();
        let shortcut = if has_shortcut { vec![format!("conv {filters} 1x1{stride}").parse().unwrap()] } else { Vec::new() };
        let before = (!has_shortcut).then(|| format!("conv {filters} 2x2 same").parse().unwrap());
        before.into_iter().chain([LayerSpec::Residual(Residual { layers: branch, shortcut, activation })]).collect()
    })
}

/// A layer along a series.
fn series_layer() -> impl Strategy<Value = String> {
    let numbers = (1..20usize, 1..6usize, 1..3usize, 1..4usize);
    let padding = prop_oneof![Just(""), Just(" same"), Just(" causal")];
    let conv = (numbers, any::<bool>(), padding, activation()).prop_map(
        |((filters, steps, stride, dilation), is_depthwise, padding, activation)| {
            let kind = if is_depthwise { "depthwise1d".to_owned() } else { format!("conv1d {filters}") };
            format!("{kind} {steps} stride {stride} dilation {dilation}{padding}{activation}")
        },
    );
    let pool = (any::<bool>(), 2..4usize, 1..4usize)
        .prop_map(|(is_mean, side, stride)| format!("{} {side} stride {stride}", if is_mean { "avgpool1d" } else { "pool1d" }));
    prop_oneof![3 => conv, 1 => pool]
}

fn series_case() -> impl Strategy<Value = Case> {
    let layers = (proptest::collection::vec(series_layer(), 1..4), 2..12usize);
    (1..40usize, 1..9usize, layers, 1..20usize, any::<u64>()).prop_filter_map(
        "the layers do not fit",
        |(time, channels, (mut layers, classes), batch, seed)| {
            layers.push(format!("dense {classes}"));
            if seed % 2 == 1 {
                layers.insert(0, format!("series {time}x{channels}"));
            }
            let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
            let input = if seed % 2 == 0 { Shape::Image { height: 1, width: time, channels } } else { Shape::Features(time * channels) };
            let architecture = Architecture { input, layers };
            architecture.check().is_ok().then_some(Case { architecture, batch, seed })
        },
    )
}

fn any_layers() -> impl Strategy<Value = Vec<LayerSpec>> {
    prop_oneof![5 => plain_layer().prop_map(|text| vec![text.parse().unwrap()]), 1 => residual(), 2 => spread_conv()]
}

fn case() -> impl Strategy<Value = Case> {
    let layers = (conv(), proptest::collection::vec(any_layers(), 0..4), 2..12usize).prop_map(|(first, others, classes)| {
        let ends = [first, format!("dense {classes}")].map(|text| vec![text.parse().unwrap()]);
        let [first, last] = ends;
        [vec![first], others, vec![last]].concat().concat()
    });
    let input = (3..14usize, 3..14usize, 1..5usize).prop_map(|(height, width, channels)| Shape::Image { height, width, channels });
    (input, layers, 1..20usize, any::<u64>()).prop_filter_map("the layers do not fit", |(input, layers, batch, seed)| {
        let architecture = Architecture { input, layers };
        architecture.check().is_ok().then_some(Case { architecture, batch, seed })
    })
}

/// Batch norm magnifies a channel without variance by up to 300, and with it the rounding of f32.
fn is_tame(case: &Case) -> bool {
    case.batch > 2 || !has_norm(&case.architecture.layers)
}

fn has_norm(layers: &[LayerSpec]) -> bool {
    has(layers, |layer| matches!(layer, LayerSpec::BatchNorm(_)))
}

/// Whether a gradient jumps somewhere: at the side of a ReLU, or at the winner of a pooling window.
fn has_kink(layers: &[LayerSpec]) -> bool {
    has(layers, |layer| match layer {
        LayerSpec::Pool(Pooling { kind, .. }) | LayerSpec::GlobalPool(kind) => *kind == PoolKind::Maximum,
        LayerSpec::Conv(Convolution { activation, .. })
        | LayerSpec::Dense { activation, .. }
        | LayerSpec::Whiten { activation, .. }
        | LayerSpec::BatchNorm(BatchNormalisation { activation, .. })
        | LayerSpec::Residual(Residual { activation, .. }) => *activation == Activation::Relu,
        LayerSpec::Series { .. } | LayerSpec::Dropout { .. } => false,
    })
}

/// Whether `is_one` of these layers, or of those inside of their blocks.
fn has(layers: &[LayerSpec], is_one: fn(&LayerSpec) -> bool) -> bool {
    let inside = |residual: &Residual| has(&residual.layers, is_one) || has(&residual.shortcut, is_one);
    layers.iter().any(|layer| is_one(layer) || matches!(layer, LayerSpec::Residual(residual) if inside(residual)))
}

/// The parameters' gradients of the mean cross-entropy, in the network's order.
fn gradients(network: &Network, input: &[f32], labels: &[u32]) -> Vec<Vec<f32>> {
    let (flow, tape, _) = network.forward_op(Input::Floats(input), labels.len(), 0).unwrap();
    let device = dfdx::tensor::Cpu::default();
    let (loss, _) = loss::forward_op(&flow, labels, &LossOptions::default(), &device, tape).unwrap();
    let mut grads = loss.try_backward().unwrap();
    network.parameters.iter().map(|parameter| grads.get_or_alloc_mut(&parameter.tensor).unwrap().to_vec()).collect()
}

/// Compares some elements of each gradient with central differences of the reference's loss.
fn check_gradients(case: &Case) -> Result<(), TestCaseError> {
    let (network, input, labels) = (case.network(), case.input(), case.labels());
    let found = gradients(&network, &input, &labels);
    let exact: Vec<f64> = input.iter().map(|value| f64::from(*value)).collect();
    let weights = network.reference_weights();
    let mut draw = crate::init::uniform(case.seed, 3_000);
    let mut skipped = 0;
    for (parameter, gradient) in network.parameters.iter().zip(&found).filter(|(parameter, _)| !parameter.is_frozen) {
        let largest = gradient.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        for _ in 0..6 {
            let index = ((draw() + 1.0) / 2.0 * gradient.len() as f32) as usize % gradient.len();
            let at = |step: f64| {
                let mut weights = weights.clone();
                weights.get_mut(&parameter.name).unwrap()[index] += step;
                cross_entropy(&logits(&case.architecture, &weights, &exact), &labels)
            };
            let (below, here, above) = (at(-1e-6), at(0.0), at(1e-6));
            let (fine, coarse) = ((above - below) / 2e-6, (at(1e-4) - at(-1e-4)) / 2e-4);
            let bend = (above - 2.0 * here + below) / 1e-6;
            let tolerance = 2e-4 + 2e-3 * f64::from(largest);
            if (fine - coarse).abs() > tolerance / 4.0 || bend.abs() > tolerance / 4.0 {
                skipped += 1;
                continue; // The step crosses the kink of a ReLU or a maximum, or begins on it.
            }
            let value = f64::from(gradient[index]);
            prop_assert!((value - fine).abs() < tolerance, "{} [{index}]: {value} on the tape, {fine} by differences", parameter.name);
        }
    }
    prop_assert!(skipped <= 3 * network.parameters.len(), "most of the gradient was not compared: {skipped} kinks");
    Ok(())
}

/// Compares the logits of both passes, for training and for inference, with the reference's.
fn check_logits(case: &Case) -> Result<(), TestCaseError> {
    let (network, input) = (case.network(), case.input());
    let (flow, _, _) = network.forward_op(Input::Floats(&input), case.batch, 0).unwrap();
    let found = flow.values.to_floats(1);
    let exact: Vec<f64> = input.iter().map(|value| f64::from(*value)).collect();
    let expected = logits(&case.architecture, &network.reference_weights(), &exact);
    prop_assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(1.0f64, |scale, value| scale.max(value.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        prop_assert!((f64::from(*found) - expected).abs() < 1e-3 * scale, "{found} for {expected}");
    }
    let inferred = network.logits(Input::Floats(&input)).unwrap();
    let expected = logits(&case.architecture, &network.inference_weights(), &exact);
    let scale = expected.iter().fold(1.0f64, |scale, value| scale.max(value.abs()));
    for (inferred, expected) in inferred.iter().zip(&expected) {
        prop_assert!((f64::from(*inferred) - expected).abs() < 1e-3 * scale, "{inferred} for {expected} at inference");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn logits_of_random_networks_agree_with_plain_loops(case in case().prop_filter("tame", is_tame)) {
        check_logits(&case)?;
    }

    #[test]
    fn series_agree_with_plain_loops_and_central_differences(case in series_case()) {
        check_logits(&case)?;
        check_gradients(&case)?;
    }

    #[test]
    fn gradients_of_random_networks_agree_with_central_differences(case in case().prop_filter("tame", is_tame)) {
        check_gradients(&case)?;
    }
}

/// A causal convolution's outputs do not change with what comes later.
#[test]
fn a_causal_convolution_does_not_see_what_comes_later() {
    for text in ["conv1d 3 4 dilation 2 causal", "depthwise1d 3 dilation 3 causal gelu"] {
        let layers = ["conv1d 3 1", text, "dense 2"].iter().map(|text| text.parse().unwrap()).collect();
        let architecture = Architecture { input: Shape::Image { height: 1, width: 20, channels: 2 }, layers };
        let case = Case { architecture, batch: 1, seed: 3 };
        let weights = case.network().reference_weights();
        let outputs = |input: &[f64]| {
            let images = Images { height: 1, width: 20, channels: 2, values: input.to_vec() };
            sequence(&case.architecture.layers[..2], "layers", &weights, images).values
        };
        let mut input: Vec<f64> = case.input().iter().map(|value| f64::from(*value)).collect();
        let before = outputs(&input);
        input[2 * 12..].iter_mut().for_each(|value| *value += 1.0);
        let after = outputs(&input);
        assert_eq!(before[..3 * 12], after[..3 * 12], "{text}");
        assert_ne!(before[3 * 12..3 * 13], after[3 * 12..3 * 13], "{text}");
    }
}

/// One layer at a time between a convolution, whose weights show the gradient that the layer passes down, and the logits.
fn check_layer(text: &str) {
    for (height, width, channels, batch) in [(8, 8, 2, 5), (9, 7, 3, 17), (20, 21, 1, 9)] {
        let layers = ["conv 5 2x2 same silu", text, "dense 3"].iter().map(|text| text.parse().unwrap()).collect();
        let architecture = Architecture { input: Shape::Image { height, width, channels }, layers };
        check_gradients(&Case { architecture, batch, seed: 7 }).unwrap();
    }
}

/// A channel that is active at one place only is normalised to values near the root of the number of places.
#[test]
fn a_channel_that_is_rarely_active_is_normalised_as_by_plain_loops() {
    let layers = ["conv 16 3x1 relu", "batchnorm gelu", "dense 2"].iter().map(|text| text.parse().unwrap()).collect();
    let architecture = Architecture { input: Shape::Image { height: 4, width: 7, channels: 1 }, layers };
    check_logits(&Case { architecture, batch: 6, seed: 2_143_591_392_199_852_585 }).unwrap();
}

#[test]
fn the_gradient_of_each_kind_of_layer_agrees_with_central_differences() {
    for text in [
        "conv 4 3x3",
        "conv 4 3x3 relu",
        "conv 4 3x3 gelu",
        "conv 4 3x3 silu",
        "conv 6 3x2 stride 2 same relu",
        "conv 6 3x3 dilation 2 same gelu",
        "conv 10 2x3 groups 5 relu",
        "conv 10 3x3 groups 5 stride 2 dilation 2 same silu",
        "depthwise 3x3 same relu",
        "depthwise 2x3 stride 2 gelu",
        "depthwise 3x3 dilation 2",
        "pool 2",
        "pool 3 stride 2",
        "avgpool 2",
        "avgpool 3 stride 1",
        "globalpool",
        "batchnorm",
        "batchnorm relu",
        "batchnorm gelu",
        "batchnorm noscale epsilon 1e-3 silu",
        "dense 7",
        "dense 7 relu",
        "dense 7 gelu",
        "dense 7 silu",
    ] {
        check_layer(text);
    }
}

/// A layer in JSON, as it is for residual blocks.
fn layers(texts: &[&str]) -> Vec<LayerSpec> {
    let read = |text: &&str| if text.starts_with('{') { serde_json::from_str(text).unwrap() } else { text.parse().unwrap() };
    texts.iter().map(read).collect()
}

#[test]
fn the_gradient_of_residual_blocks_agrees_with_central_differences() {
    // First in the network, nested, with shortcuts, and with norms before the convolutions.
    for texts in [
        &[r#"{"residual": ["conv 2 3x3 same gelu", "conv 2 3x3 same"], "activation": "silu"}"#, "dense 3"][..],
        &["conv 6 3x3 relu", r#"{"residual": ["batchnorm relu", "conv 6 3x3 same", {"residual": ["conv 6 1x1 silu"]}]}"#, "globalpool"],
        &[
            "conv 6 3x3",
            r#"{"residual": ["conv 9 3x3 stride 2 same relu", "conv 9 3x3 same", "batchnorm"], "shortcut": ["conv 9 1x1 stride 2", "batchnorm"], "activation": "relu"}"#,
            "dense 3",
        ],
        &["conv 6 3x3", r#"{"residual": ["pool 2", "conv 4 1x1"], "shortcut": ["conv 4 2x2 stride 2 gelu"]}"#, "dense 3"],
        &["dense 5 silu", r#"{"residual": ["dense 7 relu", "dense 5"], "activation": "gelu"}"#, "dense 3"],
    ] {
        for (height, width, channels, batch) in [(8, 9, 2, 5), (7, 8, 2, 17)] {
            let architecture = Architecture { input: Shape::Image { height, width, channels }, layers: layers(texts) };
            let case = Case { architecture, batch, seed: 7 };
            check_logits(&case).unwrap();
            check_gradients(&case).unwrap();
        }
    }
}

#[test]
fn the_gradient_of_a_whitening_layer_s_bias_agrees_with_central_differences() {
    for texts in [&["whiten 2x2 gelu", "conv 3 3x3 relu", "dense 3"][..], &["whiten 2x3", "globalpool", "dense 3"]] {
        let architecture = Architecture { input: Shape::Image { height: 8, width: 7, channels: 2 }, layers: layers(texts) };
        let case = Case { architecture, batch: 19, seed: 7 };
        check_logits(&case).unwrap();
        check_gradients(&case).unwrap();
        assert!(gradients(&case.network(), &case.input(), &case.labels())[0].iter().all(|value| *value == 0.0), "its weights do not learn");
    }
}

#[test]
fn the_gradient_of_a_convolution_with_its_pooling_agrees_with_central_differences() {
    // Short patches are gathered, long ones read in place; both with and without a border and a gradient to pass down.
    for (first, pool, channels) in [
        ("conv 8 3x3 relu", 2, 3),
        ("conv 8 3x3 same relu", 2, 3),
        ("conv 40 3x3 relu", 2, 12),
        ("conv 40 3x3 same", 3, 12),
        ("conv 9 5x5 stride 2 relu", 2, 9),
    ] {
        for probe in [None, Some(format!("conv {channels} 1x1 same"))] {
            let mut layers: Vec<String> = probe.into_iter().collect();
            layers.extend([first.to_owned(), format!("pool {pool}"), "dense 3".to_owned()]);
            let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
            let architecture = Architecture { input: Shape::Image { height: 15, width: 14, channels }, layers };
            check_gradients(&Case { architecture, batch: 11, seed: 3 }).unwrap();
        }
    }
}

#[test]
fn images_larger_than_a_tile_agree_with_plain_loops() {
    for layers in [&["conv 16 3x3 same relu", "pool 2", "conv 16 3x3 relu", "globalpool"][..], &["conv 12 5x5 gelu", "globalpool"]] {
        let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
        let architecture = Architecture { input: Shape::Image { height: 70, width: 66, channels: 3 }, layers };
        let case = Case { architecture, batch: 3, seed: 5 };
        let (network, input) = (case.network(), case.input());
        let exact: Vec<f64> = input.iter().map(|value| f64::from(*value)).collect();
        let expected = logits(&case.architecture, &network.reference_weights(), &exact);
        for (found, expected) in network.logits(Input::Floats(&input)).unwrap().iter().zip(&expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} for {expected}");
        }
        let mut small = case.clone();
        small.batch = 2;
        check_gradients(&small).unwrap();
    }
}

#[test]
fn dropout_passes_the_gradient_of_what_it_kept_only() {
    let layers = ["conv 3 1x1", "dropout 0.5", "dense 2"].iter().map(|text| text.parse().unwrap()).collect();
    let architecture = Architecture { input: Shape::Image { height: 3, width: 3, channels: 1 }, layers };
    let network = Network::new(&architecture, 7).unwrap();
    let loss = |network: &Network, input: &[f32]| {
        let (flow, tape, _) = network.forward_op(Input::Floats(input), 2, 4).unwrap();
        let device = dfdx::tensor::Cpu::default();
        let (loss, _) = loss::forward_op(&flow, &[0, 1], &LossOptions::default(), &device, tape).unwrap();
        loss
    };
    let input: Vec<f32> = (0..18).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut grads = loss(&network, &input).try_backward().unwrap();
    let gradient = grads.get_or_alloc_mut(&network.parameters[0].tensor).unwrap().to_vec();
    for index in 0..3 {
        let at = |step: f32| {
            let mut network = Network::new(&architecture, 7).unwrap();
            let mut values = network.parameters[0].values.to_vec();
            values[index] += step;
            network.parameters[0].set(&values);
            let array: f32 = dfdx::tensor::SplitTape::split_tape(loss(&network, &input)).0.array();
            f64::from(array)
        };
        let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((f64::from(gradient[index]) - difference).abs() < 1e-3, "{} for {difference}", gradient[index]);
    }
}

/// The level is chosen once a process: each lesser one than this machine's gets a process of its own, which runs all tests above.
#[test]
fn each_instruction_set_agrees_with_plain_loops() {
    if std::env::var_os("EPISTEME_SIMD").is_some() {
        return;
    }
    // The best of this machine is what the other tests run on.
    let lesser = if level() == Level::Avx512 { &["avx2", "baseline"][..] } else { &["baseline"] };
    for level in lesser {
        let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
        let output = tests
            .args(["reference::", "winograd::", "depthwise::", "sparse::", "--skip=portable::", "--test-threads=2"])
            .env("EPISTEME_SIMD", level)
            .output()
            .unwrap();
        assert!(output.status.success(), "{level}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
