//! One probe over a whole run: what its windows show, how long it was out, and when it came back.

use firedrill_model::log::Run;
use firedrill_model::run::{ProbePlan, SETTLE};
use firedrill_model::units::Span;
use firedrill_model::verdict::{Healed, Outage, ProbeJudgement, Verdict};
use std::time::Duration;

use super::gate::{common_reason, first_clean};
use super::stats::{self, ALPHA};
use super::window::{Counts, Limit, Series, limits};
use super::windows::Windows;
use crate::words;

/// Share of bad answers from which on a probe is broken, not degraded: half of them.
const BROKEN: f64 = 0.5;

/// A judgement, and what the run's sentences need beside it.
pub(crate) struct Judged {
    /// For the log.
    pub judgement: ProbeJudgement,
    /// What was counted where it was judged: the fault window less the permitted outage.
    pub counts: Counts,
    /// The latency limit that is shown to be exceeded.
    pub exceeded: Option<Limit>,
    /// Whether it came back in the permitted time.
    pub healing: Healing,
}

/// Whether a probe came back after the last revert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Healing {
    /// In time.
    InTime,
    /// Shown to take longer than permitted; so many seconds until it was clean, if it was.
    Late(Option<f64>),
    /// Not observed for long enough to say.
    Unknown,
}

/// Judges one probe.
pub(crate) fn judge(run: &Run, index: usize, plan: &ProbePlan, windows: &Windows) -> Judged {
    let samples = run.samples.get(index).map_or(&[][..], Vec::as_slice);
    let series = Series { plan, samples };
    let judged = run.plan.judged && !run.plan.is_inside(plan);
    let baseline = windows.baseline.map_or_else(Counts::default, |(from, to)| {
        let (first, last) = series.before(from, to);
        series.counts(first, last)
    });
    let fault = windows.fault.map_or_else(Counts::default, |(from, to)| series.counts(from, to));
    let recovery = windows.recovery.map_or_else(Counts::default, |(from, to)| series.counts(from, to));

    // What was missed may have been bad, so to show that it held the permitted outage is spent on the first sample
    // that was not good; to show that it did not hold, on the first that was bad.
    let permitted = if judged { run.plan.outage.as_secs_f64() } else { 0.0 };
    let (doubtful, counts) = match windows.fault {
        None => (Counts::default(), Counts::default()),
        Some((from, to)) => {
            let less = |start: Option<f64>| match start {
                Some(start) if permitted > 0.0 => series.counts_without((from, to), (start, start + permitted)),
                _ => fault.clone(),
            };
            (less(series.first_not_good(from, to)), less(series.first_bad(from, to)))
        }
    };
    let exceeded = counts.exceeded(&plan.steady, ALPHA);
    let moved = counts.shows_bad(&plan.steady, ALPHA) || exceeded.is_some();
    let verdict = if moved && counts.bad_lower(ALPHA) >= BROKEN {
        Verdict::Broken
    } else if moved {
        Verdict::Degraded
    } else if doubtful.due > 0 && doubtful.shows_steady(&plan.steady) {
        Verdict::Held
    } else {
        Verdict::Inconclusive
    };
    let outage = windows.fault.and_then(|window| outage(&series, window));
    let healed = healed(&series, windows);
    let healing = in_time(&series, windows, healed, run.plan.healed);
    let counted = if verdict == Verdict::Held || verdict == Verdict::Inconclusive { &doubtful } else { &counts };
    let mut reason = reason(plan, counted);
    if let (true, Some(o)) = (permitted > 0.0, outage) {
        reason.push_str(&format!("; first bad {} after the fault began", words::span(o.impact)));
        reason.push_str(&format!(", {} of permitted outage left out", words::seconds(permitted)));
    }
    if let Some(again) = windows.fault.and_then(|window| bad_again(&series, window, outage)) {
        reason.push_str(&format!("; bad again {} into the fault", words::seconds(again)));
    }
    if let (Verdict::Degraded | Verdict::Broken, Some((from, to))) = (verdict, windows.fault)
        && let Some(why) = common_reason(series.within(from, to))
    {
        reason.push_str(&format!("; mostly: {why}"));
    }
    let judgement = ProbeJudgement {
        probe: index,
        judged,
        verdict,
        reason,
        moved,
        baseline: baseline.stats(),
        fault: fault.stats(),
        recovery: recovery.stats(),
        outage,
        healed,
    };
    Judged { judgement, counts: counted.clone(), exceeded, healing }
}

