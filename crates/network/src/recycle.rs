//! The memory of a training step, kept for the next one.
//!
//! A step's buffers come and go by the hundred megabytes. Fresh memory costs more than what is computed in it seems to: the kernel has to zero it page by page,
//! on the one thread that asks, while the others wait.

use std::{
    mem,
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

/// Buffers that have less than this many values are not worth it.
const FEW: usize = 16 * 1024;

/// Steps for which a buffer is kept that nobody asks for.
const STEPS: u32 = 2;

/// What is free, each with the steps since somebody had it.
static FREE: Mutex<Vec<(Vec<f32>, u32)>> = Mutex::new(Vec::new());

fn free<R>(work: impl FnOnce(&mut Vec<(Vec<f32>, u32)>) -> R) -> R {
    // A panic elsewhere leaves the list whole: nothing in here stops halfway.
    work(&mut FREE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Numbers whose memory goes to the next that asks for as many.
#[derive(Debug, Default)]
pub(crate) struct Floats(Vec<f32>);

impl Floats {
    /// `len` numbers, left from earlier use: for who writes all of them.
    pub(crate) fn any(len: usize) -> Self {
        if len < FEW {
            return Floats(vec![0.0; len]);
        }
        let found = free(|free| {
            // The smallest that holds them; one that is much too large is somebody else's.
            let fitting = free.iter().enumerate().filter(|(_, (buffer, _))| (len..=2 * len).contains(&buffer.capacity()));
            let place = fitting.min_by_key(|(_, (buffer, _))| buffer.capacity()).map(|(place, _)| place);
            place.map(|place| free.swap_remove(place).0)
        });
        let Some(mut buffer) = found else { return Floats(vec![0.0; len]) };
        buffer.resize(len, 0.0);
        Floats(buffer)
    }

    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        let mut floats = Floats::any(len);
        floats.fill(0.0);
        floats
    }

    /// The vector itself, which then is the caller's.
    pub(crate) fn into_vec(mut self) -> Vec<f32> {
        mem::take(&mut self.0)
    }
}

/// A step is over: what none of the last ones asked for goes back to the system.
pub(crate) fn end_step() {
    free(|free| {
        free.iter_mut().for_each(|(_, steps)| *steps += 1);
        free.retain(|(_, steps)| *steps <= STEPS);
    });
}

impl Drop for Floats {
    fn drop(&mut self) {
        if self.0.capacity() >= FEW {
            let buffer = mem::take(&mut self.0);
            free(|free| free.push((buffer, 0)));
        }
    }
}

impl From<Vec<f32>> for Floats {
    fn from(values: Vec<f32>) -> Self {
        Floats(values)
    }
}

impl Clone for Floats {
    fn clone(&self) -> Self {
        let mut copy = Floats::any(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}
