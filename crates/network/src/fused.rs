//! The network on a GPU by kernels of our own (`kernels/`): products on tensor cores whose factors are looked up where they lie, with bias and
//! activation at their end; norms, pooling and their ways back in a pass each.
//!
//! The whole network is one operation to dfdx: it has no tensors to keep for what happens within, so none of its tape, and none of its launches and
//! allocations. It computes on dfdx's device and stream. All sums are taken in an order that is a function of shapes alone, so the same
//! batches give the same bytes on every GPU of a kind, and nothing has to be switched on for that.

mod course;
mod examples;
mod gpu;
mod layers;
mod learn;
mod product;
mod profile;

use std::{rc::Rc, sync::Arc};

use self::{
    course::Course,
    examples::Set,
    gpu::{Buffer, Gpu, Pointer},
    layers::{LossTerms, Operations, Statistics, Windows},
    product::{Geometry, Product, Weights, dense_as_conv},
};
use crate::{
    accelerator::{Begin, CourseStep, Engine, Fetched, Learnt, Lesson, State, Waiting, WholeSet},
    architecture::Shape,
    batchnorm::{BatchNorm, Running},
    conv::Conv,
    device::Precision,
    error::NetworkError,
    examples::Values,
    layer::{Activation, PoolKind},
    loss::StepReport,
    network::Cursor,
    plan::{self, Block, Placed},
    pool::Pool,
    residual::Residual,
};

type Done<T> = Result<T, NetworkError>;

impl Precision {
    /// Of a value in memory.
    fn bytes(self) -> usize {
        if self == Precision::Bf16 { 2 } else { 4 }
    }
}

/// What flows between layers, `[batch, pixels, channels]`.
#[derive(Clone)]
struct Maps {
    buffer: Rc<Buffer>,
    batch: usize,
    pixels: usize,
    channels: usize,
    /// Whether the gradient is of use to something: not that of the examples themselves.
    is_learnt: bool,
}

impl Maps {
    fn new(buffer: Buffer, batch: usize, pixels: usize, channels: usize) -> Self {
        Maps { buffer: Rc::new(buffer), batch, pixels, channels, is_learnt: true }
    }

    fn len(&self) -> usize {
        self.batch * self.pixels * self.channels
    }

    /// Of all examples together.
    fn all_pixels(&self) -> usize {
        self.batch * self.pixels
    }

    fn pointer(&self) -> Pointer {
        self.buffer.pointer()
    }

    /// The same values with so many channels.
    fn with_channels(&self, channels: usize) -> Self {
        Maps { pixels: self.pixels * self.channels / channels, channels, ..self.clone() }
    }

    fn learnt_if(self, is_learnt: bool) -> Self {
        Maps { is_learnt, ..self }
    }
}

/// From the gradient of what a layer gave to that of what it took, if that is of use; its weights' go into the list.
type Back = Box<dyn FnOnce(Maps, &mut Found) -> Done<Option<Maps>>>;

/// The gradients of the weights, in the network's order, as far as they are known.
struct Found {
    gradients: Vec<Option<Buffer>>,
    is_frozen: Vec<bool>,
}

/// A batch on its way through the layers.
struct Pass {
    /// Seed and step of the dropout masks; none at inference.
    training: Option<(u64, u64)>,
    cursor: Cursor,
    statistics: Vec<(Rc<Statistics>, f32)>,
}

/// A network on a GPU.
pub(crate) struct Fused {
    operations: Operations,
    blocks: Vec<Placed>,
    input: Shape,
    /// Weights, with the version that was last taken here.
    held: Vec<Option<(u64, Rc<Buffer>)>>,
    /// Running statistics as they were last taken here.
    running: Vec<(Running, Statistics)>,
    set: Option<Set>,
    course: Option<Course>,
}

impl Fused {
    /// Takes a network's blocks to the first GPU.
    pub(crate) fn new(blocks: &[Placed], input: Shape, precision: Precision) -> Done<Self> {
        let operations = Operations { gpu: Rc::new(Gpu::new()?), precision };
        Ok(Fused { operations, blocks: blocks.to_vec(), input, held: Vec::new(), running: Vec::new(), set: None, course: None })
    }

    fn gpu(&self) -> &Gpu {
        &self.operations.gpu
    }

    /// Takes those weights to the GPU that have changed.
    fn take(&mut self, state: &State) -> Done<()> {
        self.held.resize_with(state.parameters.len(), || None);
        for (index, (version, values)) in state.parameters.iter().enumerate() {
            if self.held[index].as_ref().is_none_or(|(held, _)| held != version) {
                self.held[index] = Some((*version, Rc::new(self.gpu().upload(values)?)));
            }
        }
        Ok(())
    }

