//! `cargo xtask cuda VERB`: episteme for NVIDIA GPUs, built and checked on any machine, tested where there is one.

mod bench;
mod emulator;
mod toolkit;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use self::toolkit::Toolkit;
use super::{Done, cargo, output, run, target};

/// The GPUs that code is made for unless said otherwise: NVIDIA's drivers compile it further for every later one (A100, H100, B200).
const COMPUTE_CAPABILITY: &str = "80";

/// The libraries that the program opens when it is asked for a GPU, by version of CUDA the best first.
const LIBRARIES: [&[&str]; 3] = [&["libcuda.so.1"], &["libcublasLt.so.13", "libcublasLt.so.12"], &["libcublas.so.13", "libcublas.so.12"]];

/// Does what `cargo xtask cuda …` asks for.
pub(super) fn cuda(args: &[String]) -> Done {
    let options = Options::parse(args.get(1..).unwrap_or_default())?;
    match args.first().map(String::as_str) {
        Some("build") => build(&options),
        Some("test") => test(&options),
        Some("bench") => measure(&options),
        _ => {
            eprintln!("cargo xtask cuda build | test [--emulated] | bench [--compute-capability N] [--toolkit DIR]");
            Err(2)
        }
    }
}

/// Clippy on the CUDA code, and its tests on an emulated GPU, with neither toolkit nor GPU: dfdx's `ci-check` leaves out what needs them. Of what
/// other builds have made, only the crates that differ are compiled for it.
pub(super) fn check() -> Done {
    let features = ["--package", "episteme-network", "--features", "cuda-check", "--all-targets"];
    run(cargo().args(["clippy", "--release"]).args(features).args(["--", "-D", "warnings"]))?;
    emulated()
}

struct Options {
    compute_capability: String,
    toolkit: Option<PathBuf>,
    /// Whether tests are to do without a GPU.
    is_emulated: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, u8> {
        let (flags, pairs): (Vec<&String>, Vec<&String>) = args.iter().partition(|arg| *arg == "--emulated");
        let mut options = Self { compute_capability: COMPUTE_CAPABILITY.into(), toolkit: None, is_emulated: !flags.is_empty() };
        for pair in pairs.chunks(2) {
            match pair {
                [key, value] if *key == "--compute-capability" && value.replace('.', "").parse::<u32>().is_ok() => {
                    options.compute_capability = value.replace('.', "");
                }
                [key, value] if *key == "--toolkit" => options.toolkit = Some(value.into()),
                _ => {
                    let said: Vec<&str> = pair.iter().map(|word| word.as_str()).collect();
                    eprintln!("`{}` is not understood: --compute-capability 80 (or 9.0), --toolkit DIR, --emulated", said.join(" "));
                    return Err(2);
                }
            }
        }
        Ok(options)
    }
}

/// Builds `target/cuda/release/episteme` and says what it needs where it will run.
fn build(options: &Options) -> Done {
    let toolkit = Toolkit::get(options.toolkit.as_deref(), &folder())?;
    let arguments = ["build", "--release", "--package", "episteme", "--bin", "episteme", "--features", "cuda"];
    run(with(&toolkit, options).args(arguments))?;
    report(&folder().join("release/episteme"), options)
}

/// What is tested on a GPU, by package and name, and as which device: the network by dfdx's operations, then by our kernels in each precision;
/// and trainings from end to end.
const TESTS: [(&str, &str, &str); 5] = [
    ("episteme-network", "reference::portable", "cuda"),
    ("episteme-network", "reference::portable", "fp32"),
    ("episteme-network", "reference::portable", "tf32"),
    ("episteme-network", "reference::portable", "bf16"),
    ("episteme-learn", "a_gpu_learns", "cuda"),
];

