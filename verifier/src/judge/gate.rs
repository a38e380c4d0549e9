//! The two gates of a run: is the steady state shown before the fault, and is everything steady again after it?
//!
//! The first gate looks at the growing baseline again and again. To stop early for a bad look it asks for far more
//! than the usual certainty; to begin early it asks for the usual one, which repeated looks weaken somewhat.

use firedrill_model::event::{Outcome, Phase, Sample};
use firedrill_model::log::Run;
use firedrill_model::lower::BASELINE_PATIENCE;
use firedrill_model::run::SETTLE;
use firedrill_model::units::Span;
use std::time::Duration;

use super::stats::ALPHA;
use super::window::{Counts, Series, limits};
use super::{series, stats};
use crate::words;

/// What the baseline shows so far.
#[derive(Clone, Debug, PartialEq)]
pub enum Baseline {
    /// Every tolerance is shown to hold.
    Steady,
    /// Not enough samples yet.
    NeedMore {
        /// How much longer, when everything to come is good.
        for_another: Span,
    },
    /// Shown not to hold, or not shown in time. Says which probe and why.
    NotSteady(String),
}

/// Error probability of every look before the planned end of the baseline.
const EARLY_ALPHA: f64 = ALPHA / 100.0;

/// What an automatic baseline may take beyond its multiple of the planned length.
const EXTRA: f64 = 2.0;

/// Judges the baseline at `now`, in seconds since the run began.
///
/// `baseline: auto` goes on until every tolerance is shown, at most three times its planned length and 2 s. A fixed
/// baseline is decided at its end, give or take the answers that are still out. An ad-hoc run only lets time pass.
pub fn baseline(run: &Run, now: f64) -> Baseline {
    let planned = run.plan.baseline.as_secs_f64();
    let Some(began) = run.began(Phase::Baseline) else {
        return Baseline::NeedMore { for_another: run.plan.baseline };
    };
    let passed = now - began;
    if !run.plan.judged {
        return if passed >= planned { Baseline::Steady } else { need(planned - passed) };
    }
    let mut wait: f64 = 0.0;
    for series in series(run) {
        let counts = observed(&series, began, now);
        let early = passed < planned;
        if let Some(why) = contradiction(&series, &counts, if early { EARLY_ALPHA } else { ALPHA })
            && (run.plan.baseline_auto || !early)
        {
            return Baseline::NotSteady(why);
        }
        if counts.shows_steady(&series.plan.steady) {
            continue;
        }
        let answers = series.plan.timeout.as_secs_f64() + 2.0 * series.every() + 1.0;
        let limit =
            if run.plan.baseline_auto { planned * f64::from(BASELINE_PATIENCE) + EXTRA } else { planned + answers };
        if passed >= limit {
            return Baseline::NotSteady(not_shown(&series, &counts, passed));
        }
        let missing = counts.needed(&series.plan.steady).unwrap_or(usize::MAX).saturating_sub(counts.due).max(1);
        wait = wait.max((missing as f64 * series.every()).min(limit - passed));
    }
    if !run.plan.baseline_auto {
        wait = wait.max(planned - passed);
    }
    if wait > 0.0 { need(wait) } else { Baseline::Steady }
}

fn need(seconds: f64) -> Baseline {
    Baseline::NeedMore { for_another: Span(Duration::from_secs_f64(seconds.clamp(0.001, 1e9))) }
}

/// The baseline of one probe as far as all answers are in. It begins with the first sample: the probes may start a
/// little later than the phase.
fn observed(series: &Series<'_>, began: f64, now: f64) -> Counts {
    let first = series.samples.iter().find(|s| s.due >= began).map_or(began, |s| s.due);
    series.counts(first, series.settled(now))
}

/// Why a probe is shown not to be steady, if it is.
pub(crate) fn contradiction(series: &Series<'_>, counts: &Counts, alpha: f64) -> Option<String> {
    let (steady, name) = (&series.plan.steady, &series.plan.name);
    if counts.shows_bad(steady, alpha) {
        let why = common_reason(series.samples).map(|w| format!(": {w}")).unwrap_or_default();
        return Some(format!(
            "{name} was not steady before the fault: {} of {} bad, and at most {} may be{why}",
            counts.bad,
            counts.due,
            words::percent(steady.bad.fraction())
        ));
    }
    let limit = counts.exceeded(steady, alpha)?;
    let seen = stats::quantile(&counts.good, limit.q).unwrap_or_default();
    Some(format!(
        "{name} was not steady before the fault: its {} was {} ms, and at most {} ms is tolerated",
        limit.name,
        words::millis(seen),
        words::millis(limit.ms)
    ))
}

