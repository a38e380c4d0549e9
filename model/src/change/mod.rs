//! Changes: the steps by which a fault alters a host, each one reversible or said to be not.
//!
//! A fault only lists changes. The agent's engine applies them, records the inverse first, and undoes them
//! from the record. The list below is closed on purpose: a new fault should need none of its own.

mod call;
mod dns;
mod packet;
mod proxy;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::facts::{CgroupRef, Interface, NetnsRef, ProcessRef, masked};
use crate::protect::Thing;
use crate::units::{Cidr, Percent, Span};

pub use call::{Call, CallRule, Caller, Errno};
pub use dns::{DnsAnswer, DnsQueries};
pub use packet::{Action, Checksum, Correlation, Course, Distribution, Filter, Losses, Per, Protocol, Rule, Update};
pub use proxy::Toxics;

/// What a fault will do to one target, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Applied first to last, reverted last to first.
    pub changes: Vec<Change>,
    /// What the reader of a plan should know: surprises, limits, parts that cannot be undone.
    pub notes: Vec<String>,
}

/// One step on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Attach the packet programs to one direction of an interface (tcx link, or a clsact filter before 6.6).
    Attach {
        /// Namespace of the interface.
        netns: NetnsRef,
        /// The interface.
        interface: Interface,
        /// Which way packets pass.
        direction: Way,
    },
    /// Mark the sockets of a cgroup or of processes, existing and new ones, so that rules can tell them apart.
    Tag {
        /// Namespace whose rules look at the mark.
        netns: NetnsRef,
        /// Whose sockets.
        sockets: SocketOwner,
    },
    /// Run a delay line (a TAP device held by the agent) for one direction of an interface.
    DelayLine {
        /// Namespace of the interface.
        netns: NetnsRef,
        /// The interface.
        interface: Interface,
        /// Which way packets pass.
        direction: Way,
    },
    /// Put a packet rule in force.
    Rule {
        /// Namespace in which it applies.
        netns: NetnsRef,
        /// The rule.
        rule: Rule,
    },
    /// Have system calls fail.
    CallRule {
        /// Whose calls.
        caller: Caller,
        /// Which ones, and how.
        rule: CallRule,
    },
    /// Have new TCP connections go through a proxy that the agent runs. It ends with the agent, and they are reset.
    Proxy {
        /// Namespace in which it listens, and only whose connections it takes.
        netns: NetnsRef,
        /// Whose connections.
        caller: Caller,
        /// Which of them.
        filter: Filter,
        /// Share of those.
        share: Percent,
        /// What it does to them.
        toxics: Toxics,
    },
    /// Set a kernel parameter in a network namespace.
    Sysctl {
        /// The namespace.
        netns: NetnsRef,
        /// Dotted key, `net.ipv4.conf.lo.route_localnet`.
        key: String,
        /// The value to write.
        value: String,
    },
    /// Send a signal that ends a process. There is no way back.
    Kill {
        /// Whose processes: resolved again at that moment, when the owner still exists.
        victim: Victim,
        /// Signal number.
        signal: i32,
        /// Kill again whatever comes back, until the fault ends.
        keep: bool,
        /// Protected things among them that are killed all the same. What else is protected and comes in later is not.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allow: Vec<Thing>,
    },
    /// Destroy established TCP connections. There is no way back.
    Reset {
        /// Namespace of the connections.
        netns: NetnsRef,
        /// Only those with an address of this interface as their own.
        interface: Option<Interface>,
        /// Only those of these sockets. `None`: of all of the namespace, but for connections with itself.
        sockets: Option<SocketOwner>,
        /// Which connections of those.
        filter: Filter,
        /// Connections from or to these ports, of this side or the other, stay.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        spare: Vec<u16>,
        /// Again and again, with this much time in between, until the fault ends.
        every: Option<Span>,
        /// Protected things among them whose connections are destroyed all the same.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allow: Vec<Thing>,
    },
    /// Stop a process with SIGSTOP; continued with SIGCONT.
    Suspend {
        /// The process.
        process: ProcessRef,
    },
    /// Freeze a control group (v2).
    Freeze {
        /// The group.
        cgroup: CgroupRef,
    },
    /// Stop a systemd unit and keep it down; its earlier state is restored.
    StopUnit {
        /// Full unit name.
        unit: String,
        /// Triggers (sockets, timers) that are stopped first, so that they do not start it again.
        triggers: Vec<String>,
        /// Units that systemd stops with it, because they require it.
        #[serde(default)]
        dependents: Vec<String>,
    },
    /// Run a command of the user's, with the command that undoes it.
    Command {
        /// Program and arguments that do it.
        run: Vec<String>,
        /// Program and arguments that undo it.
        undo: Vec<String>,
    },
    /// Make a named network namespace (part of a stage, such as the demo's).
    Netns {
        /// Name under `/run/netns`.
        name: String,
    },
    /// Join two of our namespaces by a veth pair. It goes with its namespaces.
    Veth {
        /// Name of the first namespace, and the interface and addresses in it.
        a: VethEnd,
        /// The other end.
        b: VethEnd,
    },
    /// Make a control group; its processes are killed and it is removed afterwards.
    MakeCgroup {
        /// Path below the cgroup v2 mount point.
        path: String,
    },
    /// Start a process inside a cgroup and a namespace of ours. It ends with its cgroup.
    Spawn {
        /// What the report calls it.
        name: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Environment added to the agent's own.
        env: BTreeMap<String, String>,
        /// Name of the network namespace under `/run/netns`.
        netns: Option<String>,
        /// Path of the control group below the cgroup v2 mount point.
        cgroup: String,
        /// File that takes its output.
        log: Option<String>,
    },
}

