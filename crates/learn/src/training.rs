//! The training loop: epochs of shuffled batches, validation after each, the best kept.

use artifact::{RunContext, StageError};
use network::metrics::Metrics;
use network::{Architecture, Batch, LossOptions, Network, NetworkError, Optimiser, Snapshot};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;

use crate::classifier::{Classifier, Keep, Watch};
use crate::examples::{Examples, Gathered};
use crate::model::{Epoch, Measured};

/// Examples judged at once; has no bearing on the result.
const EVALUATION_BATCH: usize = 512;

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
    let mut network = Network::new(architecture, config.seed()).map_err(failed)?;
    let mut optimiser = Optimiser::new(&config.optimiser, &network).map_err(failed)?;
    let judged = judged_rows(examples, context);
    let mut history: Vec<Epoch> = Vec::new();
    let mut best: Option<(f64, u32, Snapshot)> = None;
    for epoch in 1..=config.epochs {
        let train = one_epoch(config, epoch, &mut network, &mut optimiser, examples, loss, context)?;
        let metrics = judge(&network, examples, judged)?;
        let validation = Measured { loss: metrics.log_loss, accuracy: metrics.accuracy, macro_f1: Some(metrics.macro_f1) };
        tell(context, epoch, &train, &validation);
        let score = match config.watch {
            Watch::Accuracy => metrics.accuracy,
            Watch::MacroF1 => metrics.macro_f1,
            Watch::Loss => -metrics.log_loss,
        };
        if best.as_ref().is_none_or(|(best, ..)| score > *best) {
            best = Some((score, epoch, network.snapshot()));
        }
        history.push(Epoch { epoch, train, validation });
        let best_epoch = best.as_ref().map_or(epoch, |(_, epoch, _)| *epoch);
        if config.early_stopping.is_some_and(|stop| epoch - best_epoch >= stop.patience) {
            context.info(format!("stopped after epoch {epoch}: no better since epoch {best_epoch}"));
            break;
        }
    }
    let mut kept = history.len() as u32;
    if let (Keep::Best, Some((_, epoch, snapshot))) = (config.keep, &best) {
        network.restore(snapshot).map_err(failed)?;
        kept = *epoch;
    }
    let metrics = judge(&network, examples, judged)?;
    Ok(Trained { network, history, kept, metrics })
}

/// The rows that tell how good an epoch is.
fn judged_rows<'e>(examples: &'e Examples, context: &RunContext) -> &'e [usize] {
    if examples.validation().is_empty() {
        context.warn("there is no validation split: the best epoch is chosen on what was learnt from. Give the process stage `split = { validation = 0.1 }`");
        return examples.train();
    }
    examples.validation()
}

/// Goes through the train split once, in an order of its own.
fn one_epoch(
    config: &Classifier,
    epoch: u32,
    network: &mut Network,
    optimiser: &mut Optimiser,
    examples: &Examples,
    loss: &LossOptions,
    context: &RunContext,
) -> Result<Measured, StageError> {
    let mut rows = examples.train().to_vec();
    rows.shuffle(&mut Pcg64::seed_from_u64(config.seed().wrapping_add(u64::from(epoch).wrapping_mul(0x9E37_79B9_7F4A_7C15))));
    let progress = context.progress(format!("epoch {epoch} of {}", config.epochs), Some(rows.len() as u64), "examples");
    let mut gathered = Gathered::default();
    let (mut losses, mut correct) = (0.0, 0);
    let steps = rows.len().div_ceil(config.batch);
    let all_steps = (steps * config.epochs as usize) as f64;
    for (step, batch) in rows.chunks(config.batch).enumerate() {
        context.check_stop()?;
        let done = ((epoch as usize - 1) * steps + step) as f64 / all_steps;
        optimiser.set_learning_rate(config.schedule.rate(config.optimiser.learning_rate(), done));
        let (input, labels) = examples.gather(batch, &mut gathered);
        let step = network.train_step(Batch { input, labels }, optimiser, loss).map_err(failed)?;
        if !step.loss.is_finite() {
            return Err(StageError::new(format!("the loss became {} in epoch {epoch}: the training has come apart", step.loss)).help(
                format!(
                    "lower the learning rate, which is {}, tenfold: `optimiser = {{ name = \"adam\", learning_rate = … }}`",
                    optimiser.learning_rate()
                ),
            ));
        }
        losses += f64::from(step.loss) * batch.len() as f64;
        correct += step.correct;
        progress.add(batch.len() as u64);
    }
    let count = rows.len() as f64;
    Ok(Measured { loss: losses / count, accuracy: correct as f64 / count, macro_f1: None })
}

fn judge(network: &Network, examples: &Examples, rows: &[usize]) -> Result<Metrics, StageError> {
    let mut gathered = Gathered::default();
    let (mut labels, mut probabilities) = (Vec::new(), Vec::new());
    for batch in rows.chunks(EVALUATION_BATCH) {
        let (input, of) = examples.gather(batch, &mut gathered);
        probabilities.extend(network.probabilities(input).map_err(failed)?);
        labels.extend_from_slice(of);
    }
    Ok(Metrics::of(examples.classes(), &labels, &probabilities))
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
