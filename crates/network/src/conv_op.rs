//! The convolution block as one operation on the tape.

use std::sync::Arc;

use dfdx::tensor::{Cpu, CpuError, Tape as _};
use rayon::prelude::*;

use crate::{
    conv::{Conv, Kept, Partial, Results, Sums, Weights},
    examples::Values,
    partition::{CHUNK, group_size, one_by_one, sum_in_order},
    recycle::Floats,
    scratch::{self, Aligned},
    simd::add_rows,
    tape::{Flow, LayerWeights, Tape, give, take},
};

/// Runs the block on a batch and records its backward pass.
pub(crate) fn forward(
    conv: &Conv,
    layer: &LayerWeights,
    input: &Flow,
    batch: usize,
    device: &Cpu,
    tape: &mut Tape,
) -> Result<Flow, CpuError> {
    let (input_len, len) = (conv.input_len(), conv.output_len());
    let mut output = Floats::any(batch * len);
    let mut before = Floats::any(if conv.activation.needs_input() { batch * len } else { 0 });
    let mut winners = vec![0; if conv.pool > 1 { batch * len } else { 0 }];
    let view = input.values.view();
    let weighted = layer.weighted();
    let (size, count) = (CHUNK * len, batch.div_ceil(CHUNK));
    let befores = chunks(&mut before, size, count);
    let winner_chunks = chunks(&mut winners, size, count);
    let parts = output.par_chunks_mut(size).zip(befores).zip(winner_chunks);
    one_by_one(parts).enumerate().for_each(|(index, ((output, before), winners))| {
        let images = output.len() / len;
        let start = index * CHUNK * input_len;
        let view = view.range(start..start + images * input_len);
        let mut results = Results { output, before, winners };
        scratch::with(|scratch| conv.forward(&weighted, view, &mut results, scratch));
    });

    let output = Arc::new(output);
    if input.node.is_none() && layer.learns == (false, false) {
        // Nobody needs the gradient: the layer behind this one need not find it.
        return Ok(Flow { values: Values::Floats(output), node: None });
    }
    let (flow, node) = Flow::new(output.clone(), device)?;
    let (conv, layer, input) = (conv.clone(), layer.clone(), input.clone());
    tape.add_backward_op(move |grads| {
        let gradient = take(grads, &node, batch * len)?;
        if input.node.is_none() && !layer.learns.0 {
            if layer.learns.1 {
                let kept: &[f32] = if conv.activation.needs_input() { &before } else { &output };
                bias_gradient(&conv, kept, gradient, grads.get_or_alloc_mut(&layer.bias_tensor)?);
            }
            return Ok(());
        }
        let mut input_gradient = Floats::any(if input.node.is_some() { batch * input_len } else { 0 });
        let saved = Saved { output: &output, before: &before, winners: &winners };
        let partials = backward(&conv, &layer, &input, &saved, gradient, &mut input_gradient);
        if let Some(input_node) = &input.node {
            give(grads, input_node, input_gradient)?;
        }
        let biases: Vec<&[f32]> = partials.iter().map(|partial| partial.bias.as_slice()).collect();
        sum_in_order(&biases, grads.get_or_alloc_mut(&layer.bias_tensor)?);
        let weights: Vec<&[f32]> = partials.iter().map(|partial| &*partial.weights).collect();
        let out = grads.get_or_alloc_mut(&layer.weights_tensor)?;
        if conv.gradient_is_by_filter() {
            let mut summed = Floats::zeros(conv.partial_len());
            sum_in_order(&weights, &mut summed);
            conv.weights_gradient(&summed, out);
        } else {
            sum_in_order(&weights, out);
        }
        Ok(())
    });
    Ok(flow)
}

/// What the forward pass left behind for the whole batch.
struct Saved<'a> {
    output: &'a [f32],
    before: &'a [f32],
    winners: &'a [u8],
}

/// One partial sum of the weights' gradient for each group of images, in the order of the batch.
fn backward(
    conv: &Conv,
    layer: &LayerWeights,
    input: &Flow,
    saved: &Saved<'_>,
    mut gradient: Floats,
    input_gradient: &mut [f32],
) -> Vec<Partial> {
    let (input_len, len) = (conv.input_len(), conv.output_len());
    let reordered = if input.node.is_some() { conv.reordered_weights(&layer.weights) } else { Aligned::default() };
    let weights = Weights { by_patch: &layer.weights, reordered: reordered.values() };
    let group = group_size(gradient.len() / len);
    let view = input.values.view();
    let input_chunks = chunks(input_gradient, group * input_len, gradient.len().div_ceil(group * len));
    let groups = one_by_one(gradient.par_chunks_mut(group * len).zip(input_chunks)).enumerate();
    groups
        .map(|(index, (gradient, input_gradient))| {
            let images = gradient.len() / len;
            let (first, outputs) = (index * group, index * group * len..(index * group + images) * len);
            let part = |all: usize| if all == 0 { 0..0 } else { outputs.clone() };
            let kept = Kept {
                input: view.range(first * input_len..(first + images) * input_len),
                output: &saved.output[outputs.clone()],
                before: &saved.before[part(saved.before.len())],
                winners: &saved.winners[part(saved.winners.len())],
            };
            let mut partial = conv.empty_partial();
            let mut sums = Sums { partial: &mut partial, input: (!input_gradient.is_empty()).then_some(input_gradient) };
            scratch::with(|scratch| conv.backward(weights, &kept, gradient, &mut sums, scratch));
            partial
        })
        .collect()
}

/// The bias's gradient alone, of a layer that pools nothing; `kept` is what its activation asks for.
fn bias_gradient(conv: &Conv, kept: &[f32], mut gradient: Floats, out: &mut [f32]) {
    let size = CHUNK * conv.output_len();
    let sums_of = |(gradient, kept): (&mut [f32], &[f32])| {
        conv.activation.backward(kept, gradient);
        let mut sums = vec![0.0; conv.filters];
        add_rows(gradient, &mut sums);
        sums
    };
    let partials: Vec<Vec<f32>> = one_by_one(gradient.par_chunks_mut(size).zip(kept.par_chunks(size))).map(sums_of).collect();
    sum_in_order(&partials.iter().map(Vec::as_slice).collect::<Vec<_>>(), out);
}

/// `count` chunks of `size` values; empty ones where there are no values, for buffers that a block has no use for.
fn chunks<T: Send>(values: &mut [T], size: usize, count: usize) -> Vec<&mut [T]> {
    if values.is_empty() { (0..count).map(|_| Default::default()).collect() } else { values.chunks_mut(size).collect() }
}
