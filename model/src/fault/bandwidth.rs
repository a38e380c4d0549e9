//! `bandwidth`: packets leave no faster than at a rate. They wait in a queue, which is bounded, and what does not fit is dropped, as
//! at a narrow link. After a rest a burst may leave at once.
//!
//! The rate is that of frames on the link, headers included. The law is that of a virtual clock (the generic cell rate algorithm,
//! ITU-T I.371): a frame of n bytes moves the clock on by n / rate, and leaves when the clock is less than burst / rate ahead.

use super::latency::LONGEST;
use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading};
use crate::change::{Action, Per, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::receipt::{Effect, Measured, ReceiptLine};
use crate::units::{Rate, Size};

packet_fault! {
    /// Parameters of `bandwidth`.
    pub struct Bandwidth {
        /// Bits a second, such as 10mbit
        pub rate: Rate,
        /// What may leave at once after a rest (16KiB by default)
        #[serde(default = "small")]
        pub burst: Size,
        /// What may wait; more is dropped (1MiB by default)
        #[serde(default = "much")]
        pub queue: Size,
        /// What shares the rate: total (default) or each flow
        #[serde(default)]
        pub per: Per,
    }
    /// Which way: egress (default), ingress or both
    direction: "network::egress"
}

/// Bits a second below which a full frame takes more than ten seconds.
const SLOWEST: u64 = 1000;
/// A full frame, in bytes.
const FRAME: u64 = 1514;

fn small() -> Size {
    Size(16 << 10)
}

fn much() -> Size {
    Size(1 << 20)
}

impl FaultKind for Bandwidth {
    fn check(&self) -> Result<(), String> {
        if self.rate.0 < SLOWEST {
            return Err(format!("the slowest is {}; to stop traffic use `partition`", Rate(SLOWEST)));
        }
        if self.burst.0 < FRAME {
            return Err(format!("a burst of less than {} lets no full frame pass", Size(FRAME)));
        }
        let longest = self.queue.0.saturating_mul(8) / self.rate.0;
        if longest > LONGEST.0.as_secs() {
            return Err(format!(
                "a queue of {} at {} takes {longest} s, and packets wait at most {LONGEST}: make the queue smaller",
                self.queue, self.rate
            ));
        }
        network::check(&self.filter())
    }

    fn describe(&self) -> String {
        let per = if self.per == Per::Flow { " for each flow" } else { "" };
        format!("{}{per}, {}{}", self.rate, self.direction.describe(), network::describe(&self.filter()))
    }

    fn peers(&self) -> &[Peer] {
        &self.peers
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let action = Action::Limit { rate: self.rate, burst: self.burst, queue: self.queue, per: self.per };
        network::plan("bandwidth", facts, self.direction, self.filter(), action)
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(sum) = network::total(measured) else { return network::unmeasured("rate") };
        let dropped = sum.dropped;
        let (effect, says, applied) = match (sum.matched, sum.acted + dropped) {
            (0, _) => (Effect::ArmedNoTraffic, "in force, but no packet came by".to_owned(), "-".to_owned()),
            (matched, _) if sum.bypassed > matched / 2 => {
                (Effect::None, format!("{} of {matched} packets were let through", sum.bypassed), "-".into())
            }
            (matched, 0) => (
                Effect::ArmedNoTraffic,
                format!("{matched} packets came by, too slowly for one to have to wait"),
                "-".into(),
            ),
            (matched, _) => {
                let waited = sum.acted;
                let rate = 8e9 * sum.limited_bytes as f64 / sum.limited_ns.max(1) as f64;
                let applied = if sum.limited_ns == 0 { "-".into() } else { format!("{:.3} Mbit/s", rate / 1e6) };
                (
                    Effect::Effective,
                    format!("{waited} of {matched} packets had to wait, {dropped} found no room"),
                    applied,
                )
            }
        };
        let mut lines = vec![ReceiptLine::new("rate, while packets waited", self.rate, applied)];
        if sum.bypassed > 0 {
            lines.push(ReceiptLine::new("let through", 0, sum.bypassed));
        }
        network::reading(&sum, Reading { effect, says, lines })
    }
}
