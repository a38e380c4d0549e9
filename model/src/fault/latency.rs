//! `latency`: packets are held back for a delay that is drawn for each of them; packets of one flow keep their order unless
//! `reorder` is set. Held by a delay line, which touches no queueing discipline.
//!
//! The delay is `delay + jitter * d`, not below 0, where d is drawn from the distribution: uniform on [-1, 1]; standard normal;
//! Pareto of index 3, `(u^(-1/3) - 3/2) * 4/3` for u uniform on (0, 1], as the tables of tc-netem(8) have it; or a quarter of
//! the normal and three quarters of the Pareto of one draw. `correlation` is that of the normal deviates from which d is made, each
//! `r * last + sqrt(1 - r^2) * new`, so that the distribution stays what it is.

use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading, ramps};
use crate::change::{Action, Course, Distribution, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::ramp::Ramped;
use crate::receipt::{Effect, Measured, ReceiptLine, StepCount};
use crate::units::{Percent, Span};

/// The longest delay that the delay line takes.
pub const LONGEST: Span = Span::from_secs(60);

packet_fault! {
    /// Parameters of `latency`.
    pub struct Latency {
        /// How long packets are held back, at most 60s
        pub delay: Ramped<Span>,
        /// How far delays are spread: the greatest deviation (uniform), the standard deviation (normal) or the scale (pareto)
        #[serde(default)]
        pub jitter: Ramped<Span>,
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
            Distribution::Uniform => self.jitter.most().as_nanos(),
            // Four standard deviations, which one packet in thirty thousand exceeds; Pareto's deviations end before.
            Distribution::Normal | Distribution::Pareto | Distribution::ParetoNormal => {
                4 * self.jitter.most().as_nanos()
            }
        };
        let shortest = self.delay.least().as_nanos().saturating_sub(below);
        shortest - shortest / 100
    }
}

impl FaultKind for Latency {
    fn check(&self) -> Result<(), String> {
        self.delay.check()?;
        self.jitter.check()?;
        let (delay, jitter) = (self.delay.most(), self.jitter.most());
        if delay.0.is_zero() {
            return Err("a delay of 0 does nothing: give one such as `100ms`".into());
        }
        if jitter > delay {
            return Err(format!(
                "jitter {jitter} is greater than delay {delay}, and no packet can leave before it came: lower the jitter"
            ));
        }
        if delay.0 + jitter.0 > LONGEST.0 {
            return Err(format!("delay plus jitter is more than {LONGEST}, the longest that packets are held"));
        }
        if jitter.0.is_zero() && (self.distribution != Distribution::Uniform || self.correlation.percent() > 0.0) {
            return Err(
                "without jitter every delay is the same: give `jitter`, or leave `distribution` and `correlation` out"
                    .into(),
            );
        }
        if jitter.0.is_zero() && self.reorder {
            return Err("without jitter no packet overtakes another: give `jitter`, or use `reorder` as a fault".into());
        }
        if self.correlation.percent() >= 100.0 {
            return Err("with a correlation of 100% all delays are the first one: give less, or no jitter".into());
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let mut jitter = if self.jitter.most().0.is_zero() { String::new() } else { format!(" ± {}", self.jitter) };
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
        let Self { delay, jitter, distribution, correlation, reorder, .. } = *self;
        let action =
            |at| Action::Delay { delay: delay.at(at), jitter: jitter.at(at), distribution, correlation, reorder };
        let times = &delay.times() | &jitter.times();
        network::plan("latency", facts, self.direction, self.filter(), Course::of(times, action))
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("delay") };
        let requested = if self.jitter.most().0.is_zero() {
            self.delay.to_string()
        } else {
            format!("{} ± {}", self.delay, self.jitter)
        };
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
        let times = &self.delay.times() | &self.jitter.times();
        let mean = |step: StepCount| Some(format!("mean {}", ms(step.delays_ns.checked_div(step.delays)?)));
        lines.extend(ramps::lines("delay", self.delay, &times, &sum, mean));
        if sum.bypassed > 0 {
            lines.push(ReceiptLine::new("let through undelayed", 0, sum.bypassed));
        }
        network::reading(&sum, Reading { effect, says, lines })
    }
}
