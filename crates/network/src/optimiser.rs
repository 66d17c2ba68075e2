//! Adam, AdamW and SGD with momentum.
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
    error::NetworkError,
    network::Network,
    tape::{Grads, Vector},
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
    },
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
        OptimiserConfig::Adam { learning_rate: adam_rate(), beta1: beta1(), beta2: beta2(), epsilon: epsilon(), weight_decay: 0.0 }
    }
}

impl OptimiserConfig {
    /// The size of a step.
    pub fn learning_rate(&self) -> f64 {
        match self {
            OptimiserConfig::Adam { learning_rate, .. } | OptimiserConfig::Sgd { learning_rate, .. } => *learning_rate,
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
            OptimiserConfig::Adam { beta1, beta2, epsilon, weight_decay, .. } => {
                share("beta1", beta1)?;
                share("beta2", beta2)?;
                above_zero("epsilon", epsilon)?;
                not_below_zero("weight_decay", weight_decay)
            }
            OptimiserConfig::Sgd { momentum, weight_decay, .. } => {
                share("momentum", momentum)?;
                not_below_zero("weight_decay", weight_decay)
            }
        }
    }

    fn set_learning_rate(&mut self, rate: f64) {
        match self {
            OptimiserConfig::Adam { learning_rate, .. } | OptimiserConfig::Sgd { learning_rate, .. } => *learning_rate = rate,
        }
    }

    /// How many numbers are kept for each weight.
    fn states(&self) -> &'static [&'static str] {
        match self {
            OptimiserConfig::Adam { .. } => &["first_moment", "second_moment"],
            OptimiserConfig::Sgd { .. } => &["velocity"],
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
        Ok(Optimiser { config: config.clone(), step: 0, states })
    }

    /// Steps made so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The size of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.config.learning_rate()
    }

    /// Sets the size of the following steps, for schedules.
    pub fn set_learning_rate(&mut self, learning_rate: f64) {
        self.config.set_learning_rate(learning_rate);
    }

    /// One step of every weight along its gradient. Each element is computed by itself, so threads change nothing.
    pub(crate) fn update(&mut self, network: &mut Network, mut grads: Grads) -> Result<(), NetworkError> {
        self.step += 1;
        let step = i32::try_from(self.step).unwrap_or(i32::MAX);
        let mut gradients = Vec::with_capacity(network.parameters.len());
        for parameter in &network.parameters {
            gradients.push(std::mem::replace(grads.get_or_alloc_mut(&parameter.tensor)?, Cpu::default().try_alloc_len(0)?));
        }
        let config = &self.config;
        let mut states = self.states.iter_mut();
        let (first, second) = (states.next(), states.next());
        let first = first.map_or(&mut [][..], Vec::as_mut_slice);
        let weights = network.parameters.par_iter_mut().zip(&gradients);
        match second {
            Some(second) => weights.zip(first).zip(second).try_for_each(|(((parameter, gradient), first), second)| {
                let decays = parameter.decays();
                adam(config, decays, step, &mut parameter.tensor, first, second, gradient)
            }),
            None => weights.zip(first).try_for_each(|((parameter, gradient), velocity)| {
                let decays = parameter.decays();
                sgd(config, decays, &mut parameter.tensor, velocity, gradient)
            }),
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

    /// An optimiser that goes on where [`Optimiser::to_safetensors`] left off.
    ///
    /// # Errors
    ///
    /// If the bytes are damaged or belong to another network or another kind of optimiser.
    pub fn from_safetensors(config: &OptimiserConfig, network: &Network, bytes: &[u8]) -> Result<Self, NetworkError> {
        let mut optimiser = Optimiser::new(config, network)?;
        let mut wanted = vec![("step".to_owned(), vec![4])];
        for state in config.states() {
            wanted.extend(network.parameters.iter().map(|parameter| (format!("{state}.{}", parameter.name), parameter.shape.clone())));
        }
        let mut tensors = read_tensors(bytes, &wanted)?.into_iter();
        let pieces = tensors.next().unwrap_or_default();
        optimiser.step = pieces.iter().enumerate().map(|(piece, value)| (*value as u64) << (16 * piece)).sum();
        for buffer in optimiser.states.iter_mut().flatten() {
            buffer.copy_from_slice(&tensors.next().unwrap_or_default());
        }
        Ok(optimiser)
    }
}

fn adam(
    config: &OptimiserConfig,
    decays: bool,
    step: i32,
    weights: &mut Vector,
    first: &mut Buffer,
    second: &mut Buffer,
    gradient: &Buffer,
) -> Result<(), NetworkError> {
    let OptimiserConfig::Adam { learning_rate, beta1, beta2, epsilon, weight_decay } = *config else { return Ok(()) };
    let weight_decay = (decays && weight_decay > 0.0).then_some(WeightDecay::Decoupled(weight_decay));
    let config = AdamConfig { lr: learning_rate, betas: [beta1, beta2], eps: epsilon, weight_decay };
    Ok(config.try_update(step, weights, first, second, gradient)?)
}

fn sgd(config: &OptimiserConfig, decays: bool, weights: &mut Vector, velocity: &mut Buffer, gradient: &Buffer) -> Result<(), NetworkError> {
    let OptimiserConfig::Sgd { learning_rate, momentum, nesterov, weight_decay } = *config else { return Ok(()) };
    let weight_decay = (decays && weight_decay > 0.0).then_some(WeightDecay::L2(weight_decay));
    let momentum = match nesterov {
        _ if momentum == 0.0 => None,
        true => Some(Momentum::Nesterov(momentum)),
        false => Some(Momentum::Classic(momentum)),
    };
    let config = SgdConfig { lr: learning_rate, momentum, weight_decay };
    Ok(config.try_update(weights, velocity, gradient)?)
}
