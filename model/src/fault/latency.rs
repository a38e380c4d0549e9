//! `latency`: packets are held back for `delay ± jitter`, drawn uniformly for each packet; packets of one
//! flow keep their order. Held by a delay line, which touches no queueing discipline.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::network::{self, Direction};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Action, Filter, Plan, Protocol};
use crate::facts::FactsSnapshot;
use crate::receipt::{Effect, Measured, ReceiptLine};
use crate::units::{Cidr, Ports, Span};

/// The longest delay that the delay line takes.
pub const LONGEST: Span = Span::from_secs(60);

/// Parameters of `latency`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// How long packets are held back, at most 60s
    pub delay: Span,
    /// Greatest deviation from the delay, either way, uniform
    #[serde(default)]
    pub jitter: Span,
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

impl Latency {
    /// The shortest that a packet may be held, less a hundredth for the steps of the histogram.
    fn shortest_ns(&self) -> u64 {
        let shortest = self.delay.as_nanos().saturating_sub(self.jitter.as_nanos());
        shortest - shortest / 100
    }

    fn filter(&self) -> Filter {
        network::filter(self.protocol, &self.peers, &self.local_ports, &self.peer_ports)
    }
}

impl FaultKind for Latency {
    fn check(&self) -> Result<(), String> {
        if self.delay.0.is_zero() {
            return Err("a delay of 0 does nothing: give one such as `100ms`".into());
        }
        if self.jitter > self.delay {
            return Err(format!(
                "jitter {} is greater than delay {}, and no packet can leave before it came: lower the jitter",
                self.jitter, self.delay
            ));
        }
        if self.delay.0 + self.jitter.0 > LONGEST.0 {
            return Err(format!("delay plus jitter is more than {LONGEST}, the longest that packets are held"));
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let jitter = if self.jitter.0.is_zero() { String::new() } else { format!(" ± {}", self.jitter) };
        format!("{}{jitter}, {}{}", self.delay, self.direction.describe(), network::describe(&self.filter()))
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let action = Action::Delay { delay: self.delay, jitter: self.jitter };
        network::plan("latency", facts, self.direction, self.filter(), action)
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("delay") };
        let requested =
            if self.jitter.0.is_zero() { self.delay.to_string() } else { format!("{} ± {}", self.delay, self.jitter) };
        let ms = |ns: u64| format!("{:.2} ms", ns as f64 / 1e6);
        let (effect, says, applied) = match (sum.matched, sum.applied.count) {
            (0, _) => (Effect::ArmedNoTraffic, "in force, but no packet came by".to_owned(), "-".to_owned()),
            (matched, 0) => (Effect::None, format!("{matched} packets matched, none came out delayed"), "-".into()),
            (matched, _) if sum.bypassed > matched / 2 => {
                let says = format!(
                    "{} of {matched} packets were let through undelayed: more than the delay line takes",
                    sum.bypassed
                );
                (Effect::None, says, "-".into())
            }
            // A packet that is held when its fault ends leaves early. If all did, nothing was slow for as long as asked.
            (_, n) if sum.applied.max_ns < self.shortest_ns() => {
                let says = format!("all {n} packets left before their time, the last after {}", ms(sum.applied.max_ns));
                (Effect::None, says, format!("at most {}", ms(sum.applied.max_ns)))
            }
            (matched, n) => {
                let mean = ms(sum.applied.sum_ns / n);
                (
                    Effect::Effective,
                    format!("{n} of {matched} packets delayed by {mean} on average"),
                    format!("mean {mean}, {} to {}", ms(sum.applied.min_ns), ms(sum.applied.max_ns)),
                )
            }
        };
        let mut lines = vec![ReceiptLine::new("delay", requested, applied)];
        if sum.bypassed > 0 {
            lines.push(ReceiptLine::new("let through undelayed", 0, sum.bypassed));
        }
        network::reading(&sum, Reading { effect, says, lines })
    }
}
