//! Work on all threads that comes out as if one had done it.

use rayon::prelude::*;

/// All results in order; where there are errors, the first in order, whichever thread was the first in time.
///
/// rayon's own collection into a `Result` keeps an error that happened to come early: the same input would be refused with now
/// this message, now that.
///
/// # Errors
/// The first in order.
pub fn collect_in_order<T: Send, E: Send>(work: impl IndexedParallelIterator<Item = Result<T, E>>) -> Result<Vec<T>, E> {
    work.collect::<Vec<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn of_several_errors_the_first_in_order_counts_even_if_it_comes_last() {
        let work = |number: u64| {
            std::thread::sleep(Duration::from_millis(20 - number));
            if number.is_multiple_of(2) { Err(number) } else { Ok(number) }
        };
        for _ in 0..5 {
            assert_eq!(collect_in_order((1..20u64).collect::<Vec<_>>().into_par_iter().map(work)), Err(2));
        }
        assert_eq!(collect_in_order(vec![1, 3].into_par_iter().map(work)), Ok(vec![1, 3]));
    }
}
