//! The whole network as data: the shape of an example, the layers, and the check that they fit each other.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod check;

pub(crate) use check::{output_shape, same_padding, windows};

use crate::layer::LayerSpec;

/// The largest pooling window: the position of a window's maximum is kept in one byte.
pub(crate) const MAX_WINDOW: usize = 15;

/// The shape of one example, or of what a layer gives for one example.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Shape {
    /// Rows × columns × channels, in this order in memory (`[height, width, channels]`).
    Image {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Values per pixel.
        channels: usize,
    },
    /// A plain list of numbers.
    Features(usize),
}

impl Shape {
    /// How many numbers one example has.
    pub fn len(&self) -> usize {
        match *self {
            Shape::Image { height, width, channels } => height * width * channels,
            Shape::Features(n) => n,
        }
    }

    /// Whether an example has no numbers at all; [`Architecture::check`] refuses it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of channels: the last axis, over which batch normalisation and pixel scaling work.
    pub fn channels(&self) -> usize {
        match *self {
            Shape::Image { channels, .. } => channels,
            Shape::Features(n) => n,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Image { height, width, channels } => write!(f, "{height}x{width}x{channels}"),
            Shape::Features(n) => write!(f, "{n}"),
        }
    }
}

/// A network as data: what goes in and which layers it passes, the last of which gives one logit a class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// The shape of one example.
    pub input: Shape,
    /// The layers from input to logits.
    pub layers: Vec<LayerSpec>,
}

/// A layer's place, also within the residual blocks that hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// From [`Architecture::layers`] on, counted from 0, as weights are named: `3`, `3.residual.0`, `3.shortcut.1`.
    pub(crate) path: String,
    /// Counted from 1, for people: `4`, `4.1`, `4.s2`.
    pub(crate) number: String,
}

impl Place {
    pub(crate) fn top(index: usize) -> Self {
        Place { path: index.to_string(), number: (index + 1).to_string() }
    }

    /// Of a layer of the residual block at this place.
    pub(crate) fn residual(&self, index: usize) -> Self {
        Place { path: format!("{}.residual.{index}", self.path), number: format!("{}.{}", self.number, index + 1) }
    }

    /// Of a layer of its shortcut.
    pub(crate) fn shortcut(&self, index: usize) -> Self {
        Place { path: format!("{}.shortcut.{index}", self.path), number: format!("{}.s{}", self.number, index + 1) }
    }
}

/// What [`Architecture::check`] finds out about one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerReport {
    /// The layer's number, from 1; within a residual block that is layer 4 they are `4.1`, `4.2`, …, and `4.s1`, … in its shortcut.
    pub number: String,
    /// The layer in its canonical text; of a residual block, what is left to do once its layers are done.
    pub layer: String,
    /// The shape of what it gives for one example.
    pub output: Shape,
    /// How many numbers it learns.
    pub parameters: usize,
    /// Floating-point operations for one example in the forward direction; a multiply-add counts as two.
    pub flops: u64,
}

/// The shapes, parameters and costs of an [`Architecture`] whose layers fit. `Display` is a table for users.
#[derive(Clone, Debug, PartialEq)]
pub struct ArchitectureReport {
    /// The shape of one example.
    pub input: Shape,
    /// One entry a layer; those of a residual block stand before the block itself.
    pub layers: Vec<LayerReport>,
}

impl ArchitectureReport {
    /// Number of logits: the classes the network tells apart.
    pub fn classes(&self) -> usize {
        self.layers.last().map_or(0, |layer| layer.output.len())
    }

    /// How many numbers the network learns.
    pub fn parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.parameters).sum()
    }

    /// Floating-point operations for one example in the forward direction.
    pub fn flops(&self) -> u64 {
        self.layers.iter().map(|layer| layer.flops).sum()
    }
}

/// One reason why an [`Architecture`] cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The layer's place in [`Architecture::layers`], from 0: `3`, or `3.residual.0` and `3.shortcut.0` within a residual block; `None` where
    /// the input or the network as a whole is at fault.
    pub place: Option<String>,
    /// What is wrong and what to do; complete by itself (it names the layer, counted from 1: `4`, `4.1`, `4.s1`).
    pub message: String,
}

/// All reasons why an [`Architecture`] cannot be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchitectureError {
    /// At least one, in the order of the layers.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ArchitectureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the layers do not fit together")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {}", problem.message))
    }
}

impl std::error::Error for ArchitectureError {}

