//! `firedrill-stage`: sets up real services to hold fire drills on, and takes them down again.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use firedrill_model::units::Span;
use firedrill_tests::program;
use firedrill_tests::stage::{self, Programs, SHIPPED_PREFIX, Stage, keeper};
use nix::sys::signal::{SigSet, Signal};

/// Real services to hold fire drills on: each node in a network namespace and a control group of its own.
#[derive(Debug, Parser)]
#[command(name = "firedrill-stage", version)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// HAProxy before three web servers
    Haproxy(Where),
    /// A cluster of three etcd members
    Etcd(Where),
    /// Redis with two replicas and three Sentinels
    Redis(Where),
    /// Answer every HTTP request on a port
    #[command(hide = true)]
    Serve {
        /// The port, of every address
        port: u16,
    },
    /// Keep a service running in a control group
    #[command(hide = true)]
    Keep {
        /// Path of the control group
        #[arg(long)]
        group: PathBuf,
        /// Pause before it is started again
        #[arg(long)]
        after: Span,
        /// Program and arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Where {
    /// What the names of namespaces and control groups begin with
    #[arg(long, default_value = SHIPPED_PREFIX)]
    prefix: String,
    /// Folder for data and logs; made, and removed at the end
    #[arg(long)]
    folder: Option<PathBuf>,
}

type Raise = fn(&Programs, &str, &std::path::Path) -> Result<Stage>;

fn main() -> ExitCode {
    match run(Cli::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> Result<()> {
    match what {
        What::Haproxy(place) => show(&place, stage::haproxy::raise, stage::haproxy::EXPERIMENTS),
        What::Etcd(place) => show(&place, stage::etcd::raise, stage::etcd::EXPERIMENTS),
        What::Redis(place) => show(&place, stage::redis::raise, stage::redis::EXPERIMENTS),
        What::Serve { port } => match stage::pair::serve(port)? {},
        What::Keep { group, after, command } => match keeper::keep(&group, after.0, &command)? {},
    }
}

/// Sets a stage up, says what there is, and waits for Ctrl-C.
fn show(place: &Where, raise: Raise, experiments: &str) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "namespaces and control groups need root: run it with sudo");
    let firedrill = program::binary().context("firedrill is not built: run `cargo build` first")?;
    let programs = Programs { firedrill, stage: std::env::current_exe()? };
    let folder = match &place.folder {
        Some(folder) => std::path::absolute(folder)?,
        None => std::env::temp_dir().join(format!("firedrill-stage-{}", place.prefix)),
    };
    // It is removed at the end, so it must be ours: new, empty, or of an earlier stage that was killed.
    let is_ours = folder.join("run/owner").exists() || is_empty(&folder);
    ensure!(is_ours, "there is something else in {}; choose another --folder", folder.display());
    let ending = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    ending.thread_block()?; // before any thread is made, which would not inherit it
    let stage = raise(&programs, &place.prefix, &folder)?;
    println!("The stage stands. Its nodes are network namespaces, its services control groups:");
    for (name, list) in [("netns", names(&stage, "-")), ("cgroup", names(&stage, "/"))] {
        println!("  {name:7} {}", list.join("  "));
    }
    println!("  logs    {}", folder.join("logs").display());
    println!("\nIn another terminal:\n  {} run {experiments}", programs.firedrill.display());
    println!("\nCtrl-C takes it down.");
    ending.wait()?;
    drop(stage);
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    println!("The stage is gone.");
    Ok(())
}

/// Whether there is nothing in a folder; not there is as good.
fn is_empty(folder: &std::path::Path) -> bool {
    folder.read_dir().map_or(!folder.exists(), |mut entries| entries.next().is_none())
}

/// Namespaces, or control groups, whose names begin with the stage's prefix.
fn names(stage: &Stage, separator: &str) -> Vec<String> {
    use firedrill_agent::host::{cgroup, netns};
    let all = if separator == "/" { cgroup::all() } else { netns::names() };
    let start = format!("{}{separator}", stage.prefix());
    all.into_iter().filter(|name| name.trim_start_matches('/').starts_with(&start)).collect()
}
