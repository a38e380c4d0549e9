//! The agent: ownership, guardian and engine of one host, behind a handle that can be shared.
//!
//! One thread owns the engine; calls are messages to it and block until answered, so call from a thread that may
//! block. Dropping the last handle reverts everything.

mod core;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use firedrill_model::change::Plan;
use firedrill_model::config::{CapError, Config};
use firedrill_model::facts::{HostFacts, TargetFacts};
use firedrill_model::fault::{Fault, PlanError};
use firedrill_model::receipt::Receipt;
use firedrill_model::run::TargetPlan;

use crate::aftermath;
use crate::dataplane::AttachMode;
use crate::engine::{AppliedChange, ChangeError, Engine, FaultId, Leases, RevertedChange};
use crate::guardian::Guardian;
use crate::halt::{self, Halted};
use crate::host::rights;
use crate::host::{
    self,
    kernel::{self, TooOld},
};
use crate::journal::{Directories, Journal, JournalError};
use crate::local::LocalHost;
use crate::owner::{Holder, Owner, OwnerError};
use crate::pulse;
use crate::recover::Recovery;
use crate::standing::Board;
use crate::target::{Protected, Resolver, TargetError};
use core::Core;

/// An injection may ask for this much more than the cap on its duration: the caller's own end comes first, and the agent
/// ends a fault by itself only when it did not come.
pub const BACKSTOP: Duration = Duration::from_secs(1);

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps its lock and journal.
    pub directories: Directories,
    /// What it is for: `run lose-one-web`. Shown to whoever finds the host busy.
    pub what: String,
    /// Program and arguments that end in [`crate::guardian::main`].
    pub guardian: Vec<OsString>,
    /// A fault that is not renewed for this long is reverted.
    pub lease: Duration,
    /// Where processes of a stage write their output.
    pub log_directory: Option<PathBuf>,
    /// Caps, and what is protected besides what always is.
    pub config: Config,
    /// How names of hosts are looked up.
    pub resolver: Resolver,
    /// How packet programs are attached; the best way that the kernel has when left out.
    pub attach: Option<AttachMode>,
}

impl Options {
    /// The usual options: the guardian is this very program, called with `guardian`.
    pub fn new(what: &str) -> Self {
        Self {
            directories: Directories::default(),
            what: what.to_owned(),
            guardian: vec!["/proc/self/exe".into(), "guardian".into()],
            lease: Duration::from_secs(5),
            log_directory: None,
            config: Config::default(),
            resolver: |_, _| Err("this agent looks up no names of hosts".into()),
            attach: None,
        }
    }
}

/// Why an agent could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] TooOld),
    /// Another owner.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// Somebody halted the host.
    #[error(transparent)]
    Halted(#[from] Halted),
    /// What an earlier owner left could not be undone.
    #[error("an earlier run left something that could not be undone: {}; mend it, then `firedrill recover`", .0.join("; "))]
    LeftOver(Vec<String>),
    /// The guardian could not be started; without it nothing is done.
    #[error("the guardian could not be started, and without it no fault is injected: {0}")]
    Guardian(io::Error),
    /// So few descriptors may be open that a fault would be stuck half-way.
    #[error(
        "this process may hold {0} descriptors, and faults need at least {least}: raise the limit (`ulimit -n`, \
         `LimitNOFILE=`)",
        least = rights::LEAST_DESCRIPTORS
    )]
    Descriptors(u64),
    /// The journal could not be begun.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The engine's thread could not be started.
    #[error("the engine's thread could not be started: {0}")]
    Thread(io::Error),
}

/// Why a fault was not injected. What had been done of it is undone.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// It cannot act on this target.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A cap of this host does not permit it.
    #[error(transparent)]
    Cap(#[from] CapError),
    /// The target has come to hold something protected.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A change failed.
    #[error("{error}")]
    Change {
        /// What failed.
        error: ChangeError,
        /// How the undoing of the changes before it went.
        reverted: Vec<RevertedChange>,
    },
    /// Somebody halted the host.
    #[error(transparent)]
    Halted(#[from] Halted),
    /// The guardian is gone, and another one could not be had.
    #[error("{0}; end the run")]
    Unguarded(String),
    /// The agent is gone.
    #[error("the agent has stopped")]
    Stopped,
}

/// A fault that was injected.
#[derive(Clone, Debug)]
pub struct Injected {
    /// By which it is ended.
    pub id: FaultId,
    /// What was done.
    pub applied: Vec<AppliedChange>,
    /// What the reader should know.
    pub notes: Vec<String>,
}

/// A fault that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Which.
    pub id: FaultId,
    /// Its last receipt; `None` for a stage, which has none.
    pub receipt: Option<Receipt>,
    /// How its changes were undone.
    pub changes: Vec<RevertedChange>,
    /// Whether it ended by itself, because it was not renewed, its time was up or the host was halted.
    pub lapsed: bool,
}

