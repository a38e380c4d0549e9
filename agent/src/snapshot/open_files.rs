//! What processes hold open: eBPF objects, and files of Firedrill that outlived their owner.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::dataplane;
use crate::host::process::{self, Stat};

/// Descriptors of processes other than this one.
#[derive(Debug, Default)]
pub(super) struct Held {
    pub programs: BTreeSet<u32>,
    pub maps: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
    /// TAPs of delay lines and journals in processes that own no host: they were left behind with them.
    pub orphans: Vec<String>,
}

pub(super) fn held_by_others(processes: &[Stat]) -> Held {
    let mut held = Held::default();
    let me = std::process::id().cast_signed();
    for stat in processes.iter().filter(|s| s.process.pid != me && !s.kernel_thread) {
        held.add(stat);
    }
    held
}

impl Held {
    fn add(&mut self, stat: &Stat) {
        let pid = stat.process.pid;
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return };
        let (mut ours, mut is_owner) = (Vec::new(), false);
        for entry in entries.flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy();
            let info = || {
                let number = entry.file_name();
                fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(number)).unwrap_or_default()
            };
            // /proc/PID/fdinfo has the ids; a link's has its program's as well.
            if target.starts_with("anon_inode:") && target.contains("bpf") {
                let info = info();
                self.programs.extend(field(&info, "prog_id:").and_then(|id| id.parse::<u32>().ok()));
                self.maps.extend(field(&info, "map_id:").and_then(|id| id.parse::<u32>().ok()));
                self.links.extend(field(&info, "link_id:").and_then(|id| id.parse::<u32>().ok()));
            } else if target == "/dev/net/tun" {
                let name = field(&info(), "iff:").unwrap_or_default().to_owned();
                ours.extend(dataplane::is_own_tap(&name).then(|| format!("{name} in {pid} ({})", stat.process.comm)));
            } else if target.ends_with("/journal.ndjson") {
                ours.push(format!("{target} in {pid} ({})", stat.process.comm));
            } else {
                is_owner |= target.ends_with("/owner");
            }
        }
        if !is_owner {
            self.orphans.append(&mut ours);
        }
    }
}

fn field<'a>(info: &'a str, key: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

/// Processes that are stopped by a signal.
pub(super) fn stopped(processes: &[Stat]) -> Vec<String> {
    let stopped = processes.iter().filter(|s| s.state == 'T').map(|s| &s.process);
    stopped.map(|p| format!("{} ({})", p.pid, p.comm)).collect()
}

/// All living processes.
pub(super) fn processes() -> Vec<Stat> {
    process::all()
}
