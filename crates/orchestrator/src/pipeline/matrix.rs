//! `matrix = { epochs = [3, 5] }`: a stage in several variants, `model@epochs=3` and `model@epochs=5`, and what follows from
//! them.
//!
//! A stage that takes from such a stage is multiplied along: `predictions@epochs=3` takes from `model@epochs=3`. An input may
//! also name one variant, `model@epochs=3`, or gather them, `model@*` or `model@epochs=*`, where its key takes several.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use artifact::{ConfigProblem, config};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::params::{Scope, as_text};

/// One dimension along which a stage varies.
#[derive(Clone)]
pub struct Axis<'i> {
    name: String,
    /// The stage that declares it.
    origin: String,
    /// What stands for each value in names, and the value.
    values: Vec<(String, DeValue<'i>)>,
}

/// A stage as it is written: which axes it declares, and which keys of it name stages.
pub struct Written<'t, 'i> {
    /// Its name.
    pub name: &'t str,
    /// Its table.
    pub table: &'t DeTable<'i>,
    /// Its keys that name stages.
    pub keys: Vec<String>,
}

/// The axes of all stages, by name.
pub struct Matrix<'i> {
    axes: HashMap<String, Vec<Axis<'i>>>,
}

/// One variant: its name's ending, such as `@epochs=3`, and the table that it is read from.
pub type Variant<'i> = (String, DeTable<'i>);

impl<'i> Matrix<'i> {
    /// Finds the axes of all stages: their own, and those of the stages they take from.
    pub fn new(stages: &[Written<'_, 'i>], problems: &mut Vec<ConfigProblem>) -> Self {
        let own: HashMap<&str, Vec<Axis<'i>>> = stages.iter().map(|stage| (stage.name, own_axes(stage, problems))).collect();
        let mut this = Self { axes: HashMap::new() };
        // As many rounds as the longest way has stages; a cycle, which the plan tells of, ends them too.
        for _ in 0..stages.len() {
            let mut changed = false;
            for stage in stages {
                let axes = this.with_inherited(stage, &own[stage.name]);
                let before = this.axes.get(stage.name).map_or(0, Vec::len);
                changed |= axes.len() != before;
                this.axes.insert(stage.name.to_owned(), axes);
            }
            if !changed {
                break;
            }
        }
        for stage in stages {
            this.tell_clashes(stage, problems);
        }
        this
    }

