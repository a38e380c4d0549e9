//! What a delay line does with the packets of a rule. Pure: the caller brings clock and chance.

use std::{collections::HashMap, sync::Arc, time::Duration};

use firedrill_model::change::{Distribution, DnsQueries};
use rand::Rng;

use super::{
    answer::{self, Answer},
    chance::{self, Deviate},
    dns,
};

/// The longest that a packet is held by one rule, nanoseconds.
const LONGEST_NS: f64 = 60e9;
/// Flows whose rate is kept apart; when there are more, those that have been silent are forgotten.
const MAX_FLOWS: usize = 65_536;

/// What is done with packets that are held.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Shape {
    /// Nothing: they pass.
    #[default]
    Pass,
    /// They are held for a while.
    Delay {
        /// Mean of the delay.
        delay: Duration,
        /// Its spread.
        jitter: Duration,
        /// How it is spread.
        distribution: Distribution,
        /// Correlation of the normal deviates behind it, 0 to 1.
        correlation: f64,
        /// Whether packets of one flow may overtake each other.
        reorder: bool,
    },
    /// A share of them is held while others pass.
    Reorder {
        /// The share, 0 to 1.
        share: f64,
        /// How long.
        by: Duration,
    },
    /// A share of them is sent twice.
    Duplicate {
        /// The share, 0 to 1.
        share: f64,
    },
    /// A share of them is damaged.
    Corrupt {
        /// The share, 0 to 1.
        share: f64,
        /// Bits to flip.
        bits: u16,
        /// Whether the checksum is made right.
        fix: bool,
    },
    /// They leave no faster than at a rate.
    Limit {
        /// Bits a second.
        rate: u64,
        /// Bytes that may leave at once after a rest.
        burst: u64,
        /// Bytes that may wait.
        queue: u64,
        /// Whether each flow has the rate for itself.
        per_flow: bool,
    },
    /// They are taken, and answered as if nobody were there: TCP with a reset, what else may be answered with an ICMP error.
    Reject,
    /// Of queries of DNS, some are answered in place of their server, or delayed, and others pass.
    Answer(Arc<DnsQueries>),
}

impl Shape {
    /// Whether it is about single packets, so that bursts must be cut.
    pub(super) fn needs_packets(&self) -> bool {
        matches!(self, Self::Reorder { .. } | Self::Duplicate { .. } | Self::Corrupt { .. } | Self::Answer(_))
    }
}

/// What becomes of one packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fate {
    /// It waits so much longer, nanoseconds.
    pub wait_ns: u64,
    /// It need not stay behind others of its flow.
    pub out_of_order: bool,
    /// It is sent twice.
    pub twice: bool,
    /// So many of its bits are flipped, and its checksum made right or not.
    pub damage: Option<(u16, bool)>,
    /// It is dropped.
    pub dropped: bool,
    /// It had to wait for others.
    pub queued: bool,
    /// It is none of those that are meant.
    pub untouched: bool,
    /// This goes back in its place.
    pub answer: Option<Answer>,
}

/// A shape, and what it remembers from packet to packet.
#[derive(Debug, Default)]
pub(super) struct Shaper {
    shape: Shape,
    deviate: Deviate,
    /// When the next bit may leave if nothing may leave early, nanoseconds; in all, and by flow.
    clock_ns: u64,
    flows: HashMap<u32, u64>,
}

impl Shaper {
    /// Does this from now on.
    pub(super) fn set(&mut self, shape: Shape) {
        self.shape = shape;
    }

    /// What it does.
    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Decides about a frame by what it carries; `None`: that is not what this is about.
    pub(super) fn answer(&self, frame: &[u8], chance: &mut impl Rng) -> Option<Fate> {
        match &self.shape {
            Shape::Reject => {
                let answer = answer::refusal(frame);
                Some(Fate { dropped: answer.is_none(), answer, ..Fate::default() })
            }
            Shape::Answer(queries) => Some(dns::fate(frame, queries, chance)),
            _ => None,
        }
    }

