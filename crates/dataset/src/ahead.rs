//! Reading ahead: the next batch is gathered on a thread of its own while work is done on this one.
//!
//! To wait for the disk and to decode happens there. What a batch holds depends on what is asked for alone, never on who gathers it when.

use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Batches that are ready before they are asked for.
const AHEAD: usize = 2;

/// Calls `work` with each batch, in order, and with what `gather` put into a buffer for it; ends with the first error of either, in the batches'
/// order. Gives how long `work` had to wait.
///
/// # Errors
/// What `gather` or `work` returns.
pub fn each_ahead<B: Send, T: Default + Send, E: Send>(
    batches: impl Iterator<Item = B> + Send,
    gather: impl Fn(&B, &mut T) -> Result<(), E> + Send,
    mut work: impl FnMut(&B, &T) -> Result<(), E>,
) -> Result<Duration, E> {
    let (ready, gathered) = sync_channel::<Result<(B, T), E>>(AHEAD);
    let (give_back, used) = sync_channel::<T>(AHEAD + 2);
    // The channels' ends move in: when `work` fails they go, and the gathering thread ends.
    std::thread::scope(move |scope| {
        scope.spawn(move || {
            for batch in batches {
                // Buffers come back when they were used; at first there are none.
                let mut buffer = used.try_recv().unwrap_or_default();
                let result = gather(&batch, &mut buffer).map(|()| (batch, buffer));
                if ready.send(result).is_err() {
                    return; // `work` failed.
                }
            }
        });
        let mut waited = Duration::ZERO;
        loop {
            let clock = Instant::now();
            let Ok(result) = gathered.recv() else { return Ok(waited) };
            waited += clock.elapsed();
            let (batch, buffer) = result?;
            work(&batch, &buffer)?;
            let _ = give_back.try_send(buffer);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn double(number: &u32, into: &mut Vec<u32>) -> Result<(), String> {
        into.push(2 * number);
        if *number == 70 { Err("70 cannot be gathered".into()) } else { Ok(()) }
    }

    #[test]
    fn batches_come_in_order_and_buffers_are_used_again() {
        let (mut seen, mut longest) = (Vec::new(), 0);
        let waited = each_ahead(0..50, double, |number, buffer| {
            seen.push((*number, buffer.last().copied()));
            longest = longest.max(buffer.len());
            Ok(())
        });
        assert!(waited.is_ok());
        assert_eq!(seen, (0..50).map(|number| (number, Some(2 * number))).collect::<Vec<_>>());
        assert!(longest > 1, "each batch had a buffer of its own");
    }

    #[test]
    fn the_first_error_ends_it_whoever_had_it() {
        let mut done = 0;
        let gathering = each_ahead(0..100, double, |_, _| {
            done += 1;
            Ok(())
        });
        assert_eq!((gathering.err().as_deref(), done), (Some("70 cannot be gathered"), 70));
        let working = each_ahead(0..100, double, |number, _| if *number == 60 { Err("60 is too much".to_owned()) } else { Ok(()) });
        assert_eq!(working.err().as_deref(), Some("60 is too much"));
    }
}
