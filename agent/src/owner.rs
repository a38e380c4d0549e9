//! One owner a host: whoever holds the lock on the owner file may change it, and clears up after the one before.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use firedrill_model::facts::ProcessRef;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::host::{process, wait_until};

/// Who owns the host, as the owner file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// What it does: `run lose-one-web`.
    pub what: String,
    /// When it began: clock ticks since boot, as in `/proc/PID/stat`. With the pid it names one process for ever.
    #[serde(default)]
    pub started: u64,
    /// Whether it only clears up after another. Such a one is waited for, and never stopped.
    #[serde(default)]
    pub clears_up: bool,
}

impl Holder {
    /// This process, which changes the host. `what` tells people what for.
    pub fn this(what: &str) -> Self {
        let pid = std::process::id();
        let started = process::stat(pid.cast_signed()).map(|s| s.process.started).unwrap_or_default();
        Self { pid, what: what.to_owned(), started, clears_up: false }
    }

    /// This process, which undoes what another left.
    pub fn clearing_up(what: &str) -> Self {
        Self { clears_up: true, ..Self::this(what) }
    }

    /// The process, as others may find and signal it.
    pub fn process(&self) -> ProcessRef {
        ProcessRef { pid: self.pid.cast_signed(), started: self.started, comm: String::new() }
    }
}

/// Why ownership was not had.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    /// Somebody else has it.
    #[error("this host is busy: process {} holds it for `{}`; wait for it, or stop it with Ctrl-C", .0.pid, .0.what)]
    Taken(Holder),
    /// The lock file cannot be used.
    #[error("the owner lock in {directory}: {source}; are you root?")]
    Io {
        /// Its directory.
        directory: String,
        /// The error.
        source: io::Error,
    },
}

/// Ownership of the host; ends when dropped, and with the process.
#[derive(Debug)]
pub struct Owner {
    _lock: Flock<File>,
}

impl Owner {
    /// Takes ownership, waiting up to `patience` for a guardian that is about to finish.
    ///
    /// # Errors
    /// Somebody else has it, or the lock file cannot be used.
    pub fn take(directory: &Path, holder: &Holder, patience: Duration) -> Result<Self, OwnerError> {
        let fail = |source| OwnerError::Io { directory: directory.display().to_string(), source };
        fs::create_dir_all(directory).map_err(fail)?;
        let path = directory.join("owner");
        let mut file =
            Some(OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(fail)?);
        let mut lock = None;
        let mut failure = None;
        wait_until(patience, || {
            let Some(candidate) = file.take() else { return true };
            match Flock::lock(candidate, FlockArg::LockExclusiveNonblock) {
                Ok(held) => lock = Some(held),
                Err((back, Errno::EWOULDBLOCK)) => file = Some(back),
                Err((_, e)) => failure = Some(e),
            }
            lock.is_some() || failure.is_some()
        });
        if let Some(e) = failure {
            return Err(fail(e.into()));
        }
        let Some(mut lock) = lock else {
            return Err(OwnerError::Taken(current(directory).unwrap_or(Holder {
                pid: 0,
                what: "an unknown run".into(),
                started: 0,
                clears_up: false,
            })));
        };
        let text = serde_json::to_string(holder).map_err(|e| fail(io::Error::other(e)))?;
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(text.as_bytes())).map_err(fail)?;
        Ok(Self { _lock: lock })
    }
}

/// Who owns the host right now; `None` when nobody does.
pub fn current(directory: &Path) -> Option<Holder> {
    let mut file = File::open(directory.join("owner")).ok()?;
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        // The lock is free: what the file says is history.
        Ok(_) => None,
        Err(_) => serde_json::from_str(&text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(what: &str) -> Holder {
        Holder::this(what)
    }

    #[test]
    fn a_second_owner_is_refused_with_the_name_of_the_first_and_welcome_after_it() {
        let directory = std::env::temp_dir().join(format!("firedrill-owner-{}", std::process::id()));
        let first = Owner::take(&directory, &holder("run a"), Duration::ZERO).expect("free");
        assert_eq!(current(&directory).map(|h| h.what), Some("run a".into()));
        let refused = Owner::take(&directory, &holder("run b"), Duration::ZERO).expect_err("taken");
        assert!(refused.to_string().contains("`run a`"), "{refused}");
        drop(first);
        assert_eq!(current(&directory), None);
        Owner::take(&directory, &holder("run b"), Duration::ZERO).expect("free again");
        let _ = fs::remove_dir_all(&directory);
    }
}
