//! The engine: applies and reverts changes, journal first.
//!
//! For each change: read the old value → journal the intent with its inverse → apply → journal that it was
//! applied → read back. A revert runs from the record, is idempotent, tries everything, and reports all that
//! failed. What two faults need in common (an attached program, a delay line) is made once and goes with the last.
//! How long a fault may last is the affair of [`lease`].

mod lease;
#[cfg(test)]
mod tests;

use std::io;
use std::time::{Duration, Instant};

use firedrill_model::change::{Change, Plan};
use firedrill_model::receipt::Measured;

use crate::crash_point;
use crate::host::rights;
use crate::journal::{Journal, JournalError};
use crate::undo::{Undo, UndoError};

pub use lease::{Expiry, Leases};

/// The host that changes are made on. The real one is [`crate::local::LocalHost`]; tests have another.
pub trait Host {
    /// What is held while a change is in force.
    type Handle;

    /// Reads what must be known to undo a change. Touches nothing.
    ///
    /// # Errors
    /// The object is gone, or the change would fight with something that is there.
    fn prepare(&mut self, change: &Change) -> Result<Undo, ChangeError>;

    /// Makes a change and reads it back. `expires` is when the kernel shall ignore it by itself, where it can.
    ///
    /// # Errors
    /// What failed; the caller then runs the inverse.
    fn apply(&mut self, change: &Change, expires: Instant) -> Result<Self::Handle, ChangeError>;

    /// What a change has measured so far.
    fn measure(&mut self, change: &Change, handle: &mut Self::Handle) -> Option<Measured>;

    /// What moves the time at which the kernel ignores a change by itself; `None` when it does not.
    fn expiry(&self, handle: &Self::Handle) -> Option<Box<dyn Expiry>>;

    /// Lets go of a change: stops workers, closes descriptors. Its inverse runs right after. Gives the last word of
    /// what it measured, where letting go still adds to it.
    ///
    /// # Errors
    /// Something did not end in order; the inverse runs all the same.
    fn release(&mut self, change: &Change, handle: Self::Handle) -> Result<Option<Measured>, ChangeError>;

    /// Runs an inverse.
    ///
    /// # Errors
    /// What failed, and what is left.
    fn undo(&mut self, undo: &Undo) -> Result<String, UndoError>;

    /// Regular work, some times a second.
    fn tick(&mut self) {}

