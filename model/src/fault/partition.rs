//! `partition`: every matching packet is dropped, both ways unless told otherwise. Without peers the target is
//! cut off from everything; neighbour discovery and ARP always pass, so the link itself stays up.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::network::{self, Direction};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Action, Filter, Plan, Protocol};
use crate::facts::FactsSnapshot;
use crate::receipt::{Effect, Measured, ReceiptLine};
use crate::units::{Cidr, Percent, Ports};

/// Parameters of `partition`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Partition {
    /// Cut off from these addresses or networks; from everything when left out
    #[serde(default)]
    pub peers: Vec<Cidr>,
    /// Which way: egress, ingress or both (default)
    #[serde(default = "both")]
    pub direction: Direction,
    /// Only this protocol: tcp, udp or icmp
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// Only these ports of the target itself
    #[serde(default)]
    pub local_ports: Vec<Ports>,
    /// Only these ports of the other side
    #[serde(default)]
    pub peer_ports: Vec<Ports>,
}

/// Packets that may be between their two counters, at most about one a CPU.
const IN_PASSING: u64 = 8;

fn both() -> Direction {
    Direction::Both
}

impl Partition {
    fn filter(&self) -> Filter {
        network::filter(self.protocol, &self.peers, &self.local_ports, &self.peer_ports)
    }
}

impl FaultKind for Partition {
    fn check(&self) -> Result<(), String> {
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let filter = self.filter();
        let from = if filter == Filter::default() { "everything".to_owned() } else { filter.to_string() };
        format!("{from}, {}", self.direction.describe())
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let all = Percent::new(100.0).map_err(|e| PlanError::new("partition", facts, e.to_string()))?;
        network::plan("partition", facts, self.direction, self.filter(), Action::Drop { share: all })
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
