//! The agent that holds the stage. It has a lock and a journal of its own beside the host's, because the drills are run
//! by the host's normal owner, as a user's own would be.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use firedrill_agent::agent::{Agent, Options};
use firedrill_agent::host;
use firedrill_agent::journal::Directories;
use firedrill_agent::owner::{Holder, Owner};
use firedrill_agent::recover::{self, Recovery};
use firedrill_model::change::Plan;

/// What the directory of a stage begins with, within the run directory.
const NAME: &str = "demo-";
/// The stage falls when nobody renewed it for this long.
const LEASE: Duration = Duration::from_secs(20);
/// How often it is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// It falls after this, whatever happens: far longer than any demo.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// A stage that stands.
#[derive(Debug)]
pub struct Stage {
    agent: Agent,
    directories: Directories,
    /// Dropped to end the renewing.
    over: Option<Sender<()>>,
    renewing: Option<JoinHandle<()>>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Stage {
    /// Puts a stage up. `base` are the host's own directories, `logs` takes the output of its processes.
    ///
    /// # Errors
    /// What could not be made; what had been is gone again.
    pub fn put_up(base: &Directories, plan: &Plan, logs: &Path) -> anyhow::Result<Self> {
        let own = format!("{NAME}{}", std::process::id());
        let directories = Directories { run: base.run.join(&own), state: base.state.join(&own) };
        let options = Options {
            directories: directories.clone(),
            lease: LEASE,
            log_directory: Some(logs.to_owned()),
            ..Options::new("the demo's stage")
        };
        let agent = Agent::start(options).context("cannot guard the demo's stage")?;
        let trouble = Arc::new(Mutex::new(None));
        let (over, ended) = channel::<()>();
        let (renewed, notes) = (agent.clone(), Arc::clone(&trouble));
        // From the start: on a busy machine the stage takes longer to put up than a lease lasts.
        let renewing = std::thread::Builder::new().name("fd-stage".into()).spawn(move || {
            while ended.recv_timeout(RENEW_EVERY) == Err(RecvTimeoutError::Timeout) {
                let why = match renewed.renew() {
                    Ok(lapsed) if lapsed.is_empty() => continue,
                    Ok(_) => "its lease lapsed".to_owned(),
                    Err(why) => why,
                };
                *notes.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                return;
            }
        })?;
        if let Err(error) = agent.apply(plan, LONGEST) {
            agent.stop();
            remove(&directories);
            return Err(error).context("cannot put up the demo's stage");
        }
        Ok(Self { agent, directories, over: Some(over), renewing: Some(renewing), trouble })
    }

    /// Whether it still stands.
    ///
    /// # Errors
    /// Why it fell.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.trouble.lock().unwrap_or_else(PoisonError::into_inner).as_deref() {
            Some(why) => bail!("the demo's stage fell: {why}"),
            None => Ok(()),
        }
    }

    /// Takes it down. What could not be undone, which should be nothing.
    pub fn take_down(mut self) -> Vec<String> {
        self.over = None;
        if let Some(thread) = self.renewing.take() {
            // It only renews; if it panicked, the lease would have lapsed and `check` would have told.
            let _ = thread.join();
        }
        let farewell = self.agent.stop();
        let failed = farewell.ended.iter().flat_map(|e| &e.changes).filter_map(|c| c.error.clone());
        let mut left: Vec<String> = farewell.left_over.iter().cloned().chain(failed).collect();
        left.sort();
        left.dedup();
        if left.is_empty() {
            remove(&self.directories);
        }
        left
    }
}

/// Removes the directories of a stage of which nothing is left.
fn remove(directories: &Directories) {
    for directory in [&directories.run, &directories.state] {
        // Left-over files here hold nothing that anybody needs; the next demo tries again.
        let _ = fs::remove_dir_all(directory);
    }
}

/// The directories of all stages that stand, or were left.
pub fn stages(base: &Directories) -> Vec<Directories> {
    let mut all = names(&base.run);
    all.extend(names(&base.state));
    all.sort();
    all.dedup();
    all.into_iter().map(|own| Directories { run: base.run.join(&own), state: base.state.join(&own) }).collect()
}

/// Clears up after demos that were killed: their guardians have taken their stages down, unless they were killed too.
pub fn sweep(base: &Directories) -> Recovery {
    let boot = host::facts().boot_id;
    let mut all = Recovery::default();
    for directories in stages(base) {
        let holder = Holder::clearing_up("clearing up after a demo");
        // One that is taken belongs to a demo that is still running.
        let Ok(owner) = Owner::take(&directories.run, &holder, Duration::ZERO) else { continue };
        let recovery = recover::recover(&directories, &boot);
        if recovery.left.is_empty() {
            remove(&directories);
        }
        all.undone.extend(recovery.undone);
        all.left.extend(recovery.left);
        drop(owner);
    }
    all
}

fn names(directory: &PathBuf) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.retain(|name| name.strip_prefix(NAME).is_some_and(|pid| pid.parse::<u32>().is_ok()));
    names
}