fn not_shown(series: &Series<'_>, counts: &Counts, passed: f64) -> String {
    let (name, steady) = (&series.plan.name, &series.plan.steady);
    let took = words::seconds(passed);
    if counts.due == 0 {
        return format!("{name} gave no sample in {took} of baseline");
    }
    let missing = match counts.missing() {
        0 => String::new(),
        n => format!(", {n} missing"),
    };
    let slow = limits(steady).find(|l| !counts.shows(*l)).map(|l| {
        let seen = stats::quantile(&counts.good, l.q)
            .map_or_else(|| "unknown".into(), |ms| format!("{} ms", words::millis(ms)));
        format!(" (its {} was {seen}, at most {} ms is tolerated)", l.name, words::millis(l.ms))
    });
    format!(
        "{name} was not shown to be steady in {took} of baseline: {} of {} bad{missing}{}; its tolerance needs {}",
        counts.bad,
        counts.due,
        slow.unwrap_or_default(),
        counts.needed(steady).map_or_else(|| "more than can be had".into(), |n| words::count(n, "sample"))
    )
}

/// The reason that bad samples give most often.
pub(crate) fn common_reason(samples: &[Sample]) -> Option<&str> {
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for sample in samples {
        if let Outcome::Bad(bad) = &sample.outcome {
            match reasons.iter().position(|(why, _)| *why == bad.why) {
                Some(i) => reasons[i].1 += 1,
                // Reasons are few by design; a log from elsewhere may hold many.
                None if reasons.len() < 100 => reasons.push((&bad.why, 1)),
                None => {}
            }
        }
    }
    // The first of equals, so that the answer does not depend on chance.
    reasons.iter().rev().max_by_key(|(_, n)| *n).map(|(why, _)| *why)
}

/// Whether, looking at `now`, every probe has been clean for [`SETTLE`] since the last revert.
pub fn clean(run: &Run, now: f64) -> bool {
    let Some((_, reverted)) = run.fault_window() else { return true };
    series(run).all(|series| {
        let samples = series.within(reverted, series.settled(now));
        // Clean at the end, and in the way in which the final judgement looks for it.
        let newest = (0..samples.len())
            .rev()
            .skip_while(|first| covered(&series, &samples[*first..]) < settle(&series))
            .take_while(|first| covered(&series, &samples[*first..]) < 2.0 * settle(&series))
            .any(|first| is_clean(&series, &samples[first..]));
        newest && first_clean(&series, samples).is_some()
    })
}

/// The first clean stretch among samples, as the index of its first sample.
pub(crate) fn first_clean(series: &Series<'_>, samples: &[Sample]) -> Option<usize> {
    let mut last = 0;
    for first in 0..samples.len() {
        last = last.max(first);
        while last < samples.len() && covered(series, &samples[first..=last]) < settle(series) {
            last += 1;
        }
        if last == samples.len() {
            return None;
        }
        if is_clean(series, &samples[first..=last]) {
            return Some(first);
        }
    }
    None
}

/// A probe that is rarer than [`SETTLE`] must be good once.
fn settle(series: &Series<'_>) -> f64 {
    SETTLE.as_secs_f64().max(series.every()) - 1e-6
}

/// Time that samples stand for: each for one interval.
fn covered(series: &Series<'_>, samples: &[Sample]) -> f64 {
    match (samples.first(), samples.last()) {
        (Some(first), Some(last)) => last.due - first.due + series.every(),
        _ => 0.0,
    }
}

/// Whether samples are a clean stretch: long enough, nothing missing, begun and ended well, fewer bad ones than the
/// tolerance is worth (none where a single one would use it up), and the median within every latency limit.
fn is_clean(series: &Series<'_>, samples: &[Sample]) -> bool {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return false };
    if covered(series, samples) < settle(series) || !first.outcome.is_good() || !last.outcome.is_good() {
        return false;
    }
    let counts = series.counts(first.due, last.due + series.every() / 2.0);
    let worth = series.plan.steady.bad.fraction() * counts.due as f64;
    let few = counts.bad == 0 || (counts.bad as f64) < worth - 1e-9;
    let median = stats::quantile(&counts.good, 0.5).unwrap_or(f64::MAX);
    counts.missing() == 0 && few && limits(&series.plan.steady).all(|l| median <= l.ms)
}
