//! The `firedrill` command: plans, runs and reports fire drills on this host.

#![forbid(unsafe_code)]

mod cli;
mod demo;
mod drive;
mod render;
mod verb;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use firedrill_model::log::Run;

use render::paint::Paint;
use render::{html, json, junit, markdown, summary};

/// The whole command.
pub fn main() -> ExitCode {
    let matches = cli::Cli::command().get_matches();
    let cli = match cli::Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    match verb::run(cli) {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            // If even standard error is closed there is nobody to tell.
            let _ = writeln!(anstream::stderr(), "{}", verb::complaint(&error));
            ExitCode::from(verb::exit_code_of(&error) as u8)
        }
    }
}

/// Every report of a run, by what it is called: pure functions of the run. For whoever has a log from elsewhere.
///
/// # Errors
/// A report cannot be made.
pub fn reports(run: &Run) -> anyhow::Result<[(&'static str, String); 5]> {
    Ok([
        ("text", summary::text(run, None, Paint::new(false))),
        ("html", html::report(run)?),
        ("junit", junit::report(&[run])?),
        ("markdown", markdown::report(run)),
        ("json", json::report(run)),
    ])
}
