//! What is known about the host and a target before anything is planned. Taken once, logged, and then
//! the only input of a fault's plan: planning asks the host nothing.

use serde::{Deserialize, Serialize};

use crate::config::Held;
use crate::peer::PeerFacts;
use crate::protect::Thing;

/// Everything that a fault may plan from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FactsSnapshot {
    /// The host.
    pub host: HostFacts,
    /// The one target that is planned for.
    pub target: TargetFacts,
}

/// Facts of the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Kernel release as `uname -r` prints it.
    pub kernel: String,
    /// Whether the kernel has tcx links (6.6 and later); otherwise clsact filters are used.
    pub tcx: bool,
    /// `/proc/sys/kernel/random/boot_id`: tells one boot from another.
    pub boot_id: String,
    /// Mount point of the cgroup v2 hierarchy, if one is mounted.
    pub cgroup_root: Option<String>,
    /// Inode number of the host's own (initial) network namespace, as the agent sees it.
    pub netns: u64,
    /// Whether systemd manages this host's units.
    pub systemd: bool,
}

/// Facts of one resolved target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// What the report calls it: `web/web-1`, `netns blue`, `nginx.service`.
    pub name: String,
    /// What sort of thing it is.
    pub kind: TargetKind,
    /// The network namespace that its packets belong to.
    pub netns: Option<NetnsFacts>,
    /// Its control group, for cgroups, units and containers.
    pub cgroup: Option<CgroupRef>,
    /// The systemd unit, for units.
    pub unit: Option<UnitFacts>,
    /// The processes found in it when it was resolved.
    pub processes: Vec<ProcessRef>,
    /// How its owner says that it is stopped and started, if the system file says so.
    pub control: Option<Control>,
    /// The component of which it is a replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica_of: Option<ReplicaOf>,
    /// What the names stand for by which its faults name the other side of its packets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerFacts>,
    /// Protected things in it on which the user lets the fault act all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lifted: Vec<Thing>,
}

/// A component, as a replica of it knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaOf {
    /// Its name.
    pub component: String,
    /// How many replicas it has.
    pub replicas: usize,
}

impl TargetFacts {
    /// As caps count it.
    pub fn held(&self) -> Held<'_> {
        Held { target: &self.name, of: self.replica_of.as_ref().map(|of| (of.component.as_str(), of.replicas)) }
    }
}

/// The sorts of target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TargetKind {
    /// A control group (v2).
    Cgroup,
    /// A systemd unit.
    Unit,
    /// One or more processes.
    Process,
    /// A whole network namespace.
    Netns,
    /// One network interface.
    Interface,
}

/// A network namespace and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsFacts {
    /// Which one.
    pub netns: NetnsRef,
    /// The interfaces that the target covers: for an interface just that one, for a whole namespace all but
    /// `lo`, for a cgroup, unit or process all of them.
    pub interfaces: Vec<Interface>,
    /// For the host's own namespace and its interfaces: ports by which the host is reached. Packets from and to them, at
    /// either end, are let through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare_ports: Vec<u16>,
}

/// A network namespace: how to enter it, and how to know it again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsRef {
    /// A path to open, `/run/netns/blue` or `/proc/123/ns/net`.
    pub path: String,
    /// Inode of the namespace: what it is known by.
    pub inode: u64,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Interface {
    /// Its index within its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Whether its frames have an Ethernet header.
    pub ethernet: bool,
}

/// A control group: its path and identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CgroupRef {
    /// Absolute path of its directory.
    pub path: String,
    /// Its id, which is the directory's inode number.
    pub id: u64,
}

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot, field 22 of `/proc/PID/stat`.
    pub started: u64,
    /// Command name, for people.
    pub comm: String,
}

/// State of a systemd unit before anything was done to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitFacts {
    /// Full unit name, with its suffix.
    pub name: String,
    /// `ActiveState`, for example `active`.
    pub active: String,
    /// Active sockets and timers that would start it again while it is stopped (`TriggeredBy`).
    pub triggered_by: Vec<String>,
    /// Active units that systemd stops together with it (`RequiredBy`, `BoundBy`, `ConsistsOf`), and theirs.
    #[serde(default)]
    pub stops_with: Vec<String>,
    /// Why it could not be started again after a stop; nothing when it can.
    #[serde(default)]
    pub no_way_back: Option<String>,
}

/// How a replica is stopped and started by its owner's own commands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// Program and arguments that stop it; no shell is involved.
    pub stop: Vec<String>,
    /// Program and arguments that start it again.
    pub start: Vec<String>,
}

impl Control {
    /// Leaves of both commands only what may be shown.
    pub fn mask(&mut self) {
        self.stop = masked(&self.stop);
        self.start = masked(&self.start);
    }
}

/// A user's own command as logs and reports may show it: its arguments may hold passwords, and often do.
pub fn masked(command: &[String]) -> Vec<String> {
    let rest = (command.len() > 1).then(|| "***".to_owned());
    command.first().cloned().into_iter().chain(rest).collect()
}
