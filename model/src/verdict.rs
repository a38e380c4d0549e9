//! Verdicts, and what they are made of. Missing data is never a pass.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::units::Span;

/// What a run, or one probe in it, came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The expectation was shown to hold.
    Held,
    /// Shown not to hold, but not wholly lost.
    Degraded,
    /// Shown to be lost, or not recovered.
    Broken,
    /// Neither shown to hold nor shown not to.
    Inconclusive,
    /// Says nothing: the fault had no effect, or there was no steady state before it.
    Invalid,
    /// Ended early by a rule, a deadline or a person.
    Aborted,
}

impl Verdict {
    /// How bad it is, for the worst of several: held < inconclusive < degraded < broken < invalid < aborted.
    pub fn rank(self) -> u8 {
        match self {
            Self::Held => 0,
            Self::Inconclusive => 1,
            Self::Degraded => 2,
            Self::Broken => 3,
            Self::Invalid => 4,
            Self::Aborted => 5,
        }
    }

    /// The worse of two.
    pub fn worse(self, other: Self) -> Self {
        if other.rank() > self.rank() { other } else { self }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Degraded => "degraded",
            Self::Broken => "broken",
            Self::Inconclusive => "inconclusive",
            Self::Invalid => "invalid",
            Self::Aborted => "aborted",
        })
    }
}

/// The judgement of a run, logged once and only rendered afterwards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The run's verdict: the worst judged expectation.
    pub verdict: Verdict,
    /// The finding in one sentence. Every report begins with it.
    pub finding: String,
    /// Each judged expectation with its own verdict, worst first.
    pub expectations: Vec<Expectation>,
    /// Every probe, judged or only reported.
    pub probes: Vec<ProbeJudgement>,
    /// Where the effect was seen.
    pub radius: Radius,
    /// What was not shown, in plain sentences.
    pub unproven: Vec<String>,
}

/// One thing that was expected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// What was expected: `front/checkout holds, after an outage of at most 5s`.
    pub what: String,
    /// Whether it came true.
    pub verdict: Verdict,
    /// Why, in one sentence with the numbers.
    pub reason: String,
}

/// What was seen of one probe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeJudgement {
    /// Index into the plan's probes.
    pub probe: usize,
    /// Whether it lies outside the declared radius, and so counts for the verdict.
    pub judged: bool,
    /// Verdict on the fault window (less the permitted outage, when judged).
    pub verdict: Verdict,
    /// Why, in one sentence with the numbers.
    pub reason: String,
    /// Whether it moved: shown to leave its tolerance while the fault was in force.
    pub moved: bool,
    /// Before the fault.
    pub baseline: WindowStats,
    /// While the fault was in force (the whole window, the permitted outage included).
    pub fault: WindowStats,
    /// After the last revert.
    pub recovery: WindowStats,
    /// First bad to last bad under the fault; `None` when nothing was bad.
    pub outage: Option<Outage>,
    /// From the last revert until it was clean.
    pub healed: Healed,
}

/// Samples of one probe in one window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowStats {
    /// Samples that were due.
    pub due: usize,
    /// Of those, taken.
    pub taken: usize,
    /// Of those, bad.
    pub bad: usize,
    /// One-sided 95 % bounds of the bad share (Clopper–Pearson), as fractions.
    pub bad_lower: f64,
    /// The upper one.
    pub bad_upper: f64,
    /// Median latency of good answers, in milliseconds.
    pub p50_ms: Option<f64>,
    /// 95th percentile of the latency of good answers.
    pub p95_ms: Option<f64>,
    /// 99th percentile of the latency of good answers.
    pub p99_ms: Option<f64>,
}

impl WindowStats {
    /// Bad share of the samples taken, as a fraction; 0 when there are none.
    pub fn bad_share(&self) -> f64 {
        if self.taken == 0 { 0.0 } else { self.bad as f64 / self.taken as f64 }
    }

    /// Samples that were due and not taken.
    pub fn missing(&self) -> usize {
        self.due.saturating_sub(self.taken)
    }
}

/// An outage of one probe under the fault.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// From the first inject to the first bad sample.
    pub impact: Span,
    /// First bad to last bad, before two seconds clean.
    pub lasted: Span,
    /// Greatest error of `lasted`: one interval plus the time-out.
    pub error: Span,
    /// Whether it went on until the fault ended, so that its true length under the fault is unknown.
    pub censored: bool,
}

/// How a probe came back after the last revert.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Healed {
    /// It was clean this long after the last revert (0 when it had never been bad, or was clean again before).
    After(Span),
    /// It was not clean when observation ended, this long after the last revert.
    NotWithin(Span),
    /// Nothing was observed after the last revert.
    Unknown,
}

/// Whether the effect stayed inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Containment {
    /// Every probe outside the declared radius is shown to have held.
    Contained,
    /// One outside moved.
    Leaked,
    /// Neither.
    Unproven,
}

impl fmt::Display for Containment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Contained => "contained",
            Self::Leaked => "leaked",
            Self::Unproven => "unproven",
        })
    }
}

/// The blast radius: declared against observed, by component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Radius {
    /// Components that may be hit, says the file.
    pub declared: Vec<String>,
    /// Components whose probes moved.
    pub observed: Vec<String>,
    /// Observed, not declared; outages within the permitted time do not count.
    pub escapes: Vec<String>,
    /// Declared, not moved.
    pub over_predicted: Vec<String>,
    /// Components without a probe, about which nothing is known.
    pub unprobed: Vec<String>,
    /// All components of the system.
    pub components: usize,
    /// Whether the effect stayed inside.
    pub containment: Containment,
}

/// Process exit codes. Precedence: 5 > 4 > 2 > 1 > 3 > 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is one line of the design's table")]
pub enum ExitCode {
    /// Expectations held.
    Held = 0,
    /// Degraded or broken outside the declared radius, a claim refuted, blast radius leaked.
    Finding = 1,
    /// Bad usage or an invalid file.
    Usage = 2,
    /// Inconclusive, unproven or invalid.
    Unproven = 3,
    /// Aborted.
    Aborted = 4,
    /// The host could not be fully restored.
    NotRestored = 5,
}

impl ExitCode {
    /// The exit code of a verdict, when the host was restored.
    pub fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Held => Self::Held,
            Verdict::Degraded | Verdict::Broken => Self::Finding,
            Verdict::Inconclusive | Verdict::Invalid => Self::Unproven,
            Verdict::Aborted => Self::Aborted,
        }
    }

    /// The one that takes precedence.
    pub fn worse(self, other: Self) -> Self {
        let rank = |code: Self| match code {
            Self::Held => 0,
            Self::Unproven => 1,
            Self::Finding => 2,
            Self::Usage => 3,
            Self::Aborted => 4,
            Self::NotRestored => 5,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_take_precedence_as_documented() {
        use ExitCode::{Aborted, Finding, Held, NotRestored, Unproven, Usage};
        let order = [Held, Unproven, Finding, Usage, Aborted, NotRestored];
        for (i, a) in order.iter().enumerate() {
            for (j, b) in order.iter().enumerate() {
                assert_eq!(a.worse(*b), order[i.max(j)]);
            }
        }
    }

    #[test]
    fn only_held_exits_with_0() {
        for verdict in [Verdict::Degraded, Verdict::Broken, Verdict::Inconclusive, Verdict::Invalid, Verdict::Aborted] {
            assert_ne!(ExitCode::of(verdict), ExitCode::Held);
        }
        assert_eq!(ExitCode::of(Verdict::Held), ExitCode::Held);
    }
}
