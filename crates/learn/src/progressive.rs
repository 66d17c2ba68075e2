//! Progressive resizing: the first epochs learn from smaller images, which takes less time, and the last from whole ones.

use artifact::ConfigProblem;
use network::{Architecture, Shape};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Epochs that learn from smaller images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Smaller {
    /// How many.
    pub epochs: u32,
    /// Height and width of the images then.
    pub size: [usize; 2],
}

/// Height and width of the images in an epoch, counted from 1; `None` where they are whole.
pub fn size_in(progressive: &[Smaller], epoch: u32) -> Option<[usize; 2]> {
    let mut last = 0;
    progressive.iter().find_map(|part| {
        last += part.epochs;
        (epoch <= last).then_some(part.size)
    })
}

/// The shape of images of this size.
pub fn shape_of(whole: Shape, size: Option<[usize; 2]>) -> Shape {
    match size {
        Some([height, width]) => Shape::Image { height, width, channels: whole.channels() },
        None => whole,
    }
}

/// What is wrong with the config by itself.
pub fn check(progressive: &[Smaller], epochs: u32) -> Vec<ConfigProblem> {
    let all = progressive.iter().map(|part| u64::from(part.epochs)).sum::<u64>();
    let mut problems = Vec::new();
    if all > 0 && all >= u64::from(epochs) {
        let message = format!("the last epoch must learn from whole images: these are {all} epochs, and `epochs` is {epochs}");
        problems.push(ConfigProblem::at("progressive", message));
    }
    problems
}

/// What does not fit examples of this shape.
pub fn problems(progressive: &[Smaller], architecture: &Architecture) -> Vec<String> {
    let Shape::Image { height, width, .. } = architecture.input else {
        let is_wanted = !progressive.is_empty();
        return is_wanted.then(|| "`progressive` makes images smaller, and the data are rows of features".to_owned()).into_iter().collect();
    };
    let problem = |part: &Smaller| {
        let [rows, columns] = part.size;
        if !(1..=height).contains(&rows) || !(1..=width).contains(&columns) {
            return Some(format!(
                "the images are {height}x{width}, and cannot be made {rows}x{columns}: at least 1x1, and no larger than they are"
            ));
        }
        let input = shape_of(architecture.input, Some(part.size));
        architecture.for_input(input).err().map(|error| format!("with images of {rows}x{columns}, {error}"))
    };
    progressive.iter().filter_map(problem).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn part(epochs: u32, side: usize) -> Smaller {
        Smaller { epochs, size: [side, side] }
    }

    fn found(layers: &[&str], side: usize) -> Vec<String> {
        let layers = layers.iter().map(|text| text.parse().unwrap()).collect();
        problems(&[part(1, side)], &Architecture { input: Shape::Image { height: 32, width: 32, channels: 3 }, layers })
    }

    #[test]
    fn images_grow_from_part_to_part_and_are_whole_at_last() {
        let parts = [part(2, 16), part(1, 24)];
        let sizes: Vec<_> = (1..=5).map(|epoch| size_in(&parts, epoch).map(|size| size[0])).collect();
        assert_eq!(sizes, [Some(16), Some(16), Some(24), None, None]);
        assert_eq!(size_in(&[], 1), None);
        assert!(check(&parts, 4).is_empty());
        assert_eq!(check(&parts, 3).len(), 1, "no epoch is left for whole images");
    }

    #[test]
    fn layers_that_depend_on_the_size_of_an_image_are_named_with_what_to_do() {
        assert_eq!(found(&["conv 8 3x3", "globalpool", "dense 2"], 20), [""; 0]);
        let flattened = found(&["conv 8 3x3", "dense 2"], 20);
        assert!(
            flattened[0].contains("with images of 20x20") && flattened[0].contains("layer 2 `dense 2`: it has weights of its own"),
            "{flattened:?}"
        );
        assert!(found(&["conv 8 9x9", "globalpool", "dense 2"], 8)[0].contains("a 9x9 kernel does not fit the 8x8 image"));
        assert!(found(&["globalpool", "dense 2"], 33)[0].contains("the images are 32x32, and cannot be made 33x33"));
        assert!(problems(&[part(1, 2)], &Architecture { input: Shape::Features(4), layers: Vec::new() })[0].contains("rows of features"));
    }
}
