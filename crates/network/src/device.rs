//! Where a network computes: on this processor, or on a GPU where there is one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    amx::{self, Unit},
    error::NetworkError,
    network::Network,
    plan,
};

/// Where a network computes, as a config says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// On this processor.
    #[default]
    Cpu,
    /// On the first NVIDIA GPU (`CUDA_VISIBLE_DEVICES` chooses another); fails where there is none.
    Cuda,
    /// On a GPU where there is one, else on this processor.
    Auto,
}

impl Device {
    /// Whether it is this processor, as it is unless said otherwise.
    pub fn is_cpu(&self) -> bool {
        *self == Device::Cpu
    }
}

/// How products of `f32` are taken: weights, sums, statistics and the optimiser are `f32` in any case. This processor takes fp32, and, in convolutions
/// with a stride of one, bf16 where it has matrix tiles (AMX).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are.
    #[default]
    Fp32,
    /// Factors rounded to 11 significant bits, a relative error of 2⁻¹² at most, on tensor cores.
    Tf32,
    /// Factors rounded to 8 significant bits, a relative error of 2⁻⁹ at most, on tensor cores or matrix tiles; on a GPU also what flows between layers,
    /// which is half the memory.
    Bf16,
}

impl Precision {
    /// Whether it is the exact one, as it is unless said otherwise.
    pub fn is_fp32(&self) -> bool {
        *self == Precision::Fp32
    }
}

/// Where a network computes in fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// On this processor, and what is to be said of that: why it is no GPU, how it takes products.
    Cpu(Option<String>),
    /// On the GPU of this name.
    Gpu(String),
}

impl Placement {
    /// The GPU's name, where there is one.
    pub fn gpu(&self) -> Option<&str> {
        match self {
            Placement::Gpu(name) => Some(name),
            Placement::Cpu(_) => None,
        }
    }

    /// A line for the log; none where there is nothing to say.
    pub fn note(&self) -> Option<String> {
        match self {
            Placement::Cpu(note) => note.clone(),
            Placement::Gpu(name) => Some(format!("computes on {name}")),
        }
    }
}

impl Network {
    /// Computes there from now on, in that precision as far as it can be had there. What a step learns differs between devices in the last bits.
    ///
    /// # Errors
    ///
    /// If it is [`Device::Cuda`] and no GPU can be had; the message says why, and what to do.
    pub fn place(&mut self, device: Device, precision: Precision) -> Result<Placement, NetworkError> {
        (self.accelerator, self.precision) = (None, precision);
        self.compute_on(None);
        let mut notes = Vec::new();
        if !device.is_cpu() {
            match start(self) {
                Ok(name) => return Ok(Placement::Gpu(name)),
                Err(why) if device == Device::Auto => notes.push(format!("computes on the CPU, since no GPU can be had: {why}")),
                Err(why) => return Err(NetworkError::NoDevice(why)),
            }
        }
        match (precision, amx::tiles()) {
            (Precision::Fp32, _) => {}
            (Precision::Bf16, Some(unit)) => {
                self.compute_on(Some(unit));
                notes.push("multiplies in bf16 on this processor's matrix tiles".into());
            }
            (Precision::Bf16, None) => notes.push("multiplies in fp32, since no matrix tiles (AMX) for bf16 are to be had here".into()),
            (Precision::Tf32, _) => notes.push("multiplies in fp32".into()),
        }
        Ok(Placement::Cpu((!notes.is_empty()).then(|| notes.join("; "))))
    }

    /// Multiplies by this unit from now on where a layer fits it.
    pub(crate) fn compute_on(&mut self, unit: Option<Unit>) {
        plan::set_unit(&mut self.blocks, unit);
        self.unit = unit;
        self.forget_prepared();
    }
}

/// Starts the GPU for a network; its name, or why there is none.
#[cfg(feature = "cuda")]
fn start(network: &mut Network) -> Result<String, String> {
    let (accelerator, name) = crate::cuda::start(network, network.precision)?;
    network.accelerator = Some(accelerator);
    Ok(name)
}

/// See above.
#[cfg(not(feature = "cuda"))]
fn start(_: &mut Network) -> Result<String, String> {
    Err("this program was built without CUDA (`cargo xtask cuda build` builds one with it)".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Architecture, Shape};

    fn network() -> Network {
        let architecture = Architecture { input: Shape::Features(2), layers: vec!["dense 2".parse().unwrap()] };
        Network::new(&architecture, 7).unwrap()
    }

    #[test]
    fn the_cpu_is_what_is_meant_unless_said_otherwise_and_nothing_is_said_of_it() {
        assert!(Device::default().is_cpu());
        assert_eq!(network().place(Device::Cpu, Precision::Fp32).unwrap().note(), None);
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_auto_says_in_a_line_that_it_takes_the_cpu_and_cuda_what_to_do() {
        let placement = network().place(Device::Auto, Precision::Fp32).unwrap();
        assert_eq!(placement.gpu(), None);
        let note = placement.note().unwrap();
        assert!(note.starts_with("computes on the CPU, since no GPU can be had: this program was built without CUDA"), "{note}");
        let error = network().place(Device::Cuda, Precision::Fp32).unwrap_err().to_string();
        assert!(error.contains("cargo xtask cuda build") && !error.contains('\n'), "{error}");
    }
}
