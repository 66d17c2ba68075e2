//! `learn.classifier`: the config, and the way from a processed dataset to a model artifact.

use artifact::{ConfigProblem, InputRef, Kind, Outcome, RunContext, Stage, StageError, StageName};
use network::{Architecture, Device, LayerSpec, LossOptions, OptimiserConfig, Precision, Shape};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::augment::Augmentation;
use crate::examples::Examples;
use crate::model::Model;
use crate::progressive::{self, Smaller};
use crate::schedule::Schedule;
use crate::training;

/// Trains a network to tell classes apart. The best epoch on the validation split is kept; f goes into the model.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Classifier {
    /// The processed dataset to learn from.
    pub input: StageName,
    /// The network, layer by layer: `"conv 32 3x3 relu"`, `"pool 2"`, `"batchnorm"`, `"dropout 0.5"`, `"dense 10"`; a residual block
    /// is a table: `{ residual = ["conv 64 3x3 same relu", "conv 64 3x3 same"], activation = "relu" }`, with a `shortcut = ["conv 64 1x1"]` where
    /// shapes differ. The last one has an output for each class.
    pub layers: Vec<LayerSpec>,
    /// The images' height, width and channels, stated so that layers that do not fit are reported before anything runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<[usize; 3]>,
    /// The number of features of a table, stated for the same reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<usize>,
    /// How often the train split is gone through.
    #[serde(default = "epochs")]
    pub epochs: u32,
    /// Examples in a step.
    #[serde(default = "batch")]
    pub batch: usize,
    /// The optimiser: `{ name = "adam", learning_rate = 0.001 }`, `{ name = "sgd", learning_rate = 0.05, momentum = 0.9 }`,
    /// `{ name = "muon", learning_rate = 0.02, rest = { name = "adam", … } }`; with `bias_rate = 64` the batch norms' shifts learn with so much longer
    /// steps.
    #[serde(default)]
    pub optimiser: OptimiserConfig,
    /// How the learning rate goes on from the optimiser's: `constant`, `linear` or `cosine` down to zero, `step` (tenfold down twice), or
    /// `one_cycle` (up, then down).
    #[serde(default)]
    pub schedule: Schedule,
    /// Share of all steps during which the learning rate rises, from 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<f64>,
    /// How train images are varied: `{ flip = "alternating", crop = 2, cutout = 8 }`.
    #[serde(default, skip_serializing_if = "Augmentation::is_off")]
    pub augment: Augmentation,
    /// The first epochs learn from smaller images (progressive resizing; Howard 2018, <https://www.fast.ai/posts/2018-04-30-dawnbench-fastai.html>),
    /// which takes less time: `[{ epochs = 4, size = [20, 20] }, { epochs = 2, size = [24, 24] }]`. The layers must fit any size: `globalpool` or
    /// `globalmaxpool` before the first `dense`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub progressive: Vec<Smaller>,
    /// Scales gradients down whose norm is greater.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Parts of a batch that pass one after the other, for batches larger than memory.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: usize,
    /// Keeps an exponential moving average of the weights, judges it and gives it to the model: the share that a step leaves of it, such as
    /// 0.999.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<f32>,
    /// How often the state is saved that an interrupted training goes on from; has no bearing on the result.
    #[serde(default, skip_serializing_if = "Checkpoint::is_usual")]
    pub checkpoint: Checkpoint,
    /// How classes weigh in the loss: `none` (every example alike) or `balanced` (every class alike, for rare classes).
    #[serde(default)]
    pub class_weights: ClassWeights,
    /// Share of each target that is spread evenly over all classes, from 0 to below 1.
    #[serde(default)]
    pub label_smoothing: f32,
    /// Divides the logits by one number, fitted on the validation split, so that the model is as sure as it is right (temperature scaling; Guo et
    /// al. 2017, <https://arxiv.org/abs/1706.04599>): label smoothing makes it too modest, long training too sure. The number goes into the
    /// weights of the last layer, a `dense` one.
    #[serde(default, skip_serializing_if = "is_off")]
    pub calibrate: bool,
    /// The measure on the validation split that tells which epoch is best.
    #[serde(default)]
    pub watch: Watch,
    /// Which epoch's weights are kept.
    #[serde(default)]
    pub keep: Keep,
    /// Ends when the watched measure has not improved for `patience` epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStopping>,
    /// Where the network learns: `cpu`; `cuda`, an NVIDIA GPU; or `auto`, a GPU where there is one. Needs an episteme built with CUDA. What
    /// is learnt differs between devices in the last bits of a step.
    #[serde(default, skip_serializing_if = "Device::is_cpu")]
    pub device: Device,
    /// How products are taken: `fp32`; or from factors of 11 or 8 significant bits, `tf32` or `bf16`, on a GPU's tensor cores. A CPU with matrix tiles
    /// (AMX) takes `bf16` in convolutions with a stride of one, and for what Muon makes orthogonal; any other computes in fp32 then. Weights, sums and the
    /// optimiser's state are fp32 in any case.
    #[serde(default, skip_serializing_if = "Precision::is_fp32")]
    pub precision: Precision,
    /// The seed of weights, order and dropout; the pipeline's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

