//! The stages of a plan, drawn: as text, as lanes in ASCII, as a Mermaid flow chart, as SVG; or told, as JSON.

mod ascii;
mod svg;

pub use ascii::{ascii, lanes};
pub use svg::svg;

use crate::document::{Document, GraphStage};
use crate::plan::Plan;

/// One line a stage, its inputs named: `clean ← images`. Stages stand after what they take from.
pub fn text(plan: &Plan) -> String {
    let width = plan.stages.iter().map(|stage| stage.name.len()).max().unwrap_or_default();
    let uses_width = plan.stages.iter().map(|stage| stage.stage.uses().len()).max().unwrap_or_default();
    let depths = depths(plan);
    let deepest = depths.iter().max().copied().unwrap_or_default();
    plan.stages
        .iter()
        .zip(&depths)
        .map(|(stage, depth)| {
            let mut from: Vec<&str> = stage.upstream().map(|index| plan.stages[index].name.as_str()).collect();
            from.dedup();
            let from = if from.is_empty() { String::new() } else { format!(" ← {}", from.join(", ")) };
            let (before, after) = ("  ".repeat(*depth), "  ".repeat(deepest - depth));
            format!("{before}● {:<width$}{after}  {:<uses_width$}  {}{from}\n", stage.name, stage.stage.uses(), stage.stage.gives())
        })
        .collect()
}

/// How many stages stand before each, along the longest way.
fn depths(plan: &Plan) -> Vec<usize> {
    let mut depths: Vec<usize> = Vec::new();
    for stage in &plan.stages {
        let depth = stage.upstream().map(|index| depths[index] + 1).max().unwrap_or_default();
        depths.push(depth);
    }
    depths
}

/// Stages and what they take from, for scripts.
pub fn document(plan: &Plan) -> Document {
    let name = |index: &usize| plan.stages[*index].name.clone();
    let stages = plan.stages.iter().map(|stage| GraphStage {
        name: stage.name.clone(),
        uses: stage.stage.uses().to_owned(),
        gives: stage.stage.gives(),
        inputs: stage.inputs.iter().map(|(key, all)| (key.clone(), all.iter().map(name).collect())).collect(),
    });
    Document::Graph { pipeline: plan.name.clone(), stages: stages.collect() }
}

/// A Mermaid flow chart, as Markdown pages draw it.
pub fn mermaid(plan: &Plan) -> String {
    let mut lines = vec!["flowchart LR".to_owned()];
    for (index, stage) in plan.stages.iter().enumerate() {
        lines.push(format!("  s{index}[\"{}<br/><small>{}</small>\"]", stage.name, stage.stage.uses()));
        let mut from: Vec<(usize, &str)> =
            stage.inputs.iter().flat_map(|(key, all)| all.iter().map(|from| (*from, key.as_str()))).collect();
        from.sort_unstable();
        lines.extend(from.into_iter().map(|(from, key)| format!("  s{from} -- {key} --> s{index}")));
    }
    lines.join("\n") + "\n"
}
