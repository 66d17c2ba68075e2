//! g as a function: a network declared as text, its forward and backward pass on dfdx's tape, its optimiser and its weights.
//!
//! What goes in and comes out:
//!
//! | step | call |
//! |---|---|
//! | declare | [`Architecture`] `{ input: Shape, layers: Vec<LayerSpec> }`; a [`LayerSpec`] is a string in TOML: `"conv 32 3x3 relu"` |
//! | check | [`Architecture::check`] gives all faults at once, or an [`ArchitectureReport`] (shapes, parameters, FLOPs; `Display` is a table) |
//! | build | [`Network::new`]`(&architecture, seed)` |
//! | learn | [`Network::train_step`]`(Batch { input, labels }, &mut optimiser, &LossOptions)` gives a [`StepReport`] `{ loss, correct }` |
//! | judge | [`Network::evaluate`]`(batch, &LossOptions)` gives the same without learning |
//! | keep | [`Network::snapshot`] and [`Network::restore`]; [`Network::to_safetensors`] and [`Network::from_safetensors`] |
//! | be as sure as right | [`temperature`] and [`Network::apply_temperature`] |
//! | speed up | [`Network::place`]`(Device::Cpu, Precision::Bf16)`, on a processor with matrix tiles |
//! | | [`Network::place`]`(Device::Cuda, Precision::Bf16)`, with the feature `cuda`; then [`Network::hold`] and [`Network::begin_course`] |
//! | go on | [`Optimiser::to_safetensors`] and [`Optimiser::load`] |
//! | apply | [`Network::logits`] and [`Network::probabilities`], from a shared reference, on any thread; [`Network::begin`] for one batch ahead |
//!
//! Examples are [`Input::Pixels`] (bytes with a [`Normalisation`], `[batch, height, width, channels]`) or [`Input::Floats`].
//!
//! ```
//! use network::{Architecture, Batch, Input, LossOptions, Network, Normalisation, Optimiser, OptimiserConfig, Shape};
//!
//! let layers = ["conv 4 3x3 relu", "pool 2", "dense 2"];
//! let architecture = Architecture {
//!     input: Shape::Image { height: 6, width: 6, channels: 1 },
//!     layers: layers.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
//! };
//! println!("{}", architecture.check()?);
//! let mut network = Network::new(&architecture, 7)?;
//! let mut optimiser = Optimiser::new(&OptimiserConfig::default(), &network)?;
//!
//! // One dark and one bright image.
//! let bytes = [vec![20; 36], vec![230; 36]].concat();
//! let normalisation = Normalisation::standard(&[0.5], &[0.25]);
//! let input = Input::Pixels { bytes: &bytes, normalisation: &normalisation };
//! for _ in 0..500 {
//!     network.train_step(Batch { input, labels: &[0, 1] }, &mut optimiser, &LossOptions::default())?;
//! }
//! let probabilities = network.probabilities(input)?;
//! assert!(probabilities[0] > 0.5 && probabilities[3] > 0.5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Determinism
//!
//! A batch is split into fixed parts, each is computed by one thread, and partial sums are added in a fixed order: the same
//! seed and batches give the same bits at any number of threads. Work runs on the current rayon pool; `ThreadPool::install` and
//! `RAYON_NUM_THREADS` bound it. Between kinds of processors bits may differ (vector widths, cache sizes).
//!
//! # Rooms
//!
//! `layer`, `architecture`: the declaration. `plan`: layers become blocks. `conv`, `dense`, `pool`, `batchnorm`, `dropout`, `residual`,
//! `loss`: the operations. `simd`, `amx`: what of the processor they use. `tape`: how they hang on dfdx. `portable`: the same by dfdx's operations alone, for its other devices; `fused`: the same by
//! kernels for GPUs (`kernels/`); `accelerator`, `cuda`,
//! `device`: how a network comes to compute there. `network`, `inference`, `optimiser`, `weights`: what users hold.
#![cfg_attr(test, allow(clippy::needless_range_loop))]

mod accelerator;
mod activation;
mod amx;
mod architecture;
mod batchnorm;
mod conv;
mod conv_op;
mod course;
#[cfg(feature = "cuda")]
mod cuda;
mod dense;
mod device;
mod dropout;
mod error;
mod examples;
#[cfg(feature = "cuda")]
mod fused;
mod inference;
mod init;
mod layer;
mod loss;
mod matmul;
pub mod metrics;
mod muon;
mod network;
mod optimiser;
mod partition;
mod plan;
mod pool;
#[cfg(test)]
mod portable;
mod recycle;
mod residual;
mod scratch;
mod simd;
mod tape;
mod temperature;
mod weights;
mod whiten;

#[cfg(test)]
mod reference;

pub use architecture::{Architecture, ArchitectureError, ArchitectureReport, LayerReport, Problem, Shape};
pub use course::{Set, Sight};
pub use device::{Device, Placement, Precision};
pub use error::NetworkError;
pub use examples::{Input, Normalisation};
pub use inference::Pending;
pub use layer::{Activation, Axes, BatchNormalisation, Convolution, LayerParseError, LayerSpec, Padding, PoolKind, Pooling, Residual};
pub use loss::{LossOptions, StepReport};
pub use network::{Batch, Network, Snapshot};
pub use optimiser::{Optimiser, OptimiserConfig};
pub use simd::peak_flops;
pub use temperature::temperature;
