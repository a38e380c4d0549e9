//! The agent: ownership, guardian and engine of one host, behind a handle that can be shared.
//!
//! One thread owns the engine; calls are messages to it and block until answered, so call from a thread that may
//! block. Dropping the last handle reverts everything.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use firedrill_model::change::Plan;
use firedrill_model::config::{CapError, Config, Held};
use firedrill_model::facts::{FactsSnapshot, HostFacts, TargetFacts};
use firedrill_model::fault::{Fault, PlanError};
use firedrill_model::fight::Hold;
use firedrill_model::receipt::{Measured, Receipt};
use firedrill_model::run::TargetPlan;
use firedrill_model::units::Span;

use crate::aftermath;
use crate::dataplane::AttachMode;
use crate::engine::{AppliedChange, ChangeError, Engine, FaultId, Leases, Reverted, RevertedChange};
use crate::guardian::{Guardian, Watch};
use crate::halt::{self, Halted};
use crate::host::rights;
use crate::host::{
    self, cgroup,
    kernel::{self, TooOld},
};
use crate::journal::{Directories, Journal, JournalError};
use crate::local::LocalHost;
use crate::owner::{Holder, Owner, OwnerError};
use crate::pulse;
use crate::recover::Recovery;
use crate::standing::{self, Board, Standing};
use crate::target::{self, Protected, TargetError};

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
        let Options { directories, what, guardian, lease, log_directory, config, attach } = options;
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

/// A fault or stage in force.
struct InForce {
    id: FaultId,
    /// The fault and its target; `None` for a stage.
    fault: Option<Box<(Fault, TargetFacts)>>,
    /// What it holds of the life of processes.
    hold: Option<Hold>,
    /// When it came into force.
    since: Instant,
}

impl InForce {
    /// What it is, for whoever finds something held by it.
    fn name(&self) -> String {
        match self.fault.as_deref() {
            Some((fault, target)) => format!("`{}` on {}, of this run", fault.name(), target.name),
            None => "a stage of this run".to_owned(),
        }
    }
}

/// What the engine's thread owns.
struct Core {
    engine: Engine<LocalHost>,
    owner: Owner,
    guardian: Option<Guardian>,
    guardian_command: Vec<OsString>,
    /// Why there is no guardian any more. Then nothing is in force.
    unguarded: Option<String>,
    host: HostFacts,
    protected: Protected,
    config: Config,
    faults: Vec<InForce>,
    lapsed: Vec<Ended>,
    /// Tells other processes what is in force.
    board: Board,
    /// Where lock, journal and the sign of a halt are.
    directories: Directories,
    /// Once halted, an agent begins nothing any more, whether or not the sign is taken away.
    halted: Option<Halted>,
}

