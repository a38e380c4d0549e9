//! `latency`: packets are held back for a delay that is drawn for each of them; packets of one flow keep their order unless
//! `reorder` is set. Held by a delay line, which touches no queueing discipline.
//!
//! The delay is `delay + jitter * d`, not below 0, where d is drawn from the distribution: uniform on [-1, 1]; standard normal;
//! Pareto of index 3, `(u^(-1/3) - 3/2) * 4/3` for u uniform on (0, 1], as the tables of tc-netem(8) have it; or a quarter of
//! the normal and three quarters of the Pareto. `correlation` is that of the normal deviates from which d is made, each
//! `r * last + sqrt(1 - r^2) * new`, so that the distribution stays what it is.

use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Action, Distribution, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::{Effect, Measured, ReceiptLine};
use crate::units::{Percent, Span};

/// The longest delay that the delay line takes.
pub const LONGEST: Span = Span::from_secs(60);

packet_fault! {
    /// Parameters of `latency`.
    pub struct Latency {
        /// How long packets are held back, at most 60s
        pub delay: Span,
        /// How far delays are spread: the greatest deviation (uniform), the standard deviation (normal) or the scale (pareto)
        #[serde(default)]
        pub jitter: Span,
        /// How they are spread: uniform (default), normal, pareto or paretonormal
        #[serde(default)]
        pub distribution: Distribution,
        /// How much each delay is like the one before, such as 25%
        #[serde(default)]
        pub correlation: Percent,
        /// Let packets of one flow overtake each other
        #[serde(default)]
        pub reorder: bool,
    }
    /// Which way: egress (default), ingress or both
    direction: "network::egress"
}

impl Latency {
    /// The shortest that a packet may be held, less a hundredth for the steps of the histogram.
    fn shortest_ns(&self) -> u64 {
        let below = match self.distribution {
            Distribution::Uniform => self.jitter.as_nanos(),
            // Four standard deviations, which one packet in thirty thousand exceeds; Pareto's deviations end before.
            Distribution::Normal | Distribution::Pareto | Distribution::ParetoNormal => 4 * self.jitter.as_nanos(),
        };
        let shortest = self.delay.as_nanos().saturating_sub(below);
        shortest - shortest / 100
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
        if self.jitter.0.is_zero() && (self.distribution != Distribution::Uniform || self.correlation.percent() > 0.0) {
            return Err(
                "without jitter every delay is the same: give `jitter`, or leave `distribution` and `correlation` out"
                    .into(),
            );
        }
        if self.jitter.0.is_zero() && self.reorder {
            return Err("without jitter no packet overtakes another: give `jitter`, or use `reorder` as a fault".into());
        }
        if self.correlation.percent() >= 100.0 {
            return Err("with a correlation of 100% all delays are the first one: give less, or no jitter".into());
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let mut jitter = if self.jitter.0.is_zero() { String::new() } else { format!(" ± {}", self.jitter) };
        if self.distribution != Distribution::Uniform {
            jitter += &format!(" {}", format!("{:?}", self.distribution).to_lowercase());
        }
        if self.correlation.percent() > 0.0 {
            jitter += &format!(", correlated {}", self.correlation);
        }
        if self.reorder {
            jitter += ", in any order";
        }
        format!("{}{jitter}, {}{}", self.delay, self.direction.describe(), network::describe(&self.filter()))
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let action = Action::Delay {
            delay: self.delay,
            jitter: self.jitter,
            distribution: self.distribution,
            correlation: self.correlation,
            reorder: self.reorder,
        };
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
