//! How our operations hang on dfdx's tape.
//!
//! A dfdx tensor can only be read by copying it, so what flows from layer to layer are shared vectors, and each flow has a
//! *node*: an empty dfdx tensor whose identity is the key of its gradient on the tape. The layer that reads a flow gives its
//! gradient to the node; the layer that made the flow takes it from there. Weights and the loss are real dfdx tensors.

use std::{mem, sync::Arc};

use dfdx::tensor::{Cpu, CpuError, Gradients, OwnedTape, Tensor, TensorFromVec};

use crate::{conv::Weighted, examples::Values, partition::sum_in_order, recycle::Floats, scratch::Aligned};

/// A dfdx tensor of one axis: the weights of a layer, or the node of a flow.
pub(crate) type Vector = Tensor<(usize,), f32, Cpu>;
pub(crate) type Tape = OwnedTape<f32, Cpu>;
pub(crate) type Grads = Gradients<f32, Cpu>;

/// What one layer hands to the next while training.
#[derive(Clone)]
pub(crate) struct Flow {
    pub(crate) values: Values,
    /// The key of the gradient; `None` for the examples themselves, whose gradient nobody needs.
    pub(crate) node: Option<Vector>,
}

impl Flow {
    pub(crate) fn new(values: Arc<Floats>, device: &Cpu) -> Result<(Self, Vector), CpuError> {
        let node = device.try_tensor_from_vec(Vec::new(), (0,))?;
        Ok((Flow { values: Values::Floats(values), node: Some(node.clone()) }, node))
    }
}

/// Takes the gradient of a flow off the tape; `len` zeros if the loss does not depend on it.
pub(crate) fn take(grads: &mut Grads, node: &Vector, len: usize) -> Result<Floats, CpuError> {
    let gradient = mem::take(&mut **grads.get_or_alloc_mut(node)?);
    Ok(if gradient.is_empty() { Floats::zeros(len) } else { gradient.into() })
}

/// Puts the gradient of a flow on the tape; where two layers read the flow, the second adds to what the first gave.
pub(crate) fn give(grads: &mut Grads, node: &Vector, gradient: Floats) -> Result<(), CpuError> {
    let given = &mut **grads.get_or_alloc_mut(node)?;
    if given.is_empty() {
        *given = gradient.into_vec();
    } else {
        sum_in_order(&[&gradient], given);
    }
    Ok(())
}

/// A layer's weights and bias for one step: the numbers and the dfdx tensors that their gradients belong to.
#[derive(Clone)]
pub(crate) struct LayerWeights {
    pub(crate) weights: Arc<Vec<f32>>,
    pub(crate) bias: Arc<Vec<f32>>,
    /// See [`Parameter::prepared`](crate::network::Parameter::prepared).
    pub(crate) prepared: Arc<Aligned>,
    pub(crate) weights_tensor: Vector,
    pub(crate) bias_tensor: Vector,
    /// Whether weights and bias learn now.
    pub(crate) learns: (bool, bool),
}

impl LayerWeights {
    /// As the forward pass reads them.
    pub(crate) fn weighted(&self) -> Weighted<'_> {
        Weighted { weights: &self.weights, prepared: self.prepared.values(), bias: &self.bias }
    }
}
