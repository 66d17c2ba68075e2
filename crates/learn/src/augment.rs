//! Augmentation of images on the fly, on their bytes. What happens to an example depends on the seed, the epoch and its row alone.

use artifact::ConfigProblem;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use transform::view::{Size, View};

/// How train images are varied; each is off unless said.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// Whether images are mirrored left to right.
    pub flip: Flip,
    /// Cuts the image out of one that is this many pixels larger on each side, at a random place; the border mirrors the image. Also
    /// known as random shift or padded random crop.
    pub crop: usize,
    /// Side of a square at a random place that gets the mean colour of the train split (DeVries and Taylor 2017).
    pub cutout: usize,
}

/// Mirroring left to right.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Flip {
    /// Never.
    #[default]
    None,
    /// Each image at random in each epoch.
    Random,
    /// Each image at random in the first epoch, and then every other time: in two epochs the network sees each both ways (Jordan 2024,
    /// <https://arxiv.org/abs/2404.00498>).
    Alternating,
}

/// How an image is seen: what chance has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drawn {
    /// Moved and mirrored.
    pub view: View,
    /// The middle of the square that is cut out, row and column.
    pub cut: Option<(usize, usize)>,
}

impl Augmentation {
    /// Whether images stay as they are.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// What cannot be.
    pub fn check(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        if self.crop > 64 {
            problems.push(ConfigProblem::at("augment.crop", "`crop` must be at most 64 pixels"));
        }
        problems
    }

    /// How the network shall see an image of this size in this epoch.
    pub fn draw(&self, (height, width, _): Size, (seed, epoch, row): (u64, u32, usize)) -> Drawn {
        let mut draw = generator(seed, u64::from(epoch), row);
        let is_mirrored = match self.flip {
            Flip::None => false,
            Flip::Random => draw.random::<bool>(),
            Flip::Alternating => generator(seed, 0, row).random::<bool>() ^ (epoch % 2 == 1),
        };
        let mut shift = || if self.crop == 0 { 0 } else { draw.random_range(0..2 * self.crop + 1) as isize - self.crop as isize };
        let view = View { shift: (shift(), shift()), is_mirrored };
        let cut = (self.cutout > 0).then(|| (draw.random_range(0..height), draw.random_range(0..width)));
        Drawn { view, cut }
    }

    /// Writes the image `from` as it was drawn. `fill` is the mean colour, one byte a channel.
    pub fn apply(&self, drawn: Drawn, from: &[u8], size: Size, fill: &[u8], out: &mut [u8]) {
        drawn.view.write(from, size, out);
        if let Some(middle) = drawn.cut {
            cut_out(out, size, middle, self.cutout, fill);
        }
    }
}

/// A generator for one example in one epoch.
fn generator(seed: u64, epoch: u64, row: usize) -> Pcg64 {
    let mix = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(epoch.wrapping_mul(0xD1B5_4A32_D192_ED03));
    Pcg64::seed_from_u64(mix.wrapping_add((row as u64).wrapping_mul(0x94D0_49BB_1331_11EB)))
}

fn cut_out(image: &mut [u8], (height, width, channels): Size, (y, x): (usize, usize), side: usize, fill: &[u8]) {
    let range = |centre: usize, len: usize| centre.saturating_sub(side / 2)..(centre + side.div_ceil(2)).min(len);
    for y in range(y, height) {
        for x in range(x, width) {
            image[(y * width + x) * channels..][..channels].copy_from_slice(fill);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = (4, 5, 2);

    fn image() -> Vec<u8> {
        (0..40).collect()
    }

    fn apply(augmentation: &Augmentation, epoch: u32, row: usize) -> Vec<u8> {
        let mut out = vec![0; 40];
        augmentation.apply(augmentation.draw(SIZE, (7, epoch, row)), &image(), SIZE, &[200, 201], &mut out);
        out
    }

    fn flipped() -> Vec<u8> {
        image().chunks(10).flat_map(|line| line.chunks(2).rev().flatten().copied().collect::<Vec<_>>()).collect()
    }

    #[test]
    fn nothing_asked_for_changes_nothing() {
        assert!(Augmentation::default().is_off());
        assert_eq!(apply(&Augmentation::default(), 1, 3), image());
    }

    #[test]
    fn an_alternating_flip_shows_each_image_both_ways_in_two_epochs() {
        let augmentation = Augmentation { flip: Flip::Alternating, ..Augmentation::default() };
        let mut first_flipped = 0;
        for row in 0..100 {
            let two = [apply(&augmentation, 1, row), apply(&augmentation, 2, row)];
            assert!(two == [image(), flipped()] || two == [flipped(), image()]);
            assert_eq!(apply(&augmentation, 3, row), two[0]);
            first_flipped += usize::from(two[0] == flipped());
        }
        assert!((30..70).contains(&first_flipped), "{first_flipped}");
    }

    #[test]
    fn a_crop_is_a_window_of_the_mirrored_image_and_every_place_comes_up() {
        let augmentation = Augmentation { crop: 1, ..Augmentation::default() };
        let mut seen = std::collections::BTreeSet::new();
        for row in 0..200 {
            let found = apply(&augmentation, 1, row);
            let expected = (-1..=1).flat_map(|down| (-1..=1).map(move |right| (down, right))).find(|(down, right)| {
                let mut out = vec![0; 40];
                for y in 0..4isize {
                    for x in 0..5isize {
                        let reflect = |place: isize, last: isize| {
                            if place < 0 {
                                -place
                            } else if place > last {
                                2 * last - place
                            } else {
                                place
                            }
                        };
                        let at = (reflect(y + down, 3) * 5 + reflect(x + right, 4)) as usize * 2;
                        let to = (y * 5 + x) as usize * 2;
                        out[to..to + 2].copy_from_slice(&image()[at..at + 2]);
                    }
                }
                out == found
            });
            seen.insert(expected);
        }
        assert_eq!(seen.len(), 9);
        assert!(!seen.contains(&None));
    }

    #[test]
    fn cutout_fills_a_square_with_the_mean_colour_and_nothing_else() {
        let augmentation = Augmentation { cutout: 2, ..Augmentation::default() };
        for row in 0..50 {
            let found = apply(&augmentation, 1, row);
            let filled = found.chunks(2).filter(|pixel| **pixel == [200, 201]).count();
            assert!([1, 2, 4].contains(&filled), "{filled}");
            assert!(found.chunks(2).zip(image().chunks(2)).all(|(found, was)| found == was || *found == [200, 201]));
        }
    }

    #[test]
    fn the_same_example_in_the_same_epoch_looks_the_same_and_in_another_not() {
        let augmentation = Augmentation { flip: Flip::Random, crop: 2, cutout: 1 };
        assert_eq!(apply(&augmentation, 3, 9), apply(&augmentation, 3, 9));
        assert!((4..20).any(|epoch| apply(&augmentation, epoch, 9) != apply(&augmentation, 3, 9)));
    }
}