/// What the agent did when it stopped.
#[derive(Clone, Debug, Default)]
pub struct Farewell {
    /// Faults that were still in force, or had ended by themselves without anybody having been told.
    pub ended: Vec<Ended>,
    /// What could not be undone, in all.
    pub left_over: Vec<String>,
}

enum Request {
    Resolve(Box<TargetPlan>, Sender<Result<TargetFacts, TargetError>>),
    Inject(Box<(TargetFacts, Fault)>, Duration, Sender<Result<Injected, InjectError>>),
    Apply(Box<Plan>, Duration, Sender<Result<Injected, InjectError>>),
    Revert(FaultId, Sender<Option<Ended>>),
    RevertAll(Sender<Vec<Ended>>),
    Receipts(Sender<Vec<(FaultId, Receipt)>>),
    Renew(Sender<Result<Vec<Ended>, String>>),
    LeftOver(Sender<Vec<String>>),
    Stop(Sender<Farewell>),
}

/// A handle to the agent of this host.
#[derive(Clone, Debug)]
pub struct Agent {
    requests: Sender<Request>,
    leases: Leases,
    host: HostFacts,
    recovery: Recovery,
    thread: Arc<Joiner>,
}

/// Waits for the engine's thread when the last handle goes, so that nothing is in force after it.
#[derive(Debug)]
struct Joiner(Mutex<Option<(Sender<Request>, JoinHandle<()>)>>);

impl Drop for Joiner {
    fn drop(&mut self) {
        if let Some((requests, thread)) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let (answer, _) = channel();
            let _ = requests.send(Request::Stop(answer));
            let _ = thread.join();
        }
    }
}

impl Agent {
    /// Becomes the owner of the host, undoes what an earlier owner left, and starts guardian and engine.
    ///
    /// # Errors
    /// The host is busy, could not be cleaned, or cannot be guarded.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let Options { directories, what, guardian, lease, log_directory, config, resolver, attach } = options;
        let mut facts = host::facts();
        facts.tcx = attach.map_or(facts.tcx, |mode| mode == AttachMode::Tcx);
        kernel::check(&facts.kernel)?;
        let descriptors = rights::raise_descriptors().unwrap_or(rights::LEAST_DESCRIPTORS);
        if descriptors < rights::LEAST_DESCRIPTORS {
            return Err(StartError::Descriptors(descriptors));
        }
        // A guardian that is just clearing up holds the lock for a moment.
        let owner = Owner::take(&directories.run, &Holder::this(&what), Duration::from_secs(2))?;
        // Only now: a halt that is under way holds the lock, too.
        halt::check(&directories.run)?;
        let recovery = aftermath::clear_up(&directories, &facts.boot_id, &owner, "it was killed", &format!("`{what}`"));
        if owner.dead().is_none() && recovery == Recovery::default() {
            aftermath::forget(&directories.run);
        }
        if !recovery.left.is_empty() {
            return Err(StartError::LeftOver(recovery.left));
        }
        // Before any eBPF descriptor is opened: nothing of ours may live on in the guardian.
        let command = guardian;
        let guardian = Guardian::start(&command, &directories).map_err(StartError::Guardian)?;
        let journal = Journal::begin(&directories, &facts.boot_id)?;
        let board = Board::new(&directories.run);
        let protected = Protected::new(Some(guardian.pid()), &config.protect);
        let engine = Engine::new(LocalHost::new(facts.clone(), protected.clone(), log_directory), journal, lease);
        let core = Core {
            engine,
            owner,
            guardian: Some(guardian),
            guardian_command: command,
            unguarded: None,
            host: facts.clone(),
            protected,
            resolver,
            config,
            faults: Vec::new(),
            lapsed: Vec::new(),
            board,
            directories,
            halted: None,
        };
        let leases = core.engine.leases().clone();
        let (requests, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("fd-engine".into())
            .spawn(move || {
                core.run(&inbox);
                pulse::end();
            })
            .map_err(StartError::Thread)?;
        let joiner = Joiner(Mutex::new(Some((requests.clone(), thread))));
        Ok(Self { requests, leases, host: facts, recovery, thread: Arc::new(joiner) })
    }

