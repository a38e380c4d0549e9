//! `corrupt`: bits of what packets carry arrive flipped. Left alone, the checksum shows it and the receiver's kernel drops the packet,
//! as after damage on the way; made right, the application gets the damaged bytes, as after damage in a middlebox or in memory.
//! Headers stay whole. Each packet by a draw of its own (Bernoulli), each bit drawn evenly from what is behind the transport header.

use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading, ramps};
use crate::change::{Action, Checksum, Course, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::ramp::Ramped;
use crate::receipt::{Measured, ReceiptLine, StepCount};
use crate::units::Percent;

packet_fault! {
    /// Parameters of `corrupt`.
    pub struct Corrupt {
        /// Share of the packets that is damaged, such as 1%
        pub percent: Ramped<Percent>,
        /// How many bits of each (1 by default)
        #[serde(default = "one")]
        pub bits: u16,
        /// left (default): receivers drop the packet; fixed: applications get the damage
        #[serde(default)]
        pub checksum: Checksum,
    }
    /// Which way: egress (default), ingress or both
    direction: "network::egress"
}

fn one() -> u16 {
    1
}

impl FaultKind for Corrupt {
    fn check(&self) -> Result<(), String> {
        self.percent.check()?;
        if self.percent.most().percent() == 0.0 {
            return Err("0% of the packets are none: give a share such as `1%`".into());
        }
        if self.bits == 0 {
            return Err("0 bits are no damage: `bits` is at least 1".into());
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let bits = if self.bits == 1 { "1 bit".to_owned() } else { format!("{} bits", self.bits) };
        let fixed = if self.checksum == Checksum::Fixed { ", checksum fixed" } else { "" };
        let (way, filter) = (self.direction.describe(), network::describe(&self.filter()));
        format!("{bits} in {} of the packets{fixed}, {way}{filter}", self.percent)
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let action = |at| Action::Corrupt { share: self.percent.at(at), bits: self.bits, checksum: self.checksum };
        network::plan("corrupt", facts, self.direction, self.filter(), Course::of(self.percent.times(), action))
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("damage") };
        let (effect, says, applied) = network::share_acted(&sum, self.percent, "damaged");
        let mut lines = vec![ReceiptLine::new("damage", self.percent, applied)];
        let shares = |step: StepCount| ramps::share(step.acted, step.matched);
        lines.extend(ramps::lines("damage", self.percent, &self.percent.times(), &sum, shares));
        network::reading(&sum, Reading { effect, says, lines })
    }
}
