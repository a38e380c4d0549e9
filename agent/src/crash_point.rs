//! Crash points: named places, before and after every write of the journal and every call that changes the kernel's
//! state, at which a test can have a process die as by SIGKILL. They are how it is proven that whatever was done at
//! that instruction is undone. `cargo xtask tidy` refuses such a call of the agent that is not [`around`]ed.
//!
//! A test need not know them: it has a fault injected and reverted once while the points that are passed are
//! [recorded](COUNT), and then lets one process after another [die](AT) at the first, the second … of them. So a new
//! fault, and a new point, are in the test as soon as they exist.
//!
//! The product cannot crash here by accident: the environment is looked at only by [`arm`], which nothing but tests
//! calls. Until then [`pass`] is one relaxed load of a flag, about a nanosecond beside calls that each take
//! microseconds.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, raise};

/// Variable that says who dies where: `agent:17,guardian:3`, counted from 1.
pub const AT: &str = "FIREDRILL_CRASH_AT";
/// Variable that names the file to which every point that is passed is appended, as `agent 12 journal.intent.before`. The
/// number says how many changes have been made before: points with the same one see the same host.
pub const COUNT: &str = "FIREDRILL_CRASH_COUNT";

/// A test has armed this process.
static ARMED: AtomicBool = AtomicBool::new(false);
static WATCH: Mutex<Watch> =
    Mutex::new(Watch { role: String::new(), passed: 0, changes: 0, die_at: None, record: None });

struct Watch {
    role: String,
    passed: u64,
    changes: u64,
    die_at: Option<u64>,
    record: Option<File>,
}

/// Makes a call that changes something, between two crash points: `name.before` and `name.after`.
#[inline]
pub fn around<T>(name: &'static str, change: impl FnOnce() -> T) -> T {
    if !ARMED.load(Ordering::Relaxed) {
        return change();
    }
    reached(name, ".before", 0);
    let result = change();
    reached(name, ".after", 1);
    result
}

/// A crash point between changes, where who is at work becomes another. Does nothing unless a test has armed this
/// process.
#[inline]
pub fn pass(name: &'static str) {
    if ARMED.load(Ordering::Relaxed) {
        reached(name, "", 0);
    }
}

#[cold]
fn reached(name: &'static str, edge: &str, changes: u64) {
    // Points are passed by several threads, and numbered in one order.
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    watch.passed += 1;
    watch.changes += changes;
    let line = format!("{} {} {name}{edge}\n", watch.role, watch.changes);
    if let Some(file) = &mut watch.record {
        // A record that is short of a line makes the test fail, which looks for the place where it made us die.
        let _ = file.write_all(line.as_bytes());
    }
    if watch.die_at == Some(watch.passed) {
        // What SIGKILL leaves is what is wanted: no destructor runs, no buffer is flushed. It cannot fail.
        let _ = raise(Signal::SIGKILL);
    }
}

/// Does to this process, which plays `role`, what the environment says. For tests.
///
/// # Errors
/// The record cannot be opened.
pub fn arm(role: &str) -> std::io::Result<()> {
    let die_at = std::env::var(AT).ok().and_then(|text| number_of(&text, role));
    let record = match std::env::var_os(COUNT) {
        Some(path) => Some(OpenOptions::new().create(true).append(true).open(path)?),
        None => None,
    };
    let armed = die_at.is_some() || record.is_some();
    *WATCH.lock().unwrap_or_else(PoisonError::into_inner) =
        Watch { role: role.to_owned(), passed: 0, changes: 0, die_at, record };
    ARMED.store(armed, Ordering::Relaxed);
    Ok(())
}

/// The point at which `role` dies, from the text of [`AT`].
fn number_of(text: &str, role: &str) -> Option<u64> {
    text.split(',').find_map(|item| item.strip_prefix(role)?.strip_prefix(':')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_finds_its_own_point() {
        let text = "agent:17,guardian:3";
        assert_eq!((number_of(text, "agent"), number_of(text, "guardian")), (Some(17), Some(3)));
        assert_eq!(
            (number_of(text, "recover"), number_of("", "agent"), number_of("agent:x", "agent")),
            (None, None, None)
        );
    }

    #[test]
    fn a_process_that_no_test_has_armed_passes_by() {
        pass("nowhere");
        assert_eq!(around("nothing", || 7), 7);
        assert_eq!(WATCH.lock().expect("not poisoned").passed, 0);
    }
}
