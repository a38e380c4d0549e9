//! What all packet faults share: which packets, where the programs attach, and the order of the changes.

use std::net::{IpAddr, Ipv6Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{PlanError, Reading, peers};
use crate::change::{Change, Course, Filter, Plan, Protocol, Rule, SocketOwner, Way};
use crate::facts::{FactsSnapshot, Interface, NetnsFacts, TargetKind};
use crate::peer::Peer;
use crate::ramp::Ramped;
use crate::receipt::{Effect, Lost, Measured, PacketCount, ReceiptLine, StepCount};
use crate::units::Percent;

/// The most networks and port ranges that one fault's filter takes (a limit of the in-kernel rule).
pub const MOST_PEERS: usize = 8;
/// The most port ranges of each side.
pub const MOST_PORTS: usize = 4;

/// Which way packets are acted upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Packets that the target sends.
    #[default]
    Egress,
    /// Packets that the target receives.
    Ingress,
    /// Both.
    Both,
}

impl Direction {
    /// The ways this stands for.
    pub fn ways(self) -> Vec<Way> {
        match self {
            Self::Egress => vec![Way::Egress],
            Self::Ingress => vec![Way::Ingress],
            Self::Both => vec![Way::Egress, Way::Ingress],
        }
    }

    /// For texts.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Both => "both ways",
        }
    }
}

/// The direction of most faults.
pub fn egress() -> Direction {
    Direction::Egress
}

/// The direction of faults that cut both ways.
pub fn both() -> Direction {
    Direction::Both
}

/// Declares the parameters of a packet fault: its own, then which packets it is about, which is the same for all.
macro_rules! packet_fault {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($own:tt)* }
        $(#[doc = $which_way:literal])+
        direction: $direction:literal
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            $(#[doc = $which_way])+
            #[serde(default = $direction)]
            pub direction: $crate::fault::network::Direction,
            /// Only this protocol: tcp, udp or icmp
            #[serde(default)]
            pub protocol: Option<$crate::change::Protocol>,
            /// Only packets to or from these addresses, networks or hosts; in a file also {component: NAME}
            #[serde(default)]
            pub peers: Vec<$crate::peer::Peer>,
            /// Only these ports of the target itself
            #[serde(default)]
            pub local_ports: Vec<$crate::units::Ports>,
            /// Only these ports of the other side
            #[serde(default)]
            pub peer_ports: Vec<$crate::units::Ports>,
            /// Only this share of the flows, chosen by their addresses and ports: a flow is in or out as a whole
            #[serde(default)]
            pub flows: Option<$crate::units::Percent>,
        }

        impl $name {
            /// Which packets it is about.
            fn filter(&self) -> $crate::change::Filter<$crate::peer::Peer> {
                $crate::change::Filter {
                    protocol: self.protocol,
                    peers: self.peers.clone(),
                    local_ports: self.local_ports.clone(),
                    peer_ports: self.peer_ports.clone(),
                    flows: self.flows,
                }
            }
        }
    };
}
pub(super) use packet_fault;

/// Limits that every packet fault has.
///
/// # Errors
/// Too many networks or ports for one rule, or ports of a protocol without ports.
pub fn check(filter: &Filter<Peer>) -> Result<(), String> {
    if filter.peers.len() > MOST_PEERS {
        return Err(format!(
            "{} peers; one fault takes {MOST_PEERS}: use larger networks or two faults",
            filter.peers.len()
        ));
    }
    // Rules compare IPv4 addresses in their IPv6 form, `::ffff:a.b.c.d`.
    let networks =
        filter.peers.iter().filter_map(|peer| if let Peer::Network(network) = peer { Some(network) } else { None });
    if let Some(wide) = networks.into_iter().find(|n| n.address == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && n.prefix <= 80)
    {
        return Err(format!(
            "the network {wide} holds every IPv4 address, too: name `2000::/3` or `fc00::/7`, or leave `peers` out"
        ));
    }
    if filter.flows.is_some_and(|share| share.percent() == 0.0) {
        return Err("0% of the flows are none: give a share such as `10%`, or leave `flows` out".into());
    }
    let ports = filter.local_ports.len().max(filter.peer_ports.len());
    if ports > MOST_PORTS {
        return Err(format!("{ports} port ranges; one fault takes {MOST_PORTS}: join them or use two faults"));
    }
    if filter.protocol == Some(Protocol::Icmp) && ports > 0 {
        return Err("ICMP has no ports: remove the ports, or name `tcp` or `udp`".into());
    }
    Ok(())
}

/// The filter for people, or nothing when it is empty.
pub fn describe(filter: &Filter<Peer>) -> String {
    if *filter == Filter::default() { String::new() } else { format!(", {filter}") }
}

