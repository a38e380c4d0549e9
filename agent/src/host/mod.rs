//! What the host is like: read-only looks at /proc, /sys and systemd.

pub mod cgroup;
pub mod connections;
pub mod hooks;
pub mod kernel;
pub mod netns;
pub mod ports;
pub mod process;
pub mod rights;
pub mod systemd;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use firedrill_model::facts::HostFacts;

use crate::pulse;

/// Takes the host's facts.
pub fn facts() -> HostFacts {
    let read = |path: &str| fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    HostFacts {
        tcx: release_at_least(&kernel, 6, 6),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        cgroup_root: cgroup::mount_point().map(|p| p.display().to_string()),
        netns: fs::metadata("/proc/self/ns/net").map(|m| m.ino()).unwrap_or_default(),
        systemd: systemd::is_running(),
        kernel,
    }
}

/// Whether a kernel release such as `6.1.0-42-amd64` is at least `major.minor`.
pub fn release_at_least(release: &str, major: u32, minor: u32) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// Waits for a condition, looking every millisecond. Whether it came true.
pub fn wait_until(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        pulse::beat();
        if condition() {
            return true;
        }
        if begun.elapsed() > patience {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_compare_by_number() {
        assert!(release_at_least("6.18.44-fc", 6, 6));
        assert!(release_at_least("7.0.1", 6, 6));
        assert!(!release_at_least("6.1.0-42-amd64", 6, 6));
        assert!(!release_at_least("", 6, 1));
    }
}
