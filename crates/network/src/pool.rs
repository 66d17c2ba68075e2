//! Pooling as a layer of its own: windows that overlap, means, and what follows something else than a convolution.

use std::sync::Arc;

use dfdx::tensor::{Cpu, CpuError, Tape as _};
use rayon::prelude::*;

use crate::{
    architecture::windows,
    layer::PoolKind,
    partition::{CHUNK, one_by_one},
    recycle::Floats,
    tape::{Flow, Tape, give, take},
};

/// Windows of `rows` × `columns` pixels, `stride` apart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pool {
    pub(crate) kind: PoolKind,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) stride: usize,
}

impl Pool {
    /// Rows and columns of windows.
    pub(crate) fn out_size(&self) -> (usize, usize) {
        let height = windows(self.height, self.rows, self.stride).unwrap_or(0);
        (height, windows(self.width, self.columns, self.stride).unwrap_or(0))
    }

    pub(crate) fn input_len(&self) -> usize {
        self.height * self.width * self.channels
    }

    pub(crate) fn output_len(&self) -> usize {
        let (height, width) = self.out_size();
        height * width * self.channels
    }

    /// Outputs of some images on one thread. `winners` gets the place of each maximum in its window, or is empty.
    pub(crate) fn forward(&self, input: &[f32], output: &mut [f32], winners: &mut [u8]) {
        let (_, out_width) = self.out_size();
        let share = 1.0 / (self.rows * self.columns) as f32;
        let images = input.chunks_exact(self.input_len()).zip(output.chunks_exact_mut(self.output_len())).enumerate();
        for (image, (input, output)) in images {
            for (pixel, out) in output.chunks_exact_mut(self.channels).enumerate() {
                let corner = self.corner(pixel / out_width, pixel % out_width);
                let winners = if winners.is_empty() {
                    &mut [][..]
                } else {
                    &mut winners[image * self.output_len() + pixel * self.channels..][..self.channels]
                };
                self.window(input, corner, out, winners);
                if self.kind == PoolKind::Mean {
                    out.iter_mut().for_each(|sum| *sum *= share);
                }
            }
        }
    }

    /// The maximum or the sum of one window.
    fn window(&self, input: &[f32], corner: usize, out: &mut [f32], winners: &mut [u8]) {
        out.copy_from_slice(&input[corner..corner + self.channels]);
        for place in 1..self.rows * self.columns {
            let pixel = &input[corner + self.offset(place)..][..self.channels];
            match self.kind {
                PoolKind::Mean => out.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value),
                PoolKind::Maximum if winners.is_empty() => out.iter_mut().zip(pixel).for_each(|(best, value)| {
                    if *value > *best {
                        *best = *value;
                    }
                }),
                PoolKind::Maximum => {
                    for ((best, winner), value) in out.iter_mut().zip(winners.iter_mut()).zip(pixel) {
                        if *value > *best {
                            (*best, *winner) = (*value, place as u8);
                        }
                    }
                }
            }
        }
    }

    fn corner(&self, y: usize, x: usize) -> usize {
        (y * self.width + x) * self.stride * self.channels
    }

    fn offset(&self, place: usize) -> usize {
        (place / self.columns * self.width + place % self.columns) * self.channels
    }

    /// Adds the gradient of some images' outputs to that of their inputs.
    fn backward(&self, gradient: &[f32], winners: &[u8], out: &mut [f32]) {
        let (_, out_width) = self.out_size();
        let share = 1.0 / (self.rows * self.columns) as f32;
        let images = gradient.chunks_exact(self.output_len()).zip(out.chunks_exact_mut(self.input_len())).enumerate();
        for (image, (gradient, out)) in images {
            for (pixel, gradient) in gradient.chunks_exact(self.channels).enumerate() {
                let corner = self.corner(pixel / out_width, pixel % out_width);
                match self.kind {
                    PoolKind::Mean => {
                        for place in 0..self.rows * self.columns {
                            let out = &mut out[corner + self.offset(place)..][..self.channels];
                            out.iter_mut().zip(gradient).for_each(|(out, gradient)| *out += gradient * share);
                        }
                    }
                    PoolKind::Maximum => {
                        let winners = &winners[image * self.output_len() + pixel * self.channels..];
                        for (channel, (gradient, winner)) in gradient.iter().zip(winners).enumerate() {
                            out[corner + self.offset(usize::from(*winner)) + channel] += gradient;
                        }
                    }
                }
            }
        }
    }

    /// Runs the layer on a batch and records its backward pass.
    pub(crate) fn forward_op(&self, input: &Flow, batch: usize, device: &Cpu, tape: &mut Tape) -> Result<Flow, CpuError> {
        let (input_len, len) = (self.input_len(), self.output_len());
        let values = input.values.to_floats(self.channels);
        let mut output = Floats::any(batch * len);
        let mut winners = vec![0u8; if self.kind == PoolKind::Maximum { batch * len } else { 0 }];
        let mut winner_chunks: Vec<&mut [u8]> = winners.chunks_mut(CHUNK * len).collect();
        winner_chunks.resize_with(batch.div_ceil(CHUNK), Default::default);
        let chunks = values.par_chunks(CHUNK * input_len).zip(output.par_chunks_mut(CHUNK * len)).zip(winner_chunks);
        one_by_one(chunks).for_each(|((input, output), winners)| self.forward(input, output, winners));

        let (flow, node) = Flow::new(Arc::new(output), device)?;
        let Some(input_node) = input.node.clone() else { return Ok(flow) };
        let pool = self.clone();
        tape.add_backward_op(move |grads| {
            let gradient = take(grads, &node, batch * len)?;
            let mut out = Floats::zeros(batch * input_len);
            let mut winner_chunks: Vec<&[u8]> = winners.chunks(CHUNK * len).collect();
            winner_chunks.resize_with(batch.div_ceil(CHUNK), Default::default);
            let chunks = gradient.par_chunks(CHUNK * len).zip(out.par_chunks_mut(CHUNK * input_len)).zip(winner_chunks);
            one_by_one(chunks).for_each(|((gradient, out), winners)| pool.backward(gradient, winners, out));
            give(grads, &input_node, out)
        });
        Ok(flow)
    }
}
