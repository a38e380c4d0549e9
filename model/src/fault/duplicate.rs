//! `duplicate`: packets arrive twice. The copy follows at once, with the same bytes, as from a network that retransmits what it
//! need not. Each packet by a draw of its own (Bernoulli).

use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading, ramps};
use crate::change::{Action, Course, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::ramp::Ramped;
use crate::receipt::{Measured, ReceiptLine, StepCount};
use crate::units::Percent;

packet_fault! {
    /// Parameters of `duplicate`.
    pub struct Duplicate {
        /// Share of the packets that arrives twice, such as 5%
        pub percent: Ramped<Percent>,
    }
    /// Which way: egress (default), ingress or both
    direction: "network::egress"
}

impl FaultKind for Duplicate {
    fn check(&self) -> Result<(), String> {
        self.percent.check()?;
        if self.percent.most().percent() == 0.0 {
            return Err("0% of the packets are none: give a share such as `5%`".into());
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        format!("{}, {}{}", self.percent, self.direction.describe(), network::describe(&self.filter()))
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let action = |at| Action::Duplicate { share: self.percent.at(at) };
        network::plan("duplicate", facts, self.direction, self.filter(), Course::of(self.percent.times(), action))
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("copies") };
        let (effect, says, applied) = network::share_acted(&sum, self.percent, "duplicated");
        let mut lines = vec![ReceiptLine::new("copies", self.percent, applied)];
        let shares = |step: StepCount| ramps::share(step.acted, step.matched);
        lines.extend(ramps::lines("copies", self.percent, &self.percent.times(), &sum, shares));
        network::reading(&sum, Reading { effect, says, lines })
    }
}
