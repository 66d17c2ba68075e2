//! The network by dfdx's public tensor operations alone, so that it runs on any of dfdx's devices.
//!
//! It is the reference that the kernels for GPUs (`fused`) are held against there. On `Cpu` the very same code is held against plain loops in f64 and
//! against the engine of this crate. It keeps to what is deterministic on every device; see `operations`.
//!
//! Weights, statistics and the optimiser's state stay with the [`Network`](crate::Network): a step takes the weights to the device and brings
//! their gradients back. That costs a fraction of a millisecond, and leaves one optimiser, one checkpoint and one file format for all devices.

mod conv;
mod dense;
mod layers;
mod norm;
mod operations;
mod pool;
mod windows;

use std::sync::Arc;

use dfdx::{
    shapes::HasShape,
    tensor::{HasErr, Tensor},
    tensor_ops::{Device, ReshapeTo, TryAdd, TryMul},
};

use self::{
    conv::Convolution,
    layers::{Kernel, Layer},
    norm::Statistics,
    operations::{activate, activation_gradient},
};
use crate::{
    accelerator::{Engine, Learnt, Lesson, State, Waiting},
    architecture::Shape,
    batchnorm::BatchNorm,
    conv::Conv,
    error::NetworkError,
    examples::Values,
    layer::Activation,
    loss,
    network::Cursor,
    plan::{Block, Placed},
    pool::Pool,
    residual::Residual,
};

/// What flows between layers: `[batch, pixels, channels]`.
type Maps<D> = Tensor<(usize, usize, usize), f32, D>;
type Matrix<D> = Tensor<(usize, usize), f32, D>;
type Row<D> = Tensor<(usize,), f32, D>;

/// A result, or what the device said.
type Done<T, D> = Result<T, <D as HasErr>::Err>;

/// From the gradient of what a layer gave to that of what it took; its weights' go into the list.
type Back<D> = Box<dyn FnOnce(Maps<D>, &mut Found<D>) -> Done<Maps<D>, D>>;

/// What a layer gives, and the way back.
type Forward<D> = (Maps<D>, Back<D>);

/// The gradients of the weights, in the network's order, as far as they are known.
struct Found<D: Device<f32>>(Vec<Option<Row<D>>>);

impl<D: Device<f32>> Found<D> {
    fn put(&mut self, index: usize, gradient: Row<D>) {
        self.0[index] = Some(gradient);
    }
}

/// A layer's weights and bias on the device, and the place of the first in the network's list.
struct Weights<D: Device<f32>> {
    index: usize,
    weights: Row<D>,
    bias: Row<D>,
}

/// A network on a device.
pub(crate) struct Portable<D: Device<f32>> {
    device: D,
    layers: Vec<Layer<D>>,
    /// The shape of an example.
    input: Shape,
    /// Weights as they were last taken to the device, with their version.
    held: Vec<Option<(u64, Row<D>)>>,
    /// For each parameter, the convolution whose weights it is.
    convolutions: Vec<Option<Arc<Convolution<D>>>>,
}

/// A batch on its way through the layers.
struct Pass<'a, D: Device<f32>> {
    state: &'a State,
    /// Seed and step of a training; none at inference.
    training: Option<(u64, u64)>,
    cursor: Cursor,
    statistics: Vec<(Statistics<D>, f32)>,
}

impl<D: Device<f32>> Portable<D> {
    /// Puts on the device what the operations of a network's blocks need besides weights.
    pub(crate) fn new(blocks: &[Placed], input: Shape, device: D) -> Result<Self, NetworkError> {
        let layers = layers::of(blocks, true, &device).map_err(failed::<D>)?;
        let convolutions = layers::convolutions(&layers);
        Ok(Portable { device, layers, input, held: Vec::new(), convolutions })
    }

    /// Takes those weights to the device that have changed.
    fn take(&mut self, state: &State) -> Done<(), D> {
        self.held.resize_with(state.parameters.len(), || None);
        for ((held, (version, values)), convolution) in self.held.iter_mut().zip(&state.parameters).zip(&self.convolutions) {
            if held.as_ref().is_some_and(|(held, _)| held == version) {
                continue;
            }
            let values = convolution.as_ref().map_or_else(|| values.to_vec(), |convolution| convolution.spread(values));
            let len = (values.len(),);
            *held = Some((*version, self.device.try_tensor_from_vec(values, len)?));
        }
        Ok(())
    }

