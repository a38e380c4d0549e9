//! Receipts: what a fault really did, measured in the kernel or by reading back. No effect, no verdict.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::{Rate, Span};

/// What one change measured, so far or in total.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measured {
    /// Counters of a packet rule, summed over all CPUs.
    Packets(PacketCount),
    /// Counters of a rule on calls, summed over all CPUs.
    Calls(CallCount),
    /// What a proxy did.
    Proxy(ProxyCount),
    /// A kill, by process.
    Kill(KillCount),
    /// Connections that were destroyed.
    Reset(ResetCount),
    /// A state that was written and read back: frozen, stopped, suspended.
    State {
        /// Whether the state was in force each time it was read back.
        in_force: bool,
        /// What was read back, in the kernel's or systemd's own words.
        seen: String,
        /// How long it was in force.
        held: Span,
    },
}

/// Counters of a packet rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCount {
    /// Packets that met every condition.
    pub matched: u64,
    /// Of those, dropped by the fault.
    pub dropped: u64,
    /// Of those, sent into the delay line.
    pub delayed: u64,
    /// Of those, let through untouched because the delay line was full or not answering.
    pub bypassed: u64,
    /// Bytes of the matched packets, link header included.
    pub bytes: u64,
    /// Of those, changed by the delay line as the fault has it: duplicated, damaged, answered, put behind others, made to wait.
    #[serde(default)]
    pub acted: u64,
    /// Of the acted upon, packets of TCP that were answered with a reset.
    #[serde(default)]
    pub resets: u64,
    /// Bytes on the link of the packets that left while others waited for the same rate, and
    #[serde(default)]
    pub limited_bytes: u64,
    /// the time that they took, in nanoseconds: what a rate really was.
    #[serde(default)]
    pub limited_ns: u64,
    /// Delay from the packet's arrival to its re-injection, as measured, for the packets that came out.
    pub applied: DelayHistogram,
    /// What the rule was for and is no longer there: it was in force no longer than that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
    /// For each step of a ramp that was made, what had been counted by then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepCount>,
}

/// What a rule had counted when a step of its ramp was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCount {
    /// Packets that met every condition.
    pub matched: u64,
    /// Of those, dropped.
    pub dropped: u64,
    /// Of those, changed, put behind others or made to wait.
    pub acted: u64,
    /// Delays that were measured.
    pub delays: u64,
    /// Their sum in nanoseconds.
    pub delays_ns: u64,
    /// Bytes that left while others waited for the same rate, and
    pub limited_bytes: u64,
    /// the time that they took, in nanoseconds.
    pub limited_ns: u64,
}

impl PacketCount {
    /// As a step of a ramp notes it.
    pub fn so_far(&self) -> StepCount {
        StepCount {
            matched: self.matched,
            dropped: self.dropped,
            acted: self.acted,
            delays: self.applied.count,
            delays_ns: self.applied.sum_ns,
            limited_bytes: self.limited_bytes,
            limited_ns: self.limited_ns,
        }
    }
}

impl StepCount {
    /// What was counted since another.
    #[must_use]
    pub fn since(self, other: Self) -> Self {
        Self {
            matched: self.matched.saturating_sub(other.matched),
            dropped: self.dropped.saturating_sub(other.dropped),
            acted: self.acted.saturating_sub(other.acted),
            delays: self.delays.saturating_sub(other.delays),
            delays_ns: self.delays_ns.saturating_sub(other.delays_ns),
            limited_bytes: self.limited_bytes.saturating_sub(other.limited_bytes),
            limited_ns: self.limited_ns.saturating_sub(other.limited_ns),
        }
    }

    /// With another one's counts.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            matched: self.matched + other.matched,
            dropped: self.dropped + other.dropped,
            acted: self.acted + other.acted,
            delays: self.delays + other.delays,
            delays_ns: self.delays_ns + other.delays_ns,
            limited_bytes: self.limited_bytes + other.limited_bytes,
            limited_ns: self.limited_ns + other.limited_ns,
        }
    }
}

/// Counters of a rule on calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCount {
    /// Calls that met every condition.
    pub matched: u64,
    /// Of those, calls that were made to fail.
    pub failed: u64,
    /// Whether somebody detached our programs before the end.
    #[serde(default)]
    pub removed: bool,
    /// What the rule was for and is no longer there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
}

