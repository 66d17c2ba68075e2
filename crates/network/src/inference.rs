//! Inference: no tape, a few examples at a time through the whole network on one thread.

mod steps;

use std::{cell::RefCell, mem};

use rayon::prelude::*;

use crate::{
    conv::Results,
    error::NetworkError,
    examples::{Input, View},
    loss::{self, LossOptions, StepReport},
    network::{Batch, Cursor, Network},
    partition::one_by_one,
    residual,
    scratch::{self, Scratch, sized},
};
use steps::Kind;

pub(crate) use steps::Step;

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
    /// Of the network's input.
    channels: usize,
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
        if self.accelerator.is_some() {
            return self.begin(input)?.logits();
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
        one_by_one(out.par_chunks_mut(examples * classes)).enumerate().for_each(|(index, out)| {
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
        self.begin(input)?.probabilities()
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

    /// What inference computes, made when first asked for after a change of the weights.
    pub(crate) fn steps(&self) -> &[Step] {
        self.steps.get_or_init(|| self.steps_of(&self.blocks, &mut Cursor::default()))
    }

    /// The logits of a few examples on one thread, or of one on all.
    fn infer(&self, input: View<'_>, count: usize, out: &mut [f32], buffers: &mut Buffers, scratch: &mut Scratch) {
        let mut pass = Pass { count, channels: self.architecture().input.channels(), scratch };
        pass.steps(self.steps(), input, buffers);
        out.copy_from_slice(sized(&mut buffers.current, out.len()));
    }
}

/// Logits that may still be on their way: see [`Network::begin`].
pub struct Pending<'n> {
    network: &'n Network,
    logits: Logits,
}

enum Logits {
    Here(Vec<f32>),
    /// At an accelerator, by number.
    There(u64),
}

impl Network {
    /// Begins to compute [`Network::logits`]. A GPU goes on with it, and takes the next examples to its memory, while the caller does something
    /// else; on this processor it is done when this returns.
    ///
    /// # Errors
    ///
    /// If the input does not hold a whole number of examples.
    pub fn begin(&self, input: Input<'_>) -> Result<Pending<'_>, NetworkError> {
        self.count(input)?;
        let logits = match &self.accelerator {
            Some(accelerator) => Logits::There(accelerator.submit(self.state(), input.to_values())?),
            None => Logits::Here(self.logits(input)?),
        };
        Ok(Pending { network: self, logits })
    }
}

impl Pending<'_> {
    /// Waits for the logits, `[examples, classes]`.
    ///
    /// # Errors
    ///
    /// If the device fails.
    pub fn logits(mut self) -> Result<Vec<f32>, NetworkError> {
        match (mem::replace(&mut self.logits, Logits::Here(Vec::new())), &self.network.accelerator) {
            (Logits::Here(logits), _) => Ok(logits),
            (Logits::There(number), Some(accelerator)) => accelerator.collect(number),
            (Logits::There(_), None) => unreachable!("the network is borrowed as long as this is there"),
        }
    }

    /// Waits for the probabilities, `[examples, classes]`: the softmax of the logits.
    ///
    /// # Errors
    ///
    /// As [`Pending::logits`].
    pub fn probabilities(self) -> Result<Vec<f32>, NetworkError> {
        let classes = self.network.classes();
        let mut values = self.logits()?;
        values.par_chunks_mut(classes).for_each(loss::softmax);
        Ok(values)
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let (Logits::There(number), Some(accelerator)) = (&self.logits, &self.network.accelerator) {
            accelerator.forget(*number);
        }
    }
}

impl Pass<'_> {
    /// Takes the examples through steps that follow each other; the result is in `buffers.current`.
    fn steps(&mut self, steps: &[Step], input: View<'_>, buffers: &mut Buffers) {
        // Until a step has written to `current`, the input itself is what the next one reads.
        let mut len = None;
        if !matches!(steps.first().map(|step| &step.kind), Some(Kind::Conv(..))) {
            input.write(self.channels, sized(&mut buffers.current, input.len()));
            len = Some(input.len());
        }
        for step in steps {
            let size = self.count * step.output_len;
            match (&step.kind, len) {
                (Kind::Residual { branch, shortcut, activation }, Some(len)) => {
                    let Buffers { current, next, inner } = &mut *buffers;
                    let (inner, current) = (inner.get_or_insert_with(Box::default), sized(current, len));
                    self.steps(branch, View::Floats(current), inner);
                    mem::swap(next, &mut inner.current);
                    if !shortcut.is_empty() {
                        self.steps(shortcut, View::Floats(current), inner);
                    }
                    let other = if shortcut.is_empty() { current } else { sized(&mut inner.current, size) };
                    residual::join(*activation, sized(next, size), other);
                }
                _ => {
                    let Buffers { current, next, .. } = &mut *buffers;
                    let view = len.map_or(input, |len| View::Floats(sized(current, len)));
                    self.step(step, view, sized(next, size));
                }
            }
            mem::swap(&mut buffers.current, &mut buffers.next);
            len = Some(size);
        }
    }

    fn step(&mut self, step: &Step, input: View<'_>, output: &mut [f32]) {
        match (&step.kind, input) {
            (Kind::Conv(conv, layer), input) if output.len() == step.output_len => {
                conv.forward_in_bands(&layer.weighted(), input, output, self.scratch);
            }
            (Kind::Conv(conv, layer), input) => {
                let mut results = Results { output, before: &mut [], winners: &mut [] };
                conv.forward(&layer.weighted(), input, &mut results, self.scratch);
            }
            (Kind::Dense(dense, layer), View::Floats(input)) => dense.forward(&layer.weighted(), input, output, &mut []),
            (Kind::Pool(pool), View::Floats(input)) => pool.forward(input, output, &mut []),
            (Kind::Affine(affine), View::Floats(input)) => affine.apply(input, output),
            // Pixels were converted before any other first step.
            _ => unreachable!("only convolutions read pixels"),
        }
    }
}
