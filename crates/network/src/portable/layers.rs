//! From a network's blocks to what the device keeps for them.

use std::sync::Arc;

use dfdx::tensor_ops::Device;

use super::{Done, conv::Convolution, pool::Pooling, windows::Windows};
use crate::{
    layer::PoolKind,
    plan::{Block, Placed},
};

/// A block with what the device keeps for it.
pub(super) struct Layer<D: Device<f32>> {
    pub(super) block: Block,
    pub(super) kernel: Kernel<D>,
}

/// How a block computes.
pub(super) enum Kernel<D: Device<f32>> {
    Conv {
        conv: Arc<Convolution<D>>,
        pool: Option<Arc<Pooling<D>>>,
    },
    Pool(Arc<Pooling<D>>),
    Residual {
        branch: Vec<Layer<D>>,
        shortcut: Vec<Layer<D>>,
    },
    /// All that the block says is enough.
    Plain,
}

/// The layers of blocks; `is_first` where they begin with the examples.
pub(super) fn of<D: Device<f32>>(blocks: &[Placed], is_first: bool, device: &D) -> Done<Vec<Layer<D>>, D> {
    let layer = |(index, placed): (usize, &Placed)| {
        let kernel = kernel(&placed.block, is_first && index == 0, device)?;
        Ok(Layer { block: placed.block.clone(), kernel })
    };
    blocks.iter().enumerate().map(layer).collect()
}

fn kernel<D: Device<f32>>(block: &Block, is_first: bool, device: &D) -> Done<Kernel<D>, D> {
    Ok(match block {
        Block::Conv(conv) => {
            let pool = if conv.pool == 1 { None } else { Some(Arc::new(Pooling::new(PoolKind::Maximum, Windows::behind(conv), device)?)) };
            Kernel::Conv { conv: Arc::new(Convolution::new(conv, is_first, device)?), pool }
        }
        Block::Pool(pool) => Kernel::Pool(Arc::new(Pooling::new(pool.kind, Windows::of_pool(pool), device)?)),
        Block::Residual(residual) => {
            Kernel::Residual { branch: of(&residual.branch, false, device)?, shortcut: of(&residual.shortcut, false, device)? }
        }
        Block::Dense(_) | Block::Dropout(_) | Block::BatchNorm(_) => Kernel::Plain,
    })
}

/// For each parameter in the network's order, the convolution whose weights it is.
pub(super) fn convolutions<D: Device<f32>>(layers: &[Layer<D>]) -> Vec<Option<Arc<Convolution<D>>>> {
    let of_layer = |Layer { block, kernel }: &Layer<D>| match (kernel, block) {
        (Kernel::Conv { conv, .. }, _) => vec![Some(conv.clone()), None],
        (Kernel::Residual { branch, shortcut }, _) => [convolutions(branch), convolutions(shortcut)].concat(),
        (Kernel::Plain, Block::Dense(_) | Block::BatchNorm(_)) => vec![None, None],
        (Kernel::Plain | Kernel::Pool(_), _) => Vec::new(),
    };
    layers.iter().flat_map(of_layer).collect()
}
