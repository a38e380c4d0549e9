//! What receipts tell of ramps: for each step what was asked for, and what was measured from it to the next.

use std::collections::BTreeSet;

use crate::ramp::{Quantity, Ramped};
use crate::receipt::{PacketCount, ReceiptLine, StepCount};
use crate::units::Span;

/// The most steps that have a line each.
const MOST_LINES: usize = 20;

/// The lines of a parameter that is ramped; none when nothing is. `times` are those at which any parameter changes.
pub fn lines<T: Quantity>(
    what: &str,
    ramp: Ramped<T>,
    times: &BTreeSet<Span>,
    sum: &PacketCount,
    applied: impl Fn(StepCount) -> Option<String>,
) -> Vec<ReceiptLine> {
    if times.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![ReceiptLine::new("steps", times.len(), sum.steps.len())];
    if times.len() > MOST_LINES {
        return lines;
    }
    let begins = std::iter::once((Span::default(), StepCount::default()))
        .chain(times.iter().copied().zip(sum.steps.iter().copied()));
    let ends = sum.steps.iter().copied().chain(std::iter::once(sum.so_far()));
    for ((at, before), until) in begins.zip(ends) {
        let measured = applied(until.since(before)).unwrap_or_else(|| "-".to_owned());
        lines.push(ReceiptLine::new(&format!("{what} after {at}"), ramp.at(at), measured));
    }
    lines
}

/// A share of the packets that matched.
pub fn share(of: u64, matched: u64) -> Option<String> {
    (matched > 0).then(|| format!("{:.1}% ({of} of {matched})", 100.0 * of as f64 / matched as f64))
}

#[cfg(test)]
mod tests {
    use crate::fault::Fault;
    use crate::receipt::{DelayHistogram, Effect, Measured, PacketCount, StepCount};

    fn step(matched: u64, dropped: u64) -> StepCount {
        StepCount { matched, dropped, ..StepCount::default() }
    }

    #[test]
    fn each_step_of_a_ramp_has_a_line_with_what_was_measured_until_the_next() {
        let ramp = serde_json::json!({"ramp": {"from": "0%", "to": "20%", "over": "20s", "steps": 2}});
        let loss: Fault = serde_json::from_value(serde_json::json!({"loss": {"percent": ramp}})).expect("a fault");
        assert_eq!(loss.check(), Ok(()));
        let steps = vec![step(100, 0), step(300, 20)];
        let count = PacketCount { matched: 400, dropped: 40, steps, ..PacketCount::default() };
        let receipt = loss.receipt("t", vec![Measured::Packets(count)]);
        let lines: Vec<String> =
            receipt.lines.iter().map(|l| format!("{}: {} | {}", l.what, l.requested, l.applied)).collect();
        assert_eq!(
            lines,
            [
                "loss: 0% to 20% over 20s in 2 steps | 10.0% (40 of 400)",
                "steps: 2 | 2",
                "loss after 0s: 0% | 0.0% (0 of 100)",
                "loss after 10s: 10% | 10.0% (20 of 200)",
                "loss after 20s: 20% | 20.0% (20 of 100)",
            ]
        );
        assert_eq!(receipt.effect, Effect::Effective);
    }

    #[test]
    fn a_ramp_that_was_cut_short_says_so_and_its_delays_are_those_of_each_step() {
        let latency: Fault =
            serde_json::from_value(serde_json::json!({"latency": {"delay": "10ms to 30ms over 2s in 2 steps"}}))
                .expect("a fault");
        let steps = vec![StepCount { matched: 10, delays: 10, delays_ns: 101_000_000, ..StepCount::default() }];
        let applied =
            DelayHistogram { count: 20, sum_ns: 302_000_000, max_ns: 20_200_000, ..DelayHistogram::default() };
        let count = PacketCount { matched: 20, applied, steps, ..PacketCount::default() };
        let receipt = latency.receipt("t", vec![Measured::Packets(count)]);
        let told = |what: &str| receipt.lines.iter().find(|l| l.what == what).map(|l| l.applied.clone());
        assert_eq!(told("steps").as_deref(), Some("1"));
        assert_eq!(told("delay after 0s").as_deref(), Some("mean 10.10 ms"));
        assert_eq!(told("delay after 1s").as_deref(), Some("mean 20.10 ms"));
        assert_eq!(told("delay after 2s"), None, "it did not come to that");
    }
}
