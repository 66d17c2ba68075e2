//! The config of `process.table`.

use std::collections::BTreeMap;

use artifact::{ConfigProblem, InputRef, Kind, Outcome, RunContext, Stage, StageError, StageName};
use dataset::Split;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use transform::{ColumnKind, sql};

use crate::labels::Unlabelled;
use crate::split::SplitFractions;

/// Cleans, splits and encodes a table, and fits everything that is fitted on the train split alone.
///
/// In this order: types; SQL and derived columns, row by row; rows dropped (no label, duplicates, filter, missing); splits;
/// then, fitted on train and replayed at apply: outlier bounds, what stands in for missing values, one-hot words, scaling.
/// Every column that is neither label, id nor dropped becomes a feature. A column that holds the same value in all of
/// train, or none, is left out and reported.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The table to clean.
    pub input: StageName,
    /// The column that holds the class.
    pub label: String,
    /// The column that names a row, no value twice; rows are numbered from 0 without one.
    #[serde(default)]
    pub id: Option<String>,
    /// Columns that are no features: what is known only after the fact (a leak), notes, names. SQL may still read them.
    #[serde(default)]
    pub drop: Vec<String>,
    /// What columns hold, where the stored type says otherwise: `{ "Year" = "text" }`; number, text, boolean, date or datetime.
    #[serde(default)]
    pub types: BTreeMap<String, ColumnKind>,
    /// Texts that stand for a missing value, beside the empty one.
    #[serde(default = "usual_missing_values")]
    pub missing_values: Vec<String>,
    /// A polars SQL `SELECT … FROM data` that computes columns, row by row: `SELECT *, a * b AS c FROM data`.
    #[serde(default)]
    pub sql: Option<String>,
    /// New columns, each a polars SQL expression of its row: `{ power = '"Torque [Nm]" * speed' }`.
    #[serde(default)]
    pub derive: BTreeMap<String, String>,
    /// A polars SQL condition on the raw columns; rows where it does not hold are dropped from every split.
    #[serde(default)]
    pub filter: Option<String>,
    /// What stands in for missing values.
    #[serde(default)]
    pub missing: Missing,
    /// Rows that are equal in every column: `drop` all but one, or `keep`.
    #[serde(default)]
    pub duplicates: Duplicates,
    /// Bounds beyond which numbers are set to the bound: `{ quantiles = [0.001, 0.999] }` or `{ deviations = 4 }`.
    #[serde(default)]
    pub outliers: Option<Outliers>,
    /// Columns that become one 0-or-1 column per category: `auto` (all text columns) or a list.
    #[serde(default)]
    pub one_hot: OneHot,
    /// The most categories that a column may have.
    #[serde(default = "usual_max_categories")]
    pub max_categories: usize,
    /// Categories with fewer train rows share one column, `NAME=(other)`, where unseen ones go too; else unseen ones are 0 everywhere.
    #[serde(default = "one")]
    pub min_count: usize,
    /// How numbers are scaled: `standard` (mean 0, deviation 1), `minmax` (0 to 1) or `none`.
    #[serde(default)]
    pub scale: Scale,
    /// Shares to cut for validation and test, or the column that says: `{ validation = 0.1, test = 0.2 }`, `{ column = "fold" }`.
    #[serde(default)]
    pub split: TableSplit,
    /// Rows without a label: `fail`, `drop`, or `keep` them in the test split to be predicted.
    #[serde(default)]
    pub unlabelled: Unlabelled,
    /// Seed of the split; the pipeline's when left out.
    #[serde(default)]
    pub seed: Option<u64>,
}

/// What stands in for missing values. Numbers that are not finite count as missing, also those that SQL gives (`1 / 0`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Missing {
    /// For numbers. Booleans take their mode instead of a mean or median.
    pub numbers: Strategy,
    /// For categories.
    pub texts: Strategy,
    /// For single columns: `{ Sex = "drop", "Body Mass (g)" = { constant = 4000 } }`.
    pub columns: BTreeMap<String, Strategy>,
}

