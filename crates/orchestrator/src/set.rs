//! `--set stages.model.epochs=3`: a value of the pipeline file, replaced from the command line.
//!
//! What follows `=` is a TOML value, or else a text. Spans point into the argument, so that a mistake is shown there.

use std::borrow::Cow;
use std::ops::Range;

use artifact::{ConfigProblem, config};
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

/// One assignment: the keys of the path, and the value.
struct Assignment<'i> {
    keys: Vec<Spanned<Cow<'i, str>>>,
    value: Spanned<DeValue<'i>>,
}

/// Puts the value of `set` into the table; `start` is where the argument's spans begin.
///
/// # Errors
/// When the path is none, or leads to where no table is.
pub fn apply<'i>(table: &mut DeTable<'i>, set: &'i str, start: usize) -> Result<(), ConfigProblem> {
    let Some(Assignment { mut keys, value }) = read(set, start) else {
        let problem = ConfigProblem::at("", "this is no path of keys and a value");
        return Err(ConfigProblem { span: Some(start..start + set.len()), ..problem.help("write it as stages.model.epochs=3") });
    };
    let Some(last) = keys.pop() else { return Ok(()) };
    let mut table = table;
    for depth in 0..keys.len() {
        // A stage may leave a table of its config out; a stage itself is declared in the file.
        let (key, within_a_stage) = (&keys[depth], depth >= 2 && *keys[0].get_ref() == "stages");
        if within_a_stage && !table.contains_key(&**key.get_ref()) {
            table.insert(key.clone(), Spanned::new(key.span(), DeValue::Table(DeTable::new())));
        }
        let known: Vec<String> = table.keys().map(|key| key.get_ref().to_string()).collect();
        match table.get_mut(&**key.get_ref()).map(Spanned::get_mut) {
            Some(DeValue::Table(inner)) => table = inner,
            found => return Err(no_table(&keys[..depth], key, found.is_some(), &known)),
        }
    }
    // The new key has a span of its own: the old one goes, name and all.
    table.remove(&**last.get_ref());
    table.insert(last, value);
    Ok(())
}

fn no_table(above: &[Spanned<Cow<'_, str>>], key: &Spanned<Cow<'_, str>>, is_there: bool, known: &[String]) -> ConfigProblem {
    let place: Vec<&str> = above.iter().map(|key| &**key.get_ref()).collect();
    let place = if place.is_empty() { "the pipeline".to_owned() } else { format!("`{}`", place.join(".")) };
    let problem = match is_there {
        true => ConfigProblem::at("", format!("`{}` in {place} is no table", key.get_ref())).help("set it as a whole"),
        false => ConfigProblem::at("", format!("there is no table `{}` in {place}", key.get_ref()))
            .help(config::suggest(key.get_ref(), known.iter().map(String::as_str))),
    };
    ConfigProblem { span: Some(key.span()), ..problem }
}

/// None when what stands before `=` is no path of keys.
fn read(set: &str, start: usize) -> Option<Assignment<'_>> {
    let equals = set.find('=')?;
    // `a.b=c` is a TOML document as it stands, if `c` is a TOML value.
    if let Some(assignment) = DeTable::parse(set).ok().and_then(|table| walk(table.into_inner(), start)) {
        return Some(assignment);
    }
    let mut path = set[..equals].to_owned();
    path.push_str("=0");
    let keys = walk(DeTable::parse(&path).ok()?.into_inner(), start)?.keys;
    let keys = keys.into_iter().map(|key| Spanned::new(key.span(), Cow::Owned(key.into_inner().into_owned()))).collect();
    let value = Spanned::new(start + equals + 1..start + set.len(), DeValue::String(Cow::Borrowed(&set[equals + 1..])));
    Some(Assignment { keys, value })
}

/// Follows the only way from the root to a value; none if there are several, as in a text with line breaks.
fn walk(root: DeTable<'_>, start: usize) -> Option<Assignment<'_>> {
    let (mut table, mut keys) = (root, Vec::new());
    loop {
        let mut entries = table.into_iter();
        let (Some((key, value)), None) = (entries.next(), entries.next()) else { return None };
        // A dotted key's table begins where the key does; a value's own table (`{ … }`) begins after it.
        let is_path = value.span().start <= key.span().end;
        keys.push(Spanned::new(moved(key.span(), start), key.into_inner()));
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(inner) if is_path => table = inner,
            value => return Some(Assignment { keys, value: shifted(Spanned::new(span, value), start) }),
        }
    }
}

