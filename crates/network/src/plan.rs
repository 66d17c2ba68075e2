//! From the layers that users write to the blocks that are computed: neighbours that belong together become one.

use crate::{
    amx::Unit,
    architecture::{Architecture, ArchitectureError, Place, Shape, output_shape},
    batchnorm::BatchNorm,
    conv::Conv,
    dense::Dense,
    dropout::Dropout,
    layer::{self, Axes, BatchNormalisation, Convolution, LayerSpec, Padding, PoolKind, Pooling},
    pool::Pool,
    residual::Residual,
};

/// One or several layers that are computed together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Block {
    /// A convolution with bias and activation, and a maximum pooling that follows.
    Conv(Conv),
    Dense(Dense),
    Pool(Pool),
    Dropout(Dropout),
    BatchNorm(BatchNorm),
    Residual(Residual),
}

/// A block in its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    pub(crate) block: Block,
    /// That of the first of its layers; names its weights.
    pub(crate) place: Place,
    pub(crate) output_len: usize,
    pub(crate) weights: Vec<WeightSpec>,
}

/// A tensor that a block holds: its name's last part, its shape, how it begins, what it is, and when it learns.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WeightSpec {
    pub(crate) name: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) start: Start,
    pub(crate) role: Role,
    pub(crate) learns: Learns,
}

/// How a tensor begins. Random ones are for sums of `inputs` products and `outputs` sums an input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Start {
    Zeros,
    Ones,
    Random {
        inputs: usize,
        outputs: usize,
    },
    /// Random, but for the first filters of each group: the identity at this point of the kernel.
    Identity {
        inputs: usize,
        outputs: usize,
        groups: usize,
        centre: (usize, usize),
    },
    /// Random until it is fitted to the examples.
    Fitted {
        inputs: usize,
        outputs: usize,
        /// As the layer has it.
        epsilon: f32,
    },
}

/// What a tensor is to its layer, as optimisers tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The weights of sums: a matrix, seen as `[inputs of a sum, sums]`.
    Matrix,
    /// The weights of a convolution in groups, which are a matrix each.
    Matrices,
    Bias,
    /// Of a batch norm.
    Scale,
    /// Of a batch norm, or the bias of a whitening, which is to its fitted filters what a shift is to a norm.
    Shift,
}

impl Role {
    /// Weight decay is for the weights of sums, not for biases, scales and shifts.
    pub(crate) fn decays(self) -> bool {
        matches!(self, Role::Matrix | Role::Matrices)
    }

    /// The learning rate of such a tensor as a multiple of the optimiser's.
    pub(crate) fn rate(self, bias_rate: f64) -> f64 {
        if self == Role::Shift { bias_rate } else { 1.0 }
    }
}

/// When a tensor learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learns {
    Always,
    Never,
    /// In so many first epochs.
    For(u32),
}

