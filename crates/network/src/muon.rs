//! The Muon optimiser (Jordan 2024): a step is the momentum with all its singular values near one.

use crate::{
    amx::{
        Unit,
        products::{add_products, multiply as multiply_rounded, pair_pixels, pitch, row_of, transpose, write_pixels},
    },
    matmul::{Matrix, multiply},
    network::Parameter,
    optimiser::OptimiserConfig,
    scratch::{self, Scratch, sized},
};

/// Iterations of [`orthogonalise`], as in the original.
pub(crate) const ITERATIONS: usize = 5;
/// The quintic's coefficients, chosen by its author for a steep slope at zero.
pub(crate) const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];

/// One step of a weight seen as the matrix `[inputs of a sum, sums]`; with a unit, its products round their factors to bf16.
pub(crate) fn update(
    config: &OptimiserConfig,
    unit: Option<Unit>,
    factor: f64,
    parameter: &mut Parameter,
    velocity: &mut [f32],
    gradient: Vec<f32>,
) {
    let OptimiserConfig::Muon { learning_rate, momentum, nesterov, weight_decay, normalise, .. } = *config else { return };
    let momentum = momentum as f32;
    let mut direction = gradient;
    for (velocity, direction) in velocity.iter_mut().zip(&mut direction) {
        *velocity = momentum * *velocity + *direction;
        *direction = if nesterov { momentum * *velocity + *direction } else { *velocity };
    }
    let columns = parameter.shape.last().copied().unwrap_or(1);
    let rows = direction.len() / columns;
    match unit {
        Some(unit) => scratch::with(|scratch| orthogonalise_rounded(unit, &mut direction, rows, columns, scratch)),
        None => orthogonalise(&mut direction, rows, columns),
    }
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

/// Rows that are multiplied at once, so that their factors stay in the second-level cache.
const PART: usize = 512;

/// As [`orthogonalise`], with products of bf16 factors, as in the original.
fn orthogonalise_rounded(unit: Unit, values: &mut [f32], rows: usize, columns: usize, scratch: &mut Scratch) {
    let norm = norm(values);
    let [a, b, c] = QUINTIC;
    // The short side lies last, and both are whole blocks; what is added are zeros, and stays so.
    let (width, height) = (pitch(rows.min(columns)), pitch(rows.max(columns)));
    let place = |index: usize| {
        let (row, column) = (index / columns, index % columns);
        if rows >= columns { row * width + column } else { column * width + row }
    };
    let (mut x, mut square, mut quartic) = (vec![0.0; height * width], vec![0.0; width * width], vec![0.0; width * width]);
    values.iter().enumerate().for_each(|(index, value)| x[place(index)] = value / norm);
    let Scratch { plane, transposed, pairs, product, .. } = scratch;
    for _ in 0..ITERATIONS {
        square.fill(0.0);
        for part in x.chunks(PART * width) {
            let (count, row) = (part.len() / width, row_of(part.len() / width));
            let (plane, transposed, pairs) = (sized(plane, part.len()), sized(transposed, width * row), sized(pairs, part.len() / 2));
            write_pixels(part, width, width, plane);
            transpose(plane, width, row, transposed);
            pair_pixels(plane, width, pairs);
            add_products(unit, (transposed, row, 0), &[0], (pairs, count), &mut square, width);
        }
        let (factor, pairs) = (sized(plane, square.len()), sized(pairs, square.len() / 2));
        write_pixels(&square, width, width, factor);
        pair_pixels(factor, width, pairs);
        multiply_rounded(unit, factor, 0, &[0], pairs, &mut quartic, width);
        quartic.iter_mut().zip(&square).for_each(|(quartic, square)| *quartic = b * square + c * *quartic);
        write_pixels(&quartic, width, width, factor);
        pair_pixels(factor, width, pairs);
        for part in x.chunks_mut(PART * width) {
            let (plane, product) = (sized(plane, part.len()), sized(product, part.len()));
            write_pixels(part, width, width, plane);
            multiply_rounded(unit, plane, 0, &[0], pairs, product, width);
            part.iter_mut().zip(&*product).for_each(|(value, product)| *value = a * *value + product);
        }
    }
    values.iter_mut().enumerate().for_each(|(index, value)| *value = x[place(index)]);
}

/// Frobenius' norm, and never zero.
fn norm(values: &[f32]) -> f32 {
    values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>().sqrt() as f32 + 1e-7
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amx::tiles;

    fn numbers(count: usize) -> Vec<f32> {
        let mut draw = crate::init::uniform(7, 3);
        (0..count).map(|_| draw()).collect()
    }

    /// `XᵀX` (or `XXᵀ`) of an orthogonal matrix is the identity; the quintic goes only near it.
    #[test]
    fn every_singular_value_comes_near_one() {
        for (rows, columns) in [(40, 9), (9, 40), (16, 16)] {
            let mut values = numbers(rows * columns);
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

    /// The root mean square of the difference, beside that of the values; of more rows than are multiplied at once, too.
    #[test]
    fn rounded_factors_give_nearly_the_same_matrix() {
        for unit in std::iter::once(Unit::Loops).chain(tiles()) {
            for (rows, columns) in [(40, 9), (9, 40), (33, 33), (PART + 70, 40)] {
                let (mut exact, mut rounded) = (numbers(rows * columns), numbers(rows * columns));
                orthogonalise(&mut exact, rows, columns);
                orthogonalise_rounded(unit, &mut rounded, rows, columns, &mut Scratch::default());
                let apart: Vec<f32> = exact.iter().zip(&rounded).map(|(exact, rounded)| exact - rounded).collect();
                let share = norm(&apart) / norm(&exact);
                assert!((1e-4..0.05).contains(&share), "{rows}x{columns} by {unit:?}: {share}");
            }
        }
    }
}
