//! Adam, AdamW, SGD with momentum, and Muon.
//!
//! The arithmetic is dfdx's: [`AdamConfig::try_update`] and [`SgdConfig::try_update`] on one tensor. What is ours is the
//! owner of the state. dfdx's own `Adam` keeps its moments and its step private, so that a training could not be
//! resumed; and it walks a module whose fields are known to the compiler, where our layers come from a file.

use dfdx::{
    optim::{AdamConfig, Momentum, SgdConfig, WeightDecay},
    tensor::{Cpu, Storage},
};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    accelerator::Rule,
    error::NetworkError,
    muon,
    network::{Network, Parameter},
    partition::one_by_one,
    plan::Role,
    weights::{TensorData, read_tensors, write_tensors},
};

type Buffer = <Cpu as Storage<f32>>::Vec;

/// Which optimiser, and how it is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum OptimiserConfig {
    /// Adam (Kingma and Ba 2015, <https://arxiv.org/abs/1412.6980>, algorithm 1); with a weight decay, AdamW (Loshchilov and
    /// Hutter 2019, <https://arxiv.org/abs/1711.05101>).
    Adam {
        /// Size of a step.
        #[serde(default = "adam_rate")]
        learning_rate: f64,
        /// Decay of the mean of gradients.
        #[serde(default = "beta1")]
        beta1: f64,
        /// Decay of the mean of squared gradients.
        #[serde(default = "beta2")]
        beta2: f64,
        /// Added to the root of the mean square.
        #[serde(default = "epsilon")]
        epsilon: f64,
        /// Share of each weight, times the learning rate, that is taken off it each step; biases and batch norms are spared.
        #[serde(default)]
        weight_decay: f64,
        /// Size of a step of the shifts of batch norms and of a whitening's bias, as a multiple of the learning rate.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        bias_rate: f64,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Size of a step.
        #[serde(default = "sgd_rate")]
        learning_rate: f64,
        /// Share of the last step that is kept.
        #[serde(default)]
        momentum: f64,
        /// Nesterov's form of the momentum.
        #[serde(default)]
        nesterov: bool,
        /// Share of each weight that is added to its gradient (L2); biases and batch norms are spared.
        #[serde(default)]
        weight_decay: f64,
        /// Size of a step of the shifts of batch norms and of a whitening's bias, as a multiple of the learning rate.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        bias_rate: f64,
    },
    /// Muon (Jordan 2024, <https://kellerjordan.github.io/posts/muon/>): momentum whose matrices are made orthogonal, for the weights of
    /// convolutions (but for those in groups) and dense layers but the last.
    Muon {
        /// Size of a step of the matrices.
        #[serde(default = "muon_rate")]
        learning_rate: f64,
        /// Share of the last step that is kept.
        #[serde(default = "muon_momentum")]
        momentum: f64,
        /// Nesterov's form of the momentum.
        #[serde(default = "yes")]
        nesterov: bool,
        /// Share of each matrix, times the learning rate, that is taken off it each step.
        #[serde(default)]
        weight_decay: f64,
        /// Keeps each matrix at the norm of an orthogonal one, so that steps keep their size beside it. For layers before a batch norm,
        /// which takes the matrix's size out of the result.
        #[serde(default)]
        normalise: bool,
        /// How all else learns: by Adam or by SGD, as `{ name = "sgd", learning_rate = 0.05 }`.
        #[serde(default)]
        rest: Box<OptimiserConfig>,
    },
}

fn one() -> f64 {
    1.0
}
fn is_one(rate: &f64) -> bool {
    *rate == 1.0
}
fn muon_rate() -> f64 {
    0.02
}
fn muon_momentum() -> f64 {
    0.95
}
fn yes() -> bool {
    true
}
fn adam_rate() -> f64 {
    1e-3
}
fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.999
}
fn epsilon() -> f64 {
    1e-8
}
fn sgd_rate() -> f64 {
    1e-2
}

