//! A driver and cuBLAS without a GPU, for tests: `xtask/cuda/emulator.cpp` with dfdx's kernels and ours, compiled for the processor.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{cargo, output, root, run};

/// What its one library stands in for.
const DRIVER: &str = "libcuda.so.1";
const BLAS: &str = "libcublas.so.13";

/// Builds the libraries below this folder; the folder that they lie in.
pub(super) fn build(folder: &Path) -> Result<PathBuf, u8> {
    let (emulator, dfdx) = (folder.join("emulator"), dfdx()?);
    let kernels = emulator.join("kernels");
    let failed = |error: std::io::Error| {
        eprintln!("{}: {error}", emulator.display());
        1
    };
    fs::create_dir_all(&kernels).map_err(failed)?;
    for operation in fs::read_dir(dfdx.join("src/tensor_ops")).map_err(failed)?.flatten().filter(|entry| entry.path().is_dir()) {
        copy_kernels(&operation.path(), &kernels).map_err(failed)?;
    }
    copy_kernels(&root().join("crates/network/kernels"), &kernels).map_err(failed)?;
    let mut compiler = Command::new("c++");
    // Memory is looked at as what it holds at the time; a product and a sum are rounded by themselves where a kernel does not say `fmaf`.
    compiler.args(["-std=c++17", "-O2", "-w", "-fno-strict-aliasing", "-ffp-contract=off"]);
    compiler.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-I"]).arg(&kernels);
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        compiler.arg("-mfma");
    }
    run(compiler.arg(root().join("xtask/cuda/emulator.cpp")).arg("-o").arg(emulator.join(DRIVER)))?;
    let blas = emulator.join(BLAS);
    let _ = fs::remove_file(&blas);
    symlink(DRIVER, blas).map_err(failed)?;
    Ok(emulator)
}

/// Kernels and their headers, as C++ takes them: what they define twice is theirs alone, and half precision comes from the emulator.
fn copy_kernels(folder: &Path, kernels: &Path) -> std::io::Result<()> {
    for file in fs::read_dir(folder)?.flatten() {
        if file.path().extension().is_some_and(|ending| ending == "cu" || ending == "cuh") {
            let text = fs::read_to_string(file.path())?.replace("extern \"C\" ", "").replace("#include \"cuda_fp16.h\"", "");
            fs::write(kernels.join(file.file_name()), text)?;
        }
    }
    Ok(())
}

/// Where cargo has dfdx's sources.
fn dfdx() -> Result<PathBuf, u8> {
    let metadata = output(cargo().args(["metadata", "--format-version", "1"]))?;
    let path = metadata.split("\"manifest_path\":\"").find_map(|rest| {
        let path = Path::new(rest.split('"').next()?);
        path.parent().filter(|folder| folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("dfdx-0.")))
    });
    path.map(Path::to_owned).ok_or_else(|| {
        eprintln!("cargo metadata does not say where dfdx lies");
        1
    })
}
