//! `partition`: every matching packet is dropped, both ways unless told otherwise. Without peers the target is
//! cut off from everything; neighbour discovery and ARP always pass, so the link itself stays up.

use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Action, Filter, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::{Effect, Measured, ReceiptLine};
use crate::units::Percent;

packet_fault! {
    /// Parameters of `partition`.
    pub struct Partition {}
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
        format!("{from}, {}", self.direction.describe())
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        network::plan("partition", facts, self.direction, self.filter(), Action::drop_share(Percent::ALL))
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("packets") };
        let (effect, says) = match (sum.matched, sum.dropped) {
            (0, _) => (Effect::ArmedNoTraffic, "in force, but no packet came by".to_owned()),
            (matched, dropped) if matched == dropped => (Effect::Effective, format!("all {dropped} packets dropped")),
            // Counters are read while packets pass: one that is counted as matched may be dropped a moment later.
            (matched, dropped) if dropped > 0 && matched - dropped <= IN_PASSING => {
                (Effect::Effective, format!("{dropped} of {matched} packets dropped, the rest being dealt with"))
            }
            (matched, dropped) => (Effect::None, format!("only {dropped} of {matched} packets dropped")),
        };
        let applied = format!("{} of {} dropped", sum.dropped, sum.matched);
        network::reading(&sum, Reading { effect, says, lines: vec![ReceiptLine::new("packets", "all", applied)] })
    }
}
