//! Pipelines in the user's crontab, each in a block of its own between two marks; all else in it is left alone.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use artifact::{Doing, StageError};

use crate::document::Scheduled;
use crate::schedule::name_and_file;

const BEGIN: &str = "# BEGIN episteme ";
const END: &str = "# END episteme ";

/// One pipeline in the crontab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The pipeline's name.
    pub name: String,
    /// Its file.
    pub file: PathBuf,
    /// Its lines, as crontab has them.
    pub lines: String,
}

impl Block {
    /// What it is for.
    pub fn scheduled(&self) -> Scheduled {
        let line = self.lines.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
        let schedule = line.split_whitespace().take(5).collect::<Vec<_>>().join(" ");
        let (place, lines) = (Some("crontab".into()), Some(self.lines.clone()));
        Scheduled { schedule: Some(schedule), place, lines, ..Scheduled::new(&self.name, &self.file) }
    }

    fn mark(&self) -> String {
        format!("{} {}", self.name, self.file.display())
    }
}

/// A crontab taken apart: the blocks, and the rest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Crontab {
    rest: String,
    /// The pipelines in it.
    pub blocks: Vec<Block>,
}

impl Crontab {
    /// What the `crontab` program has for this user.
    ///
    /// # Errors
    /// When there is no such program, or it fails for another reason than that nothing is there.
    pub fn read() -> Result<Self, StageError> {
        Self::read_if_there()?.ok_or_else(|| {
            StageError::new("there is no program `crontab`")
                .help("install cron, or use systemd's timers (--systemd), or `episteme schedule run`")
        })
    }

    /// The same, to look at: where there is no cron, nothing is in its table.
    ///
    /// # Errors
    /// As [`Self::read`], but for the first.
    pub fn read_if_any() -> Result<Self, StageError> {
        Self::read_if_there().map(Option::unwrap_or_default)
    }

    fn read_if_there() -> Result<Option<Self>, StageError> {
        let output = match Command::new("crontab").arg("-l").stdin(Stdio::null()).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            output => output.doing(|| "starting `crontab -l`".into())?,
        };
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.success() {
            true => Ok(Some(Self::parse(&String::from_utf8_lossy(&output.stdout)))),
            false if said.contains("no crontab") => Ok(Some(Self::default())),
            false => Err(StageError::new(format!("`crontab -l` failed: {}", said.trim()))),
        }
    }

    fn parse(text: &str) -> Self {
        let mut crontab = Self::default();
        let mut open: Option<Block> = None;
        for line in text.lines() {
            match (line.strip_prefix(BEGIN).and_then(name_and_file), &mut open) {
                (Some((name, file)), _) => open = Some(Block { name: name.into(), file: file.into(), lines: String::new() }),
                (None, Some(block)) if line.strip_prefix(END) == Some(&block.mark()) => crontab.blocks.extend(open.take()),
                (None, Some(block)) => block.lines.push_str(&format!("{line}\n")),
                (None, None) => crontab.rest.push_str(&format!("{line}\n")),
            }
        }
        // A block whose end somebody took away stays as it stands.
        if let Some(block) = open {
            crontab.rest.push_str(&format!("{BEGIN}{}\n{}", block.mark(), block.lines));
        }
        crontab
    }

    fn text(&self) -> String {
        let blocks = self.blocks.iter().map(|block| format!("{BEGIN}{mark}\n{}{END}{mark}\n", block.lines, mark = block.mark()));
        std::iter::once(self.rest.clone()).chain(blocks).collect()
    }

    /// Puts a block in, in place of the one for the same file.
    pub fn put(&mut self, block: Block) {
        match self.blocks.iter_mut().find(|there| there.file == block.file) {
            Some(there) => *there = block,
            None => self.blocks.push(block),
        }
    }

    /// Gives it to the `crontab` program.
    ///
    /// # Errors
    /// When that does not take it.
    pub fn write(&self) -> Result<(), StageError> {
        let starting = || "starting `crontab -`".to_owned();
        let mut child = Command::new("crontab").arg("-").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().doing(starting)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(self.text().as_bytes()).doing(|| "writing to `crontab -`".into())?;
        }
        let output = child.wait_with_output().doing(|| "waiting for `crontab -`".into())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(StageError::new(format!("crontab did not take it: {}", String::from_utf8_lossy(&output.stderr).trim()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHERS: &str = "MAILTO=me\n0 1 * * * backup\n";

    fn block(name: &str, lines: &str) -> Block {
        Block { name: name.into(), file: format!("/p/{name} x.toml").into(), lines: lines.into() }
    }

    #[test]
    fn what_others_wrote_stays_as_it_is() {
        let mut crontab = Crontab::parse(OTHERS);
        crontab.put(block("a", "1 * * * * a\n"));
        crontab.put(block("b b", "2 * * * * b\n"));
        let mut again = Crontab::parse(&crontab.text());
        assert_eq!(again, crontab);
        again.put(block("a", "3 * * * * a\n"));
        assert_eq!(again.blocks.len(), 2, "a second time replaces the first");
        again.blocks.clear();
        assert_eq!(again.text(), OTHERS);
    }

    #[test]
    fn a_block_without_its_end_is_not_touched() {
        let text = format!("{OTHERS}{BEGIN}a /p/a.toml\n1 * * * * a\n");
        assert_eq!(Crontab::parse(&text).text(), text);
        assert!(Crontab::parse(&text).blocks.is_empty());
    }
}
