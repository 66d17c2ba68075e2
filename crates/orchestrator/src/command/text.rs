//! `${output}` and `${inputs.NAME}` in a command, in their places.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process;

use artifact::{ConfigProblem, RunContext, StageError, Stages, config};

use super::{Run, key};

/// A piece of a text: as it stands, or a reference without its `${` and `}`.
enum Piece<'t> {
    Plain(&'t str),
    Reference(&'t str),
}

/// Cuts a text at the references that are ours: `${output}` and `${inputs.…}`. Whatever else begins with `$` is the shell's.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut plain, mut at) = (Vec::new(), 0, 0);
    while let Some(found) = text[at..].find("${").map(|found| at + found) {
        at = found + 2;
        let Some(length) = text[at..].find('}') else { break };
        let name = &text[at..at + length];
        if name == "output" || name.starts_with("inputs.") {
            pieces.push(Piece::Plain(&text[plain..found]));
            pieces.push(Piece::Reference(name));
            at += length + 1;
            plain = at;
        }
    }
    pieces.push(Piece::Plain(&text[plain..]));
    pieces
}

/// The first line of a command as it was written, for people.
pub fn shown(run: &Run) -> String {
    const LONGEST: usize = 80;
    let text = match run {
        Run::Shell(text) => text.trim().to_owned(),
        Run::Words(words) => words.join(" "),
    };
    let cut: String = text.lines().next().unwrap_or_default().chars().take(LONGEST).collect();
    if cut.len() < text.len() { format!("{cut} …") } else { cut }
}

/// References to inputs that are not there or stand for too many, and commands that are none.
pub fn problems(run: &Run, env: &BTreeMap<String, String>, inputs: &BTreeMap<String, Stages>) -> Vec<ConfigProblem> {
    let words: Vec<(String, &String)> = match run {
        Run::Shell(text) => vec![("run".into(), text)],
        Run::Words(words) => words.iter().enumerate().map(|(at, word)| (format!("run.{at}"), word)).collect(),
    };
    let mut problems = Vec::new();
    if words.first().is_none_or(|(_, word)| word.trim().is_empty()) {
        problems.push(ConfigProblem::at("run", "`run` names no program").help("a text for the shell, or a program and its arguments"));
    }
    for (path, text) in words.into_iter().chain(env.iter().map(|(name, text)| (format!("env.{name}"), text))) {
        let pieces = pieces(text);
        for (at, piece) in pieces.iter().enumerate() {
            let Piece::Reference(reference) = piece else { continue };
            let Some(name) = reference.strip_prefix("inputs.") else { continue };
            let goes_on = matches!(pieces.get(at + 1), Some(Piece::Plain(plain)) if plain.starts_with('/'));
            problems.extend(match inputs.get(name) {
                None => Some(no_input(&path, reference, name, inputs)),
                Some(Stages::Many(stages)) if stages.len() > 1 && goes_on => Some(several(&path, reference, stages.len())),
                Some(_) => None,
            });
        }
    }
    problems
}

fn no_input(path: &str, reference: &str, name: &str, inputs: &BTreeMap<String, Stages>) -> ConfigProblem {
    let problem = ConfigProblem::at(path, format!("`${{{reference}}}` stands for an input, and `inputs` has no `{name}`"));
    problem.help(config::suggest(name, inputs.keys().map(String::as_str)))
}

/// `${inputs.all}/x` would be folder after folder, and `x` in the last one only.
fn several(path: &str, reference: &str, count: usize) -> ConfigProblem {
    let message = format!("`${{{reference}}}` stands for {count} folders, side by side: `/` after it would be of the last one only");
    ConfigProblem::at(path, message).help(format!("one after the other: for folder in ${{{reference}}}; do cat \"$folder\"/x; done"))
}

/// The folders of an input.
pub fn paths(context: &RunContext, name: &str) -> Vec<PathBuf> {
    context.inputs(&key(name)).iter().map(|input| input.path.clone()).collect()
}

