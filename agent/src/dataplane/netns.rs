//! Work inside another network namespace.

use std::{io, os::fd::BorrowedFd, thread};

use nix::sched::{CloneFlags, setns};

/// Runs `work` on a thread of its own that has entered the network namespace, and waits for it. The namespace is the
/// thread's alone: no other thread of the process moves.
///
/// # Errors
/// The descriptor is not a network namespace, or CAP_SYS_ADMIN is missing.
pub fn within<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("fd-netns".into()).spawn_scoped(scope, move || {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?;
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
