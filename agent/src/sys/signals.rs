//! Signals by pidfd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sends a signal to the process that a pidfd stands for.
///
/// # Errors
/// ESRCH when it is gone, EPERM without the right.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers and a null siginfo, which the kernel fills in by itself.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
