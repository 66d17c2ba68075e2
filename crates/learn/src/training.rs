//! The training loop: epochs of shuffled batches, validation after each, the best kept. What is interrupted goes on from its
//! last checkpoint.

use std::time::{Duration, Instant};

use artifact::stage::Progress;
use artifact::{RunContext, StageError};
use dataset::each_ahead;
use network::metrics::Metrics;
use network::{Architecture, Batch, Input, LossOptions, Network, NetworkError, Optimiser, Snapshot, StepReport};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

use crate::checkpoint::{Checkpoints, Standing, State};
use crate::classifier::{Classifier, Keep, Watch};
use crate::examples::{Examples, Gathered, Look};
use crate::model::{Epoch, Measured};
use crate::progressive;

/// Examples judged at once; has no bearing on the result.
const EVALUATION_BATCH: usize = 512;

/// Examples that a whitening layer is fitted to, as its author has it.
const WHITENED: usize = 5_000;

/// Steps that a GPU makes between two looks at the loss, which it is waited for at.
const STEPS_UNSEEN: usize = 32;

/// A trained network and how it became so.
pub struct Trained {
    /// The network, with the weights that are kept.
    pub network: Network,
    /// Every epoch.
    pub history: Vec<Epoch>,
    /// The epoch, from 1, whose weights are kept.
    pub kept: u32,
    /// The kept weights on the validation split; on the train split where there is none.
    pub metrics: Metrics,
    /// What the logits are divided by, if that was asked for; the weights have it.
    pub temperature: Option<f32>,
    /// The GPU that computed, if one did.
    pub gpu: Option<String>,
}

/// Trains as the config says.
///
/// # Errors
/// When the loss is no number any more, the network refuses the data, or the stage was asked to stop.
pub fn train(
    config: &Classifier,
    architecture: &Architecture,
    examples: &Examples,
    loss: &LossOptions,
    context: &RunContext,
) -> Result<Trained, StageError> {
    let mut training = Training::new(config, architecture, examples, loss, context)?;
    let judged = judged_rows(examples, context);
    while !training.is_over() {
        let train = training.one_epoch()?;
        let metrics = training.judge(judged)?;
        training.note(train, &metrics);
    }
    training.end(judged)
}

/// Fits a whitening layer to the first examples of the train split, as they are: without augmentation.
fn fit_whitening(network: &mut Network, examples: &Examples) -> Result<(), StageError> {
    if network.has_whitening() {
        let mut gathered = Gathered::default();
        examples.gather(&examples.train()[..examples.train().len().min(WHITENED)], None, &mut gathered);
        network.fit_whitening(examples.batch(&gathered).input).map_err(failed)?;
    }
    Ok(())
}

/// The rows that tell how good an epoch is.
fn judged_rows<'e>(examples: &'e Examples, context: &RunContext) -> &'e [usize] {
    if examples.validation().is_empty() {
        context.warn("there is no validation split: the best epoch is chosen on what was learnt from. Give the process stage `split = { validation = 0.1 }`");
        return examples.train();
    }
    examples.validation()
}

/// Takes the network to the device that is asked for; the GPU's name, if it is one.
fn place(network: &mut Network, config: &Classifier, context: &RunContext) -> Result<Option<String>, StageError> {
    let placement = network.place(config.device, config.precision).map_err(|error| StageError::new(error.to_string()))?;
    if let Some(note) = placement.note() {
        context.info(note);
    }
    Ok(placement.gpu().map(str::to_owned))
}

struct Training<'a> {
    config: &'a Classifier,
    examples: &'a Examples,
    loss: &'a LossOptions,
    context: &'a RunContext<'a>,
    checkpoints: Option<Checkpoints>,
    last_checkpoint: Instant,
    /// Time in which the network learnt, and how much of it the loader kept it waiting.
    learnt: Duration,
    waited: Duration,
    gpu: Option<String>,
    /// Whether the train split lies on the GPU, and epochs are learnt there from their first step to their last.
    is_held: bool,
    state: State,
}

/// An epoch: its rows in their order, and what is left of them.
struct Course<'a> {
    rows: Vec<usize>,
    /// Steps that a training before an interruption has done.
    first: usize,
    steps: usize,
    look: Look<'a>,
    progress: Progress<'a>,
}