    /// The weights of the block at the cursor.
    fn weights(&self, cursor: Cursor) -> Weights<D> {
        let row = |index: usize| self.held[index].as_ref().map(|(_, row)| row.clone());
        match (row(cursor.parameter), row(cursor.parameter + 1)) {
            (Some(weights), Some(bias)) => Weights { index: cursor.parameter, weights, bias },
            _ => unreachable!("all weights are taken to the device before a pass"),
        }
    }

    fn examples(&self, values: &Values) -> Done<Maps<D>, D> {
        let channels = self.input.channels();
        let values = values.to_floats(channels).to_vec();
        let shape = (values.len() / self.input.len(), self.input.len() / channels, channels);
        self.device.try_tensor_from_vec(values, shape)
    }

    /// Takes a batch through layers that follow each other; the ways back are in their order.
    fn pass(&self, layers: &[Layer<D>], input: Maps<D>, pass: &mut Pass<'_, D>) -> Done<(Maps<D>, Vec<Back<D>>), D> {
        let (mut flow, mut backs) = (input, Vec::new());
        for Layer { block, kernel } in layers {
            let mut ways = Vec::new();
            flow = self.layer(block, kernel, flow, pass, &mut ways)?;
            pass.cursor.advance(block);
            if pass.training.is_some() {
                backs.append(&mut ways);
            }
        }
        Ok((flow, backs))
    }

    fn layer(
        &self,
        block: &Block,
        kernel: &Kernel<D>,
        input: Maps<D>,
        pass: &mut Pass<'_, D>,
        backs: &mut Vec<Back<D>>,
    ) -> Done<Maps<D>, D> {
        let input = match block {
            Block::Conv(Conv { channels, .. }) | Block::Pool(Pool { channels, .. }) | Block::BatchNorm(BatchNorm { channels, .. }) => {
                with_channels(input, *channels, backs)?
            }
            Block::Dense(_) | Block::Dropout(_) | Block::Residual(_) => input,
        };
        match (block, kernel) {
            (Block::Conv(conv), Kernel::Conv { conv: convolution, pool }) => {
                let (mut output, back) = convolution.forward(&input, self.weights(pass.cursor), &self.device)?;
                backs.push(back);
                if let Some(pool) = pool {
                    let (pooled, back) = pool.forward(&output, &self.device)?;
                    backs.push(back);
                    output = pooled;
                }
                self.activate(conv.activation, output, backs)
            }
            (Block::Pool(_), Kernel::Pool(pool)) => {
                let (output, back) = pool.forward(&input, &self.device)?;
                backs.push(back);
                Ok(output)
            }
            (Block::Dense(dense), _) => {
                let (output, back) = dense::forward(dense, input, self.weights(pass.cursor), &self.device)?;
                backs.push(back);
                self.activate(dense.activation, output, backs)
            }
            (Block::BatchNorm(norm), _) => {
                let layer = self.weights(pass.cursor);
                if pass.training.is_none() {
                    let output = norm::infer(norm, &input, &layer, &pass.state.running[pass.cursor.running], &self.device)?;
                    return self.activate(norm.activation, output, backs);
                }
                let ((output, back), statistics) = norm::forward(norm, &input, layer, &self.device)?;
                backs.push(back);
                pass.statistics.push((statistics, norm.momentum));
                self.activate(norm.activation, output, backs)
            }
            (Block::Dropout(dropout), _) => {
                let Some((seed, step)) = pass.training else { return Ok(input) };
                let shape = *input.shape();
                let mut mask = vec![1.0; shape.0 * shape.1 * shape.2];
                dropout.mask(dropout.key(seed, step), &mut mask);
                let mask: Maps<D> = self.device.try_tensor_from_vec(mask, shape)?;
                let output = input.try_mul(mask.clone())?;
                backs.push(Box::new(move |gradient, _| gradient.try_mul(mask)));
                Ok(output)
            }
            (Block::Residual(residual), Kernel::Residual { branch, shortcut }) => {
                self.residual(residual, (branch, shortcut), input, pass, backs)
            }
            _ => unreachable!("each block was given its kernel"),
        }
    }

