//! A run, read back from its log. Judging and every report start here, and from nothing else.

use crate::change::Change;
use crate::event::{Event, Phase, Record, Sample};
use crate::facts::{HostFacts, TargetFacts};
use crate::receipt::Receipt;
use crate::run::RunPlan;
use crate::verdict::{ExitCode, Judgement};

/// Everything that a log tells, sorted by subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The run's id.
    pub id: String,
    /// Version of Firedrill that made it.
    pub version: String,
    /// Wall-clock start, RFC 3339.
    pub started: String,
    /// Command line that replays it.
    pub replay: Vec<String>,
    /// The host.
    pub host: HostFacts,
    /// The plan.
    pub plan: RunPlan,
    /// Phases with their beginning, in seconds since the start.
    pub phases: Vec<(Phase, f64)>,
    /// Samples by probe, ascending by due time.
    pub samples: Vec<Vec<Sample>>,
    /// Steps as they went.
    pub steps: Vec<StepRun>,
    /// Changes on the host.
    pub changes: Vec<ChangeRun>,
    /// The last receipt of each fault on each target, in order of appearance.
    pub receipts: Vec<(usize, Receipt)>,
    /// Notes with their time.
    pub notes: Vec<(f64, String)>,
    /// Why it was ended early, when, and whether that makes it invalid rather than aborted.
    pub aborted: Option<(f64, String, bool)>,
    /// The judgement, once there is one.
    pub judgement: Option<Judgement>,
    /// Exit code and left-overs, once it has ended.
    pub ended: Option<(ExitCode, Vec<String>)>,
    /// Time of the last event, in seconds since the start.
    pub last_event: f64,
}

/// A step as it went; times in seconds since the run's start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRun {
    /// Its targets as they were found.
    pub targets: Vec<TargetFacts>,
    /// When its first change was about to be applied.
    pub began: Option<f64>,
    /// When all its faults were in force.
    pub in_force: Option<f64>,
    /// When all its faults had ended.
    pub ended: Option<f64>,
}

/// A change as it went.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeRun {
    /// Its number.
    pub number: u64,
    /// The step, target and fault it served.
    pub step: usize,
    /// Name of the target.
    pub target: String,
    /// Name of the fault.
    pub fault: String,
    /// The change.
    pub what: Change,
    /// When it was applied.
    pub applied: f64,
    /// When it was undone, how, and what went wrong.
    pub reverted: Option<(f64, String, Option<String>)>,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// It has no beginning.
    #[error("the log does not begin with a started run; it is not a run's log, or it was cut")]
    NoStart,
    /// A line is not an event.
    #[error("line {line} is not an event: {why}")]
    Line {
        /// Its number, counting from 1.
        line: usize,
        /// What the parser says.
        why: String,
    },
}

impl Run {
    /// Reads a log, one event a line. A last line that was cut in the middle is left out: a run that was
    /// killed while writing must still be readable.
    ///
    /// # Errors
    /// When it does not begin with a started run, or a line other than the last is not an event.
    pub fn parse(text: &str) -> Result<Self, LogError> {
        let lines: Vec<(usize, &str)> = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()).collect();
        let last = lines.last().map(|(i, _)| *i);
        let mut run = None;
        for (i, line) in lines {
            let record: Record = match serde_json::from_str(line) {
                Ok(record) => record,
                Err(_) if Some(i) == last && !text.ends_with('\n') => break,
                Err(error) => return Err(LogError::Line { line: i + 1, why: error.to_string() }),
            };
            match &mut run {
                None => run = Some(Self::start(&record).ok_or(LogError::NoStart)?),
                Some(run) => run.push(&record),
            }
        }
        run.ok_or(LogError::NoStart)
    }

    /// The run that a first event begins; `None` when it is no beginning.
    pub fn start(record: &Record) -> Option<Self> {
        let Event::RunStarted { id, version, started, replay, host, plan } = &record.event else { return None };
        Some(Self {
            id: id.clone(),
            version: version.clone(),
            started: started.clone(),
            replay: replay.clone(),
            host: (**host).clone(),
            plan: (**plan).clone(),
            phases: Vec::new(),
            samples: vec![Vec::new(); plan.probes.len()],
            steps: vec![StepRun::default(); plan.steps.len()],
            changes: Vec::new(),
            receipts: Vec::new(),
            notes: Vec::new(),
            aborted: None,
            judgement: None,
            ended: None,
            last_event: record.at,
        })
    }

    /// Adds the next event.
    pub fn push(&mut self, record: &Record) {
        let at = record.at;
        self.last_event = self.last_event.max(at);
        match &record.event {
            Event::RunStarted { .. } => {}
            Event::PhaseBegan { phase } => self.phases.push((*phase, at)),
            Event::Sample(sample) => {
                if let Some(list) = self.samples.get_mut(sample.probe) {
                    // Slow answers arrive late; windows go by due time.
                    let place = list.partition_point(|s| s.due <= sample.due);
                    list.insert(place, sample.clone());
                }
            }
            Event::StepBegan { step, targets } => {
                if let Some(s) = self.steps.get_mut(*step) {
                    s.began = Some(at);
                    s.targets.clone_from(targets);
                }
            }
            Event::StepInForce { step } => {
                if let Some(s) = self.steps.get_mut(*step) {
                    s.in_force = Some(at);
                }
            }
            Event::StepEnded { step } => {
                if let Some(s) = self.steps.get_mut(*step) {
                    s.ended = Some(at);
                }
            }
            Event::Applied { change, step, target, fault, what } => self.changes.push(ChangeRun {
                number: *change,
                step: *step,
                target: target.clone(),
                fault: fault.clone(),
                what: (**what).clone(),
                applied: at,
                reverted: None,
            }),
            Event::Reverted { change, note, error } => {
                if let Some(c) = self.changes.iter_mut().find(|c| c.number == *change) {
                    c.reverted = Some((at, note.clone(), error.clone()));
                }
            }
            Event::Receipt { step, receipt, .. } => {
                let same = |(s, r): &&mut (usize, Receipt)| {
                    s == step && r.fault == receipt.fault && r.target == receipt.target
                };
                match self.receipts.iter_mut().find(same) {
                    Some((_, old)) => *old = receipt.clone(),
                    None => self.receipts.push((*step, receipt.clone())),
                }
            }
            Event::Note { text } => self.notes.push((at, text.clone())),
            Event::Aborted { why, invalid } => {
                self.aborted.get_or_insert_with(|| (at, why.clone(), *invalid));
            }
            Event::Judged(judgement) => self.judgement = Some((**judgement).clone()),
            Event::RunEnded { exit, left_over } => self.ended = Some((*exit, left_over.clone())),
        }
    }

    /// When a phase began, in seconds since the start.
    pub fn began(&self, phase: Phase) -> Option<f64> {
        self.phases.iter().find(|(p, _)| *p == phase).map(|(_, at)| *at)
    }

    /// The fault window: from the first inject to the last revert, in seconds since the start. While the
    /// fault is in force it ends with the last event. `None` when nothing was injected.
    pub fn fault_window(&self) -> Option<(f64, f64)> {
        let from = self.steps.iter().filter_map(|s| s.began).min_by(f64::total_cmp)?;
        let open = self.steps.iter().any(|s| s.began.is_some() && s.ended.is_none());
        let last = self.steps.iter().filter_map(|s| s.ended).max_by(f64::total_cmp);
        Some((from, last.filter(|_| !open).unwrap_or(self.last_event)))
    }
}
