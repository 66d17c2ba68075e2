//! The reference network on a GPU, ours and PyTorch's in turns, as `name value unit` lines.

use std::env;
use std::path::Path;
use std::process::Command;

use crate::bench::{NETWORKS, value};
use crate::{Done, output, root};

/// How PyTorch computes it: as it comes, and as its users make it fast.
const VARIANTS: [&str; 4] = ["eager", "channels_last", "channels_last+compile", "channels_last+compile+bf16"];

/// Training and forward at two batch sizes; `program` is the example `throughput`, built with CUDA. `EPISTEME_PEER_PYTHON` names a Python with
/// PyTorch.
pub(super) fn reference(program: &Path) -> Done {
    let (name, shape, layers) = NETWORKS[0];
    for (batch, mode) in [("64", "train"), ("1024", "train"), ("64", "forward"), ("1024", "forward")] {
        let ours = value(&output(Command::new(program).args([shape, batch, mode]).args(layers).env("EPISTEME_DEVICE", "cuda"))?);
        println!("episteme_cuda_{name}_{mode}_b{batch} {ours:.0} images/s");
        let mut best: f64 = 0.0;
        for variant in VARIANTS {
            let mut peer = Command::new(env::var_os("EPISTEME_PEER_PYTHON").unwrap_or_else(|| "python3".into()));
            peer.arg(root().join("xtask/peers/network.py")).args([shape, batch, mode]).args(layers);
            let Ok(said) = output(peer.env("DEVICE", "cuda").env("VARIANT", variant)) else {
                println!("# PyTorch ({variant}) cannot be had from EPISTEME_PEER_PYTHON");
                continue;
            };
            println!("pytorch_cuda_{variant}_{name}_{mode}_b{batch} {:.0} images/s", value(&said));
            best = best.max(value(&said));
        }
        if best > 0.0 {
            println!("cuda_{name}_{mode}_b{batch}_over_pytorch {:.2} times", ours / best);
        }
    }
    Ok(())
}
