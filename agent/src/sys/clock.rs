//! The clock of the in-kernel programs.

/// `CLOCK_MONOTONIC`, nanoseconds: what `bpf_ktime_get_ns` returns. (Inside a time namespace with an offset the two
/// differ; the agent is not meant to run in one.)
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills in the structure; this clock exists everywhere.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
