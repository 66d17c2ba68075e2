//! `apply.report`: one self-contained HTML file that tells what was learnt, from what, and how far to trust it.

mod charts;
mod html;
mod lineage;
mod pictures;
mod sections;
mod sources;

use std::collections::BTreeMap;

use artifact::{ConfigProblem, Doing, InputRef, Kind, Outcome, RunContext, Stage, StageError, StageName, Stages};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use html::escape;
use sources::Sources;

/// Writes a report to read in a browser, without a network: lineage, data, curves, confusion, per-class measures, calibration,
/// and the most confident mistakes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The model, or the models that judged together.
    pub model: Stages,
    /// Their predictions.
    pub predictions: StageName,
    /// The processed dataset that the model learnt from and that was judged.
    pub data: StageName,
    /// The heading; the classes and the data if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
}

/// The report's file.
const REPORT_FILE: &str = "report.html";
const STYLE: &str = include_str!("report/style.css");

impl Stage for Report {
    const USES: &'static str = "apply.report";
    const VERSION: u32 = 3;
    const SUMMARY: &'static str = "Write a self-contained HTML report";
    const GIVES: Kind = Kind::Report;

    fn inputs(&self) -> Vec<InputRef> {
        vec![
            InputRef::stages("model", &self.model, &[Kind::Model]),
            InputRef::one("predictions", &self.predictions, &[Kind::Predictions]),
            InputRef::one("data", &self.data, &[Kind::Processed, Kind::Dataset]),
        ]
    }

    fn check(&self) -> Vec<ConfigProblem> {
        self.model.check("model")
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let sources = Sources::read(context.inputs("model"), context.input("predictions")?, context.input("data")?)?;
        let title = self.title.clone().unwrap_or_else(|| sources.title());
        let path = context.output().join(REPORT_FILE);
        std::fs::write(&path, page(&title, &sources)?).doing(|| format!("writing {}", path.display()))?;
        Ok(Outcome { outputs: BTreeMap::from([("report".to_owned(), REPORT_FILE.to_owned())]), ..Outcome::default() })
    }
}

fn page(title: &str, sources: &Sources) -> Result<String, StageError> {
    let sections = [
        sections::figures(sources),
        sections::lineage(sources),
        sections::data(sources)?,
        sections::learning(sources),
        sections::confusion(sources),
        sections::classes(sources),
        sections::calibration(sources),
        sections::mistakes(sources)?,
        sections::network(sources),
    ];
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <header><p class=\"kicker\">Episteme report</p><h1>{title}</h1></header>\n{}\n</main>\n</body>\n</html>\n",
        sections.concat(),
        title = escape(title),
    ))
}
