//! The loader: gathers and varies the next batch on a thread of its own while the network learns from this one.
//!
//! Pixels are views into the mapped file, so a dataset may be larger than memory: waiting for the disk happens here, beside the
//! step. What a batch holds depends on its rows and the epoch alone, never on who gathers it when.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use artifact::StageError;

use crate::examples::{Examples, Gathered, Look};

/// Batches that are ready before they are asked for.
const AHEAD: usize = 2;

/// Calls `work` with each batch, in order, given as its parts; ends with the first error. Gives how long `work` had to wait.
///
/// # Errors
/// What `work` returns.
pub fn each_batch(
    examples: &Examples,
    batches: impl Iterator<Item = Vec<Vec<usize>>> + Send,
    look: &Look<'_>,
    mut work: impl FnMut(&[Gathered]) -> Result<(), StageError>,
) -> Result<Duration, StageError> {
    let (ready, gathered) = sync_channel::<Vec<Gathered>>(AHEAD);
    let (give_back, used) = sync_channel::<Vec<Gathered>>(AHEAD + 2);
    // The channels' ends move in: when `work` fails they go, and the gathering thread ends.
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            for parts in batches {
                // Buffers come back when they were used; at first there are none.
                let mut buffers = used.try_recv().unwrap_or_default();
                buffers.resize_with(parts.len(), Gathered::default);
                for (rows, buffer) in parts.iter().zip(&mut buffers) {
                    examples.gather(rows, Some(look), buffer);
                }
                if ready.send(buffers).is_err() {
                    return; // `work` failed.
                }
            }
        });
        let mut waited = Duration::ZERO;
        loop {
            let clock = Instant::now();
            let Ok(parts) = gathered.recv() else { return Ok(waited) };
            waited += clock.elapsed();
            work(&parts)?;
            let _ = give_back.try_send(parts);
        }
    })
}
