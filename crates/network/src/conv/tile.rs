//! The kernel of the direct convolution and of its gradients: a tile of sums of products that stays in registers.
//!
//! `sums[r][c][n] = Σ_k scalars[r * down + c * right + at(k)] * vectors[n][k]`. The scalars are read where they lie; nothing is copied
//! into another order first. Each sum takes its products in the same order whatever tile it is in, so the choice of tiles
//! changes no bit.
#![expect(clippy::undocumented_unsafe_blocks, reason = "all of it rests on what the callers of the unsafe functions promise")]

use crate::simd::vector::Vector;

/// The most columns of a tile that has two rows.
const PAIR: usize = 6;
/// The most columns of a tile that has one row.
const SINGLE: usize = 12;

/// Columns of a tile of two rows whose sums the registers hold beside their factors, with `N` vectors a sum.
#[inline(always)]
pub(super) fn pair<V: Vector, const N: usize>() -> usize {
    PAIR.min(V::SUMS / (2 * N))
}

/// As [`pair`], of one row.
#[inline(always)]
pub(super) fn single<V: Vector, const N: usize>() -> usize {
    SINGLE.min(V::SUMS / N)
}

/// Where the factors lie, in f32 from each other.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    /// From the scalar of a sum to that of the next row and of the next column of the tile.
    pub(super) down: usize,
    pub(super) right: usize,
    /// From a product's scalar to the next's, how many such steps there are, and from one such run to the next.
    pub(super) step: usize,
    pub(super) run: usize,
    pub(super) line: usize,
    /// Runs, and from the first run of an image to that of the next.
    pub(super) rows: usize,
    pub(super) image: usize,
    /// Images whose products go into the same sums.
    pub(super) images: usize,
    /// From a product's vector to the next's.
    pub(super) vector: usize,
    /// Lanes in use of the last vector.
    pub(super) lanes: usize,
}

/// What is done with the sums of a tile.
pub(super) trait Finish<V: Vector, const N: usize> {
    /// # Safety
    ///
    /// The instruction set of `V` is there.
    unsafe fn finish<const ROWS: usize, const COLUMNS: usize>(self, sums: [[[V; N]; COLUMNS]; ROWS]);
}

/// Computes a tile of one row of up to [`SINGLE`] columns or of two rows of up to [`PAIR`].
///
/// # Safety
///
/// All that `walk` leads to from both pointers can be read, and the instruction set of `V` is there.
#[inline(always)]
pub(super) unsafe fn tile<V: Vector, const N: usize>(
    (rows, columns): (usize, usize),
    walk: &Walk,
    scalars: *const f32,
    vectors: *const f32,
    out: impl Finish<V, N>,
) {
    macro_rules! choose {
        ($(($rows:literal, $columns:literal)),*) => {
            match (rows, columns) {
                $(($rows, $columns) if $rows * $columns * N <= V::SUMS => unsafe {
                    out.finish(sums::<V, N, $rows, $columns>(walk, scalars, vectors))
                },)*
                _ => unreachable!("a tile is at most what `pair` and `single` say"),
            }
        };
    }
    choose!(
        (2, 1),
        (2, 2),
        (2, 3),
        (2, 4),
        (2, 5),
        (2, 6),
        (1, 1),
        (1, 2),
        (1, 3),
        (1, 4),
        (1, 5),
        (1, 6),
        (1, 7),
        (1, 8),
        (1, 9),
        (1, 10),
        (1, 11),
        (1, 12)
    )
}

#[inline(always)]
unsafe fn sums<V: Vector, const N: usize, const ROWS: usize, const COLUMNS: usize>(
    walk: &Walk,
    scalars: *const f32,
    vectors: *const f32,
) -> [[[V; N]; COLUMNS]; ROWS] {
    if walk.lanes == V::LANES {
        unsafe { sums_of::<V, N, ROWS, COLUMNS, true>(walk, scalars, vectors) }
    } else {
        unsafe { sums_of::<V, N, ROWS, COLUMNS, false>(walk, scalars, vectors) }
    }
}

#[inline(always)]
unsafe fn sums_of<V: Vector, const N: usize, const ROWS: usize, const COLUMNS: usize, const WHOLE: bool>(
    walk: &Walk,
    scalars: *const f32,
    mut vectors: *const f32,
) -> [[[V; N]; COLUMNS]; ROWS] {
    unsafe {
        let mut sums = [[[V::splat(0.0); N]; COLUMNS]; ROWS];
        for image in 0..walk.images {
            let mut scalars = scalars.wrapping_add(image * walk.image);
            for _ in 0..walk.rows {
                let mut at = scalars;
                for _ in 0..walk.run {
                    let mut factors = [V::splat(0.0); N];
                    for (n, factor) in factors.iter_mut().enumerate() {
                        let from = vectors.add(n * V::LANES);
                        *factor = if WHOLE || n + 1 < N { V::load(from) } else { V::load_first(from, walk.lanes) };
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        for (column, sums) in sums.iter_mut().enumerate() {
                            let value = V::splat(*at.add(row * walk.down + column * walk.right));
                            for (sum, factor) in sums.iter_mut().zip(factors) {
                                *sum = value.multiply_add(factor, *sum);
                            }
                        }
                    }
                    at = at.wrapping_add(walk.step);
                    vectors = vectors.wrapping_add(walk.vector);
                }
                scalars = scalars.wrapping_add(walk.line);
            }
        }
        sums
    }
}

/// Calls `work` for each group of filters with its first filter and the lanes in use of its last vector.
macro_rules! for_filters {
    ($vector:ty, $filters:expr, |$filter:ident, $lanes:ident, $count:ident| $work:expr) => {
        for $filter in (0..$filters).step_by(2 * <$vector>::LANES) {
            let left = $filters - $filter;
            if left > <$vector>::LANES {
                const $count: usize = 2;
                let $lanes = (left - <$vector>::LANES).min(<$vector>::LANES);
                $work
            } else {
                const $count: usize = 1;
                let $lanes = left.min(<$vector>::LANES);
                $work
            }
        }
    };
}
pub(super) use for_filters;

/// Shares `count` out evenly over as few parts as there can be of at most `most`.
pub(super) fn even(count: usize, most: usize) -> usize {
    count.div_ceil(count.div_ceil(most))
}