    /// The monotonic time by which leases are counted.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// Why a change could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The host said no.
    #[error("{what}: {source}{}", rights::hint(source))]
    Failed {
        /// What was tried.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// The data plane said no.
    #[error(transparent)]
    DataPlane(#[from] crate::dataplane::DataPlaneError),
    /// The rules on calls said no.
    #[error(transparent)]
    Calls(#[from] crate::calls::CallsError),
    /// Another fault holds the object.
    #[error("{what} is under another fault already: {holder}")]
    Taken {
        /// The object.
        what: String,
        /// The fault that holds it with its target, the change, or who else.
        holder: String,
    },
    /// It was made, but reading back shows otherwise.
    #[error("{what} had no effect: {seen}")]
    NoEffect {
        /// What was tried.
        what: String,
        /// What was read back.
        seen: String,
    },
    /// The fault's owner did not renew it while its changes before this one were made.
    #[error("the fault was not renewed for {} s while it was being injected, so its lease lapsed", .0.as_secs_f64())]
    Lapsed(Duration),
    /// It could not be recorded, so it was not made, or undone at once.
    #[error("{0}; without a record nothing is changed")]
    Journal(#[from] JournalError),
}

impl ChangeError {
    /// A failure of the host, with what was tried.
    pub fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Failed { what, source }
    }
}

/// A fault in force. Never given twice by one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultId(pub u64);

/// A change that was applied for a fault.
#[derive(Clone, Debug, PartialEq)]
pub struct AppliedChange {
    /// Its number, unique within the run.
    pub number: u64,
    /// The change.
    pub what: Change,
}

/// How the revert of a change went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevertedChange {
    /// Its number.
    pub number: u64,
    /// What was found or done.
    pub note: String,
    /// What failed, and what is left.
    pub error: Option<String>,
}

/// How the revert of a fault went.
#[derive(Clone, Debug, PartialEq)]
pub struct Reverted {
    /// The fault.
    pub fault: FaultId,
    /// Its changes, in the order in which they were undone.
    pub changes: Vec<RevertedChange>,
    /// What its changes measured in all, in the plan's order.
    pub measured: Vec<Measured>,
    /// How long the kernel ignored its packet rules before that, for want of a renewal that was honoured in time.
    pub silent: Duration,
    /// Whether it ended because its lease lapsed, and not by request.
    pub lapsed: bool,
}

/// A change in force, and the faults that need it.
struct Live<H> {
    number: u64,
    what: Change,
    undo: Undo,
    handle: H,
    users: Vec<FaultId>,
}

/// The engine.
pub struct Engine<H: Host> {
    host: H,
    journal: Journal,
    leases: Leases,
    live: Vec<Live<H::Handle>>,
    next: u64,
    left_over: Vec<String>,
}

impl<H: Host> Engine<H> {
    /// An engine on a host with nothing outstanding. A fault that is not renewed for `ttl` is reverted.
    pub fn new(host: H, journal: Journal, ttl: Duration) -> Self {
        Self { host, journal, leases: Leases::new(ttl), live: Vec::new(), next: 1, left_over: Vec::new() }
    }

    /// The leases of its faults.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The host.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// Applies a plan as one fault, for at most `lasts` from when all of it is in force; its lease begins now. When a
    /// change fails, those before it are undone.
    ///
    /// # Errors
    /// The change that failed; with how the undoing of the others went.
    pub fn apply(
        &mut self,
        plan: &Plan,
        lasts: Duration,
    ) -> Result<(FaultId, Vec<AppliedChange>), (ChangeError, Box<Reverted>)> {
        let id = FaultId(self.next);
        self.next += 1;
        self.leases.begin(id, self.host.now());
        let mut applied = Vec::new();
        for change in &plan.changes {
            match self.apply_one(id, change) {
                Ok(Some(number)) => applied.push(AppliedChange { number, what: change.clone() }),
                Ok(None) => {}
                Err(error) => {
                    let reverted = self.revert(id);
                    return Err((error, Box::new(reverted)));
                }
            }
        }
        let now = self.host.now();
        self.leases.limit(id, now + lasts, now);
        Ok((id, applied))
    }

    /// The fault that holds an object which a plan needs for itself.
    pub fn holder(&self, plan: &Plan) -> Option<FaultId> {
        let taken =
            |change: &Change| self.live.iter().find(|l| same_object(&l.what, change) && !is_shared(&l.what, change));
        plan.changes.iter().find_map(taken)?.users.first().copied()
    }

    /// Applies one change; `None` when it is in force already for another fault, which it then shares.
    fn apply_one(&mut self, id: FaultId, change: &Change) -> Result<Option<u64>, ChangeError> {
        if let Some(same) = self.live.iter_mut().find(|l| same_object(&l.what, change)) {
            if is_shared(&same.what, change) {
                same.users.push(id);
                self.leases.share(same.number, id);
                return Ok(None);
            }
            return Err(ChangeError::Taken { what: change.to_string(), holder: same.what.to_string() });
        }
        let undo = self.host.prepare(change)?;
        // An earlier change, such as the stop of a slow unit, may have taken longer than a lease.
        let now = self.host.now();
        self.leases.honour(now);
        let expires = self.leases.ends(id).filter(|ends| now < *ends);
        let expires = expires.ok_or(ChangeError::Lapsed(self.leases.ttl()))?;
        let number = self.journal.intend(change, &undo)?;
        crash_point::pass("change.apply.before");
        let made = self.host.apply(change, expires);
        crash_point::pass("change.apply.after");
        match made {
            Ok(handle) => {
                if let Some(expiry) = self.host.expiry(&handle) {
                    self.leases.hold(number, id, expiry, expires);
                }
                self.live.push(Live { number, what: change.clone(), undo, handle, users: vec![id] });
                // The intent would be enough to undo it, but a journal that cannot be written would not take the next.
                self.journal.applied(number)?;
                Ok(Some(number))
            }
            // It is somebody else's: there is nothing of ours to undo, and undoing would hit theirs.
            Err(error @ ChangeError::Taken { .. }) => {
                self.settle(number, &undo);
                Err(error)
            }
            Err(error) => {
                match self.host.undo(&undo) {
                    Ok(_) => self.settle(number, &undo),
                    Err(left) => self.left_over.push(left.to_string()),
                }
                Err(error)
            }
        }
    }

    /// Records that a change was undone. A failure is not forgotten: see [`Self::journal_failure`], and the end of the
    /// journal, which tells what of it is left.
    fn settle(&mut self, number: u64, undo: &Undo) {
        if let Err(error) = self.journal.reverted(number, undo) {
            tracing::warn!(%error, "it will be looked at again");
        }
    }

    /// Why nothing may stay in force: the journal cannot be written any more.
    pub fn journal_failure(&self) -> Option<&str> {
        self.journal.failure()
    }

    /// What a fault has measured so far, in the plan's order.
    pub fn measure(&mut self, id: FaultId) -> Vec<Measured> {
        let host = &mut self.host;
        let mine = self.live.iter_mut().filter(|l| l.users.contains(&id));
        mine.filter_map(|l| host.measure(&l.what, &mut l.handle)).collect()
    }

    /// When a fault ends unless it is renewed, and when it ends whatever happens; `None` when it has ended.
    pub fn deadlines(&self, id: FaultId) -> Option<(Instant, Instant)> {
        self.leases.deadlines(id)
    }

    /// How long the kernel has ignored the packet rules of a fault that goes on.
    pub fn silent(&self, id: FaultId) -> Duration {
        self.leases.silent(id, self.host.now())
    }

    /// Honours the renewals that wait.
    ///
    /// # Errors
    /// The kernel has refused to move an expiry since the last call; the fault then goes quiet at its old one.
    pub fn honour(&mut self) -> Result<(), ChangeError> {
        self.leases.honour(self.host.now());
        self.leases.trouble().map_or(Ok(()), Err)
    }

    /// Ends a fault: its changes are undone, last first, except those that another fault still needs. Ending a
    /// fault that has ended is nothing.
    pub fn revert(&mut self, id: FaultId) -> Reverted {
        let silent = self.silent(id);
        let mut reverted = Reverted { fault: id, changes: Vec::new(), measured: Vec::new(), silent, lapsed: false };
        self.leases.end(id);
        for i in (0..self.live.len()).rev() {
            let live = &mut self.live[i];
            if !live.users.contains(&id) {
                continue;
            }
            // In reverse; put into the plan's order below.
            let before = self.host.measure(&live.what, &mut live.handle);
            live.users.retain(|user| *user != id);
            let last = if live.users.is_empty() {
                let live = self.live.remove(i);
                let (change, last) = self.revert_one(live);
                reverted.changes.push(change);
                last
            } else {
                None
            };
            reverted.measured.extend(last.or(before));
        }
        reverted.measured.reverse();
        reverted
    }

    fn revert_one(&mut self, live: Live<H::Handle>) -> (RevertedChange, Option<Measured>) {
        let Live { number, what, undo, handle, .. } = live;
        self.leases.release(number);
        crash_point::pass("change.release.before");
        let released = self.host.release(&what, handle);
        crash_point::pass("change.release.after");
        let undone = self.host.undo(&undo);
        crash_point::pass("change.undo.after");
        let (note, mut error) = match undone {
            Ok(note) => {
                self.settle(number, &undo);
                (note, None)
            }
            Err(e) => (String::new(), Some(e.to_string())),
        };
        let last = released.unwrap_or_else(|e| {
            error = Some(error.take().map_or_else(|| e.to_string(), |first| format!("{first}; {e}")));
            None
        });
        self.left_over.extend(error.clone());
        (RevertedChange { number, note, error }, last)
    }

    /// Ends every fault, the youngest first.
    pub fn revert_all(&mut self) -> Vec<Reverted> {
        self.leases.faults().into_iter().rev().map(|id| self.revert(id)).collect()
    }

    /// Regular work: ends faults whose deadline or lease has passed, and lets the host do its own.
    pub fn tick(&mut self) -> Vec<Reverted> {
        self.host.tick();
        let now = self.host.now();
        self.leases.honour(now);
        self.leases.over(now).into_iter().map(|id| Reverted { lapsed: true, ..self.revert(id) }).collect()
    }

    /// What could not be undone so far.
    pub fn left_over(&self) -> &[String] {
        &self.left_over
    }

    /// Whether nothing is in force.
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// Ends the journal, once nothing is in force: with nothing outstanding its files are removed.
    ///
    /// # Errors
    /// A file could not be removed.
    pub fn end_journal(&self) -> Result<(), JournalError> {
        self.journal.end()
    }
}

/// Whether two changes to the same object are one and the same, which several faults may need at once.
fn is_shared(a: &Change, b: &Change) -> bool {
    match (a, b) {
        (Change::Sysctl { value: v, .. }, Change::Sysctl { value: w, .. }) => v == w,
        _ => matches!(a, Change::Attach { .. } | Change::DelayLine { .. } | Change::Tag { .. }),
    }
}

/// Whether two changes are about the same object, and so cannot both be made. Namespaces are compared by inode: one
/// target may have been found by its name, another by a process in it.
fn same_object(a: &Change, b: &Change) -> bool {
    use Change::{
        Attach, CallRule, Command, DelayLine, Freeze, Kill, MakeCgroup, Netns, Proxy, Reset, Rule, StopUnit, Suspend,
        Sysctl, Tag,
    };
    match (a, b) {
        (Rule { .. } | CallRule { .. } | Proxy { .. } | Kill { .. } | Reset { .. }, _) => false,
        (Attach { netns: n, interface: i, direction: d }, Attach { netns: m, interface: j, direction: e })
        | (DelayLine { netns: n, interface: i, direction: d }, DelayLine { netns: m, interface: j, direction: e }) => {
            (n.inode, i.index, d) == (m.inode, j.index, e)
        }
        (Tag { netns: n, sockets: s }, Tag { netns: m, sockets: t }) => (n.inode, s) == (m.inode, t),
        (Sysctl { netns: n, key: k, .. }, Sysctl { netns: m, key: l, .. }) => (n.inode, k) == (m.inode, l),
        (Suspend { process: p }, Suspend { process: q }) => (p.pid, p.started) == (q.pid, q.started),
        (Freeze { cgroup: c }, Freeze { cgroup: d }) => c.id == d.id,
        (StopUnit { unit: u, .. }, StopUnit { unit: v, .. }) => u == v,
        (Command { run: r, .. }, Command { run: s, .. }) => r == s,
        (Netns { name: n }, Netns { name: m }) => n == m,
        (MakeCgroup { path: p }, MakeCgroup { path: q }) => p.trim_matches('/') == q.trim_matches('/'),
        _ => a == b,
    }
}
