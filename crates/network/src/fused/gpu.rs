//! A GPU's memory and kernels, as the engine uses them. All work is in the one stream that dfdx uses, too, so it happens in program order.

use std::{
    any::Any,
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    ffi::{CString, c_void},
    rc::Rc,
    sync::Arc,
};

use cudarc::{
    cublas::{CudaBlas, Gemm, GemmConfig, sys::cublasOperation_t as Operation},
    driver::{
        CudaDevice, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DeviceSlice, DriverError,
        result::{event, launch_kernel, memcpy_dtoh_async, memcpy_htod_async, module, stream},
        sys::{CUevent, CUevent_flags, CUfunction, CUmodule, cuEventSynchronize, cuMemAllocHost_v2, cuMemFreeHost},
    },
};
use dfdx::tensor::{Cuda, Gradients, Tensor, ZerosTensor};

use super::profile::Profile;
use crate::error::NetworkError;

/// Set, it has kernels timed, one by one, and the times told at the end: `EPISTEME_GPU_PROFILE=1`.
const PROFILE: &str = "EPISTEME_GPU_PROFILE";

/// `kernels/kernels.cu`, compiled by the build script.
const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// The kernels as a GPU has them.
struct Kernels {
    module: CUmodule,
    /// As far as they were asked for.
    functions: RefCell<HashMap<&'static str, CUfunction>>,
}

impl Kernels {
    fn load() -> Result<Self, NetworkError> {
        let text = CString::new(KERNELS).map_err(|error| NetworkError::device(error.to_string()))?;
        // SAFETY: the text ends with a zero, and the driver copies what it needs of it.
        let module = unsafe { module::load_data(text.as_ptr().cast()) }.map_err(said)?;
        Ok(Kernels { module, functions: RefCell::default() })
    }

    fn get(&self, name: &'static str) -> Result<CUfunction, NetworkError> {
        if let Some(function) = self.functions.borrow().get(name) {
            return Ok(*function);
        }
        let text = CString::new(name).map_err(|error| NetworkError::device(error.to_string()))?;
        // SAFETY: the module is loaded.
        let function = unsafe { module::get_function(self.module, text) };
        let function = function.map_err(|error| NetworkError::device(format!("the kernel `{name}`: {error:?}")))?;
        self.functions.borrow_mut().insert(name, function);
        Ok(function)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // SAFETY: nobody has its functions any more. What goes wrong here, nobody could mend.
        let _ = unsafe { module::unload(self.module) };
    }
}

/// The device that dfdx computes on, of which it shows its users as much as the memory of a gradient.
fn device_of_dfdx() -> Result<Arc<CudaDevice>, NetworkError> {
    let refused = |error: <Cuda as dfdx::tensor::HasErr>::Err| NetworkError::device(error.to_string());
    let cuda = Cuda::try_build(0, 0).map_err(|error| NetworkError::device(error.to_string()))?;
    let tensor: Tensor<(usize,), f32, Cuda> = cuda.try_zeros_like(&(1,)).map_err(refused)?;
    let mut gradients = Gradients::leaky();
    Ok(gradients.get_or_alloc_mut(&tensor).map_err(refused)?.device())
}

/// Memory is taken in multiples of this many bytes, so that what one step gives back fits the next.
const PIECE: usize = 512;

/// Threads of a block of an elementwise kernel, and the most blocks.
const THREADS: u32 = 256;
const BLOCKS: usize = 4096;

/// Memory that was given back, by its size.
type Free = RefCell<BTreeMap<usize, Vec<CudaSlice<u8>>>>;

/// A place in the GPU's memory, as kernels take it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Pointer(u64);

impl Pointer {
    pub(super) const NULL: Pointer = Pointer(0);

    /// So many bytes further on.
    pub(super) fn after(self, bytes: usize) -> Self {
        Pointer(self.0 + bytes as u64)
    }
}

/// Some memory of the GPU; it goes back to its owner, to be taken again, when this is dropped.
pub(super) struct Buffer {
    slice: Option<CudaSlice<u8>>,
    free: Rc<Free>,
}

impl Buffer {
    pub(super) fn pointer(&self) -> Pointer {
        Pointer(self.slice.as_ref().map_or(0, |slice| *slice.device_ptr()))
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(slice) = self.slice.take() {
            self.free.borrow_mut().entry(slice.len()).or_default().push(slice);
        }
    }
}