fn epochs() -> u32 {
    10
}
fn batch() -> usize {
    64
}

fn is_off(flag: &bool) -> bool {
    !flag
}

fn one() -> usize {
    1
}
fn is_one(parts: &usize) -> bool {
    *parts == 1
}

/// When to save the state of a training.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Minutes from one to the next.
    pub minutes: f64,
    /// Steps from one to the next, besides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { minutes: 1.0, steps: None }
    }
}

impl Checkpoint {
    fn is_usual(&self) -> bool {
        *self == Self::default()
    }
}

/// How classes weigh in the loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClassWeights {
    /// Every example alike.
    #[default]
    None,
    /// Every class alike: an example weighs `examples / (classes × examples of its class)`.
    Balanced,
}

/// What tells a good epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Watch {
    /// Accuracy: higher is better.
    #[default]
    Accuracy,
    /// Loss: lower is better.
    Loss,
    /// Mean F1 over classes: higher is better; for rare classes.
    MacroF1,
}

/// Which weights the model gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// Those of the best epoch; of equals, the earlier.
    #[default]
    Best,
    /// Those of the last epoch.
    Last,
}

/// When to end before all epochs are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EarlyStopping {
    /// Epochs without improvement that are put up with.
    pub patience: u32,
}

impl Classifier {
    /// The seed, once the pipeline has had its say.
    pub fn seed(&self) -> u64 {
        self.seed.unwrap_or_default()
    }

    fn declared_shape(&self) -> Option<Shape> {
        match (self.image, self.features) {
            (Some([height, width, channels]), _) => Some(Shape::Image { height, width, channels }),
            (None, Some(features)) => Some(Shape::Features(features)),
            (None, None) => None,
        }
    }

    fn check_numbers(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let mut needs = |fits: bool, key: &str, message: &str| {
            if !fits {
                problems.push(ConfigProblem::at(key, message));
            }
        };
        needs(!self.layers.is_empty(), "layers", "a network needs at least one layer: the last is `dense` with an output for each class");
        needs(self.epochs >= 1, "epochs", "`epochs` must be at least 1");
        needs((1..=65_536).contains(&self.batch), "batch", "`batch` must be from 1 to 65,536 examples");
        needs((0.0..1.0).contains(&self.label_smoothing), "label_smoothing", "`label_smoothing` must be from 0 to below 1");
        needs(self.early_stopping.is_none_or(|stop| stop.patience >= 1), "early_stopping", "`patience` must be at least 1");
        needs(
            self.image.is_none() || self.features.is_none(),
            "features",
            "an example is an image or a row of features: state one of them",
        );
        needs(self.warm_up.is_none_or(|share| (0.0..=1.0).contains(&share)), "warm_up", "`warm_up` must be from 0 to 1");
        needs(self.clip_norm.is_none_or(|norm| norm > 0.0 && norm.is_finite()), "clip_norm", "`clip_norm` must be above 0");
        needs((1..=self.batch.max(1)).contains(&self.accumulate), "accumulate", "`accumulate` must be from 1 to `batch`");
        needs(self.average.is_none_or(|decay| (0.0..1.0).contains(&decay)), "average", "`average` must be from 0 to below 1");
        needs(self.checkpoint.steps != Some(0), "checkpoint.steps", "`steps` must be at least 1");
        needs((0.0..1e6).contains(&self.checkpoint.minutes), "checkpoint.minutes", "`minutes` must be 0 or above");
        needs(
            !self.calibrate || matches!(self.layers.last(), Some(LayerSpec::Dense { .. })),
            "calibrate",
            "`calibrate` puts a number into the weights of the last layer, which must be `dense CLASSES`",
        );
        needs(
            self.precision != Precision::Tf32 || !self.device.is_cpu(),
            "precision",
            "`tf32` is for GPUs: say `device = \"cuda\"` or `\"auto\"`, too; a CPU takes `fp32` or `bf16`",
        );
        problems.extend(self.augment.check());
        problems.extend(progressive::check(&self.progressive, self.epochs));
        if let Err(error) = self.optimiser.check() {
            problems.push(ConfigProblem::at("optimiser", error.to_string()));
        }
        problems
    }
}