impl<'a> Training<'a> {
    fn new(
        config: &'a Classifier,
        architecture: &Architecture,
        examples: &'a Examples,
        loss: &'a LossOptions,
        context: &'a RunContext<'a>,
    ) -> Result<Self, StageError> {
        let mut network = Network::new(architecture, config.seed()).map_err(failed)?;
        let gpu = place(&mut network, config, context)?;
        fit_whitening(&mut network, examples)?;
        let is_held = examples.hold(&mut network, &config.augment).map_err(failed)?;
        if gpu.is_some() && !is_held {
            context.info("the GPU has no room for the train split: its examples are taken there batch by batch");
        }
        let mut optimiser = Optimiser::new(&config.optimiser, &network).map_err(failed)?;
        optimiser.set_clip_norm(config.clip_norm);
        let average = config.average.map(|_| network.snapshot());
        let mut state = State { standing: Standing::default(), network, optimiser, best: None, average };
        let checkpoints = context.settings().scratch.as_deref().map(Checkpoints::within);
        if let Some(checkpoints) = &checkpoints
            && checkpoints.read(config, gpu.as_deref(), &mut state)?
        {
            let (epoch, steps) = (state.standing.history.len() + 1, state.standing.steps);
            context.info(format!("goes on from a checkpoint: epoch {epoch}, {steps} steps done"));
        }
        let kernels = state.network.kernels();
        if gpu.is_none() && !kernels.is_empty() {
            context.info(format!("convolutions: {}", kernels.join("; ")));
        }
        let none = Duration::ZERO;
        Ok(Self {
            config,
            examples,
            loss,
            context,
            checkpoints,
            last_checkpoint: Instant::now(),
            learnt: none,
            waited: none,
            gpu,
            is_held,
            state,
        })
    }

    /// The epoch at work, from 1.
    fn epoch(&self) -> u32 {
        self.state.standing.history.len() as u32 + 1
    }

    fn is_over(&self) -> bool {
        let (done, best) = (self.epoch() - 1, self.state.standing.best.map_or(0, |(epoch, _)| epoch));
        if done > 0 && self.config.early_stopping.is_some_and(|stop| done - best >= stop.patience) {
            self.context.info(format!("stopped after epoch {done}: no better since epoch {best}"));
            return true;
        }
        done >= self.config.epochs
    }

    /// Goes through the train split once, in an order of its own, or through what is left of it.
    fn one_epoch(&mut self) -> Result<Measured, StageError> {
        let (config, epoch) = (self.config, self.epoch());
        self.state.network.begin_epoch(epoch);
        let smaller = progressive::size_in(&config.progressive, epoch);
        self.state.network.resize(progressive::shape_of(self.examples.shape(), smaller)).map_err(failed)?;
        let mut rows = self.examples.train().to_vec();
        rows.shuffle(&mut Pcg64::seed_from_u64(config.seed().wrapping_add(u64::from(epoch).wrapping_mul(0x9E37_79B9_7F4A_7C15))));
        let size = smaller.map_or(String::new(), |[height, width]| format!(" at {height}x{width}"));
        let progress = self.context.progress(format!("epoch {epoch} of {}{size}", config.epochs), Some(rows.len() as u64), "examples");
        let (steps, first) = (rows.len().div_ceil(config.batch), self.state.standing.steps);
        let look = Look { augmentation: &config.augment, seed: config.seed(), epoch, smaller };
        progress.add((first * config.batch).min(rows.len()) as u64);
        let course = Course { rows, first, steps, look, progress };
        let clock = Instant::now();
        let waited = if self.is_held { self.learn_there(&course)? } else { self.learn_here(&course)? };
        self.waited += waited;
        self.learnt += clock.elapsed();
        self.state.network.resize(self.examples.shape()).map_err(failed)?;
        let (standing, count) = (&mut self.state.standing, course.rows.len() as f64);
        let measured = Measured { loss: standing.losses / count, accuracy: standing.correct as f64 / count, macro_f1: None };
        (standing.steps, standing.losses, standing.correct) = (0, 0.0, 0);
        Ok(measured)
    }

    /// Learns what is left of an epoch from examples that are gathered meanwhile; gives the time that it waited for them.
    fn learn_here(&mut self, course: &Course<'_>) -> Result<Duration, StageError> {
        let config = self.config;
        let in_parts = |batch: &[usize]| batch.chunks(batch.len().div_ceil(config.accumulate)).map(<[usize]>::to_vec).collect::<Vec<_>>();
        let gather = |parts: &Vec<Vec<usize>>, buffers: &mut Vec<Gathered>| {
            buffers.resize_with(parts.len(), Gathered::default);
            parts.iter().zip(buffers).for_each(|(rows, buffer)| self.examples.gather(rows, Some(&course.look), buffer));
            Ok(())
        };
        each_ahead(course.rows.chunks(config.batch).skip(course.first).map(in_parts), gather, |_, parts| {
            if let Err(stopped) = self.context.check_stop() {
                // What was learnt is not lost to Ctrl-C either.
                self.checkpoint()?;
                return Err(stopped);
            }
            self.set_rate(course);
            let report = self.step(parts)?;
            let standing = &mut self.state.standing;
            let examples: usize = parts.iter().map(|part| part.labels.len()).sum();
            standing.losses += f64::from(report.loss) * examples as f64;
            standing.correct += report.correct;
            standing.steps += 1;
            self.check_loss(f64::from(report.loss))?;
            course.progress.add(examples as u64);
            if self.is_checkpoint_due() { self.checkpoint() } else { Ok(()) }
        })
    }