/// One end of a veth pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VethEnd {
    /// Name of the namespace under `/run/netns`.
    pub netns: String,
    /// Name of the interface.
    pub interface: String,
    /// Its addresses, each with the prefix length of its network.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Routes of the namespace that lead through this interface.
    pub routes: Vec<Route>,
}

/// A route: packets to `to` go by way of `via`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination; `0.0.0.0/0` or `::/0` for the default route.
    pub to: Cidr,
    /// The next hop.
    pub via: IpAddr,
}

/// One way through an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Packets that leave through the interface.
    Egress,
    /// Packets that arrive on it.
    Ingress,
}

/// Whose sockets a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketOwner {
    /// All processes of a control group and of the groups below it.
    Cgroup(CgroupRef),
    /// Certain processes only, even when they share their cgroup with others.
    Processes(Vec<ProcessRef>),
}

/// Whose processes are killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Victim {
    /// Every process of a control group.
    Cgroup(CgroupRef),
    /// A unit's control group, which may be made anew when the unit restarts.
    Unit {
        /// Full unit name.
        unit: String,
        /// Its control group at the time of planning.
        cgroup: CgroupRef,
    },
    /// These processes; with `keep`, whatever answers the same selector later.
    Processes {
        /// The processes at the time of planning.
        processes: Vec<ProcessRef>,
    },
}

impl Change {
    /// Leaves of a user's own command only what may be shown.
    pub fn mask(&mut self) {
        if let Self::Command { run, undo } = self {
            *run = masked(run);
            *undo = masked(undo);
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        })
    }
}

impl fmt::Display for SocketOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(cgroup) => write!(f, "cgroup {}", cgroup.path),
            Self::Processes(list) => write_processes(f, list),
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cgroup(cgroup) => write!(f, "every process of cgroup {}", cgroup.path),
            Self::Unit { unit, .. } => write!(f, "every process of unit {unit}"),
            Self::Processes { processes } => write_processes(f, processes),
        }
    }
}

fn write_processes(f: &mut fmt::Formatter<'_>, list: &[ProcessRef]) -> fmt::Result {
    f.write_str(if list.len() == 1 { "process " } else { "processes " })?;
    for (i, process) in list.iter().enumerate() {
        write!(f, "{}{} ({})", if i == 0 { "" } else { ", " }, process.pid, process.comm)?;
    }
    Ok(())
}

