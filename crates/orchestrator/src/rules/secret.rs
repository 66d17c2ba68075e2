//! Secrets: named in the pipeline file by environment variable or file, read when a run begins, written nowhere.

use std::path::{Path, PathBuf};

use artifact::{Doing, Event, Sink, StageError};
use serde::Deserialize;

/// Where a secret is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a secret is { env = \"NAME\" } or { file = \"PATH\" }")]
pub enum Source {
    /// In an environment variable.
    Env {
        /// Its name.
        env: String,
    },
    /// In a file, white space at its ends left out; relative paths begin at the pipeline's folder.
    File {
        /// Its path.
        file: PathBuf,
    },
}

impl Source {
    /// Reads the secret.
    ///
    /// # Errors
    /// When it is not there or empty; the message holds its place and nothing of it.
    pub fn read(&self, base: &Path) -> Result<Secret, StageError> {
        let (text, place) = match self {
            Self::Env { env } => (std::env::var(env).unwrap_or_default(), format!("the environment variable {env}")),
            Self::File { file } => {
                let path = base.join(file);
                (std::fs::read_to_string(&path).doing(|| format!("reading the secret in {}", path.display()))?, path.display().to_string())
            }
        };
        match text.trim() {
            "" => Err(StageError::new("the pipeline needs a secret that is not there").at(place).help("set it before the run")),
            secret => Ok(Secret(secret.to_owned())),
        }
    }
}

/// A secret in memory; neither shown nor written.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// A secret with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For the one who uses it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// All secrets of a run: what is shown or written goes through here.
#[derive(Debug, Clone, Default)]
pub struct Secrets(Vec<Secret>);

impl Secrets {
    /// Takes those that are long enough to be told from ordinary words.
    pub fn new(all: impl IntoIterator<Item = Secret>) -> Self {
        const SHORTEST: usize = 4;
        Self(all.into_iter().filter(|secret| secret.0.len() >= SHORTEST).collect())
    }

    /// The text with `***` wherever a secret stood.
    pub fn redact(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(&secret.0, "***"))
    }
}

/// A sink that lets no secret through.
pub struct Redacting<S> {
    /// The secrets.
    pub secrets: Secrets,
    /// Who gets the rest.
    pub inner: S,
}

impl<S: Sink> Sink for Redacting<S> {
    fn emit(&self, event: Event) {
        if self.secrets.0.is_empty() {
            return self.inner.emit(event);
        }
        // A secret with a quote or a backslash stands escaped in JSON.
        let escaped = |secret: &Secret| serde_json::to_string(&secret.0).map(|text| text[1..text.len() - 1].to_owned()).unwrap_or_default();
        let Ok(mut text) = serde_json::to_string(&event) else { return };
        let mut found = false;
        for secret in self.secrets.0.iter().map(escaped) {
            found |= text.contains(&secret);
            text = text.replace(&secret, "***");
        }
        match serde_json::from_str(&text) {
            Ok(redacted) if found => self.inner.emit(redacted),
            // A secret that is a word of the event's own form: better nothing than the secret.
            Err(_) if found => {}
            _ => self.inner.emit(event),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use artifact::Level;
    use artifact::event::Collected;

    #[test]
    fn no_secret_passes_whatever_letters_it_has() {
        let secrets = Secrets::new(["pass\"word\\1".to_owned(), "hush".to_owned()].map(Secret::new));
        let sink = Redacting { secrets: secrets.clone(), inner: Collected::default() };
        let log = |message: &str| Event::Log { stage: "s".into(), level: Level::Info, message: message.into() };
        sink.emit(log("it is pass\"word\\1, hush"));
        sink.emit(log("nothing"));
        assert_eq!(sink.inner.take(), [log("it is ***, ***"), log("nothing")]);
        assert_eq!(secrets.redact("x pass\"word\\1"), "x ***");
        assert_eq!(format!("{secrets:?}"), "Secrets([***, ***])");
    }

    #[test]
    fn a_secret_in_a_file_is_read_without_its_line_end_and_a_missing_one_is_named_by_its_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "topsecret\n").unwrap();
        let file = |name: &str| Source::File { file: name.into() }.read(dir.path());
        assert_eq!(file("key").unwrap().reveal(), "topsecret");
        assert!(file("none").unwrap_err().message.contains("none"));
        let error = Source::Env { env: "EPISTEME_NO_SUCH_SECRET".into() }.read(dir.path()).unwrap_err();
        assert!(error.place.unwrap().contains("EPISTEME_NO_SUCH_SECRET"));
    }
}