    /// The same on the GPU, which has the examples: a step is asked for and not waited for.
    fn learn_there(&mut self, course: &Course<'_>) -> Result<Duration, StageError> {
        let config = self.config;
        let left = &course.rows[(course.first * config.batch).min(course.rows.len())..];
        let sights = left.iter().map(|row| self.examples.sight(*row, &course.look)).collect();
        let State { network, optimiser, average, .. } = &mut self.state;
        network.begin_course(optimiser, average.as_ref(), sights, self.loss).map_err(failed)?;
        let (begun, mut seen) = ((self.state.standing.losses, self.state.standing.correct), 0);
        let mut start = 0;
        while start < left.len() {
            let end = (start + config.batch).min(left.len());
            if let Err(stopped) = self.context.check_stop() {
                self.fetch(begun)?;
                self.checkpoint()?;
                return Err(stopped);
            }
            self.set_rate(course);
            let part = (end - start).div_ceil(config.accumulate);
            let parts = (start..end).step_by(part).map(|start| start..(start + part).min(end)).collect();
            let State { network, optimiser, .. } = &mut self.state;
            let decay = config.average.map(|decay| decay.min(longest(optimiser.step() + 1)));
            network.step_in_course(parts, optimiser, decay).map_err(failed)?;
            self.state.standing.steps += 1;
            if self.is_checkpoint_due() {
                self.fetch(begun)?;
                self.checkpoint()?;
            }
            if self.state.standing.steps.is_multiple_of(STEPS_UNSEEN) || end == left.len() {
                self.look_at_course(begun)?;
                course.progress.add((end - seen) as u64);
                seen = end;
            }
            start = end;
        }
        self.fetch(begun)?;
        Ok(Duration::ZERO)
    }

    /// Sums up what the course on the GPU has come to, on top of what the epoch had when it began.
    fn look_at_course(&mut self, (losses, correct): (f64, usize)) -> Result<(), StageError> {
        let (more_losses, more_correct) = self.state.network.course_so_far().map_err(failed)?;
        let standing = &mut self.state.standing;
        (standing.losses, standing.correct) = (losses + more_losses, correct + more_correct);
        let sum = standing.losses;
        self.check_loss(sum)
    }

    /// Brings back what the GPU has learnt.
    fn fetch(&mut self, begun: (f64, usize)) -> Result<(), StageError> {
        self.look_at_course(begun)?;
        let State { network, optimiser, average, .. } = &mut self.state;
        network.fetch_course(optimiser, average.as_mut()).map_err(failed)
    }

    /// Sets the learning rate for the next step.
    fn set_rate(&mut self, course: &Course<'_>) {
        let all_steps = (course.steps * self.config.epochs as usize) as f64;
        let done = ((course.look.epoch as usize - 1) * course.steps + self.state.standing.steps) as f64 / all_steps;
        self.state.optimiser.set_rate_factor(self.config.schedule.factor(done, self.config.warm_up));
    }

    fn check_loss(&self, loss: f64) -> Result<(), StageError> {
        if loss.is_finite() { Ok(()) } else { Err(came_apart(loss, self.epoch(), self.state.optimiser.learning_rate())) }
    }

    /// One step of the optimiser, in as many parts as asked for.
    fn step(&mut self, parts: &[Gathered]) -> Result<StepReport, StageError> {
        let parts: Vec<Batch<'_>> = parts.iter().map(|part| self.examples.batch(part)).collect();
        let State { network, optimiser, average, .. } = &mut self.state;
        let report = network.train_step_in_parts(&parts, optimiser, self.loss).map_err(failed)?;
        if let (Some(average), Some(decay)) = (average, self.config.average) {
            network.average_into(average, decay.min(longest(optimiser.step()))).map_err(failed)?;
        }
        Ok(report)
    }

    fn checkpoint(&mut self) -> Result<(), StageError> {
        self.last_checkpoint = Instant::now();
        match &self.checkpoints {
            Some(checkpoints) => checkpoints.write(self.config, self.gpu.as_deref(), &mut self.state),
            None => Ok(()),
        }
    }

    fn is_checkpoint_due(&self) -> bool {
        let every = &self.config.checkpoint;
        let by_steps = every.steps.is_some_and(|steps| self.state.optimiser.step().is_multiple_of(steps));
        by_steps || self.last_checkpoint.elapsed() >= Duration::from_secs_f64(every.minutes * 60.0)
    }

