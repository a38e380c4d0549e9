//! What the lines of a data plane know about a rule: what to do with its packets, and what was done with them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    histogram::Recorder,
    shape::{Shape, Shaper},
};

/// One rule that holds packets.
#[derive(Debug)]
pub(super) struct Record {
    /// Its number in the kernel.
    pub number: u32,
    /// As in the kernel's rule: packets are held no longer.
    pub expires_ns: AtomicU64,
    /// Packets that did not fit and went on undelayed.
    pub overflowed: AtomicU64,
    /// Packets that could not be written back.
    pub lost: AtomicU64,
    /// Packets that it changed, answered, held up for others or put behind them.
    pub acted: AtomicU64,
    /// Of those, packets of TCP that it answered with a reset.
    pub resets: AtomicU64,
    /// Packets that found no room in its queue, or that it swallowed.
    pub dropped: AtomicU64,
    /// Bytes on the link of packets that left while others waited, and the time that they took.
    pub limited_bytes: AtomicU64,
    /// Nanoseconds.
    pub limited_ns: AtomicU64,
    /// When the last of its packets left, nanoseconds.
    pub last_sent_ns: AtomicU64,
    /// The delays of those that were held.
    pub delays: Recorder,
    shaper: Mutex<Shaper>,
}

impl Record {
    /// A rule that does nothing yet.
    pub(super) fn new(number: u32, expires_ns: u64) -> Self {
        Self {
            number,
            expires_ns: AtomicU64::new(expires_ns),
            overflowed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            acted: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            limited_bytes: AtomicU64::new(0),
            limited_ns: AtomicU64::new(0),
            last_sent_ns: AtomicU64::new(0),
            delays: Recorder::new(),
            shaper: Mutex::default(),
        }
    }

    /// Decides what is done with its packets.
    pub(super) fn shaper(&self) -> MutexGuard<'_, Shaper> {
        self.shaper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this with its packets from now on.
    pub(super) fn set_shape(&self, shape: Shape) {
        self.shaper().set(shape);
    }

    /// Counts a packet that left; `queued` if it had to wait for others.
    pub(super) fn sent(&self, now_ns: u64, bytes: u64, queued: bool) {
        let before_ns = self.last_sent_ns.swap(now_ns, Relaxed);
        if queued && before_ns != 0 {
            self.limited_bytes.fetch_add(bytes, Relaxed);
            self.limited_ns.fetch_add(now_ns.saturating_sub(before_ns), Relaxed);
        }
    }

    /// Whether it is over.
    pub(super) fn is_over(&self, now_ns: u64) -> bool {
        self.expires_ns.load(Relaxed) <= now_ns
    }
}

/// The records of all rules in force that hold packets, by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Records(Arc<Mutex<HashMap<u32, Arc<Record>>>>);

impl Records {
    fn all(&self) -> MutexGuard<'_, HashMap<u32, Arc<Record>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one.
    pub(super) fn begin(&self, record: Arc<Record>) {
        self.all().insert(record.number, record);
    }

    /// Finds one.
    pub(super) fn get(&self, number: u32) -> Option<Arc<Record>> {
        self.all().get(&number).cloned()
    }

    /// Forgets one.
    pub(super) fn end(&self, number: u32) {
        self.all().remove(&number);
    }
}
