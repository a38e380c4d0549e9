//! `firedrill completions`.

use anyhow::Result;
use clap::CommandFactory;
use firedrill_model::verdict::ExitCode;

use crate::cli::Cli;

pub fn run(shell: clap_complete::Shell) -> Result<ExitCode> {
    clap_complete::generate(shell, &mut Cli::command(), "firedrill", &mut std::io::stdout());
    Ok(ExitCode::Held)
}
