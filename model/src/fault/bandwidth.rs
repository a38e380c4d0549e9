//! `bandwidth`: packets leave no faster than at a rate. They wait in a queue, which is bounded, and what does not fit is dropped, as
//! at a narrow link. After a rest a burst may leave at once.
//!
//! The rate is that of frames on the link, headers included. The law is that of a virtual clock (the generic cell rate algorithm,
//! ITU-T I.371): a frame of n bytes moves the clock on by n / rate, and leaves when the clock is less than burst / rate ahead.

use super::latency::LONGEST;
use super::network::{self, packet_fault};
use super::{FaultKind, PlanError, Reading, ramps};
use crate::change::{Action, Course, Per, Plan};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::ramp::Ramped;
use crate::receipt::{Effect, Measured, ReceiptLine, StepCount};
use crate::units::{Rate, Size};

packet_fault! {
    /// Parameters of `bandwidth`.
    pub struct Bandwidth {
        /// Bits a second, such as 10mbit
        pub rate: Ramped<Rate>,
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

/// The rate while packets waited for it.
fn rate(count: StepCount) -> Option<String> {
    let mbit = 8e3 * count.limited_bytes as f64 / count.limited_ns as f64;
    (count.limited_ns > 0).then(|| format!("{mbit:.3} Mbit/s"))
}

impl FaultKind for Bandwidth {
    fn check(&self) -> Result<(), String> {
        self.rate.check()?;
        let slowest = self.rate.least().0;
        if slowest < SLOWEST {
            return Err(format!("the slowest is {}; to stop traffic use `partition`", Rate(SLOWEST)));
        }
        if self.burst.0 < FRAME {
            return Err(format!("a burst of less than {} lets no full frame pass", Size(FRAME)));
        }
        let longest = self.queue.0.saturating_mul(8) / slowest;
        if longest > LONGEST.0.as_secs() {
            return Err(format!(
                "a queue of {} at {} takes {longest} s, and packets wait at most {LONGEST}: make the queue smaller",
                self.queue,
                Rate(slowest)
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
        let Self { rate, burst, queue, per, .. } = *self;
        let action = |at| Action::Limit { rate: rate.at(at), burst, queue, per };
        network::plan("bandwidth", facts, self.direction, self.filter(), Course::of(rate.times(), action))
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
                (
                    Effect::Effective,
                    format!("{waited} of {matched} packets had to wait, {dropped} found no room"),
                    rate(sum.so_far()).unwrap_or_else(|| "-".into()),
                )
            }
        };
        let mut lines = vec![ReceiptLine::new("rate, while packets waited", self.rate, applied)];
        lines.extend(ramps::lines("rate", self.rate, &self.rate.times(), &sum, rate));
        if sum.bypassed > 0 {
            lines.push(ReceiptLine::new("let through", 0, sum.bypassed));
        }
        network::reading(&sum, Reading { effect, says, lines })
    }
}
