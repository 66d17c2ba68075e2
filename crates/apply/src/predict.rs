//! `apply.predict`: K and data to scored Parquet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arrow::array::{Float32Builder, ListBuilder, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema};
use artifact::{ConfigProblem, Doing, InputRef, Kind, Outcome, RunContext, Stage, StageError, StageName, Stages};
use dataset::{Split, each_ahead, table};
use network::metrics::{Metrics, argmax};
use network::{Device, Precision};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::examples::Examples;
use crate::knowledge::Knowledge;
use crate::views::{Judging, Views};

/// Judges examples with a model: id, true label where known, predicted label, confidence, and the probability of each class.
/// Data that has not been through f goes through the model's own.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Predict {
    /// The model; or several that learnt from the same data, whose probabilities are averaged (a deep ensemble): `["a", "b"]`, or all
    /// variants of a stage, `"model@*"`.
    pub model: Stages,
    /// What to judge: a processed dataset, a raw one, or a folder of PNG and JPEG files of the model's size.
    pub data: StageName,
    /// Which split of the data is judged; data without splits is judged whole.
    #[serde(default)]
    pub split: Scope,
    /// Whether images are judged in several views, whose probabilities are averaged.
    #[serde(default, skip_serializing_if = "Views::is_one")]
    pub views: Views,
    /// Where the network judges: `cpu`; `cuda`, an NVIDIA GPU; or `auto`, a GPU where there is one. Needs an episteme built with CUDA.
    #[serde(default, skip_serializing_if = "Device::is_cpu")]
    pub device: Device,
    /// How products are taken: `fp32`; or from factors of 11 or 8 significant bits, `tf32` or `bf16`, on a GPU's tensor cores. A CPU with matrix tiles
    /// (AMX) takes `bf16` in convolutions with a stride of one; any other computes in fp32 then.
    #[serde(default, skip_serializing_if = "Precision::is_fp32")]
    pub precision: Precision,
}

/// Which rows are judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The train split.
    Train,
    /// The validation split.
    Validation,
    /// The test split.
    #[default]
    Test,
    /// Every row.
    All,
}

impl Scope {
    fn split(self) -> Option<Split> {
        match self {
            Self::Train => Some(Split::Train),
            Self::Validation => Some(Split::Validation),
            Self::Test => Some(Split::Test),
            Self::All => None,
        }
    }

    fn name(self) -> &'static str {
        self.split().map_or("all", Split::name)
    }
}

/// The file of scored examples.
pub const PREDICTIONS_FILE: &str = "predictions.parquet";
/// Examples judged at once. A prediction does not depend on its neighbours, so this has no bearing on the result.
const BATCH: usize = 512;

impl Stage for Predict {
    const USES: &'static str = "apply.predict";
    const VERSION: u32 = 8;
    const SUMMARY: &'static str = "Judge examples with a model, into scored Parquet";
    const GIVES: Kind = Kind::Predictions;

    fn inputs(&self) -> Vec<InputRef> {
        vec![
            InputRef::stages("model", &self.model, &[Kind::Model]),
            InputRef::one("data", &self.data, &[Kind::Processed, Kind::Dataset, Kind::Files]),
        ]
    }

    fn check(&self) -> Vec<ConfigProblem> {
        let mut problems = self.model.check("model");
        if self.precision == Precision::Tf32 && self.device.is_cpu() {
            let message = "`tf32` is for GPUs: say `device = \"cuda\"` or `\"auto\"`, too; a CPU takes `fp32` or `bf16`";
            problems.push(ConfigProblem::at("precision", message));
        }
        problems
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let mut models = Knowledge::read_all(context.inputs("model"))?;
        for (at, model) in models.iter_mut().enumerate() {
            let placement = model.network.place(self.device, self.precision).map_err(|error| StageError::new(error.to_string()))?;
            // All are placed alike: the first one's note tells of the others, too.
            if let Some(note) = placement.note().filter(|_| at == 0) {
                context.info(note);
            }
        }
        let knowledge = &models[0];
        let data = context.input("data")?;
        let examples = Examples::open(data, &knowledge.fitted)?;
        let rows = self.rows(&examples);
        if rows.is_empty() {
            return Err(StageError::new(format!("the {} split has no examples", self.split.name()))
                .at(data.path.display())
                .help("choose another `split`, or \"all\""));
        }
        let probabilities = judge(&models, &examples, &rows, self.views, context)?;
        write(&knowledge.classes, &examples, &rows, &probabilities, context)?;
        let metrics = measure(&knowledge.classes, &examples, &rows, &probabilities, context);
        let path = context.output().join("metrics.json");
        let measured: BTreeMap<&str, &Metrics> = metrics.iter().map(|metrics| (self.split.name(), metrics)).collect();
        std::fs::write(&path, serde_json::to_vec_pretty(&measured).doing(|| "writing JSON".into())?)
            .doing(|| format!("writing {}", path.display()))?;
        Ok(Outcome {
            rows: Some(rows.len() as u64),
            schema: serde_json::json!({ "classes": knowledge.classes, "split": self.split }),
            metrics: metrics.map(|metrics| metrics.named(self.split.name())).unwrap_or_default(),
            outputs: BTreeMap::from([("predictions".to_owned(), PREDICTIONS_FILE.to_owned())]),
        })
    }
}

