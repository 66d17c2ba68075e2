//! The parts of the page, in order.

use std::collections::BTreeMap;
use std::fmt::Write;

use artifact::StageError;
use dataset::{ColumnProfile, Images};
use network::{Architecture, ArchitectureReport};

use super::charts::{self, Series};
use super::html::{count, escape, number, percent, section};
use super::sources::{Model, Prediction, Sources};
use super::{lineage as graph, pictures};

/// Above this many classes, a table of counts cannot be read: the most confused pairs are shown instead.
const MATRIX_CLASSES: usize = 30;
/// Sample images a class, classes shown, and mistakes shown.
const SAMPLES: usize = 5;
const SAMPLE_CLASSES: usize = 20;
const MISTAKES: usize = 24;
const CALIBRATION_BINS: usize = 10;

/// Key figures.
pub fn figures(sources: &Sources) -> String {
    let mut tiles = Vec::new();
    if let Some((split, metrics)) = &sources.metrics {
        tiles.push((percent(metrics.accuracy), format!("accuracy ({split})")));
        tiles.push((percent(metrics.macro_f1), "macro F1".to_owned()));
        tiles.extend(metrics.average_precision.map(|value| (percent(value), format!("average precision of {}", metrics.classes[1]))));
        tiles.push((number(metrics.log_loss), "log loss (nats)".to_owned()));
    }
    tiles.push((count(sources.predictions.len() as u64), "examples judged".to_owned()));
    tiles.push((sources.classes().len().to_string(), "classes".to_owned()));
    if sources.models.len() > 1 {
        tiles.push((sources.models.len().to_string(), "models that judge together".to_owned()));
    }
    let parameters: usize = sources.models.iter().map(|model| model.knowledge.network.report().parameters()).sum();
    tiles.push((count(parameters as u64), "parameters".to_owned()));
    let tiles: String =
        tiles.iter().map(|(value, name)| format!("<div class=\"tile\"><b>{value}</b><span>{}</span></div>", escape(name))).collect();
    format!("<section class=\"tiles\">{tiles}</section>\n")
}

/// Where it came from.
pub fn lineage(sources: &Sources) -> String {
    if sources.manifests.is_empty() {
        return String::new();
    }
    let lead = "Every artifact on the way, with its digest. Rest on one to see its settings.";
    section("lineage", "From raw data to decisions", lead, &format!("<div class=\"scroll\">{}</div>", graph::graph(&sources.manifests)))
}

/// What was learnt from.
pub fn data(sources: &Sources) -> Result<String, StageError> {
    let mut body = String::new();
    if let Some(profile) = &sources.profile {
        let splits: Vec<String> = profile
            .splits
            .iter()
            .map(|(split, rows)| format!("{} in {}", count(*rows), if split.is_empty() { "no split" } else { split }))
            .collect();
        let _ = write!(body, "<p>{} examples: {}.</p>", count(profile.rows), escape(&splits.join(", ")));
    }
    if let Some(notes) = sources.cleaning.as_ref().map(cleaning).filter(|notes| !notes.is_empty()) {
        let _ = write!(body, "<p>{}</p>", escape(&notes));
    }
    match (&sources.images, &sources.profile) {
        (Some(images), _) => body.push_str(&samples(images, sources.classes())?),
        (None, Some(profile)) if !profile.columns.is_empty() => body.push_str(&columns(&profile.columns)),
        _ => {}
    }
    Ok(section("data", "The data", "", &body))
}

/// `cleaning.json` in a sentence.
fn cleaning(cleaning: &serde_json::Value) -> String {
    let dropped = cleaning["dropped"].as_object().into_iter().flatten();
    let dropped: Vec<String> = dropped
        .filter_map(|(why, rows)| rows.as_u64().filter(|rows| *rows > 0).map(|rows| format!("{} {}", count(rows), why.replace('_', " "))))
        .collect();
    let notes = cleaning["notes"].as_array().into_iter().flatten().filter_map(|note| note.as_str().map(str::to_owned));
    let first =
        if dropped.is_empty() { "Cleaning dropped nothing.".to_owned() } else { format!("Cleaning dropped: {}.", dropped.join(", ")) };
    std::iter::once(first).chain(notes).collect::<Vec<_>>().join(" ")
}

