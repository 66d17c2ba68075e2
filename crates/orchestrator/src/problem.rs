//! What is wrong with a pipeline file, all at once, each with its place.

use artifact::ConfigProblem;
use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

/// Everything wrong with one pipeline file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {} to mend before anything can run", self.file, match self.problems.len() { 1 => "one thing".to_owned(), many => format!("{many} things") })]
pub struct Problems {
    /// The file's path, as the user gave it.
    pub file: String,
    /// What was found, in the order of the file.
    pub problems: Vec<Problem>,
}

/// One of them.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    source_code: NamedSource<String>,
    label: Option<LabeledSpan>,
}

impl Problems {
    /// Takes problems with spans into `text`; spans of nothing (from `--set`) are shown without source.
    pub fn new(file: &str, text: &str, mut found: Vec<ConfigProblem>) -> Self {
        found.sort_by_key(|problem| problem.span.as_ref().map_or(usize::MAX, |span| span.start));
        let problems = found.into_iter().map(|problem| {
            let span = problem.span.filter(|span| !span.is_empty() && span.end <= text.len());
            Problem {
                message: problem.message,
                help: problem.help,
                source_code: NamedSource::new(file, text.to_owned()).with_language("toml"),
                label: span.map(|span| LabeledSpan::new_with_span(None, shown(text, span))),
            }
        });
        Self { file: file.to_owned(), problems: problems.collect() }
    }
}

/// A table's span covers its whole body: its first line is enough to point at.
fn shown(text: &str, span: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let first_line = text[span.clone()].find('\n').map_or(span.end, |length| span.start + length);
    span.start..first_line.max(span.start + 1)
}

impl Diagnostic for Problem {
    fn help(&self) -> Option<Box<dyn std::fmt::Display + '_>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn std::fmt::Display>)
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.label.as_ref().map(|_| &self.source_code as &dyn SourceCode)
    }
    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.label.clone().map(|label| Box::new(std::iter::once(label)) as Box<dyn Iterator<Item = LabeledSpan>>)
    }
}

impl Diagnostic for Problems {
    fn related<'a>(&'a self) -> Option<Box<dyn Iterator<Item = &'a dyn Diagnostic> + 'a>> {
        Some(Box::new(self.problems.iter().map(|problem| problem as &dyn Diagnostic)))
    }
}