    /// Measures the weights that would be kept now: their moving average, where there is one.
    fn judge(&mut self, rows: &[usize]) -> Result<Metrics, StageError> {
        let current = self.state.network.snapshot();
        if let Some(average) = &self.state.average {
            self.state.network.restore(average).map_err(failed)?;
        }
        let metrics = self.measure(rows);
        self.state.network.restore(&current).map_err(failed)?;
        metrics
    }

    fn measure(&self, rows: &[usize]) -> Result<Metrics, StageError> {
        let (labels, probabilities) = self.outputs(rows, Network::probabilities)?;
        Ok(Metrics::of(self.examples.classes(), &labels, &probabilities))
    }

    /// The labels of rows, and what the network makes of them as they are, `[rows, classes]`.
    fn outputs(
        &self,
        rows: &[usize],
        of: impl Fn(&Network, Input<'_>) -> Result<Vec<f32>, NetworkError>,
    ) -> Result<(Vec<u32>, Vec<f32>), StageError> {
        let mut gathered = Gathered::default();
        let (mut labels, mut outputs) = (Vec::new(), Vec::new());
        for batch in rows.chunks(EVALUATION_BATCH) {
            self.examples.gather(batch, None, &mut gathered);
            outputs.extend(of(&self.state.network, self.examples.batch(&gathered).input).map_err(failed)?);
            labels.extend_from_slice(&gathered.labels);
        }
        Ok((labels, outputs))
    }

    /// Makes the network as sure as it is right on these rows.
    fn calibrate(&mut self, rows: &[usize]) -> Result<f32, StageError> {
        let (labels, logits) = self.outputs(rows, Network::logits)?;
        let temperature = network::temperature(&logits, &labels);
        self.state.network.apply_temperature(temperature).map_err(failed)?;
        self.context.info(format!("calibrated: the logits are divided by {temperature:.3}"));
        Ok(temperature)
    }

    /// An epoch is done: its measures, and its weights if they are the best.
    fn note(&mut self, train: Measured, metrics: &Metrics) {
        let epoch = self.epoch();
        let validation = Measured { loss: metrics.log_loss, accuracy: metrics.accuracy, macro_f1: Some(metrics.macro_f1) };
        tell(self.context, epoch, &train, &validation);
        let score = match self.config.watch {
            Watch::Accuracy => metrics.accuracy,
            Watch::MacroF1 => metrics.macro_f1,
            Watch::Loss => -metrics.log_loss,
        };
        let State { standing, network, best, average, .. } = &mut self.state;
        if standing.best.is_none_or(|(_, best)| score > best) {
            standing.best = Some((epoch, score));
            *best = Some(average.clone().unwrap_or_else(|| network.snapshot()));
        }
        standing.history.push(Epoch { epoch, train, validation });
    }

    fn end(mut self, judged: &[usize]) -> Result<Trained, StageError> {
        let (learnt, waited) = (self.learnt.as_secs_f64(), self.waited.as_secs_f64());
        self.context.info(format!("learnt for {learnt:.1} s, {:.1} % of it waiting for examples", 100.0 * waited / learnt.max(1e-9)));
        let history = std::mem::take(&mut self.state.standing.history);
        let last: Option<Snapshot> = self.state.average.take();
        let (weights, kept) = match (self.config.keep, self.state.best.take(), self.state.standing.best) {
            (Keep::Best, Some(best), Some((epoch, _))) => (Some(best), epoch),
            _ => (last, history.len() as u32),
        };
        if let Some(weights) = weights {
            self.state.network.restore(&weights).map_err(failed)?;
        }
        let temperature = if self.config.calibrate { Some(self.calibrate(judged)?) } else { None };
        let metrics = self.measure(judged)?;
        Ok(Trained { network: self.state.network, history, kept, metrics, temperature, gpu: self.gpu })
    }
}

/// What an average keeps of itself after so many steps, at most: a young one would hold on to the first weights.
fn longest(steps: u64) -> f32 {
    steps as f32 / (steps as f32 + 10.0)
}

fn came_apart(loss: f64, epoch: u32, rate: f64) -> StageError {
    StageError::new(format!("the loss became {loss} in epoch {epoch}: the training has come apart")).help(format!(
        "lower the learning rate, which is {rate}, tenfold (`optimiser = {{ name = \"adam\", learning_rate = … }}`), or bound the gradients (`clip_norm = 1.0`)"
    ))
}

fn tell(context: &RunContext, epoch: u32, train: &Measured, validation: &Measured) {
    let step = Some(u64::from(epoch));
    context.metric("train.loss", train.loss, step);
    context.metric("train.accuracy", train.accuracy, step);
    context.metric("validation.loss", validation.loss, step);
    context.metric("validation.accuracy", validation.accuracy, step);
}

/// A network's refusal as the stage's.
pub fn failed(error: NetworkError) -> StageError {
    StageError::new("the network cannot be trained so").because(&error)
}
