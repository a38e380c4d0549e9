//! Stages: network namespaces, control groups and processes to hold fire drills on. Each is a plan of changes that
//! Firedrill's own agent applies, so its journal and guardian take all of it down even when its owner is killed.

pub mod etcd;
pub mod haproxy;
pub mod keeper;
mod network;
pub mod pair;
pub mod redis;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use firedrill_agent::agent::{Agent, Options};
use firedrill_agent::host::netns;
use firedrill_agent::journal::Directories;
use firedrill_model::change::Plan;

pub use network::{Node, Service, Topology};

/// The longest that a stage stands.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How often its lease is renewed; it lasts several times as long.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// The name that the shipped experiments give to a stage: namespace `sys0-etcd-1`, cgroup `sys0/etcd-1`.
pub const SHIPPED_PREFIX: &str = "sys0";

/// The programs that a stage needs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `firedrill`, for the guardian.
    pub firedrill: PathBuf,
    /// `firedrill-stage`, which restarts services that were killed.
    pub stage: PathBuf,
}

/// A stage that stands until it is dropped.
#[derive(Debug)]
pub struct Stage {
    prefix: String,
    folder: PathBuf,
    agent: Agent,
    renewer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Stage {
    /// Sets a stage up. `prefix` is what the names of its namespaces and groups begin with; in `folder`, which is made
    /// anew, its services keep their data, and the stage its journal.
    ///
    /// # Errors
    /// A name is taken, a program is missing, or a right is. Nothing is left then.
    pub fn raise(programs: &Programs, prefix: &str, folder: &Path, plan: &Plan) -> Result<Self> {
        let logs = folder.join("logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make the folder {}", logs.display()))?;
        // Its own lock and journal: a stage is no fault, and drills are run while it stands.
        let directories = Directories { run: folder.join("run"), state: folder.join("state") };
        let agent = Agent::start(Options {
            directories,
            guardian: vec![programs.firedrill.clone().into(), "guardian".into()],
            log_directory: Some(logs),
            ..Options::new(&format!("the stage {prefix}"))
        })?;
        agent.apply(plan, LONGEST).with_context(|| format!("cannot set up the stage {prefix}"))?;
        let (stop, stopped) = channel();
        let renewing = agent.clone();
        let thread = std::thread::spawn(move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(RENEW_EVERY) {
                if let Err(why) = renewing.renew() {
                    eprintln!("the stage falls: {why}");
                    return;
                }
            }
        });
        let renewer = Some((stop, thread));
        Ok(Self { prefix: prefix.to_owned(), folder: folder.to_owned(), agent, renewer })
    }

    /// What its names begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where its services keep data and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Name of a node's network namespace.
    pub fn netns(&self, node: &str) -> String {
        network::netns(&self.prefix, node)
    }

    /// Path of a service's control group below the cgroup v2 mount point.
    pub fn cgroup(&self, service: &str) -> String {
        network::cgroup(&self.prefix, service)
    }

    /// Runs a command in a node's network namespace, to its end.
    ///
    /// # Errors
    /// There is no such node or program.
    pub fn run(&self, node: &str, command: &[&str]) -> Result<Output> {
        let [program, args @ ..] = command else { bail!("the command is empty") };
        self.within(node, || Command::new(program).args(args).output())?
            .with_context(|| format!("cannot run {program}"))
    }

    /// Does `work` on a thread in a node's network namespace. Sockets and processes that it makes stay there.
    ///
    /// # Errors
    /// There is no such node.
    pub fn within<T: Send>(&self, node: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        let name = self.netns(node);
        let namespace = netns::named(&name).with_context(|| format!("there is no namespace {name}"))?;
        netns::within(&namespace, work).with_context(|| format!("cannot enter namespace {name}"))
    }

    /// Waits until `ready` says so; otherwise its last complaint is the error.
    ///
    /// # Errors
    /// It is not ready when `patience` is over.
    pub fn wait(&self, patience: Duration, mut ready: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        loop {
            let last = match ready(self) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if begun.elapsed() > patience {
                let logs = self.folder.join("logs");
                return Err(last.context(format!("not ready within {patience:?}; its logs are in {}", logs.display())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.renewer.take() {
            // It may have ended by itself.
            let _ = stop.send(());
            let _ = thread.join();
        }
        for left in self.agent.stop().left_over {
            eprintln!("left of the stage {}: {left}", self.prefix);
        }
    }
}

/// The text that a command printed, or what it complained about.
fn text_of(output: &Output) -> Result<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    bail!("{}: {} {}", output.status, text(&output.stderr), text(&output.stdout))
}
