//! `reorder`: some packets are held back for a while, and those behind them, of the same flow too, pass. Each packet by a draw of its own
//! (Bernoulli). A packet is out of order if another of its flow left within the time that it was held.

use super::latency::LONGEST;
use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading, ramps};
use crate::change::{Action, Course, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::ramp::Ramped;
use crate::receipt::{Measured, ReceiptLine, StepCount};
use crate::units::{Percent, Span};

packet_fault! {
    /// Parameters of `reorder`.
    pub struct Reorder {
        /// Share of the packets that is put behind others, such as 10%
        pub percent: Ramped<Percent>,
        /// How long they are held (5ms by default), at most 60s
        #[serde(default = "a_while")]
        pub by: Ramped<Span>,
    }
    /// Which way: egress (default), ingress or both
    direction: "network::egress"
}

fn a_while() -> Ramped<Span> {
    Span::from_millis(5).into()
}

impl FaultKind for Reorder {
    fn check(&self) -> Result<(), String> {
        self.percent.check()?;
        if self.percent.most().percent() == 0.0 {
            return Err("0% of the packets are none: give a share such as `10%`".into());
        }
        self.by.check()?;
        if self.by.least().0.is_zero() || self.by.most() > LONGEST {
            return Err(format!("packets are put behind others by more than 0s and at most {LONGEST}: give `by: 5ms`"));
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let (way, filter) = (self.direction.describe(), network::describe(&self.filter()));
        format!("{} by {}, {way}{filter}", self.percent, self.by)
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let action = |at| Action::Reorder { share: self.percent.at(at), by: self.by.at(at) };
        let times = &self.percent.times() | &self.by.times();
        network::plan("reorder", facts, self.direction, self.filter(), Course::of(times, action))
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("held back") };
        let (effect, says, applied) = network::share_acted(&sum, self.percent, "held back");
        let mut lines = vec![ReceiptLine::new("held back", self.percent, applied)];
        let shares = |step: StepCount| ramps::share(step.acted, step.matched);
        lines.extend(ramps::lines(
            "held back",
            self.percent,
            &(&self.percent.times() | &self.by.times()),
            &sum,
            shares,
        ));
        network::reading(&sum, Reading { effect, says, lines })
    }
}
