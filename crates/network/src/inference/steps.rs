//! The steps that inference takes through a network: a batch norm's fixed statistics are taken into the weights of the layer before
//! it, which then has its activation, and dropout is gone.

use std::sync::Arc;

use crate::{
    batchnorm::{Affine, BatchNorm},
    conv::{Conv, Weighted},
    dense::Dense,
    layer::Activation,
    network::{Cursor, Network},
    plan::{Block, Placed},
    pool::Pool,
    scratch::Aligned,
};

/// One or several blocks that are computed together.
pub(crate) struct Step {
    pub(super) kind: Kind,
    /// Values of one example that comes out.
    pub(super) output_len: usize,
}

pub(super) enum Kind {
    Conv(Conv, Layer),
    Dense(Dense, Layer),
    Pool(Pool),
    /// A batch norm that no layer could take in.
    Affine(Affine),
    Residual {
        branch: Vec<Step>,
        /// Empty where the input itself is added.
        shortcut: Vec<Step>,
        activation: Activation,
    },
}

/// Weights and bias.
pub(super) struct Layer {
    weights: Arc<Vec<f32>>,
    prepared: Arc<Aligned>,
    bias: Arc<Vec<f32>>,
}

impl Layer {
    /// As the forward pass reads them.
    pub(super) fn weighted(&self) -> Weighted<'_> {
        Weighted { weights: &self.weights, prepared: self.prepared.values(), bias: &self.bias }
    }

    /// `[inputs of a sum, sums]` and a bias a sum, with the factor and offset of each sum taken in.
    fn folded(weights: &[f32], bias: &[f32], norm: &Affine, prepare: impl FnOnce(&[f32]) -> Aligned) -> Self {
        let mut weights = weights.to_vec();
        weights
            .chunks_exact_mut(bias.len())
            .for_each(|row| row.iter_mut().zip(&norm.factor).for_each(|(weight, factor)| *weight *= factor));
        let bias = bias.iter().zip(&norm.factor).zip(&norm.offset).map(|((bias, factor), offset)| bias * factor + offset).collect();
        Layer { prepared: Arc::new(prepare(&weights)), weights: Arc::new(weights), bias: Arc::new(bias) }
    }
}

impl Network {
    /// The steps of blocks that follow each other.
    pub(super) fn steps_of(&self, blocks: &[Placed], cursor: &mut Cursor) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut blocks = blocks.iter().peekable();
        while let Some(Placed { block, output_len, .. }) = blocks.next() {
            let at = *cursor;
            cursor.advance(block);
            let affine = |norm: &BatchNorm, at: Cursor| {
                norm.affine(&self.parameters[at.parameter].values, &self.parameters[at.parameter + 1].values, &self.running[at.running])
            };
            let kind = match block {
                Block::Dropout(_) => continue,
                Block::Pool(pool) => Kind::Pool(pool.clone()),
                Block::BatchNorm(norm) => Kind::Affine(affine(norm, at)),
                Block::Residual(residual) => Kind::Residual {
                    branch: self.steps_of(&residual.branch, cursor),
                    shortcut: self.steps_of(&residual.shortcut, cursor),
                    activation: residual.activation,
                },
                Block::Conv(_) | Block::Dense(_) => {
                    let norm = match blocks.peek().map(|next| &next.block) {
                        Some(Block::BatchNorm(norm)) => Some(affine(norm, *cursor)).filter(|norm| block.takes_in(norm)),
                        _ => None,
                    };
                    if let Some(next) = norm.as_ref().and_then(|_| blocks.next()) {
                        cursor.advance(&next.block);
                    }
                    self.layer_step(block, at, norm)
                }
            };
            steps.push(Step { kind, output_len: *output_len });
        }
        steps
    }

    /// A convolution or a dense layer, with the norm behind it if it takes it in.
    fn layer_step(&self, block: &Block, at: Cursor, norm: Option<Affine>) -> Kind {
        let (weights, bias) = (&self.parameters[at.parameter], &self.parameters[at.parameter + 1].values);
        let activation = norm.as_ref().map(|norm| norm.activation);
        let layer = |prepare: &dyn Fn(&[f32]) -> Aligned| match &norm {
            Some(norm) => Layer::folded(&weights.values, bias, norm, prepare),
            None => Layer { weights: weights.values.clone(), prepared: weights.prepared(block).clone(), bias: bias.clone() },
        };
        match block {
            Block::Conv(conv) => {
                let layer = layer(&|weights| conv.prepared_weights(weights));
                Kind::Conv(Conv { activation: activation.unwrap_or(conv.activation), ..conv.clone() }, layer)
            }
            Block::Dense(dense) => {
                let layer = layer(&|weights| dense.prepared_weights(weights));
                Kind::Dense(Dense { activation: activation.unwrap_or(dense.activation), ..dense.clone() }, layer)
            }
            _ => unreachable!("the caller has a convolution or a dense layer"),
        }
    }
}

