//! The calling thread.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Sets the nice value of the calling thread alone (-20 to 19).
///
/// # Errors
/// EACCES without CAP_SYS_NICE.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: takes numbers. On Linux 0 means the calling thread, not its process.
    checked(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) })
}

/// Gives the calling thread a table of descriptors of its own, in which are only these of its process and the standard
/// streams. What other threads close ends then as if this one had never had it, and what this one closes stays open for them.
///
/// The thread must not use any other descriptor from before. When a process is killed the tables of its threads are closed
/// side by side, while the descriptors of one table are closed one after the other (`exit_files` in Linux's `kernel/exit.c`).
///
/// # Errors
/// What `unshare` and `close_range` say; one of them is not open. The thread is to end then.
pub fn own_descriptors<const N: usize>(keep: [RawFd; N]) -> io::Result<[OwnedFd; N]> {
    // SAFETY: takes flags; the memory and everything else stays shared.
    checked(unsafe { libc::unshare(libc::CLONE_FILES) })?;
    let mut sorted = keep.map(|fd| fd as libc::c_uint);
    sorted.sort_unstable();
    let mut first = libc::STDERR_FILENO as libc::c_uint + 1;
    for fd in sorted.into_iter().chain([libc::c_uint::MAX]) {
        if first < fd {
            // SAFETY: takes numbers. The table is this thread's alone, and it owns nothing in it but what is kept.
            checked(unsafe { libc::close_range(first, fd - 1, 0) })?;
        }
        first = fd.saturating_add(1);
    }
    for fd in keep {
        // SAFETY: takes numbers; says whether the descriptor is open.
        checked(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    }
    // SAFETY: open, as was just seen, and nobody else's in this table.
    Ok(keep.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_with_descriptors_of_its_own_keeps_these_and_no_others() {
        let (mut kept, kept_end) = io::pipe().unwrap();
        let (mut other, other_end) = io::pipe().unwrap();
        let (go_on, wait) = mpsc::channel::<()>();
        let number = kept_end.as_raw_fd();
        let (started, start) = mpsc::channel();
        let thread = thread::spawn(move || {
            let [own] = own_descriptors([number]).unwrap();
            started.send(()).unwrap();
            wait.recv().unwrap();
            drop(own);
        });
        start.recv().unwrap();
        drop((kept_end, other_end));
        assert_eq!(other.read(&mut [0]).unwrap(), 0, "nobody else has the other one");
        go_on.send(()).unwrap();
        assert_eq!(kept.read(&mut [0]).unwrap(), 0, "closed when the thread closes it");
        thread.join().unwrap();
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_an_error() {
        let tried = thread::spawn(|| own_descriptors([9999]).map(drop)).join().unwrap();
        assert_eq!(tried.unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
