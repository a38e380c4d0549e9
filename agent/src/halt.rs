//! Halting a host: everything that is in force ends now, and nothing new begins until somebody says so.
//!
//! A file in the run directory is the sign. A living agent looks for it at each tick and reverts by itself; [`end`] does
//! not rely on that: it stops the owner, and kills it when it does not end, as a wedged one would not.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;

use crate::aftermath;
use crate::crash_point;
use crate::host::{self, process, wait_until};
use crate::journal::Directories;
use crate::owner::{Holder, Owner, OwnerError};
use crate::recover::{self, Recovery};

/// How long an owner may take to revert and end before it is killed.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long a guardian may take to undo what its agent left: a unit that is slow to start, a user's own command.
const CLEARING: Duration = Duration::from_secs(120);
/// How long a process that was killed may take to be gone. Only one that waits for a device takes longer.
const DYING: Duration = Duration::from_secs(5);

/// The host is halted; the text says since when and by whom.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this host is halted ({0}); `firedrill halt --clear` allows faults again")]
pub struct Halted(pub String);

/// Why a host could not be halted.
#[derive(Debug, thiserror::Error)]
pub enum HaltError {
    /// The owner lock cannot be used.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// The owner may not be signalled.
    #[error("process {} (`{}`) could not be signalled: {source}; are you root?", .holder.pid, .holder.what)]
    Signal {
        /// The owner.
        holder: Holder,
        /// The error.
        source: io::Error,
    },
    /// The owner was killed and does not die.
    #[error("process {} (`{}`) was killed and is still there, as one that waits for a device is; what it has open stays \
             until it is gone: {}", .holder.pid, .holder.what, .open.join("; "))]
    Undying {
        /// The owner.
        holder: Holder,
        /// What is in force.
        open: Vec<String>,
    },
}

/// How an owner ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// There was none.
    Nobody,
    /// It was clearing up after another already, and was waited for.
    Finished,
    /// By itself, when it was told to.
    Stopped,
    /// It had to be killed.
    Killed,
}

/// What a halt did.
#[derive(Clone, Debug)]
pub struct Halt {
    /// Who owned the host.
    pub holder: Option<Holder>,
    /// What became of it.
    pub ending: Ending,
    /// Each change that was open, in words, and how it was undone; and what could not be undone.
    pub recovery: Recovery,
}

/// The file that halts a host.
pub fn path(run: &Path) -> PathBuf {
    run.join("halt")
}