    /// Decides about a packet of `bytes` on the link that is due at `due_ns`.
    pub(super) fn decide(&mut self, due_ns: u64, bytes: u64, flow: u32, chance: &mut impl Rng) -> Fate {
        match self.shape {
            Shape::Pass | Shape::Reject | Shape::Answer(_) => Fate::default(),
            Shape::Delay { delay, jitter, distribution, correlation, reorder } => {
                let spread = if jitter.is_zero() { 0.0 } else { self.deviate.next(correlation, distribution, chance) };
                let ns = delay.as_nanos() as f64 + spread * jitter.as_nanos() as f64;
                Fate { wait_ns: ns.clamp(0.0, LONGEST_NS) as u64, out_of_order: reorder, ..Fate::default() }
            }
            Shape::Reorder { share, by } if chance::happens(share, chance) => {
                Fate { wait_ns: by.as_nanos() as u64, out_of_order: true, ..Fate::default() }
            }
            Shape::Duplicate { share } if chance::happens(share, chance) => Fate { twice: true, ..Fate::default() },
            Shape::Corrupt { share, bits, fix } if chance::happens(share, chance) => {
                Fate { damage: Some((bits, fix)), ..Fate::default() }
            }
            Shape::Reorder { .. } | Shape::Duplicate { .. } | Shape::Corrupt { .. } => Fate::default(),
            Shape::Limit { rate, burst, queue, per_flow } => {
                if per_flow && self.flows.len() >= MAX_FLOWS {
                    self.flows.retain(|_, clock_ns| *clock_ns > due_ns);
                }
                let clock_ns = if per_flow { self.flows.entry(flow).or_default() } else { &mut self.clock_ns };
                let takes_ns = |bytes: u64| (u128::from(bytes) * 8_000_000_000 / u128::from(rate.max(1))) as u64;
                // The clock is where the last bit that was let in will have left; it may be a burst ahead.
                let from_ns = (*clock_ns).max(due_ns);
                // A packet leaves with its last bit, or a burst before that.
                let leaves_ns = (from_ns + takes_ns(bytes)).saturating_sub(takes_ns(burst));
                let wait_ns = leaves_ns.saturating_sub(due_ns);
                if wait_ns > takes_ns(queue) {
                    return Fate { dropped: true, ..Fate::default() };
                }
                *clock_ns = from_ns + takes_ns(bytes);
                Fate { wait_ns, queued: wait_ns > 0, ..Fate::default() }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    fn shaper(shape: Shape) -> Shaper {
        Shaper { shape, ..Shaper::default() }
    }

    #[test]
    fn a_share_is_chosen_and_the_rest_passes() {
        let mut chance = StdRng::seed_from_u64(2);
        let mut shaper = shaper(Shape::Duplicate { share: 0.3 });
        let twice = (0..10_000).filter(|_| shaper.decide(0, 100, 1, &mut chance).twice).count();
        assert!((2800..3200).contains(&twice), "{twice}");
    }

    #[test]
    fn a_packet_that_was_put_behind_others_need_not_keep_its_place() {
        let mut chance = StdRng::seed_from_u64(3);
        let mut shaper = shaper(Shape::Reorder { share: 1.0, by: Duration::from_millis(5) });
        let fate = shaper.decide(0, 100, 1, &mut chance);
        assert_eq!(fate, Fate { wait_ns: 5_000_000, out_of_order: true, ..Fate::default() });
    }

    /// The bytes that leave within `ns` when packets of `bytes` come at once in great number.
    fn sent(shaper: &mut Shaper, bytes: u64, ns: u64) -> u64 {
        let mut chance = StdRng::seed_from_u64(4);
        let fates = (0..100_000).map(|_| shaper.decide(0, bytes, 1, &mut chance));
        fates.take_while(|fate| !fate.dropped && fate.wait_ns < ns).map(|_| bytes).sum()
    }

    #[test]
    fn what_leaves_in_a_time_is_the_rate_times_the_time_and_a_burst() {
        for (rate, bytes) in [(1_000_000, 1514), (10_000_000, 1514), (10_000_000, 100), (1_000_000_000, 64_000)] {
            let limit = Shape::Limit { rate, burst: 20_000, queue: 1 << 40, per_flow: false };
            let sent = sent(&mut shaper(limit), bytes, 10_000_000_000) as f64;
            let allowed = rate as f64 * 10.0 / 8.0 + 20_000.0;
            assert!(
                (sent - allowed).abs() <= bytes as f64 + 1e-3 * allowed || sent == 100_000.0 * bytes as f64,
                "{sent} of {allowed}"
            );
        }
    }

    #[test]
    fn what_finds_no_room_in_the_queue_is_dropped_and_costs_the_others_nothing() {
        let mut chance = StdRng::seed_from_u64(5);
        let mut shaper = shaper(Shape::Limit { rate: 8_000_000, burst: 1000, queue: 3000, per_flow: false });
        let fates: Vec<Fate> = (0..10).map(|_| shaper.decide(0, 1000, 1, &mut chance)).collect();
        // A millisecond each.
        let waits: Vec<u64> = fates.iter().filter(|f| !f.dropped).map(|f| f.wait_ns / 1_000_000).collect();
        assert_eq!(waits, [0, 1, 2, 3]);
        assert!(fates[0] == Fate::default() && fates[1].queued);
        assert_eq!(shaper.decide(4_000_000, 1000, 1, &mut chance), Fate::default(), "all have left");
    }

    #[test]
    fn a_packet_greater_than_a_burst_waits_for_its_own_end_too() {
        let mut chance = StdRng::seed_from_u64(7);
        let mut shaper = shaper(Shape::Limit { rate: 8_000_000, burst: 1000, queue: 90_000, per_flow: false });
        assert_eq!(shaper.decide(0, 5000, 1, &mut chance).wait_ns, 4_000_000);
        assert_eq!(shaper.decide(0, 1000, 1, &mut chance).wait_ns, 5_000_000);
    }

    #[test]
    fn each_flow_has_the_rate_for_itself_when_asked() {
        let mut chance = StdRng::seed_from_u64(6);
        let mut shaper = shaper(Shape::Limit { rate: 8_000_000, burst: 1000, queue: 30_000, per_flow: true });
        assert_eq!(shaper.decide(0, 1000, 1, &mut chance).wait_ns, 0);
        assert_eq!(shaper.decide(0, 1000, 2, &mut chance).wait_ns, 0);
        assert_eq!(shaper.decide(0, 1000, 1, &mut chance).wait_ns, 1_000_000);
    }
}
