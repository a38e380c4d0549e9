//! `firedrill completions`.

use anyhow::Result;
use clap::{Command, CommandFactory};
use firedrill_model::verdict::ExitCode;

use crate::cli::Cli;
use crate::render::say::say;

pub fn run(shell: clap_complete::Shell) -> Result<ExitCode> {
    // Into memory first: the generator panics when its reader has left.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(&Cli::command()), "firedrill", &mut script);
    say(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::Held)
}

/// The command without its hidden verbs and options, which the generators offer like any other.
fn shown(command: &Command) -> Command {
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set()).map(shown);
    let options = command.get_arguments().filter(|option| !option.is_hide_set());
    let mut shown = Command::new(command.get_name().to_owned()).args(options).subcommands(verbs);
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    shown
}
