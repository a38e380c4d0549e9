//! What this process may do and hold: capabilities and descriptors, of which a container or unit may give too few.

use std::fs;
use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A capability that faults want, by its number (capabilities(7)), and which want it.
const WANTED: [(u32, &str, &str); 5] = [
    (21, "CAP_SYS_ADMIN", "every fault, to enter network namespaces and look at its own programs"),
    (12, "CAP_NET_ADMIN", "loss, partition and latency"),
    (19, "CAP_SYS_PTRACE", "targets that are processes, groups or units"),
    (1, "CAP_DAC_OVERRIDE", "what belongs to other users: their processes' descriptors, their control groups"),
    (5, "CAP_KILL", "kill and pause of processes of other users"),
];

/// The least number of descriptors with which faults are injected: each interface takes some.
pub const LEAST_DESCRIPTORS: u64 = 256;

/// Capabilities that this process lacks, and what wants them.
pub fn missing_capabilities() -> Vec<(&'static str, &'static str)> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // What cannot be read is not called missing: the kernel will tell.
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX);
    WANTED.iter().filter(|(bit, ..)| effective & 1 << bit == 0).map(|(_, name, wants)| (*name, *wants)).collect()
}

/// What may be the reason of an error: capabilities that are missing. Empty for other errors.
pub fn hint(error: &io::Error) -> String {
    let missing = missing_capabilities();
    if error.kind() != io::ErrorKind::PermissionDenied || missing.is_empty() {
        return String::new();
    }
    let list = missing.iter().map(|(name, wants)| format!("{name} ({wants})")).collect::<Vec<_>>().join(", ");
    format!("; this process lacks {list}: give it to the container or unit that it runs in")
}

/// Lets this process hold as many descriptors as it may, and gives that number.
///
/// # Errors
/// The limit cannot be read.
pub fn raise_descriptors() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        return Ok(hard);
    }
    Ok(soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_is_explained_by_missing_capabilities() {
        assert_eq!(hint(&io::Error::from(io::ErrorKind::NotFound)), "");
        let refused = hint(&io::Error::from_raw_os_error(libc::EPERM));
        assert_eq!(refused.is_empty(), missing_capabilities().is_empty(), "{refused}");
    }
}
