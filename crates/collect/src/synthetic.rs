//! `collect.synthetic`: handwriting-like digits, drawn on the spot.

use std::fs;
use std::path::Path;

use artifact::{ConfigProblem, Doing, Kind, Outcome, RunContext, Stage, StageError};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_pcg::Pcg64;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pen::{self, SIDE};

/// Draws digits as a hand would: strokes with random slant, width, warp and noise, 28×28 pixels, in the four IDX files that
/// MNIST made common. Needs no network and no data; the same seed gives the same images.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Synthetic {
    /// Images to learn from.
    #[serde(default = "train")]
    pub train: u32,
    /// Images to test with.
    #[serde(default = "test")]
    pub test: u32,
    /// The seed; the pipeline's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

fn train() -> u32 {
    12_000
}
fn test() -> u32 {
    2_000
}

/// More would not fit a test machine's memory, and hold nothing new.
const MOST_IMAGES: u32 = 1_000_000;
/// Images drawn between two looks at whether to stop.
const CHUNK: usize = 1_000;

impl Stage for Synthetic {
    const USES: &'static str = "collect.synthetic";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Draw handwriting-like digits, deterministic from a seed";
    const GIVES: Kind = Kind::Files;

    fn check(&self) -> Vec<ConfigProblem> {
        let counts = [("train", self.train), ("test", self.test)];
        let wrong = counts.into_iter().filter(|(_, count)| !(10..=MOST_IMAGES).contains(count));
        wrong
            .map(|(key, count)| ConfigProblem::at(key, format!("`{key}` is {count}, and 10 to {MOST_IMAGES} images can be drawn")))
            .collect()
    }

    fn set_seed(&mut self, pipeline_seed: u64) {
        self.seed.get_or_insert(pipeline_seed);
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let seed = self.seed.unwrap_or_default();
        let progress = context.progress("digits", Some(u64::from(self.train) + u64::from(self.test)), "images");
        for (set, (name, count)) in [("train", self.train), ("t10k", self.test)].into_iter().enumerate() {
            // The two sets draw from streams that never meet.
            let stream = seed.wrapping_mul(2).wrapping_add(set as u64);
            let labels = shuffled_labels(count as usize, stream);
            let mut pixels = Vec::with_capacity(count as usize * SIDE * SIDE);
            for (chunk, digits) in labels.chunks(CHUNK).enumerate() {
                context.check_stop()?;
                let images: Vec<_> =
                    digits.par_iter().enumerate().map(|(place, digit)| draw(*digit, stream, chunk * CHUNK + place)).collect();
                images.iter().for_each(|image| pixels.extend_from_slice(image));
                progress.add(digits.len() as u64);
            }
            let side = SIDE as u32;
            write_idx(&context.output().join(format!("{name}-images-idx3-ubyte")), &[count, side, side], &pixels)?;
            write_idx(&context.output().join(format!("{name}-labels-idx1-ubyte")), &[count], &labels)?;
        }
        let schema = serde_json::json!({ "train": self.train, "test": self.test, "height": SIDE, "width": SIDE, "classes": 10 });
        Ok(Outcome { rows: Some(u64::from(self.train) + u64::from(self.test)), schema, ..Outcome::default() })
    }
}

/// Ten classes as even as can be, in random order.
fn shuffled_labels(count: usize, stream: u64) -> Vec<u8> {
    let mut labels: Vec<u8> = (0..count).map(|index| (index % 10) as u8).collect();
    labels.shuffle(&mut Pcg64::seed_from_u64(stream));
    labels
}

/// Each image has a generator of its own, so that any thread may draw it.
fn draw(digit: u8, stream: u64, index: usize) -> [u8; SIDE * SIDE] {
    let mut random = Pcg64::seed_from_u64(stream.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index as u64 + 1));
    pen::write(usize::from(digit), &mut random)
}

/// An IDX file of unsigned bytes (LeCun, Cortes and Burges, "The MNIST database", file formats).
fn write_idx(path: &Path, dimensions: &[u32], bytes: &[u8]) -> Result<(), StageError> {
    let mut file = vec![0, 0, 8, dimensions.len() as u8];
    dimensions.iter().for_each(|size| file.extend(size.to_be_bytes()));
    file.extend_from_slice(bytes);
    fs::write(path, file).doing(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_as_even_as_can_be() {
        let labels = shuffled_labels(1_005, 3);
        let count = |digit: u8| labels.iter().filter(|label| **label == digit).count();
        assert!((0..10).all(|digit| count(digit) == 100 + usize::from(digit < 5)));
        assert_ne!(labels[..20], shuffled_labels(1_005, 4)[..20]);
    }

    #[test]
    fn the_same_seed_draws_the_same_image_and_another_another() {
        assert_eq!(draw(4, 1, 2), draw(4, 1, 2));
        assert_ne!(draw(4, 1, 2), draw(4, 1, 3));
        assert_ne!(draw(4, 1, 2), draw(4, 2, 2));
    }

    #[test]
    fn every_digit_leaves_ink_well_within_the_paper() {
        for digit in 0..10 {
            let (mut edge, mut all) = (0u64, 0u64);
            for index in 0..200 {
                let image = draw(digit, 9, index);
                for (place, value) in image.iter().enumerate() {
                    let (x, y) = (place % SIDE, place / SIDE);
                    let is_edge = x == 0 || y == 0 || x == SIDE - 1 || y == SIDE - 1;
                    all += u64::from(*value);
                    edge += if is_edge { u64::from(*value) } else { 0 };
                }
            }
            assert!(all > 200 * 784 * 8, "digit {digit} is too faint: {all}");
            assert!((edge as f64) < 0.08 * all as f64, "digit {digit} runs off the paper: {edge} of {all}");
        }
    }
}
