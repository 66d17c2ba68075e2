//! Inference: no tape, a few examples at a time through the whole network on one thread.

use std::{cell::RefCell, mem};

use rayon::prelude::*;

use crate::{
    conv::{Results, Weighted},
    error::NetworkError,
    examples::{Input, View},
    loss::{self, LossOptions, StepReport},
    network::{Batch, Cursor, Network},
    plan::{Block, Placed},
    residual::Residual,
    scratch::{self, Scratch, sized},
};

/// Examples that one thread takes through the network at once: few enough that they stay in its cache.
const EXAMPLES: usize = 16;

/// The outputs of the last two layers, and those within a residual block.
#[derive(Default)]
struct Buffers {
    current: Vec<f32>,
    next: Vec<f32>,
    inner: Option<Box<Buffers>>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Lends this thread's buffers: taken, not borrowed, so that no order of tasks can find them in use.
fn with_buffers(work: impl FnOnce(&mut Buffers, &mut Scratch)) {
    let mut buffers = BUFFERS.with(|buffers| mem::take(&mut *buffers.borrow_mut()));
    scratch::with(|scratch| work(&mut buffers, scratch));
    BUFFERS.with(|kept| *kept.borrow_mut() = buffers);
}

/// A few examples on their way through the layers.
struct Pass<'a> {
    count: usize,
    cursor: Cursor,
    scratch: &'a mut Scratch,
}

impl Network {
    /// The logits of each example, `[examples, classes]`: dropout does nothing, batch norms use their running statistics.
    ///
    /// On this processor, what comes out for an example has the same bits whatever examples come with it and however many threads there are.
    ///
    /// # Errors
    ///
    /// If the input does not hold a whole number of examples.
    pub fn logits(&self, input: Input<'_>) -> Result<Vec<f32>, NetworkError> {
        let count = self.count(input)?;
        if let Some(accelerator) = &self.accelerator {
            return accelerator.logits(self.state(), input.to_values());
        }
        let (input_len, classes) = (self.architecture().input.len(), self.classes());
        let mut out = vec![0.0; count * classes];
        if count == 1 {
            // Within the thread pool: each layer is shared out, and each entry from outside would cost a switch of threads.
            rayon::scope(|_| with_buffers(|buffers, scratch| self.infer(input.view(), 1, &mut out, buffers, scratch)));
            return Ok(out);
        }
        // No more at once than leave something for every thread.
        let examples = EXAMPLES.min(count.div_ceil(rayon::current_num_threads())).max(1);
        out.par_chunks_mut(examples * classes).enumerate().for_each(|(index, out)| {
            let first = index * examples * input_len;
            let view = input.view().range(first..first + out.len() / classes * input_len);
            with_buffers(|buffers, scratch| self.infer(view, out.len() / classes, out, buffers, scratch));
        });
        Ok(out)
    }

    /// The probability of each class for each example, `[examples, classes]`: the softmax of the logits.
    ///
    /// # Errors
    ///
    /// As [`Network::logits`].
    pub fn probabilities(&self, input: Input<'_>) -> Result<Vec<f32>, NetworkError> {
        let mut values = self.logits(input)?;
        values.par_chunks_mut(self.classes()).for_each(loss::softmax);
        Ok(values)
    }

    /// The loss and the number of hits on labelled examples, without learning from them.
    ///
    /// # Errors
    ///
    /// If there are no examples, sizes do not fit, a label has no logit, or an option is out of range.
    pub fn evaluate(&self, batch: Batch<'_>, options: &LossOptions) -> Result<StepReport, NetworkError> {
        self.check_batch(batch, options)?;
        Ok(loss::cross_entropy(&self.logits(batch.input)?, batch.labels, options, None))
    }