impl Default for Missing {
    fn default() -> Self {
        Self { numbers: Strategy::Median, texts: Strategy::Mode, columns: BTreeMap::new() }
    }
}

/// What stands in for a missing value. Means, medians and modes are those of the train split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The mean, after outliers are clipped.
    Mean,
    /// The median.
    Median,
    /// The most frequent value.
    Mode,
    /// A category of its own, `NAME=(missing)`; for categories.
    Category,
    /// Drop the row here; at apply a missing value is an error.
    Drop,
    /// A missing value is an error, here and at apply.
    Fail,
    /// This value.
    Constant(Constant),
}

/// A number or a category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a number or a text is needed")]
pub enum Constant {
    /// For a number.
    Number(f64),
    /// For a category.
    Text(String),
}

/// Rows that are equal in every column.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Duplicates {
    /// One stays; equal rows in two splits would be a leak.
    #[default]
    Drop,
    /// All stay.
    Keep,
}

/// Bounds beyond which numbers are clipped; one of the two. Columns with two values or fewer are left alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outliers {
    /// The bounds are these quantiles of train.
    #[serde(default)]
    pub quantiles: Option<[f64; 2]>,
    /// The bounds lie this many standard deviations from the mean of train.
    #[serde(default)]
    pub deviations: Option<f64>,
}

/// Which columns are one-hot encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "\"auto\" or a list of columns is needed")]
pub enum OneHot {
    /// `auto`.
    Word(Auto),
    /// These; numbers and booleans may be among them.
    Columns(Vec<String>),
}

/// The word `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Auto {
    /// All text columns.
    Auto,
}

impl Default for OneHot {
    fn default() -> Self {
        Self::Word(Auto::Auto)
    }
}

/// How numbers are scaled; fitted on train.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// Mean 0, standard deviation 1 (of the population: divided by n).
    #[default]
    Standard,
    /// Smallest 0, largest 1.
    Minmax,
    /// As they are.
    None,
}

/// How a table is split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TableSplit {
    /// The column that says train, validation or test; rows without a word there count as train.
    pub column: Option<String>,
    /// Share of the rows for validation (0 to 1), unless the column names a validation split.
    pub validation: f64,
    /// Share of the rows for test (0 to 1), unless the column names a test split.
    pub test: f64,
    /// Give each class its share of every split; false: draw without regard to class.
    pub stratified: bool,
}

impl Default for TableSplit {
    fn default() -> Self {
        let SplitFractions { validation, test, stratified } = SplitFractions::default();
        Self { column: None, validation, test, stratified }
    }
}

impl TableSplit {
    /// The fractions alone.
    pub fn fractions(&self) -> SplitFractions {
        SplitFractions { validation: self.validation, test: self.test, stratified: self.stratified }
    }
}

fn usual_missing_values() -> Vec<String> {
    ["NA", "N/A", "NaN", "nan", "null", "NULL"].map(str::to_owned).to_vec()
}

fn usual_max_categories() -> usize {
    64
}

fn one() -> usize {
    1
}

impl Stage for Table {
    const USES: &'static str = "process.table";
    const VERSION: u32 = 2;
    const SUMMARY: &'static str = "Clean, split and encode a table; fit imputation, one-hot and scaling on train";
    const GIVES: Kind = Kind::Processed;

    fn inputs(&self) -> Vec<InputRef> {
        vec![InputRef::one("input", &self.input, &[Kind::Dataset])]
    }

    fn check(&self) -> Vec<ConfigProblem> {
        let mut problems = self.split.fractions().check();
        problems.extend(self.check_outliers());
        problems.extend(self.check_roles());
        problems.extend(self.check_sql());
        problems
    }

    fn set_seed(&mut self, pipeline_seed: u64) {
        self.seed.get_or_insert(pipeline_seed);
    }

