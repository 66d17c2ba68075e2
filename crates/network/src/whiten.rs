//! A first layer that is fitted, not learnt: it takes the patches of the examples to values without correlation (Jordan 2024, "94% on CIFAR-10 in
//! 3.29 seconds on a single GPU", <https://arxiv.org/abs/2404.00498>, section 3.2).
//!
//! The filters are the eigenvectors of the patches' second moments, each divided by the root of its eigenvalue plus the layer's epsilon ([`EPSILON`] unless it says otherwise), and then the
//! same with the other sign, so that an activation that drops negative values loses nothing.

use rayon::prelude::*;

use crate::{
    error::NetworkError,
    examples::{Input, View},
    network::Network,
    plan::{Block, Start},
};

/// As in the original, whose images had not been through a lossy format.
pub(crate) const EPSILON: f32 = 5e-4;

/// Images whose moments one thread adds up.
const IMAGES: usize = 64;

/// Turns of the eigenvalue iteration at most; it needs about ten for a hundred values.
const SWEEPS: usize = 60;

impl Network {
    /// Whether its first layer is to be fitted to the examples before training: [`Network::fit_whitening`].
    pub fn has_whitening(&self) -> bool {
        self.whitening().is_some()
    }

    /// The layer that is fitted, and its epsilon.
    fn whitening(&self) -> Option<(&crate::conv::Conv, f32)> {
        let placed = self.blocks.first()?;
        match (&placed.block, placed.weights.first()?.start) {
            (Block::Conv(conv), Start::Fitted { epsilon, .. }) => Some((conv, epsilon)),
            _ => None,
        }
    }

    /// Fits the weights of the `whiten` layer to these examples, which are of the train split. The order of the sums is fixed, so the same
    /// examples give the same bits at any number of threads. Does nothing to a network without such a layer.
    ///
    /// # Errors
    ///
    /// If the input does not hold a whole number of examples, or none at all.
    pub fn fit_whitening(&mut self, input: Input<'_>) -> Result<(), NetworkError> {
        let Some((conv, epsilon)) = self.whitening() else { return Ok(()) };
        if self.count(input)? == 0 {
            return Err(NetworkError::Option("the whitening layer needs examples to be fitted to".into()));
        }
        let moments = second_moments(conv, input.view());
        let filters = filters(&moments, conv.patch(), f64::from(epsilon));
        self.steps.take();
        self.parameters[0].set(&filters);
        Ok(())
    }
}

/// The mean of the outer product of each patch with itself, `[patch, patch]`.
fn second_moments(conv: &crate::conv::Conv, input: View<'_>) -> Vec<f64> {
    let (len, patch) = (conv.input_len(), conv.patch());
    let count = input.len() / len;
    let parts: Vec<Vec<f64>> = (0..count.div_ceil(IMAGES))
        .into_par_iter()
        .map(|part| {
            let mut sums = vec![0.0; patch * patch];
            let mut image = vec![0.0; len];
            for index in part * IMAGES..count.min((part + 1) * IMAGES) {
                input.range(index * len..(index + 1) * len).write(conv.channels, &mut image);
                add_moments(conv, &image, &mut sums);
            }
            sums
        })
        .collect();
    let patches = (count * conv.out_height * conv.out_width) as f64;
    (0..patch * patch).map(|at| parts.iter().map(|part| part[at]).sum::<f64>() / patches).collect()
}

fn add_moments(conv: &crate::conv::Conv, image: &[f32], sums: &mut [f64]) {
    let row = conv.columns * conv.channels;
    let mut values = vec![0.0; conv.patch()];
    for y in 0..conv.out_height {
        for x in 0..conv.out_width {
            for (line, values) in values.chunks_exact_mut(row).enumerate() {
                let from = ((y + line) * conv.width + x) * conv.channels;
                values.iter_mut().zip(&image[from..from + row]).for_each(|(value, pixel)| *value = f64::from(*pixel));
            }
            for (one, sums) in values.iter().zip(sums.chunks_exact_mut(values.len())) {
                sums.iter_mut().zip(&values).for_each(|(sum, other)| *sum += one * other);
            }
        }
    }
}

/// `[patch, 2 * patch]`: eigenvectors by falling eigenvalue, scaled, then their negatives.
fn filters(moments: &[f64], patch: usize, epsilon: f64) -> Vec<f32> {
    let mut pairs = eigenpairs(moments.to_vec(), patch);
    pairs.sort_by(|one, other| other.0.total_cmp(&one.0));
    let mut weights = vec![0.0; patch * 2 * patch];
    for (filter, (value, vector)) in pairs.iter().enumerate() {
        let scale = 1.0 / (value.max(0.0) + epsilon).sqrt();
        for (place, component) in vector.iter().enumerate() {
            let weight = (component * scale) as f32;
            weights[place * 2 * patch + filter] = weight;
            weights[place * 2 * patch + patch + filter] = -weight;
        }
    }
    weights
}