    /// Free axes of the inputs first, in the order in which they come; then the stage's own.
    fn with_inherited(&self, stage: &Written<'_, 'i>, own: &[Axis<'i>]) -> Vec<Axis<'i>> {
        let mut all: Vec<Axis<'i>> = Vec::new();
        let references = stage.keys.iter().filter_map(|key| stage.table.get(key.as_str())).flat_map(texts);
        let inherited = references.flat_map(|(text, _)| {
            let reference = Reference::read(&text);
            let axes = self.axes.get(reference.stage).into_iter().flatten();
            axes.filter(|axis| reference.choice(&axis.name).is_none()).cloned().collect::<Vec<_>>()
        });
        for axis in inherited.chain(own.iter().cloned()) {
            if !all.iter().any(|known| known.name == axis.name && known.origin == axis.origin) {
                all.push(axis);
            }
        }
        all
    }

    fn tell_clashes(&self, stage: &Written<'_, 'i>, problems: &mut Vec<ConfigProblem>) {
        let axes = &self.axes[stage.name];
        for (at, axis) in axes.iter().enumerate() {
            if let Some(other) = axes[..at].iter().find(|other| other.name == axis.name) {
                let message = format!(
                    "`{}` would vary along two axes called `{}`, of `{}` and of `{}`",
                    stage.name, axis.name, other.origin, axis.origin
                );
                let span = stage.keys.iter().filter_map(|key| stage.table.get(key.as_str())).map(Spanned::span).next_back();
                problems.push(ConfigProblem { span, ..ConfigProblem::at("", message).help("call one of them differently") });
            }
        }
    }

    /// The variants of a stage; one without an ending if it has no axes.
    pub fn variants(&self, stage: &Written<'_, 'i>, problems: &mut Vec<ConfigProblem>) -> Vec<Variant<'i>> {
        let axes = &self.axes[stage.name];
        let mut variant = |chosen: &[usize]| {
            let mut table = stage.table.clone();
            table.remove("matrix");
            let values = axes.iter().zip(chosen).map(|(axis, at)| (axis.name.clone(), axis.values[*at].1.clone())).collect();
            let scope = Scope { matrix: Some(values), only_matrix: true, ..Scope::default() };
            let labels: BTreeMap<&str, &str> =
                axes.iter().zip(chosen).map(|(axis, at)| (axis.name.as_str(), axis.values[*at].0.as_str())).collect();
            for key in &stage.keys {
                if let Some(value) = table.get_mut(key.as_str()) {
                    self.point(value, &labels, problems);
                }
            }
            let mut value = Spanned::new(0..0, DeValue::Table(table));
            scope.fill(&mut value, problems);
            let parts: Vec<String> = axes.iter().zip(chosen).map(|(axis, at)| format!("{}={}", axis.name, axis.values[*at].0)).collect();
            let ending = if parts.is_empty() { String::new() } else { format!("@{}", parts.join(",")) };
            let DeValue::Table(table) = value.into_inner() else { return (ending, DeTable::new()) };
            (ending, table)
        };
        product(axes).iter().map(|chosen| variant(chosen)).collect()
    }

    /// Puts the names of variants in the place of what an input says.
    fn point(&self, value: &mut Spanned<DeValue<'i>>, labels: &BTreeMap<&str, &str>, problems: &mut Vec<ConfigProblem>) {
        let span = value.span();
        match value.get_mut() {
            DeValue::Table(entries) => entries.iter_mut().for_each(|(_, value)| self.point(value, labels, problems)),
            DeValue::Array(items) => {
                let mut all = DeArray::new();
                for mut item in items.iter().cloned().collect::<Vec<_>>() {
                    self.point(&mut item, labels, problems);
                    let span = item.span();
                    match item.into_inner() {
                        DeValue::Array(several) => several.into_iter().for_each(|item| all.push(item)),
                        one => all.push(Spanned::new(span, one)),
                    }
                }
                *items = all;
            }
            DeValue::String(text) => {
                let mut names = self
                    .names(text, labels, &span, problems)
                    .into_iter()
                    .map(|name| Spanned::new(span.clone(), DeValue::String(name.into())));
                match text.contains('*') {
                    true => *value.get_mut() = DeValue::Array(names.collect()),
                    false => names.next().into_iter().for_each(|name| *value = name),
                }
            }
            _ => {}
        }
    }

    /// The variants that a reference stands for, in a variant with these labels.
    fn names(&self, text: &str, labels: &BTreeMap<&str, &str>, span: &Range<usize>, problems: &mut Vec<ConfigProblem>) -> Vec<String> {
        let reference = Reference::read(text);
        let nothing = Vec::new();
        let axes = self.axes.get(reference.stage).unwrap_or(&nothing);
        if let Some(problem) = reference.problem(axes) {
            problems.push(ConfigProblem { span: Some(span.clone()), ..problem });
            return vec![reference.stage.to_owned()];
        }
        let mut names = vec![Vec::new()];
        for axis in axes {
            let chosen: Vec<&str> = match reference.choice(&axis.name) {
                Some("*") => axis.values.iter().map(|(label, _)| label.as_str()).collect(),
                Some(label) => vec![label],
                None => labels.get(axis.name.as_str()).copied().into_iter().collect(),
            };
            let with = |name: &Vec<String>| {
                chosen.iter().map(|label| [&name[..], &[format!("{}={label}", axis.name)]].concat()).collect::<Vec<_>>()
            };
            names = names.iter().flat_map(with).collect();
        }
        let name = |parts: Vec<String>| {
            if parts.is_empty() { reference.stage.to_owned() } else { format!("{}@{}", reference.stage, parts.join(",")) }
        };
        names.into_iter().map(name).collect()
    }
}

/// What an input says: a stage, and for some of its axes which value, or `*`.
struct Reference<'t> {
    stage: &'t str,
    choices: Vec<(&'t str, &'t str)>,
    all: bool,
}

