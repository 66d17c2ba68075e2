//! `cargo xtask VERB`: what the project does with itself. No dependencies, so that it builds in a second.

mod bench;
mod cuda;
mod faults;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "cargo xtask VERB

  pipeline VERB …   builds episteme (release) and hands it VERB and all that follows:
                      cargo xtask pipeline run
                      cargo xtask pipeline run pipelines/mnist.toml --mirror DIR
                      cargo xtask pipeline --help
  test [ARGS]       builds all binaries and runs all tests; ARGS go to `cargo test`
  ci                what must hold of every commit: fmt, clippy (of the CUDA code too), docs, current reference, tests
  docs              writes docs/pipeline-reference.md anew from the config types
  cuda build        builds target/cuda/release/episteme for NVIDIA GPUs, on any machine; it runs without a GPU too
  cuda test         tests it on this machine's GPU; with --emulated, without one
  cuda bench        measures networks on this machine's GPU, beside PyTorch
                      all take --compute-capability 80 and --toolkit DIR; see docs/cuda.md
  faults [OPTIONS]  kills, crowds and breaks disks at full length, half an hour; --kills, --crowds, --disk, --seed N
  bench NAME        measures and prints `name value unit` lines: learn, mnist, orchestrator, recipes
";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    let done = match args.first().map(String::as_str) {
        Some("pipeline") => pipeline(rest),
        Some("test") => test(rest),
        Some("ci") => ci(),
        Some("docs") => docs(),
        Some("cuda") => cuda::cuda(rest),
        Some("faults") => faults::faults(rest),
        Some("bench") => bench::bench(rest),
        Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        _ => {
            eprint!("{HELP}");
            Err(2)
        }
    };
    done.map_or_else(ExitCode::from, |()| ExitCode::SUCCESS)
}

/// The exit code of what failed.
type Done = Result<(), u8>;

/// Builds what is needed and becomes `episteme`.
fn pipeline(args: &[String]) -> Done {
    build(&["--package", "episteme"])?;
    run(Command::new(binary("episteme")).args(args))
}

/// Builds the binaries, which the end-to-end tests drive, and runs all tests.
fn test(args: &[String]) -> Done {
    build(&["--workspace", "--bins"])?;
    run(cargo().args(["test", "--release", "--workspace"]).args(args))
}

fn ci() -> Done {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    test(&[])?;
    run(cargo().args(["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    cuda::check()?;
    run(cargo().args(["doc", "--release", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    let current = std::fs::read_to_string(root().join(REFERENCE)).unwrap_or_default();
    if current != reference()? {
        eprintln!("{REFERENCE} is not what the config types say: run `cargo xtask docs`");
        return Err(1);
    }
    Ok(())
}

const REFERENCE: &str = "docs/pipeline-reference.md";

fn docs() -> Done {
    std::fs::write(root().join(REFERENCE), reference()?).map_err(|error| {
        eprintln!("{REFERENCE}: {error}");
        1
    })
}

/// The reference as the config types have it now.
fn reference() -> Result<String, u8> {
    build(&["--package", "episteme"])?;
    output(Command::new(binary("episteme")).args(["stages", "--markdown"]))
}

fn build(what: &[&str]) -> Done {
    // Quiet when there is nothing to do; the first build takes minutes, and says what it is at.
    run(cargo().args(["build", "--release"]).args(what))
}

/// The cargo that runs this, in the workspace's folder unless told otherwise.
fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    // `cargo run` tells this program of its own package; build scripts that watch these would run anew (ring: half a minute).
    for (name, _) in env::vars()
        .filter(|(name, _)| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"].iter().any(|ours| name.starts_with(ours)))
    {
        cargo.env_remove(name);
    }
    cargo
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Where cargo builds.
fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn binary(name: &str) -> PathBuf {
    target().join("release").join(name)
}

fn run(command: &mut Command) -> Done {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        // A signal has no code: 130 is what a shell says of Ctrl-C.
        Ok(status) => Err(status.code().map_or(130, |code| code as u8)),
        Err(error) => {
            eprintln!("{}: {error}", command.get_program().to_string_lossy());
            Err(1)
        }
    }
}

fn output(command: &mut Command) -> Result<String, u8> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            eprintln!("{}", String::from_utf8_lossy(&output.stderr));
            Err(1)
        }
        Err(error) => {
            eprintln!("{}: {error}", command.get_program().to_string_lossy());
            Err(1)
        }
    }
}