/// A GPU with the kernels on it.
pub(super) struct Gpu {
    kernels: Kernels,
    free: Rc<Free>,
    /// Takes examples to the GPU beside its work.
    copies: CudaStream,
    /// Memory that only it writes, so that nobody has to wait for anybody: it is given back when what reads it is done.
    aside: Rc<Free>,
    /// Memory of this machine that the GPU writes by itself, as far as nobody waits for it.
    pinned: RefCell<Vec<Pinned>>,
    /// Where the time goes, if that is asked for.
    profile: Option<Profile>,
    /// Made when first asked for.
    blas: RefCell<Option<Rc<CudaBlas>>>,
    /// Last, so that all else goes before it.
    device: Arc<CudaDevice>,
}

/// A kernel's argument where it lies.
pub(super) fn argument<T: Copy>(value: &T) -> *mut c_void {
    std::ptr::from_ref(value).cast_mut().cast()
}

/// Launches a kernel on `blocks` × `threads`, with arguments of the very types that it declares.
macro_rules! launch {
    ($gpu:expr, $kernel:expr, $blocks:expr, $threads:expr, $($value:expr),+ $(,)?) => {
        // SAFETY: each kernel is launched in one place, with the types and sizes that it declares; the emulated GPU runs every one of them.
        unsafe { $gpu.launch($kernel, $blocks, $threads, &mut [$($crate::fused::gpu::argument(&$value)),+]) }
    };
}

/// Launches an elementwise kernel over so many values; the last argument is their number.
macro_rules! launch_each {
    ($gpu:expr, $kernel:expr, $length:expr, $($value:expr),+ $(,)?) => {{
        let (blocks, threads) = $crate::fused::gpu::Gpu::each($length);
        $crate::fused::gpu::launch!($gpu, $kernel, blocks, threads, $($value),+)
    }};
}

/// The name of a kernel for what lies in memory in that precision.
macro_rules! in_memory {
    ($precision:expr, $kernel:literal) => {
        match $precision {
            $crate::Precision::Fp32 | $crate::Precision::Tf32 => concat!($kernel, "_fp32"),
            $crate::Precision::Bf16 => concat!($kernel, "_bf16"),
        }
    };
}

/// The name of a kernel that takes products in that precision.
macro_rules! in_precision {
    ($precision:expr, $kernel:literal) => {
        match $precision {
            $crate::Precision::Fp32 => concat!($kernel, "_fp32"),
            $crate::Precision::Tf32 => concat!($kernel, "_tf32"),
            $crate::Precision::Bf16 => concat!($kernel, "_bf16"),
        }
    };
}
pub(super) use {in_memory, in_precision, launch, launch_each};

impl Gpu {
    /// The first GPU, with the kernels loaded.
    pub(super) fn new() -> Result<Self, NetworkError> {
        let device = device_of_dfdx()?;
        let copies = device.fork_default_stream().map_err(said)?;
        let (free, aside, pinned, blas) = (Rc::default(), Rc::default(), RefCell::default(), RefCell::default());
        let profile = std::env::var_os(PROFILE).map(|_| Profile::default());
        Ok(Gpu { kernels: Kernels::load()?, free, copies, aside, pinned, profile, blas, device })
    }

    /// Blocks and threads for an elementwise kernel over so many values.
    pub(super) fn each(length: usize) -> ((u32, u32, u32), (u32, u32)) {
        ((length.div_ceil(THREADS as usize).clamp(1, BLOCKS) as u32, 1, 1), (THREADS, 1))
    }

    /// Memory for so many values of so many bytes; what is in it is not said.
    pub(super) fn take(&self, values: usize, bytes: usize) -> Result<Buffer, NetworkError> {
        let length = (values * bytes).next_multiple_of(PIECE).max(PIECE);
        let held = self.free.borrow_mut().get_mut(&length).and_then(Vec::pop);
        let slice = match held {
            Some(slice) => slice,
            // SAFETY: whoever takes it writes it before it is read.
            None => unsafe { self.device.alloc(length) }
                .or_else(|_| {
                    // Perhaps what was given back in other sizes makes room.
                    self.free.borrow_mut().clear();
                    self.device.synchronize()?;
                    // SAFETY: as above.
                    unsafe { self.device.alloc(length) }
                })
                .map_err(said)?,
        };
        Ok(Buffer { slice: Some(slice), free: self.free.clone() })
    }

    /// Memory for so many `f32`.
    pub(super) fn floats(&self, values: usize) -> Result<Buffer, NetworkError> {
        self.take(values, 4)
    }

