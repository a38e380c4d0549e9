//! What the kernel shows as files: settings of control groups, kernel parameters, mounts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::ebpf::Loaded;
use crate::guardian;
use crate::host::cgroup;

/// Control groups of all hierarchies.
#[derive(Debug, Default)]
pub(super) struct Groups {
    pub groups: Vec<String>,
    pub frozen: Vec<String>,
    pub settings: Vec<String>,
    pub programs: Vec<String>,
}

/// Ends of the names of files that can be written and yet are no settings: lists of members, counters that can be
/// reset, and commands. `cgroup.freeze` has lines of its own.
const NO_SETTINGS: [&str; 14] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.freeze",
    "tasks",
    "event_control",
    "pressure",
    "pressure_level",
    "peak",
    "failcnt",
    "max_usage_in_bytes",
    "cpuacct.usage",
    "reclaim",
    "force_empty",
    "kill",
];
/// Its first line is the setting, the others count.
const HAS_COUNTERS: &str = "memory.oom_control";

pub(super) fn groups(loaded: &Loaded) -> Groups {
    let mut found = Groups::default();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut fields = line.split_whitespace().skip(1);
        let (Some(root), Some(kind)) = (fields.next().map(PathBuf::from), fields.next()) else { continue };
        match kind {
            "cgroup2" => {
                for directory in cgroup::tree(&root) {
                    let path = below(&root, &directory);
                    if !is_guardian_on_duty(&path) {
                        found.add(&path, &directory);
                        found.programs.extend(loaded.at_cgroup(&path, &directory));
                    }
                }
            }
            // The old hierarchies, one for each controller; the name of theirs leads the path.
            "cgroup" => {
                let controller = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
                for directory in cgroup::tree(&root) {
                    found.add(&format!("{controller}:{}", below(&root, &directory)), &directory);
                }
            }
            _ => {}
        }
    }
    found
}

fn below(root: &Path, directory: &Path) -> String {
    directory.strip_prefix(root).unwrap_or(directory).display().to_string()
}

impl Groups {
    fn add(&mut self, path: &str, directory: &Path) {
        let is_root = path.is_empty() || path.ends_with(':');
        if !is_root {
            self.groups.push(path.to_owned());
        }
        let value = |name: &str| fs::read_to_string(directory.join(name)).ok();
        if value("cgroup.freeze").is_some_and(|v| v.trim() == "1") {
            self.frozen.push(path.to_owned());
        }
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_file())) {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if NO_SETTINGS.iter().any(|end| name.ends_with(end)) {
                continue;
            }
            const READ_AND_WRITE: u32 = 0o600;
            if entry.metadata().is_ok_and(|m| m.permissions().mode() & READ_AND_WRITE == READ_AND_WRITE)
                && let Some(text) = value(&name)
            {
                let lines = if name == HAS_COUNTERS { 1 } else { usize::MAX };
                let shown: Vec<&str> = text.lines().take(lines).flat_map(str::split_whitespace).collect();
                self.settings.push(format!("{path}/{name} = {}", shown.join(" ")));
            }
        }
    }
}

/// Whether a group is that of a guardian, ours or another's, that is still there: it goes when its work is done. An
/// empty one was left.
fn is_guardian_on_duty(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with(guardian::SHELTER))
        && cgroup::find(path).is_ok_and(|group| !cgroup::processes(&group).is_empty())
}

/// The parameters of a network namespace.
const PARAMETERS: &str = "/proc/sys/net";
/// They count, or are secret: a snapshot is a file that people pass on.
const NO_PARAMETERS: [&str; 3] = ["nf_conntrack_count", "tcp_fastopen_key", "stable_secret"];

/// Kernel parameters of the calling thread's network namespace, connection tracking's among them.
pub(super) fn parameters() -> Vec<String> {
    let (mut lines, mut folders) = (Vec::new(), vec![PathBuf::from(PARAMETERS)]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.push(path);
            } else if !NO_PARAMETERS.iter().any(|name| path.ends_with(name))
                // Some are write-only or refuse to be read until they are set.
                && let Ok(value) = fs::read_to_string(&path)
            {
                let value: Vec<&str> = value.split_whitespace().collect();
                lines.push(format!("{} = {}", path.display(), value.join(" ")));
            }
        }
    }
    lines
}

/// What is mounted, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)) without the numbers that are given anew each time.
pub(super) fn mounts() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<String> {
    let (place, device) = line.split_once(" - ")?;
    let mut fields = place.split(' ').skip(3);
    let (root, point, options) = (fields.next()?, fields.next()?, fields.next()?);
    Some(format!("{point} of {root} {options} {device}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_told_without_its_numbers() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount(line).as_deref(), Some("/mnt2 of /mnt1 rw,noatime ext3 /dev/root rw,errors=continue"));
    }
}
