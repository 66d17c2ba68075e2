//! Measurements beside a peer, in the same run. Each prints `name value unit` lines.
//!
//! The peers are scripts that a user would have written instead; `EPISTEME_PEERS` names their folder, and
//! `EPISTEME_PEER_PYTHON` a Python that has what they import. Without them only ours are measured, and that is said.

mod orchestrator;
mod recipes;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::{Done, binary, build, output, root};

/// Runs the benchmark of this name.
pub(super) fn bench(args: &[String]) -> Done {
    build(&["--package", "episteme"])?;
    match args.first().map(String::as_str) {
        Some("learn") => learn(),
        Some("mnist") => mnist(),
        Some("orchestrator") => orchestrator::bench(),
        Some("recipes") => recipes::recipes(&args[1..]),
        _ => {
            eprintln!("cargo xtask bench learn | mnist | orchestrator | recipes [PIPELINE …]");
            Err(2)
        }
    }
}

/// The networks that are timed: a name, the shape of an image, the layers.
pub(super) const NETWORKS: [(&str, &str, &[&str]); 10] = [
    (
        "reference",
        "32x32x3",
        &["conv 32 3x3 relu", "pool 2", "conv 64 3x3 relu", "pool 2", "conv 64 3x3 relu", "dense 64 relu", "dense 10"],
    ),
    ("grey", "28x28x1", &["conv 32 3x3 relu", "pool 2", "conv 64 3x3 relu", "pool 2", "conv 64 3x3 relu", "dense 64 relu", "dense 10"]),
    ("same", "32x32x3", &["conv 32 3x3 same relu", "pool 2", "conv 64 3x3 same relu", "pool 2", "conv 64 3x3 same relu", "dense 10"]),
    ("strides", "32x32x3", &["conv 32 3x3 stride 2 same relu", "conv 64 3x3 stride 2 same relu", "conv 64 3x3 relu", "dense 10"]),
    ("five", "32x32x3", &["conv 32 5x5 relu", "pool 2", "conv 64 5x5 relu", "pool 2", "dense 64 relu", "dense 10"]),
    ("odd", "32x32x3", &["conv 20 3x3 relu", "pool 2", "conv 50 3x3 relu", "pool 2", "conv 75 3x3 relu", "dense 10"]),
    (
        "batchnorm",
        "32x32x3",
        &[
            "conv 32 3x3 same",
            "pool 2",
            "batchnorm gelu",
            "conv 32 3x3 same",
            "batchnorm gelu",
            "conv 64 3x3 same",
            "pool 2",
            "batchnorm gelu",
            "conv 64 3x3 same",
            "batchnorm gelu",
            "conv 128 3x3 same",
            "pool 2",
            "batchnorm gelu",
            "globalpool",
            "dense 10",
        ],
    ),
    (
        "residual",
        "32x32x3",
        &[
            "conv 32 3x3 same relu",
            r#"{"residual": ["conv 32 3x3 same", "batchnorm relu", "conv 32 3x3 same", "batchnorm"], "activation": "relu"}"#,
            r#"{"residual": ["conv 64 3x3 stride 2 same", "batchnorm relu", "conv 64 3x3 same", "batchnorm"], "shortcut": ["conv 64 1x1 stride 2"], "activation": "relu"}"#,
            r#"{"residual": ["conv 128 3x3 stride 2 same", "batchnorm relu", "conv 128 3x3 same", "batchnorm"], "shortcut": ["conv 128 1x1 stride 2"], "activation": "relu"}"#,
            "globalpool",
            "dense 10",
        ],
    ),
    (
        "depthwise",
        "32x32x3",
        &[
            "conv 32 3x3 same relu",
            "depthwise 3x3 same relu",
            "conv 64 1x1 relu",
            "depthwise 3x3 stride 2 same relu",
            "conv 128 1x1 relu",
            "globalpool",
            "dense 10",
        ],
    ),
    (
        "spread",
        "32x32x3",
        &[
            "conv 32 3x3 same relu",
            "pool 2",
            "conv 64 3x3 dilation 2 same relu",
            "conv 64 3x3 groups 4 same relu",
            "globalpool",
            "dense 10",
        ],
    ),
];

