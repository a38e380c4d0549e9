//! `firedrill man`: man pages, one for the command and one for each verb.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory;
use firedrill_model::verdict::ExitCode;

use crate::cli::Cli;

pub fn run(folder: &Path) -> Result<ExitCode> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut command = Cli::command();
    command.build();
    clap_mangen::generate_to(command, folder).with_context(|| format!("cannot write to {}", folder.display()))?;
    anstream::println!("man pages are in {}; read one with `man {}/firedrill.1`", folder.display(), folder.display());
    Ok(ExitCode::Held)
}