/// Runs the tests on this machine's GPU; or on an emulated one, which shows that the program asks a GPU for the right things, and that its
/// kernels come to the right numbers, and nothing of its speed.
fn test(options: &Options) -> Done {
    if options.is_emulated {
        return emulated();
    }
    if !has_gpu() {
        eprintln!(
            "there is no NVIDIA GPU here (no driver is loaded): `cargo xtask cuda test --emulated` does without one, as `cargo xtask ci` does"
        );
        return Err(1);
    }
    let toolkit = Toolkit::get(options.toolkit.as_deref(), &folder())?;
    TESTS.iter().try_for_each(|test| run(&mut one_test(with(&toolkit, options), test, &[])))
}

fn emulated() -> Done {
    let emulator = emulator::build(&folder())?;
    TESTS.iter().try_for_each(|test| {
        let mut command = one_test(cargo(), test, &["--features", "episteme-network/cuda-check"]);
        run(command.env("LD_LIBRARY_PATH", &emulator).env("EPISTEME_CUDA_LIBRARIES", &emulator))
    })
}

fn one_test(mut cargo: Command, (package, tests, device): &(&str, &str, &str), more: &[&str]) -> Command {
    println!("{package}: {tests} ({device})");
    let packages = ["--package", "episteme-network", "--package", "episteme-learn"];
    cargo.args(["test", "--release"]).args(packages).args(["--features", "episteme-learn/cuda"]).args(more);
    cargo.args([tests, "--", "--include-ignored"]).env("EPISTEME_TEST_DEVICE", device);
    cargo
}

/// The speed of networks on this machine's GPU, beside PyTorch's.
fn measure(options: &Options) -> Done {
    if !has_gpu() {
        eprintln!("there is no NVIDIA GPU here (no driver is loaded): there is nothing to measure");
        return Err(1);
    }
    let toolkit = Toolkit::get(options.toolkit.as_deref(), &folder())?;
    let example = ["build", "--release", "--package", "episteme-network", "--example", "throughput", "--features", "cuda"];
    run(with(&toolkit, options).args(example))?;
    bench::networks(&folder().join("release/examples/throughput"))
}

/// Whether a driver is loaded; the second is that of Windows' subsystem.
fn has_gpu() -> bool {
    ["/proc/driver/nvidia/version", "/dev/dxg"].iter().any(|path| Path::new(path).exists())
}

/// A cargo that finds the toolkit. What is built goes into a folder of its own; what lies between is shared with the build without CUDA, so
/// that only those crates are compiled that differ.
fn with(toolkit: &Toolkit, options: &Options) -> Command {
    let mut cargo = cargo();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths([toolkit.programs.clone()].into_iter().chain(env::split_paths(&path))).unwrap_or(path);
    cargo.env("CUDA_PATH", &toolkit.root).env("PATH", path).env("CUDA_COMPUTE_CAP", &options.compute_capability);
    cargo.env("CARGO_TARGET_DIR", folder()).env("CARGO_BUILD_BUILD_DIR", shared());
    cargo
}

fn folder() -> PathBuf {
    shared().join("cuda")
}

/// Where the build without CUDA is, as cargo itself spells it: another spelling would be another build.
fn shared() -> PathBuf {
    target().canonicalize().unwrap_or_else(|_| target())
}

/// What the program needs: at its start, and when a GPU is asked for.
fn report(program: &Path, options: &Options) -> Done {
    let linked = output(Command::new("ldd").arg(program))?;
    let linked: Vec<&str> = linked.lines().filter_map(|line| line.split_whitespace().next()).collect();
    println!("{} (for compute capability {} and above)", program.display(), options.compute_capability);
    println!("loaded at its start, as without CUDA: {}", linked.join(" "));
    let known = output(Command::new("/sbin/ldconfig").arg("-p")).unwrap_or_default();
    println!("opened when a stage says `device = \"cuda\"` or \"auto\":");
    for library in LIBRARIES {
        let here =
            if library.iter().any(|name| known.contains(name)) { "the system has it" } else { "the system's folders do not have it" };
        println!("  {:40} {here}", library.join(" or "));
    }
    println!("looked for in $EPISTEME_CUDA_LIBRARIES, the system's folders, a CUDA toolkit, and $VIRTUAL_ENV's wheels; see docs/cuda.md");
    Ok(())
}
