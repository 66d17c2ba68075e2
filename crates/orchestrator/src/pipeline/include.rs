//! `include = ["other.toml"]`: the stages, parameters and variables of other files. What a file says itself stands over what
//! it includes; a stage is declared once.

use std::path::{Path, PathBuf};

use artifact::ConfigProblem;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::problem::Sources;

/// Reads all that a pipeline file includes, each file once, and adds it to the sources.
pub fn gather(file: &Path, sources: &mut Sources, problems: &mut Vec<ConfigProblem>) {
    let mut seen = vec![canonical(file)];
    let mut next = 0;
    loop {
        let found = sources.texts().nth(next).map(|(start, name, text)| (start, name.to_owned(), text.to_owned()));
        let Some((start, name, text)) = found else { return };
        next += 1;
        // Most files include none: they are parsed once, later.
        if !text.contains("include") {
            continue;
        }
        let (table, _) = DeTable::parse_recoverable(&text);
        for (path, span) in included(table.get_ref(), start, problems) {
            let path = Path::new(&name).parent().unwrap_or(Path::new("")).join(path);
            let canonical = canonical(&path);
            if seen.contains(&canonical) {
                continue;
            }
            seen.push(canonical);
            match std::fs::read_to_string(&path) {
                Ok(text) => sources.add(path.display().to_string(), text),
                Err(error) => {
                    let problem = ConfigProblem::at("", format!("cannot read {}: {error}", path.display()));
                    let problem = problem.help("an included file is named relative to the file that includes it");
                    problems.push(ConfigProblem { span: Some(span), ..problem });
                }
            }
        }
    }
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The paths that a file's `include` names.
fn included(table: &DeTable<'_>, start: usize, problems: &mut Vec<ConfigProblem>) -> Vec<(String, std::ops::Range<usize>)> {
    let Some(value) = table.get("include") else { return Vec::new() };
    let moved = |span: std::ops::Range<usize>| span.start + start..span.end + start;
    let one = |value: &Spanned<DeValue<'_>>| value.get_ref().as_str().map(|text| (text.to_owned(), moved(value.span())));
    let all: Option<Vec<_>> = value.get_ref().as_array().map(|items| items.iter().map(one).collect()).unwrap_or_else(|| None);
    all.unwrap_or_else(|| {
        let problem = ConfigProblem::at("", "`include` must be a list of file names").help("include = [\"other.toml\"]");
        problems.push(ConfigProblem { span: Some(moved(value.span())), ..problem });
        Vec::new()
    })
}

/// Puts an included file's table below what is there.
pub fn merge<'i>(root: &mut DeTable<'i>, other: DeTable<'i>, problems: &mut Vec<ConfigProblem>) {
    for (key, value) in other {
        match root.get_mut(&**key.get_ref()).map(Spanned::get_mut) {
            None => drop(root.insert(key, value)),
            Some(DeValue::Table(ours)) => {
                if let DeValue::Table(theirs) = value.into_inner() {
                    merge_entries(ours, theirs, *key.get_ref() == "stages", problems);
                }
            }
            Some(DeValue::Array(ours)) if *key.get_ref() == "env" => {
                if let DeValue::Array(theirs) = value.into_inner() {
                    theirs.into_iter().for_each(|name| ours.push(name));
                }
            }
            Some(_) => {}
        }
    }
}

fn merge_entries<'i>(ours: &mut DeTable<'i>, theirs: DeTable<'i>, are_stages: bool, problems: &mut Vec<ConfigProblem>) {
    for (name, value) in theirs {
        if !ours.contains_key(&**name.get_ref()) {
            ours.insert(name, value);
        } else if are_stages {
            let problem = ConfigProblem::at(
                "",
                format!(
                    "the stage `{}` is declared twice: here, and in a file that includes this one or is included beside it",
                    name.get_ref()
                ),
            );
            problems.push(ConfigProblem { span: Some(name.span()), ..problem.help("call one of them differently") });
        }
    }
}
