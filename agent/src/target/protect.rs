//! What is never touched, or only when a user says so: the processes, units and ports by which the host is reached and by
//! which Firedrill itself works.

use firedrill_model::config::Protect;
use firedrill_model::facts::{CgroupRef, HostFacts, ProcessRef, TargetFacts, TargetKind};
use firedrill_model::protect::Thing;

use super::TargetError;
use crate::host::{cgroup, ports, process};

/// Names of processes that a host needs to be reachable and to recover. The kernel keeps 15 bytes of a name.
const NAMES: &[&str] = &[
    "systemd",
    "init",
    "sshd",
    "sshd-session",
    "sshd-auth",
    "dropbear",
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
    "dbus-broker-lau",
    "dockerd",
    "docker-proxy",
    "containerd",
    "containerd-shim",
    "podman",
    "conmon",
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
    "docker.service",
    "docker.socket",
    "containerd.service",
    "crio.service",
    "podman.service",
    "podman.socket",
];

/// Why something is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Guard {
    /// Nobody can lift it.
    Always(String),
    /// A user may say that it is meant.
    Unless(Thing, String),
}

/// What is protected: the agent's own processes, taken when it starts, what every host needs, and what the configuration
/// adds.
#[derive(Clone, Debug)]
pub struct Protected {
    /// The agent, its ancestors and its guardian.
    own: Vec<i32>,
    more: Protect,
}

impl Protected {
    /// Protects this process, its ancestors and, once there is one, its guardian; and `more`.
    pub fn new(guardian: Option<i32>, more: &Protect) -> Self {
        let mut own = process::lineage(std::process::id().cast_signed());
        own.extend(guardian);
        Self { own, more: more.clone() }
    }

    /// Ports of the host's own network that are let through, right now.
    pub fn ports(&self) -> Vec<u16> {
        ports::protected(&self.more.ports)
    }

    /// Whether a signal may be sent to a process, when only these things are allowed.
    pub fn spares(&self, process: &ProcessRef, allowed: &[Thing]) -> bool {
        match self.process(process) {
            None => false,
            Some(Guard::Always(_)) => true,
            Some(Guard::Unless(thing, _)) => !allowed.contains(&thing),
        }
    }

    /// Refuses a target that is or holds something protected, unless it is among what is allowed. Notes what was, and for
    /// the host's own network which ports are let through.
    ///
    /// # Errors
    /// Names what is protected, why, and the words that would allow it.
    pub fn admit(
        &self,
        mut target: TargetFacts,
        allowed: &[Thing],
        host: &HostFacts,
    ) -> Result<TargetFacts, TargetError> {
        let mut refused: Vec<(Thing, String)> = Vec::new();
        let units = target.unit.iter().flat_map(|unit| [&unit.name].into_iter().chain(&unit.stops_with));
        let guards = target.processes.iter().filter_map(|p| self.process(p)).chain(units.filter_map(|u| self.unit(u)));
        for guard in guards {
            match guard {
                Guard::Always(why) => return Err(TargetError::Protected { target: target.name, why }),
                Guard::Unless(thing, _) if allowed.contains(&thing) => {
                    if !target.lifted.contains(&thing) {
                        target.lifted.push(thing);
                    }
                }
                Guard::Unless(thing, why) => {
                    if !refused.iter().any(|(other, _)| *other == thing) {
                        refused.push((thing, why));
                    }
                }
            }
        }
        if !refused.is_empty() {
            return Err(TargetError::Protected { target: target.name, why: refusal(&refused) });
        }
        if let Some(network) = &mut target.netns
            && network.netns.inode == host.netns
            && matches!(target.kind, TargetKind::Netns | TargetKind::Interface)
        {
            let (lifted, spared) = self.ports().into_iter().partition(|port| allowed.contains(&Thing::Port(*port)));
            network.spare_ports = spared;
            let lifted: Vec<u16> = lifted;
            target.lifted.extend(lifted.into_iter().map(Thing::Port));
        }
        Ok(target)
    }

    fn process(&self, found: &ProcessRef) -> Option<Guard> {
        let ProcessRef { pid, comm, .. } = found;
        if self.own.contains(pid) {
            return Some(Guard::Always(format!("process {pid} ({comm}) is Firedrill itself or one of its ancestors")));
        }
        if *pid == 1 {
            return Some(Guard::Always("process 1 is the host's init".into()));
        }
        if NAMES.contains(&comm.as_str()) {
            let why = format!("process {pid} ({comm}) keeps the host reachable and in order");
            return Some(Guard::Unless(Thing::Process(comm.clone()), why));
        }
        if self.more.processes.contains(comm) {
            let why = format!("process {pid} ({comm}) is protected by this host's configuration");
            return Some(Guard::Unless(Thing::Process(comm.clone()), why));
        }
        let kernel = process::stat(*pid).is_ok_and(|s| s.kernel_thread);
        kernel.then(|| Guard::Always(format!("process {pid} ({comm}) is a kernel thread")))
    }

    fn unit(&self, unit: &str) -> Option<Guard> {
        let why = if is_vital(unit) {
            format!("{unit} keeps the host reachable and in order")
        } else if self.more.units.iter().any(|name| name == unit) {
            format!("{unit} is protected by this host's configuration")
        } else {
            return None;
        };
        Some(Guard::Unless(Thing::Unit(unit.to_owned()), why))
    }
}

/// Why, and the exact words with which it would be allowed.
fn refusal(refused: &[(Thing, String)]) -> String {
    let why: Vec<&str> = refused.iter().map(|(_, why)| why.as_str()).collect();
    let words: Vec<String> = refused.iter().map(|(thing, _)| format!("\"{thing}\"")).collect();
    let options: Vec<String> = words.iter().map(|word| format!("--allow-protected {word}")).collect();
    format!(
        "{}; if it is meant: `allow_protected: [{}]` in the step, or `{}`",
        why.join(", "),
        words.join(", "),
        options.join(" ")
    )
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