    /// The host's facts.
    pub fn host(&self) -> &HostFacts {
        &self.host
    }

    /// What was undone of an earlier owner's.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Finds a target.
    ///
    /// # Errors
    /// Nothing or something protected matched; nothing was touched.
    pub fn resolve(&self, plan: &TargetPlan) -> Result<TargetFacts, TargetError> {
        let stopped = || TargetError::Io { what: plan.name.clone(), source: io::Error::other("the agent has stopped") };
        self.ask(|answer| Request::Resolve(Box::new(plan.clone()), answer)).ok_or_else(stopped)?
    }

    /// Injects a fault for at most `lasts`.
    ///
    /// # Errors
    /// It cannot act on the target, or a change failed; nothing of it is left in force.
    pub fn inject(&self, target: &TargetFacts, fault: &Fault, lasts: Duration) -> Result<Injected, InjectError> {
        self.ask(|answer| Request::Inject(Box::new((target.clone(), fault.clone())), lasts, answer))
            .ok_or(InjectError::Stopped)?
    }

    /// Applies a plan that is no fault, such as a stage, for at most `lasts`. It must be renewed like one.
    ///
    /// # Errors
    /// A change failed; nothing of it is left in force.
    pub fn apply(&self, plan: &Plan, lasts: Duration) -> Result<Injected, InjectError> {
        self.ask(|answer| Request::Apply(Box::new(plan.clone()), lasts, answer)).ok_or(InjectError::Stopped)?
    }

    /// Ends a fault; `None` when it had ended already.
    pub fn revert(&self, id: FaultId) -> Option<Ended> {
        self.ask(|answer| Request::Revert(id, answer)).flatten()
    }

    /// Ends every fault, the youngest first. Those that have ended by themselves since the last renewal are told of, too.
    pub fn revert_all(&self) -> Vec<Ended> {
        self.ask(Request::RevertAll).unwrap_or_default()
    }

    /// The receipts of all faults in force, so far.
    pub fn receipts(&self) -> Vec<(FaultId, Receipt)> {
        self.ask(Request::Receipts).unwrap_or_default()
    }

    /// Renews every lease, at once and until it returns: the answer may have to wait behind a unit that is slow to stop.
    /// Gives the faults that have ended by themselves since the last call.
    ///
    /// # Errors
    /// A lease could not be renewed, the guardian could not be replaced, the host was halted, or the agent has stopped:
    /// the faults must be ended.
    pub fn renew(&self) -> Result<Vec<Ended>, String> {
        let stopped = || "the agent has stopped".to_owned();
        let (answer, reply) = channel();
        self.leases.renew(Instant::now());
        self.requests.send(Request::Renew(answer)).map_err(|_| stopped())?;
        loop {
            match reply.recv_timeout(self.leases.ttl() / 4) {
                Ok(renewed) => return renewed,
                Err(RecvTimeoutError::Timeout) => self.leases.renew(Instant::now()),
                Err(RecvTimeoutError::Disconnected) => return Err(stopped()),
            }
        }
    }

    /// What could not be undone so far.
    pub fn left_over(&self) -> Vec<String> {
        self.ask(Request::LeftOver).unwrap_or_default()
    }

    /// Ends everything, lets the guardian go and gives up ownership.
    pub fn stop(&self) -> Farewell {
        let farewell = self.ask(Request::Stop).unwrap_or_default();
        if let Some((_, thread)) = self.thread.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
        farewell
    }

    fn ask<T>(&self, request: impl FnOnce(Sender<T>) -> Request) -> Option<T> {
        let (answer, reply) = channel();
        self.requests.send(request(answer)).ok()?;
        reply.recv().ok()
    }
}