impl Default for OptimiserConfig {
    /// Adam as its paper sets it.
    fn default() -> Self {
        OptimiserConfig::Adam {
            learning_rate: adam_rate(),
            beta1: beta1(),
            beta2: beta2(),
            epsilon: epsilon(),
            weight_decay: 0.0,
            bias_rate: 1.0,
        }
    }
}

impl OptimiserConfig {
    /// The size of a step.
    pub fn learning_rate(&self) -> f64 {
        match self {
            OptimiserConfig::Adam { learning_rate, .. }
            | OptimiserConfig::Sgd { learning_rate, .. }
            | OptimiserConfig::Muon { learning_rate, .. } => *learning_rate,
        }
    }

    /// Checks that each number is in its range.
    ///
    /// # Errors
    ///
    /// Names the first that is not.
    pub fn check(&self) -> Result<(), NetworkError> {
        let above_zero = |name: &str, value: f64| in_range(name, value, value > 0.0, "above 0");
        let share = |name: &str, value: f64| in_range(name, value, (0.0..1.0).contains(&value), "from 0 to below 1");
        let not_below_zero = |name: &str, value: f64| in_range(name, value, value >= 0.0, "0 or above");
        above_zero("learning_rate", self.learning_rate())?;
        match *self {
            OptimiserConfig::Adam { beta1, beta2, epsilon, weight_decay, bias_rate, .. } => {
                above_zero("bias_rate", bias_rate)?;
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                above_zero("epsilon", epsilon)?;
                not_below_zero("weight_decay", weight_decay)
            }
            OptimiserConfig::Sgd { momentum, weight_decay, bias_rate, .. } => {
                above_zero("bias_rate", bias_rate)?;
                share("momentum", momentum)?;
                not_below_zero("weight_decay", weight_decay)
            }
            OptimiserConfig::Muon { momentum, weight_decay, ref rest, .. } => {
                share("momentum", momentum)?;
                not_below_zero("weight_decay", weight_decay)?;
                match **rest {
                    OptimiserConfig::Muon { .. } => {
                        Err(NetworkError::Option("what Muon leaves learns by adam or sgd, not by muon again".into()))
                    }
                    ref rest => rest.check(),
                }
            }
        }
    }

    /// How many numbers are kept for each weight.
    fn states(&self) -> &'static [&'static str] {
        match self {
            OptimiserConfig::Adam { .. } => &["first_moment", "second_moment"],
            OptimiserConfig::Sgd { .. } => &["velocity"],
            // Of Muon's matrices, the first is the momentum and the second stays zero.
            OptimiserConfig::Muon { rest, .. } => rest.states(),
        }
    }
}

fn in_range(name: &str, value: f64, is_good: bool, range: &str) -> Result<(), NetworkError> {
    if is_good && value.is_finite() {
        return Ok(());
    }
    Err(NetworkError::Option(format!("the optimiser's {name} must be {range}, not {value}")))
}

/// An optimiser with its state: how many steps it has made and its moments for each weight.
pub struct Optimiser {
    config: OptimiserConfig,
    /// Of the config's learning rates, for the next steps.
    rate_factor: f64,
    clip_norm: Option<f64>,
    step: u64,
    /// For each state of the config, one buffer a weight tensor, in the network's order.
    states: Vec<Vec<Buffer>>,
}

impl Optimiser {
    /// An optimiser before its first step.
    ///
    /// # Errors
    ///
    /// If a number of the config is out of its range.
    pub fn new(config: &OptimiserConfig, network: &Network) -> Result<Self, NetworkError> {
        config.check()?;
        let zeros = || network.parameters.iter().map(|parameter| Cpu::default().try_alloc_len(parameter.len())).collect();
        let states = config.states().iter().map(|_| zeros()).collect::<Result<_, _>>()?;
        Ok(Optimiser { config: config.clone(), rate_factor: 1.0, clip_norm: None, step: 0, states })
    }

