//! Numbers of descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Below the usual limit of 1024, above what we have open.
const HIGH: libc::c_int = 1000;

/// Duplicates a descriptor, close-on-exec, such that it is the first to be closed when this process dies: the kernel
/// goes from the highest number to the lowest (`task_work_run`), and each tcx link and TAP takes it some ten
/// milliseconds. Under a limit that does not allow such a number it is closed later.
///
/// # Errors
/// EMFILE when no descriptor is free.
pub fn first_to_close(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers; the result is checked.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH) };
    if high < 0 {
        return fd.try_clone_to_owned();
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::fd::AsFd;

    #[test]
    fn its_number_is_above_all_others() {
        let file = std::fs::File::open("/proc/self/stat").expect("a file");
        let high = first_to_close(file.as_fd()).expect("a duplicate");
        assert!(high.as_raw_fd() >= HIGH && high.as_raw_fd() > file.as_raw_fd());
    }
}
