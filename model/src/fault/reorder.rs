//! `reorder`: some packets are held back for a while, and those behind them, of the same flow too, pass. Each packet by a draw of its own
//! (Bernoulli). A packet is out of order if another of its flow left within the time that it was held.

use super::latency::LONGEST;
use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Action, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::{Measured, ReceiptLine};
use crate::units::{Percent, Span};

packet_fault! {
    /// Parameters of `reorder`.
    pub struct Reorder {
        /// Share of the packets that is put behind others, such as 10%
        pub percent: Percent,
        /// How long they are held (5ms by default), at most 60s
        #[serde(default = "a_while")]
        pub by: Span,
    }
    /// Which way: egress (default), ingress or both
    direction: "network::egress"
}

fn a_while() -> Span {
    Span::from_millis(5)
}

impl FaultKind for Reorder {
    fn check(&self) -> Result<(), String> {
        if self.percent.percent() == 0.0 {
            return Err("0% of the packets are none: give a share such as `10%`".into());
        }
        if self.by.0.is_zero() || self.by > LONGEST {
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
        let action = Action::Reorder { share: self.percent, by: self.by };
        network::plan("reorder", facts, self.direction, self.filter(), action)
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("held back") };
        let (effect, says, applied) = network::share_acted(&sum, self.percent, "held back");
        network::reading(
            &sum,
            Reading { effect, says, lines: vec![ReceiptLine::new("held back", self.percent, applied)] },
        )
    }
}