    /// Takes values to the GPU.
    pub(super) fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<Buffer, NetworkError> {
        let mut buffer = self.take(values.len(), size_of::<T>())?;
        if let (Some(slice), false) = (&mut buffer.slice, values.is_empty()) {
            let bytes = as_bytes(values);
            self.device.htod_sync_copy_into(bytes, &mut slice.slice_mut(..bytes.len())).map_err(said)?;
        }
        Ok(buffer)
    }

    /// The same beside the GPU's work, which goes on. Whoever drops the buffer has waited for all that reads it.
    pub(super) fn upload_aside<T: DeviceRepr>(&self, values: &[T]) -> Result<Buffer, NetworkError> {
        let length = size_of_val(values).next_multiple_of(PIECE).max(PIECE);
        let held = self.aside.borrow_mut().get_mut(&length).and_then(Vec::pop);
        let slice = match held {
            Some(slice) => slice,
            None => {
                // SAFETY: it is written below.
                let slice = unsafe { self.device.alloc(length) }.map_err(said)?;
                // It is there once the GPU comes to it.
                self.copies.wait_for_default().map_err(said)?;
                slice
            }
        };
        // SAFETY: the slice is at least so long, nothing reads it yet, and the values stay until the copy is done.
        unsafe { memcpy_htod_async(*slice.device_ptr(), as_bytes(values), self.copies.stream) }.map_err(said)?;
        // SAFETY: the stream is there as long as this is.
        unsafe { stream::synchronize(self.copies.stream) }.map_err(said)?;
        Ok(Buffer { slice: Some(slice), free: self.aside.clone() })
    }

    /// Has so many `f32` brought back when the GPU comes to it. `kept` is let go when that is done.
    pub(super) fn answer(self: &Rc<Self>, buffer: &Buffer, values: usize, kept: Box<dyn Any>) -> Result<Answer, NetworkError> {
        let bytes = (4 * values).next_multiple_of(PIECE).max(PIECE);
        let at = self.pinned.borrow().iter().position(|pinned| pinned.bytes >= bytes);
        let pinned = match at {
            Some(at) => self.pinned.borrow_mut().swap_remove(at),
            None => Pinned::new(bytes)?,
        };
        let event = event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).map_err(said)?;
        // From here on, its end waits for the GPU.
        let mut answer = Answer { gpu: self.clone(), event, pinned: Some(pinned), values, _kept: kept };
        if let (Some(slice), Some(pinned)) = (&buffer.slice, &mut answer.pinned) {
            // SAFETY: the pinned memory is at least so long, and nobody looks at it before the event.
            unsafe { memcpy_dtoh_async(&mut pinned.as_mut_slice()[..4 * values], *slice.device_ptr(), *self.device.cu_stream()) }
                .map_err(said)?;
        }
        // SAFETY: the event is new, the stream the device's own.
        unsafe { event::record(event, *self.device.cu_stream()) }.map_err(said)?;
        Ok(answer)
    }

    /// Brings `f32` back; waits for all that has been launched.
    pub(super) fn download(&self, buffer: &Buffer, values: usize) -> Result<Vec<f32>, NetworkError> {
        let bytes = self.download_bytes(buffer, 4 * values)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect())
    }

    /// Brings `f64` back.
    pub(super) fn download_doubles(&self, buffer: &Buffer, values: usize) -> Result<Vec<f64>, NetworkError> {
        let bytes = self.download_bytes(buffer, 8 * values)?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_ne_bytes(*bytes)).collect())
    }

    fn download_bytes(&self, buffer: &Buffer, length: usize) -> Result<Vec<u8>, NetworkError> {
        let mut bytes = vec![0; length];
        if let (Some(slice), false) = (&buffer.slice, bytes.is_empty()) {
            self.device.dtoh_sync_copy_into(&slice.slice(..length), &mut bytes).map_err(said)?;
        }
        Ok(bytes)
    }

    /// See [`launch`].
    ///
    /// # Safety
    ///
    /// The arguments are those of the kernel, and what they point to is as long as it reads and writes.
    pub(super) unsafe fn launch(
        &self,
        kernel: &'static str,
        blocks: (u32, u32, u32),
        threads: (u32, u32),
        arguments: &mut [*mut c_void],
    ) -> Result<(), NetworkError> {
        let function = self.kernels.get(kernel)?;
        self.device.bind_to_thread().map_err(said)?;
        // SAFETY: as the caller promises.
        let mut launched = || unsafe { launch_kernel(function, blocks, (threads.0, threads.1, 1), 0, *self.device.cu_stream(), arguments) };
        match &self.profile {
            None => launched(),
            Some(profile) => profile.time(kernel, *self.device.cu_stream(), launched),
        }
        .map_err(said)
    }

    /// `out = left · right` of matrices that lie row by row, the left one `[rows, depth]` or, `is_left_turned`, the other way round; so the right
    /// one, `[depth, columns]`. By cuBLAS, which reads column by column: there, all matrices are turned and the factors change places.
    pub(super) fn multiply(
        &self,
        (left, is_left_turned): (&Buffer, bool),
        (right, is_right_turned): (&Buffer, bool),
        out: &mut Buffer,
        (rows, depth, columns): (usize, usize, usize),
    ) -> Result<(), NetworkError> {
        let blas = self.blas()?;
        let turned = |is_turned| if is_turned { Operation::CUBLAS_OP_T } else { Operation::CUBLAS_OP_N };
        let size = |size: usize| i32::try_from(size).unwrap_or(i32::MAX);
        let config = GemmConfig {
            transa: turned(is_right_turned),
            transb: turned(is_left_turned),
            m: size(columns),
            n: size(rows),
            k: size(depth),
            alpha: 1.0f32,
            lda: size(if is_right_turned { depth } else { columns }),
            ldb: size(if is_left_turned { rows } else { depth }),
            beta: 0.0,
            ldc: size(columns),
        };
        let (Some(left), Some(right), Some(out)) = (&left.slice, &right.slice, &mut out.slice) else { return Ok(()) };
        // SAFETY: the buffers are at least so long, and any bytes are an `f32`.
        let (left, right, out) = unsafe {
            (left.transmute::<f32>(rows * depth), right.transmute::<f32>(depth * columns), out.transmute_mut::<f32>(rows * columns))
        };
        let (Some(left), Some(right), Some(mut out)) = (left, right, out) else {
            return Err(NetworkError::device("a matrix is longer than its memory".into()));
        };
        // SAFETY: the sides are those of the matrices.
        unsafe { blas.gemm(config, &right, &left, &mut out) }.map_err(|error| NetworkError::device(format!("{error:?}")))
    }

    fn blas(&self) -> Result<Rc<CudaBlas>, NetworkError> {
        if let Some(blas) = &*self.blas.borrow() {
            return Ok(blas.clone());
        }
        let blas = CudaBlas::new(self.device.clone()).map_err(|error| NetworkError::device(format!("cuBLAS: {error:?}")))?;
        Ok(self.blas.borrow_mut().insert(Rc::new(blas)).clone())
    }
}

