//! Compiles the GPU kernels, where they are asked for: with `nvcc`, to PTX for one compute capability, which drivers compile further.
//!
//! `CUDA_PATH` and `CUDA_COMPUTE_CAP` are as dfdx's build script takes them; `cargo xtask cuda build` sets both. With `cuda-check`, a look by the
//! compiler alone, there are no kernels.

use std::{env, error::Error, fs, path::PathBuf, process::Command};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=CUDA_COMPUTE_CAP");
    let (is_cuda, is_check) = (env::var_os("CARGO_FEATURE_CUDA").is_some(), env::var_os("CARGO_FEATURE_CUDA_CHECK").is_some());
    let folder = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    if !is_cuda {
        return Ok(());
    }
    if is_check {
        return Ok(fs::write(folder.join("kernels.ptx"), "")?);
    }
    // Another compiler makes other kernels.
    let programs = env::var_os("PATH").unwrap_or_default();
    if let Some(nvcc) = env::split_paths(&programs).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file()) {
        println!("cargo:rerun-if-changed={}", nvcc.display());
    }
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".into());
    let mut compiler = Command::new("nvcc");
    compiler.args(["--ptx", "--std=c++17", "-O3"]).arg(format!("--gpu-architecture=compute_{capability}"));
    // Last of all, since it is what the stand-in of `cargo xtask cuda` looks for.
    let status = compiler.arg("--output-directory").arg(&folder).arg("kernels/kernels.cu").status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("nvcc could not compile kernels/kernels.cu: {status}").into()),
        Err(error) => Err(format!("nvcc cannot be started ({error}): build with `cargo xtask cuda build`, which brings it").into()),
    }
}
