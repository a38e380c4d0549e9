//! What faults on system calls share: whose calls, and how their receipts are read.

use super::{PlanError, Reading, network, peers};
use crate::change::{CallRule, Caller, Change, Plan, Protocol};
use crate::facts::{FactsSnapshot, NetnsRef, TargetKind};
use crate::peer::Peer;
use crate::receipt::{CallCount, Effect, Measured, ReceiptLine};
use crate::units::Percent;

/// Declares the parameters of a fault on calls: its own, then which calls it is about, which is the same for all.
macro_rules! call_fault {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $($own:tt)* }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// Share of the calls; all when left out
            #[serde(default = "crate::fault::calls::all")]
            pub percent: $crate::units::Percent,
            /// Only connections to these addresses, networks or hosts; in a file also {component: NAME}
            #[serde(default)]
            pub peers: Vec<$crate::peer::Peer>,
            /// Only connections to these ports
            #[serde(default)]
            pub peer_ports: Vec<$crate::units::Ports>,
        }

        impl $name {
            /// Which calls it is about.
            fn filter(
                &self,
                protocol: Option<$crate::change::Protocol>,
            ) -> $crate::change::Filter<$crate::peer::Peer> {
                let (peers, peer_ports) = (self.peers.clone(), self.peer_ports.clone());
                $crate::change::Filter { protocol, peers, peer_ports, ..$crate::change::Filter::default() }
            }
        }
    };
}
pub(super) use call_fault;

/// The share when none is named.
pub fn all() -> Percent {
    Percent::ALL
}

/// Limits that every fault on calls has.
///
/// # Errors
/// A share of nothing, a protocol without connections, or too many networks or ports for one rule.
pub fn check(rule: &CallRule<Peer>) -> Result<(), String> {
    if rule.share.percent() == 0.0 {
        return Err("0% of the calls are none: give a share such as `30%`, or leave `percent` out".into());
    }
    if rule.filter.protocol == Some(Protocol::Icmp) {
        return Err("ICMP has no connections: name `tcp` or `udp`".into());
    }
    network::check(&rule.filter)
}

/// Whose calls, and the network namespace in which they are.
///
/// # Errors
/// When the target has no calls of its own, or is the whole host.
pub fn caller(fault: &'static str, facts: &FactsSnapshot) -> Result<(Caller, NetnsRef), PlanError> {
    let target = &facts.target;
    let refuse = |why: &str| Err(PlanError::new(fault, facts, why));
    let Some(network) = &target.netns else {
        return refuse("it has no running process, so nothing in it makes calls; start it first");
    };
    let caller = match (network::owner(fault, facts)?, target.kind) {
        (Some(owner), _) => Caller::Owner(owner),
        (None, TargetKind::Interface) => {
            return refuse("a call is not bound to an interface: name its namespace, or a unit, cgroup or process");
        }
        (None, _) if network.netns.inode == facts.host.netns => {
            return refuse(
                "it is the host's own network, with all that keeps it alive: name a unit, cgroup or process",
            );
        }
        (None, _) if network.interfaces.is_empty() => {
            return refuse("there is no interface in its network namespace besides lo");
        }
        (None, _) => Caller::Netns(network.netns.clone()),
    };
    Ok((caller, network.netns.clone()))
}

/// Plans rules for the calls of a target.
///
/// # Errors
/// When it has no calls of its own, or is the whole host.
pub fn plan(fault: &'static str, facts: &FactsSnapshot, rules: Vec<CallRule<Peer>>) -> Result<Plan, PlanError> {
    let (caller, _) = caller(fault, facts)?;
    let mut plan = Plan {
        changes: Vec::new(),
        notes: vec!["the error comes at once, and what is connected already is left alone".into()],
    };
    for CallRule { calls, filter, without_port, share, error } in rules {
        let (filter, notes) = peers::looked_up(fault, facts, filter)?;
        plan.notes.extend(notes);
        let rule = CallRule { calls, filter, without_port, share, error };
        plan.changes.push(Change::CallRule { caller: caller.clone(), rule });
    }
    plan.notes.dedup();
    Ok(plan)
}

/// The reading of a fault that has a share of the calls fail.
pub fn read(measured: &[Measured], share: Percent) -> Reading {
    let counts = || measured.iter().filter_map(|m| if let Measured::Calls(count) = m { Some(count) } else { None });
    if counts().next().is_none() {
        return network::unmeasured("calls");
    }
    let sum = counts().fold(CallCount::default(), |sum, count| CallCount {
        matched: sum.matched + count.matched,
        failed: sum.failed + count.failed,
        removed: sum.removed || count.removed,
        lost: if sum.lost.is_empty() { count.lost.clone() } else { sum.lost },
    });
    let (effect, says) = match (sum.matched, sum.failed) {
        (0, _) => (Effect::ArmedNoTraffic, "in force, but no such call was made".to_owned()),
        // So few calls that even a working fault may well have chosen none: not proven, and not disproven.
        (matched, 0) if (1.0 - share.fraction()).powf(matched as f64) > 0.05 => {
            (Effect::ArmedNoTraffic, format!("{matched} calls were made, too few for one to fail"))
        }
        (matched, 0) => (Effect::None, format!("{matched} calls were made, and none failed")),
        (matched, failed) => (Effect::Effective, format!("{failed} of {matched} calls failed")),
    };
    let applied =
        format!("{:.2}% ({} of {})", 100.0 * sum.failed as f64 / sum.matched.max(1) as f64, sum.failed, sum.matched);
    let lines = vec![ReceiptLine::new("calls", share, applied)];
    if sum.removed {
        let says = format!("not in force to its end: somebody removed our programs; {says}");
        return Reading { effect: Effect::None, says, lines };
    }
    network::until(&sum.lost, Reading { effect, says, lines })
}