/// Eigenvalues and unit eigenvectors of a symmetric matrix by Jacobi's cyclic rotations (Golub and Van Loan, Matrix Computations, algorithm
/// 8.5.3); of the two signs a vector may have, that with its largest component positive.
fn eigenpairs(mut matrix: Vec<f64>, size: usize) -> Vec<(f64, Vec<f64>)> {
    let mut vectors = vec![0.0; size * size];
    (0..size).for_each(|i| vectors[i * size + i] = 1.0);
    let scale: f64 = matrix.iter().map(|value| value * value).sum();
    for _ in 0..SWEEPS {
        let off: f64 = (0..size * size).filter(|at| at / size != at % size).map(|at| matrix[at] * matrix[at]).sum();
        if off <= 1e-30 * scale {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                rotate(&mut matrix, &mut vectors, size, p, q);
            }
        }
    }
    let column = |j: usize| {
        let vector: Vec<f64> = (0..size).map(|i| vectors[i * size + j]).collect();
        let largest = vector.iter().fold(0.0f64, |largest, value| if value.abs() > largest.abs() + 1e-9 { *value } else { largest });
        vector.into_iter().map(|value| value * largest.signum()).collect()
    };
    (0..size).map(|j| (matrix[j * size + j], column(j))).collect()
}

/// The rotation in the plane of two axes that makes their element zero.
fn rotate(matrix: &mut [f64], vectors: &mut [f64], size: usize, p: usize, q: usize) {
    let element = matrix[p * size + q];
    if element == 0.0 {
        return;
    }
    let tau = (matrix[q * size + q] - matrix[p * size + p]) / (2.0 * element);
    let tangent = tau.signum() / (tau.abs() + (1.0 + tau * tau).sqrt());
    let cosine = 1.0 / (1.0 + tangent * tangent).sqrt();
    let sine = tangent * cosine;
    let turn = |a: f64, b: f64| (cosine * a - sine * b, sine * a + cosine * b);
    for i in 0..size {
        let (a, b) = (i * size + p, i * size + q);
        (matrix[a], matrix[b]) = turn(matrix[a], matrix[b]);
        (vectors[a], vectors[b]) = turn(vectors[a], vectors[b]);
    }
    for i in 0..size {
        let (a, b) = (p * size + i, q * size + i);
        (matrix[a], matrix[b]) = turn(matrix[a], matrix[b]);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::architecture::{Architecture, Shape};

    proptest! {
        #[test]
        fn eigenpairs_make_the_matrix_again_and_are_orthonormal(size in 1..14usize, seed in any::<u64>()) {
            let mut draw = crate::init::uniform(seed, 0);
            let half: Vec<f64> = (0..size * size).map(|_| f64::from(draw())).collect();
            let matrix: Vec<f64> = (0..size * size).map(|at| half[at] + half[at % size * size + at / size]).collect();
            let pairs = eigenpairs(matrix.clone(), size);
            for i in 0..size {
                for j in 0..size {
                    let again: f64 = pairs.iter().map(|(value, vector)| value * vector[i] * vector[j]).sum();
                    prop_assert!((again - matrix[i * size + j]).abs() < 1e-10, "{again} for {}", matrix[i * size + j]);
                    let product: f64 = pairs[i].1.iter().zip(&pairs[j].1).map(|(one, other)| one * other).sum();
                    prop_assert!((product - f64::from(u8::from(i == j))).abs() < 1e-10, "{product}");
                }
            }
        }
    }

    fn network() -> Network {
        let layers = ["whiten 2x2", "globalpool", "dense 2"].iter().map(|text| text.parse().unwrap()).collect();
        Network::new(&Architecture { input: Shape::Image { height: 7, width: 6, channels: 3 }, layers }, 7).unwrap()
    }

    /// Neighbours and channels that go together, as in photographs.
    fn images(count: usize) -> Vec<f32> {
        let mut draw = crate::init::uniform(3, 5);
        let mut last = 0.0;
        (0..count * 7 * 6 * 3)
            .map(|_| {
                last = 0.8 * last + draw();
                last
            })
            .collect()
    }

    #[test]
    fn the_fitted_filters_take_patches_to_values_without_correlation() {
        let mut network = network();
        assert!(network.has_whitening());
        let images = images(300);
        network.fit_whitening(Input::Floats(&images)).unwrap();
        let weights = network.parameters[0].values.clone();
        let moments = second_moments(network.whitening().unwrap().0, View::Floats(&images));
        let filter = |j: usize| (0..12).map(|k| f64::from(weights[k * 24 + j])).collect::<Vec<_>>();
        for i in 0..12 {
            for j in 0..12 {
                let (one, other) = (filter(i), filter(j));
                let product: f64 = (0..144).map(|at| one[at / 12] * moments[at] * other[at % 12]).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                // The epsilon takes little off the diagonal.
                assert!((product - expected).abs() < 0.02, "{i} {j}: {product}");
            }
            assert!(filter(i).iter().zip(filter(12 + i)).all(|(one, other)| *one == -other));
        }
    }

    #[test]
    fn one_and_three_threads_fit_the_same_bits() {
        let fit = |threads| {
            let mut network = network();
            let images = images(200);
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
                .install(|| network.fit_whitening(Input::Floats(&images)).unwrap());
            network.parameters[0].values.clone()
        };
        assert_eq!(fit(1), fit(3));
    }
}