fn samples(images: &Images, classes: &[String]) -> Result<String, StageError> {
    let mut rows: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for row in 0..images.len() {
        let found = rows.entry(images.label(row).unwrap_or_default()).or_default();
        if found.len() < SAMPLES {
            found.push(row);
        }
    }
    let mut body = String::from("<div class=\"samples\">");
    for class in classes.iter().take(SAMPLE_CLASSES) {
        let pictures = rows
            .get(class.as_str())
            .into_iter()
            .flatten()
            .map(|row| pictures::picture(images, *row, class))
            .collect::<Result<String, _>>()?;
        let _ = write!(body, "<div class=\"sample\"><span>{}</span><div>{pictures}</div></div>", escape(class));
    }
    body.push_str("</div>");
    if classes.len() > SAMPLE_CLASSES {
        let _ = write!(body, "<p class=\"note\">and {} classes more</p>", classes.len() - SAMPLE_CLASSES);
    }
    Ok(body)
}

fn columns(columns: &[ColumnProfile]) -> String {
    let mut body = String::from(
        "<div class=\"scroll\"><table><thead><tr><th>column</th><th>type</th><th class=\"n\">missing</th><th class=\"n\">mean</th><th class=\"n\">deviation</th><th class=\"n\">range</th><th>distribution</th></tr></thead><tbody>",
    );
    for column in columns {
        let _ = write!(
            body,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td>",
            escape(&column.name),
            escape(&column.kind),
            count(column.nulls)
        );
        match &column.numbers {
            Some(numbers) => {
                let _ = write!(
                    body,
                    "<td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{} … {}</td><td>{}</td></tr>",
                    number(numbers.mean),
                    number(numbers.deviation),
                    number(numbers.minimum),
                    number(numbers.maximum),
                    charts::histogram(&numbers.histogram)
                );
            }
            None => {
                let top: Vec<String> = column.top.iter().take(4).map(|(value, rows)| format!("{value} ({})", count(*rows))).collect();
                let _ = write!(body, "<td></td><td></td><td></td><td>{}</td></tr>", escape(&top.join(", ")));
            }
        }
    }
    body + "</tbody></table></div>"
}

/// How it was learnt.
pub fn learning(sources: &Sources) -> String {
    let name = |at: usize| if sources.models.len() > 1 { format!("Model {}: ", at + 1) } else { String::new() };
    let learnt = sources.models.iter().enumerate().filter(|(_, model)| !model.history.is_empty());
    let body: String = learnt.map(|(at, model)| curves(model, &name(at))).collect();
    if body.is_empty() { body } else { section("learning", "Learning", "", &body) }
}

/// How a model learnt.
fn curves(model: &Model, name: &str) -> String {
    let series = |of: fn(&super::sources::Measured) -> f64| {
        let points = |on: fn(&super::sources::Epoch) -> &super::sources::Measured| {
            model.history.iter().map(|epoch| (f64::from(epoch.epoch), of(on(epoch)))).collect()
        };
        [
            Series { name: "train", class: "train", points: points(|epoch| &epoch.train) },
            Series { name: "validation", class: "validation", points: points(|epoch| &epoch.validation) },
        ]
    };
    let kept = f64::from(model.knowledge.kept_epoch);
    let loss = charts::curves("Loss by epoch", &series(|measured| measured.loss), kept);
    let accuracy = charts::curves("Accuracy by epoch", &series(|measured| measured.accuracy), kept);
    format!(
        "<p>{name}{} epochs; the weights of epoch {} are kept (dashed).</p><div class=\"pair\"><figure><figcaption>loss</figcaption>{loss}</figure><figure><figcaption>accuracy</figcaption>{accuracy}</figure></div>",
        model.history.len(),
        model.knowledge.kept_epoch
    )
}