impl Core {
    /// Answers requests until told to stop. A caller that did not wait for its answer is no reason to stop.
    fn run(mut self, inbox: &Receiver<Request>) {
        const TICK: Duration = Duration::from_millis(50);
        self.feel_pulse();
        loop {
            let mut next = inbox.recv_timeout(TICK);
            // All that waits is answered before the leases are looked at: a renewal may have been waiting behind a
            // slow stop of a unit.
            loop {
                match next {
                    Ok(Request::Stop(answer)) => {
                        let _ = answer.send(self.finish());
                        return;
                    }
                    Ok(request) => self.answer(request),
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        self.finish();
                        return;
                    }
                }
                next = inbox.try_recv().map_err(|e| match e {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                });
            }
            pulse::beat();
            for reverted in self.engine.tick() {
                let ended = self.ended(reverted);
                self.lapsed.push(ended);
            }
            self.look_for_halt();
            self.look_after_guardian();
            if self.board.is_due() {
                self.tell_standing();
            }
        }
    }

    fn look_for_halt(&mut self) {
        if self.halted.is_none()
            && let Err(halted) = halt::check(&self.directories.run)
        {
            self.halted = Some(halted);
            let ended = self.revert_all();
            self.lapsed = ended.into_iter().map(|e| Ended { lapsed: true, ..e }).collect();
        }
    }

    fn answer(&mut self, request: Request) {
        pulse::beat();
        match request {
            Request::Resolve(plan, answer) => {
                let _ = answer.send(target::resolve(&plan, &self.host, &self.protected));
            }
            Request::Inject(what, lasts, answer) => {
                let (target, fault) = *what;
                let _ = answer.send(self.inject(target, fault, lasts));
            }
            Request::Apply(plan, lasts, answer) => {
                let _ = answer.send(self.apply(&plan, lasts, None, None));
            }
            Request::Revert(id, answer) => {
                let known = self.faults.iter().any(|f| f.id == id);
                let _ = answer.send(known.then(|| self.revert(id)));
            }
            Request::RevertAll(answer) => {
                let _ = answer.send(self.revert_all());
            }
            Request::Receipts(answer) => {
                let engine = &mut self.engine;
                let receipts = self.faults.iter().filter_map(|f| {
                    let (fault, target) = f.fault.as_deref()?;
                    let measured = engine.measure(f.id);
                    Some((f.id, receipt(fault, &target.name, measured, engine.silent(f.id))))
                });
                let _ = answer.send(receipts.collect());
            }
            Request::Renew(answer) => {
                let _ = answer.send(self.renew());
            }
            Request::LeftOver(answer) => {
                let _ = answer.send(self.engine.left_over().to_vec());
            }
            // Answered by `run`, which ends with it.
            Request::Stop(_) => {}
        }
    }

    fn inject(&mut self, target: TargetFacts, fault: Fault, lasts: Duration) -> Result<Injected, InjectError> {
        self.is_permitted(&target, lasts)?;
        let facts = FactsSnapshot { host: self.host.clone(), target };
        let plan = fault.plan(&facts)?;
        let hold = Hold::of(&facts.target, &plan);
        if let Some(holder) = self.holder(&plan, hold.as_ref()) {
            let what = format!("`{}` on {}", fault.name(), facts.target.name);
            let error = ChangeError::Taken { what, holder: holder.name() };
            return Err(InjectError::Change { error, reverted: Vec::new() });
        }
        self.apply(&plan, lasts, Some(Box::new((fault, facts.target))), hold)
    }

    /// Asked for the target as it is now: a group may have got a member since it was resolved.
    fn is_permitted(&self, target: &TargetFacts, lasts: Duration) -> Result<(), InjectError> {
        let held: Vec<Held<'_>> = self.faults.iter().filter_map(|f| Some(f.fault.as_deref()?.1.held())).collect();
        self.config.permits(&held, target.held(), lasts.saturating_sub(BACKSTOP))?;
        let mut now = target.clone();
        if let Some(group) = &target.cgroup {
            now.processes = cgroup::processes(group);
        }
        self.protected.admit(now, &target.lifted, &self.host)?;
        Ok(())
    }

    /// The fault in force that has what a plan needs for itself, or with which it would fight.
    fn holder(&self, plan: &Plan, hold: Option<&Hold>) -> Option<&InForce> {
        let same = self.engine.holder(plan);
        let fights = |f: &InForce, hold: &Hold| {
            f.hold.clone().is_some_and(|other| {
                let group = other.group().and_then(|path| cgroup::at(Path::new(path)).ok());
                let members = group.map(|group| cgroup::processes(&group)).unwrap_or_default();
                other.with(&members).fights(hold)
            })
        };
        self.faults.iter().find(|f| Some(f.id) == same || hold.is_some_and(|hold| fights(f, hold)))
    }

    fn apply(
        &mut self,
        plan: &Plan,
        lasts: Duration,
        fault: Option<Box<(Fault, TargetFacts)>>,
        hold: Option<Hold>,
    ) -> Result<Injected, InjectError> {
        self.look_after_guardian();
        if let Some(why) = &self.unguarded {
            return Err(InjectError::Unguarded(why.clone()));
        }
        // The sign may be there since the last tick.
        self.look_for_halt();
        if let Some(halted) = &self.halted {
            return Err(halted.clone().into());
        }
        match self.engine.apply(plan, lasts) {
            Ok((id, applied)) => {
                self.faults.push(InForce { id, fault, hold, since: Instant::now() });
                self.tell_standing();
                Ok(Injected { id, applied, notes: plan.notes.clone() })
            }
            Err((error, reverted)) => Err(InjectError::Change { error, reverted: reverted.changes }),
        }
    }

    fn renew(&mut self) -> Result<Vec<Ended>, String> {
        self.look_after_guardian();
        if let Some(why) = &self.unguarded {
            return Err(why.clone());
        }
        if let Some(halted) = &self.halted {
            return Err(halted.to_string());
        }
        if let Some(why) = self.engine.journal_failure() {
            return Err(format!("{why}; what is not recorded cannot be kept in force"));
        }
        self.engine.honour().map_err(|e| format!("a lease could not be renewed: {e}"))?;
        Ok(std::mem::take(&mut self.lapsed))
    }

    /// From now on each sign of life of this thread reaches the guardian, and honours the renewals that wait.
    fn feel_pulse(&mut self) {
        let leases = self.engine.leases().clone();
        match self.guardian.as_ref().map(Guardian::pulse) {
            Some(Ok(mut tell)) => pulse::set(move || {
                tell();
                leases.honour(Instant::now());
            }),
            // Without a sign of life it would kill us.
            Some(Err(e)) => self.go_unguarded(&format!("the guardian cannot be told that we live: {e}")),
            None => {}
        }
    }

    /// Replaces a guardian that has died or does not answer. Without one, nothing stays in force.
    fn look_after_guardian(&mut self) {
        let Some(guardian) = &mut self.guardian else { return };
        let fate = match guardian.look() {
            Watch::Kept => return,
            Watch::Dead => "has died",
            Watch::Deaf => "does not answer",
        };
        tracing::warn!("the guardian {fate}; another one takes its place");
        match Guardian::start(&self.guardian_command, &self.directories) {
            Ok(next) => {
                self.protected = Protected::new(Some(next.pid()), &self.config.protect);
                self.engine.host().protect(self.protected.clone());
                let last = self.guardian.replace(next);
                self.feel_pulse();
                // Only now: there was never a moment without one.
                if let Some(last) = last {
                    last.dismiss_deaf();
                }
            }
            Err(e) => self.go_unguarded(&format!("the guardian {fate}, and another one could not be started: {e}")),
        }
    }

    fn go_unguarded(&mut self, why: &str) {
        self.unguarded = Some(format!("{why}; without it no fault stays in force"));
        let ended = self.revert_all();
        self.lapsed = ended.into_iter().map(|e| Ended { lapsed: true, ..e }).collect();
        if let Some(last) = self.guardian.take() {
            last.dismiss_deaf();
        }
    }

    fn revert(&mut self, id: FaultId) -> Ended {
        let reverted = self.engine.revert(id);
        self.ended(reverted)
    }

    fn revert_all(&mut self) -> Vec<Ended> {
        let reverted = self.engine.revert_all();
        let mut all = std::mem::take(&mut self.lapsed);
        all.extend(reverted.into_iter().map(|r| self.ended(r)));
        all
    }

    fn ended(&mut self, reverted: Reverted) -> Ended {
        let at = self.faults.iter().position(|f| f.id == reverted.fault);
        let fault = at.map(|at| self.faults.remove(at)).and_then(|f| f.fault);
        self.tell_standing();
        let receipt = fault.map(|it| receipt(&it.0, &it.1.name, reverted.measured, reverted.silent));
        Ended { id: reverted.fault, receipt, changes: reverted.changes, lapsed: reverted.lapsed }
    }

    /// Tells what is in force, for `firedrill status`.
    fn tell_standing(&mut self) {
        let engine = &mut self.engine;
        let standing = self.faults.iter().filter_map(|f| {
            let (fault, target) = f.fault.as_deref()?;
            let (lease, ends) = engine.deadlines(f.id)?;
            Some(Standing {
                fault: fault.name().to_owned(),
                target: target.name.clone(),
                since_ns: standing::ns(f.since),
                lease_ns: standing::ns(lease),
                ends_ns: standing::ns(ends),
                receipt: receipt(fault, &target.name, engine.measure(f.id), engine.silent(f.id)),
            })
        });
        self.board.tell(standing.collect());
    }

    fn finish(&mut self) -> Farewell {
        let ended = self.revert_all();
        let mut left_over = self.engine.left_over().to_vec();
        if let Err(e) = self.engine.end_journal() {
            left_over.push(format!("{e}; all of it was undone, and would be again by the next run"));
        }
        if let Some(guardian) = self.guardian.take()
            && let Err(e) = guardian.dismiss()
        {
            left_over.push(format!("the guardian could not be waited for: {e}"));
        }
        self.board.tell(Vec::new());
        let _owned_until_here = &self.owner;
        Farewell { ended, left_over }
    }
}

/// The least time that rules were ignored in the kernel before their fault ended that a receipt tells of. A lease that
/// lapses is seen some time later.
const SILENCE_TOLD: Duration = Duration::from_millis(250);

fn receipt(fault: &Fault, target: &str, measured: Vec<Measured>, silent: Duration) -> Receipt {
    let mut receipt = fault.receipt(target, measured);
    if silent >= SILENCE_TOLD {
        receipt.was_silent(Span(Duration::from_millis(u64::try_from(silent.as_millis()).unwrap_or(u64::MAX))));
    }
    receipt
}
