//! Whether Firedrill can work on a kernel.

use super::release_at_least;
use crate::dataplane::kernel_support;

/// The oldest Linux on which Firedrill is tested, major and minor number.
pub const OLDEST_TESTED: (u32, u32) = (6, 1);
/// The Linux that brought `bpf_loop`, without which the packet programs do not load. Distributions have carried it back
/// into older ones.
const BPF_LOOP: (u32, u32) = (5, 17);

/// This kernel cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "Linux {0} is too old for Firedrill: it lacks bpf_loop, which came with 5.17; {major}.{minor} is the oldest that is tested, \
     so boot that or a newer one",
    major = OLDEST_TESTED.0,
    minor = OLDEST_TESTED.1
)]
pub struct TooOld(pub String);

/// Refuses a kernel, given by its release, on which the packet programs cannot work. Where its number leaves a doubt the
/// running kernel itself is asked, which takes root.
///
/// # Errors
/// It is too old.
pub fn check(release: &str) -> Result<(), TooOld> {
    let (major, minor) = BPF_LOOP;
    if release_at_least(release, major, minor) || kernel_support().bpf_loop {
        Ok(())
    } else {
        Err(TooOld(release.to_owned()))
    }
}

/// Whether the tests have run on a kernel as new as this release.
pub fn is_tested(release: &str) -> bool {
    release_at_least(release, OLDEST_TESTED.0, OLDEST_TESTED.1)
}
