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

#[cfg(test)]
mod tests {
    use firedrill_model::event::Bad;
    use firedrill_model::units::Span;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn guard(bad_for: Span) -> Guard {
        let probe = ProbePlan {
            name: "front/checkout".into(),
            component: "front".into(),
            kind: "http".into(),
            describe: String::new(),
            every: Span::from_millis(100),
            timeout: Span::from_secs(1),
            steady: firedrill_model::file::Steady::default(),
            netns: None,
            needs: 299,
        };
        Guard { watched: vec![Watched { rule: AbortPlan { probe: 0, bad_for }, probe, answers: Vec::new() }] }
    }

    fn sample(slot: usize, good: bool) -> Sample {
        let bad = || Outcome::Bad(Bad { ms: 1.0, why: "connection refused".into() });
        Sample { probe: 0, due: slot as f64 * 0.1, outcome: if good { Outcome::Good(1.0) } else { bad() } }
    }

    #[test]
    fn a_probe_that_is_bad_for_long_enough_ends_the_run() {
        let mut guard = guard(Span::from_secs(5));
        for slot in 10..60 {
            assert_eq!(guard.on(&sample(slot, false)), None, "slot {slot}");
        }
        let why = "front/checkout was bad for 5s (limit 5s): connection refused";
        assert_eq!(guard.on(&sample(60, false)).as_deref(), Some(why));
    }

    #[test]
    fn one_good_answer_starts_the_count_again_even_when_it_comes_late() {
        let mut guard = guard(Span::from_secs(5));
        for slot in (0..45).filter(|s| *s != 40).chain([40]).chain(45..80) {
            assert_eq!(guard.on(&sample(slot, slot == 40)), None, "slot {slot}");
        }
        let fired = (80..100).find(|slot| guard.on(&sample(*slot, false)).is_some());
        assert_eq!(fired, Some(91), "5 s after slot 41");
    }

    #[test]
    fn a_late_bad_answer_joins_the_stretches_around_it_and_a_missed_one_does_not_end_them() {
        let mut guard = guard(Span::from_secs(5));
        let missed = Sample { outcome: Outcome::Missed("late".into()), ..sample(20, true) };
        let order = (0..51).filter(|s| *s != 20 && *s != 0).map(|s| sample(s, false)).chain([missed]);
        for sample in order {
            assert_eq!(guard.on(&sample), None);
        }
        assert!(guard.on(&sample(0, false)).is_some());
    }

    #[test]
    fn other_probes_do_not_matter() {
        let mut guard = guard(Span::from_secs(5));
        for slot in 0..100 {
            assert_eq!(guard.on(&Sample { probe: 1, ..sample(slot, false) }), None);
        }
    }

    #[test]
    fn forgetting_changes_nothing() {
        let mut rng = StdRng::seed_from_u64(9);
        for _ in 0..30 {
            let mut guard = guard(Span::from_millis(1500));
            let good: Vec<bool> = (0..600).map(|_| rng.random_bool(0.2)).collect();
            // Answers arrive up to a second late.
            let mut order: Vec<usize> = (0..600).collect();
            let lag: Vec<f64> = (0..600).map(|_| rng.random_range(0.0..10.0)).collect();
            order.sort_by(|a, b| (*a as f64 + lag[*a]).total_cmp(&(*b as f64 + lag[*b])));
            let fired = order.iter().any(|slot| guard.on(&sample(*slot, good[*slot])).is_some());
            let longest = good.split(|good| *good).map(<[bool]>::len).max().expect("some");
            assert_eq!(fired, longest >= 16, "longest bad stretch {longest}");
            assert!(guard.watched[0].answers.len() < 600, "memory is bounded");
        }
    }
}
