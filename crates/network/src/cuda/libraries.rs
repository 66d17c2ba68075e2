//! NVIDIA's libraries, opened when they are asked for: a program with CUDA in it starts, and works, where there are none.
//!
//! dfdx's bindings would have them linked when the program is built, and such a program does not start on a machine without a driver. Here
//! each function that they call is a jump to where [`load`] has put its address. So one program runs with CUDA 12 and 13, and without.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    fs,
    path::{Path, PathBuf},
    sync::{
        OnceLock,
        atomic::{AtomicPtr, Ordering},
    },
};

/// Names folders, apart by colons, that are looked through for NVIDIA's libraries before all others.
const FOLDERS: &str = "EPISTEME_CUDA_LIBRARIES";

/// Versions of CUDA whose libraries have all functions, the best first.
const VERSIONS: [u32; 2] = [13, 12];

/// A function of a library and where its address goes.
struct Function {
    name: &'static CStr,
    address: &'static AtomicPtr<c_void>,
}

/// Where functions lead before they are loaded: NVIDIA's libraries have in common that zero is success and small numbers are errors.
extern "C" fn not_loaded() -> c_int {
    3
}

/// Defines functions of these names that jump to an address of their own, and a list of them.
macro_rules! functions {
    ($(#[$doc:meta])* $list:ident: $($name:ident)*) => {
        $(
            #[expect(non_snake_case, reason = "the library's name for it")]
            mod $name {
                use super::*;

                pub(super) static ADDRESS: AtomicPtr<c_void> = AtomicPtr::new(not_loaded as *mut c_void);

                // SAFETY: the name is the library's own. It is called with the library's signature, and leaves registers and stack as they are
                // for the function that it jumps to; before loading, that one takes no arguments and returns an error.
                #[unsafe(no_mangle)]
                #[unsafe(naked)]
                unsafe extern "C" fn $name() {
                    #[cfg(target_arch = "x86_64")]
                    core::arch::naked_asm!("jmp qword ptr [rip + {address}]", address = sym ADDRESS);
                    #[cfg(target_arch = "aarch64")]
                    core::arch::naked_asm!(
                        "adrp x16, {address}",
                        "ldr x16, [x16, :lo12:{address}]",
                        "br x16",
                        address = sym ADDRESS
                    );
                }

                pub(super) const FUNCTION: Function = Function {
                    // The linker takes a definition from here only if something asks for it: this does.
                    name: match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => panic!("a name has one zero, at its end"),
                    },
                    address: &ADDRESS,
                };
            }
        )*
        $(#[$doc])*
        static $list: &[Function] = &[$($name::FUNCTION),*];
    };
}

functions! {
    /// Of the driver, `libcuda`.
    DRIVER:
    cuCtxGetCurrent cuCtxSetCurrent cuDestroyExternalMemory cuDeviceGet cuDeviceGetAttribute cuDeviceGetCount cuDeviceGetName
    cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxRetain cuDeviceTotalMem_v2 cuEventCreate cuEventDestroy_v2 cuEventElapsedTime
    cuEventRecord cuEventSynchronize cuExternalMemoryGetMappedBuffer cuGetErrorName cuGetErrorString cuImportExternalMemory cuInit cuLaunchKernel
    cuMemAllocAsync cuMemAllocHost_v2 cuMemAlloc_v2 cuMemFreeAsync cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemcpyDtoDAsync_v2 cuMemcpyDtoD_v2
    cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 cuMemcpyHtoDAsync_v2 cuMemcpyHtoD_v2 cuMemsetD8Async cuMemsetD8_v2 cuModuleGetFunction
    cuModuleLoad cuModuleLoadData cuModuleUnload cuStreamCreate cuStreamDestroy_v2 cuStreamSynchronize cuStreamWaitEvent
}

functions! {
    /// Of `libcublas`.
    BLAS:
    cublasCreate_v2 cublasDestroy_v2 cublasDgemmStridedBatched cublasDgemm_v2 cublasDgemv_v2 cublasGemmEx cublasGemmStridedBatchedEx
    cublasSetStream_v2 cublasSgemmStridedBatched cublasSgemm_v2 cublasSgemv_v2
}

functions! {
    /// Of the run-time compiler, which dfdx refers to and nothing here uses: they stay as they are.
    #[expect(dead_code, reason = "the linker needs them, nobody calls them")]
    COMPILER:
    nvrtcCompileProgram nvrtcCreateProgram nvrtcDestroyProgram nvrtcGetPTX nvrtcGetPTXSize nvrtcGetProgramLog nvrtcGetProgramLogSize
}

/// Opens the driver and the libraries, once.
pub(super) fn load() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(open_all).clone()
}