    fn activate(&self, activation: Activation, values: Maps<D>, backs: &mut Vec<Back<D>>) -> Done<Maps<D>, D> {
        let output = activate(activation, &values, &self.device)?;
        let device = self.device.clone();
        backs.push(Box::new(move |gradient, _| activation_gradient(activation, &values, gradient, &device)));
        Ok(output)
    }

    fn residual(
        &self,
        residual: &Residual,
        (branch, shortcut): (&[Layer<D>], &[Layer<D>]),
        input: Maps<D>,
        pass: &mut Pass<'_, D>,
        backs: &mut Vec<Back<D>>,
    ) -> Done<Maps<D>, D> {
        let (one, ways) = self.pass(branch, input.clone(), pass)?;
        let (other, other_ways) = self.pass(shortcut, input, pass)?;
        let sum = one.try_add(other)?;
        backs.push(Box::new(move |gradient, found| {
            let one = go_back(ways, gradient.clone(), found)?;
            let other = go_back(other_ways, gradient, found)?;
            one.try_add(other)
        }));
        self.activate(residual.activation, sum, backs)
    }

    fn learn(&mut self, state: &State, lesson: &Lesson) -> Done<Learnt, D> {
        self.take(state)?;
        let mut pass = Pass { state, training: Some((lesson.seed, lesson.step)), cursor: Cursor::default(), statistics: Vec::new() };
        let (logits, backs) = self.pass(&self.layers, self.examples(&lesson.input)?, &mut pass)?;
        let values = logits.as_vec();
        let mut gradient = vec![0.0; values.len()];
        let report = loss::cross_entropy(&values, &lesson.labels, &lesson.options, Some(&mut gradient));
        let mut found = Found(state.parameters.iter().map(|_| None).collect());
        go_back(backs, self.device.try_tensor_from_vec(gradient, *logits.shape())?, &mut found)?;
        let read = |(gradient, convolution): (Option<Row<D>>, &Option<Arc<Convolution<D>>>)| {
            let values = gradient.map(|gradient| gradient.as_vec()).unwrap_or_default();
            match convolution {
                Some(convolution) => convolution.gathered(values),
                None => values,
            }
        };
        Ok(Learnt {
            report,
            gradients: found.0.into_iter().zip(&self.convolutions).map(read).collect(),
            statistics: pass.statistics.iter().map(|(statistics, momentum)| (statistics.read(), *momentum)).collect(),
        })
    }

    fn infer(&mut self, state: &State, input: &Values) -> Done<Vec<f32>, D> {
        self.take(state)?;
        let mut pass = Pass { state, training: None, cursor: Cursor::default(), statistics: Vec::new() };
        Ok(self.pass(&self.layers, self.examples(input)?, &mut pass)?.0.as_vec())
    }
}

impl<D: Device<f32>> Engine for Portable<D> {
    fn learn(&mut self, state: &State, lesson: &Lesson) -> Result<Learnt, NetworkError> {
        Portable::learn(self, state, lesson).map_err(failed::<D>)
    }

    fn submit(&mut self, state: &State, input: &Values) -> Result<Waiting, NetworkError> {
        let logits = self.infer(state, input).map_err(failed::<D>)?;
        Ok(Box::new(move || Ok(logits)))
    }
}

fn failed<D: Device<f32>>(error: D::Err) -> NetworkError {
    NetworkError::device(error.to_string())
}

/// Back through layers, the last first.
fn go_back<D: Device<f32>>(backs: Vec<Back<D>>, gradient: Maps<D>, found: &mut Found<D>) -> Done<Maps<D>, D> {
    backs.into_iter().rev().try_fold(gradient, |gradient, back| back(gradient, found))
}

/// Maps with so many channels: a list of features becomes a series where a layer takes it so. Nothing is copied.
fn with_channels<D: Device<f32>>(input: Maps<D>, channels: usize, backs: &mut Vec<Back<D>>) -> Done<Maps<D>, D> {
    let shape = *input.shape();
    if shape.2 == channels {
        return Ok(input);
    }
    backs.push(Box::new(move |gradient, _| gradient.try_reshape_like(&shape)));
    input.try_reshape_like(&(shape.0, shape.1 * shape.2 / channels, channels))
}
