//! The whole network as data: the shape of an example, the layers, and the check that they fit each other.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::layer::{Activation, LayerSpec, Padding};

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

/// What [`Architecture::check`] finds out about one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerReport {
    /// The layer in its canonical text.
    pub layer: LayerSpec,
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
    /// One entry a layer.
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
    /// The layer's place in [`Architecture::layers`], from 0; `None` where the input or the network as a whole is at fault.
    pub layer: Option<usize>,
    /// What is wrong and what to do; complete by itself (it names the layer, counted from 1).
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

/// The size of the output along one axis, or `None` where not one window fits.
pub(crate) fn windows(size: usize, window: usize, stride: usize) -> Option<usize> {
    size.checked_sub(window).map(|rest| rest / stride + 1)
}

/// Zeros before and after one axis for [`Padding::Same`]: `ceil(size / stride)` windows, the odd zero behind.
pub(crate) fn same_padding(size: usize, window: usize, stride: usize) -> (usize, usize) {
    let needed = (size.div_ceil(stride) - 1) * stride + window;
    let total = needed.saturating_sub(size);
    (total / 2, total - total / 2)
}

impl Architecture {
    /// Follows the shape of an example through all layers.
    ///
    /// # Errors
    ///
    /// Every layer that does not fit, not only the first: behind a fault the check goes on with the shape that was
    /// probably meant.
    pub fn check(&self) -> Result<ArchitectureReport, ArchitectureError> {
        let mut problems = Vec::new();
        if self.input.is_empty() {
            let message = format!("an example of shape {} has no values; every side must be above zero", self.input);
            problems.push(Problem { layer: None, message });
            return Err(ArchitectureError { problems });
        }
        let mut shape = self.input;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let output = output_shape(layer, shape);
            let reached = shape;
            shape = output.shape;
            if let Some(reason) = output.problem {
                let message = format!("layer {} `{layer}`: {reason}", index + 1);
                problems.push(Problem { layer: Some(index), message });
            }
            let (parameters, flops) = costs(layer, reached, shape);
            layers.push(LayerReport { layer: layer.clone(), output: shape, parameters, flops });
        }
        problems.extend(self.check_end(shape));
        if problems.is_empty() { Ok(ArchitectureReport { input: self.input, layers }) } else { Err(ArchitectureError { problems }) }
    }

    /// What comes out must be logits: a flat list without an activation.
    fn check_end(&self, shape: Shape) -> Option<Problem> {
        let Some(last) = self.layers.last() else {
            let message = "there are no layers; the least is one `dense CLASSES`".to_owned();
            return Some(Problem { layer: None, message });
        };
        let index = self.layers.len() - 1;
        let reason = match (last, shape) {
            (LayerSpec::Dense { activation, .. }, _) if *activation != Activation::None => {
                "the last layer gives the logits and takes no activation; the loss applies the softmax".to_owned()
            }
            (_, Shape::Image { .. }) => {
                format!("the network ends in an image of {shape}; end it with `dense CLASSES` or `globalpool`")
            }
            _ => return None,
        };
        Some(Problem { layer: Some(index), message: format!("layer {} `{last}`: {reason}", index + 1) })
    }
}

/// The shape behind a layer; where the layer does not fit, the reason and the shape to go on with.
struct Output {
    shape: Shape,
    problem: Option<String>,
}

fn fits(shape: Shape) -> Output {
    Output { shape, problem: None }
}

fn output_shape(layer: &LayerSpec, input: Shape) -> Output {
    match *layer {
        LayerSpec::Dense { units: 0, .. } | LayerSpec::Conv { filters: 0, .. } => {
            Output { shape: input, problem: Some("it must give at least one value".into()) }
        }
        LayerSpec::Dense { units, .. } => fits(Shape::Features(units)),
        LayerSpec::Dropout { .. } | LayerSpec::BatchNorm { .. } => fits(input),
        LayerSpec::Conv { .. } | LayerSpec::MaxPool { .. } | LayerSpec::AveragePool { .. } | LayerSpec::GlobalPool => {
            let Shape::Image { height, width, channels } = input else {
                let problem = format!("it needs an image, but a list of {input} values reaches it; put it before the first `dense`");
                return Output { shape: input, problem: Some(problem) };
            };
            spatial_output(layer, height, width, channels)
        }
    }
}

