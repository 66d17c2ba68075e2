//! Which of the input's files a stage reads.

use std::path::{Path, PathBuf};

use artifact::StageError;
use artifact::config::suggest;

/// A file that is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chosen<'a> {
    /// Its path within the input.
    pub(crate) name: &'a str,
    /// Where it lies.
    pub(crate) path: &'a Path,
}

impl Chosen<'_> {
    /// True when a config means this file: by its path, or by its name alone.
    pub(crate) fn is(&self, wanted: &str) -> bool {
        fits(self.name, wanted)
    }
}

fn fits(name: &str, wanted: &str) -> bool {
    name == wanted || name.rsplit('/').next() == Some(wanted)
}

/// The files named in the config, in that order; or all with these endings (`.gz` may follow), or the only file.
pub(crate) fn select_files<'a>(
    files: &'a [(String, PathBuf)],
    named: &[String],
    endings: &[&str],
    what: &str,
) -> Result<Vec<Chosen<'a>>, StageError> {
    let chosen = |(name, path): &'a (String, PathBuf)| Chosen { name, path };
    if !named.is_empty() {
        return named.iter().map(|wanted| find(files, wanted).map(chosen)).collect();
    }
    let hidden = |name: &str| name.split('/').any(|part| part.starts_with('.') || part == "__MACOSX");
    let visible: Vec<&(String, PathBuf)> = files.iter().filter(|(name, _)| !hidden(name)).collect();
    if let [only] = visible[..] {
        return Ok(vec![chosen(only)]);
    }
    let ends = |name: &str| {
        let plain = name.to_ascii_lowercase();
        endings.iter().any(|ending| plain.strip_suffix(".gz").unwrap_or(&plain).ends_with(ending))
    };
    let mut fitting: Vec<Chosen> = visible.into_iter().filter(|(name, _)| ends(name)).map(chosen).collect();
    fitting.sort_by_key(|file| file.name);
    if fitting.is_empty() {
        return Err(StageError::new(format!("no file of the input looks like a {what}: {}", listing(files)))
            .help(format!("files that end with {} are read; name others with `files`", endings.join(", "))));
    }
    Ok(fitting)
}

/// The file of this path, or, when no path fits, the only one of this name.
pub(crate) fn find<'a>(files: &'a [(String, PathBuf)], wanted: &str) -> Result<&'a (String, PathBuf), StageError> {
    if let Some(exact) = files.iter().find(|(name, _)| name == wanted) {
        return Ok(exact);
    }
    let mut by_name = files.iter().filter(|(name, _)| fits(name, wanted));
    match (by_name.next(), by_name.next()) {
        (Some(file), None) => Ok(file),
        (Some((first, _)), Some((second, _))) => {
            Err(StageError::new(format!("`{wanted}` could be `{first}` or `{second}`")).help("give its folder too"))
        }
        (None, _) => Err(StageError::new(format!("`{wanted}` is not in the input: {}", listing(files)))
            .help(suggest(wanted, files.iter().map(|(name, _)| name.as_str())))),
    }
}

/// What an input holds, in a few words.
pub(crate) fn listing(files: &[(String, PathBuf)]) -> String {
    let names = files.iter().take(8).map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
    match files.len() {
        0 => "it is empty".to_owned(),
        1..=8 => format!("it holds {names}"),
        more => format!("it holds {names} and {} more", more - 8),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(files: &[&str], named: &[&str]) -> Result<Vec<String>, StageError> {
        let files: Vec<_> = files.iter().map(|name| ((*name).to_owned(), PathBuf::from("/x"))).collect();
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        let chosen = select_files(&files, &named, &[".csv", ".txt"], "table")?;
        Ok(chosen.iter().map(|file| file.name.to_owned()).collect())
    }

    #[test]
    fn files_are_taken_by_ending_and_in_the_order_of_their_names() {
        assert_eq!(names(&["b.csv", "a.CSV.gz", "c.md", ".d.csv"], &[]).unwrap(), ["a.CSV.gz", "b.csv"]);
        assert_eq!(names(&["anything"], &[]).unwrap(), ["anything"]);
        assert_eq!(names(&["x/b.csv", "x/a.txt"], &["b.csv", "x/a.txt"]).unwrap(), ["x/b.csv", "x/a.txt"]);
    }

    #[test]
    fn what_is_missing_or_unclear_is_named() {
        assert!(names(&["a.md", "b.md"], &[]).unwrap_err().to_string().contains("it holds a.md, b.md"));
        assert!(names(&["x/a.csv", "y/a.csv"], &["a.csv"]).unwrap_err().to_string().contains("`x/a.csv` or `y/a.csv`"));
        assert!(names(&["train.csv"], &["trian.csv"]).unwrap_err().help.unwrap().contains("train.csv"));
    }
}
