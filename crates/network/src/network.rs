//! The network: weights, one training step, and its state.

use std::sync::{Arc, OnceLock};

use dfdx::{
    tensor::{Cpu, TensorFromVec},
    tensor_ops::Backward,
};

use crate::{
    accelerator::{Accelerator, Lesson, State},
    amx::Unit,
    architecture::{Architecture, ArchitectureReport, Place, Shape},
    batchnorm::Running,
    conv_op,
    device::{Device, Precision},
    error::NetworkError,
    examples::Input,
    inference::Step,
    init,
    loss::{self, LossOptions, StepReport},
    optimiser::Optimiser,
    plan::{self, Block, Learns, Placed, Role, Start, WeightSpec},
    recycle,
    scratch::Aligned,
    tape::{Flow, LayerWeights, Tape, Vector},
    weights::{TensorData, read_tensors, write_tensors},
};

/// A tensor that is learned.
pub(crate) struct Parameter {
    pub(crate) name: String,
    /// The shape in files; the dfdx tensor has the same values in one axis.
    pub(crate) shape: Vec<usize>,
    pub(crate) tensor: Vector,
    /// A copy of the tensor's values: those of a dfdx tensor can only be read by copying.
    pub(crate) values: Arc<Vec<f32>>,
    /// The values in the order that their layer's kernel reads, made when first asked for.
    prepared: OnceLock<Arc<Aligned>>,
    pub(crate) role: Role,
    learns: Learns,
    /// Whether it is left as it is now.
    pub(crate) is_frozen: bool,
    /// Goes up whenever the values change.
    version: u64,
}

impl Parameter {
    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The weights of a block in the order that its kernel reads; empty where that is their own.
    pub(crate) fn prepared(&self, block: &Block) -> &Arc<Aligned> {
        self.prepared.get_or_init(|| match block {
            Block::Conv(conv) => Arc::new(conv.prepared_weights(&self.values)),
            Block::Dense(dense) => Arc::new(dense.prepared_weights(&self.values)),
            _ => Arc::default(),
        })
    }

    /// After a step of the optimiser.
    fn refresh(&mut self) {
        self.version += 1;
        self.prepared.take();
        self.tensor.copy_into(Arc::make_mut(&mut self.values).as_mut_slice());
    }

    pub(crate) fn set(&mut self, values: &[f32]) {
        self.version += 1;
        self.prepared.take();
        self.tensor.copy_from(values);
        Arc::make_mut(&mut self.values).copy_from_slice(values);
    }
}

/// Some labelled examples to learn from.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The examples.
    pub input: Input<'a>,
    /// The class of each, from 0.
    pub labels: &'a [u32],
}

/// All that training changes in a network, as [`Network::snapshot`] takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    parameters: Vec<Arc<Vec<f32>>>,
    running: Vec<Running>,
}

impl Snapshot {
    pub(crate) fn of(parameters: Vec<Arc<Vec<f32>>>, running: Vec<Running>) -> Self {
        Snapshot { parameters, running }
    }

    /// Weights, and the running statistics of batch norms.
    pub(crate) fn parts(&self) -> (Vec<Arc<Vec<f32>>>, Vec<Running>) {
        (self.parameters.clone(), self.running.clone())
    }
}

/// A network with its weights.
///
/// It is `Send` and `Sync`; inference ([`Network::logits`]) needs only a shared reference.
pub struct Network {
    architecture: Architecture,
    report: ArchitectureReport,
    pub(crate) seed: u64,
    device: Cpu,
    pub(crate) blocks: Vec<Placed>,
    /// The blocks' weights in order.
    pub(crate) parameters: Vec<Parameter>,
    /// The batch norms' running statistics in order.
    pub(crate) running: Vec<Running>,
    /// What inference computes with these weights and statistics.
    pub(crate) steps: OnceLock<Vec<Step>>,
    /// What computes in place of this processor, and how it takes products.
    pub(crate) accelerator: Option<Accelerator>,
    pub(crate) precision: Precision,
    /// What multiplies bf16 factors on this processor, if that is asked for.
    pub(crate) unit: Option<Unit>,
}

