//! One error style for stages: what failed, where, and what to do next.

use std::fmt::Display;

/// A stage's failure, written for the person at the terminal.
///
/// `message` says what was being done and what was found, `place` names the file, row or byte, `help` says what to do
/// next, and `causes` holds the chain of underlying errors, outermost first.
#[derive(Debug, Clone, thiserror::Error, serde::Serialize, serde::Deserialize, schemars::JsonSchema, PartialEq, Eq)]
#[error("{}", self.one_line())]
pub struct StageError {
    /// What failed, in one sentence.
    pub message: String,
    /// File, and line, row or byte where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Underlying errors, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// True when the stage stopped because it was asked to (Ctrl-C, SIGTERM).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
}

impl StageError {
    /// A failure with its sentence.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), place: None, help: None, causes: Vec::new(), interrupted: false }
    }

    /// The stage was asked to stop and did.
    pub fn interrupted() -> Self {
        Self { interrupted: true, ..Self::new("interrupted") }
    }

    /// Names the file, row or byte.
    #[must_use]
    pub fn at(mut self, place: impl Display) -> Self {
        self.place = Some(place.to_string());
        self
    }

    /// Says what to do next.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Adds an underlying error and all its sources.
    #[must_use]
    pub fn because(mut self, cause: &(dyn std::error::Error + '_)) -> Self {
        let mut next: Option<&dyn std::error::Error> = Some(cause);
        while let Some(error) = next {
            let text = error.to_string();
            // Wrappers often repeat their source's text; once is enough.
            if self.causes.last() != Some(&text) {
                self.causes.push(text);
            }
            next = error.source();
        }
        self
    }

    fn one_line(&self) -> String {
        let mut line = self.message.clone();
        if let Some(place) = &self.place {
            line.push_str(&format!(" ({place})"));
        }
        for cause in &self.causes {
            line.push_str(&format!(": {cause}"));
        }
        line
    }
}

/// Turns any error into a [`StageError`] by saying what was being done.
pub trait Doing<T> {
    /// `what` completes "while …": `.doing(|| format!("reading {}", path.display()))`.
    ///
    /// # Errors
    /// The [`StageError`] that wraps this result's error, if it is one.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, StageError>;
}

impl<T, E: std::error::Error> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, StageError> {
        self.map_err(|error| {
            let failed = StageError::new(format!("failed {}", what())).because(&error);
            match disk_is_full(&error) {
                true => failed.help(
                    "the disk is full: free some space (`episteme gc` drops what no run needs) and run again; finished stages are kept",
                ),
                false => failed,
            }
        })
    }
}

/// ENOSPC or EDQUOT anywhere in the chain.
fn disk_is_full(error: &(dyn std::error::Error + '_)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    // A `dyn Error` with a borrowed lifetime cannot be downcast, so the operating system's own words are looked for.
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if [StorageFull, QuotaExceeded].iter().any(|kind| text.contains(&kind.to_string()))
            || text.contains("No space left on device")
            || text.contains("Disk quota exceeded")
        {
            return true;
        }
        next = error.source();
    }
    false
}
