//! `loss`: each matching packet is dropped with a fixed probability, independently of the others (Bernoulli).
//! The sender sees no error: a packet that leaves is lost on its way, as on a real network.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::network::{self, Direction};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Action, Filter, Plan, Protocol};
use crate::facts::FactsSnapshot;
use crate::receipt::{Effect, Measured, ReceiptLine};
use crate::units::{Cidr, Percent, Ports};

/// Parameters of `loss`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Loss {
    /// Share of the packets that is dropped, such as 30%
    pub percent: Percent,
    /// Which way: egress (default), ingress or both
    #[serde(default)]
    pub direction: Direction,
    /// Only this protocol: tcp, udp or icmp
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// Only packets to or from these addresses or networks
    #[serde(default)]
    pub peers: Vec<Cidr>,
    /// Only these ports of the target itself
    #[serde(default)]
    pub local_ports: Vec<Ports>,
    /// Only these ports of the other side
    #[serde(default)]
    pub peer_ports: Vec<Ports>,
}

impl Loss {
    fn filter(&self) -> Filter {
        network::filter(self.protocol, &self.peers, &self.local_ports, &self.peer_ports)
    }
}

impl FaultKind for Loss {
    fn check(&self) -> Result<(), String> {
        if self.percent.percent() == 0.0 {
            return Err("a loss of 0% does nothing: give a share such as `30%`".into());
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        format!("{}, {}{}", self.percent, self.direction.describe(), network::describe(&self.filter()))
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        network::plan("loss", facts, self.direction, self.filter(), Action::Drop { share: self.percent })
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("loss") };
        let share = 100.0 * sum.dropped as f64 / sum.matched.max(1) as f64;
        // So few packets that even a working fault may well have dropped none: not proven, and not disproven.
        let none_expected = (1.0 - self.percent.fraction()).powf(sum.matched as f64) > 0.05;
        let (effect, says) = match (sum.matched, sum.dropped) {
            (0, _) => (Effect::ArmedNoTraffic, "in force, but no packet came by".to_owned()),
            (matched, 0) if none_expected => {
                (Effect::ArmedNoTraffic, format!("{matched} packets came by, too few for one to be dropped"))
            }
            (matched, 0) => (Effect::None, format!("{matched} packets matched, none was dropped")),
            (matched, dropped) => (Effect::Effective, format!("{dropped} of {matched} packets dropped ({share:.1} %)")),
        };
        let applied =
            if sum.matched == 0 { "-".to_owned() } else { format!("{share:.1}% ({} of {})", sum.dropped, sum.matched) };
        network::reading(&sum, Reading { effect, says, lines: vec![ReceiptLine::new("loss", self.percent, applied)] })
    }
}