    /// Steps made so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The size of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.config.learning_rate() * self.rate_factor
    }

    /// Sets the following steps to a multiple of the config's learning rate, for schedules.
    pub fn set_rate_factor(&mut self, factor: f64) {
        self.rate_factor = factor;
    }

    /// Scales gradients down whose norm, over all weights, is greater (Pascanu et al. 2013); `None`: never.
    pub fn set_clip_norm(&mut self, norm: Option<f64>) {
        self.clip_norm = norm;
    }

    /// Of the config's learning rate, for the next step.
    pub(crate) fn rate_factor(&self) -> f64 {
        self.rate_factor
    }

    pub(crate) fn clip_norm(&self) -> Option<f64> {
        self.clip_norm
    }

    /// A step was made elsewhere.
    pub(crate) fn count_step(&mut self) {
        self.step += 1;
    }

    /// How a parameter learns, for who makes steps elsewhere.
    pub(crate) fn rule(&self, network: &Network, index: usize, parameter: &Parameter) -> Rule {
        let head = network.parameters.len().saturating_sub(2);
        Rule {
            config: config_of(&self.config, parameter, index, head).clone(),
            columns: parameter.shape.last().copied().unwrap_or(1),
            role: parameter.role,
            is_frozen: parameter.is_frozen,
        }
    }

    /// For each state of the config, one list a weight tensor.
    pub(crate) fn moments(&self) -> Vec<Vec<Vec<f32>>> {
        self.states.iter().map(|buffers| buffers.iter().map(|buffer| buffer.to_vec()).collect()).collect()
    }

    /// Takes on what steps elsewhere have made of [`Optimiser::moments`].
    pub(crate) fn set_moments(&mut self, moments: Vec<Vec<Vec<f32>>>) {
        for (buffer, values) in self.states.iter_mut().flatten().zip(moments.into_iter().flatten()) {
            buffer.copy_from_slice(&values);
        }
    }

    /// One step of every weight along its gradient; the gradients are in the network's order. Each tensor is computed by itself, so
    /// threads change nothing.
    pub(crate) fn update(&mut self, network: &mut Network, mut gradients: Vec<Vec<f32>>) -> Result<(), NetworkError> {
        self.step += 1;
        self.clip(&mut gradients);
        let step = i32::try_from(self.step).unwrap_or(i32::MAX);
        let head = network.parameters.len().saturating_sub(2);
        let (config, factor, unit) = (&self.config, self.rate_factor, network.unit);
        let mut states = self.states.iter_mut();
        let (first, second) = (states.next(), states.next());
        let firsts = first.map_or(&mut [][..], Vec::as_mut_slice);
        let mut seconds: Vec<Option<&mut Buffer>> = second.into_iter().flatten().map(Some).collect();
        seconds.resize_with(firsts.len(), || None);
        let weights = one_by_one(network.parameters.par_iter_mut().zip(gradients).zip(firsts).zip(seconds)).enumerate();
        weights.filter(|(_, (((parameter, _), _), _))| !parameter.is_frozen).try_for_each(
            |(index, (((parameter, gradient), first), second))| {
                let config = config_of(config, parameter, index, head);
                match (config, second) {
                    (OptimiserConfig::Muon { .. }, _) => muon::update(config, unit, factor, parameter, first, gradient),
                    (OptimiserConfig::Adam { .. }, Some(second)) => {
                        adam(config, factor, step, parameter, first, second, &buffer(gradient)?)?
                    }
                    _ => sgd(config, factor, parameter, first, &buffer(gradient)?)?,
                }
                Ok(())
            },
        )
    }

    fn clip(&self, gradients: &mut [Vec<f32>]) {
        let Some(largest) = self.clip_norm else { return };
        let squares: Vec<f64> =
            gradients.par_iter().map(|gradient| gradient.iter().map(|value| f64::from(*value) * f64::from(*value)).sum()).collect();
        let norm = squares.iter().sum::<f64>().sqrt();
        if norm > largest {
            let factor = (largest / norm) as f32;
            gradients.par_iter_mut().flatten().for_each(|value| *value *= factor);
        }
    }

    /// The state as a safetensors file: `step`, then `first_moment.layers.0.weight` and so on. Equal states give equal bytes.
    ///
    /// # Errors
    ///
    /// None that data could cause.
    pub fn to_safetensors(&self, network: &Network) -> Result<Vec<u8>, NetworkError> {
        // The step as four pieces of 16 bits, each exact in f32, so that the file holds one type only.
        let pieces = (0..4).map(|piece| ((self.step >> (16 * piece)) & 0xffff) as f32).collect();
        let mut tensors = vec![TensorData { name: "step".into(), shape: vec![4], values: pieces }];
        for (state, buffers) in self.config.states().iter().zip(&self.states) {
            for (parameter, buffer) in network.parameters.iter().zip(buffers) {
                let name = format!("{state}.{}", parameter.name);
                tensors.push(TensorData { name, shape: parameter.shape.clone(), values: buffer.to_vec() });
            }
        }
        write_tensors(tensors)
    }

    /// Goes on where [`Optimiser::to_safetensors`] left off.
    ///
    /// # Errors
    ///
    /// If the bytes are damaged or belong to another network or another kind of optimiser; nothing has changed then.
    pub fn load(&mut self, network: &Network, bytes: &[u8]) -> Result<(), NetworkError> {
        let mut wanted = vec![("step".to_owned(), vec![4])];
        for state in self.config.states() {
            wanted.extend(network.parameters.iter().map(|parameter| (format!("{state}.{}", parameter.name), parameter.shape.clone())));
        }
        let mut tensors = read_tensors(bytes, &wanted)?.into_iter();
        let pieces = tensors.next().unwrap_or_default();
        self.step = pieces.iter().enumerate().map(|(piece, value)| (*value as u64) << (16 * piece)).sum();
        for buffer in self.states.iter_mut().flatten() {
            buffer.copy_from_slice(&tensors.next().unwrap_or_default());
        }
        Ok(())
    }
}