/// What is taken for what.
pub fn confusion(sources: &Sources) -> String {
    let Some((_, metrics)) = &sources.metrics else { return String::new() };
    if metrics.classes.len() > MATRIX_CLASSES {
        return confused_pairs(&metrics.classes, &metrics.confusion);
    }
    let mut body = String::from("<div class=\"scroll\"><table class=\"matrix\"><thead><tr><th class=\"corner\">true ╲ predicted</th>");
    body.extend(metrics.classes.iter().map(|class| format!("<th>{}</th>", escape(class))));
    body.push_str("</tr></thead><tbody>");
    for (row, class) in metrics.confusion.iter().zip(&metrics.classes) {
        let total: u64 = row.iter().sum();
        let _ = write!(body, "<tr><th>{}</th>", escape(class));
        for (column, examples) in row.iter().enumerate() {
            let share = if total > 0 { *examples as f64 / total as f64 } else { 0.0 };
            let kind = if metrics.classes[column] == *class { "right" } else { "wrong" };
            // Mistakes are rare where the model is good: the root makes a few of them visible.
            let shade = if *examples == 0 { 0.0 } else { 8.0 + 52.0 * share.sqrt() };
            let told = format!("{} of {} {} predicted as {}: {}", examples, total, class, metrics.classes[column], percent(share));
            let shown = if *examples == 0 { String::new() } else { count(*examples) };
            let _ = write!(body, "<td class=\"{kind}\" style=\"--s:{shade:.0}%\" title=\"{}\">{shown}</td>", escape(&told));
        }
        body.push_str("</tr>");
    }
    body.push_str("</tbody></table></div>");
    section(
        "confusion",
        "What is taken for what",
        "Rows are the truth, columns the prediction. Rest on a cell for its share of the row.",
        &body,
    )
}

fn confused_pairs(classes: &[String], confusion: &[Vec<u64>]) -> String {
    let pairs = confusion
        .iter()
        .enumerate()
        .flat_map(|(truth, row)| row.iter().enumerate().map(move |(predicted, examples)| (*examples, truth, predicted)));
    let mut pairs: Vec<_> = pairs.filter(|(examples, truth, predicted)| *examples > 0 && truth != predicted).collect();
    pairs.sort_by_key(|(examples, truth, predicted)| (std::cmp::Reverse(*examples), *truth, *predicted));
    let rows: String = pairs
        .iter()
        .take(MATRIX_CLASSES)
        .map(|(examples, truth, predicted)| {
            format!(
                "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td></tr>",
                escape(&classes[*truth]),
                escape(&classes[*predicted]),
                count(*examples)
            )
        })
        .collect();
    section(
        "confusion",
        "What is taken for what",
        "The pairs that are confused most.",
        &format!(
            "<table><thead><tr><th>true</th><th>predicted</th><th class=\"n\">examples</th></tr></thead><tbody>{rows}</tbody></table>"
        ),
    )
}

/// Each class by itself.
pub fn classes(sources: &Sources) -> String {
    let Some((_, metrics)) = &sources.metrics else { return String::new() };
    let bar =
        |value: f64| format!("<td class=\"n\"><span class=\"bar\" style=\"--v:{:.1}%\">{}</span></td>", value * 100.0, percent(value));
    let mut body = String::from(
        "<div class=\"scroll\"><table><thead><tr><th>class</th><th class=\"n\">precision</th><th class=\"n\">recall</th><th class=\"n\">F1</th><th class=\"n\">examples</th></tr></thead><tbody>",
    );
    for (name, class) in metrics.classes.iter().zip(&metrics.per_class) {
        let _ = write!(
            body,
            "<tr><td>{}</td>{}{}{}<td class=\"n\">{}</td></tr>",
            escape(name),
            bar(class.precision),
            bar(class.recall),
            bar(class.f1),
            count(class.support)
        );
    }
    let _ = write!(
        body,
        "</tbody><tfoot><tr><td>mean over classes</td>{}{}{}<td class=\"n\">{}</td></tr></tfoot></table></div>",
        bar(metrics.macro_precision),
        bar(metrics.macro_recall),
        bar(metrics.macro_f1),
        count(metrics.examples)
    );
    let lead = "Precision: of those called so, how many are. Recall: of those that are, how many were found.";
    section("classes", "Class by class", lead, &body)
}

