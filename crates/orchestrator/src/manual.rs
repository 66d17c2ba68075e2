//! Shell completions and man pages, from the same declaration as the command line.

use std::io::{self, Write};
use std::path::Path;

use artifact::worker::DONE;
use artifact::{Doing, StageError};
use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::Failure;
use crate::cli::Cli;

/// Prints the completions of a shell.
pub fn completions(shell: Shell) -> u8 {
    clap_complete::generate(shell, &mut Cli::command(), "episteme", &mut io::stdout());
    DONE
}

/// Prints the page of `episteme` or of a verb, or writes all of them to a folder.
///
/// # Errors
/// When there is no such verb, or the folder cannot be written.
pub fn man(verb: Option<&str>, to: Option<&Path>) -> Result<u8, Failure> {
    let mut all = Cli::command().flatten_help(false);
    all.build();
    if let Some(folder) = to {
        std::fs::create_dir_all(folder).doing(|| format!("making {}", folder.display()))?;
        clap_mangen::generate_to(all, folder).doing(|| format!("writing man pages to {}", folder.display()))?;
        return Ok(DONE);
    }
    let page = match verb {
        None => all,
        Some(verb) => page(&all, verb)?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text).doing(|| "writing a man page".into())?;
    // A reader that has closed its end has seen enough.
    let _ = io::stdout().write_all(&text);
    Ok(DONE)
}

fn page(all: &Command, verb: &str) -> Result<Command, Failure> {
    let verbs = || all.get_subcommands().filter(|one| !one.is_hide_set()).map(Command::get_name);
    let Some(found) = all.get_subcommands().find(|one| one.get_name() == verb) else {
        let error = StageError::new(format!("there is no verb `{verb}`"));
        return Err(Failure::Asked(error.help(artifact::config::suggest(verb, verbs()))));
    };
    Ok(found.clone())
}
