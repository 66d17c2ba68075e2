//! What dfdx's build script asks for: a compiler, headers, libraries to link and `nvidia-smi`. The first two are found on the system or
//! assembled from wheels; the others are stand-ins, since the program opens its libraries itself and may run on another machine's GPU.

use std::env;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{output, root, run};

/// Libraries that the bindings ask the linker for. `crates/network` defines their functions, so empty archives will do.
const LIBRARIES: [&str; 4] = ["cuda", "nvrtc", "cublas", "cublasLt"];

/// The oldest instruction set that all of dfdx's kernels need: what the driver of CUDA 12.0 and every later one follows.
const PTX_VERSION: &str = "8.0";

/// A toolkit as a build script looks for it.
pub(super) struct Toolkit {
    /// `CUDA_PATH`.
    pub(super) root: PathBuf,
    /// Goes before `PATH`.
    pub(super) programs: PathBuf,
}

impl Toolkit {
    /// The one that is named, one on the system, or one made of wheels; its stand-ins go below `folder`.
    pub(super) fn get(named: Option<&Path>, folder: &Path) -> Result<Self, u8> {
        let (real, where_from) = match named {
            Some(named) if is_toolkit(named) => (named.to_owned(), "as named"),
            Some(named) => {
                eprintln!("{} is no CUDA toolkit: it lacks bin/nvcc or include/cuda.h", named.display());
                return Err(2);
            }
            None => match on_system() {
                Some(found) => (found, "of this system"),
                None => (of_wheels(folder)?, "of wheels"),
            },
        };
        println!("the CUDA toolkit {where_from}: {}", real.display());
        let toolkit = Self { root: folder.join("root"), programs: folder.join("bin") };
        toolkit.set_up(&real).map_err(|error| {
            eprintln!("{}: {error}", folder.display());
            1u8
        })?;
        Ok(toolkit)
    }

    fn set_up(&self, real: &Path) -> std::io::Result<()> {
        let libraries = self.root.join("lib64");
        fs::create_dir_all(&libraries)?;
        fs::create_dir_all(&self.programs)?;
        let include = self.root.join("include");
        let _ = fs::remove_file(&include);
        symlink(real.join("include"), &include)?;
        for name in LIBRARIES {
            // An archive without members.
            write(&libraries.join(format!("lib{name}.a")), "!<arch>\n", 0o644)?;
        }
        // The build script asks the GPU for its capability, and then takes that of CUDA_COMPUTE_CAP.
        write(&self.programs.join("nvidia-smi"), "#!/bin/sh\necho compute_cap\necho 8.0\n", 0o755)?;
        write(&self.programs.join("nvcc"), &compiler(&real.join("bin")), 0o755)
    }
}

/// Writes a file, unless it is as it should be: its time would have everything built anew.
fn write(path: &Path, content: &str, mode: u32) -> std::io::Result<()> {
    if fs::read(path).is_ok_and(|found| found == content.as_bytes()) {
        return Ok(());
    }
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// The compiler, whose code says afterwards that it needs no newer driver than it does: nvcc writes its own version there, and hints that older
/// drivers do not know. Then the assembler, which is part of every driver, has to take it.
fn compiler(programs: &Path) -> String {
    format!(
        r#"#!/bin/sh
"{nvcc}" "$@" || exit
while [ $# -gt 0 ]; do
  case "$1" in
    --output-directory) folder="$2" ;;
    --gpu-architecture=*) capability="${{1##*_}}" ;;
    *.cu) kernel="$1" ;;
  esac
  shift
done
[ -n "$kernel" ] || exit 0
code="$folder/$(basename "$kernel" .cu).ptx"
sed -i -e 's/^\.version .*/.version {PTX_VERSION}/' -e '/\.pragma "used_bytes_mask/d' "$code"
"{ptxas}" --gpu-name "sm_${{capability:-80}}" --output-file /dev/null "$code"
"#,
        nvcc = programs.join("nvcc").display(),
        ptxas = programs.join("ptxas").display()
    )
}

fn is_toolkit(folder: &Path) -> bool {
    folder.join("bin/nvcc").is_file() && folder.join("include/cuda.h").is_file()
}

/// Where `CUDA_PATH` says, in the usual folder, or beside the `nvcc` that is in `PATH`.
fn on_system() -> Option<PathBuf> {
    let named = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let usual = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from);
    let paths = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&paths).filter_map(|folder| folder.parent().map(Path::to_owned)).collect::<Vec<_>>();
    named.chain(usual).chain(in_path).find(|folder| is_toolkit(folder))
}

/// Downloads NVIDIA's wheels, by their digests, and unpacks them; once.
fn of_wheels(folder: &Path) -> Result<PathBuf, u8> {
    let (list, wheels, site) = (root().join("xtask/cuda/wheels.txt"), folder.join("wheels"), folder.join("site"));
    let toolkit = site.join("nvidia/cu13");
    let wanted = fs::read(&list).unwrap_or_default();
    let done = folder.join("wheels.done");
    if is_toolkit(&toolkit) && fs::read(&done).is_ok_and(|made_of| made_of == wanted) {
        return Ok(toolkit);
    }
    println!("no CUDA toolkit is on this system: taking the compiler's wheels (104 MB, once)");
    let failed = |error: std::io::Error| {
        eprintln!("{}: {error}", folder.display());
        1u8
    };
    let _ = fs::remove_dir_all(&site);
    fs::create_dir_all(&wheels).map_err(failed)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest"]).arg(&wheels);
    run(pip.arg("--requirement").arg(&list)).inspect_err(|_| {
        eprintln!(
            "the wheels cannot be had: install a CUDA toolkit and name it with `--toolkit DIR`, or let `python3 -m pip` reach its index"
        );
    })?;
    for wheel in fs::read_dir(&wheels).map_err(failed)?.flatten() {
        output(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel.path()).arg(&site))?;
    }
    for programs in ["bin", "nvvm/bin"].map(|programs| toolkit.join(programs)) {
        for program in fs::read_dir(&programs).map_err(failed)?.flatten() {
            fs::set_permissions(program.path(), fs::Permissions::from_mode(0o755)).map_err(failed)?;
        }
    }
    fs::write(done, wanted).map_err(failed)?;
    Ok(toolkit)
}