/// What a block of this layer holds: nothing, or weights and bias in this order.
fn weights(layer: &LayerSpec, block: &Block) -> Vec<WeightSpec> {
    let always = |name, shape, start, role| WeightSpec { name, shape, start, role, learns: Learns::Always };
    let bias = |outputs, role| always("bias", vec![outputs], Start::Zeros, role);
    match (block, layer) {
        (Block::Conv(conv), layer) => {
            let (window, groups) = (conv.rows * conv.columns, conv.groups);
            let (inputs, outputs) = (window * conv.channels / groups, window * conv.filters / groups);
            let shape = vec![conv.rows, conv.columns, conv.channels / groups, conv.filters];
            let role = if groups > 1 { Role::Matrices } else { Role::Matrix };
            match layer {
                LayerSpec::Whiten { bias_epochs, epsilon, .. } => {
                    let fitted = always("weight", shape, Start::Fitted { inputs, outputs, epsilon: *epsilon }, role);
                    let learns = bias_epochs.map_or(Learns::Always, Learns::For);
                    vec![WeightSpec { learns: Learns::Never, ..fitted }, WeightSpec { learns, ..bias(conv.filters, Role::Shift) }]
                }
                LayerSpec::Conv(Convolution { dirac: true, padding, .. }) => {
                    let centre = if *padding == Padding::Causal { (0, conv.columns - 1) } else { (conv.rows / 2, conv.columns / 2) };
                    let start = Start::Identity { inputs, outputs, groups, centre };
                    vec![always("weight", shape, start, role), bias(conv.filters, Role::Bias)]
                }
                _ => vec![always("weight", shape, Start::Random { inputs, outputs }, role), bias(conv.filters, Role::Bias)],
            }
        }
        (Block::Dense(dense), layer) => {
            let is_zero = matches!(layer, LayerSpec::Dense { zeros: true, .. });
            let start = if is_zero { Start::Zeros } else { Start::Random { inputs: dense.inputs, outputs: dense.units } };
            vec![always("weight", vec![dense.inputs, dense.units], start, Role::Matrix), bias(dense.units, Role::Bias)]
        }
        (Block::BatchNorm(norm), layer) => {
            let is_fixed = matches!(layer, LayerSpec::BatchNorm(BatchNormalisation { scale: false, .. }));
            let scale = always("weight", vec![norm.channels], Start::Ones, Role::Scale);
            let learns = if is_fixed { Learns::Never } else { Learns::Always };
            vec![WeightSpec { learns, ..scale }, bias(norm.channels, Role::Shift)]
        }
        // A residual block's weights are those of the blocks in it.
        (Block::Pool(_) | Block::Dropout(_) | Block::Residual(_), _) => Vec::new(),
    }
}

/// The blocks of an architecture, after its check.
pub(crate) fn blocks(architecture: &Architecture) -> Result<Vec<Placed>, ArchitectureError> {
    architecture.check()?;
    Ok(Planner::default().sequence(&architecture.layers, architecture.input, Place::top).0)
}

/// The blocks that are no residual blocks, in the order in which they are computed and their weights lie.
pub(crate) fn leaves(blocks: &[Placed]) -> Vec<&Placed> {
    let mut all = Vec::new();
    for placed in blocks {
        match &placed.block {
            Block::Residual(residual) => all.extend([&residual.branch, &residual.shortcut].into_iter().flat_map(|way| leaves(way))),
            _ => all.push(placed),
        }
    }
    all
}

/// Has the convolutions multiply bf16 factors by this unit, or fp32 ones.
pub(crate) fn set_unit(blocks: &mut [Placed], unit: Option<Unit>) {
    for placed in blocks {
        match &mut placed.block {
            Block::Conv(conv) => conv.unit = unit,
            Block::Residual(residual) => [&mut residual.branch, &mut residual.shortcut].into_iter().for_each(|way| set_unit(way, unit)),
            Block::Dense(_) | Block::Pool(_) | Block::Dropout(_) | Block::BatchNorm(_) => {}
        }
    }
}

/// Follows the shape of an example through layers that are known to fit.
#[derive(Default)]
struct Planner {
    /// Layers so far, also those within residual blocks.
    layers: usize,
}

impl Planner {
    fn sequence(&mut self, layers: &[LayerSpec], input: Shape, place: impl Fn(usize) -> Place) -> (Vec<Placed>, Shape) {
        let (mut blocks, mut shape, mut index) = (Vec::new(), input, 0);
        while index < layers.len() {
            if let LayerSpec::Series { .. } = &layers[index] {
                // The values lie as they should.
                shape = output_shape(&layers[index], shape).shape;
                (index, self.layers) = (index + 1, self.layers + 1);
                continue;
            }
            let (layer, pool) = (&layers[index], layers.get(index + 1).and_then(|next| fused_pool(&layers[index], next)));
            let (block, mut output) = match layer {
                LayerSpec::Residual(residual) => self.residual(residual, shape, &place(index)),
                layer => (block(layer, pool.unwrap_or(1), self.layers, shape), output_shape(layer, shape).shape),
            };
            if pool.is_some() {
                output = output_shape(&layers[index + 1], output).shape;
            }
            let weights = weights(layer, &block);
            blocks.push(Placed { block, place: place(index), output_len: output.len(), weights });
            let taken = 1 + usize::from(pool.is_some());
            (shape, index, self.layers) = (output, index + taken, self.layers + taken);
        }
        (blocks, shape)
    }

