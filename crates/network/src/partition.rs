//! The fixed partition of a batch: it depends on the batch's size alone, never on the number of threads, and partial
//! sums are added in its order. So the same batch gives the same bits on any machine of one kind, however many cores it has.

use rayon::{iter::MaxLen, prelude::*};

use crate::simd::add;

/// Examples that one thread computes before it takes the next: what they need stays in its cache.
pub(crate) const CHUNK: usize = 8;

/// At most this many partial sums of a layer's weight gradient are held at once.
const MAX_GROUPS: usize = 16;

/// Examples whose weight gradient is summed up by one thread, one after the other.
pub(crate) fn group_size(batch: usize) -> usize {
    batch.div_ceil(MAX_GROUPS).next_multiple_of(CHUNK).max(CHUNK)
}

/// Parts that threads take one by one. Left to itself, rayon keeps an eighth or a quarter of them together, and all other threads wait for the one
/// that takes the last of these.
pub(crate) fn one_by_one<P: IndexedParallelIterator>(parts: P) -> MaxLen<P> {
    parts.with_max_len(1)
}

/// Adds `parts` to `out`, part after part, for each element in the same order.
pub(crate) fn sum_in_order(parts: &[&[f32]], out: &mut [f32]) {
    const RANGE: usize = 4096;
    one_by_one(out.par_chunks_mut(RANGE)).enumerate().for_each(|(index, out)| {
        let start = index * RANGE;
        for part in parts {
            add(&part[start..start + out.len()], out);
        }
    });
}
