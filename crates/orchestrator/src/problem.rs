//! What is wrong with a pipeline file, all at once, each with its place.

use std::ops::Range;

use crate::document::PlacedProblem;
use artifact::ConfigProblem;
use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};

/// The texts that a pipeline is declared in: its file, what it includes, `--params` files, then each `--set`. Spans run on from one to the next, so that
/// every value, wherever it was written, has a span of its own.
#[derive(Debug, Clone)]
pub struct Sources {
    texts: Vec<(String, String)>,
}

impl Sources {
    /// A file, to which others are added.
    pub fn new(file: impl Into<String>, text: String) -> Self {
        Self { texts: vec![(file.into(), text)] }
    }

    /// One more text.
    pub fn add(&mut self, name: impl Into<String>, text: String) {
        self.texts.push((name.into(), text));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.texts.len()
    }

    /// The file's name, as the user gave it.
    pub fn file(&self) -> &str {
        self.texts.first().map_or("", |(name, _)| name)
    }

    /// The texts in order, each with the offset at which its spans start.
    pub fn texts(&self) -> impl Iterator<Item = (usize, &str, &str)> {
        self.texts.iter().scan(0, |start, (name, text)| {
            let this = *start;
            // One apart: the end of a text is not the beginning of the next.
            *start += text.len() + 1;
            Some((this, name.as_str(), text.as_str()))
        })
    }

    /// The text that a span lies in, its name, and the span within it.
    fn find(&self, span: &Range<usize>) -> Option<(&str, &str, Range<usize>)> {
        let found = self.texts().find(|(start, _, text)| *start <= span.start && span.end <= start + text.len());
        found.map(|(start, name, text)| (name, text, span.start - start..span.end - start))
    }
}

/// Everything wrong with one pipeline file.
#[derive(Debug, thiserror::Error)]
#[error("{}: {} to mend before anything can run", self.file, match self.problems.len() { 1 => "one thing".to_owned(), many => format!("{many} things") })]
pub struct Problems {
    /// The file's path, as the user gave it.
    pub file: String,
    /// What was found, in the order of the file; the command line comes last.
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
    shown_in: Option<NamedSource<String>>,
    label: Option<LabeledSpan>,
}

impl Problems {
    /// Puts what was found in order and beside its source.
    pub fn new(sources: &Sources, mut found: Vec<ConfigProblem>) -> Self {
        found.sort_by_key(|problem| problem.span.as_ref().map_or(usize::MAX, |span| span.start));
        // The variants of a stage share their mistakes.
        found.dedup();
        Self { file: sources.file().to_owned(), problems: found.into_iter().map(|problem| Problem::new(sources, problem)).collect() }
    }
}

impl Problem {
    fn new(sources: &Sources, found: ConfigProblem) -> Self {
        let place = found.span.as_ref().filter(|span| !span.is_empty()).and_then(|span| sources.find(span));
        Self {
            message: found.message,
            help: found.help,
            shown_in: place.as_ref().map(|(name, text, _)| NamedSource::new(name, (*text).to_owned()).with_language("toml")),
            label: place.map(|(_, text, span)| LabeledSpan::new_with_span(None, first_line(text, span))),
        }
    }
}

impl Problem {
    /// For scripts: what, what to do, and where, lines and columns counted from one.
    pub fn placed(&self) -> PlacedProblem {
        let place = self.shown_in.as_ref().zip(self.label.as_ref()).map(|(source, label)| {
            let before = source.inner().get(..label.offset()).unwrap_or_default();
            let (line, start) = (before.matches('\n').count() + 1, before.rfind('\n').map_or(0, |end| end + 1));
            (source.name().to_owned(), line, before[start..].chars().count() + 1)
        });
        let (file, line, column) = place.map_or((None, None, None), |(file, line, column)| (Some(file), Some(line), Some(column)));
        PlacedProblem { message: self.message.clone(), help: self.help.clone(), file, line, column }
    }
}

/// A table's span covers its whole body: its first line is enough to point at.
fn first_line(text: &str, span: Range<usize>) -> Range<usize> {
    let end = text.get(span.clone()).and_then(|text| text.find('\n')).map_or(span.end, |length| span.start + length);
    span.start..end.max(span.start + 1)
}

impl Diagnostic for Problem {
    fn help(&self) -> Option<Box<dyn std::fmt::Display + '_>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn std::fmt::Display>)
    }
    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.shown_in.as_ref().map(|source| source as &dyn SourceCode)
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
