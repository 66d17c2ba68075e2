//! Measurements beside a peer, in the same run. Each prints `name value unit` lines.
//!
//! The peers are scripts that a user would have written instead; `EPISTEME_PEERS` names their folder, and
//! `EPISTEME_PEER_PYTHON` a Python that has what they import. Without them only ours are measured, and that is said.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::{Done, binary, build, output, root};

/// Runs the benchmark of this name.
pub(super) fn bench(args: &[String]) -> Done {
    build(&["--package", "episteme-orchestrator"])?;
    match args.first().map(String::as_str) {
        Some("mnist") => mnist(),
        Some("orchestrator") => orchestrator(),
        _ => {
            eprintln!("cargo xtask bench mnist | orchestrator");
            Err(2)
        }
    }
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

/// What the orchestrator costs: a first run of the small job, a run with nothing to do, the version.
fn orchestrator() -> Done {
    let store = scratch("orchestrator")?;
    let run = || -> Command {
        let mut command = episteme(&store);
        command.args(["run", "pipelines/digits.toml", "--quiet"]);
        command
    };
    println!("episteme_digits_first {:.2} s", timed(&mut run())?.0);
    println!("episteme_digits_noop {:.1} ms", 1000.0 * median(|| Ok(timed(&mut run())?.0))?);
    println!("episteme_version {:.1} ms", 1000.0 * median(|| Ok(timed(episteme(&store).arg("--version"))?.0))?);
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
    let rest = &json[json.rfind(key)? + key.len()..];
    rest.split([',', '}']).next()?.trim().parse().ok()
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