/// Where a block's weights begin in the lists of the network.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cursor {
    pub(crate) parameter: usize,
    pub(crate) running: usize,
}

impl Cursor {
    /// Past one block.
    pub(crate) fn advance(&mut self, block: &Block) {
        match block {
            Block::Conv(_) | Block::Dense(_) => self.parameter += 2,
            Block::BatchNorm(_) => (self.parameter, self.running) = (self.parameter + 2, self.running + 1),
            Block::Pool(_) | Block::Dropout(_) | Block::Residual(_) => {}
        }
    }
}

/// Of each batch norm, that of the batch, with its momentum.
type Statistics = Vec<(Running, f32)>;

/// One pass of a batch through the layers, with the tape that leads back to the weights.
struct Pass {
    batch: usize,
    step: u64,
    tape: Tape,
    cursor: Cursor,
    statistics: Statistics,
}

impl Network {
    /// A network before training: weights are drawn from `seed` (He's uniform distribution before ReLU, GELU and SiLU, Glorot's
    /// otherwise), biases are zero. The seed also determines every dropout mask.
    ///
    /// # Errors
    ///
    /// If the layers do not fit; see [`Architecture::check`].
    pub fn new(architecture: &Architecture, seed: u64) -> Result<Self, NetworkError> {
        let report = architecture.check()?;
        let blocks = plan::blocks(architecture)?;
        let device = Cpu::default();
        let (mut parameters, mut running) = (Vec::new(), Vec::new());
        for placed in plan::leaves(&blocks) {
            for spec in &placed.weights {
                let stream = parameters.len() as u64;
                parameters.push(first_parameter(spec, &placed.place, seed, stream, &device)?);
            }
            if let Block::BatchNorm(norm) = &placed.block {
                running.push(Running::new(norm.channels));
            }
        }
        let (architecture, steps) = (architecture.clone(), OnceLock::new());
        Ok(Network {
            architecture,
            report,
            seed,
            device,
            blocks,
            parameters,
            running,
            steps,
            accelerator: None,
            precision: Precision::default(),
            unit: None,
        })
    }

    /// The layers it was made from.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The seed of its first weights and of its dropout masks.
    #[cfg(test)]
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Shapes, parameters and costs; `Display` is a table for users.
    pub fn report(&self) -> &ArchitectureReport {
        &self.report
    }

    /// Number of logits.
    pub fn classes(&self) -> usize {
        self.report.classes()
    }

    /// How each convolution is computed, one line a block, for logs and benchmarks.
    pub fn kernels(&self) -> Vec<String> {
        let describe = |placed: &Placed| match &placed.block {
            Block::Conv(conv) => {
                Some(format!("layer {}: forward {}, backward {}", placed.place.number, conv.forward_path(), conv.backward_path()))
            }
            _ => None,
        };
        plan::leaves(&self.blocks).into_iter().filter_map(describe).collect()
    }

    /// Takes examples of this shape from now on, with the weights that it has: kernels look at a window, whatever size the image is of.
    ///
    /// # Errors
    ///
    /// Where a layer does not fit such an example, or has weights of its own for each place in it; nothing has changed then. And where a GPU
    /// that computes for it cannot go on so.
    pub fn resize(&mut self, input: Shape) -> Result<(), NetworkError> {
        if input == self.architecture.input {
            return Ok(());
        }
        let architecture = self.architecture.for_input(input)?;
        let (report, mut blocks) = (architecture.check()?, plan::blocks(&architecture)?);
        plan::set_unit(&mut blocks, self.unit);
        (self.architecture, self.report, self.blocks) = (architecture, report, blocks);
        self.forget_prepared();
        let (blocks, precision) = (self.blocks.clone(), self.precision);
        match &self.accelerator {
            Some(accelerator) if !accelerator.resize(blocks, input)? => self.place(Device::Cuda, precision).map(drop),
            _ => Ok(()),
        }
    }

