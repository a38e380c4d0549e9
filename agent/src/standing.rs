//! What is in force, for people: a small file beside the journal, which knows changes but not faults, times and receipts.
//! Nothing depends on it.
//!
//! The owner writes it when a fault begins or ends and about once a second while one is in force, and removes it at
//! its end. It is replaced as a whole, so a reader never sees half of it. A dead owner's stays until somebody has cleared
//! up after it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use firedrill_model::receipt::Receipt;
use serde::{Deserialize, Serialize};

use crate::sys;

/// How often receipts are written down while a fault is in force.
const EVERY: Duration = Duration::from_secs(1);

/// A fault in force. Times are of `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Its name.
    pub fault: String,
    /// Its target's name.
    pub target: String,
    /// When it came into force.
    pub since_ns: u64,
    /// When it ends unless its owner renews it. It does so each second.
    pub lease_ns: u64,
    /// When it ends whatever happens.
    pub ends_ns: u64,
    /// What it has done so far.
    pub receipt: Receipt,
}

/// All faults in force, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// That moment (`CLOCK_MONOTONIC`, nanoseconds).
    pub at_ns: u64,
    /// The faults, the oldest first.
    pub faults: Vec<Standing>,
}

impl Account {
    /// How old it is.
    pub fn age(&self) -> Duration {
        Duration::from_nanos(sys::clock::monotonic_ns().saturating_sub(self.at_ns))
    }
}

impl Standing {
    /// How long it has been in force.
    pub fn lasts(&self) -> Duration {
        Duration::from_nanos(sys::clock::monotonic_ns().saturating_sub(self.since_ns))
    }

    /// How long it goes on if it is not renewed any more.
    pub fn lease(&self) -> Duration {
        remaining(self.lease_ns.min(self.ends_ns))
    }

    /// How long it still lasts at most.
    pub fn remaining(&self) -> Duration {
        remaining(self.ends_ns)
    }
}

fn remaining(ns: u64) -> Duration {
    Duration::from_nanos(ns.saturating_sub(sys::clock::monotonic_ns()))
}

/// A moment of the near future or past as the file has it.
pub(crate) fn ns(at: Instant) -> u64 {
    let now = Instant::now();
    let apart = |span: Duration| u64::try_from(span.as_nanos()).unwrap_or(u64::MAX / 2);
    let then = sys::clock::monotonic_ns().saturating_add(apart(at.saturating_duration_since(now)));
    then.saturating_sub(apart(now.saturating_duration_since(at)))
}

fn path(run: &Path) -> PathBuf {
    run.join("standing.json")
}

/// The owner's side of the file.
#[derive(Debug)]
pub(crate) struct Board {
    run: PathBuf,
    told: Instant,
    empty: bool,
}

impl Board {
    /// A file with nothing in force.
    pub(crate) fn new(run: &Path) -> Self {
        forget(run);
        Self { run: run.to_owned(), told: Instant::now(), empty: true }
    }

    /// Whether what it says of the faults in force is old.
    pub(crate) fn is_due(&self) -> bool {
        !self.empty && self.told.elapsed() >= EVERY
    }

    /// Replaces the file. A fault does not fail because it cannot be shown.
    pub(crate) fn tell(&mut self, faults: Vec<Standing>) {
        self.told = Instant::now();
        self.empty = faults.is_empty();
        if self.empty {
            return forget(&self.run);
        }
        let new = self.run.join("standing.json.new");
        let account = Account { at_ns: sys::clock::monotonic_ns(), faults };
        // No crash points: nothing is undone from it, and as it is written while time passes they could not be numbered.
        if let Ok(text) = serde_json::to_vec(&account)
            && fs::write(&new, text).is_ok()
        {
            let _ = fs::rename(&new, path(&self.run)); // no crash point, either
        }
    }
}

/// Removes the file: nothing is in force.
pub(crate) fn forget(run: &Path) {
    // Without crash points, as it is written. The second is of an owner that was killed while it wrote.
    let _ = fs::remove_file(path(run));
    let _ = fs::remove_file(run.join("standing.json.new"));
}

/// The faults in force, as the owner of the host has told last, living or dead.
pub fn read(run: &Path) -> Account {
    fs::read(path(run)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    use firedrill_model::receipt::Effect;

    fn fault(lease: Duration, ends: Duration) -> Standing {
        let receipt = Receipt {
            fault: "loss".into(),
            target: "netns blue".into(),
            effect: Effect::ArmedNoTraffic,
            says: "nothing came by".into(),
            lines: Vec::new(),
            measured: Vec::new(),
        };
        let now = Instant::now();
        let (since_ns, lease_ns, ends_ns) = (ns(now), ns(now + lease), ns(now + ends));
        Standing { fault: "loss".into(), target: "netns blue".into(), since_ns, lease_ns, ends_ns, receipt }
    }

    #[test]
    fn what_is_in_force_is_read_as_it_was_told_and_then_forgotten() {
        let run = std::env::temp_dir().join(format!("firedrill-standing-{}", std::process::id()));
        fs::create_dir_all(&run).expect("a folder");
        assert_eq!(read(&run), Account::default());
        let mut board = Board::new(&run);
        assert!(!board.is_due(), "with nothing in force there is nothing to write");
        let fault = fault(Duration::from_secs(5), Duration::from_secs(60));
        board.tell(vec![fault.clone()]);
        let account = read(&run);
        assert_eq!(account.faults, [fault]);
        assert!(account.age() < Duration::from_secs(10), "{:?}", account.age());
        assert!(!board.is_due(), "it was told just now");
        board.told -= EVERY;
        assert!(board.is_due());
        board.tell(Vec::new());
        assert_eq!((read(&run), fs::read_dir(&run).expect("there").count()), (Account::default(), 0));
        let _ = fs::remove_dir_all(&run);
    }

    #[test]
    fn a_reader_never_sees_half_of_it() {
        let run = std::env::temp_dir().join(format!("firedrill-standing-whole-{}", std::process::id()));
        fs::create_dir_all(&run).expect("a folder");
        let mut board = Board::new(&run);
        let one = fault(Duration::from_secs(5), Duration::from_secs(60));
        board.tell(vec![one.clone()]);
        let reader = {
            let run = run.clone();
            std::thread::spawn(move || {
                (0..2000).map(|_| read(&run).faults.len()).filter(|n| !(1..=50).contains(n)).count()
            })
        };
        for n in (1..=50).cycle().take(500) {
            board.tell(vec![one.clone(); n]);
        }
        assert_eq!(reader.join().expect("reads"), 0);
        let _ = fs::remove_dir_all(&run);
    }

    #[test]
    fn a_lease_never_outlasts_the_end_and_what_is_over_has_nothing_left() {
        let short = fault(Duration::from_secs(50), Duration::from_secs(9));
        assert!(short.lease() <= Duration::from_secs(9) && short.remaining() > Duration::from_secs(1), "{short:?}");
        let over = Standing { ends_ns: 1, ..short };
        assert_eq!((over.remaining(), over.lease()), (Duration::ZERO, Duration::ZERO));
    }
}
