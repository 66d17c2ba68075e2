//! Buffers of one thread, kept from call to call so that they stay in its cache.

use std::cell::RefCell;

use crate::conv::sparse::Lists;

/// What convolution and dense layers need besides their inputs and outputs.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Images as numbers, with their border of zeros.
    pub(crate) image: Vec<f32>,
    /// Patches as rows of a matrix.
    pub(crate) columns: Vec<f32>,
    /// A matrix product before it is written out.
    pub(crate) product: Vec<f32>,
    /// Gradients of images with their border.
    pub(crate) gradient: Vec<f32>,
    /// Zeros, see [`zeros`].
    pub(crate) zeros: Vec<f32>,
    /// Images as bf16 numbers, their gradients, and images with pixels side by side.
    pub(crate) plane: Vec<u16>,
    pub(crate) gradient_plane: Vec<u16>,
    pub(crate) transposed: Vec<u16>,
    /// Pairs of bf16 numbers as matrix tiles take them.
    pub(crate) pairs: Vec<u32>,
    /// The non-zeros of a sparse gradient.
    pub(crate) lists: Lists,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lends this thread's buffers. The work must not wait for other work of the thread pool: it could be given a task that
/// asks for the same buffers.
pub(crate) fn with<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => work(&mut scratch),
        Err(_) => work(&mut Scratch::default()),
    })
}

/// Bytes of a line of the cache; a vector that lies across two lines is read twice.
const LINE_BYTES: usize = 64;
/// Values of it.
const LINE: usize = LINE_BYTES / size_of::<f32>();

/// `len` values of a buffer that grows as needed, from the beginning of a cache line on; what they hold is left from earlier
/// use. The same length gives the same place as long as nobody asks for more.
pub(crate) fn sized<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len + LINE_BYTES / size_of::<T>() {
        buffer.resize(len + LINE_BYTES / size_of::<T>(), T::default());
    }
    let start = start(buffer);
    &mut buffer[start..start + len]
}

/// `len` zeros of a buffer that nobody else writes to.
pub(crate) fn zeros(buffer: &mut Vec<f32>, len: usize) -> &[f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &buffer[..len]
}

/// The first value of a buffer that begins a cache line.
fn start<T>(buffer: &[T]) -> usize {
    buffer.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / size_of::<T>())
}

/// Whether values begin a cache line.
pub(crate) fn is_aligned(values: &[f32]) -> bool {
    start(values) == 0
}

/// Zeros that begin a cache line.
#[derive(Clone, Default)]
pub(crate) struct Aligned {
    buffer: Vec<f32>,
    len: usize,
}

impl Aligned {
    pub(crate) fn zeros(len: usize) -> Self {
        Aligned { buffer: vec![0.0; len + LINE], len }
    }

    pub(crate) fn values(&self) -> &[f32] {
        let start = start(&self.buffer).min(self.buffer.len() - self.len);
        &self.buffer[start..start + self.len]
    }

    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        let start = start(&self.buffer).min(self.buffer.len() - self.len);
        &mut self.buffer[start..start + self.len]
    }
}