fn write_spared(f: &mut fmt::Formatter<'_>, ports: &[u16]) -> fmt::Result {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    if ports.is_empty() { Ok(()) } else { write!(f, " but those of port {}", ports.join(", ")) }
}

/// One line for people: what will be done, to which object.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach { netns, interface, direction } => {
                write!(f, "attach the packet program to {} {direction} ({})", interface.name, netns.path)
            }
            Self::Tag { netns, sockets } => write!(f, "mark the sockets of {sockets} ({})", netns.path),
            Self::DelayLine { netns, interface, direction } => {
                write!(f, "run a delay line for {} {direction} ({})", interface.name, netns.path)
            }
            Self::Rule { netns, rule } => {
                write!(f, "rule: {} {}", rule.action, rule.filter)?;
                write_spared(f, &rule.spare)?;
                for (i, way) in rule.ways.iter().enumerate() {
                    write!(f, "{} {way}", if i == 0 { "," } else { " and" })?;
                }
                match (&rule.interface, &rule.sockets) {
                    (Some(interface), _) => write!(f, " on {}", interface.name)?,
                    (None, None) => f.write_str(" on every interface but lo")?,
                    (None, Some(_)) => {}
                }
                if let Some(sockets) = &rule.sockets {
                    write!(f, " of {sockets}")?;
                }
                if let Some(Update { at, action }) = rule.then.last() {
                    let last = action.to_string();
                    let last = last.trim_end_matches(" of").trim_end_matches(',');
                    write!(f, ", changed {} times until after {at} it is: {last}", rule.then.len())?;
                }
                write!(f, " ({})", netns.path)
            }
            Self::CallRule { caller, rule } => write!(f, "rule: {rule}, by {caller}"),
            Self::Proxy { netns, caller, filter, share, toxics } => {
                write!(f, "run a proxy for {share} of the connections of {caller}: {toxics}, {filter} ({})", netns.path)
            }
            Self::Sysctl { netns, key, value } => write!(f, "set {key} = {value} ({})", netns.path),
            Self::Kill { victim, signal, keep, .. } => {
                write!(
                    f,
                    "send signal {signal} to {victim}{}",
                    if *keep { ", again whenever it comes back" } else { "" }
                )
            }
            Self::Reset { netns, interface, sockets, filter, spare, every, .. } => {
                write!(f, "destroy connections: {filter}")?;
                write_spared(f, spare)?;
                if let Some(interface) = interface {
                    write!(f, ", on {}", interface.name)?;
                }
                if let Some(sockets) = sockets {
                    write!(f, ", of {sockets}")?;
                }
                if let Some(every) = every {
                    write!(f, ", every {every}")?;
                }
                write!(f, " ({})", netns.path)
            }
            Self::Suspend { process } => write!(f, "stop process {} ({}) with SIGSTOP", process.pid, process.comm),
            Self::Freeze { cgroup } => write!(f, "freeze cgroup {}", cgroup.path),
            Self::StopUnit { unit, triggers, dependents } => {
                match triggers.as_slice() {
                    [] => write!(f, "stop unit {unit}")?,
                    triggers => write!(f, "stop {}, then unit {unit}", triggers.join(", "))?,
                }
                match dependents.as_slice() {
                    [] => Ok(()),
                    dependents => write!(f, ", and with it {}", dependents.join(", ")),
                }
            }
            Self::Command { run, undo } => {
                write!(f, "run `{}` (undone by `{}`)", masked(run).join(" "), masked(undo).join(" "))
            }
            Self::Netns { name } => write!(f, "make network namespace {name}"),
            Self::Veth { a, b } => {
                write!(f, "join {}:{} and {}:{} by a veth pair", a.netns, a.interface, b.netns, b.interface)
            }
            Self::MakeCgroup { path } => write!(f, "make cgroup {path}"),
            Self::Spawn { name, cgroup, .. } => write!(f, "start {name} in cgroup {cgroup}"),
        }
    }
}
