//! Where the two ways through a residual block meet: their sum and an activation.

use std::sync::Arc;

use dfdx::tensor::{Cpu, CpuError, Tape as _};
use rayon::prelude::*;

use crate::{
    layer::Activation,
    partition::one_by_one,
    plan::Placed,
    recycle::Floats,
    simd::add,
    tape::{Flow, Tape, give, take},
};

/// Values that one thread takes.
const RANGE: usize = 16_384;

/// Two ways from one input, whose results are added.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Residual {
    pub(crate) branch: Vec<Placed>,
    /// Empty where the input itself is added.
    pub(crate) shortcut: Vec<Placed>,
    pub(crate) activation: Activation,
}

/// `branch = activation(branch + other)`, a piece at a time, which is still in the first-level cache when it is activated.
pub(crate) fn join(activation: Activation, branch: &mut [f32], other: &[f32]) {
    const PIECE: usize = 4096;
    for (branch, other) in branch.chunks_mut(PIECE).zip(other.chunks(PIECE)) {
        add(other, branch);
        activation.apply(branch);
    }
}

impl Residual {
    /// Joins both ways of a batch and records the backward pass: each way gets the gradient of the sum.
    pub(crate) fn join_op(&self, branch: &Flow, other: &Flow, device: &Cpu, tape: &mut Tape) -> Result<Flow, CpuError> {
        let activation = self.activation;
        // Both are numbers: no block begins with the examples' bytes.
        let (one, two) = (branch.values.to_floats(1), other.values.to_floats(1));
        let mut output = Floats::clone(&one);
        one_by_one(output.par_chunks_mut(RANGE).zip(two.par_chunks(RANGE))).for_each(|(output, other)| add(other, output));
        let before = if activation.needs_input() { output.clone() } else { Floats::default() };
        one_by_one(output.par_chunks_mut(RANGE)).for_each(|output| activation.apply(output));

        let output = Arc::new(output);
        let (flow, node) = Flow::new(output.clone(), device)?;
        let (branch_node, other_node) = (branch.node.clone(), other.node.clone());
        tape.add_backward_op(move |grads| {
            let mut gradient = take(grads, &node, output.len())?;
            let kept: &[f32] = if activation.needs_input() { &before } else { &output };
            let parts = gradient.par_chunks_mut(RANGE).zip(kept.par_chunks(RANGE));
            one_by_one(parts).for_each(|(gradient, kept)| activation.backward(kept, gradient));
            if let Some(node) = &other_node {
                give(grads, node, gradient.clone())?;
            }
            branch_node.map_or(Ok(()), |node| give(grads, &node, gradient))
        });
        Ok(flow)
    }
}