    /// Takes running statistics to the GPU, if they are others.
    fn take_running(&mut self, running: &[Running]) -> Done<()> {
        if self.running.iter().map(|(held, _)| held).ne(running) {
            let norms = plan::leaves(&self.blocks).into_iter().filter_map(|placed| match &placed.block {
                Block::BatchNorm(norm) => Some(norm.epsilon),
                _ => None,
            });
            let take = |(epsilon, running): (f32, &Running)| Ok((running.clone(), self.operations.running(epsilon, running)?));
            self.running = norms.zip(running).map(take).collect::<Done<_>>()?;
        }
        Ok(())
    }

    fn weight(&self, index: usize) -> Rc<Buffer> {
        match &self.held[index] {
            Some((_, buffer)) => buffer.clone(),
            None => unreachable!("all weights are taken to the GPU before a pass"),
        }
    }

    /// Takes a batch through blocks that follow each other; the ways back are in their order.
    fn pass(&self, blocks: &[Placed], input: Maps, pass: &mut Pass, backs: &mut Vec<Back>) -> Done<Maps> {
        let mut flow = input;
        for Placed { block, .. } in blocks {
            flow = match block {
                Block::Conv(conv) => self.conv(conv, &flow.with_channels(conv.channels), false, pass, backs)?,
                Block::Dense(dense) => {
                    let is_last = self.blocks.last().is_some_and(|last| std::ptr::eq(&last.block, block));
                    self.conv(&dense_as_conv(dense), &flow.with_channels(dense.inputs), is_last, pass, backs)?
                }
                Block::Pool(pool) => {
                    self.pool(pool, Activation::None, &flow.with_channels(pool.channels), backs, pass.training.is_some())?
                }
                Block::BatchNorm(norm) => self.norm(norm, &flow.with_channels(norm.channels), pass, backs)?,
                Block::Dropout(dropout) => match pass.training {
                    None => flow,
                    Some((seed, step)) => {
                        let (dropout, key, operations) = (*dropout, dropout.key(seed, step), self.operations.clone());
                        let output = operations.dropout(&dropout, key, &flow)?.learnt_if(flow.is_learnt);
                        backs.push(Box::new(move |gradient, _| operations.dropout(&dropout, key, &gradient).map(Some)));
                        output
                    }
                },
                Block::Residual(residual) => self.residual(residual, flow, pass, backs)?,
            };
            pass.cursor.advance(block);
        }
        Ok(flow)
    }

    /// A convolution with its activation, and the pooling that follows.
    fn conv(&self, conv: &Conv, input: &Maps, are_logits: bool, pass: &Pass, backs: &mut Vec<Back>) -> Done<Maps> {
        let at = Geometry::of(conv, input.batch)?;
        let is_training = pass.training.is_some();
        let index = pass.cursor.parameter;
        let layer = Weights { weights: self.weight(index), bias: self.weight(index + 1) };
        let operations = self.operations.clone();
        let product = Product { gpu: &operations.gpu, precision: operations.precision, at };
        let activation = if conv.pool > 1 { Activation::None } else { conv.activation };
        let keeps_before = is_training && activation.needs_input();
        let given = product.forward(input, &layer, activation, keeps_before, are_logits)?;
        let output = given.maps.clone();
        if is_training {
            let (input, operations) = (input.clone(), operations.clone());
            let (kept, weights, filters) = (given.before.unwrap_or(given.maps), layer.weights, conv.filters);
            backs.push(Box::new(move |gradient, found| {
                let product = Product { gpu: &operations.gpu, precision: operations.precision, at };
                let gradient = operations.activation_back(activation, &kept, gradient.with_channels(filters))?;
                if !found.is_frozen[index] {
                    found.gradients[index] = Some(product.backward_weights(&input, &gradient)?);
                }
                if !found.is_frozen[index + 1] {
                    found.gradients[index + 1] = Some(operations.sum(&gradient)?);
                }
                input.is_learnt.then(|| product.backward_input(&gradient, &weights)).transpose()
            }));
        }
        if conv.pool == 1 {
            return Ok(output);
        }
        let (height, width) = (conv.out_height * conv.pool, conv.out_width * conv.pool);
        let (rows, columns, stride, channels) = (conv.pool, conv.pool, conv.pool, conv.filters);
        let pool = Pool { kind: PoolKind::Maximum, height, width, channels, rows, columns, stride };
        self.pool(&pool, conv.activation, &output, backs, is_training)
    }

