//! `loss`: packets are dropped. Which ones is said by one of three models: each by a draw of its own (Bernoulli); a chain of two
//! states, good and bad (Gilbert 1960, Elliott 1963), which makes losses come in bursts; or every n-th packet.
//! The sender sees no error: a packet that leaves is lost on its way, as on a real network.
//!
//! The chain's state decides about a packet, then the chain takes a step. In the long run it is bad for
//! `worsens / (worsens + recovers)` of the packets, and a bad time lasts `1 / recovers` packets on average.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading, ramps};
use crate::change::{Action, Course, Losses, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::ramp::Ramped;
use crate::receipt::{Effect, Measured, ReceiptLine, StepCount};
use crate::units::{Percent, Span};

packet_fault! {
    /// Parameters of `loss`.
    pub struct Loss {
        /// Share of the packets that is dropped, such as 30%
        #[serde(default)]
        pub percent: Option<Ramped<Percent>>,
        /// Losses in bursts, by a chain of a good and a bad state, instead of a share
        #[serde(default)]
        pub gilbert_elliott: Option<GilbertElliott>,
        /// Every n-th packet, instead of a share
        #[serde(default)]
        pub every: Option<u32>,
    }
    /// Which way: egress (default), ingress or both
    direction: "network::egress"
}

/// The two states of a bursty loss. With `in_bad: 100%` it is Gilbert's model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GilbertElliott {
    /// Chance to turn bad after a packet in the good state
    pub worsens: Percent,
    /// Chance to turn good after a packet in the bad state
    pub recovers: Percent,
    /// Loss in the good state
    #[serde(default)]
    pub in_good: Percent,
    /// Loss in the bad state (100% by default)
    #[serde(default = "all")]
    pub in_bad: Percent,
}

fn all() -> Percent {
    Percent::ALL
}

impl Loss {
    /// The model at a time after the fault came into force, when exactly one was given.
    fn losses(&self, at: Span) -> Option<Losses> {
        match (self.percent, self.gilbert_elliott, self.every) {
            (Some(share), None, None) => Some(Losses::Share(share.at(at))),
            (None, Some(GilbertElliott { worsens, recovers, in_good, in_bad }), None) => {
                Some(Losses::GilbertElliott { worsens, recovers, in_good, in_bad })
            }
            (None, None, Some(n)) => Some(Losses::Every(n)),
            _ => None,
        }
    }

    /// How likely it is that none of so many packets is lost although the fault works.
    fn none_lost(&self, packets: u64) -> f64 {
        let count = packets as f64;
        match self.losses(Span::default()) {
            Some(Losses::Share(_)) => (1.0 - self.percent.unwrap_or_default().least().fraction()).powf(count),
            Some(Losses::Every(n)) => f64::from(u8::from(packets < u64::from(n))),
            Some(Losses::GilbertElliott { worsens, in_good, .. }) if in_good.percent() == 0.0 => {
                (1.0 - worsens.fraction()).powf(count)
            }
            Some(losses) => (1.0 - losses.expected()).powf(count),
            None => 0.0,
        }
    }
}

impl FaultKind for Loss {
    fn check(&self) -> Result<(), String> {
        self.percent.map_or(Ok(()), Ramped::check)?;
        let Some(losses) = self.losses(Span::LONGEST) else {
            return Err(
                "say which packets are lost, in one way: `percent: 30%`, `every: 10` or `gilbert_elliott: {..}`".into(),
            );
        };
        match losses {
            Losses::Every(0) => return Err("every 0th packet is none: `every` is at least 1".into()),
            Losses::GilbertElliott { recovers, .. } if recovers.percent() == 0.0 => {
                return Err("with `recovers: 0%` bad times never end: give a chance such as `20%`".into());
            }
            losses if losses.expected() == 0.0 && self.percent.is_none_or(|share| share.most().percent() == 0.0) => {
                return Err("a loss of 0% does nothing: give a share such as `30%`".into());
            }
            _ => {}
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let losses = match self.percent {
            Some(share) => share.to_string(),
            None => self.losses(Span::default()).map_or_else(|| "no model".into(), |losses| losses.to_string()),
        };
        format!("{losses}, {}{}", self.direction.describe(), network::describe(&self.filter()))
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let first = self.losses(Span::default());
        let first = first.ok_or_else(|| PlanError::new("loss", facts, "no model of loss was given"))?;
        let times = self.percent.map(Ramped::times).unwrap_or_default();
        let course = Course::of(times, |at| Action::Drop(self.losses(at).unwrap_or(first)));
        network::plan("loss", facts, self.direction, self.filter(), course)
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("loss") };
        let share = 100.0 * sum.dropped as f64 / sum.matched.max(1) as f64;
        // So few packets that even a working fault may well have dropped none: not proven, and not disproven.
        let none_expected = self.none_lost(sum.matched) > 0.05;
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
        let requested = match (self.percent, self.losses(Span::default())) {
            (Some(share), _) => share.to_string(),
            (None, Some(chain)) => format!("{:.2}% ({chain})", 100.0 * chain.expected()),
            (None, None) => String::new(),
        };
        let mut lines = vec![ReceiptLine::new("loss", requested, applied)];
        if let Some(share) = self.percent {
            let shares = |step: StepCount| ramps::share(step.dropped, step.matched);
            lines.extend(ramps::lines("loss", share, &share.times(), &sum, shares));
        }
        network::reading(&sum, Reading { effect, says, lines })
    }
}
