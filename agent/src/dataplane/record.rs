//! What the lines of a data plane know about a rule: what to do with its packets, and what was done with them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{histogram::Recorder, shape::Shape};

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
    /// The delays of those that were held.
    pub delays: Recorder,
    shape: Mutex<Shape>,
}

impl Record {
    /// A rule that does nothing yet.
    pub(super) fn new(number: u32, expires_ns: u64) -> Self {
        Self {
            number,
            expires_ns: AtomicU64::new(expires_ns),
            overflowed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            delays: Recorder::new(),
            shape: Mutex::new(Shape::default()),
        }
    }

    /// What is done with its packets.
    pub(super) fn shape(&self) -> MutexGuard<'_, Shape> {
        self.shape.lock().unwrap_or_else(PoisonError::into_inner)
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
