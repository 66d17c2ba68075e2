//! Pooling, point by point of a window: of equal values the first wins, as everywhere here.

use std::sync::Arc;

use dfdx::{
    shapes::{Axis, HasShape},
    tensor::Tensor,
    tensor_ops::{BroadcastTo, ChooseFrom, Device, ReshapeTo, TryAdd, TryGt, TryMatMul, TryMul},
};

use super::{
    Back, Done, Forward, Maps,
    operations::{Places, ones},
    windows::Windows,
};
use crate::layer::PoolKind;

/// Windows whose values become one.
pub(super) struct Pooling<D: Device<f32>> {
    kind: PoolKind,
    windows: Windows,
    /// For each point of a window, where its values are; empty for the mean of the whole image.
    points: Vec<Places<D>>,
    /// For each point of a window, where the gradient of a pixel comes from.
    back: Vec<Places<D>>,
}

impl<D: Device<f32>> Pooling<D> {
    pub(super) fn new(kind: PoolKind, windows: Windows, device: &D) -> Done<Self, D> {
        let is_global = kind == PoolKind::Mean && windows.points() == windows.pixels();
        let points = if is_global { 0 } else { windows.points() };
        Ok(Pooling {
            kind,
            windows,
            points: (0..points).map(|point| Places::new(&windows.at(point), device)).collect::<Result<_, _>>()?,
            back: (0..points).map(|point| Places::new(&windows.back(point), device)).collect::<Result<_, _>>()?,
        })
    }

    /// The outputs and the way back.
    pub(super) fn forward(self: &Arc<Self>, input: &Maps<D>, device: &D) -> Done<Forward<D>, D> {
        match self.kind {
            PoolKind::Mean if self.points.is_empty() => self.whole_mean(input, device),
            PoolKind::Mean => self.mean(input, device),
            PoolKind::Maximum => self.maximum(input, device),
        }
    }

    fn share(&self) -> f32 {
        1.0 / self.windows.points() as f32
    }

    /// The mean of each channel: a product with a row of ones for each image.
    fn whole_mean(self: &Arc<Self>, input: &Maps<D>, device: &D) -> Done<Forward<D>, D> {
        let (batch, pixels, channels) = *input.shape();
        let output = ones((batch, 1, pixels), device)?.try_matmul(input.clone())?.try_mul(self.share())?;
        let (pool, device) = (self.clone(), device.clone());
        let back: Back<D> = Box::new(move |gradient, _| {
            let gradient: Tensor<(usize, usize), f32, D> = gradient.try_mul(pool.share())?.try_reshape_like(&(batch, channels))?;
            let zeros: Maps<D> = device.try_zeros_like(&(batch, pixels, channels))?;
            zeros.try_add(gradient.try_broadcast_like::<_, Axis<1>>(&(batch, pixels, channels))?)
        });
        Ok((output, back))
    }

    fn mean(self: &Arc<Self>, input: &Maps<D>, device: &D) -> Done<Forward<D>, D> {
        let mut sum = self.empty(input, self.windows.outputs(), device)?;
        for places in &self.points {
            sum = sum.try_add(places.gather(input)?)?;
        }
        let (pool, device) = (self.clone(), device.clone());
        let back: Back<D> = Box::new(move |gradient, _| {
            let gradient = gradient.try_mul(pool.share())?;
            let mut sum = pool.empty(&gradient, pool.windows.pixels(), &device)?;
            for places in &pool.back {
                sum = sum.try_add(places.gather(&gradient)?)?;
            }
            Ok(sum)
        });
        Ok((sum.try_mul(self.share())?, back))
    }

    fn maximum(self: &Arc<Self>, input: &Maps<D>, device: &D) -> Done<Forward<D>, D> {
        let mut best = self.points[0].gather(input)?;
        let mut is_better = Vec::with_capacity(self.points.len());
        for places in &self.points[1..] {
            let values = places.gather(input)?;
            let better = values.try_gt(&best)?;
            best = better.clone().try_choose(values, best)?;
            is_better.push(better);
        }
        let (pool, device) = (self.clone(), device.clone());
        let back: Back<D> = Box::new(move |mut gradient, _| {
            let mut sum = pool.empty(&gradient, pool.windows.pixels(), &device)?;
            // The last point that was better than all before it has won, and gets the gradient.
            for (better, places) in is_better.into_iter().zip(&pool.back[1..]).rev() {
                let zeros: Maps<D> = device.try_zeros_like(&gradient)?;
                let won = better.clone().try_choose(gradient.clone(), zeros.clone())?;
                sum = sum.try_add(places.gather(&won)?)?;
                gradient = better.try_choose(zeros, gradient)?;
            }
            sum.try_add(pool.back[0].gather(&gradient)?)
        });
        Ok((best, back))
    }

    /// Zeros for so many pixels of each image.
    fn empty(&self, like: &Maps<D>, pixels: usize, device: &D) -> Done<Maps<D>, D> {
        let (batch, _, channels) = *like.shape();
        device.try_zeros_like(&(batch, pixels, channels))
    }
}
