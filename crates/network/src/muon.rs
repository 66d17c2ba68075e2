//! The Muon optimiser (Jordan 2024): a step is the momentum with all its singular values near one.

use crate::{
    matmul::{Matrix, multiply},
    network::Parameter,
    optimiser::OptimiserConfig,
};

/// Iterations of [`orthogonalise`], as in the original.
pub(crate) const ITERATIONS: usize = 5;
/// The quintic's coefficients, chosen by its author for a steep slope at zero.
pub(crate) const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// One step of a weight seen as the matrix `[inputs of a sum, sums]`.
pub(crate) fn update(config: &OptimiserConfig, factor: f64, parameter: &mut Parameter, velocity: &mut [f32], gradient: Vec<f32>) {
    let OptimiserConfig::Muon { learning_rate, momentum, nesterov, weight_decay, normalise, .. } = *config else { return };
    let momentum = momentum as f32;
    let mut direction = gradient;
    for (velocity, direction) in velocity.iter_mut().zip(&mut direction) {
        *velocity = momentum * *velocity + *direction;
        *direction = if nesterov { momentum * *velocity + *direction } else { *velocity };
    }
    let columns = parameter.shape.last().copied().unwrap_or(1);
    let rows = direction.len() / columns;
    orthogonalise(&mut direction, rows, columns);
    // A matrix with more sums than inputs has room for longer steps.
    let rate = (learning_rate * factor) as f32 * (columns as f32 / rows as f32).max(1.0).sqrt();
    let keep = 1.0 - (learning_rate * factor * weight_decay) as f32;
    let mut values: Vec<f32> = parameter.values.iter().zip(&direction).map(|(value, step)| keep * value - rate * step).collect();
    if normalise {
        let factor = (columns as f32).sqrt() / norm(&values);
        values.iter_mut().for_each(|value| *value *= factor);
    }
    parameter.set(&values);
}

/// Moves the singular values of a `[rows, columns]` matrix to between about 0.7 and 1.2: the Newton-Schulz iteration
/// `X <- a X + b X Xᵀ X + c (X Xᵀ)² X` on the shorter side.
fn orthogonalise(values: &mut [f32], rows: usize, columns: usize) {
    let norm = norm(values);
    values.iter_mut().for_each(|value| *value /= norm);
    let [a, b, c] = QUINTIC;
    // With the short side last, the square matrix is `XᵀX`, and the iteration reads from the right.
    let is_tall = rows >= columns;
    let (short, long) = if is_tall { (columns, rows) } else { (rows, columns) };
    let (mut square, mut quartic, mut next) = (vec![0.0; short * short], vec![0.0; short * short], vec![0.0; short * long]);
    for _ in 0..ITERATIONS {
        let x = Matrix::rows(values, rows, columns, columns);
        let (left, right) = if is_tall { (x.transposed(), x) } else { (x, x.transposed()) };
        multiply(&mut square, left, right, false);
        let gram = Matrix::rows(&square, short, short, short);
        multiply(&mut quartic, gram, gram, false);
        quartic.iter_mut().zip(&square).for_each(|(quartic, square)| *quartic = b * square + c * *quartic);
        let polynomial = Matrix::rows(&quartic, short, short, short);
        let (left, right) = if is_tall { (x, polynomial) } else { (polynomial, x) };
        multiply(&mut next, left, right, false);
        values.iter_mut().zip(&next).for_each(|(value, next)| *value = a * *value + next);
    }
}

/// Frobenius' norm, and never zero.
fn norm(values: &[f32]) -> f32 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt() as f32 + 1e-7
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `XᵀX` (or `XXᵀ`) of an orthogonal matrix is the identity; the quintic goes only near it.
    #[test]
    fn every_singular_value_comes_near_one() {
        for (rows, columns) in [(40, 9), (9, 40), (16, 16)] {
            let mut draw = crate::init::uniform(7, 3);
            let mut values: Vec<f32> = (0..rows * columns).map(|_| draw()).collect();
            orthogonalise(&mut values, rows, columns);
            let x = Matrix::rows(&values, rows, columns, columns);
            let short = rows.min(columns);
            let mut square = vec![0.0; short * short];
            let (left, right) = if rows >= columns { (x.transposed(), x) } else { (x, x.transposed()) };
            multiply(&mut square, left, right, false);
            let trace: f32 = (0..short).map(|i| square[i * short + i]).sum();
            assert!((0.6..1.3).contains(&(trace / short as f32)), "{rows}x{columns}: {trace}");
            let off = square.iter().enumerate().filter(|(i, _)| i / short != i % short).map(|(_, v)| v.abs()).fold(0.0, f32::max);
            assert!(off < 0.45, "{rows}x{columns}: {off}");
        }
    }
}