/// The network of a target.
///
/// # Errors
/// It has none, or one without an interface that faults act on.
pub fn of<'a>(fault: &'static str, facts: &'a FactsSnapshot) -> Result<&'a NetnsFacts, PlanError> {
    let Some(network) = &facts.target.netns else {
        let why = "it has no running process, so its network is unknown; start it first";
        return Err(PlanError::new(fault, facts, why));
    };
    if network.interfaces.is_empty() {
        return Err(PlanError::new(fault, facts, "there is no interface in its network namespace besides lo"));
    }
    Ok(network)
}

/// What the reader of a plan should know of ports that are spared.
pub fn spared(ports: &[u16]) -> Option<String> {
    let list: Vec<String> = ports.iter().map(u16::to_string).collect();
    (!list.is_empty()).then(|| {
        format!(
            "it is the host's own network: what comes from or goes to port {} is let through, so that the host stays within reach",
            list.join(", ")
        )
    })
}

/// Plans a packet fault: mark sockets where needed, attach, delay line where needed, and the rules last, so
/// that nothing is acted upon before all is in place.
///
/// # Errors
/// When the target has no network of its own, or has no interface that can take the fault.
pub fn plan(
    fault: &'static str,
    facts: &FactsSnapshot,
    direction: Direction,
    filter: Filter<Peer>,
    course: impl Into<Course>,
) -> Result<Plan, PlanError> {
    let Course { action, then } = course.into();
    let target = &facts.target;
    let NetnsFacts { netns, interfaces, spare_ports: spare } = of(fault, facts)?;
    let sockets = owner(fault, facts)?;
    let delays = action.needs_line();
    let ways = direction.ways();
    let (filter, notes) = peers::looked_up(fault, facts, filter)?;
    let mut plan = Plan { changes: Vec::new(), notes };
    let (covered, bare): (Vec<&Interface>, Vec<&Interface>) = interfaces.iter().partition(|i| i.ethernet);
    if covered.is_empty() {
        let names: Vec<_> = bare.iter().map(|i| i.name.as_str()).collect();
        let why = format!("{} has no Ethernet header, which packet faults need", names.join(", "));
        return Err(PlanError::new(fault, facts, why));
    }
    for interface in bare {
        plan.notes.push(format!("{} has no Ethernet header: its packets are left alone", interface.name));
    }

    plan.notes.extend(spared(spare));
    if let Some(owner) = &sockets {
        plan.changes.push(Change::Tag { netns: netns.clone(), sockets: owner.clone() });
    }
    if delays && covered.iter().any(|i| i.loopback) {
        // A packet that re-enters at lo has lost its route; the kernel then looks it up, and refuses loopback
        // addresses unless told otherwise (ip_route_input_slow, fib_validate_source).
        for key in ["route_localnet", "accept_local"] {
            plan.changes.push(Change::Sysctl {
                netns: netns.clone(),
                key: format!("net.ipv4.conf.lo.{key}"),
                value: "1".into(),
            });
        }
    }
    for interface in &covered {
        for way in &ways {
            plan.changes.push(Change::Attach {
                netns: netns.clone(),
                interface: (*interface).clone(),
                direction: *way,
            });
            if delays {
                plan.changes.push(Change::DelayLine {
                    netns: netns.clone(),
                    interface: (*interface).clone(),
                    direction: *way,
                });
            }
        }
    }
    let rule = |interface| Change::Rule {
        netns: netns.clone(),
        rule: Rule {
            interface,
            sockets: sockets.clone(),
            ways: ways.clone(),
            filter: filter.clone(),
            spare: spare.clone(),
            action: action.clone(),
            then: then.clone(),
        },
    };
    match target.kind {
        TargetKind::Interface => plan.changes.extend(covered.into_iter().cloned().map(Some).map(rule)),
        // One rule for all, and for those that come later.
        _ => plan.changes.push(rule(None)),
    }
    Ok(plan)
}

/// Whose sockets the fault is about; `None` for whole namespaces and interfaces.
///
/// # Errors
/// When the owner is unknown: without it the fault would act on everything in the namespace.
pub fn owner(fault: &'static str, facts: &FactsSnapshot) -> Result<Option<SocketOwner>, PlanError> {
    let target = &facts.target;
    match target.kind {
        TargetKind::Netns | TargetKind::Interface => Ok(None),
        TargetKind::Cgroup | TargetKind::Unit => match &target.cgroup {
            Some(cgroup) => Ok(Some(SocketOwner::Cgroup(cgroup.clone()))),
            None => Err(PlanError::new(
                fault,
                facts,
                "it has no control group, so its packets cannot be told apart; start it first",
            )),
        },
        TargetKind::Process if target.processes.is_empty() => {
            Err(PlanError::new(fault, facts, "no process runs in it; start it first"))
        }
        TargetKind::Process => Ok(Some(SocketOwner::Processes(target.processes.clone()))),
    }
}

