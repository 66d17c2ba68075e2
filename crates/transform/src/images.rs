//! f for images: raw pixels to network input.

use artifact::StageError;
use dataset::ImageShape;
use serde::{Deserialize, Serialize};

/// Shape, classes and normalisation of images.
///
/// `mean` and `std` are in units of raw pixels, 0 to 255, so that one formula serves every kind of normalisation:
/// `value = (pixel - mean[c]) / std[c]`.
/// `standard` fits both on the train split; `unit` is mean 0, std 255; `none` is mean 0, std 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageTransform {
    /// What every image must have.
    pub shape: ImageShape,
    /// The classes of the train split, sorted (as numbers where all are numbers); a label's code is its place here.
    pub classes: Vec<String>,
    /// Subtracted, per channel, in raw pixel units.
    pub mean: Vec<f64>,
    /// Divided by, per channel, in raw pixel units; never 0.
    pub std: Vec<f64>,
}

impl ImageTransform {
    /// Per channel, what a pixel is multiplied by: `value = pixel * scale[c] + shift[c]`.
    pub fn scale(&self) -> Vec<f32> {
        self.std.iter().map(|std| (1.0 / std) as f32).collect()
    }

    /// Per channel, what is then added.
    pub fn shift(&self) -> Vec<f32> {
        self.mean.iter().zip(&self.std).map(|(mean, std)| (-mean / std) as f32).collect()
    }

    /// A label's code; none for a label that the train split did not have.
    pub fn code(&self, label: &str) -> Option<usize> {
        self.classes.iter().position(|class| class == label)
    }

    /// Checks that images of this shape fit.
    ///
    /// # Errors
    /// When they do not; says both shapes.
    pub fn check_shape(&self, found: ImageShape) -> Result<(), StageError> {
        match found == self.shape {
            true => Ok(()),
            false => {
                Err(StageError::new(format!("the images are {found} (height×width×channels), and this f was fitted on {}", self.shape))
                    .help("make the dataset with the same size and channels as the one the model learnt from"))
            }
        }
    }

    /// Normalises one image: `pixels` and `out` are `[height, width, channels]`. Multiplies and adds in 32 bits without
    /// fusing the two, so that every machine gives the same bits.
    ///
    /// # Errors
    /// When either has another length than the shape.
    pub fn apply(&self, pixels: &[u8], out: &mut [f32]) -> Result<(), StageError> {
        let needed = self.shape.bytes();
        if pixels.len() != needed || out.len() != needed {
            return Err(StageError::new(format!(
                "an image of {} bytes into {} values, where {} images have {needed}",
                pixels.len(),
                out.len(),
                self.shape
            )));
        }
        let (scale, shift) = (self.scale(), self.shift());
        if let ([scale], [shift]) = (scale.as_slice(), shift.as_slice()) {
            out.iter_mut().zip(pixels).for_each(|(out, pixel)| *out = f32::from(*pixel) * scale + shift);
            return Ok(());
        }
        for (out, pixels) in out.chunks_exact_mut(scale.len()).zip(pixels.chunks_exact(scale.len())) {
            for channel in 0..scale.len() {
                out[channel] = f32::from(pixels[channel]) * scale[channel] + shift[channel];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn two_channels() -> ImageTransform {
        let shape = ImageShape { height: 1, width: 2, channels: 2 };
        ImageTransform { shape, classes: vec!["cat".into(), "dog".into()], mean: vec![100.0, 0.0], std: vec![50.0, 255.0] }
    }

    #[test]
    fn each_channel_has_its_own_scale_and_shift() {
        let mut out = [0.0; 4];
        two_channels().apply(&[100, 255, 200, 0], &mut out).unwrap();
        assert_eq!(out, [0.0, 1.0, 2.0, 0.0]);
    }

    #[test]
    fn none_leaves_pixels_exactly_as_they_are() {
        let shape = ImageShape { height: 16, width: 16, channels: 1 };
        let plain = ImageTransform { shape, classes: Vec::new(), mean: vec![0.0], std: vec![1.0] };
        let pixels: Vec<u8> = (0..=255).collect();
        let mut out = vec![0.0; 256];
        plain.apply(&pixels, &mut out).unwrap();
        assert!(out.iter().zip(&pixels).all(|(value, pixel)| *value == f32::from(*pixel)));
    }

    #[test]
    fn a_wrong_size_is_an_error_that_says_both_sizes() {
        let text = two_channels().apply(&[1, 2, 3], &mut [0.0; 4]).unwrap_err().to_string();
        assert!(text.contains("3 bytes") && text.contains("1×2×2"), "{text}");
        let text = two_channels().check_shape(ImageShape { height: 3, width: 2, channels: 2 }).unwrap_err().to_string();
        assert!(text.contains("3×2×2") && text.contains("1×2×2"), "{text}");
    }

    #[test]
    fn a_label_is_encoded_as_its_place_among_the_classes() {
        assert_eq!((two_channels().code("dog"), two_channels().code("cow")), (Some(1), None));
    }
}
