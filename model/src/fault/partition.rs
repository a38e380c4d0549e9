//! `partition`: every matching packet is taken, both ways unless told otherwise. Without peers the target is cut off from everything;
//! neighbour discovery and ARP always pass, so the link itself stays up.
//!
//! A dropped packet vanishes, as with a cut cable. A rejected one is answered, as by a host on which nobody listens: TCP with a
//! reset (RFC 9293, 3.10.7.1), what else may be answered with an error of ICMP (RFC 1812, 4.3.2) or ICMPv6 (RFC 4443).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Action, Filter, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::{Effect, Measured, PacketCount, ReceiptLine};
use crate::units::Percent;

/// What senders learn of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing: packets vanish, and connections time out
    #[default]
    Drop,
    /// That they are refused: connections are reset at once
    Reject,
}

packet_fault! {
    /// Parameters of `partition`.
    pub struct Partition {
        /// What senders learn: drop (default) tells nothing; reject answers with a TCP reset or an ICMP error
        #[serde(default)]
        pub mode: Mode,
    }
    /// Which way: egress, ingress or both (default)
    direction: "network::both"
}

/// Packets that may be between their two counters, at most about one a CPU.
const IN_PASSING: u64 = 8;

impl FaultKind for Partition {
    fn check(&self) -> Result<(), String> {
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let filter = self.filter();
        let from = if filter == Filter::default() { "everything".to_owned() } else { filter.to_string() };
        let how = if self.mode == Mode::Reject { ", refused" } else { "" };
        format!("{from}, {}{how}", self.direction.describe())
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let action = match self.mode {
            Mode::Drop => Action::drop_share(Percent::ALL),
            Mode::Reject => Action::Reject,
        };
        network::plan("partition", facts, self.direction, self.filter(), action)
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("packets") };
        let (stopped, how) = match self.mode {
            Mode::Drop => (sum.dropped, "dropped"),
            Mode::Reject => (sum.dropped + sum.acted, "refused"),
        };
        let (effect, says) = match (sum.matched, stopped) {
            (0, _) => (Effect::ArmedNoTraffic, "in force, but no packet came by".to_owned()),
            (matched, stopped) if stopped >= matched => (Effect::Effective, format!("all {matched} packets {how}")),
            // Counters are read while packets pass: one that is counted as matched may be dropped a moment later.
            (matched, stopped) if stopped > 0 && sum.bypassed == 0 && matched - stopped <= IN_PASSING => {
                (Effect::Effective, format!("{stopped} of {matched} packets {how}, the rest being dealt with"))
            }
            (matched, stopped) => (Effect::None, format!("only {stopped} of {matched} packets {how}")),
        };
        let applied = format!("{stopped} of {} {how}", sum.matched);
        let mut lines = vec![ReceiptLine::new("packets", "all", applied)];
        if self.mode == Mode::Reject {
            lines.push(ReceiptLine::new("answers", "to all that may have one", answers(&sum)));
        }
        network::reading(&sum, Reading { effect, says, lines })
    }
}

/// What was answered, by kind.
fn answers(sum: &PacketCount) -> String {
    let errors = sum.acted.saturating_sub(sum.resets);
    format!("{} resets, {errors} ICMP errors, {} none", sum.resets, sum.dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effect(mode: Mode, count: PacketCount) -> Effect {
        let fault = Partition {
            mode,
            direction: network::both(),
            protocol: None,
            peers: Vec::new(),
            local_ports: Vec::new(),
            peer_ports: Vec::new(),
            flows: None,
        };
        fault.read(&[Measured::Packets(count)]).effect
    }

    #[test]
    fn a_refusal_is_shown_by_answers_and_by_what_must_not_be_answered() {
        let count =
            PacketCount { matched: 100, delayed: 100, acted: 90, resets: 60, dropped: 10, ..PacketCount::default() };
        assert_eq!(effect(Mode::Reject, count.clone()), Effect::Effective);
        assert_eq!(effect(Mode::Drop, count), Effect::None, "answers are not drops");
    }

    #[test]
    fn a_partition_through_which_packets_went_is_none() {
        let leaky = PacketCount { matched: 100, acted: 98, bypassed: 2, ..PacketCount::default() };
        assert_eq!(effect(Mode::Reject, leaky), Effect::None);
    }
}