/// What a proxy did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyCount {
    /// New connections that met every condition.
    pub matched: u64,
    /// Of those, connections that it carried.
    pub connections: u64,
    /// Of those, connections whose peer it could not reach, and that were reset therefore.
    pub unreached: u64,
    /// Connections that were still open at the end, and were reset.
    pub reset: u64,
    /// Bytes that it passed on, both ways.
    pub bytes: u64,
    /// Pieces that were held back, and
    pub delayed: u64,
    /// how long they were in all, in nanoseconds.
    pub delay_ns: u64,
    /// Bytes that left while others waited for the same rate, and
    pub limited_bytes: u64,
    /// the time that they took, in nanoseconds.
    pub limited_ns: u64,
    /// Ends of connections that were passed on late.
    pub late_ends: u64,
    /// Connections that were closed after so many bytes.
    pub cut: u64,
    /// Whether somebody detached our programs before the end.
    pub removed: bool,
    /// What it was for and is no longer there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
}

impl ProxyCount {
    /// How long bytes were held back, in the mean; `None` when none were.
    pub fn mean_delay(&self) -> Option<Span> {
        self.delay_ns.checked_div(self.delayed).map(|ns| Span(std::time::Duration::from_nanos(ns)))
    }

    /// What the rate really was; `None` when nothing had to wait for it.
    pub fn rate(&self) -> Option<Rate> {
        let bits = u128::from(self.limited_bytes) * 8 * 1_000_000_000;
        bits.checked_div(self.limited_ns.into()).and_then(|rate| u64::try_from(rate).ok()).map(Rate)
    }
}

/// An interface, control group or process that a rule was for, and that went before the fault did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// It, in words.
    pub what: String,
    /// Whether another of its name has taken its place, upon which the fault does not act.
    pub replaced: bool,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.replaced { "was replaced by another, which was left alone" } else { "was gone" };
        write!(f, "{} {how}", self.what)
    }
}

/// Log-scaled histogram of delays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayHistogram {
    /// Number of delays recorded.
    pub count: u64,
    /// Their sum in nanoseconds.
    pub sum_ns: u64,
    /// Smallest, in nanoseconds; 0 when there are none.
    pub min_ns: u64,
    /// Largest, in nanoseconds.
    pub max_ns: u64,
    /// `(lower edge in nanoseconds, count)` of the buckets that hold any, ascending.
    pub buckets: Vec<(u64, u64)>,
}

impl DelayHistogram {
    /// Mean delay; `None` when nothing was recorded.
    pub fn mean(&self) -> Option<Span> {
        self.sum_ns.checked_div(self.count).map(|ns| Span(std::time::Duration::from_nanos(ns)))
    }
}

/// What became of the processes that a kill was about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillCount {
    /// Processes that were sent the signal.
    pub signalled: u64,
    /// Of those, processes seen to be gone.
    pub gone: u64,
    /// Longest time from the signal to the end of a process.
    pub slowest_end: Option<Span>,
    /// From the first process's end until a successor was seen; `None` when none came while the fault lasted.
    pub downtime: Option<Span>,
    /// Successors that were killed in their turn (`keep`).
    pub again: u64,
}

/// What became of the connections that a reset was about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetCount {
    /// How often connections were looked for.
    pub rounds: u64,
    /// Connections that met every condition, and did not end by themselves meanwhile.
    pub matched: u64,
    /// Of those, connections that were gone when they were looked for again.
    pub destroyed: u64,
    /// Connections that met every condition and were left, because they are protected.
    pub spared: u64,
    /// What it was for and is no longer there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
    /// Why a later round was not gone through with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// Whether a fault had an effect on its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// It did what was asked, and that was measured.
    Effective,
    /// It was in force, but nothing came by that it could act on.
    ArmedNoTraffic,
    /// It did nothing. A run with such a fault is invalid.
    None,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Effective => "effective",
            Self::ArmedNoTraffic => "armed, no traffic",
            Self::None => "none",
        })
    }
}

/// The measured effect of one fault on one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Name of the fault.
    pub fault: String,
    /// Name of the target.
    pub target: String,
    /// Whether it worked.
    pub effect: Effect,
    /// One sentence for people: what happened.
    pub says: String,
    /// Requested against applied, for every parameter that can be measured.
    pub lines: Vec<ReceiptLine>,
    /// The measurements that the above is made of.
    pub measured: Vec<Measured>,
}

impl Receipt {
    /// Tells that its packet rules were out of force for `time` before it ended, because no renewal of their lease was
    /// honoured in time.
    pub fn was_silent(&mut self, time: Span) {
        self.says = format!("{}; out of force for {time}, because its lease was not renewed in time", self.says);
        self.lines.push(ReceiptLine::new("out of force", "0s", time));
    }
}

/// One parameter: what was asked for, and what was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptLine {
    /// The parameter.
    pub what: String,
    /// As asked for.
    pub requested: String,
    /// As measured.
    pub applied: String,
}

impl ReceiptLine {
    /// A line from anything that prints.
    pub fn new(what: &str, requested: impl fmt::Display, applied: impl fmt::Display) -> Self {
        Self { what: what.into(), requested: requested.to_string(), applied: applied.to_string() }
    }
}