/// The network of the record recipe for CIFAR-10 (Jordan 2024, <https://arxiv.org/abs/2404.00498>): its layers, as both sides build them.
pub(super) const AIRBENCH: [&str; 17] = [
    "conv 24 2x2 gelu",
    "conv 64 3x3 same",
    "pool 2",
    "batchnorm gelu",
    "conv 64 3x3 same",
    "batchnorm gelu",
    "conv 256 3x3 same",
    "pool 2",
    "batchnorm gelu",
    "conv 256 3x3 same",
    "batchnorm gelu",
    "conv 256 3x3 same",
    "pool 2",
    "batchnorm gelu",
    "conv 256 3x3 same",
    "batchnorm gelu",
    "dense 10",
];

/// Training and forward speed of several networks beside PyTorch and ONNX Runtime, of the record recipe's also in bf16, and of the reference beside the shared scripts. Ours and
/// the peer's take turns, three times; the median of each is printed, so that a machine that is busy now and then is so for both.
fn learn() -> Done {
    super::run(super::cargo().args(["build", "--release", "--package", "episteme-network", "--example", "throughput"]))?;
    print!("{}", output(&mut throughput("2"))?);
    for (name, shape, layers) in NETWORKS {
        let batches: &[&str] = if name == "reference" { &["1", "64", "256", "1024"] } else { &["64"] };
        compare("fp32", name, (shape, "64", "train"), layers)?;
        batches.iter().try_for_each(|batch| compare("fp32", name, (shape, batch, "forward"), layers))?;
    }
    for precision in ["fp32", "bf16"] {
        for mode in ["train", "forward"] {
            compare(precision, "airbench", ("32x32x3", "1000", mode), &AIRBENCH)?;
        }
    }
    for threads in ["1", "2"] {
        let (_, shape, layers) = NETWORKS[0];
        let said = output(throughput(threads).args([shape, "64", "train"]).args(layers))?;
        print!("threads_{threads} {said}");
    }
    for script in [&["keras_cnn.py"][..], &["torch_cnn.py", "eager"], &["torch_cnn.py", "compile"]] {
        let Some(mut command) = peer(script[0]) else { continue };
        print!("{}", output(command.args(&script[1..]))?);
    }
    Ok(())
}

fn throughput(threads: &str) -> Command {
    let mut command = Command::new(binary("examples/throughput"));
    command.env("RAYON_NUM_THREADS", threads);
    command
}

/// One network at one batch size: ours and the peer's in turns. The peer of a forward pass in bf16 is PyTorch, since ONNX Runtime has none here.
fn compare(precision: &str, name: &str, (shape, batch, mode): (&str, &str, &str), layers: &[&str]) -> Done {
    let (is_fp32, mut ours, mut theirs) = (precision == "fp32", Vec::new(), Vec::new());
    for _ in 0..3 {
        let mut own = throughput("2");
        own.args([shape, batch, mode]).args(layers).env("EPISTEME_PRECISION", precision);
        ours.push(value(&output(&mut own)?));
        let mut peer = Command::new(env::var_os("EPISTEME_PEER_PYTHON").unwrap_or_else(|| "python3".into()));
        peer.arg(root().join("xtask/peers/network.py")).args([shape, batch, mode]).args(layers).env("T", "2");
        peer.env("VARIANT", if is_fp32 { "channels_last" } else { "channels_last+bf16" });
        theirs.extend(output(&mut peer).ok().map(|said| value(&said)));
    }
    let middle = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let ours = middle(&mut ours).unwrap_or_default();
    let case = if is_fp32 { format!("{name}_{mode}_b{batch}") } else { format!("{name}_{precision}_{mode}_b{batch}") };
    println!("episteme_{case} {ours:.0} images/s");
    let peer = if mode == "forward" && is_fp32 { "ort" } else { "pytorch" };
    match middle(&mut theirs) {
        Some(theirs) => {
            println!("{peer}_{case} {theirs:.0} images/s");
            println!("{case}_over_{peer} {:.2} times", ours / theirs);
        }
        None => println!("# {peer} is not to be had in EPISTEME_PEER_PYTHON: only ours is measured"),
    }
    Ok(())
}

