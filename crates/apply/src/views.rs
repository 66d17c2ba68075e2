//! The views in which an image is judged (test-time augmentation).

use artifact::{Doing, StageError};
use network::{Input, Network, Pending, Shape};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use transform::View;

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

impl Views {
    /// Whether images are judged as they are only.
    pub fn is_one(&self) -> bool {
        *self == Self::One
    }

    /// Each view, and its part in the average.
    fn all(self) -> Vec<(View, f32)> {
        let both = |by, share| [false, true].map(|is_mirrored| (View { shift: (by, by), is_mirrored }, share));
        match self {
            Self::One => vec![(View::default(), 1.0)],
            Self::Flip => both(0, 0.5).to_vec(),
            Self::FlipAndShift => [both(0, 0.25), both(1, 0.125), both(-1, 0.125)].concat(),
        }
    }

    /// Begins to judge examples: what each view of them will be judged as, and its part in the average.
    ///
    /// # Errors
    /// When examples that are no images shall be seen in several views.
    pub fn begin<'n>(self, network: &'n Network, input: Input<'_>, shape: Shape) -> Result<Judging<'n>, StageError> {
        if self.is_one() {
            return Ok(Judging(vec![(network.begin(input).doing(|| "judging examples".into())?, 1.0)]));
        }
        let (Input::Pixels { bytes, normalisation }, Shape::Image { height, width, channels }) = (input, shape) else {
            return Err(StageError::new("`views` mirrors and moves images, and the model takes rows of features").help("take `views` out"));
        };
        let mut seen = vec![0; bytes.len()];
        let len = height * width * channels;
        let mut judging = Vec::new();
        for (view, share) in self.all() {
            let images = bytes.chunks_exact(len).zip(seen.chunks_exact_mut(len));
            images.for_each(|(image, seen)| view.write(image, (height, width, channels), seen));
            let begun = network.begin(Input::Pixels { bytes: &seen, normalisation });
            judging.push((begun.doing(|| "judging a view of the examples".into())?, share));
        }
        Ok(Judging(judging))
    }
}

/// Examples that are being judged in some views.
pub struct Judging<'n>(Vec<(Pending<'n>, f32)>);

impl Judging<'_> {
    /// The probability of each class of each example, `[examples, classes]`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn end(self) -> Result<Vec<f32>, StageError> {
        let mut sums = Vec::new();
        for (pending, share) in self.0 {
            let judged = pending.probabilities().doing(|| "judging examples".into())?;
            sums.resize(judged.len(), 0.0);
            sums.iter_mut().zip(judged).for_each(|(sum, one)| *sum += share * one);
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_all_views_make_one() {
        for views in [Views::One, Views::Flip, Views::FlipAndShift] {
            assert_eq!(views.all().iter().map(|(_, share)| share).sum::<f32>(), 1.0);
        }
    }

    #[test]
    fn features_have_no_other_side() -> Result<(), Box<dyn std::error::Error>> {
        let architecture = network::Architecture { input: Shape::Features(1), layers: vec!["dense 2".parse()?] };
        let network = Network::new(&architecture, 1)?;
        let judged = |views: Views| views.begin(&network, Input::Floats(&[1.0]), Shape::Features(1)).and_then(Judging::end);
        assert_eq!(judged(Views::One)?.len(), 2);
        assert!(judged(Views::Flip).is_err());
        Ok(())
    }
}
