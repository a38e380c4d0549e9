//! The finding: the first sentence of every report.

use firedrill_model::log::Run;
use firedrill_model::run::ProbePlan;
use firedrill_model::units::Span;
use firedrill_model::verdict::{Expectation, Healed, ProbeJudgement, Radius, Verdict};

use super::probe::{Healing, Judged};
use super::radius::bracketed;
use super::window::limits;
use super::{stats, story};
use crate::words;

/// One sentence for people, with the numbers.
pub(crate) fn finding(
    run: &Run,
    verdict: Verdict,
    sorted: &[Expectation],
    probes: &[Judged],
    radius: &Radius,
) -> String {
    let reason = sorted.first().map_or("", |e| e.reason.as_str());
    let done = story::told(run);
    let sentence = match verdict {
        Verdict::Aborted if done.is_empty() => format!("Aborted before anything was injected: {reason}"),
        Verdict::Aborted => format!("Aborted: {reason}; {done}"),
        Verdict::Invalid => format!("Invalid: nothing was tested: {reason}"),
        _ if !run.plan.judged => ad_hoc(run, verdict, reason, probes),
        Verdict::Broken => broken(run, probes, radius),
        Verdict::Degraded => degraded(run, probes, radius),
        Verdict::Held => held(run, probes, radius),
        Verdict::Inconclusive => inconclusive(run, sorted, probes),
    };
    // A reason may end with "did you mean ..?".
    if sentence.ends_with('?') { sentence } else { format!("{}.", sentence.trim_end_matches('.')) }
}

/// A judged probe with its plan.
type Pair<'a> = (&'a Judged, &'a ProbePlan);

/// Judged probes with a verdict, users' first.
fn with<'a>(run: &'a Run, probes: &'a [Judged], verdict: Verdict) -> Vec<Pair<'a>> {
    let mut found: Vec<Pair<'a>> = probes
        .iter()
        .filter(|p| p.judgement.judged && p.judgement.verdict == verdict)
        .filter_map(|p| Some((p, run.plan.probes.get(p.judgement.probe)?)))
        .collect();
    let users = |plan: &ProbePlan| run.plan.components.iter().any(|c| c.user_facing && c.name == plan.component);
    found.sort_by_key(|(_, plan)| !users(plan));
    found
}

fn others(n: usize, did: &str) -> String {
    match n {
        0 | 1 => String::new(),
        2 => format!(", and 1 other probe {did} too"),
        n => format!(", and {} other probes {did} too", n - 1),
    }
}

fn held(run: &Run, probes: &[Judged], radius: &Radius) -> String {
    let done = story::told(run);
    let found = with(run, probes, Verdict::Held);
    let Some((probe, plan)) = found.first() else {
        let slowest = probes.iter().filter_map(|p| healed_after(&p.judgement)).fold(0.0, f64::max);
        return format!(
            "Held: nothing lies outside the declared radius {}, and all was steady again {} after the fault ended; {done}",
            bracketed(&radius.declared),
            words::seconds(slowest)
        );
    };
    let subject = plan.name.rsplit('/').next().unwrap_or(&plan.name);
    let mut text = format!(
        "{} held: {} stayed within {} bad ({} of {} bad)",
        words::capital(subject),
        plan.name,
        words::percent(plan.steady.bad.fraction()),
        probe.counts.bad,
        probe.counts.due
    );
    for limit in limits(&plan.steady) {
        if let Some(seen) = stats::quantile(&probe.counts.good, limit.q) {
            let (most, seen) = (words::millis(limit.ms), words::millis(seen));
            text.push_str(&format!(" and its {} within {most} ms ({seen} ms)", limit.name));
        }
    }
    text.push_str(&format!(" while {done}"));
    if let (Some(outage), true) = (probe.judgement.outage, run.plan.outage != Span::default()) {
        let (lasted, permitted) = (words::span(outage.lasted), words::span(run.plan.outage));
        text.push_str(&format!(", after an outage of {lasted} ({permitted} permitted)"));
    }
    text.push_str(&others(found.len(), "held"));
    text
}

fn broken(run: &Run, probes: &[Judged], radius: &Radius) -> String {
    let found = with(run, probes, Verdict::Broken);
    let Some((probe, plan)) = found.first() else { return not_healed(run, probes, radius) };
    let names = match found.as_slice() {
        [_, (_, other)] => format!("{} and {}", plan.name, other.name),
        more => match more.len() - 1 {
            0 => plan.name.clone(),
            n => format!("{} and {n} other probes", plan.name),
        },
    };
    let share = probe.counts.bad as f64 / probe.counts.taken().max(1) as f64;
    let how_long = match probe.judgement.outage {
        Some(outage) if outage.censored => " until the fault ended".to_owned(),
        Some(outage) => format!(" for {}", words::span(outage.lasted)),
        None => String::new(),
    };
    let of = if found.len() > 1 { format!(" of {}", plan.name) } else { String::new() };
    let mut text = format!(
        "Broken: {} takes {} down: {} bad ({} of {}{of}){how_long}",
        story::doing(run),
        names,
        words::percent(share),
        probe.counts.bad,
        probe.counts.due
    );
    if run.plan.outage != Span::default() {
        text.push_str(&format!(", beyond the {} permitted", words::span(run.plan.outage)));
    }
    let elsewhere = |lost: &str| found.iter().any(|(_, plan)| plan.component != lost);
    if let Some((_, weakness)) = story::weakness(run).filter(|(lost, _)| elsewhere(lost)) {
        text.push_str(&format!("; {weakness}"));
    }
    text.push_str(&hit_too(radius));
    text
}