impl Predict {
    fn rows(&self, examples: &Examples) -> Vec<usize> {
        let has_splits = examples.splits.iter().any(Option::is_some);
        let wanted = self.split.split().filter(|_| has_splits);
        (0..examples.ids.len()).filter(|row| wanted.is_none_or(|wanted| examples.splits[*row] == Some(wanted))).collect()
    }
}

/// The probability of each class: `[rows, classes]`. That of several models is their mean (Lakshminarayanan et al. 2017,
/// <https://arxiv.org/abs/1612.01474>).
fn judge(models: &[Knowledge], examples: &Examples, rows: &[usize], views: Views, context: &RunContext) -> Result<Vec<f32>, StageError> {
    let progress = context.progress("examples", Some(rows.len() as u64), "examples");
    let mut probabilities = Vec::with_capacity(rows.len() * models[0].classes.len());
    let mut begun: VecDeque<(usize, Vec<Judging<'_>>)> = VecDeque::new();
    let mut end = |(examples, judging): (usize, Vec<Judging<'_>>)| {
        let mut judged = judging.into_iter().map(Judging::end);
        let mut sums = judged.next().transpose()?.unwrap_or_default();
        for one in judged {
            sums.iter_mut().zip(one?).for_each(|(sum, one)| *sum += one);
        }
        let share = 1.0 / models.len() as f32;
        probabilities.extend(sums.into_iter().map(|sum| share * sum));
        progress.add(examples as u64);
        Ok(())
    };
    let follows = |before: &usize, after: &usize| !examples.in_runs() || before + 1 == *after;
    let batches = rows.chunk_by(follows).flat_map(|run| run.chunks(BATCH));
    each_ahead(
        batches,
        |batch, gathered| examples.gather(batch, gathered),
        |batch, gathered| {
            context.check_stop()?;
            let input = examples.input(gathered);
            let judging = models.iter().map(|model| views.begin(&model.network, input, model.shape())).collect::<Result<_, _>>()?;
            begun.push_back((batch.len(), judging));
            // A GPU computes one batch while the next is taken to its memory, and the one after that is read.
            if begun.len() > 1 { begun.pop_front().map_or(Ok(()), &mut end) } else { Ok(()) }
        },
    )?;
    begun.into_iter().try_for_each(end)?;
    Ok(probabilities)
}

fn write(classes: &[String], examples: &Examples, rows: &[usize], probabilities: &[f32], context: &RunContext) -> Result<(), StageError> {
    let list = Arc::new(Field::new("item", DataType::Float32, false));
    let fields = vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("label", DataType::Utf8, true),
        Field::new("predicted", DataType::Utf8, false),
        Field::new("confidence", DataType::Float32, false),
        Field::new("probabilities", DataType::List(Arc::clone(&list)), false),
    ];
    let names = serde_json::to_string(classes).doing(|| "writing the classes".into())?;
    let schema = Arc::new(Schema::new_with_metadata(fields, std::collections::HashMap::from([("episteme.classes".to_owned(), names)])));
    let (mut ids, mut labels, mut predicted) = (StringBuilder::new(), StringBuilder::new(), StringBuilder::new());
    let (mut confidence, mut lists) = (Float32Builder::new(), ListBuilder::new(Float32Builder::new()).with_field(list));
    for (row, probabilities) in rows.iter().zip(probabilities.chunks_exact(classes.len())) {
        let best = argmax(probabilities);
        ids.append_value(&examples.ids[*row]);
        labels.append_option(examples.labels[*row].as_deref());
        predicted.append_value(&classes[best]);
        confidence.append_value(probabilities[best]);
        lists.values().append_slice(probabilities);
        lists.append(true);
    }
    let columns: Vec<arrow::array::ArrayRef> = vec![
        Arc::new(ids.finish()),
        Arc::new(labels.finish()),
        Arc::new(predicted.finish()),
        Arc::new(confidence.finish()),
        Arc::new(lists.finish()),
    ];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).doing(|| "putting the predictions together".into())?;
    table::write_table(&context.output().join(PREDICTIONS_FILE), &schema, &[batch])?;
    Ok(())
}

/// How good the predictions are, over the rows whose label the model knows; none where there are none.
fn measure(classes: &[String], examples: &Examples, rows: &[usize], probabilities: &[f32], context: &RunContext) -> Option<Metrics> {
    let (mut labels, mut judged) = (Vec::new(), Vec::new());
    let mut unknown = BTreeSet::new();
    for (row, probabilities) in rows.iter().zip(probabilities.chunks_exact(classes.len())) {
        let Some(label) = &examples.labels[*row] else { continue };
        match classes.iter().position(|class| class == label) {
            Some(code) => {
                labels.push(code as u32);
                judged.extend_from_slice(probabilities);
            }
            None => drop(unknown.insert(label.as_str())),
        }
    }
    if !unknown.is_empty() {
        let names: Vec<&str> = unknown.iter().take(8).copied().collect();
        context.warn(format!(
            "{} labels of the data are unknown to the model and count in no measure: {}",
            unknown.len(),
            names.join(", ")
        ));
    }
    (!labels.is_empty()).then(|| Metrics::of(classes, &labels, &judged))
}