    /// The logits of a few examples on one thread, or of one on all.
    fn infer(&self, input: View<'_>, count: usize, out: &mut [f32], buffers: &mut Buffers, scratch: &mut Scratch) {
        let mut pass = Pass { count, cursor: Cursor::default(), scratch };
        self.infer_blocks(&self.blocks, input, buffers, &mut pass);
        out.copy_from_slice(sized(&mut buffers.current, out.len()));
    }

    /// Takes examples through blocks that follow each other; the result, of so many values, is in `buffers.current`.
    fn infer_blocks(&self, blocks: &[Placed], input: View<'_>, buffers: &mut Buffers, pass: &mut Pass<'_>) -> usize {
        // Until a layer has written to `current`, the input itself is what the next layer reads.
        let mut len = None;
        if !matches!(blocks.first().map(|placed| &placed.block), Some(Block::Conv(_))) {
            input.write(self.architecture().input.channels(), sized(&mut buffers.current, input.len()));
            len = Some(input.len());
        }
        for placed in blocks {
            let size = pass.count * placed.output_len;
            match (&placed.block, len) {
                (Block::Dropout(_), _) => {}
                (Block::Residual(residual), Some(len)) => self.infer_residual(residual, (len, size), buffers, pass),
                _ => {
                    let Buffers { current, next, .. } = buffers;
                    let view = len.map_or(input, |len| View::Floats(sized(current, len)));
                    self.infer_block(placed, pass.cursor, view, sized(next, size), pass.scratch);
                    mem::swap(current, next);
                }
            }
            len = Some(size);
            pass.cursor.advance(&placed.block);
        }
        len.unwrap_or_default()
    }

    /// From `len` values in `buffers.current` to `size` there.
    fn infer_residual(&self, residual: &Residual, (len, size): (usize, usize), buffers: &mut Buffers, pass: &mut Pass<'_>) {
        let Buffers { current, next, inner } = buffers;
        let inner = inner.get_or_insert_with(Box::default);
        self.infer_blocks(&residual.branch, View::Floats(sized(current, len)), inner, pass);
        mem::swap(next, &mut inner.current);
        if residual.shortcut.is_empty() {
            residual.join(sized(next, size), sized(current, size));
        } else {
            self.infer_blocks(&residual.shortcut, View::Floats(sized(current, len)), inner, pass);
            residual.join(sized(next, size), sized(&mut inner.current, size));
        }
        mem::swap(current, next);
    }

    fn infer_block(&self, placed: &Placed, cursor: Cursor, input: View<'_>, output: &mut [f32], scratch: &mut Scratch) {
        match (&placed.block, input) {
            (Block::Conv(conv), input) if output.len() == placed.output_len => {
                conv.forward_in_bands(&self.weighted(placed, cursor), input, output, scratch);
            }
            (Block::Conv(conv), input) => {
                let mut results = Results { output, before: &mut [], winners: &mut [] };
                conv.forward(&self.weighted(placed, cursor), input, &mut results, scratch);
            }
            (Block::Dense(dense), View::Floats(input)) => dense.forward(&self.weighted(placed, cursor), input, output, &mut []),
            (Block::Pool(pool), View::Floats(input)) => pool.forward(input, output, &mut []),
            (Block::BatchNorm(norm), View::Floats(input)) => {
                let (scale, shift) = self.values(cursor);
                norm.infer(scale, shift, &self.running[cursor.running], input, output);
            }
            // Dropout does nothing; pixels were converted before any other first layer.
            _ => unreachable!("only convolutions read pixels"),
        }
    }

    /// Weights and bias of the block at the cursor, as its forward pass reads them.
    fn weighted(&self, placed: &Placed, cursor: Cursor) -> Weighted<'_> {
        let (weights, bias) = self.values(cursor);
        Weighted { weights, prepared: self.parameters[cursor.parameter].prepared(&placed.block).values(), bias }
    }

    /// Weights and bias of the block at the cursor.
    fn values(&self, cursor: Cursor) -> (&[f32], &[f32]) {
        (&self.parameters[cursor.parameter].values, &self.parameters[cursor.parameter + 1].values)
    }
}