/// The reading when no rule gave any counters: nothing shows that the fault was in force at all.
pub fn unmeasured(what: &str) -> Reading {
    Reading {
        effect: Effect::None,
        says: "no counters were read, so nothing shows that it was in force".into(),
        lines: vec![ReceiptLine::new(what, "-", "not measured")],
    }
}

/// What a fault's packets show, and whether it acted as long as it was meant to: upon what took its target's place it
/// did not, and while its target was gone nothing shows that it could.
pub fn reading(sum: &PacketCount, reading: Reading) -> Reading {
    until(&sum.lost, reading)
}

/// The reading of a fault some of whose target is lost: upon what took its place it did not act, and while it was gone
/// nothing shows that it could.
pub fn until(all: &[Lost], reading: Reading) -> Reading {
    if all.is_empty() {
        return reading;
    }
    let Reading { effect, says, mut lines } = reading;
    let lost = all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    lines.push(ReceiptLine::new("until", "its end", format!("before it, {lost}")));
    let whole = effect == Effect::Effective && !all.iter().any(|lost| lost.replaced);
    Reading { effect: if whole { effect } else { Effect::None }, says: format!("{says}; then {lost}"), lines }
}

/// The reading of a packet fault that somebody took out of force before its end tells so, and nothing of it counts.
pub fn unless_removed(reading: Reading, measured: &[Measured]) -> Reading {
    if !measured.iter().any(|m| matches!(m, Measured::Packets(_))) {
        return reading;
    }
    let removed = measured.iter().find_map(|m| match m {
        Measured::State { in_force: false, seen, .. } => Some(seen),
        _ => None,
    });
    match removed {
        Some(seen) => Reading {
            effect: Effect::None,
            says: format!("not in force to its end: {seen}; {}", reading.says),
            ..reading
        },
        None => reading,
    }
}

/// Adds up the packet counters of a fault's rules; `None` when there are none.
pub fn total(measured: &[Measured]) -> Option<PacketCount> {
    let mut sum = PacketCount::default();
    if !measured.iter().any(|m| matches!(m, Measured::Packets(_))) {
        return None;
    }
    for count in measured.iter().filter_map(|m| if let Measured::Packets(count) = m { Some(count) } else { None }) {
        sum.matched += count.matched;
        sum.dropped += count.dropped;
        sum.delayed += count.delayed;
        sum.bypassed += count.bypassed;
        sum.bytes += count.bytes;
        sum.acted += count.acted;
        sum.resets += count.resets;
        sum.limited_bytes += count.limited_bytes;
        sum.limited_ns += count.limited_ns;
        sum.lost.extend(count.lost.iter().cloned());
        sum.steps.resize(sum.steps.len().max(count.steps.len()), StepCount::default());
        for (into, from) in sum.steps.iter_mut().zip(&count.steps) {
            *into = into.with(*from);
        }
        let (into, from) = (&mut sum.applied, &count.applied);
        if from.count > 0 {
            into.min_ns = if into.count == 0 { from.min_ns } else { into.min_ns.min(from.min_ns) };
            into.max_ns = into.max_ns.max(from.max_ns);
            into.count += from.count;
            into.sum_ns += from.sum_ns;
            for (edge, n) in &from.buckets {
                match into.buckets.binary_search_by_key(edge, |b| b.0) {
                    Ok(at) => into.buckets[at].1 += n,
                    Err(at) => into.buckets.insert(at, (*edge, *n)),
                }
            }
        }
    }
    Some(sum)
}

/// The reading of a fault that acts upon a share of the packets, each by a draw of its own: effect, sentence, and what was applied.
pub fn share_acted(sum: &PacketCount, share: Ramped<Percent>, done: &str) -> (Effect, String, String) {
    let applied =
        || format!("{:.2}% ({} of {})", 100.0 * sum.acted as f64 / sum.matched.max(1) as f64, sum.acted, sum.matched);
    match (sum.matched, sum.acted) {
        (0, _) => (Effect::ArmedNoTraffic, "in force, but no packet came by".to_owned(), "-".to_owned()),
        (matched, _) if sum.bypassed > matched / 2 => {
            let says =
                format!("{} of {matched} packets were let through: more than the delay line takes", sum.bypassed);
            (Effect::None, says, applied())
        }
        // So few packets that even a working fault may well have chosen none: not proven, and not disproven.
        (matched, 0) if (1.0 - share.least().fraction()).powf(matched as f64) > 0.05 => {
            (Effect::ArmedNoTraffic, format!("{matched} packets came by, too few for one to be {done}"), applied())
        }
        (matched, 0) => (Effect::None, format!("{matched} packets matched, none was {done}"), applied()),
        (matched, acted) => (Effect::Effective, format!("{acted} of {matched} packets {done}"), applied()),
    }
}
