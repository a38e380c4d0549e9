//! Guards: rules that end a run early, applied to samples as they come.

use firedrill_model::event::{Outcome, Sample};
use firedrill_model::run::{AbortPlan, ProbePlan, RunPlan};

use crate::words;

/// Watches samples for the plan's abort rules.
#[derive(Clone, Debug)]
pub struct Guard {
    watched: Vec<Watched>,
}

#[derive(Clone, Debug)]
struct Watched {
    rule: AbortPlan,
    probe: ProbePlan,
    /// `(due, good)` of the answers that still matter, ascending by due time.
    answers: Vec<(f64, bool)>,
}

impl Guard {
    /// A guard for the rules of a plan. Rules that name no probe of the plan are ignored; a plan made from a file has
    /// none.
    pub fn new(plan: &RunPlan) -> Self {
        let watch = |rule: &AbortPlan| {
            let probe = plan.probes.get(rule.probe)?.clone();
            Some(Watched { rule: rule.clone(), probe, answers: Vec::new() })
        };
        Self { watched: plan.abort.iter().filter_map(watch).collect() }
    }

    /// Takes the next sample, in the order of arrival, and says why the run must end, if it must: the probe was bad
    /// without a good answer in between for at least the rule's time, counted between due times. Slow answers may
    /// arrive after later ones. A missed sample neither counts as bad nor ends a bad stretch.
    pub fn on(&mut self, sample: &Sample) -> Option<String> {
        self.watched.iter_mut().filter(|w| w.rule.probe == sample.probe).find_map(|w| w.on(sample))
    }
}

impl Watched {
    fn on(&mut self, sample: &Sample) -> Option<String> {
        let bad = match &sample.outcome {
            Outcome::Good(_) => None,
            Outcome::Bad(bad) => Some(bad),
            Outcome::Missed(_) => return None,
        };
        let place = self.answers.partition_point(|(due, _)| *due <= sample.due);
        self.answers.insert(place, (sample.due, bad.is_none()));
        let Some(bad) = bad else {
            self.forget();
            return None;
        };
        let first = self.answers[..place].iter().rev().take_while(|(_, good)| !good).last().map_or(sample.due, |a| a.0);
        let last = self.answers[place..].iter().take_while(|(_, good)| !good).last().map_or(sample.due, |a| a.0);
        let limit = self.rule.bad_for;
        // Due times are multiples of an interval in floating point.
        (last - first + 1e-6 >= limit.as_secs_f64()).then(|| {
            let lasted = words::seconds(last - first);
            format!("{} was bad for {lasted} (limit {}): {}", self.probe.name, words::span(limit), bad.why)
        })
    }

    /// Drops what can no longer be part of a bad stretch: all before a good answer that is so old that nothing due
    /// before it can still arrive.
    fn forget(&mut self) {
        let newest = self.answers.last().map_or(0.0, |a| a.0);
        let settled = newest - self.probe.timeout.as_secs_f64() - self.probe.every.as_secs_f64() - 1.0;
        if let Some(i) = self.answers.iter().rposition(|(due, good)| *good && *due < settled) {
            self.answers.drain(..i);
        }
    }
}