impl Block {
    /// Whether the norm behind this block can be taken into its weights: nothing comes between the sums and the norm, or a maximum,
    /// which may be taken after a factor that turns nothing around.
    fn takes_in(&self, norm: &Affine) -> bool {
        match self {
            Block::Conv(conv) => conv.activation == Activation::None && (conv.pool == 1 || norm.factor.iter().all(|factor| *factor > 0.0)),
            Block::Dense(dense) => dense.activation == Activation::None,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{
        Batch, Input, LossOptions, Optimiser, OptimiserConfig,
        architecture::{Architecture, Shape},
    };

    fn network(layers: &[&str]) -> Network {
        let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
        Network::new(&Architecture { input: Shape::Image { height: 8, width: 8, channels: 2 }, layers }, 3).unwrap()
    }

    fn kinds(steps: &[Step]) -> Vec<&'static str> {
        let name = |step: &Step| match &step.kind {
            Kind::Conv(..) => "conv",
            Kind::Dense(..) => "dense",
            Kind::Pool(_) => "pool",
            Kind::Affine(_) => "affine",
            Kind::Residual { .. } => "residual",
        };
        steps.iter().map(name).collect()
    }

    #[test]
    fn a_norm_is_taken_into_the_layer_before_it_where_nothing_comes_between() {
        let steps_of = |layers: &[&str]| kinds(network(layers).steps());
        assert_eq!(steps_of(&["conv 4 3x3", "batchnorm gelu", "dense 3", "batchnorm relu", "dense 2"]), ["conv", "dense", "dense"]);
        assert_eq!(steps_of(&["conv 4 3x3", "pool 2", "batchnorm gelu", "dense 2"]), ["conv", "dense"]);
        assert_eq!(steps_of(&["conv 4 3x3 relu", "batchnorm", "dense 2"]), ["conv", "affine", "dense"]);
        assert_eq!(steps_of(&["conv 4 3x3", "batchnorm", "batchnorm", "dense 2"]), ["conv", "affine", "dense"]);
        assert_eq!(steps_of(&["conv 4 3x3", "dropout 0.5", "batchnorm", "dense 2"]), ["conv", "affine", "dense"]);
        assert_eq!(
            steps_of(&["batchnorm", "conv 4 3x3", "pool 3 stride 1", "batchnorm", "dense 2"]),
            ["affine", "conv", "pool", "affine", "dense"]
        );
    }

    #[test]
    fn a_norm_that_turns_a_channel_around_stays_behind_the_maximum() {
        let mut network = network(&["conv 4 3x3", "pool 2", "batchnorm gelu", "dense 2"]);
        network.parameters[2].set(&[1.0, -1.0, 1.0, 1.0]);
        assert_eq!(kinds(network.steps()), ["conv", "affine", "dense"]);
    }

    #[test]
    fn inference_knows_of_every_change_of_the_network() {
        let mut network = network(&["whiten 2x2", "batchnorm gelu", "dense 2"]);
        let images: Vec<f32> = (0..256).map(|at| (at * at % 17) as f32 / 17.0).collect();
        let input = Input::Floats(&images);
        let first = network.logits(input).unwrap();
        network.fit_whitening(input).unwrap();
        let fitted = network.logits(input).unwrap();
        assert_ne!(first, fitted);
        let snapshot = network.snapshot();
        let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network).unwrap();
        network.train_step(Batch { input, labels: &[0, 1] }, &mut optimiser, &LossOptions::default()).unwrap();
        assert_ne!(network.logits(input).unwrap(), fitted);
        network.restore(&snapshot).unwrap();
        assert_eq!(network.logits(input).unwrap(), fitted);
    }
}
