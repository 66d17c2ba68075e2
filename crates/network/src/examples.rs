//! Examples on their way into a layer: raw pixels with their scaling, or numbers.

use std::{array, ops::Range, sync::Arc};

use crate::{error::NetworkError, recycle::Floats, simd::for_each_level};

/// How raw pixel bytes become numbers: `byte * scale[c] + shift[c]` for channel `c`.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalisation {
    /// One factor a channel.
    pub scale: Vec<f32>,
    /// One offset a channel, added after scaling.
    pub shift: Vec<f32>,
}

impl Normalisation {
    /// Bytes to [0, 1] for `channels` channels.
    pub fn unit(channels: usize) -> Self {
        Normalisation { scale: vec![1.0 / 255.0; channels], shift: vec![0.0; channels] }
    }

    /// Bytes to zero mean and unit deviation, given both per channel in units of [0, 1].
    pub fn standard(mean: &[f32], deviation: &[f32]) -> Self {
        let scale = deviation.iter().map(|deviation| 1.0 / (255.0 * deviation)).collect();
        let shift = mean.iter().zip(deviation).map(|(mean, deviation)| -mean / deviation).collect();
        Normalisation { scale, shift }
    }
}

/// A batch of examples as the caller has them: example after example without gaps.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Bytes, `[batch, height, width, channels]`; scaled a few images at a time inside the first layer.
    Pixels {
        /// The raw bytes.
        bytes: &'a [u8],
        /// How they become numbers.
        normalisation: &'a Normalisation,
    },
    /// Numbers that are ready: `[batch, height, width, channels]` or `[batch, features]`.
    Floats(&'a [f32]),
}

impl<'a> Input<'a> {
    /// How many values there are in all examples together.
    pub fn len(&self) -> usize {
        match self {
            Input::Pixels { bytes, .. } => bytes.len(),
            Input::Floats(values) => values.len(),
        }
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of examples of `size` values and `channels` channels.
    pub(crate) fn count(&self, size: usize, channels: usize) -> Result<usize, NetworkError> {
        if !self.len().is_multiple_of(size) {
            let expected = self.len().next_multiple_of(size);
            let why = format!("a whole number of examples of {size} values");
            return Err(NetworkError::Size { what: "the input", found: self.len(), expected, why });
        }
        if let Input::Pixels { normalisation, .. } = self {
            for (what, values) in [("the normalisation's scale", &normalisation.scale), ("the normalisation's shift", &normalisation.shift)]
            {
                if values.len() != channels {
                    return Err(NetworkError::Size { what, found: values.len(), expected: channels, why: "one for each channel".into() });
                }
            }
        }
        Ok(self.len() / size)
    }

    pub(crate) fn view(&self) -> View<'a> {
        match *self {
            Input::Pixels { bytes, normalisation } => View::Pixels { bytes, normalisation },
            Input::Floats(values) => View::Floats(values),
        }
    }

    /// A copy that the backward pass may keep.
    pub(crate) fn to_values(self) -> Values {
        match self {
            Input::Pixels { bytes, normalisation } => Values::Pixels { bytes: bytes.into(), normalisation: normalisation.clone().into() },
            Input::Floats(values) => Values::Floats(Arc::new(values.to_vec().into())),
        }
    }
}

/// What flows from layer to layer, shared between the next layer and the tape.
#[derive(Clone)]
pub(crate) enum Values {
    Pixels { bytes: Arc<[u8]>, normalisation: Arc<Normalisation> },
    Floats(Arc<Floats>),
}

impl Values {
    pub(crate) fn view(&self) -> View<'_> {
        match self {
            Values::Pixels { bytes, normalisation } => View::Pixels { bytes, normalisation },
            Values::Floats(values) => View::Floats(values),
        }
    }

    /// The numbers themselves, converted if they are pixels (for a first layer that is no convolution).
    pub(crate) fn to_floats(&self, channels: usize) -> Arc<Floats> {
        match self {
            Values::Floats(values) => values.clone(),
            Values::Pixels { bytes, .. } => {
                let mut out = Floats::any(bytes.len());
                self.view().write(channels, &mut out);
                Arc::new(out)
            }
        }
    }
}

/// Some examples, borrowed.
#[derive(Clone, Copy)]
pub(crate) enum View<'a> {
    Pixels { bytes: &'a [u8], normalisation: &'a Normalisation },
    Floats(&'a [f32]),
}