    fn pool(&self, pool: &Pool, activation: Activation, input: &Maps, backs: &mut Vec<Back>, is_training: bool) -> Done<Maps> {
        let (at, operations) = (Windows::of(pool), self.operations.clone());
        let output = operations.pool(input, at, activation)?.learnt_if(input.is_learnt);
        if is_training {
            let (input, kept) = (input.clone(), output.clone());
            backs.push(Box::new(move |gradient, _| {
                if !input.is_learnt {
                    return Ok(None);
                }
                let gradient = operations.activation_back(activation, &kept, gradient)?;
                operations.pool_back(&input, &gradient, at).map(Some)
            }));
        }
        Ok(output)
    }

    fn norm(&self, norm: &BatchNorm, input: &Maps, pass: &mut Pass, backs: &mut Vec<Back>) -> Done<Maps> {
        let (index, operations) = (pass.cursor.parameter, self.operations.clone());
        let (scale, shift) = (self.weight(index), self.weight(index + 1));
        if pass.training.is_none() {
            let (_, statistics) = &self.running[pass.cursor.running];
            return operations.norm(norm, statistics, (&scale, &shift), input);
        }
        let statistics = Rc::new(operations.statistics(norm, input)?);
        let output = operations.norm(norm, &statistics, (&scale, &shift), input)?;
        pass.statistics.push((statistics.clone(), norm.momentum));
        let (norm, input) = (norm.clone(), input.clone());
        backs.push(Box::new(move |gradient, found| {
            let (of_scale, of_shift, gradient) = operations.norm_back(&norm, &statistics, (&scale, &shift), &input, &gradient)?;
            for (index, gradient) in [(index, of_scale), (index + 1, of_shift)] {
                found.gradients[index] = (!found.is_frozen[index]).then_some(gradient);
            }
            Ok(input.is_learnt.then_some(gradient))
        }));
        Ok(output)
    }

    fn residual(&self, residual: &Residual, input: Maps, pass: &mut Pass, backs: &mut Vec<Back>) -> Done<Maps> {
        let is_training = pass.training.is_some();
        let (mut ways, mut other_ways) = (Vec::new(), Vec::new());
        let one = self.pass(&residual.branch, input.clone(), pass, &mut ways)?;
        let other = self.pass(&residual.shortcut, input.clone(), pass, &mut other_ways)?;
        let (activation, operations) = (residual.activation, self.operations.clone());
        let other = other.with_channels(one.channels);
        let keeps_before = is_training && activation.needs_input();
        let (output, before) = operations.join(&one, &other, activation, keeps_before)?;
        let output = output.learnt_if(one.is_learnt || other.is_learnt);
        if is_training {
            let kept = before.unwrap_or_else(|| output.clone());
            let (one_learns, other_learns) = (one.is_learnt, other.is_learnt);
            backs.push(Box::new(move |gradient, found| {
                let gradient = operations.activation_back(activation, &kept, gradient)?;
                let one = if one_learns { go_back(ways, gradient.clone(), found)? } else { None };
                let other = if other_learns { go_back(other_ways, gradient, found)? } else { None };
                match (one, other) {
                    (Some(one), Some(other)) if input.is_learnt => {
                        operations.join(&one, &other.with_channels(one.channels), Activation::None, false).map(|(sum, _)| Some(sum))
                    }
                    _ => Ok(None),
                }
            }));
        }
        Ok(output)
    }

    /// Forward, loss and backward pass; the report is added to.
    fn lesson(&self, examples: Maps, labels: Pointer, lesson: &Task<'_>, report: &Buffer) -> Done<Taught> {
        let mut backs = Vec::new();
        let mut pass = Pass { training: Some((lesson.seed, lesson.step)), cursor: Cursor::default(), statistics: Vec::new() };
        let flow = self.pass(&self.blocks, examples, &mut pass, &mut backs)?;
        let logits = self.operations.to_floats(flow, self.ends_in_logits())?;
        let gradient = self.operations.loss(&logits, labels, lesson.loss_terms, lesson.share, report)?;
        let mut found = Found { gradients: self.held.iter().map(|_| None).collect(), is_frozen: lesson.is_frozen.to_vec() };
        go_back(backs, gradient, &mut found)?;
        Ok(Taught { gradients: found.gradients, statistics: pass.statistics })
    }

