//! `firedrill completions`.

use anyhow::Result;
use clap::CommandFactory;
use firedrill_model::verdict::ExitCode;

use crate::cli::Cli;
use crate::render::say::say;

pub fn run(shell: clap_complete::Shell) -> Result<ExitCode> {
    // Into memory first: the generator panics when its reader has left.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "firedrill", &mut script);
    say(String::from_utf8_lossy(&script).trim_end())?;
    Ok(ExitCode::Held)
}