impl Stage for Classifier {
    const USES: &'static str = "learn.classifier";
    const VERSION: u32 = 10;
    const SUMMARY: &'static str = "Train a network to tell classes apart";
    const GIVES: Kind = Kind::Model;

    fn inputs(&self) -> Vec<InputRef> {
        vec![InputRef::one("input", &self.input, &[Kind::Processed])]
    }

    fn check(&self) -> Vec<ConfigProblem> {
        let mut problems = self.check_numbers();
        if let (Some(input), false) = (self.declared_shape(), self.layers.is_empty()) {
            let architecture = Architecture { input, layers: self.layers.clone() };
            let problem = |problem: network::Problem| {
                let place = problem.place.map_or_else(|| "layers".to_owned(), |place| format!("layers.{place}"));
                ConfigProblem::at(&place, problem.message)
            };
            match architecture.check() {
                Err(error) => problems.extend(error.problems.into_iter().map(problem)),
                Ok(_) => {
                    let found = progressive::problems(&self.progressive, &architecture);
                    problems.extend(found.into_iter().map(|message| ConfigProblem::at("progressive", message)));
                }
            }
        }
        problems
    }

    fn set_seed(&mut self, pipeline_seed: u64) {
        self.seed.get_or_insert(pipeline_seed);
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let input = context.input("input")?;
        let examples = Examples::read(&input.path)?;
        if let Some(declared) = self.declared_shape().filter(|declared| *declared != examples.shape()) {
            return Err(StageError::new(format!("the config says that an example is {declared}, and the data's are {}", examples.shape()))
                .at(input.path.display())
                .help("correct `image` or `features`, or leave it out"));
        }
        if !self.augment.is_off() && matches!(examples.shape(), Shape::Features(_)) {
            return Err(StageError::new("`augment` varies images, and the data are rows of features").help("take `augment` out"));
        }
        if self.calibrate && examples.validation().is_empty() {
            return Err(StageError::new("`calibrate` is fitted on the validation split, and there is none")
                .at(input.path.display())
                .help("give the process stage `split = { validation = 0.1 }`, or take `calibrate` out"));
        }
        let architecture = Architecture { input: examples.shape(), layers: self.layers.clone() };
        self.check_classes(&architecture, &examples)?;
        if let Some(problem) = progressive::problems(&self.progressive, &architecture).first() {
            return Err(StageError::new(problem).help("change `progressive`"));
        }
        let loss = LossOptions { class_weights: self.weights(&examples), label_smoothing: self.label_smoothing };
        let trained = training::train(self, &architecture, &examples, &loss, context)?;
        let model = Model::new(self, &examples, trained);
        model.write(context.output(), &input.path, &examples)?;
        Ok(model.outcome())
    }
}

impl Classifier {
    /// Classes and outputs must fit before an hour goes into training.
    fn check_classes(&self, architecture: &Architecture, examples: &Examples) -> Result<(), StageError> {
        let report = architecture.check().map_err(|error| StageError::new(error.to_string()).help("change `layers`"))?;
        let classes = examples.classes();
        if classes.len() < 2 {
            let only = classes.first().map_or("none at all".to_owned(), |class| format!("only `{class}`"));
            return Err(StageError::new(format!("there is nothing to tell apart: the train split has {only}"))
                .help("two classes or more are needed; look at `label`"));
        }
        if report.classes() != classes.len() {
            let last = self.layers.last().map(ToString::to_string).unwrap_or_default();
            let shown: Vec<&str> = classes.iter().take(12).map(String::as_str).collect();
            let more = if classes.len() > shown.len() { ", …" } else { "" };
            return Err(StageError::new(format!(
                "the last layer is `{last}`, and the data has {} classes: {}{more}",
                classes.len(),
                shown.join(", ")
            ))
            .help(format!("make the last layer `dense {}`", classes.len())));
        }
        Ok(())
    }

    fn weights(&self, examples: &Examples) -> Option<Vec<f32>> {
        match self.class_weights {
            ClassWeights::None => None,
            ClassWeights::Balanced => {
                let mut counts = vec![0usize; examples.classes().len()];
                examples.train().iter().for_each(|row| counts[examples.label(*row) as usize] += 1);
                let (all, classes) = (examples.train().len() as f32, counts.len() as f32);
                // A class that the train split lacks has no say in the loss anyway; any weight above zero will do.
                Some(counts.iter().map(|count| all / (classes * (*count).max(1) as f32)).collect())
            }
        }
    }
}