    /// The weights are read in another order from now on.
    pub(crate) fn forget_prepared(&mut self) {
        self.steps.take();
        self.parameters.iter_mut().for_each(|parameter| drop(parameter.prepared.take()));
    }

    /// Tells which epoch the following steps belong to, from 1: some weights learn in the first ones only (`whiten 2x2 bias 3`).
    pub fn begin_epoch(&mut self, epoch: u32) {
        for parameter in &mut self.parameters {
            parameter.is_frozen = match parameter.learns {
                Learns::Always => false,
                Learns::Never => true,
                Learns::For(epochs) => epoch > epochs,
            };
        }
    }

    /// One step of training: forward, loss, backward, update. The step's number, which determines the dropout masks, is the
    /// optimiser's.
    ///
    /// The work is spread over the current rayon thread pool; the result has the same bits for any number of threads.
    ///
    /// # Errors
    ///
    /// If the batch is empty or its sizes do not fit, a label has no logit, or an option is out of range. The network is
    /// then unchanged.
    pub fn train_step(&mut self, batch: Batch<'_>, optimiser: &mut Optimiser, options: &LossOptions) -> Result<StepReport, NetworkError> {
        // Within the thread pool: each operation's entry into it would cost a switch of threads.
        rayon::scope(|_| self.step(&[batch], optimiser, options))
    }

