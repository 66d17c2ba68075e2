//! `store.csv`: text tables.

mod columns;
mod read;
mod records;

use std::collections::BTreeMap;

use artifact::config::suggest;
use artifact::{ConfigProblem, InputRef, Kind, Outcome, RunContext, Stage, StageError, StageName};
use dataset::Split;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use columns::ColumnType;

use crate::outcome;
use crate::select::select_files;
use columns::Values;
use records::{Dialect, Separator};

/// Text tables (CSV, TSV, blank-separated) to a typed dataset. Plain or gzipped, UTF-8, with or without a header.
///
/// Types are inferred from all rows, or declared. Several files with the same columns become one table, in the order of
/// their names.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Csv {
    /// The stage that gives the files.
    pub input: StageName,
    /// The files to read, in this order. Without it: all that end with .csv, .tsv, .tab, .txt, .dat or .data, plain or
    /// .gz, sorted by name; or the only file, whatever it is called.
    #[serde(default)]
    pub files: Vec<String>,
    /// What stands between fields: one character, `tab`, or `whitespace` (any run of spaces and tabs). Without it, tab for
    /// files that end with .tsv or .tab, else a comma.
    #[serde(default)]
    pub delimiter: Option<String>,
    /// True when the first record holds the columns' names.
    #[serde(default = "yes")]
    pub header: bool,
    /// The columns' names, in place of the header's. Without a header and without names: `column_1`, `column_2`, ….
    #[serde(default)]
    pub columns: Vec<String>,
    /// Types of columns by name: `int64`, `float64`, `bool`, `utf8`, `date`, `datetime`. The others' are inferred: the
    /// narrowest that holds every value; numbers with leading zeros stay text.
    #[serde(default)]
    pub types: BTreeMap<String, ColumnType>,
    /// Texts that stand for a missing value.
    #[serde(default = "default_null")]
    pub null: Vec<String>,
    /// The character around fields that hold delimiters or line ends; the empty text when there is none.
    #[serde(default = "default_quote")]
    pub quote: String,
    /// Lines that begin with this character are passed over.
    #[serde(default)]
    pub comment: Option<String>,
    /// What stands before the fraction of a number: `.` or `,`.
    #[serde(default = "default_decimal")]
    pub decimal: char,
    /// Takes blanks around fields away (not within quotes).
    #[serde(default = "yes")]
    pub trim: bool,
    /// The column that holds the classes; the profile then counts them.
    #[serde(default)]
    pub label: Option<String>,
    /// Splits that whole files are, by name: `{ "train.csv" = "train", "test.csv" = "test" }`; they become the column
    /// `split`.
    #[serde(default)]
    pub splits: BTreeMap<String, Split>,
    /// Most bytes that one gzipped file may unpack to.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: u64,
}

fn yes() -> bool {
    true
}
fn default_null() -> Vec<String> {
    ["", "NA", "N/A", "NaN", "nan", "null", "NULL"].map(str::to_owned).to_vec()
}
fn default_quote() -> String {
    "\"".to_owned()
}
fn default_decimal() -> char {
    '.'
}
fn default_max_bytes() -> u64 {
    4 << 30
}

const ENDINGS: &[&str] = &[".csv", ".tsv", ".tab", ".txt", ".dat", ".data"];

impl Stage for Csv {
    const USES: &'static str = "store.csv";
    const VERSION: u32 = 1;
    const SUMMARY: &'static str = "Text tables (CSV, TSV, blank-separated) to a typed dataset";
    const GIVES: Kind = Kind::Dataset;

    fn inputs(&self) -> Vec<InputRef> {
        vec![InputRef::one("input", &self.input, &[Kind::Files])]
    }

    fn check(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        if let Some(delimiter) = self.delimiter.as_deref().filter(|text| separator(text).is_none()) {
            let message = format!("`{delimiter}` is no delimiter");
            problems.push(ConfigProblem::at("delimiter", message).help("one ASCII character, \"tab\", or \"whitespace\""));
        }
        for (key, text) in [("quote", Some(&self.quote)), ("comment", self.comment.as_ref())] {
            if let Some(text) = text.filter(|text| text.len() > 1 || !text.is_ascii()) {
                problems
                    .push(ConfigProblem::at(key, format!("`{key}` is `{text}`")).help("one ASCII character, or the empty text for none"));
            }
        }
        if ![',', '.'].contains(&self.decimal) {
            problems.push(ConfigProblem::at("decimal", format!("`decimal` is `{}`", self.decimal)).help("\".\" or \",\""));
        }
        if self.decimal == ',' && self.delimiter.as_deref().is_none_or(|delimiter| delimiter == ",") {
            problems.push(
                ConfigProblem::at("decimal", "a comma cannot stand both before a fraction and between fields")
                    .help("say what stands between fields: delimiter = \";\""),
            );
        }
        for (index, name) in self.columns.iter().enumerate().filter(|(index, name)| self.columns[..*index].contains(name)) {
            problems.push(ConfigProblem::at(&format!("columns.{index}"), format!("two columns would be called `{name}`")));
        }
        problems
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        let files = context.input("input")?.files()?;
        let chosen = select_files(&files, &self.files, ENDINGS, "table")?;
        if let Some(unknown) = self.splits.keys().find(|name| !chosen.iter().any(|file| file.is(name))) {
            return Err(StageError::new(format!("`splits` names `{unknown}`, which is not among the files read"))
                .help(suggest(unknown, chosen.iter().map(|file| file.name))));
        }
        let table = read::read(self, &chosen, context)?;
        let split = (!self.splits.is_empty()).then_some("split");
        outcome::of_table(context.output(), &table.schema, &table.batches, self.label.as_deref(), split)
    }
}

impl Csv {
    fn dialect(&self, file: &str) -> Dialect {
        let byte = |text: &str| text.bytes().next();
        let stated = self.delimiter.as_deref().and_then(separator);
        let plain = file.strip_suffix(".gz").unwrap_or(file).to_ascii_lowercase();
        let by_name = if plain.ends_with(".tsv") || plain.ends_with(".tab") { b'\t' } else { b',' };
        Dialect {
            separator: stated.unwrap_or(Separator::Byte(by_name)),
            quote: byte(&self.quote),
            comment: self.comment.as_deref().and_then(byte),
            trim: self.trim,
        }
    }

    fn values(&self) -> Values {
        Values { null: self.null.clone(), decimal: self.decimal }
    }
}

/// `,`, `;`, `tab`, `whitespace`, …
fn separator(text: &str) -> Option<Separator> {
    match text {
        "tab" | "\\t" => Some(Separator::Byte(b'\t')),
        "whitespace" => Some(Separator::Whitespace),
        text => match text.as_bytes() {
            [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | b'"') => Some(Separator::Byte(*byte)),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests;
