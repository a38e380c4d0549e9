//! eBPF programs, maps, links and pins, and the programs at the hooks of interfaces and control groups in their order.
//!
//! What another living process holds a descriptor of is its own affair, and goes with it: such programs, maps and links are
//! not told by themselves. What is attached is told whoever holds it. Left out: use counts, run times, contents of maps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};

use super::open_files::Held;
use super::words::Names;
use crate::sys::bpf;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
const TCX: [(u32, &str); 2] = [(46, "ingress"), (47, "egress")];
/// Those of `enum bpf_attach_type` that are for control groups.
const AT_CGROUPS: [(u32, &str); 29] = [
    (0, "inet_ingress"),
    (1, "inet_egress"),
    (2, "sock_create"),
    (3, "sock_ops"),
    (6, "device"),
    (8, "bind4"),
    (9, "bind6"),
    (10, "connect4"),
    (11, "connect6"),
    (12, "post_bind4"),
    (13, "post_bind6"),
    (14, "sendmsg4"),
    (15, "sendmsg6"),
    (18, "sysctl"),
    (19, "recvmsg4"),
    (20, "recvmsg6"),
    (21, "getsockopt"),
    (22, "setsockopt"),
    (29, "getpeername4"),
    (30, "getpeername6"),
    (31, "getsockname4"),
    (32, "getsockname6"),
    (34, "sock_release"),
    (43, "lsm"),
    (49, "connect_unix"),
    (50, "sendmsg_unix"),
    (51, "recvmsg_unix"),
    (52, "getpeername_unix"),
    (53, "getsockname_unix"),
];

/// What is loaded on the whole host.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub programs: Vec<String>,
    pub maps: Vec<String>,
    pub links: Vec<String>,
    /// Names of all programs by id, those of others as well.
    names: BTreeMap<u32, String>,
}

pub(super) fn loaded(held: &Held) -> Loaded {
    let mut found = Loaded::default();
    let mut maps_of_others = BTreeSet::new();
    for program in loaded_programs().filter_map(Result::ok) {
        let (id, name) = (program.id(), program.name_as_str().unwrap_or_default().to_owned());
        if held.programs.contains(&id) {
            maps_of_others.extend(program.map_ids().ok().flatten().unwrap_or_default());
        } else {
            found.programs.push(format!("{id} {name}"));
        }
        found.names.insert(id, name);
    }
    for map in loaded_maps().filter_map(Result::ok) {
        if !held.maps.contains(&map.id()) && !maps_of_others.contains(&map.id()) {
            found.maps.push(format!("{} {}", map.id(), map.name_as_str().unwrap_or_default()));
        }
    }
    for link in loaded_links().filter_map(Result::ok).filter(|link| !held.links.contains(&link.id())) {
        found.links.push(format!("{} of {}", link.id(), found.program(link.program_id())));
    }
    found
}

impl Loaded {
    /// A program as lines call it.
    fn program(&self, id: u32) -> String {
        format!("{id} {}", self.names.get(&id).map_or("", String::as_str))
    }

    /// The programs at the tcx hooks of the calling thread's namespace; none before Linux 6.6, which has no such hooks.
    pub(super) fn at_interfaces(&self, interfaces: &Names) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, name) in interfaces {
            for (hook, way) in TCX {
                let ids = bpf::attached(*index, hook).unwrap_or_default();
                lines.extend(self.in_order(&format!("{name} {way}"), &ids));
            }
        }
        lines
    }

    /// The programs that are attached to a control group itself.
    pub(super) fn at_cgroup(&self, path: &str, directory: &Path) -> Vec<String> {
        let Ok(open) = File::open(directory) else { return Vec::new() };
        let target = open.as_raw_fd().cast_unsigned();
        let of_hook = |(hook, name): (u32, &str)| {
            self.in_order(&format!("{path} {name}"), &bpf::attached(target, hook).unwrap_or_default())
        };
        AT_CGROUPS.into_iter().flat_map(of_hook).collect()
    }

    fn in_order(&self, place: &str, ids: &[u32]) -> Vec<String> {
        ids.iter().zip(1..).map(|(id, at): (_, u32)| format!("{place} {at}: {}", self.program(*id))).collect()
    }
}

/// Paths of what is pinned in any eBPF file system.
pub(super) fn pins() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let roots = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "bpf").then(|| PathBuf::from(path))
    });
    let (mut pins, mut folders) = (Vec::new(), roots.collect::<BTreeSet<_>>());
    while let Some(folder) = folders.pop_first() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            // Folders are told as well: an empty one is left of somebody, too.
            pins.push(entry.path().display().to_string());
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                folders.insert(entry.path());
            }
        }
    }
    pins
}
