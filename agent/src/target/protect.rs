//! What is never touched: the processes and paths by which the host is reached and Firedrill itself works.

use firedrill_model::facts::{CgroupRef, HostFacts, TargetFacts, TargetKind};

use super::TargetError;
use crate::host::{cgroup, process};

/// Names of processes that a host needs to be reachable and to recover.
const NAMES: &[&str] = &[
    "systemd",
    "init",
    "sshd",
    "sshd-session",
    "systemd-journal",
    "systemd-journald",
    "systemd-udevd",
    "systemd-logind",
    "systemd-network",
    "systemd-networkd",
    "systemd-resolve",
    "systemd-resolved",
    "dbus-daemon",
    "dbus-broker",
    "dockerd",
    "containerd",
    "containerd-shim",
    "podman",
    "crio",
];

/// Units that a host needs to be reachable and to recover, those without a process of their own among them.
const UNITS: &[&str] = &[
    "ssh.service",
    "ssh.socket",
    "sshd.service",
    "sshd.socket",
    "dbus.service",
    "dbus.socket",
    "dbus-broker.service",
    "networking.service",
    "NetworkManager.service",
    "docker.socket",
    "containerd.service",
];

/// The processes that are protected, taken when the agent starts.
#[derive(Clone, Debug)]
pub struct Protected {
    /// The agent, its ancestors and its guardian.
    own: Vec<i32>,
}

impl Protected {
    /// Protects this process, its ancestors and, once there is one, its guardian.
    pub fn new(guardian: Option<i32>) -> Self {
        let mut own = process::lineage(std::process::id().cast_signed());
        own.extend(guardian);
        Self { own }
    }

    /// Refuses a target that is or holds something protected.
    ///
    /// # Errors
    /// Names what is protected, and why.
    pub fn check(&self, target: &TargetFacts, host: &HostFacts) -> Result<(), TargetError> {
        let refuse = |why: String| Err(TargetError::Protected { target: target.name.clone(), why });
        for found in &target.processes {
            let pid = found.pid;
            if self.own.contains(&pid) {
                return refuse(format!("process {pid} ({}) is Firedrill itself or one of its ancestors", found.comm));
            }
            if pid == 1 {
                return refuse("process 1 is the host's init".into());
            }
            if NAMES.contains(&found.comm.as_str()) {
                return refuse(format!("process {pid} ({}) keeps the host reachable and in order", found.comm));
            }
            if process::stat(pid).is_ok_and(|s| s.kernel_thread) {
                return refuse(format!("process {pid} ({}) is a kernel thread", found.comm));
            }
        }
        if let Some(unit) = &target.unit {
            let touched = [&unit.name].into_iter().chain(&unit.stops_with);
            if let Some(name) = touched.into_iter().find(|name| is_vital(name)) {
                return refuse(format!("{name} keeps the host reachable and in order"));
            }
        }
        let Some(network) = &target.netns else { return Ok(()) };
        if network.netns.inode != host.netns {
            return Ok(());
        }
        match target.kind {
            TargetKind::Netns => refuse(
                "it is the host's own network namespace, which would cut off everything on the host; name a unit, cgroup or \
                 process"
                    .into(),
            ),
            TargetKind::Interface => match network.interfaces.iter().find(|i| i.loopback || carries_default_route(&i.name)) {
                Some(interface) => refuse(format!(
                    "{} is the host's own loopback or way to the world; name a unit, cgroup or process",
                    interface.name
                )),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// Whether a unit is one that a host needs.
fn is_vital(unit: &str) -> bool {
    // systemd's own, but for the containers that it runs.
    UNITS.contains(&unit) || (unit.starts_with("systemd-") && !unit.starts_with("systemd-nspawn@"))
}

/// Refuses the root of the cgroup hierarchy.
///
/// # Errors
/// It is the root.
pub(super) fn refuse_root(target: &str, group: &CgroupRef) -> Result<(), TargetError> {
    if !cgroup::is_root(group) {
        return Ok(());
    }
    let why = "it is the root cgroup, which holds every process of the host; name one below it".into();
    Err(TargetError::Protected { target: target.to_owned(), why })
}

/// Whether a default route of the host leaves by this interface (proc_net_route; both families).
fn carries_default_route(interface: &str) -> bool {
    let v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v4 = v4.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&interface) && fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000")
    });
    let v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    v4 || v6.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Every namespace has a catch-all "unreachable" default on lo; it carries nothing.
        fields.get(1) == Some(&"00") && fields.last() == Some(&interface) && interface != "lo"
    })
}