impl fmt::Display for ArchitectureReport {
    /// A table: number, layer, output, parameters, operations; then the totals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = |of: fn(&LayerReport) -> &str, least: usize| self.layers.iter().map(|layer| of(layer).len()).fold(least, usize::max);
        let (digits, width) = (longest(|layer| &layer.number, 3), longest(|layer| &layer.layer, "layer".len()));
        writeln!(f, "{:>digits$}  {:<width$}  {:>12}  {:>12}  {:>12}", "#", "layer", "output", "parameters", "MFLOP")?;
        writeln!(f, "{:>digits$}  {:<width$}  {:>12}  {:>12}  {:>12}", "", "input", self.input.to_string(), "", "")?;
        for LayerReport { number, layer, output, parameters, flops } in &self.layers {
            let (output, parameters, mega) = (output.to_string(), grouped(*parameters), *flops as f64 / 1e6);
            writeln!(f, "{number:>digits$}  {layer:<width$}  {output:>12}  {parameters:>12}  {mega:>12.3}")?;
        }
        let mega = self.flops() as f64 / 1e6;
        write!(f, "{:>digits$}  {:<width$}  {:>12}  {:>12}  {mega:>12.3}", "", "total", "", grouped(self.parameters()))
    }
}

/// A count with its thousands apart: 122,570.
fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn image(height: usize, width: usize, channels: usize) -> Shape {
        Shape::Image { height, width, channels }
    }

    fn net(input: Shape, layers: &[&str]) -> Architecture {
        Architecture { input, layers: layers.iter().map(|text| text.parse().unwrap()).collect() }
    }

    fn problems(input: Shape, layers: &[&str]) -> Vec<String> {
        net(input, layers).check().unwrap_err().problems.into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn the_reference_network_has_its_known_shapes_parameters_and_operations() {
        let layers = ["conv 32 3x3 relu", "pool 2", "conv 64 3x3 relu", "pool 2", "conv 64 3x3 relu", "dense 64 relu", "dense 10"];
        let report = net(image(32, 32, 3), &layers).check().unwrap();
        let outputs: Vec<String> = report.layers.iter().map(|layer| layer.output.to_string()).collect();
        assert_eq!(outputs, ["30x30x32", "15x15x32", "13x13x64", "6x6x64", "4x4x64", "64", "10"]);
        assert_eq!(report.parameters(), 122_570, "what Keras counts");
        assert_eq!(report.classes(), 10);
        assert!((9.0e6..9.3e6).contains(&(report.flops() as f64)));
        let table = report.to_string();
        assert!(table.contains("conv 64 3x3 relu") && table.contains("122,570"), "{table}");
    }

    #[test]
    fn every_fault_is_reported_at_once_with_its_layer() {
        let found = problems(image(9, 9, 1), &["conv 8 3x3", "pool 3", "conv 64 9x9", "dense 4", "pool 2", "dense 10 relu"]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("layer 3 `conv 64 9x9`: a 9x9 kernel does not fit the 2x2 image that reaches it"), "{}", found[0]);
        assert!(found[1].starts_with("layer 5 `pool 2`: it needs an image, but a list of 4 values"), "{}", found[1]);
        assert!(found[2].starts_with("layer 6 `dense 10 relu`: the last layer gives the logits"), "{}", found[2]);
    }

    fn with_block(block: &str) -> Architecture {
        let block = serde_json::from_str(block).unwrap();
        let mut network = net(image(32, 32, 3), &["conv 16 3x3 same relu", "globalpool", "dense 10"]);
        network.layers.insert(1, block);
        network
    }

    #[test]
    fn the_layers_of_a_residual_block_are_counted_below_it() {
        let block = r#"{"residual": ["conv 32 3x3 stride 2 same relu", "conv 32 3x3 same"], "shortcut": ["conv 32 1x1 stride 2"], "activation": "relu"}"#;
        let report = with_block(block).check().unwrap();
        let numbers: Vec<&str> = report.layers.iter().map(|layer| layer.number.as_str()).collect();
        assert_eq!(numbers, ["1", "2.1", "2.2", "2.s1", "2", "3", "4"]);
        assert_eq!(report.layers[4].layer, "residual relu");
        assert_eq!((report.layers[4].output, report.layers[4].flops), (image(16, 16, 32), 16 * 16 * 32));
        assert_eq!(report.parameters(), 448 + 4_640 + 9_248 + 544 + 330, "what Keras counts");
    }

    #[test]
    fn ways_that_end_unlike_are_refused_with_a_shortcut_that_would_do() {
        let problem = |block: &str| with_block(block).check().unwrap_err().problems.remove(0);
        let found = problem(r#"{"residual": ["conv 32 3x3 stride 2 same"], "activation": "relu"}"#);
        assert_eq!(found.place.as_deref(), Some("1"));
        let expected = "layer 2 `residual relu`: its layers give 16x16x32 where 32x32x16 came in, and the two are added up: `shortcut = [\"conv 32 1x1 stride 2\"]` would make them alike";
        assert_eq!(found.message, expected);
        let found = problem(r#"{"residual": ["conv 16 3x3"], "shortcut": ["conv 16 5x5"]}"#).message;
        assert!(found.contains("its layers give 30x30x16 and its shortcut 28x28x16"), "{found}");
        let found = problem(r#"{"residual": ["conv 16 3x3 same", "conv 8 40x1"]}"#);
        assert_eq!(found.place.as_deref(), Some("1.residual.1"));
        assert!(found.message.starts_with("layer 2.2 `conv 8 40x1`: a 40x1 kernel does not fit"), "{}", found.message);
        assert!(problem(r#"{"residual": []}"#).message.contains("it has no layers"));
    }

    #[test]
    fn an_empty_input_no_layers_and_an_image_at_the_end_are_refused() {
        assert!(problems(image(0, 9, 1), &["dense 2"])[0].contains("has no values"));
        assert!(problems(Shape::Features(3), &[])[0].contains("there are no layers"));
        assert!(problems(image(9, 9, 1), &["conv 4 3x3"])[0].contains("ends in an image of 7x7x4"));
        assert!(problems(image(9, 9, 1), &["pool 16", "dense 2"])[0].contains("1 to 15 rows"));
    }

    #[test]
    fn same_padding_gives_what_tensorflow_gives() {
        assert_eq!(same_padding(32, 3, 1), (1, 1));
        assert_eq!(same_padding(32, 3, 2), (0, 1));
        assert_eq!(same_padding(5, 2, 1), (0, 1));
        assert_eq!(same_padding(7, 1, 3), (0, 0));
        let report = net(image(15, 16, 2), &["conv 4 3x3 stride 2 same", "globalpool"]).check().unwrap();
        assert_eq!(report.layers[0].output, image(8, 8, 4));
        assert_eq!(report.layers[1].output, Shape::Features(4));
    }

    #[test]
    fn groups_dilations_and_series_have_the_shapes_and_parameters_that_keras_counts() {
        let layers = ["conv 12 3x3 groups 3", "depthwise 3x3 dilation 2 same", "conv 8 1x1", "globalpool", "dense 2"];
        let report = net(image(16, 15, 6), &layers).check().unwrap();
        assert_eq!((report.layers[0].output, report.layers[0].parameters), (image(14, 13, 12), 9 * 2 * 12 + 12));
        assert_eq!((report.layers[1].output, report.layers[1].parameters), (image(14, 13, 12), 9 * 12 + 12));
        assert_eq!(report.layers[1].flops, 2 * 9 * 14 * 13 * 12);
        let layers = ["conv1d 32 5 dilation 2 causal relu", "pool1d 2", "conv1d 16 3 stride 2", "avgpool1d 3 stride 1", "dense 2"];
        let report = net(image(1, 128, 6), &layers).check().unwrap();
        let outputs: Vec<String> = report.layers.iter().map(|layer| layer.output.to_string()).collect();
        assert_eq!(outputs, ["1x128x32", "1x64x32", "1x31x16", "1x29x16", "2"]);
        assert_eq!(report.layers[0].parameters, 5 * 6 * 32 + 32);
        let report = net(image(9, 9, 3), &["whiten 2x2 gelu", "batchnorm noscale", "dense 2"]).check().unwrap();
        assert_eq!((report.layers[0].output, report.layers[0].parameters), (image(8, 8, 24), 24));
        assert_eq!(report.layers[1].parameters, 24);
        let report = net(Shape::Features(768), &["series 128x6", "conv1d 4 3", "dense 2"]).check().unwrap();
        assert_eq!((report.layers[0].output, report.layers[1].output), (image(1, 128, 6), image(1, 126, 4)));
    }

    #[test]
    fn groups_that_do_not_come_out_even_and_images_that_are_no_series_are_refused() {
        assert!(
            problems(image(9, 9, 4), &["conv 9 3x3 groups 3", "dense 2"])[0]
                .contains("4 channels and 9 filters cannot both be shared out over 3")
        );
        assert!(problems(image(9, 9, 4), &["conv1d 9 3", "dense 2"])[0].contains("an image of one row, but 9x9x4 reaches it"));
        assert!(problems(image(9, 9, 4), &["pool1d 3", "dense 2"])[0].contains("an image of one row"));
        assert!(problems(Shape::Features(9), &["series 2x5", "dense 2"])[0].contains("2 steps of 5 values are 10, but 9 values reach it"));
        assert!(problems(image(9, 9, 1), &["series 9x9", "dense 2"])[0].contains("but 9x9x1 reaches it"));
        assert!(problems(image(9, 9, 1), &["pool 2", "whiten 2x2", "dense 2"])[0].contains("it must be the first layer"));
        assert!(problems(image(99, 99, 3), &["whiten 10x10", "dense 2"])[0].contains("its patches have 300 values"));
        let found = problems(image(9, 9, 4), &["conv 9 3x3 dilation 5", "dense 2"]);
        assert!(found[0].contains("a 3x3 kernel, which its dilation spreads over 11x11, does not fit the 9x9 image"), "{}", found[0]);
    }
}