/// The numbers behind a verdict: `3 of 412 bad (0.73 %; at most 1 % tolerated)`.
fn reason(plan: &ProbePlan, counts: &Counts) -> String {
    if counts.due == 0 {
        return "no sample was due while the fault was in force".into();
    }
    let tolerated = words::percent(plan.steady.bad.fraction());
    let mut text = format!("{} of {} bad", counts.bad, counts.due);
    match counts.missing() {
        0 => {}
        n => text.push_str(&format!(", {n} missing")),
    }
    let (low, high) = (words::percent(counts.bad_lower(ALPHA)), words::percent(counts.bad_upper()));
    if counts.bad_upper() <= plan.steady.bad.fraction() {
        text.push_str(&format!(", so with 95 % confidence at most {high}"));
    } else if counts.shows_bad(&plan.steady, ALPHA) {
        text.push_str(&format!(", so with 95 % confidence at least {low}"));
    } else {
        text.push_str(&format!(", which may be anything from {low} to {high}"));
    }
    text.push_str(&format!("; tolerated {tolerated}"));
    for limit in limits(&plan.steady) {
        let Some(seen) = stats::quantile(&counts.good, limit.q) else { continue };
        let standing = if counts.exceeds(limit, ALPHA) {
            "exceeded"
        } else if counts.shows(limit) {
            "shown"
        } else {
            "not shown"
        };
        let (seen, most) = (words::millis(seen), words::millis(limit.ms));
        text.push_str(&format!("; {} {seen} ms, at most {most} ms: {standing}", limit.name));
    }
    text
}

/// To the millisecond: nothing here is known more precisely.
fn span(seconds: f64) -> Span {
    let seconds = (seconds.max(0.0) * 1e3).round() / 1e3;
    Span(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// The first outage under the fault: from the first bad sample to the last bad one before [`SETTLE`] without any.
fn outage(series: &Series<'_>, (from, to): (f64, f64)) -> Option<Outage> {
    let samples = series.within(from, to);
    let first = samples.iter().find(|s| s.outcome.is_bad())?.due;
    let mut last = first;
    // Since when all was good. What is missing may have been bad.
    let mut good_since: Option<f64> = None;
    let mut before = first;
    let mut ended = false;
    for sample in samples.iter().filter(|s| s.due >= first) {
        if sample.due - before > series.every() * 1.5 {
            good_since = None;
        }
        before = sample.due;
        if sample.outcome.is_good() {
            let since = *good_since.get_or_insert(sample.due);
            if sample.due - since + series.every() >= SETTLE.as_secs_f64() - 1e-6 {
                ended = true;
                break;
            }
        } else {
            good_since = None;
            if sample.outcome.is_bad() {
                last = sample.due;
            }
        }
    }
    let error = Span(series.plan.every.0 + series.plan.timeout.0);
    Some(Outage { impact: span(first - from), lasted: span(last - first), error, censored: !ended })
}

/// Seconds from the fault's beginning to the first bad sample after the first outage had ended.
fn bad_again(series: &Series<'_>, (from, to): (f64, f64), outage: Option<Outage>) -> Option<f64> {
    let outage = outage.filter(|o| !o.censored)?;
    let last = from + outage.impact.as_secs_f64() + outage.lasted.as_secs_f64();
    series.first_bad(last + series.every() / 2.0, to).map(|due| due - from)
}

/// When it was clean again after the last revert.
fn healed(series: &Series<'_>, windows: &Windows) -> Healed {
    let Some((from, to)) = windows.recovery else { return Healed::Unknown };
    let samples = series.within(from, to);
    if samples.is_empty() {
        return Healed::Unknown;
    }
    match first_clean(series, samples) {
        // Clean from the very first: it was so before, or within one interval.
        Some(0) if series.first_not_good(from, samples[0].due).is_none() => Healed::After(Span::default()),
        Some(i) => Healed::After(span(samples[i].due - from)),
        None => Healed::NotWithin(span(to - from)),
    }
}

/// Whether it came back in the permitted time, as far as that was observed.
fn in_time(series: &Series<'_>, windows: &Windows, healed: Healed, permitted: Span) -> Healing {
    let Some((from, to)) = windows.recovery else { return Healing::Unknown };
    let (clean_at, until) = match healed {
        Healed::After(t) if t <= permitted => return Healing::InTime,
        Healed::After(t) => (Some(t.as_secs_f64()), from + t.as_secs_f64()),
        Healed::NotWithin(observed) if observed >= permitted => (None, to),
        Healed::NotWithin(_) | Healed::Unknown => return Healing::Unknown,
    };
    // Late because it was bad or slow to the last, or because nobody looked?
    let last = series.counts((until - SETTLE.as_secs_f64().max(series.every())).max(from), until);
    let slow = stats::quantile(&last.good, 0.5).is_some_and(|ms| limits(&series.plan.steady).any(|l| ms > l.ms));
    if last.bad > 0 || slow { Healing::Late(clean_at) } else { Healing::Unknown }
}