    /// Whether the last block gives fp32.
    fn ends_in_logits(&self) -> bool {
        matches!(self.blocks.last().map(|placed| &placed.block), Some(Block::Dense(_)))
    }

    fn infer(&mut self, state: &State, input: &Values) -> Done<Waiting> {
        self.take(state)?;
        self.take_running(&state.running)?;
        let set = Set::of(self.gpu(), input, self.input)?;
        let examples = set.all(&self.operations)?;
        let mut pass = Pass { training: None, cursor: Cursor::default(), statistics: Vec::new() };
        let flow = self.pass(&self.blocks, examples, &mut pass, &mut Vec::new())?;
        let logits = self.operations.to_floats(flow, self.ends_in_logits())?;
        let answer = self.operations.gpu.answer(&logits.buffer, logits.len(), Box::new(set))?;
        Ok(Box::new(move || answer.wait()))
    }
}

/// What a batch is to teach, besides its examples.
struct Task<'a> {
    loss_terms: &'a LossTerms,
    seed: u64,
    step: u64,
    /// Of the step, which other batches have parts in.
    share: f32,
    is_frozen: &'a [bool],
}

/// What it taught: a gradient for each weight that the loss depends on and that is not frozen, and of each batch norm the statistics, with its
/// momentum.
struct Taught {
    gradients: Vec<Option<Buffer>>,
    statistics: Vec<(Rc<Statistics>, f32)>,
}

/// Back through layers, the last first, as far as a gradient is of use.
fn go_back(backs: Vec<Back>, gradient: Maps, found: &mut Found) -> Done<Option<Maps>> {
    let mut gradient = gradient;
    for back in backs.into_iter().rev() {
        match back(gradient, found)? {
            Some(before) => gradient = before,
            None => return Ok(None),
        }
    }
    Ok(Some(gradient))
}

impl Engine for Fused {
    fn learn(&mut self, state: &State, lesson: &Lesson) -> Result<Learnt, NetworkError> {
        self.take(state)?;
        let (gpu, count) = (self.operations.gpu.clone(), lesson.labels.len());
        let set = Set::of(&gpu, &lesson.input, self.input)?;
        let examples = set.all(&self.operations)?;
        let (labels, report) = (gpu.upload(&lesson.labels)?, gpu.upload(&[0.0f64; 2])?);
        let is_frozen = vec![false; state.parameters.len()];
        let loss_terms = LossTerms::upload(&gpu, &lesson.options)?;
        let task = Task { loss_terms: &loss_terms, seed: lesson.seed, step: lesson.step, share: 1.0, is_frozen: &is_frozen };
        let taught = self.lesson(examples, labels.pointer(), &task, &report)?;
        let report = gpu.download_doubles(&report, 2)?;
        let read = |(gradient, (_, values)): (&Option<Buffer>, &(u64, Arc<Vec<f32>>))| match gradient {
            Some(gradient) => gpu.download(gradient, values.len()),
            None => Ok(vec![0.0; values.len()]),
        };
        let running = |(statistics, momentum): &(Rc<Statistics>, f32)| {
            let channels = statistics.channels;
            let running =
                Running { mean: gpu.download(&statistics.mean, channels)?, variance: gpu.download(&statistics.variance, channels)? };
            Ok((running, *momentum))
        };
        Ok(Learnt {
            report: StepReport { loss: (report[0] / count as f64) as f32, correct: report[1] as usize },
            gradients: taught.gradients.iter().zip(&state.parameters).map(read).collect::<Done<_>>()?,
            statistics: taught.statistics.iter().map(running).collect::<Done<_>>()?,
        })
    }

    fn submit(&mut self, state: &State, input: &Values) -> Result<Waiting, NetworkError> {
        self.infer(state, input)
    }

    fn resize(&mut self, blocks: &[Placed], input: Shape) -> bool {
        (self.blocks, self.input) = (blocks.to_vec(), input);
        true
    }

    fn hold(&mut self, set: &WholeSet) -> Result<bool, NetworkError> {
        self.hold_set(set)
    }

    fn begin(&mut self, begin: Begin) -> Result<(), NetworkError> {
        self.begin_course(begin)
    }

    fn course_step(&mut self, step: &CourseStep) -> Result<(), NetworkError> {
        self.course_step_on(step)
    }

    fn so_far(&mut self) -> Result<[f64; 2], NetworkError> {
        self.course_so_far()
    }

    fn fetch(&mut self) -> Result<Fetched, NetworkError> {
        self.fetch_course()
    }
}
