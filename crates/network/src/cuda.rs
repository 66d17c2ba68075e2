//! A network on an NVIDIA GPU, on dfdx's `Cuda`: by the kernels of `fused`; in tests also by dfdx's operations, which those are held against.

mod libraries;

use std::ffi::{CStr, c_int};

use cudarc::driver::{result, sys};

use crate::{accelerator::Accelerator, device::Precision, fused::Fused, network::Network};

/// The first GPU at work for a network, and its name; or why there is none.
pub(crate) fn start(network: &Network, precision: Precision) -> Result<(Accelerator, String), String> {
    let name = find()?;
    let (blocks, input) = (network.blocks.clone(), network.architecture().input);
    let accelerator = Accelerator::start(move || Fused::new(&blocks, input, precision));
    Ok((accelerator.map_err(|error| format!("{name} cannot be used: {error}"))?, name))
}

/// The same by dfdx's operations.
#[cfg(test)]
pub(crate) fn start_portable(network: &Network) -> Result<Accelerator, String> {
    use crate::error::NetworkError;
    use crate::portable::Portable;
    use dfdx::tensor::{Cache, Cuda};
    find()?;
    let (blocks, input) = (network.blocks.clone(), network.architecture().input);
    let make = move || {
        let device = Cuda::try_build(0, 0).map_err(|error| NetworkError::device(error.to_string()))?;
        // A step takes and frees the same buffers again and again.
        device.try_enable_cache().map_err(|error| NetworkError::device(error.to_string()))?;
        Portable::new(&blocks, input, device)
    };
    Accelerator::start(make).map_err(|error| error.to_string())
}

/// Opens NVIDIA's libraries and looks for a GPU; its name.
fn find() -> Result<String, String> {
    libraries::load()?;
    first_gpu()
}

/// The name of the GPU that the driver puts first.
fn first_gpu() -> Result<String, String> {
    let said = |doing: &str| {
        let doing = doing.to_owned();
        move |error: result::DriverError| format!("the NVIDIA driver is there, but {doing}: {error:?}")
    };
    result::init().map_err(said("cannot be started"))?;
    let count = result::device::get_count().map_err(said("cannot count its GPUs"))?;
    if count < 1 {
        return Err("the NVIDIA driver is there, but has no GPU (look at CUDA_VISIBLE_DEVICES)".into());
    }
    let device = result::device::get(0).map_err(said("does not give its first GPU"))?;
    let mut name = [0; 256];
    // SAFETY: the driver writes at most so many bytes there, the last of which is zero.
    unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device) }
        .result()
        .map_err(said("does not name its first GPU"))?;
    // SAFETY: as above; the array is zero where nothing was written.
    Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
}