/// Whether faults may begin.
///
/// # Errors
/// The host is halted. A file that cannot be read counts.
pub fn check(run: &Path) -> Result<(), Halted> {
    match fs::read_to_string(path(run)) {
        // Anybody may make it: `touch` will do.
        Ok(text) if text.trim().is_empty() => Err(Halted(format!("by the file {}", path(run).display()))),
        Ok(text) => Err(Halted(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Halted(format!("its file cannot be read: {e}"))),
    }
}

/// From now on no fault begins. `why` is shown to whoever is refused: the file comes with it, so that an agent that looks
/// at once knows it, too. On a disk that is full an empty file does.
///
/// # Errors
/// The file cannot be written.
pub fn set(run: &Path, why: &str) -> io::Result<()> {
    crash_point::around("halt.directory", || fs::create_dir_all(run))?;
    let (file, new) = (path(run), path(run).with_extension("new"));
    crash_point::around("halt.write", || {
        let whole = fs::write(&new, format!("{why}\n")).and_then(|()| fs::rename(&new, &file));
        whole.or_else(|_| {
            let _ = fs::remove_file(&new);
            fs::write(&file, format!("{why}\n"))
        })
    })
}

/// Faults may begin again. Whether they might not before.
///
/// # Errors
/// The file cannot be removed.
pub fn clear(run: &Path) -> io::Result<bool> {
    match crash_point::around("halt.remove", || fs::remove_file(path(run))) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Ends the owner of these directories and whatever is in force: tells it to, kills it if it has not ended after
/// [`PATIENCE`], and undoes what it and its guardian have not. One that is stopped hears nothing, and is killed at once.
/// `open` is what was in force ([`recover::outstanding`]) before the sign was set: it may be undone within a tick.
///
/// # Errors
/// The owner cannot be signalled or does not die; the lock cannot be used.
pub fn end(directories: &Directories, open: Vec<String>) -> Result<Halt, HaltError> {
    let me = Holder::clearing_up("halt");
    let take = |patience| match Owner::take(&directories.run, &me, patience) {
        Ok(owner) => Ok(Ok(owner)),
        Err(OwnerError::Taken(holder)) => Ok(Err(holder)),
        Err(error) => Err(error),
    };
    let mut ending = Ending::Nobody;
    // A lock is held for a moment by whoever looks at it.
    let first = take(Duration::from_millis(100))?;
    let holder = first.as_ref().err().cloned();
    let owner = match first {
        Ok(owner) => owner,
        Err(holder) => {
            let (how, next) = stop(&holder, take)?;
            ending = how;
            match next {
                Ok(owner) => owner,
                // Its guardian was faster, and is at work.
                Err(_) => match take(CLEARING)? {
                    Ok(owner) => owner,
                    Err(holder) => return Err(HaltError::Undying { holder, open: recover::outstanding(directories) }),
                },
            }
        }
    };
    let found = aftermath::clear_up(directories, &host::facts().boot_id, &owner, "it was killed", "`firedrill halt`");
    drop(owner);
    let by = match ending {
        Ending::Stopped => "by its owner",
        _ => "by the guardian",
    };
    let not_by_us = |what: &String| !found.undone.iter().any(|(w, _)| w == what);
    let still = recover::outstanding(directories);
    let mut undone: Vec<(String, String)> =
        open.into_iter().filter(|w| not_by_us(w) && !still.contains(w)).map(|w| (w, by.to_owned())).collect();
    undone.extend(found.undone);
    Ok(Halt { holder, ending, recovery: Recovery { undone, left: found.left } })
}

/// The lock, or who has it.
type Taken = Result<Owner, Holder>;

/// Makes an owner end, one way or the other. How it did, and who has the lock then.
fn stop(holder: &Holder, take: impl Fn(Duration) -> Result<Taken, OwnerError>) -> Result<(Ending, Taken), HaltError> {
    if holder.clears_up {
        return Ok((Ending::Finished, take(CLEARING)?));
    }
    let owner = holder.process();
    let signal = |number| {
        process::signal(&owner, number).map_err(|source| HaltError::Signal { holder: holder.clone(), source }).map(drop)
    };
    signal(libc::SIGTERM)?;
    if !process::is_stopped(&owner) {
        let next = take(PATIENCE)?;
        let gone = next.is_ok() || !process::is_alive(&owner);
        if gone {
            return Ok((Ending::Stopped, next));
        }
    }
    signal(libc::SIGKILL)?;
    if !wait_until(DYING, || !process::is_alive(&owner)) {
        return Ok((Ending::Killed, Err(holder.clone())));
    }
    Ok((Ending::Killed, take(Duration::from_millis(100))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halted_host_says_why_until_it_is_cleared() {
        let run = std::env::temp_dir().join(format!("firedrill-halt-{}", std::process::id()));
        assert_eq!(check(&run), Ok(()), "not even the folder is there");
        set(&run, "by somebody").expect("written");
        let refused = check(&run).expect_err("halted").to_string();
        assert!(refused.contains("by somebody") && refused.contains("halt --clear"), "{refused}");
        assert!(clear(&run).expect("removed"));
        assert!(!clear(&run).expect("nothing to remove"));
        assert_eq!(check(&run), Ok(()));
        fs::write(path(&run), "").expect("a file made by hand");
        assert!(check(&run).expect_err("halted").to_string().contains("by the file"), "it says where it is");
        assert!(clear(&run).expect("removed"));
        fs::create_dir(path(&run)).expect("something that is no file");
        assert!(check(&run).is_err(), "what cannot be read counts");
        let _ = fs::remove_dir_all(&run);
    }
}
