//! The check that layers fit each other: the shape of an example is followed through all of them.

use super::{Architecture, ArchitectureError, ArchitectureReport, LayerReport, MAX_WINDOW, Place, Problem, Shape};
use crate::layer::{Activation, LayerSpec, Padding, Residual};

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
        if self.input.is_empty() {
            let message = format!("an example of shape {} has no values; every side must be above zero", self.input);
            return Err(ArchitectureError { problems: vec![Problem { place: None, message }] });
        }
        let mut found = Found::default();
        let shape = found.sequence(&self.layers, self.input, Place::top);
        found.end(&self.layers, shape);
        let Found { layers, problems } = found;
        if problems.is_empty() { Ok(ArchitectureReport { input: self.input, layers }) } else { Err(ArchitectureError { problems }) }
    }
}

/// What was found out so far.
#[derive(Default)]
struct Found {
    layers: Vec<LayerReport>,
    problems: Vec<Problem>,
}

impl Found {
    fn problem(&mut self, place: &Place, layer: &str, reason: &str) {
        let message = format!("layer {} `{layer}`: {reason}", place.number);
        self.problems.push(Problem { place: Some(place.path.clone()), message });
    }

    /// The shape behind layers that follow each other.
    fn sequence(&mut self, layers: &[LayerSpec], input: Shape, place: impl Fn(usize) -> Place) -> Shape {
        layers.iter().enumerate().fold(input, |input, (index, layer)| match layer {
            LayerSpec::Residual(residual) => self.residual(residual, input, &place(index)),
            layer => self.layer(layer, input, &place(index)),
        })
    }

    fn layer(&mut self, layer: &LayerSpec, input: Shape, place: &Place) -> Shape {
        let Output { shape, problem } = output_shape(layer, input);
        if let Some(reason) = problem {
            self.problem(place, &layer.to_string(), &reason);
        }
        let (parameters, flops) = costs(layer, input, shape);
        self.layers.push(LayerReport { number: place.number.clone(), layer: layer.to_string(), output: shape, parameters, flops });
        shape
    }

    fn residual(&mut self, residual: &Residual, input: Shape, place: &Place) -> Shape {
        let name = format!("residual{}", residual.activation.suffix());
        let before = self.problems.len();
        let output = self.sequence(&residual.layers, input, |index| place.residual(index));
        let other = self.sequence(&residual.shortcut, input, |index| place.shortcut(index));
        if residual.layers.is_empty() {
            self.problem(place, &name, "it has no layers; write them as `residual = [\"conv 64 3x3 same\"]`");
        } else if output != other && self.problems.len() == before {
            self.problem(place, &name, &mismatch(residual, output, other));
        }
        let values = output.len() as u64;
        self.layers.push(LayerReport { number: place.number.clone(), layer: name, output, parameters: 0, flops: values });
        output
    }

    /// What comes out must be logits: a flat list without an activation.
    fn end(&mut self, layers: &[LayerSpec], shape: Shape) {
        let Some(last) = layers.last() else {
            let message = "there are no layers; the least is one `dense CLASSES`".to_owned();
            return self.problems.push(Problem { place: None, message });
        };
        let reason = match (last, shape) {
            (LayerSpec::Dense { activation, .. } | LayerSpec::Residual(Residual { activation, .. }), _)
                if *activation != Activation::None =>
            {
                "the last layer gives the logits and takes no activation; the loss applies the softmax".to_owned()
            }
            (_, Shape::Image { .. }) => {
                format!("the network ends in an image of {shape}; end it with `dense CLASSES` or `globalpool`")
            }
            _ => return,
        };
        self.problem(&Place::top(layers.len() - 1), &last.to_string(), &reason);
    }
}

/// Why the two ways through a residual block cannot be added up, and what would help.
fn mismatch(residual: &Residual, output: Shape, other: Shape) -> String {
    if !residual.shortcut.is_empty() {
        return format!("its layers give {output} and its shortcut {other}, and the two are added up: make them alike");
    }
    let help = match (output, other) {
        (Shape::Image { height, width, channels }, Shape::Image { height: from_height, width: from_width, .. }) => (1..=4)
            .find(|stride| (from_height.div_ceil(*stride), from_width.div_ceil(*stride)) == (height, width))
            .map(|stride| format!("conv {channels} 1x1{}", if stride > 1 { format!(" stride {stride}") } else { String::new() })),
        (Shape::Features(units), _) => Some(format!("dense {units}")),
        _ => None,
    };
    let help = help.map_or("make them alike".to_owned(), |layer| format!("`shortcut = [\"{layer}\"]` would make them alike"));
    format!("its layers give {output} where {other} came in, and the two are added up: {help}")
}

/// The shape behind a layer; where the layer does not fit, the reason and the shape to go on with.
pub(crate) struct Output {
    pub(crate) shape: Shape,
    pub(crate) problem: Option<String>,
}

fn fits(shape: Shape) -> Output {
    Output { shape, problem: None }
}

/// Of any layer but a residual block, which is followed layer by layer.
pub(crate) fn output_shape(layer: &LayerSpec, input: Shape) -> Output {
    match *layer {
        LayerSpec::Dense { units: 0, .. } | LayerSpec::Conv { filters: 0, .. } => {
            Output { shape: input, problem: Some("it must give at least one value".into()) }
        }
        LayerSpec::Dense { units, .. } => fits(Shape::Features(units)),
        LayerSpec::Dropout { .. } | LayerSpec::BatchNorm { .. } | LayerSpec::Residual(_) => fits(input),
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
        LayerSpec::Dropout { .. } | LayerSpec::Residual(_) => (0, 0),
    }
}