fn spatial_output(layer: &LayerSpec, height: usize, width: usize, channels: usize) -> Output {
    match *layer {
        LayerSpec::Conv { filters, kernel: (rows, columns), stride, padding, .. } => {
            let same = Shape::Image { height: height.div_ceil(stride.max(1)), width: width.div_ceil(stride.max(1)), channels: filters };
            if rows == 0 || columns == 0 || stride == 0 {
                return Output { shape: same, problem: Some("kernel and stride must be above zero".into()) };
            }
            if padding == Padding::Same {
                return fits(same);
            }
            match (windows(height, rows, stride), windows(width, columns, stride)) {
                (Some(height), Some(width)) => fits(Shape::Image { height, width, channels: filters }),
                _ => {
                    let problem = format!(
                        "a {rows}x{columns} kernel does not fit the {height}x{width} image that reaches it; pool less before it, take a smaller kernel, or use `same`"
                    );
                    Output { shape: same, problem: Some(problem) }
                }
            }
        }
        LayerSpec::MaxPool { window, stride } | LayerSpec::AveragePool { window, stride } => {
            let same = Shape::Image { height, width, channels };
            if window == 0 || stride == 0 || window > MAX_WINDOW {
                let problem = format!("the window must have 1 to {MAX_WINDOW} rows and the stride be above zero");
                return Output { shape: same, problem: Some(problem) };
            }
            match (windows(height, window, stride), windows(width, window, stride)) {
                (Some(height), Some(width)) => fits(Shape::Image { height, width, channels }),
                _ => {
                    let problem = format!(
                        "a {window}x{window} window does not fit the {height}x{width} image that reaches it; take it out or pool less before it"
                    );
                    Output { shape: same, problem: Some(problem) }
                }
            }
        }
        _ => fits(Shape::Features(channels)),
    }
}

/// Learned numbers and forward operations of a layer.
fn costs(layer: &LayerSpec, input: Shape, output: Shape) -> (usize, u64) {
    let values = output.len() as u64;
    match *layer {
        LayerSpec::Conv { filters, kernel: (rows, columns), .. } => {
            let products = rows * columns * input.channels();
            (products * filters + filters, 2 * products as u64 * values)
        }
        LayerSpec::Dense { units, .. } => (input.len() * units + units, 2 * input.len() as u64 * values),
        LayerSpec::BatchNorm { .. } => (2 * input.channels(), 2 * values),
        LayerSpec::MaxPool { window, .. } | LayerSpec::AveragePool { window, .. } => (0, (window * window) as u64 * values),
        LayerSpec::GlobalPool => (0, input.len() as u64),
        LayerSpec::Dropout { .. } => (0, 0),
    }
}

impl fmt::Display for ArchitectureReport {
    /// A table: number, layer, output, parameters, operations; then the totals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.layers.iter().map(|layer| layer.layer.to_string()).collect();
        let width = texts.iter().map(String::len).max().unwrap_or(0).max("layer".len());
        writeln!(f, "{:>3}  {:<width$}  {:>12}  {:>12}  {:>12}", "#", "layer", "output", "parameters", "MFLOP")?;
        writeln!(f, "{:>3}  {:<width$}  {:>12}  {:>12}  {:>12}", "", "input", self.input.to_string(), "", "")?;
        for (index, (layer, text)) in self.layers.iter().zip(&texts).enumerate() {
            let (output, parameters) = (layer.output.to_string(), grouped(layer.parameters));
            let mega = layer.flops as f64 / 1e6;
            writeln!(f, "{:>3}  {text:<width$}  {output:>12}  {parameters:>12}  {mega:>12.3}", index + 1)?;
        }
        let mega = self.flops() as f64 / 1e6;
        write!(f, "{:>3}  {:<width$}  {:>12}  {:>12}  {mega:>12.3}", "", "total", "", grouped(self.parameters()))
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
}