    /// As [`Network::train_step`], for a batch in parts that pass one after the other: it needs the memory of one. Batch norms see
    /// the parts by themselves; with class weights, each part has its own weighted mean.
    ///
    /// # Errors
    ///
    /// As [`Network::train_step`], and if there are no parts.
    pub fn train_step_in_parts(
        &mut self,
        parts: &[Batch<'_>],
        optimiser: &mut Optimiser,
        options: &LossOptions,
    ) -> Result<StepReport, NetworkError> {
        if parts.is_empty() {
            return Err(NetworkError::Option("a step needs at least one part".into()));
        }
        rayon::scope(|_| self.step(parts, optimiser, options))
    }

    fn step(&mut self, parts: &[Batch<'_>], optimiser: &mut Optimiser, options: &LossOptions) -> Result<StepReport, NetworkError> {
        let counts = parts.iter().map(|part| self.check_batch(*part, options)).collect::<Result<Vec<_>, _>>()?;
        self.steps.take();
        let all: usize = counts.iter().sum();
        let mut total = StepReport { loss: 0.0, correct: 0 };
        let mut gradients: Vec<Vec<f32>> = Vec::new();
        for (part, count) in parts.iter().zip(counts) {
            let share = count as f32 / all as f32;
            let (report, of_part) = self.gradients(*part, count, optimiser.step(), options)?;
            total.loss += share * report.loss;
            total.correct += report.correct;
            if parts.len() == 1 {
                gradients = of_part;
                break;
            }
            gradients.resize_with(of_part.len(), Vec::new);
            for (sum, gradient) in gradients.iter_mut().zip(of_part) {
                sum.resize(gradient.len(), 0.0);
                sum.iter_mut().zip(gradient).for_each(|(sum, value)| *sum += share * value);
            }
        }
        optimiser.update(self, gradients)?;
        self.parameters.iter_mut().for_each(Parameter::refresh);
        recycle::end_step();
        Ok(total)
    }

    /// The gradient of each parameter, in order, empty of one that is frozen; batch norms take note of the batch.
    fn gradients(
        &mut self,
        batch: Batch<'_>,
        examples: usize,
        step: u64,
        options: &LossOptions,
    ) -> Result<(StepReport, Vec<Vec<f32>>), NetworkError> {
        let (report, mut gradients, statistics) = match &self.accelerator {
            Some(accelerator) => {
                let (input, labels) = (batch.input.to_values(), batch.labels.to_vec());
                let learnt = accelerator.learn(self.state(), Lesson { input, labels, options: options.clone(), seed: self.seed, step })?;
                (learnt.report, learnt.gradients, learnt.statistics)
            }
            None => self.gradients_here(batch, examples, step, options)?,
        };
        self.running.iter_mut().zip(&statistics).for_each(|(running, (batch, momentum))| running.update(batch, *momentum));
        gradients.iter_mut().zip(&self.parameters).filter(|(_, parameter)| parameter.is_frozen).for_each(|(gradient, _)| gradient.clear());
        Ok((report, gradients))
    }

    /// The same on this processor, also of frozen parameters, with the statistics of each batch norm.
    fn gradients_here(
        &self,
        batch: Batch<'_>,
        examples: usize,
        step: u64,
        options: &LossOptions,
    ) -> Result<(StepReport, Vec<Vec<f32>>, Statistics), NetworkError> {
        let (flow, tape, statistics) = self.forward_op(batch.input, examples, step)?;
        let (loss, report) = loss::forward_op(&flow, batch.labels, options, &self.device, tape)?;
        let mut grads = loss.try_backward()?;
        drop(flow);
        let mut gradients = Vec::with_capacity(self.parameters.len());
        for parameter in &self.parameters {
            gradients.push(std::mem::take(&mut **grads.get_or_alloc_mut(&parameter.tensor)?));
        }
        Ok((report, gradients, statistics))
    }

    /// What an accelerator has to know.
    pub(crate) fn state(&self) -> State {
        let parameters = self.parameters.iter().map(|parameter| (parameter.version, parameter.values.clone())).collect();
        State { parameters, running: self.running.clone() }
    }

    pub(crate) fn check_batch(&self, batch: Batch<'_>, options: &LossOptions) -> Result<usize, NetworkError> {
        options.check(self.classes())?;
        let examples = self.count(batch.input)?;
        if examples != batch.labels.len() || examples == 0 {
            let why = format!("the input holds {examples} examples; a batch needs at least one");
            return Err(NetworkError::Size { what: "the labels", found: batch.labels.len(), expected: examples.max(1), why });
        }
        loss::check_labels(batch.labels, self.classes())?;
        Ok(examples)
    }

    /// Number of examples of an input.
    pub(crate) fn count(&self, input: Input<'_>) -> Result<usize, NetworkError> {
        input.count(self.architecture.input.len(), self.architecture.input.channels())
    }

    /// The logits of a batch with the tape that leads back to the weights, and the statistics of each batch norm.
    pub(crate) fn forward_op(&self, input: Input<'_>, batch: usize, step: u64) -> Result<(Flow, Tape, Statistics), NetworkError> {
        let mut values = input.to_values();
        if !matches!(self.blocks.first().map(|placed| &placed.block), Some(Block::Conv(_))) {
            values = crate::examples::Values::Floats(values.to_floats(self.architecture.input.channels()));
        }
        let mut pass = Pass { batch, step, tape: Tape::default(), cursor: Cursor::default(), statistics: Vec::new() };
        let flow = self.pass(&self.blocks, Flow { values, node: None }, &mut pass)?;
        Ok((flow, pass.tape, pass.statistics))
    }

    /// Takes a batch through blocks that follow each other.
    fn pass(&self, blocks: &[Placed], input: Flow, pass: &mut Pass) -> Result<Flow, NetworkError> {
        let (device, batch) = (&self.device, pass.batch);
        let mut flow = input;
        for Placed { block, .. } in blocks {
            let layer = || self.layer(pass.cursor, block);
            flow = match block {
                Block::Conv(conv) => conv_op::forward(conv, &layer(), &flow, batch, device, &mut pass.tape)?,
                Block::Dense(dense) => dense.forward_op(&layer(), &flow, batch, device, &mut pass.tape)?,
                Block::Pool(pool) => pool.forward_op(&flow, batch, device, &mut pass.tape)?,
                Block::Dropout(dropout) => dropout.forward_op(self.seed, pass.step, &flow, device, &mut pass.tape)?,
                Block::BatchNorm(norm) => {
                    let (flow, batch) = norm.forward_op(&layer(), &flow, device, &mut pass.tape)?;
                    pass.statistics.push((batch, norm.momentum));
                    flow
                }
                Block::Residual(residual) => {
                    let branch = self.pass(&residual.branch, flow.clone(), pass)?;
                    let other = self.pass(&residual.shortcut, flow, pass)?;
                    residual.join_op(&branch, &other, device, &mut pass.tape)?
                }
            };
            pass.cursor.advance(block);
        }
        Ok(flow)
    }

    fn layer(&self, cursor: Cursor, block: &Block) -> LayerWeights {
        let (weights, bias) = (&self.parameters[cursor.parameter], &self.parameters[cursor.parameter + 1]);
        LayerWeights {
            weights: weights.values.clone(),
            bias: bias.values.clone(),
            prepared: weights.prepared(block).clone(),
            weights_tensor: weights.tensor.clone(),
            bias_tensor: bias.tensor.clone(),
            learns: (!weights.is_frozen, !bias.is_frozen),
        }
    }

    /// All that training changes, to come back to with [`Network::restore`]: the best checkpoint.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { parameters: self.parameters.iter().map(|parameter| parameter.values.clone()).collect(), running: self.running.clone() }
    }

    /// Moves a snapshot a share `1 - decay` of the way towards this network: the exponential moving average of its weights (Polyak and
    /// Juditsky 1992). Running statistics move alike.
    ///
    /// # Errors
    ///
    /// If the snapshot is of another architecture.
    pub fn average_into(&self, snapshot: &mut Snapshot, decay: f32) -> Result<(), NetworkError> {
        self.check_snapshot(snapshot)?;
        let towards = |average: &mut [f32], values: &[f32]| {
            average.iter_mut().zip(values).for_each(|(average, value)| *average += (1.0 - decay) * (value - *average));
        };
        for (average, parameter) in snapshot.parameters.iter_mut().zip(&self.parameters) {
            towards(Arc::make_mut(average).as_mut_slice(), &parameter.values);
        }
        for (average, running) in snapshot.running.iter_mut().zip(&self.running) {
            towards(&mut average.mean, &running.mean);
            towards(&mut average.variance, &running.variance);
        }
        Ok(())
    }

    /// Goes back to a snapshot of this network (or of one of the same architecture).
    ///
    /// # Errors
    ///
    /// If the snapshot is of another architecture.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<(), NetworkError> {
        self.check_snapshot(snapshot)?;
        self.steps.take();
        self.parameters.iter_mut().zip(&snapshot.parameters).for_each(|(parameter, values)| parameter.set(values));
        self.running.clone_from(&snapshot.running);
        Ok(())
    }

