//! Leases: how long each fault may be in force, and what keeps the kernel's own expiry of packet rules with it.
//!
//! A lease ends at the first of the fault's deadline and the last renewal plus the time to live. The owner renews from
//! any thread, without waiting ([`Leases::renew`]). Renewals are honoured on the engine's thread ([`Leases::honour`]), in
//! its loop and at each sign of life (`pulse.rs`), so also while it waits with patience for one slow change: the rules
//! of all others are kept in force meanwhile. A thread that hangs honours nothing, and its rules go quiet in the kernel.
//!
//! A lease that has lapsed is never resumed, however many renewals come after it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::{ChangeError, FaultId};

/// Moves the time at which the kernel ignores one change by itself.
pub trait Expiry: Send {
    /// Moves it to `at`. `false`: not at this moment, ask again soon.
    ///
    /// # Errors
    /// The kernel refuses.
    fn move_to(&self, at: Instant) -> Result<bool, ChangeError>;
}

/// Renewals that wait to be honoured. One a second comes, and several a second are honoured; a thread that is so far
/// behind hangs, and its leases lapse.
const MOST_WAITING: usize = 1024;

/// All leases of an engine. A handle: copies are the same leases.
#[derive(Clone)]
pub struct Leases(Arc<Shared>);

struct Shared {
    ttl: Duration,
    /// When the owner renewed. Never held for long, so that an owner does not wait for the engine.
    renewals: Mutex<Vec<Instant>>,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    leases: Vec<Lease>,
    rules: Vec<Leased>,
    /// Some expiry could not be moved at the last attempt.
    behind: bool,
    failed: Option<ChangeError>,
}

struct Lease {
    fault: FaultId,
    renewed: Instant,
    /// When it ends whatever happens; `None` until all of the fault is in force.
    deadline: Option<Instant>,
}

impl Lease {
    fn ends(&self, ttl: Duration) -> Instant {
        let lapses = self.renewed + ttl;
        self.deadline.map_or(lapses, |deadline| deadline.min(lapses))
    }
}

/// A change that the kernel ignores by itself after a while.
struct Leased {
    change: u64,
    users: Vec<FaultId>,
    expiry: Box<dyn Expiry>,
    /// When it will be, as the kernel was last told.
    told: Instant,
    /// How long it was ignored although its fault went on.
    silent: Duration,
}

impl Leased {
    fn silent(&self, now: Instant) -> Duration {
        self.silent + now.saturating_duration_since(self.told)
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("ttl", &self.0.ttl).finish_non_exhaustive()
    }
}

impl Leases {
    pub(super) fn new(ttl: Duration) -> Self {
        Self(Arc::new(Shared { ttl, renewals: Mutex::default(), table: Mutex::default() }))
    }

    /// How long a lease lasts without a renewal.
    pub fn ttl(&self) -> Duration {
        self.0.ttl
    }

    /// The owner wants all faults to go on, as of `now`. Never waits.
    pub fn renew(&self, now: Instant) {
        let mut waiting = lock(&self.0.renewals);
        if waiting.len() < MOST_WAITING {
            waiting.push(now);
        }
    }