    fn run(&self, context: &RunContext) -> Result<Outcome, StageError> {
        crate::table::run(self, context)
    }
}

impl Table {
    fn check_outliers(&self) -> Option<ConfigProblem> {
        let message = match self.outliers.as_ref()? {
            Outliers { quantiles: Some([low, high]), deviations: None } if 0.0 <= *low && low < high && *high <= 1.0 => return None,
            Outliers { quantiles: None, deviations: Some(deviations) } if *deviations > 0.0 && deviations.is_finite() => return None,
            Outliers { quantiles: Some([low, high]), deviations: None } => {
                format!("the quantiles {low} and {high} are no bounds from 0 to 1")
            }
            Outliers { quantiles: None, deviations: Some(deviations) } => format!("{deviations} deviations are no bound"),
            _ => "`outliers` takes one of `quantiles` and `deviations`".to_owned(),
        };
        Some(ConfigProblem::at("outliers", message).help("such as { quantiles = [0.001, 0.999] } or { deviations = 4 }"))
    }

    /// A column has one part to play.
    fn check_roles(&self) -> Vec<ConfigProblem> {
        let mut problems = Vec::new();
        let roles = [("label", Some(&self.label)), ("id", self.id.as_ref()), ("split.column", self.split.column.as_ref())];
        for (key, name) in roles.iter().filter_map(|(key, name)| name.map(|name| (*key, name))) {
            if let Some((other, _)) = roles.iter().find(|(other, one)| *other != key && *one == Some(name)) {
                problems.push(ConfigProblem::at(key, format!("the column `{name}` is `{key}` and `{other}` at once")));
            }
        }
        for (index, name) in self.drop.iter().enumerate().filter(|(_, name)| **name == self.label) {
            problems.push(ConfigProblem::at(&format!("drop.{index}"), format!("`{name}` is the label, and dropped too")));
        }
        problems
    }

    fn check_sql(&self) -> Vec<ConfigProblem> {
        let wrong = |path: String, error: StageError| {
            let causes: String = error.causes.iter().map(|cause| format!(": {cause}")).collect();
            ConfigProblem { help: error.help, ..ConfigProblem::at(&path, format!("{}{causes}", error.message)) }
        };
        let derived = self.derive.iter().map(|(name, text)| (format!("derive.{name}"), text));
        let all = derived.chain(self.filter.iter().map(|text| ("filter".to_owned(), text)));
        all.filter_map(|(path, text)| sql::expression(&format!("`{path}`"), text).err().map(|error| wrong(path, error))).collect()
    }

    /// What stands in for a missing value of this column.
    pub fn strategy(&self, column: &str, kind: ColumnKind) -> Strategy {
        let usual = match kind {
            ColumnKind::Text => &self.missing.texts,
            _ => &self.missing.numbers,
        };
        match (self.missing.columns.get(column).unwrap_or(usual), kind) {
            (Strategy::Mean | Strategy::Median, ColumnKind::Boolean) => Strategy::Mode,
            (strategy, _) => strategy.clone(),
        }
    }

    /// True for a column that becomes categories.
    pub fn is_one_hot(&self, column: &str, kind: ColumnKind) -> bool {
        match &self.one_hot {
            OneHot::Word(Auto::Auto) => kind == ColumnKind::Text,
            OneHot::Columns(columns) => columns.iter().any(|one| one == column),
        }
    }

    /// The split a word names, as [`Split`] or `none`.
    ///
    /// # Errors
    /// When it is no split.
    pub fn given_split(word: Option<&str>, row: usize) -> Result<Option<Split>, StageError> {
        let parse = |word: &str| match word.to_ascii_lowercase().as_str() {
            "val" | "valid" | "dev" => Ok(Split::Validation),
            word => word.parse::<Split>(),
        };
        word.map(parse).transpose().map_err(|error| error.at(format!("row {row}")))
    }
}
