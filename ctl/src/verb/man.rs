//! `firedrill man`: man pages, one for the command and one for each verb.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory;
use firedrill_model::verdict::ExitCode;

use crate::cli::Cli;
use crate::render::say::say;

pub fn run(folder: &Path) -> Result<ExitCode> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // A page of `help` for each verb would say nothing that the verb's own does not.
    let mut command = Cli::command()
        .disable_help_subcommand(true)
        .mut_subcommand("inject", |inject| inject.disable_help_subcommand(true));
    command.build();
    clap_mangen::generate_to(command, folder).with_context(|| format!("cannot write to {}", folder.display()))?;
    let folder = folder.display();
    say(format!("man pages are in {folder}; read one with `man -l {folder}/firedrill.1`"))?;
    Ok(ExitCode::Held)
}
