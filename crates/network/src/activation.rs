//! Activations and their derivatives over slices.

use crate::{layer::Activation, simd::for_each_level};

impl Activation {
    /// Whether the derivative needs the value before the activation; that of ReLU is read off its result.
    pub(crate) fn needs_input(self) -> bool {
        matches!(self, Activation::Gelu | Activation::Silu)
    }

    /// Whether the maximum over a window may be taken before the activation: it never falls as its input rises.
    pub(crate) fn is_monotone(self) -> bool {
        matches!(self, Activation::None | Activation::Relu)
    }

    /// Replaces each value by its activation.
    pub(crate) fn apply(self, values: &mut [f32]) {
        match self {
            Activation::None => {}
            Activation::Relu => relu(values),
            Activation::Gelu => gelu(values),
            Activation::Silu => silu(values),
        }
    }

    /// Multiplies `gradient` by the derivative. `kept` is the result for ReLU, the value before the activation for
    /// those that [need it](Activation::needs_input), and unused without an activation.
    pub(crate) fn backward(self, kept: &[f32], gradient: &mut [f32]) {
        match self {
            Activation::None => {}
            Activation::Relu => relu_backward(kept, gradient),
            Activation::Gelu => gelu_backward(kept, gradient),
            Activation::Silu => silu_backward(kept, gradient),
        }
    }
}

for_each_level! {
    fn relu(values: &mut [f32]) {
        let _ = FMA;
        for x in values.iter_mut() {
            // Written so that a NaN stays a NaN: a diverged training must show.
            *x = if 0.0 > *x { 0.0 } else { *x };
        }
    }
}

for_each_level! {
    fn relu_backward(output: &[f32], gradient: &mut [f32]) {
        let _ = FMA;
        for (gradient, y) in gradient.iter_mut().zip(output) {
            *gradient = if *y > 0.0 { *gradient } else { 0.0 };
        }
    }
}

for_each_level! {
    fn gelu(values: &mut [f32]) {
        let _ = FMA;
        for x in values.iter_mut() {
            *x *= normal_cdf(*x);
        }
    }
}

for_each_level! {
    fn gelu_backward(kept: &[f32], gradient: &mut [f32]) {
        let _ = FMA;
        for (gradient, x) in gradient.iter_mut().zip(kept) {
            *gradient *= normal_cdf(*x) + *x * normal_pdf(*x);
        }
    }
}

for_each_level! {
    fn silu(values: &mut [f32]) {
        let _ = FMA;
        for x in values.iter_mut() {
            *x *= sigmoid(*x);
        }
    }
}

for_each_level! {
    fn silu_backward(kept: &[f32], gradient: &mut [f32]) {
        let _ = FMA;
        for (gradient, x) in gradient.iter_mut().zip(kept) {
            let share = sigmoid(*x);
            *gradient *= share * (1.0 + *x * (1.0 - share));
        }
    }
}

/// `e^x` to two units in the last place, in operations that every processor has as vectors: `2^n` from the exponent's bits times a
/// polynomial on what is left (Cephes' `expf`, Moshier 1989). Beyond the range of f32 it stays at its ends.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Added to a small number, it leaves the nearest whole one in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = ((((1.987_569_1e-4 * r + 1.398_2e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 1.666_666_5e-1) * r + 0.5;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    (p * r * r + r + 1.0) * power
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[inline(always)]
fn normal_pdf(x: f32) -> f32 {
    0.398_942_3 * exp(-0.5 * x * x)
}

/// The standard normal distribution function, `(1 + erf(x / √2)) / 2`, with the error function of Abramowitz and
/// Stegun 7.1.26 (absolute error below 1.5e-7).
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let series = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let tail = 0.5 * series * exp(-z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_activations_have_their_published_values() {
        // PyTorch 2: torch.nn.functional.{gelu,silu} at -2, -0.5, 0, 1, 3.
        let x = [-2.0, -0.5, 0.0, 1.0, 3.0];
        let gelu = [-0.045_500_26, -0.154_268_77, 0.0, 0.841_344_7, 2.995_950_2];
        let silu = [-0.238_405_84, -0.188_770_33, 0.0, 0.731_058_6, 2.857_722_3];
        for (activation, expected) in [(Activation::Gelu, gelu), (Activation::Silu, silu)] {
            let mut values = x;
            activation.apply(&mut values);
            for (value, expected) in values.iter().zip(expected) {
                assert!((value - expected).abs() < 1e-6, "{activation:?}: {value} for {expected}");
            }
        }
    }

    #[test]
    fn the_derivatives_agree_with_central_differences() {
        for activation in [Activation::None, Activation::Relu, Activation::Gelu, Activation::Silu] {
            for x in [-3.0f32, -1.0, -0.3, 0.2, 0.9, 2.5] {
                let at = |x: f32| {
                    let mut value = [x];
                    activation.apply(&mut value);
                    f64::from(value[0])
                };
                let difference = (at(x + 1e-2) - at(x - 1e-2)) / 2e-2;
                let kept = if activation.needs_input() { x } else { at(x) as f32 };
                let mut gradient = [1.0];
                activation.backward(&[kept], &mut gradient);
                assert!((f64::from(gradient[0]) - difference).abs() < 1e-3, "{activation:?} at {x}: {} for {difference}", gradient[0]);
            }
        }
    }

    #[test]
    fn the_exponential_agrees_with_the_standard_library() {
        for step in -870..880 {
            let x = step as f32 * 0.1;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found - expected).abs() <= 3e-7 * expected, "{x}: {found} for {expected}");
        }
        assert!(exp(f32::NAN).is_nan() && exp(-1e9) < 1e-37 && exp(1e9) > 1e38);
    }

    #[test]
    fn relu_lets_a_nan_through() {
        let mut values = [f32::NAN, -1.0, 2.0];
        Activation::Relu.apply(&mut values);
        assert!(values[0].is_nan() && values[1] == 0.0 && values[2] == 2.0);
    }
}
