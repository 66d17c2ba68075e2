//! Matrix products of slices on one thread, through the `gemm` crate (AVX-512, AVX2 or plain, chosen at run time).

/// A matrix inside a slice: element `(i, j)` lies at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows one after the other, each beginning `row_stride` values after the last.
    pub(crate) fn rows(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Matrix { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The same values with rows and columns exchanged; nothing is moved.
    pub(crate) fn transposed(self) -> Self {
        Matrix { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn reach(&self) -> usize {
        if self.rows == 0 || self.columns == 0 {
            return 0;
        }
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// `out = a b`, or `out += a b` when `accumulate`; `out` has rows of `b.columns` values without gaps.
///
/// The order of the summation depends on the three sizes alone, so equal sizes give equal bits.
///
/// # Panics
///
/// If the sizes do not fit each other or the slices: a fault of this crate.
pub(crate) fn multiply(out: &mut [f32], a: Matrix<'_>, b: Matrix<'_>, accumulate: bool) {
    multiply_into(out, b.columns, a, b, accumulate);
}

/// As [`multiply`], with rows of `out` that begin `row_stride` values after each other.
///
/// # Panics
///
/// As [`multiply`].
pub(crate) fn multiply_into(out: &mut [f32], row_stride: usize, a: Matrix<'_>, b: Matrix<'_>, accumulate: bool) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(a.columns, b.rows, "inner sizes differ");
    let reach = if m == 0 || n == 0 { 0 } else { (m - 1) * row_stride + n };
    assert!(a.reach() <= a.data.len() && b.reach() <= b.data.len() && reach <= out.len(), "a matrix reaches past its slice");
    assert!(n <= row_stride || m <= 1, "rows overlap");
    if k == 0 && !accumulate {
        out.chunks_mut(row_stride.max(1)).take(m).for_each(|row| row[..n].fill(0.0));
    }
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // SAFETY: the assertions above hold every element that the strides address inside its slice, `out` is borrowed
    // mutably and so overlaps neither input, and f32 is the type that gemm dispatches on.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_agree_with_three_loops(m in 1..9usize, n in 1..40usize, k in 1..20usize, seed in any::<u64>(), accumulate in any::<bool>()) {
            let mut draw = crate::init::uniform(seed, 0);
            let a: Vec<f32> = (0..m * k).map(|_| draw()).collect();
            let b: Vec<f32> = (0..k * n).map(|_| draw()).collect();
            let before: Vec<f32> = (0..m * n).map(|_| draw()).collect();
            let bt: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
            let (mut plain, mut turned) = (before.clone(), before.clone());
            multiply(&mut plain, Matrix::rows(&a, m, k, k), Matrix::rows(&b, k, n, n), accumulate);
            multiply(&mut turned, Matrix::rows(&a, m, k, k), Matrix::rows(&bt, n, k, k).transposed(), accumulate);
            for i in 0..m {
                for j in 0..n {
                    let start = if accumulate { before[i * n + j] } else { 0.0 };
                    let sum: f32 = start + (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum::<f32>();
                    prop_assert!((plain[i * n + j] - sum).abs() < 1e-5);
                    prop_assert!((turned[i * n + j] - sum).abs() < 1e-5);
                }
            }
        }
    }
}