fn moved(span: Range<usize>, start: usize) -> Range<usize> {
    span.start + start..span.end + start
}

/// The same value, with spans that begin at `start`.
pub fn shifted(value: Spanned<DeValue<'_>>, start: usize) -> Spanned<DeValue<'_>> {
    let span = moved(value.span(), start);
    let value = match value.into_inner() {
        DeValue::Array(items) => {
            let mut all = DeArray::new();
            items.into_iter().for_each(|item| all.push(shifted(item, start)));
            DeValue::Array(all)
        }
        DeValue::Table(entries) => {
            let entries = entries.into_iter();
            DeValue::Table(
                entries.map(|(key, value)| (Spanned::new(moved(key.span(), start), key.into_inner()), shifted(value, start))).collect(),
            )
        }
        plain => plain,
    };
    Spanned::new(span, value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const FILE: &str = "seed = 1\n[stages.model]\nepochs = 3\nlabel = 'a'\n";
    /// Where the arguments' spans begin in these tests.
    const START: usize = 1000;

    /// The table after one `--set`, without its spans; or what is wrong, and the text that it points at.
    fn after(set: &str) -> Result<toml::Table, (String, String)> {
        let mut table = DeTable::parse(FILE).unwrap();
        apply(table.get_mut(), set, START).map_err(|problem| {
            let span = problem.span.unwrap();
            (problem.message, set[span.start - START..span.end - START].to_owned())
        })?;
        Ok(serde::Deserialize::deserialize(toml::de::Deserializer::from(table)).unwrap())
    }

    #[test]
    fn a_value_is_toml_or_else_a_text() {
        let model = |set: &str| after(set).unwrap()["stages"]["model"].clone();
        assert_eq!(model("stages.model.epochs=5")["epochs"], toml::Value::Integer(5));
        assert_eq!(model("stages.model.label=data/raw")["label"], toml::Value::from("data/raw"));
        assert_eq!(model("stages.model.label=")["label"], toml::Value::from(""));
        assert_eq!(model("stages.model.label=\"5\"")["label"], toml::Value::from("5"));
        assert_eq!(model("stages.model.layers=['dense 10', 'pool 2']")["layers"].as_array().unwrap().len(), 2);
        assert_eq!(after("seed = 4").unwrap()["seed"], toml::Value::Integer(4));
    }

    #[test]
    fn tables_within_a_stage_are_made_and_others_are_kept() {
        let model = after("stages.model.optimiser.learning_rate=0.1").unwrap()["stages"]["model"].clone();
        assert_eq!(model["optimiser"]["learning_rate"], toml::Value::Float(0.1));
        assert_eq!(model["epochs"], toml::Value::Integer(3));
        let inline = after("stages.model.optimiser={ name = 'sgd' }").unwrap()["stages"]["model"].clone();
        assert_eq!(inline["optimiser"]["name"], toml::Value::from("sgd"));
    }

    #[test]
    fn a_path_that_leads_nowhere_points_at_the_key_where_it_parts() {
        assert_eq!(after("stages.modle.epochs=5").unwrap_err(), ("there is no table `modle` in `stages`".to_owned(), "modle".to_owned()));
        assert_eq!(after("stages.model.label.x=5").unwrap_err(), ("`label` in `stages.model` is no table".to_owned(), "label".to_owned()));
        assert_eq!(after("a b=1").unwrap_err(), ("this is no path of keys and a value".to_owned(), "a b=1".to_owned()));
    }

    #[test]
    fn every_part_of_a_value_has_its_span_in_the_argument() {
        let mut table = DeTable::parse(FILE).unwrap();
        let set = "stages.model.split={ test = [1, 2] }";
        apply(table.get_mut(), set, START).unwrap();
        let split = table.get_ref()["stages"].get_ref().as_table().unwrap()["model"].get_ref().get("split").unwrap().clone();
        let (key, value) = split.get_ref().as_table().unwrap().get_key_value("test").unwrap();
        let text = |span: Range<usize>| &set[span.start - START..span.end - START];
        assert_eq!((text(split.span()), text(key.span()), text(value.span())), ("{ test = [1, 2] }", "test", "[1, 2]"));
        assert_eq!(text(value.get_ref().get(1).unwrap().span()), "2");
    }
}