/// The number of a `name value unit` line.
pub(super) fn value(said: &str) -> f64 {
    said.lines().last().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or_default()
}

/// Raw IDX files to predictions: the whole job, wall clock, and the same as a Keras user writes it. `EPISTEME_MIRROR` has the data.
fn mnist() -> Done {
    let Some(mirror) = env::var_os("EPISTEME_MIRROR").map(PathBuf::from) else {
        eprintln!("EPISTEME_MIRROR must name a folder that has mnist/train-images-idx3-ubyte.gz and the other three");
        return Err(2);
    };
    let store = scratch("mnist")?;
    let (seconds, said) = timed(episteme(&store).args(["run", "pipelines/mnist.toml", "--json"]))?;
    println!("episteme_mnist_total {seconds:.2} s");
    println!("episteme_mnist_accuracy {:.2} percent", 100.0 * field(&said, "\"test.accuracy\":").unwrap_or_default());
    if let Some(mut peer) = peer("mnist_keras.py") {
        let keras = output(peer.arg(mirror.join("mnist")).env("EPOCHS", "5"))?;
        print!("{keras}");
        if let Some(total) = keras.lines().find_map(|line| line.strip_prefix("keras_mnist_total ")?.split(' ').next()?.parse::<f64>().ok())
        {
            println!("mnist_keras_over_episteme {:.2} times", total / seconds);
        }
    }
    remove(&store)
}

fn episteme(store: &Path) -> Command {
    let mut command = Command::new(binary("episteme"));
    command.current_dir(root()).env("EPISTEME_STORE", store);
    command
}

/// A peer's script, if it is to be had.
fn peer(script: &str) -> Option<Command> {
    let path = env::var_os("EPISTEME_PEERS").map(|folder| PathBuf::from(folder).join(script)).filter(|path| path.is_file());
    let Some(path) = path else {
        println!("# {script} is not in a folder named by EPISTEME_PEERS: only ours is measured");
        return None;
    };
    let mut command = Command::new(env::var_os("EPISTEME_PEER_PYTHON").unwrap_or_else(|| "python3".into()));
    command.arg(path);
    Some(command)
}

fn timed(command: &mut Command) -> Result<(f64, String), u8> {
    let clock = Instant::now();
    let said = output(command)?;
    Ok((clock.elapsed().as_secs_f64(), said))
}

/// The median of eleven.
fn median(mut measure: impl FnMut() -> Result<f64, u8>) -> Result<f64, u8> {
    let mut all = (0..11).map(|_| measure()).collect::<Result<Vec<_>, _>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all[5])
}

/// The number after the last `key` in JSON; enough for our own last line, without a parser.
fn field(json: &str, key: &str) -> Option<f64> {
    number(&json[json.rfind(key)? + key.len()..])
}

/// The number that JSON begins with.
fn number(json: &str) -> Option<f64> {
    json.split([',', '}']).next()?.trim().parse().ok()
}

fn scratch(name: &str) -> Result<PathBuf, u8> {
    let folder = env::temp_dir().join(format!("episteme-bench-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| {
        eprintln!("{}: {error}", folder.display());
        1
    })?;
    Ok(folder)
}

fn remove(folder: &Path) -> Done {
    fs::remove_dir_all(folder).map_err(|error| {
        eprintln!("{}: {error}", folder.display());
        1
    })
}