/// Any values as they lie in memory.
fn as_bytes<T: DeviceRepr>(values: &[T]) -> &[u8] {
    // SAFETY: the type's values have no padding (`DeviceRepr`), and any memory may be read as bytes.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }
}

/// Memory of this machine that stays where it is, so that the GPU can write it by itself.
struct Pinned {
    at: *mut c_void,
    bytes: usize,
}

impl Pinned {
    fn new(bytes: usize) -> Result<Self, NetworkError> {
        let mut at = std::ptr::null_mut();
        // SAFETY: the driver writes an address there.
        unsafe { cuMemAllocHost_v2(&mut at, bytes) }.result().map_err(said)?;
        // SAFETY: it is the driver's answer, so many bytes, and nobody else's.
        unsafe { at.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned { at, bytes })
    }

    fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: it is so long and written.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast(), self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: nobody has it any more. What goes wrong here, nobody could mend.
        let _ = unsafe { cuMemFreeHost(self.at) };
    }
}

/// `f32` on their way back.
pub(super) struct Answer {
    gpu: Rc<Gpu>,
    event: CUevent,
    pinned: Option<Pinned>,
    values: usize,
    _kept: Box<dyn Any>,
}

impl Answer {
    /// Waits for them.
    pub(super) fn wait(mut self) -> Result<Vec<f32>, NetworkError> {
        self.done()?;
        let bytes = self.pinned.as_mut().map(|pinned| &pinned.as_mut_slice()[..4 * self.values]).unwrap_or_default();
        Ok(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect())
    }

    fn done(&self) -> Result<(), NetworkError> {
        // SAFETY: the event is there until this is dropped.
        unsafe { cuEventSynchronize(self.event) }.result().map_err(said)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // Nothing that the GPU still reads or writes is let go; once it has failed, it does neither.
        let is_done = self.done().is_ok();
        // SAFETY: nobody waits for it any more.
        let _ = unsafe { event::destroy(self.event) };
        if let Some(pinned) = self.pinned.take().filter(|_| is_done) {
            self.gpu.pinned.borrow_mut().push(pinned);
        }
    }
}

/// What the driver says, as an error.
fn said(error: DriverError) -> NetworkError {
    NetworkError::device(format!("{error:?}"))
}
