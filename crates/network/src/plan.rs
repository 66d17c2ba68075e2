//! From the layers that users write to the blocks that are computed: neighbours that belong together become one.

use crate::{
    architecture::{Architecture, ArchitectureError, Shape},
    batchnorm::BatchNorm,
    conv::Conv,
    dense::Dense,
    dropout::Dropout,
    layer::LayerSpec,
    pool::{Kind, Pool},
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
}

/// A block in its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    pub(crate) block: Block,
    /// The first of its layers, from 0; names its weights.
    pub(crate) layer: usize,
    pub(crate) output_len: usize,
}

/// A tensor that a block learns: its name's last part, its shape, and how it begins.
pub(crate) struct WeightSpec {
    pub(crate) name: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) start: Start,
}

pub(crate) enum Start {
    Zeros,
    Ones,
    /// Random, for sums of `inputs` products and `outputs` sums an input.
    Random {
        inputs: usize,
        outputs: usize,
    },
}

impl Block {
    /// What the block learns: nothing, or weights and bias in this order.
    pub(crate) fn weights(&self) -> Vec<WeightSpec> {
        let (shape, start, outputs) = match self {
            Block::Conv(conv) => {
                let window = conv.rows * conv.columns;
                let shape = vec![conv.rows, conv.columns, conv.channels, conv.filters];
                let start = Start::Random { inputs: window * conv.channels, outputs: window * conv.filters };
                (shape, start, conv.filters)
            }
            Block::Dense(dense) => {
                let start = Start::Random { inputs: dense.inputs, outputs: dense.units };
                (vec![dense.inputs, dense.units], start, dense.units)
            }
            Block::BatchNorm(norm) => (vec![norm.channels], Start::Ones, norm.channels),
            Block::Pool(_) | Block::Dropout(_) => return Vec::new(),
        };
        let bias = WeightSpec { name: "bias", shape: vec![outputs], start: Start::Zeros };
        vec![WeightSpec { name: "weight", shape, start }, bias]
    }
}

/// The blocks of an architecture, after its check.
pub(crate) fn blocks(architecture: &Architecture) -> Result<Vec<Placed>, ArchitectureError> {
    let report = architecture.check()?;
    let mut blocks = Vec::new();
    let mut shape = architecture.input;
    let mut index = 0;
    while index < architecture.layers.len() {
        let layer = &architecture.layers[index];
        let pool = architecture.layers.get(index + 1).and_then(|next| fused_pool(layer, next));
        let last = index + usize::from(pool.is_some());
        let output = report.layers[last].output;
        blocks.push(Placed { block: block(layer, pool.unwrap_or(1), index, shape), layer: index, output_len: output.len() });
        shape = output;
        index = last + 1;
    }
    Ok(blocks)
}

/// The window of a pooling layer that can be computed with the convolution before it.
fn fused_pool(layer: &LayerSpec, next: &LayerSpec) -> Option<usize> {
    match (layer, next) {
        (LayerSpec::Conv { activation, .. }, LayerSpec::MaxPool { window, stride })
            if activation.is_monotone() && window == stride && *window > 1 =>
        {
            Some(*window)
        }
        _ => None,
    }
}

fn block(layer: &LayerSpec, pool: usize, index: usize, input: Shape) -> Block {
    let (height, width, channels) = match input {
        Shape::Image { height, width, channels } => (height, width, channels),
        Shape::Features(n) => (1, 1, n),
    };
    let window = |kind, rows, columns, stride| Block::Pool(Pool { kind, height, width, channels, rows, columns, stride });
    match *layer {
        LayerSpec::Conv { filters, kernel, stride, padding, activation } => {
            Block::Conv(Conv::new((height, width, channels), filters, kernel, stride, padding, activation, pool))
        }
        LayerSpec::MaxPool { window: side, stride } => window(Kind::Maximum, side, side, stride),
        LayerSpec::AveragePool { window: side, stride } => window(Kind::Mean, side, side, stride),
        LayerSpec::GlobalPool => window(Kind::Mean, height, width, 1),
        LayerSpec::Dense { units, activation } => Block::Dense(Dense { inputs: input.len(), units, activation }),
        LayerSpec::Dropout { rate } => Block::Dropout(Dropout { rate, layer: index, channels }),
        LayerSpec::BatchNorm { activation } => Block::BatchNorm(BatchNorm { channels, activation }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fused(layers: &[&str]) -> Vec<usize> {
        let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
        let architecture = Architecture { input: Shape::Image { height: 16, width: 16, channels: 2 }, layers };
        blocks(&architecture).unwrap().iter().map(|placed| placed.layer).collect()
    }

    #[test]
    fn a_convolution_takes_in_the_pooling_behind_it_where_the_result_is_the_same() {
        assert_eq!(fused(&["conv 4 3x3 relu", "pool 2", "dense 2"]), [0, 2]);
        assert_eq!(fused(&["conv 4 3x3", "pool 3", "dense 2"]), [0, 2]);
        assert_eq!(fused(&["conv 4 3x3 gelu", "pool 2", "dense 2"]), [0, 1, 2], "gelu first falls, then rises");
        assert_eq!(fused(&["conv 4 3x3 relu", "pool 3 stride 2", "dense 2"]), [0, 1, 2], "windows overlap");
        assert_eq!(fused(&["conv 4 3x3", "batchnorm relu", "pool 2", "dense 2"]), [0, 1, 2, 3]);
    }
}
