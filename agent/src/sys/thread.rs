//! The calling thread.

use std::io;

/// Sets the nice value of the calling thread alone (-20 to 19).
///
/// # Errors
/// EACCES without CAP_SYS_NICE.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: takes numbers. On Linux 0 means the calling thread, not its process.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