impl<'a> View<'a> {
    /// Values of all examples together.
    pub(crate) fn len(&self) -> usize {
        match self {
            View::Pixels { bytes, .. } => bytes.len(),
            View::Floats(values) => values.len(),
        }
    }

    pub(crate) fn range(&self, range: Range<usize>) -> View<'a> {
        match *self {
            View::Pixels { bytes, normalisation } => View::Pixels { bytes: &bytes[range], normalisation },
            View::Floats(values) => View::Floats(&values[range]),
        }
    }

    /// Writes the numbers into `out`; the slice begins at a pixel's first channel.
    pub(crate) fn write(&self, channels: usize, out: &mut [f32]) {
        match *self {
            View::Floats(values) => out.copy_from_slice(values),
            View::Pixels { bytes, normalisation: Normalisation { scale, shift } } => match channels {
                1 => scale_bytes(bytes, [scale[0]], [shift[0]], out),
                3 => scale_bytes(bytes, [scale[0], scale[1], scale[2]], [shift[0], shift[1], shift[2]], out),
                _ => {
                    for (pixel, out) in bytes.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
                        for c in 0..channels {
                            out[c] = f32::from(pixel[c]) * scale[c] + shift[c];
                        }
                    }
                }
            },
        }
    }
}

/// Vectors' lanes times a few channels: a stretch that begins with a pixel again.
const STRETCH: usize = 16;

/// The common channel counts: `C` vectors of lanes at a time, each lane with its channel's factor.
fn scale_bytes<const C: usize>(bytes: &[u8], scale: [f32; C], shift: [f32; C], out: &mut [f32]) {
    let by_lane =
        |values: [f32; C]| -> [[f32; STRETCH]; C] { array::from_fn(|vector| array::from_fn(|lane| values[(vector * STRETCH + lane) % C])) };
    scale_lanes(bytes, &by_lane(scale), &by_lane(shift), out);
}

for_each_level! {
    fn scale_lanes(bytes: &[u8], scale: &[[f32; STRETCH]], shift: &[[f32; STRETCH]], out: &mut [f32]) {
        let _ = FMA;
        let stretch = scale.len() * STRETCH;
        for (bytes, out) in bytes.chunks(stretch).zip(out.chunks_mut(stretch)) {
            for (((bytes, out), scale), shift) in bytes.chunks(STRETCH).zip(out.chunks_mut(STRETCH)).zip(scale).zip(shift) {
                if let (Ok(bytes), Ok(out)) = (<&[u8; STRETCH]>::try_from(bytes), <&mut [f32; STRETCH]>::try_from(&mut *out)) {
                    for lane in 0..STRETCH {
                        out[lane] = f32::from(bytes[lane]) * scale[lane] + shift[lane];
                    }
                } else {
                    for (lane, (byte, out)) in bytes.iter().zip(out).enumerate() {
                        *out = f32::from(*byte) * scale[lane] + shift[lane];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_are_scaled_and_shifted_by_channel() {
        for channels in 1..6usize {
            let bytes: Vec<u8> = (0..channels * 37).map(|i| (i * 9 % 256) as u8).collect();
            let normalisation = Normalisation {
                scale: (0..channels).map(|c| 0.5 + c as f32).collect(),
                shift: (0..channels).map(|c| -(c as f32)).collect(),
            };
            let mut out = vec![0.0; bytes.len()];
            View::Pixels { bytes: &bytes, normalisation: &normalisation }.write(channels, &mut out);
            for (i, value) in out.iter().enumerate() {
                let c = i % channels;
                assert_eq!(*value, f32::from(bytes[i]) * (0.5 + c as f32) - c as f32);
            }
        }
    }

    #[test]
    fn a_standard_normalisation_gives_zero_at_the_mean() {
        let normalisation = Normalisation::standard(&[0.2], &[0.5]);
        let mut out = [1.0, 0.0];
        View::Pixels { bytes: &[51, 255], normalisation: &normalisation }.write(1, &mut out);
        assert!(out[0].abs() < 1e-6 && (out[1] - 1.6).abs() < 1e-6, "{out:?}");
    }

    #[test]
    fn a_batch_with_half_an_example_is_refused() {
        let error = Input::Floats(&[0.0; 7]).count(3, 3).expect_err("7 is not a multiple of 3").to_string();
        assert!(error.contains("7 values were given, 9 are needed"), "{error}");
    }
}
