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

/// Values that make up a line of the cache; a vector that lies across two lines is read twice.
const LINE: usize = 16;

/// `len` values of a buffer that grows as needed, from the beginning of a cache line on; what they hold is left from earlier
/// use. The same length gives the same place as long as nobody asks for more.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len + LINE {
        buffer.resize(len + LINE, 0.0);
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
fn start(buffer: &[f32]) -> usize {
    buffer.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE)
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