/// Where it went beyond what was declared.
fn hit_too(radius: &Radius) -> String {
    if radius.escapes.is_empty() {
        return String::new();
    }
    let were = if radius.escapes.len() == 1 { "was" } else { "were" };
    let too = if radius.declared.is_empty() { "" } else { " too" };
    format!(
        "; declared radius was {}, and {} {were} hit{too}",
        bracketed(&radius.declared),
        words::list(&radius.escapes)
    )
}

fn not_healed(run: &Run, probes: &[Judged], radius: &Radius) -> String {
    let mut late = probes.iter().filter_map(|p| match p.healing {
        Healing::Late(after) => Some((run.plan.probes.get(p.judgement.probe)?.name.as_str(), after)),
        _ => None,
    });
    let permitted = words::span(run.plan.healed);
    let (name, after) = late.next().unwrap_or_default();
    let how = match after {
        Some(seconds) => {
            format!("was steady only {} after the fault ended, and {permitted} are permitted", words::seconds(seconds))
        }
        None => format!("was still not steady {permitted} after the fault ended"),
    };
    format!("Broken: {name} {how}{}, when {}{}", others(late.count() + 1, "was"), story::told(run), hit_too(radius))
}

fn degraded(run: &Run, probes: &[Judged], radius: &Radius) -> String {
    let found = with(run, probes, Verdict::Degraded);
    let Some((probe, plan)) = found.first() else { return format!("Degraded: {}", story::told(run)) };
    let how = match probe.exceeded {
        Some(limit) => format!(
            "had a {} of {} ms, and at most {} ms is tolerated,",
            limit.name,
            words::millis(stats::quantile(&probe.counts.good, limit.q).unwrap_or_default()),
            words::millis(limit.ms)
        ),
        None => format!(
            "was {} bad ({} of {}), and at most {} is tolerated,",
            words::percent(probe.counts.bad as f64 / probe.counts.taken().max(1) as f64),
            probe.counts.bad,
            probe.counts.due,
            words::percent(plan.steady.bad.fraction())
        ),
    };
    let others = others(found.len(), "moved");
    format!("Degraded: {} {how} while {}{others}{}", plan.name, story::told(run), hit_too(radius))
}

fn inconclusive(run: &Run, sorted: &[Expectation], probes: &[Judged]) -> String {
    let done = story::told(run);
    match with(run, probes, Verdict::Inconclusive).first() {
        Some((probe, plan)) => {
            let reason = &probe.judgement.reason;
            format!("Inconclusive: {} was neither shown to hold nor shown to fail while {done}: {reason}", plan.name)
        }
        None => {
            let reasons: Vec<&str> =
                sorted.iter().filter(|e| e.verdict == Verdict::Inconclusive).map(|e| e.reason.as_str()).collect();
            format!("Inconclusive: {}; {done}", reasons.first().unwrap_or(&""))
        }
    }
}

/// An ad-hoc fault: did it work, and what did the watched probe see?
fn ad_hoc(run: &Run, verdict: Verdict, reason: &str, probes: &[Judged]) -> String {
    let done = story::told(run);
    let mut text = match verdict {
        Verdict::Held => {
            let says: Vec<&str> = run.receipts.iter().map(|(_, r)| r.says.as_str()).collect();
            format!("Took effect: {done}: {}", says.join("; "))
        }
        _ => format!("Inconclusive: {reason}; {done}"),
    };
    for (probe, plan) in probes.iter().filter_map(|p| Some((p, run.plan.probes.get(p.judgement.probe)?))) {
        let stats = &probe.judgement.fault;
        text.push_str(&format!("; {} was bad {} of {} times", plan.name, stats.bad, stats.due));
        match (stats.p50_ms, probe.judgement.baseline.p50_ms) {
            (Some(now), Some(before)) => {
                text.push_str(&format!(", median {} ms ({} ms before)", words::millis(now), words::millis(before)));
            }
            (Some(now), None) => text.push_str(&format!(", median {} ms", words::millis(now))),
            _ => {}
        }
    }
    text
}

/// Seconds from the last revert until a probe was clean.
pub(crate) fn healed_after(probe: &ProbeJudgement) -> Option<f64> {
    match probe.healed {
        Healed::After(t) => Some(t.as_secs_f64()),
        Healed::NotWithin(_) | Healed::Unknown => None,
    }
}
