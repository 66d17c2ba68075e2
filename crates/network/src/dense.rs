//! The fully connected layer with bias and activation. An image that reaches it is taken as it lies in memory:
//! row by row, column by column, channel by channel (as in Keras; PyTorch's `Flatten` puts channels first).

use std::sync::Arc;

use dfdx::tensor::{Cpu, CpuError, Tape as _};
use rayon::prelude::*;

use crate::{
    conv::{Conv, Results, Weighted},
    layer::{Activation, Padding},
    matmul::{Matrix, multiply},
    partition::one_by_one,
    recycle::Floats,
    scratch::Aligned,
    simd::add_rows,
    tape::{Flow, LayerWeights, Tape, give, take},
};

/// Examples that one thread takes at once.
const ROWS: usize = 24;

/// Rows of the weights whose gradient one thread computes.
const WEIGHT_ROWS: usize = 128;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dense {
    pub(crate) inputs: usize,
    pub(crate) units: usize,
    pub(crate) activation: Activation,
}

impl Dense {
    /// Outputs of any number of examples on one thread; `before` gets the values before the activation, or is empty.
    ///
    /// A row of examples is an image of one line, and the layer a convolution of one pixel: the direct kernel sums each output up by
    /// itself, so it does not depend on how many examples come with it.
    pub(crate) fn forward(&self, layer: &Weighted<'_>, input: &[f32], output: &mut [f32], before: &mut [f32]) {
        for (index, (input, output)) in input.chunks(ROWS * self.inputs).zip(output.chunks_mut(ROWS * self.units)).enumerate() {
            let before = if before.is_empty() { &mut [][..] } else { &mut before[index * ROWS * self.units..][..output.len()] };
            self.conv(output.len() / self.units).forward_image(layer, input, &mut Results { output, before, winners: &mut [] });
        }
    }

    fn conv(&self, examples: usize) -> Conv {
        Conv::new((1, examples, self.inputs), self.units, (1, 1), 1, Padding::Valid, self.activation, 1)
    }

    /// The weights in the order that the forward pass reads.
    pub(crate) fn prepared_weights(&self, weights: &[f32]) -> Aligned {
        self.conv(ROWS).packed_weights(weights)
    }

    /// Runs the layer on a batch and records its backward pass.
    pub(crate) fn forward_op(
        &self,
        layer: &LayerWeights,
        input: &Flow,
        batch: usize,
        device: &Cpu,
        tape: &mut Tape,
    ) -> Result<Flow, CpuError> {
        let (inputs, units) = (self.inputs, self.units);
        let values = input.values.to_floats(1);
        let mut output = Floats::any(batch * units);
        let mut before = Floats::any(if self.activation.needs_input() { batch * units } else { 0 });
        let mut befores: Vec<&mut [f32]> = before.chunks_mut(ROWS * units).collect();
        befores.resize_with(batch.div_ceil(ROWS), Default::default);
        let blocks = values.par_chunks(ROWS * inputs).zip(output.par_chunks_mut(ROWS * units)).zip(befores);
        one_by_one(blocks).for_each(|((input, output), before)| {
            self.forward(&layer.weighted(), input, output, before);
        });

        let output = Arc::new(output);
        let (flow, node) = Flow::new(output.clone(), device)?;
        let (dense, layer, input_node) = (self.clone(), layer.clone(), input.node.clone());
        tape.add_backward_op(move |grads| {
            let mut gradient = take(grads, &node, batch * units)?;
            dense.activation.backward(if dense.activation.needs_input() { &before } else { &output }, &mut gradient);
            add_rows(&gradient, grads.get_or_alloc_mut(&layer.bias_tensor)?);
            dense.weights_gradient(&values, &gradient, grads.get_or_alloc_mut(&layer.weights_tensor)?);
            match input_node {
                Some(node) => give(grads, &node, dense.input_gradient(&layer.weights, &gradient)),
                None => Ok(()),
            }
        });
        Ok(flow)
    }

    /// `out = inputᵀ gradient`: each thread takes some rows of the weights and all examples.
    fn weights_gradient(&self, input: &[f32], gradient: &[f32], out: &mut [f32]) {
        let batch = gradient.len() / self.units;
        one_by_one(out.par_chunks_mut(WEIGHT_ROWS * self.units)).enumerate().for_each(|(index, out)| {
            let rows = out.len() / self.units;
            let input = Matrix::rows(&input[index * WEIGHT_ROWS..], batch, rows, self.inputs).transposed();
            multiply(out, input, Matrix::rows(gradient, batch, self.units, self.units), false);
        });
    }

    /// `gradient weightsᵀ`: each thread takes some examples.
    fn input_gradient(&self, weights: &[f32], gradient: &[f32]) -> Floats {
        let batch = gradient.len() / self.units;
        let weights = Matrix::rows(weights, self.inputs, self.units, self.units).transposed();
        let mut out = Floats::any(batch * self.inputs);
        one_by_one(out.par_chunks_mut(ROWS * self.inputs).zip(gradient.par_chunks(ROWS * self.units))).for_each(|(out, gradient)| {
            multiply(out, Matrix::rows(gradient, gradient.len() / self.units, self.units, self.units), weights, false);
        });
        out
    }
}