fn values(reference: &str, context: &RunContext) -> Vec<String> {
    let paths = match reference.strip_prefix("inputs.") {
        Some(name) => paths(context, name),
        None => vec![context.output().to_owned()],
    };
    paths.iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

/// A text with its references filled in; several folders stand side by side.
pub fn filled(text: &str, context: &RunContext) -> String {
    let piece = |piece| match piece {
        Piece::Plain(text) => text.to_owned(),
        Piece::Reference(reference) => values(reference, context).join(" "),
    };
    pieces(text).into_iter().map(piece).collect()
}

/// The program to start, with its arguments.
///
/// # Errors
/// When no program is named.
pub fn command(run: &Run, context: &RunContext) -> Result<process::Command, StageError> {
    match run {
        Run::Shell(text) => {
            let mut command = process::Command::new("/bin/sh");
            command.arg("-ec").arg(shell(&pieces(text), |reference| values(reference, context)));
            Ok(command)
        }
        Run::Words(words) => {
            let mut words = words.iter().flat_map(|word| expanded(word, context));
            let program = words.next().ok_or_else(|| StageError::new("`run` names no program"))?;
            let mut command = process::Command::new(program);
            command.args(words);
            Ok(command)
        }
    }
}

/// A word that is an input with several folders becomes several words.
fn expanded(word: &str, context: &RunContext) -> Vec<String> {
    match pieces(word).as_slice() {
        [Piece::Plain(""), Piece::Reference(reference), Piece::Plain("")] => values(reference, context),
        _ => vec![filled(word, context)],
    }
}

/// How the shell reads the place that a value is put in.
#[derive(Clone, Copy, PartialEq)]
enum Quotes {
    None,
    Single,
    Double,
}

/// A shell's text with its references filled in, quoted as their place needs it: a path with a space in it stays one word.
fn shell(pieces: &[Piece<'_>], values: impl Fn(&str) -> Vec<String>) -> String {
    let (mut text, mut quotes) = (String::new(), Quotes::None);
    for piece in pieces {
        match piece {
            Piece::Plain(plain) => {
                text.push_str(plain);
                quotes = after(plain, quotes);
            }
            Piece::Reference(reference) => {
                let quoted: Vec<String> = values(reference).iter().map(|value| quoted(value, quotes)).collect();
                text.push_str(&quoted.join(" "));
            }
        }
    }
    text
}

/// In which quotes the shell is after this text.
fn after(text: &str, mut quotes: Quotes) -> Quotes {
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        quotes = match (quotes, character) {
            (Quotes::None | Quotes::Double, '\\') => {
                characters.next();
                quotes
            }
            (Quotes::None, '\'') => Quotes::Single,
            (Quotes::None, '"') => Quotes::Double,
            (Quotes::Single, '\'') | (Quotes::Double, '"') => Quotes::None,
            _ => quotes,
        };
    }
    quotes
}

fn quoted(value: &str, quotes: Quotes) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@=,%".contains(c);
    match quotes {
        _ if value.chars().all(is_plain) => value.to_owned(),
        Quotes::None => format!("'{}'", value.replace('\'', r"'\''")),
        Quotes::Single => value.replace('\'', r"'\''"),
        Quotes::Double => value.chars().flat_map(|c| "\\\"$`".contains(c).then_some('\\').into_iter().chain([c])).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use artifact::StageName;

    /// What the shell makes of a text in which `${output}` is this value.
    fn said(text: &str, value: &str) -> String {
        let text = shell(&pieces(text), |_| vec![value.to_owned()]);
        let output = process::Command::new("/bin/sh").arg("-ec").arg(&text).env("x", "theirs").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_value_stays_one_word_in_any_quotes() {
        for value in ["/plain/path", "/a b/it's", r#"/a"b\c$x`d`"#] {
            for text in ["printf '[%s]' ${output}/f", r#"printf '[%s]' "${output}/f""#, "printf '[%s]' '${output}/f'"] {
                assert_eq!(said(text, value), format!("[{value}/f]"), "{text}");
            }
        }
    }

    #[test]
    fn what_is_the_shells_is_left_to_the_shell() {
        assert_eq!(said("y=${x%s}; echo ${y}$(echo '${z}')", ""), "their${z}\n");
    }

    #[test]
    fn an_input_that_is_not_there_is_named_with_the_nearest_that_is() {
        let inputs = BTreeMap::from([("raw".to_owned(), Stages::One(StageName("raw".into())))]);
        let found = problems(&Run::Shell("cat ${inputs.rwa}/x ${inputs.raw}/y".into()), &BTreeMap::new(), &inputs);
        assert_eq!((found.len(), found[0].help.as_deref()), (1, Some("did you mean `raw`?")));
        assert_eq!(problems(&Run::Words(vec![]), &BTreeMap::new(), &inputs)[0].message, "`run` names no program");
    }

    #[test]
    fn a_path_in_several_folders_at_once_is_refused() {
        let several = Stages::Many(vec![StageName("a".into()), StageName("b".into())]);
        let inputs = BTreeMap::from([("all".to_owned(), several)]);
        let found = |text: &str| problems(&Run::Shell(text.into()), &BTreeMap::new(), &inputs);
        assert!(found("ls ${inputs.all} && for one in ${inputs.all}; do cat $one/x; done").is_empty());
        assert!(found("cat ${inputs.all}/x")[0].message.contains("2 folders"));
    }

    #[test]
    fn a_long_command_is_shown_by_its_beginning() {
        assert_eq!(shown(&Run::Shell("first\nsecond".into())), "first …");
        assert_eq!(shown(&Run::Words(vec!["python".into(), "x.py".into()])), "python x.py");
    }
}
