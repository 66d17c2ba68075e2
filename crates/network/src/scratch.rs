//! Buffers of one thread, kept from call to call so that they stay in its cache.

use std::cell::RefCell;

use crate::conv::sparse::Entry;

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
    /// The non-zeros of a sparse gradient.
    pub(crate) entries: Vec<Entry>,
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

/// The first `len` values of a buffer that grows as needed; what they hold is left from earlier use.
pub(crate) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