impl<'t> Reference<'t> {
    fn read(text: &'t str) -> Self {
        let (stage, choices) = text.split_once('@').unwrap_or((text, ""));
        let pairs = choices.split(',').filter(|pair| !pair.is_empty() && *pair != "*");
        Self { stage, choices: pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect(), all: choices == "*" }
    }

    fn choice(&self, axis: &str) -> Option<&'t str> {
        let chosen = self.choices.iter().find(|(name, _)| *name == axis).map(|(_, value)| *value);
        chosen.or(self.all.then_some("*"))
    }

    fn problem(&self, axes: &[Axis<'_>]) -> Option<ConfigProblem> {
        if axes.is_empty() && (self.all || !self.choices.is_empty()) {
            return Some(
                ConfigProblem::at("", format!("`{}` has no variants", self.stage))
                    .help("only a stage with a `matrix`, or one that takes from it, has"),
            );
        }
        self.choices.iter().find_map(|(name, value)| {
            let Some(axis) = axes.iter().find(|axis| axis.name == *name) else {
                let problem = ConfigProblem::at("", format!("`{}` has no axis `{name}`", self.stage));
                return Some(problem.help(config::suggest(name, axes.iter().map(|axis| axis.name.as_str()))));
            };
            let is_there = *value == "*" || axis.values.iter().any(|(label, _)| label == value);
            let known = axis.values.iter().map(|(label, _)| label.as_str());
            (!is_there)
                .then(|| ConfigProblem::at("", format!("the axis `{name}` has no value `{value}`")).help(config::suggest(value, known)))
        })
    }
}

/// All choices of one value for each axis; the last axis turns fastest.
fn product(axes: &[Axis<'_>]) -> Vec<Vec<usize>> {
    axes.iter().fold(vec![Vec::new()], |all, axis| {
        all.iter().flat_map(|chosen| (0..axis.values.len()).map(move |at| [&chosen[..], &[at]].concat())).collect()
    })
}

fn own_axes<'i>(stage: &Written<'_, 'i>, problems: &mut Vec<ConfigProblem>) -> Vec<Axis<'i>> {
    let Some(value) = stage.table.get("matrix") else { return Vec::new() };
    let mut wrong = |span: Range<usize>, message: String| {
        problems.push(ConfigProblem { span: Some(span), ..ConfigProblem::at("", message).help("matrix = { epochs = [3, 5] }") });
    };
    let Some(entries) = value.get_ref().as_table() else {
        wrong(value.span(), "`matrix` must be a table of axes, each a list of values".into());
        return Vec::new();
    };
    let mut axes = Vec::new();
    // In the order of their names, which is the same wherever a value was set: it names the variants.
    for (name, values) in entries {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if name.get_ref().is_empty() || !name.get_ref().chars().all(fits) {
            wrong(name.span(), format!("`{}` cannot name an axis: use letters, digits, - and _", name.get_ref().escape_debug()));
            continue;
        }
        match values.get_ref().as_array() {
            Some(items) if !items.is_empty() => {
                let values: Vec<DeValue<'i>> = items.iter().map(|item| item.get_ref().clone()).collect();
                let values = labels(&values).into_iter().zip(values).collect();
                axes.push(Axis { name: name.get_ref().to_string(), origin: stage.name.to_owned(), values });
            }
            _ => wrong(values.span(), format!("the axis `{}` must be a list of values, one at least", name.get_ref())),
        }
    }
    axes
}

/// What stands for values in names: themselves, where they are short, plain and different; else `v1`, `v2` and so on.
fn labels(values: &[DeValue<'_>]) -> Vec<String> {
    const LONGEST: usize = 32;
    let is_plain =
        |text: &String| !text.is_empty() && text.len() <= LONGEST && text.chars().all(|c| c.is_ascii_alphanumeric() || "._+-".contains(c));
    let plain: Vec<String> = values.iter().filter_map(as_text).filter(is_plain).collect();
    let different: std::collections::BTreeSet<&String> = plain.iter().collect();
    match different.len() == values.len() {
        true => plain,
        false => (1..=values.len()).map(|number| format!("v{number}")).collect(),
    }
}

/// All texts within a value.
fn texts(value: &Spanned<DeValue<'_>>) -> Vec<(String, Range<usize>)> {
    super::names_within(value)
}
