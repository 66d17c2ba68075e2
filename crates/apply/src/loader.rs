//! The loader: gathers the next batch on a thread of its own while the network judges this one.
//!
//! To wait for the disk and to decode pictures happens here, whatever the network computes on.

use std::sync::mpsc::sync_channel;

use artifact::StageError;

use crate::examples::{Examples, Gathered};

/// Batches that are ready before they are asked for.
const AHEAD: usize = 2;

/// Calls `work` with each batch, in order; ends with the first error, also of an example that cannot be gathered.
///
/// # Errors
/// What `work` returns, or [`Examples::gather`].
pub fn each_batch<'r>(
    examples: &Examples,
    batches: impl Iterator<Item = &'r [usize]> + Send,
    mut work: impl FnMut(&[usize], &Gathered) -> Result<(), StageError>,
) -> Result<(), StageError> {
    let (ready, gathered) = sync_channel(AHEAD);
    let (give_back, used) = sync_channel::<Gathered>(AHEAD + 2);
    // The channels' ends move in: when `work` fails they go, and the gathering thread ends.
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            for rows in batches {
                // Buffers come back when they were used; at first there are none.
                let mut buffer = used.try_recv().unwrap_or_default();
                let result = examples.gather(rows, &mut buffer).map(|()| (rows, buffer));
                if ready.send(result).is_err() {
                    return; // `work` failed.
                }
            }
        });
        for result in gathered {
            let (rows, buffer) = result?;
            work(rows, &buffer)?;
            let _ = give_back.try_send(buffer);
        }
        Ok(())
    })
}