    fn check_snapshot(&self, snapshot: &Snapshot) -> Result<(), NetworkError> {
        let sizes = |parameters: &[Arc<Vec<f32>>]| parameters.iter().map(|values| values.len()).collect::<Vec<_>>();
        let ours: Vec<usize> = self.parameters.iter().map(Parameter::len).collect();
        if sizes(&snapshot.parameters) != ours || snapshot.running.len() != self.running.len() {
            return Err(NetworkError::Weights("the snapshot was taken of a network with other layers".into()));
        }
        Ok(())
    }

    /// The weights as a safetensors file; equal weights give equal bytes.
    ///
    /// The layer at place `N` of the architecture (from 0) has `layers.N.weight` and `layers.N.bias`, little-endian f32; within a residual
    /// block `N` is `3.residual.0` or `3.shortcut.0`:
    ///
    /// | layer | weight | bias |
    /// |---|---|---|
    /// | `conv` | `[rows, columns, channels, filters]` | `[filters]` |
    /// | `whiten` | as `conv` | `[filters]` |
    /// | `dense` | `[inputs, units]`; inputs of an image in the order row, column, channel | `[units]` |
    /// | `batchnorm` | `[channels]`, the scale (ones where it is not learned) | `[channels]`, the shift |
    ///
    /// A `batchnorm` also has `layers.N.running_mean` and `layers.N.running_var`, `[channels]`. These are Keras' layouts;
    /// PyTorch has `[filters, channels, rows, columns]` and `[units, inputs]`.
    ///
    /// # Errors
    ///
    /// None that data could cause.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, NetworkError> {
        let mut tensors: Vec<TensorData> = self.parameters.iter().map(TensorData::from).collect();
        for (layer, running) in self.norm_layers().zip(&self.running) {
            for (name, values) in [("running_mean", &running.mean), ("running_var", &running.variance)] {
                tensors.push(TensorData { name: format!("layers.{layer}.{name}"), shape: vec![values.len()], values: values.clone() });
            }
        }
        write_tensors(tensors)
    }

    /// A network with the weights of [`Network::to_safetensors`]. `seed` determines the dropout masks if training goes on, and
    /// nothing else.
    ///
    /// # Errors
    ///
    /// If the layers do not fit, the bytes are damaged, or tensors are missing, of another shape or type, or too many:
    /// all of them are named.
    pub fn from_safetensors(architecture: &Architecture, seed: u64, bytes: &[u8]) -> Result<Self, NetworkError> {
        let mut network = Network::new(architecture, seed)?;
        let mut wanted: Vec<(String, Vec<usize>)> = network.parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
        for (layer, running) in network.norm_layers().zip(&network.running) {
            wanted.extend(["running_mean", "running_var"].map(|name| (format!("layers.{layer}.{name}"), vec![running.mean.len()])));
        }
        let mut tensors = read_tensors(bytes, &wanted)?.into_iter();
        for (parameter, values) in network.parameters.iter_mut().zip(&mut tensors) {
            parameter.set(&values);
        }
        for running in &mut network.running {
            let (mean, variance) = (tensors.next().unwrap_or_default(), tensors.next().unwrap_or_default());
            *running = Running { mean, variance };
        }
        Ok(network)
    }

    /// The layers that have running statistics.
    pub(crate) fn norm_layers(&self) -> impl Iterator<Item = &str> {
        plan::leaves(&self.blocks)
            .into_iter()
            .filter(|placed| matches!(placed.block, Block::BatchNorm(_)))
            .map(|placed| placed.place.path.as_str())
    }
}

