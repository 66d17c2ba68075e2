//! Networks on a GPU, ours and PyTorch's in turns, as `name value unit` lines.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::bench::{AIRBENCH, NETWORKS, value};
use crate::{Done, output, root, run};

/// How PyTorch computes it: as it comes, and as its users make it fast.
const VARIANTS: [&str; 4] = ["eager", "channels_last", "channels_last+compile", "channels_last+compile+bf16"];

/// How ours takes products.
const PRECISIONS: [&str; 3] = ["fp32", "tf32", "bf16"];

/// Training and forward of two networks, and where the time of a training goes; `program` is the example `throughput`, built with CUDA.
/// `EPISTEME_PEER_PYTHON` names a Python with PyTorch.
pub(super) fn networks(program: &Path) -> Done {
    let (name, shape, layers) = NETWORKS[0];
    for (batch, mode) in [("64", "train"), ("1024", "train"), ("64", "forward"), ("1024", "forward")] {
        compare(program, name, (shape, batch, mode), layers)?;
    }
    for mode in ["train", "forward"] {
        compare(program, "airbench", ("32x32x3", "1000", mode), &AIRBENCH)?;
    }
    for (name, batch, layers) in [(name, "1024", layers), ("airbench", "1000", &AIRBENCH[..])] {
        println!("# where the time goes: {name}, training at batch {batch} in bf16");
        let mut profiled = Command::new(program);
        profiled.args(["32x32x3", batch, "train"]).args(layers).env("EPISTEME_DEVICE", "cuda").env("EPISTEME_PRECISION", "bf16");
        run(profiled.env("EPISTEME_GPU_PROFILE", "1"))?;
    }
    Ok(())
}

/// Ours in each precision, and PyTorch in each variant.
fn compare(program: &Path, name: &str, (shape, batch, mode): (&str, &str, &str), layers: &[&str]) -> Done {
    let mut ours: f64 = 0.0;
    for precision in PRECISIONS {
        let mut own = Command::new(program);
        own.args([shape, batch, mode]).args(layers).env("EPISTEME_DEVICE", "cuda").env("EPISTEME_PRECISION", precision);
        let rate = value(&output(&mut own)?);
        println!("episteme_cuda_{precision}_{name}_{mode}_b{batch} {rate:.0} images/s");
        ours = ours.max(rate);
    }
    let mut theirs: f64 = 0.0;
    for variant in VARIANTS {
        let mut peer = Command::new(env::var_os("EPISTEME_PEER_PYTHON").unwrap_or_else(|| "python3".into()));
        peer.arg(root().join("xtask/peers/network.py")).args([shape, batch, mode]).args(layers);
        let Ok(said) = output(peer.env("DEVICE", "cuda").env("VARIANT", variant)) else {
            println!("# PyTorch ({variant}) cannot be had from EPISTEME_PEER_PYTHON");
            continue;
        };
        println!("pytorch_cuda_{variant}_{name}_{mode}_b{batch} {:.0} images/s", value(&said));
        theirs = theirs.max(value(&said));
    }
    if theirs > 0.0 {
        println!("cuda_{name}_{mode}_b{batch}_over_pytorch {:.2} times", ours / theirs);
    }
    Ok(())
}
