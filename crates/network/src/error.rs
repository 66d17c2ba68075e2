//! What can go wrong when a network is built, fed, loaded or updated.

use crate::architecture::ArchitectureError;

/// A network could not be built, fed, trained, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The layers do not fit each other or the input.
    #[error(transparent)]
    Architecture(#[from] ArchitectureError),
    /// A batch does not have the size that the network or the labels ask for.
    #[error("feeding the network: {what}: {found} values were given, {expected} are needed ({why})")]
    Size {
        /// What was given.
        what: &'static str,
        /// How many values it has.
        found: usize,
        /// How many it must have.
        expected: usize,
        /// Where the number comes from.
        why: String,
    },
    /// A label names a class that the network has no logit for.
    #[error("feeding the network: example {example} of the batch has label {label}, but the network has {classes} classes (0 to {})", classes - 1)]
    Label {
        /// The example's place in the batch, from 0.
        example: usize,
        /// Its label.
        label: u32,
        /// Number of logits.
        classes: usize,
    },
    /// An option of the loss or optimiser is out of its range.
    #[error("training the network: {0}")]
    Option(String),
    /// A weights file cannot be read or does not fit the network.
    #[error("reading weights: {0}")]
    Weights(String),
    /// The device could not do its work, or cannot be had.
    #[error("computing on the device: {0}")]
    Device(String),
    /// There is no GPU to compute on.
    #[error("there is no GPU to compute on: {0}. `device = \"auto\"` takes the CPU then, as `device = \"cpu\"` always does")]
    NoDevice(String),
    /// The tensor library refused an operation.
    #[error("computing on the tape: {0}")]
    Tape(String),
}

impl NetworkError {
    /// What a device said, with what to do where that is known.
    pub(crate) fn device(said: String) -> Self {
        let is_full = said.contains("OUT_OF_MEMORY") || said.contains("out of memory");
        let advice =
            if is_full { ". A smaller `batch` needs less memory, and so do its parts one after the other: `accumulate = 2`" } else { "" };
        NetworkError::Device(said + advice)
    }
}

impl From<dfdx::tensor::CpuError> for NetworkError {
    fn from(error: dfdx::tensor::CpuError) -> Self {
        NetworkError::Tape(error.to_string())
    }
}

impl From<safetensors::SafeTensorError> for NetworkError {
    fn from(error: safetensors::SafeTensorError) -> Self {
        NetworkError::Weights(format!("the safetensors data is damaged or not in that format: {error}"))
    }
}