impl From<&Parameter> for TensorData {
    fn from(parameter: &Parameter) -> Self {
        TensorData { name: parameter.name.clone(), shape: parameter.shape.clone(), values: parameter.values.to_vec() }
    }
}

fn first_parameter(spec: &WeightSpec, place: &Place, seed: u64, stream: u64, device: &Cpu) -> Result<Parameter, NetworkError> {
    let count = spec.shape.iter().product();
    let values = match spec.start {
        Start::Zeros => vec![0.0; count],
        Start::Ones => vec![1.0; count],
        Start::Random { inputs, outputs } | Start::Fitted { inputs, outputs, .. } => init::weights(count, inputs, outputs, seed, stream),
        Start::Identity { inputs, outputs, groups, centre } => {
            let mut values = init::weights(count, inputs, outputs, seed, stream);
            init::identity(&mut values, &spec.shape, groups, centre);
            values
        }
    };
    let tensor = device.try_tensor_from_vec(values.clone(), (count,))?;
    Ok(Parameter {
        name: format!("layers.{}.{}", place.path, spec.name),
        shape: spec.shape.clone(),
        tensor,
        values: Arc::new(values),
        prepared: OnceLock::new(),
        role: spec.role,
        learns: spec.learns,
        is_frozen: spec.learns == Learns::Never,
        version: 0,
    })
}