    /// Extends what was renewed in time, in the kernel, too. Called within itself, it does nothing. Cheap when there is
    /// nothing to do.
    pub fn honour(&self, now: Instant) {
        let mut table = match self.0.table.try_lock() {
            Ok(table) => table,
            Err(TryLockError::Poisoned(table)) => table.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let renewals = std::mem::take(&mut *lock(&self.0.renewals));
        if renewals.is_empty() && !table.behind {
            return;
        }
        for at in renewals {
            for lease in table.leases.iter_mut().filter(|lease| at < lease.ends(self.0.ttl)) {
                lease.renewed = lease.renewed.max(at);
            }
        }
        table.tell(self.0.ttl, now);
    }

    /// What went wrong while expiries were moved since the last call.
    pub(super) fn trouble(&self) -> Option<ChangeError> {
        self.table().failed.take()
    }

    /// A fault's lease begins. Its deadline is counted from when all of it is in force.
    pub(super) fn begin(&self, fault: FaultId, now: Instant) {
        self.table().leases.push(Lease { fault, renewed: now, deadline: None });
    }

    /// All of a fault is in force.
    pub(super) fn limit(&self, fault: FaultId, deadline: Instant, now: Instant) {
        let mut table = self.table();
        if let Some(lease) = table.leases.iter_mut().find(|lease| lease.fault == fault) {
            lease.deadline = Some(deadline);
        }
        table.tell(self.0.ttl, now);
    }

    /// When a fault's lease ends as of now; `None` when it has none.
    pub(super) fn ends(&self, fault: FaultId) -> Option<Instant> {
        self.table().leases.iter().find(|lease| lease.fault == fault).map(|lease| lease.ends(self.0.ttl))
    }

    /// When the lease of a fault that is in force ends as of now, and when it ends whatever happens.
    pub(super) fn deadlines(&self, fault: FaultId) -> Option<(Instant, Instant)> {
        let table = self.table();
        let lease = table.leases.iter().find(|lease| lease.fault == fault)?;
        Some((lease.ends(self.0.ttl), lease.deadline?))
    }

    /// A change of a fault is in force, which the kernel ignores from `told` on.
    pub(super) fn hold(&self, change: u64, fault: FaultId, expiry: Box<dyn Expiry>, told: Instant) {
        self.table().rules.push(Leased { change, users: vec![fault], expiry, told, silent: Duration::ZERO });
    }

    /// Another fault needs a change, too.
    pub(super) fn share(&self, change: u64, fault: FaultId) {
        if let Some(rule) = self.table().rules.iter_mut().find(|rule| rule.change == change) {
            rule.users.push(fault);
        }
    }

    /// A change is being undone.
    pub(super) fn release(&self, change: u64) {
        self.table().rules.retain(|rule| rule.change != change);
    }

    /// A fault ends.
    pub(super) fn end(&self, fault: FaultId) {
        let mut table = self.table();
        table.leases.retain(|lease| lease.fault != fault);
        for rule in &mut table.rules {
            rule.users.retain(|user| *user != fault);
        }
    }

    /// How long the kernel has ignored a fault's changes before its deadline; the longest of them.
    pub(super) fn silent(&self, fault: FaultId, now: Instant) -> Duration {
        let table = self.table();
        let deadline = table.leases.iter().find(|lease| lease.fault == fault).and_then(|lease| lease.deadline);
        let now = deadline.map_or(now, |deadline| deadline.min(now));
        let mine = table.rules.iter().filter(|rule| rule.users.contains(&fault));
        mine.map(|rule| rule.silent(now)).max().unwrap_or_default()
    }

    /// The faults with a lease, oldest first.
    pub(super) fn faults(&self) -> Vec<FaultId> {
        self.table().leases.iter().map(|lease| lease.fault).collect()
    }

    /// Those whose lease has ended.
    pub(super) fn over(&self, now: Instant) -> Vec<FaultId> {
        self.table().leases.iter().filter(|lease| now >= lease.ends(self.0.ttl)).map(|lease| lease.fault).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.0.table)
    }
}

impl Table {
    /// Tells the kernel of leases that end at another time than it knows.
    fn tell(&mut self, ttl: Duration, now: Instant) {
        self.behind = false;
        for rule in &mut self.rules {
            let users = self.leases.iter().filter(|lease| rule.users.contains(&lease.fault));
            let Some(until) = users.map(|lease| lease.ends(ttl)).max().filter(|until| *until != rule.told) else {
                continue;
            };
            match rule.expiry.move_to(until) {
                Ok(true) => {
                    rule.silent += until.min(now).saturating_duration_since(rule.told);
                    rule.told = until;
                }
                Ok(false) => self.behind = true,
                Err(error) => self.failed = Some(error),
            }
        }
    }
}

/// Nothing that is guarded here is left half-done by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
