//! The events of a run. The run is its log: one event a line, append-only, and nothing is reported that is not
//! in it.

use serde::{Deserialize, Serialize};

use crate::change::Change;
use crate::facts::{Control, HostFacts, TargetFacts};
use crate::receipt::Receipt;
use crate::run::RunPlan;
use crate::verdict::{ExitCode, Judgement};

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Seconds since the run began, by the monotonic clock.
    pub at: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What can happen in a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// The first event.
    RunStarted {
        /// The run's id, which names its folder.
        id: String,
        /// Version of Firedrill.
        version: String,
        /// Wall-clock time, RFC 3339 with offset.
        started: String,
        /// Command line that replays it, seed included.
        replay: Vec<String>,
        /// The host.
        host: Box<HostFacts>,
        /// The plan.
        plan: Box<RunPlan>,
    },
    /// A phase began; it lasts until the next.
    PhaseBegan {
        /// Which.
        phase: Phase,
    },
    /// A probe's sample.
    Sample(Sample),
    /// A step's targets were resolved, and its faults are about to be injected.
    StepBegan {
        /// Index of the step.
        step: usize,
        /// Its targets as they were found.
        targets: Vec<TargetFacts>,
    },
    /// A change was applied and read back.
    Applied {
        /// Number of the change within the run, counting from 1.
        change: u64,
        /// Index of the step.
        step: usize,
        /// Name of the target.
        target: String,
        /// Name of the fault.
        fault: String,
        /// The change.
        what: Box<Change>,
    },
    /// A change was undone, or could not be.
    Reverted {
        /// Number of the change.
        change: u64,
        /// What was found or done, in words.
        note: String,
        /// Why it could not be undone, and what is left.
        error: Option<String>,
    },
    /// All faults of a step are in force.
    StepInForce {
        /// Index of the step.
        step: usize,
    },
    /// All faults of a step have ended.
    StepEnded {
        /// Index of the step.
        step: usize,
    },
    /// What a fault measured: several times while it is in force, and once at its end.
    Receipt {
        /// Index of the step.
        step: usize,
        /// Whether this is the last word.
        last: bool,
        /// The receipt.
        receipt: Receipt,
    },
    /// Something that the reader should know.
    Note {
        /// In one sentence.
        text: String,
    },
    /// The run is ended early.
    Aborted {
        /// Why: a rule, the deadline, a signal, a fault that could not be injected.
        why: String,
        /// Whether it is a person or a rule that wanted so (aborted), or nothing could be tested (invalid).
        invalid: bool,
    },
    /// The judgement.
    Judged(Box<Judgement>),
    /// The last event.
    RunEnded {
        /// Exit code of the process.
        exit: ExitCode,
        /// What could not be restored; empty when the host is as before.
        left_over: Vec<String>,
    },
}

impl Event {
    /// The event as the log may have it: of users' own commands only the programs.
    #[must_use]
    pub fn masked(mut self) -> Self {
        match &mut self {
            Self::RunStarted { plan, .. } => plan.mask(),
            Self::StepBegan { targets, .. } => {
                targets.iter_mut().filter_map(|target| target.control.as_mut()).for_each(Control::mask);
            }
            Self::Applied { what, .. } => what.mask(),
            _ => {}
        }
        self
    }
}

/// The phases of a run, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The steady state is observed.
    Baseline,
    /// The first fault is injected.
    Inject,
    /// Faults are in force.
    Hold,
    /// The last faults are reverted.
    Revert,
    /// Everything must become steady again.
    Recovery,
    /// Judging.
    Verdict,
}

/// One answer of a probe, or its absence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Index into the plan's probes.
    pub probe: usize,
    /// When it was due, in seconds since the run began. All windows go by this time.
    pub due: f64,
    /// How it went.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// How a probe's check went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Good, after this many milliseconds.
    Good(f64),
    /// Bad, with the reason.
    Bad(Bad),
    /// Due and not taken, for example because the host had no time for it; never counted as good.
    Missed(String),
}

/// A bad answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bad {
    /// Milliseconds until it was known to be bad.
    pub ms: f64,
    /// Why, in a few words, without secrets.
    pub why: String,
}

impl Outcome {
    /// Whether it is good.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Good(_))
    }

    /// Whether it is bad. A missed sample is neither.
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Bad(_))
    }
}

impl Phase {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => "baseline",
            Self::Inject => "inject",
            Self::Hold => "hold",
            Self::Revert => "revert",
            Self::Recovery => "recovery",
            Self::Verdict => "verdict",
        }
    }
}
