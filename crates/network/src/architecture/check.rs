//! The check that layers fit each other: the shape of an example is followed through all of them.

use super::{Architecture, ArchitectureError, ArchitectureReport, LayerReport, MAX_WINDOW, Place, Problem, Shape};
use crate::layer::{Activation, Axes, Convolution, LayerSpec, Padding, PoolKind, Pooling, Residual};

/// The largest patch whose whitening is fitted: its time grows with the third power.
const MAX_WHITENED: usize = 256;

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

    /// The same layers for examples of another shape, with which the weights of these go on.
    ///
    /// # Errors
    ///
    /// Where a layer does not fit such an example, or has weights of its own for each place in it.
    pub fn for_input(&self, input: Shape) -> Result<Architecture, ArchitectureError> {
        let other = Architecture { input, layers: self.layers.clone() };
        let (here, there) = (self.check()?, other.check()?);
        let mut problems = Vec::new();
        for (layer, _) in here.layers.iter().zip(&there.layers).filter(|(here, there)| here.parameters != there.parameters) {
            let help = "put `globalpool` or `globalmaxpool` before it";
            let reason = format!("it has weights of its own for each place of {}, and {input} has other places; {help}", self.input);
            problems.push(Problem { place: None, message: format!("layer {} `{}`: {reason}", layer.number, layer.layer) });
        }
        if problems.is_empty() { Ok(other) } else { Err(ArchitectureError { problems }) }
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
        let Output { shape, mut problem } = output_shape(layer, input);
        if matches!(layer, LayerSpec::Whiten { .. }) && *place != Place::top(0) {
            problem = Some("it is fitted to the examples themselves, so it must be the first layer".into());
        }
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

fn instead(shape: Shape, problem: String) -> Output {
    Output { shape, problem: Some(problem) }
}

/// Of any layer but a residual block, which is followed layer by layer.
pub(crate) fn output_shape(layer: &LayerSpec, input: Shape) -> Output {
    match (layer, input) {
        (LayerSpec::Dense { units: 0, .. }, _) | (LayerSpec::Conv(Convolution { filters: Some(0), .. }), _) => {
            instead(input, "it must give at least one value".into())
        }
        (LayerSpec::Dense { units, .. }, _) => fits(Shape::Features(*units)),
        (LayerSpec::Dropout { .. } | LayerSpec::BatchNorm(_) | LayerSpec::Residual(_), _) => fits(input),
        (LayerSpec::Series { steps, channels }, _) => series_output(*steps, *channels, input),
        (_, Shape::Features(_)) => {
            instead(input, format!("it needs an image, but a list of {input} values reaches it; put it before the first `dense`"))
        }
        (
            LayerSpec::Conv(Convolution { axes: Axes::Series, .. }) | LayerSpec::Pool(Pooling { axes: Axes::Series, .. }),
            Shape::Image { height: 2.., .. },
        ) => instead(input, format!("it needs a series, an image of one row, but {input} reaches it; use the layer without `1d`")),
        (LayerSpec::Conv(conv), Shape::Image { height, width, channels }) => conv_output(conv, height, width, channels),
        (LayerSpec::Pool(pool), Shape::Image { height, width, channels }) => pool_output(pool, height, width, channels),
        (LayerSpec::Whiten { kernel, .. }, Shape::Image { height, width, channels }) => whiten_output(*kernel, height, width, channels),
        (LayerSpec::GlobalPool(PoolKind::Maximum), Shape::Image { height, width, channels }) if height.max(width) > MAX_WINDOW => {
            let most = format!("of an image of at most {MAX_WINDOW}x{MAX_WINDOW}");
            instead(Shape::Features(channels), format!("it takes the maximum {most}, but {input} reaches it; pool before it"))
        }
        (LayerSpec::GlobalPool(_), Shape::Image { channels, .. }) => fits(Shape::Features(channels)),
    }
}

fn series_output(steps: usize, channels: usize, input: Shape) -> Output {
    let series = Shape::Image { height: 1, width: steps, channels };
    match input {
        Shape::Features(count) if count == series.len() && count > 0 => fits(series),
        Shape::Features(count) => {
            instead(series, format!("{steps} steps of {channels} values are {}, but {count} values reach it", series.len()))
        }
        Shape::Image { .. } => instead(input, format!("it takes a list of features as a series, but {input} reaches it; take it out")),
    }
}

fn conv_output(conv: &Convolution, height: usize, width: usize, channels: usize) -> Output {
    let (filters, groups) = conv.of_channels(channels);
    let (rows, columns) = conv.extent();
    let stride = conv.stride;
    let same = Shape::Image { height: height.div_ceil(stride.max(1)), width: width.div_ceil(stride.max(1)), channels: filters };
    if rows == 0 || columns == 0 || stride == 0 || conv.dilation == 0 || groups == 0 {
        return instead(same, "kernel, stride, dilation and groups must be above zero".into());
    }
    if !channels.is_multiple_of(groups) || !filters.is_multiple_of(groups) {
        return instead(same, format!("{channels} channels and {filters} filters cannot both be shared out over {groups} groups"));
    }
    if conv.padding != Padding::Valid {
        return fits(same);
    }
    match (windows(height, rows, stride), windows(width, columns, stride)) {
        (Some(height), Some(width)) => fits(Shape::Image { height, width, channels: filters }),
        _ => {
            let spread = if conv.dilation > 1 { format!(", which its dilation spreads over {rows}x{columns},") } else { String::new() };
            let (kernel_rows, kernel_columns) = conv.kernel;
            let help = "pool less before it, take a smaller kernel, or use `same`";
            instead(
                same,
                format!("a {kernel_rows}x{kernel_columns} kernel{spread} does not fit the {height}x{width} image that reaches it; {help}"),
            )
        }
    }
}

fn whiten_output((rows, columns): (usize, usize), height: usize, width: usize, channels: usize) -> Output {
    let patch = rows * columns * channels;
    let same = Shape::Image { height, width, channels: 2 * patch };
    if !(1..=MAX_WHITENED).contains(&patch) {
        return instead(same, format!("its patches have {patch} values; at least 1 and at most {MAX_WHITENED} can be fitted"));
    }
    match (windows(height, rows, 1), windows(width, columns, 1)) {
        (Some(height), Some(width)) => fits(Shape::Image { height, width, channels: 2 * patch }),
        _ => instead(same, format!("a {rows}x{columns} patch does not fit the {height}x{width} image that reaches it")),
    }
}

fn pool_output(pool: &Pooling, height: usize, width: usize, channels: usize) -> Output {
    let same = Shape::Image { height, width, channels };
    let (rows, columns) = pool.sides();
    if pool.window == 0 || pool.stride == 0 || pool.window > MAX_WINDOW {
        return instead(same, format!("the window must have 1 to {MAX_WINDOW} rows and the stride be above zero"));
    }
    match (windows(height, rows, pool.stride), windows(width, columns, pool.stride)) {
        (Some(height), Some(width)) => fits(Shape::Image { height, width, channels }),
        _ => instead(
            same,
            format!(
                "a {rows}x{columns} window does not fit the {height}x{width} image that reaches it; take it out or pool less before it"
            ),
        ),
    }
}

/// Learned numbers and forward operations of a layer.
fn costs(layer: &LayerSpec, input: Shape, output: Shape) -> (usize, u64) {
    let values = output.len() as u64;
    match *layer {
        LayerSpec::Conv(ref conv) => {
            let (filters, groups) = conv.of_channels(input.channels());
            let products = conv.kernel.0 * conv.kernel.1 * input.channels() / groups.max(1);
            (products * filters + filters, 2 * products as u64 * values)
        }
        LayerSpec::Dense { units, .. } => (input.len() * units + units, 2 * input.len() as u64 * values),
        LayerSpec::BatchNorm(ref norm) => ((1 + usize::from(norm.scale)) * input.channels(), 2 * values),
        LayerSpec::Whiten { kernel: (rows, columns), .. } => (output.channels(), 2 * (rows * columns * input.channels()) as u64 * values),
        LayerSpec::Pool(pool) => (0, (pool.sides().0 * pool.sides().1) as u64 * values),
        LayerSpec::GlobalPool(_) => (0, input.len() as u64),
        LayerSpec::Dropout { .. } | LayerSpec::Series { .. } | LayerSpec::Residual(_) => (0, 0),
    }
}