/// The config that a parameter learns by: Muon leaves what is no matrix, and the last layer (from `head` on), to another.
fn config_of<'c>(config: &'c OptimiserConfig, parameter: &Parameter, index: usize, head: usize) -> &'c OptimiserConfig {
    match config {
        OptimiserConfig::Muon { rest, .. } if parameter.role != Role::Matrix || index >= head => rest,
        config => config,
    }
}

/// dfdx's kernels take gradients in a buffer of its own.
fn buffer(values: Vec<f32>) -> Result<Buffer, NetworkError> {
    let mut buffer = Cpu::default().try_alloc_len(0)?;
    *buffer = values;
    Ok(buffer)
}

fn adam(
    config: &OptimiserConfig,
    factor: f64,
    step: i32,
    parameter: &mut Parameter,
    first: &mut Buffer,
    second: &mut Buffer,
    gradient: &Buffer,
) -> Result<(), NetworkError> {
    let OptimiserConfig::Adam { learning_rate, beta1, beta2, epsilon, weight_decay, bias_rate } = *config else { return Ok(()) };
    let weight_decay = (parameter.role.decays() && weight_decay > 0.0).then_some(WeightDecay::Decoupled(weight_decay));
    let lr = learning_rate * factor * parameter.role.rate(bias_rate);
    let config = AdamConfig { lr, betas: [beta1, beta2], eps: epsilon, weight_decay };
    Ok(config.try_update(step, &mut parameter.tensor, first, second, gradient)?)
}

fn sgd(
    config: &OptimiserConfig,
    factor: f64,
    parameter: &mut Parameter,
    velocity: &mut Buffer,
    gradient: &Buffer,
) -> Result<(), NetworkError> {
    let OptimiserConfig::Sgd { learning_rate, momentum, nesterov, weight_decay, bias_rate } = *config else { return Ok(()) };
    let weight_decay = (parameter.role.decays() && weight_decay > 0.0).then_some(WeightDecay::L2(weight_decay));
    let momentum = match nesterov {
        _ if momentum == 0.0 => None,
        true => Some(Momentum::Nesterov(momentum)),
        false => Some(Momentum::Classic(momentum)),
    };
    let config = SgdConfig { lr: learning_rate * factor * parameter.role.rate(bias_rate), momentum, weight_decay };
    Ok(config.try_update(&mut parameter.tensor, velocity, gradient)?)
}