fn open_all() -> Result<(), String> {
    let driver = open("libcuda.so.1").map_err(|why| format!("there is no NVIDIA driver ({why})"))?;
    take(driver, "the NVIDIA driver", DRIVER)?;
    let mut failed = Vec::new();
    for version in VERSIONS {
        match open_blas(version) {
            Ok(blas) => return take(blas, "cuBLAS", BLAS),
            Err(why) => failed.push(why),
        }
    }
    Err(format!(
        "there is an NVIDIA driver, but no cuBLAS of CUDA 12 or 13 ({}); install it (with pip, nvidia-cublas has it) and name its folder in {FOLDERS}",
        failed.join("; ")
    ))
}

/// cuBLAS of a version of CUDA: in a folder that was named, where the system looks, or in a usual place.
fn open_blas(version: u32) -> Result<Library, String> {
    let named: Vec<PathBuf> = env::var_os(FOLDERS).iter().flat_map(env::split_paths).collect();
    let within = |folders: Vec<PathBuf>| folders.into_iter().find_map(|folder| open_blas_within(&folder, version));
    match within(named) {
        Some(library) => Ok(library),
        None => open(&format!("libcublas.so.{version}")).or_else(|why| within(usual_folders(version)).ok_or(why)),
    }
}

/// cuBLAS in a folder. It needs `libcublasLt`, which it finds once that is open.
fn open_blas_within(folder: &Path, version: u32) -> Option<Library> {
    let path = |name: &str| folder.join(format!("{name}.so.{version}"));
    let open = |path: PathBuf| open(&path.to_string_lossy());
    let blas = path("libcublas");
    if !blas.is_file() {
        return None;
    }
    // Where it lies elsewhere, cuBLAS has a way of its own to it.
    let _ = open(path("libcublasLt"));
    open(blas).ok()
}

/// Where libraries of a version of CUDA lie besides the system's own places: in a toolkit, or in the wheels of a Python environment.
fn usual_folders(version: u32) -> Vec<PathBuf> {
    let named = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let usual = [format!("/usr/local/cuda-{version}"), "/usr/local/cuda".into(), "/opt/cuda".into()].map(PathBuf::from);
    let mut folders: Vec<PathBuf> = named.chain(usual).map(|toolkit| toolkit.join("lib64")).collect();
    if let Some(environment) = env::var_os("VIRTUAL_ENV").map(PathBuf::from) {
        let pythons = fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
        for packages in pythons.map(|python| python.path().join("site-packages/nvidia")) {
            folders.extend([packages.join(format!("cu{version}/lib")), packages.join("cublas/lib")]);
        }
    }
    folders
}

/// An open library; it stays so as long as the program runs.
#[derive(Clone, Copy)]
struct Library(*mut c_void);

/// Opens a library by its name or path; else the system's word for why not.
fn open(name: &str) -> Result<Library, String> {
    let path = CString::new(name).map_err(|_| format!("{name}: its path has a zero"))?;
    // SAFETY: the path is a string that ends with zero. The libraries that are opened here are NVIDIA's, made to be opened so.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(Library(handle));
    }
    // SAFETY: after a failure it gives a string that ends with zero and lives until the next call in this thread.
    let why: *const c_char = unsafe { libc::dlerror() };
    // SAFETY: as above.
    Err(if why.is_null() { name.to_owned() } else { unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned() })
}

/// Puts the addresses of all functions in their places; a library that lacks one is too old.
fn take(library: Library, what: &str, functions: &[Function]) -> Result<(), String> {
    for function in functions {
        // SAFETY: the handle is that of an open library, the name ends with zero.
        let address = unsafe { libc::dlsym(library.0, function.name.as_ptr()) };
        if address.is_null() {
            return Err(format!("{what} is too old or too new: it has no function {}", function.name.to_string_lossy()));
        }
        function.address.store(address, Ordering::Release);
    }
    Ok(())
}