    fn residual(&mut self, residual: &layer::Residual, input: Shape, place: &Place) -> (Block, Shape) {
        let (branch, output) = self.sequence(&residual.layers, input, |index| place.residual(index));
        let (shortcut, _) = self.sequence(&residual.shortcut, input, |index| place.shortcut(index));
        (Block::Residual(Residual { branch, shortcut, activation: residual.activation }), output)
    }
}

/// The window of a pooling layer that can be computed with the convolution before it.
fn fused_pool(layer: &LayerSpec, next: &LayerSpec) -> Option<usize> {
    let (LayerSpec::Conv(conv), LayerSpec::Pool(pool)) = (layer, next) else { return None };
    let Pooling { axes, kind, window, stride } = *pool;
    // The kernels of spread and grouped convolutions write every output.
    let is_plain = matches!(conv, Convolution { filters: Some(_), dilation: 1, groups: 1, .. });
    let is_fused = is_plain && conv.activation.is_monotone() && axes == Axes::Image && kind == PoolKind::Maximum;
    (is_fused && window == stride && window > 1).then_some(window)
}

/// The block of a layer that is no residual block; `index` tells it from all other layers.
fn block(layer: &LayerSpec, pool: usize, index: usize, input: Shape) -> Block {
    let (height, width, channels) = match input {
        Shape::Image { height, width, channels } => (height, width, channels),
        Shape::Features(n) => (1, 1, n),
    };
    let window = |kind, (rows, columns), stride| Block::Pool(Pool { kind, height, width, channels, rows, columns, stride });
    match *layer {
        LayerSpec::Conv(ref conv) => Block::Conv(Conv::of((height, width, channels), conv, pool)),
        LayerSpec::Pool(pool) => window(pool.kind, pool.sides(), pool.stride),
        LayerSpec::GlobalPool(kind) => window(kind, (height, width), 1),
        LayerSpec::Dense { units, activation, .. } => Block::Dense(Dense { inputs: input.len(), units, activation }),
        LayerSpec::Dropout { rate } => Block::Dropout(Dropout { rate, layer: index, channels }),
        LayerSpec::BatchNorm(BatchNormalisation { epsilon, momentum, activation, .. }) => {
            Block::BatchNorm(BatchNorm { channels, epsilon, momentum, activation })
        }
        LayerSpec::Whiten { kernel, activation, .. } => {
            let filters = 2 * kernel.0 * kernel.1 * channels;
            Block::Conv(Conv::new((height, width, channels), filters, kernel, 1, Padding::Valid, activation, 1))
        }
        LayerSpec::Series { .. } | LayerSpec::Residual(_) => unreachable!("the planner sees to them itself"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fused(layers: &[&str]) -> Vec<String> {
        let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
        let architecture = Architecture { input: Shape::Image { height: 16, width: 16, channels: 2 }, layers };
        blocks(&architecture).unwrap().iter().map(|placed| placed.place.path.clone()).collect()
    }

    #[test]
    fn a_convolution_takes_in_the_pooling_behind_it_where_the_result_is_the_same() {
        assert_eq!(fused(&["conv 4 3x3 relu", "pool 2", "dense 2"]), ["0", "2"]);
        assert_eq!(fused(&["conv 4 3x3", "pool 3", "dense 2"]), ["0", "2"]);
        assert_eq!(fused(&["conv 4 3x3 gelu", "pool 2", "dense 2"]), ["0", "1", "2"], "gelu first falls, then rises");
        assert_eq!(fused(&["conv 4 3x3 relu", "pool 3 stride 2", "dense 2"]), ["0", "1", "2"], "windows overlap");
        assert_eq!(fused(&["conv 4 3x3 dilation 2", "pool 2", "dense 2"]), ["0", "1", "2"]);
        assert_eq!(fused(&["conv 4 3x3 groups 2", "pool 2", "dense 2"]), ["0", "1", "2"]);
        assert_eq!(fused(&["depthwise 3x3", "pool 2", "dense 2"]), ["0", "1", "2"]);
        assert_eq!(fused(&["conv 4 3x3", "batchnorm relu", "pool 2", "dense 2"]), ["0", "1", "2", "3"]);
    }
}
