//! One owner a host: whoever holds the lock on the owner file may change it, and clears up after the one before.
//!
//! The file says who. It is emptied at an orderly end; so a name in a file that nobody holds is that of one who was killed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use firedrill_model::facts::ProcessRef;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

use crate::crash_point;
use crate::host::{process, wait_until};
use crate::journal::remedy;

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

    /// How long ago its process began; `None` where that cannot be told, or it is of another boot.
    pub fn age(&self) -> Option<Duration> {
        let hertz = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime = Duration::try_from_secs_f64(uptime.split_whitespace().next()?.parse().ok()?).ok()?;
        (self.started > 0).then(|| uptime.checked_sub(Duration::from_secs_f64(self.started as f64 / hertz as f64)))?
    }

    /// One whose name cannot be read. Not to be signalled: nobody has the process number 0.
    fn unknown() -> Self {
        Self { pid: 0, what: "an unknown run".into(), started: 0, clears_up: false }
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
    #[error("the owner lock {path} could not be {what}: {source}{}", remedy(source))]
    Io {
        /// Its file.
        path: String,
        /// What was tried.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
}

/// Ownership of the host; ends when dropped, and with the process.
#[derive(Debug)]
pub struct Owner {
    lock: Flock<File>,
    dead: Option<Holder>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        // A name that stays would only sound as if its process had been killed.
        let _ = crash_point::around("owner.empty", || self.lock.set_len(0));
    }
}

impl Owner {
    /// Takes ownership, waiting up to `patience` for a guardian that is about to finish. Who only clears up needs no room
    /// on the disk for it, nor one that can be written.
    ///
    /// # Errors
    /// Somebody else has it, or the lock file cannot be used.
    pub fn take(directory: &Path, holder: &Holder, patience: Duration) -> Result<Self, OwnerError> {
        let path = directory.join("owner");
        let fail = |what| {
            let path = path.display().to_string();
            move |source| OwnerError::Io { path, what, source }
        };
        crash_point::around("owner.directory", || fs::create_dir_all(directory)).map_err(fail("made"))?;
        let opened = crash_point::around("owner.open", || {
            OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)
        });
        let opened = opened.or_else(|e| if holder.clears_up { File::open(&path).map_err(|_| e) } else { Err(e) });
        let mut file = Some(opened.map_err(fail("opened"))?);
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
            return Err(fail("taken")(e.into()));
        }
        let Some(lock) = lock else {
            return Err(OwnerError::Taken(current(directory).unwrap_or_else(Holder::unknown)));
        };
        let dead = name(&lock);
        let text = serde_json::to_string(holder).map_err(|e| fail("written")(e.into()))?;
        // Written over the old name and then cut, so that whoever reads meanwhile finds a whole one.
        let named = crash_point::around("owner.write", || lock.write_all_at(text.as_bytes(), 0));
        match named.and_then(|()| crash_point::around("owner.cut", || lock.set_len(text.len() as u64))) {
            Err(e) if !holder.clears_up => Err(fail("written")(e)),
            _ => Ok(Self { lock, dead }),
        }
    }

    /// The owner before, if it was killed: after an orderly end there is none.
    pub fn dead(&self) -> Option<&Holder> {
        self.dead.as_ref()
    }
}

/// Who owns the host right now; `None` when nobody does.
pub fn current(directory: &Path) -> Option<Holder> {
    let mut found = Looked::Free(None);
    // The name is written a moment after the lock is taken.
    wait_until(Duration::from_millis(100), || {
        found = look(directory);
        !matches!(found, Looked::Held(None))
    });
    // One that clears up on a full disk could not say who it is.
    if let Looked::Held(holder) = found { Some(holder.unwrap_or_else(Holder::unknown)) } else { None }
}

/// Who owned the host and was killed, and has not been cleared up after; `None` when somebody owns it now.
pub fn dead(directory: &Path) -> Option<Holder> {
    if let Looked::Free(holder) = look(directory) { holder } else { None }
}

/// What an owner file says, and whether somebody holds it.
enum Looked {
    Held(Option<Holder>),
    Free(Option<Holder>),
}

fn look(directory: &Path) -> Looked {
    let Ok(file) = File::open(directory.join("owner")) else { return Looked::Free(None) };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(free) => Looked::Free(name(&free)),
        Err((held, _)) => Looked::Held(name(&held)),
    }
}

/// The name in an owner file; what follows it is the rest of a longer one before.
fn name(file: &File) -> Option<Holder> {
    let mut text = [0; 4096];
    let n = file.read_at(&mut text, 0).ok()?;
    serde_json::Deserializer::from_slice(&text[..n]).into_iter().next()?.ok()
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
        let second = Owner::take(&directory, &holder("run b"), Duration::ZERO).expect("free again");
        assert_eq!(second.dead(), None, "the first ended in order");
        drop(second);
        // One that is killed leaves its name, however long it was.
        let killed = holder("run something with a name that is much longer than that of the next");
        fs::write(directory.join("owner"), serde_json::to_string(&killed).expect("JSON")).expect("written");
        assert_eq!((current(&directory), dead(&directory)), (None, Some(killed.clone())));
        let third = Owner::take(&directory, &holder("run c"), Duration::ZERO).expect("free");
        assert_eq!(third.dead(), Some(&killed));
        assert_eq!((current(&directory), dead(&directory)), (Some(holder("run c")), None));
        drop(third);
        assert_eq!((current(&directory), dead(&directory)), (None, None));
        let _ = fs::remove_dir_all(&directory);
    }
}
