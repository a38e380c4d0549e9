//! The verbs, one file each.

mod check;
mod completions;
mod doctor;
mod files;
mod halt;
pub mod inject;
mod man;
mod plan;
mod recover;
pub mod report;
pub mod run;
mod runs;
mod schema;
mod status;

use std::path::PathBuf;
use std::sync::OnceLock;

use firedrill_agent::agent::{Agent, Farewell, Options, StartError};
use firedrill_agent::config::{self, ConfigError};
use firedrill_agent::guardian;
use firedrill_agent::journal::Directories;
use firedrill_agent::owner::OwnerError;
use firedrill_model::config::Config;
use firedrill_model::file::Diagnostic;
use firedrill_model::run::RunPlan;
use firedrill_model::verdict::ExitCode;

use crate::cli::{Cli, HostPlaces, Places, Verb};
use crate::demo;
use crate::render::diagnostic;
use crate::render::paint::Screen;
use crate::render::say::aside;
pub use files::refuse;

/// An error that is the user's to mend: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// What is wrong with files, each finding at its place: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{} findings", .0.len())]
pub struct FileErrors(pub Vec<Diagnostic>);

/// The configuration file that was named on the command line, if one was.
static CONFIG_FILE: OnceLock<Option<PathBuf>> = OnceLock::new();

/// This host's configuration.
///
/// # Errors
/// It cannot be read, or is wrong.
pub fn config() -> anyhow::Result<Config> {
    let file = CONFIG_FILE.get().and_then(Option::as_deref);
    config::read(file).map_err(|error| match error {
        ConfigError::Wrong(finding) => FileErrors(vec![*finding]).into(),
        unreadable @ ConfigError::Unreadable(..) => UsageError(unreadable.to_string()).into(),
    })
}

/// Refuses, before anything begins, what this host's caps do not permit.
///
/// # Errors
/// Names each cap, what was asked, and where it is set.
pub fn within_caps(plan: &RunPlan) -> anyhow::Result<()> {
    let objections: Vec<String> = config()?.objections(plan).iter().map(ToString::to_string).collect();
    if objections.is_empty() { Ok(()) } else { Err(UsageError(objections.join("\n")).into()) }
}

/// Does what was asked for.
///
/// # Errors
/// What could not be done; [`exit_code_of`] tells the code.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    // Set once, before anything reads it.
    let _ = CONFIG_FILE.set(cli.config);
    match cli.verb {
        Verb::Run(args) => run::run(&args),
        Verb::Plan(args) => plan::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Schema(args) => schema::run(&args),
        Verb::Inject(args) => inject::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Report(args) => report::run(&args),
        Verb::Runs(args) => runs::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Halt(args) => halt::run(&args),
        Verb::Recover(args) => recover::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Completions { shell } => completions::run(shell),
        Verb::Man { folder } => man::run(&folder),
        Verb::Shop(args) => demo::shop::main(args).map(|()| ExitCode::Held),
        Verb::Guardian { run, state } => Ok(guardian_process(run, state)),
    }
}

/// The exit code of an error: 2 for what the user can mend, 5 for what could not be restored, else 3: nothing was
/// shown.
pub fn exit_code_of(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<UsageError>().is_some() || error.downcast_ref::<FileErrors>().is_some() {
        return ExitCode::Usage;
    }
    if error.downcast_ref::<OwnerError>().is_some() {
        return ExitCode::Usage;
    }
    match error.downcast_ref::<StartError>() {
        Some(StartError::LeftOver(_)) => ExitCode::NotRestored,
        Some(_) => ExitCode::Usage,
        None => ExitCode::Unproven,
    }
}

/// What is said of an error.
pub fn complaint(error: &anyhow::Error) -> String {
    let paint = Screen::stderr().paint();
    match error.downcast_ref::<FileErrors>() {
        Some(FileErrors(findings)) => diagnostic::all(findings, paint).trim_end().to_owned(),
        None => diagnostic::failure(error, paint),
    }
}

fn guardian_process(run: PathBuf, state: PathBuf) -> ExitCode {
    if guardian::main(run, state) == 0 { ExitCode::Held } else { ExitCode::NotRestored }
}

impl HostPlaces {
    /// Directories of the agent.
    pub fn directories(&self) -> Directories {
        Directories { run: self.run_dir.clone(), state: self.state_dir.clone() }
    }
}

/// Starts the embedded agent.
///
/// # Errors
/// Not root, the host is busy or cannot be guarded.
pub fn start_agent(places: &Places, what: &str) -> anyhow::Result<Agent> {
    if !nix::unistd::Uid::effective().is_root() {
        let line: Vec<String> = std::env::args().collect();
        return Err(UsageError(format!(
            "faults need root; try: sudo {}\n(`plan`, `check` and `report` work without)",
            crate::render::words::command_line(&line)
        ))
        .into());
    }
    let (directories, resolver) = (places.host.directories(), firedrill_verifier::probe::resolve);
    let options = Options { directories, config: config()?, resolver, ..Options::new(what) };
    Ok(Agent::start(options)?)
}

/// Tells what an earlier run had left, and what has become of it.
pub fn tell_recovery(agent: &Agent) {
    for (change, note) in &agent.recovery().undone {
        aside(format_args!("undone of an earlier run that was killed: {change}: {note}"));
    }
}

/// The end of a run: whatever else went wrong, what is left on the host is named, and decides the exit code.
///
/// # Errors
/// That of the run, when nothing is left.
pub fn conclude(result: anyhow::Result<ExitCode>, farewell: &Farewell) -> anyhow::Result<ExitCode> {
    if farewell.left_over.is_empty() {
        return result;
    }
    for left in &farewell.left_over {
        aside(format_args!("NOT restored: {left}"));
    }
    if let Err(error) = &result {
        aside(complaint(error));
    }
    Ok(ExitCode::NotRestored)
}

/// The exit code when the result could be told, or not: what was found counts all the same.
pub fn told(exit: ExitCode, telling: anyhow::Result<()>) -> ExitCode {
    let Err(error) = telling else { return exit };
    aside(complaint(&error));
    exit.worse(ExitCode::Unproven)
}

/// A runtime for probes and the driver. Two threads: the driver's, and one for what blocks it for a moment.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