/// Whether confidence can be believed.
pub fn calibration(sources: &Sources) -> String {
    let labelled: Vec<(&Prediction, bool)> =
        sources.predictions.iter().filter_map(|one| one.label.as_ref().map(|label| (one, *label == one.predicted))).collect();
    if labelled.is_empty() {
        return String::new();
    }
    let mut bins = vec![(0.0, 0u64, 0u64); CALIBRATION_BINS];
    for (one, right) in &labelled {
        let bin = &mut bins[((f64::from(one.confidence) * CALIBRATION_BINS as f64) as usize).min(CALIBRATION_BINS - 1)];
        *bin = (bin.0 + f64::from(one.confidence), bin.1 + u64::from(*right), bin.2 + 1);
    }
    let bins: Vec<(f64, f64, u64)> =
        bins.into_iter().filter(|bin| bin.2 > 0).map(|(sum, right, all)| (sum / all as f64, right as f64 / all as f64, all)).collect();
    let error: f64 =
        bins.iter().map(|(confidence, accuracy, all)| (confidence - accuracy).abs() * *all as f64).sum::<f64>() / labelled.len() as f64;
    let lead = format!(
        "On the dashed line, a confidence of 0.8 is right eight times of ten. The mean distance from it (expected calibration error, Guo et al. 2017) is {}.",
        number(error)
    );
    section(
        "calibration",
        "Can its confidence be believed?",
        &lead,
        &format!("<figure class=\"half\">{}</figure>", charts::reliability(&bins)),
    )
}

/// Where it was sure and wrong.
pub fn mistakes(sources: &Sources) -> Result<String, StageError> {
    let mut wrong: Vec<&Prediction> =
        sources.predictions.iter().filter(|one| one.label.as_ref().is_some_and(|label| *label != one.predicted)).collect();
    if wrong.is_empty() {
        return Ok(String::new());
    }
    wrong.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then_with(|| a.id.cmp(&b.id)));
    let lead = format!(
        "{} of {} were wrong. Those of the highest confidence first: look here for wrong labels and for what the model does not see.",
        count(wrong.len() as u64),
        count(sources.predictions.len() as u64)
    );
    let rows: BTreeMap<&str, usize> = match &sources.images {
        Some(images) => (0..images.len()).map(|row| (images.id(row), row)).collect(),
        None => BTreeMap::new(),
    };
    let mut body = String::from("<div class=\"mistakes\">");
    for one in wrong.iter().take(MISTAKES) {
        let label = one.label.as_deref().unwrap_or_default();
        let picture = match (&sources.images, rows.get(one.id.as_str())) {
            (Some(images), Some(row)) => pictures::picture(images, *row, &one.id)?,
            _ => String::new(),
        };
        let _ = write!(
            body,
            "<figure class=\"mistake\">{picture}<figcaption><b>{}</b> taken for <b>{}</b><br>{}<br><span class=\"mono\">{}</span></figcaption></figure>",
            escape(label),
            escape(&one.predicted),
            percent(f64::from(one.confidence)),
            escape(&one.id)
        );
    }
    body.push_str("</div>");
    Ok(section("mistakes", "Sure and wrong", &lead, &body))
}

/// What learnt it; of several models, each network once.
pub fn network(sources: &Sources) -> String {
    let mut shown: Vec<&Architecture> = Vec::new();
    let mut body = String::new();
    for model in &sources.models {
        let network = &model.knowledge.network;
        if !shown.contains(&network.architecture()) {
            shown.push(network.architecture());
            body.push_str(&layers(network.report()));
        }
    }
    let _ = write!(body, "<p class=\"note\">Data: <span class=\"mono\">{}</span></p>", escape(&data_name(sources)));
    section("network", if shown.len() > 1 { "The networks" } else { "The network" }, "", &body)
}

/// A network, layer by layer.
fn layers(report: &ArchitectureReport) -> String {
    let mut body = format!(
        "<div class=\"scroll\"><table><thead><tr><th></th><th>layer</th><th>gives</th><th class=\"n\">parameters</th><th class=\"n\">MFLOP an example</th></tr></thead><tbody><tr><td></td><td>input</td><td>{}</td><td></td><td></td></tr>",
        escape(&report.input.to_string())
    );
    for layer in &report.layers {
        let _ = write!(
            body,
            "<tr><td class=\"n\">{}</td><td class=\"mono\">{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{:.3}</td></tr>",
            escape(&layer.number),
            escape(&layer.layer),
            escape(&layer.output.to_string()),
            count(layer.parameters as u64),
            layer.flops as f64 / 1e6
        );
    }
    let _ = write!(
        body,
        "</tbody><tfoot><tr><td></td><td>all</td><td></td><td class=\"n\">{}</td><td class=\"n\">{:.3}</td></tr></tfoot></table></div>",
        count(report.parameters() as u64),
        report.flops() as f64 / 1e6
    );
    body
}

/// The data's digest: its folder's name in the store.
fn data_name(sources: &Sources) -> String {
    sources.data.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
