//! The views in which an image is judged (test-time augmentation).

use artifact::{Doing, StageError};
use network::{Input, Network, Normalisation, Shape};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// In which views an image is judged; their probabilities are averaged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Views {
    /// As it is.
    #[default]
    One,
    /// As it is and mirrored left to right: twice the time, for data whose sides mean the same.
    Flip,
    /// As with `flip`, and the same of the image moved by a pixel up and left, and down and right: six times the time. The views that are
    /// moved count for half (Jordan 2024, <https://arxiv.org/abs/2404.00498>).
    FlipAndShift,
}

/// One way to look at an image.
#[derive(Clone, Copy)]
struct View {
    /// Left to right.
    is_mirrored: bool,
    /// Pixels that it is moved by, to the left and up.
    shift: isize,
    /// Its part in the average.
    share: f32,
}

impl Views {
    /// Whether images are judged as they are only.
    pub fn is_one(&self) -> bool {
        *self == Self::One
    }

    fn all(self) -> Vec<View> {
        let both = |shift, share| [false, true].map(|is_mirrored| View { is_mirrored, shift, share });
        match self {
            Self::One => vec![View { is_mirrored: false, shift: 0, share: 1.0 }],
            Self::Flip => both(0, 0.5).to_vec(),
            Self::FlipAndShift => [both(0, 0.25), both(1, 0.125), both(-1, 0.125)].concat(),
        }
    }

    /// The probability of each class of each example, `[examples, classes]`.
    ///
    /// # Errors
    /// When examples that are no images shall be seen in several views.
    pub fn judge(self, network: &Network, input: Input<'_>, shape: Shape) -> Result<Vec<f32>, StageError> {
        if self.is_one() {
            return network.probabilities(input).doing(|| "judging examples".into());
        }
        let (Input::Pixels { bytes, normalisation }, Shape::Image { height, width, channels }) = (input, shape) else {
            return Err(StageError::new("`views` mirrors and moves images, and the model takes rows of features").help("take `views` out"));
        };
        let mut sums = Vec::new();
        for view in self.all() {
            let seen = view.of(bytes, (height, width, channels));
            let judged = network.probabilities(as_input(&seen, normalisation)).doing(|| "judging a view of the examples".into())?;
            sums.resize(judged.len(), 0.0);
            sums.iter_mut().zip(judged).for_each(|(sum, one)| *sum += view.share * one);
        }
        Ok(sums)
    }
}

fn as_input<'a>(bytes: &'a [u8], normalisation: &'a Normalisation) -> Input<'a> {
    Input::Pixels { bytes, normalisation }
}

impl View {
    /// Images of this height, width and channels, as they are seen; what comes in at a border is what lies within it, mirrored.
    fn of(self, images: &[u8], (height, width, channels): (usize, usize, usize)) -> Vec<u8> {
        let mut seen = Vec::with_capacity(images.len());
        for image in images.chunks_exact(height * width * channels) {
            for y in 0..height {
                let line = &image[reflected(y, self.shift, height) * width * channels..][..width * channels];
                for x in 0..width {
                    let x = reflected(if self.is_mirrored { width - 1 - x } else { x }, self.shift, width);
                    seen.extend_from_slice(&line[x * channels..][..channels]);
                }
            }
        }
        seen
    }
}

/// The place that lies so far behind this one; beyond an end, the one that mirrors it without repeating the end.
fn reflected(place: usize, shift: isize, len: usize) -> usize {
    let last = len as isize - 1;
    let place = (place as isize + shift).abs();
    (if place > last { 2 * last - place } else { place }).clamp(0, last) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirrored_image_has_its_columns_in_the_other_order_and_its_channels_in_the_same() {
        let bytes: Vec<u8> = (0..12).collect();
        let view = View { is_mirrored: true, shift: 0, share: 1.0 };
        assert_eq!(view.of(&bytes, (2, 3, 2)), [4, 5, 2, 3, 0, 1, 10, 11, 8, 9, 6, 7]);
    }

    #[test]
    fn a_moved_image_mirrors_what_lies_within_its_border() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let moved = |shift| View { is_mirrored: false, shift, share: 1.0 }.of(&bytes, (3, 3, 1));
        assert_eq!(moved(1), [5, 6, 5, 8, 9, 8, 5, 6, 5]);
        assert_eq!(moved(-1), [5, 4, 5, 2, 1, 2, 5, 4, 5]);
        let point = View { is_mirrored: true, shift: 1, share: 1.0 };
        assert_eq!(point.of(&[7, 8], (1, 1, 1)), [7, 8], "an image of one pixel has nothing beside it");
    }

    #[test]
    fn the_shares_of_all_views_make_one() {
        for views in [Views::One, Views::Flip, Views::FlipAndShift] {
            assert_eq!(views.all().iter().map(|view| view.share).sum::<f32>(), 1.0);
        }
    }

    #[test]
    fn features_have_no_other_side() -> Result<(), Box<dyn std::error::Error>> {
        let architecture = network::Architecture { input: Shape::Features(1), layers: vec!["dense 2".parse()?] };
        let network = Network::new(&architecture, 1)?;
        let judged = |views: Views| views.judge(&network, Input::Floats(&[1.0]), Shape::Features(1));
        assert_eq!(judged(Views::One)?.len(), 2);
        assert!(judged(Views::Flip).is_err());
        Ok(())
    }
}
