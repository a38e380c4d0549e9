//! Judging: what a run's samples and receipts show. Pure functions of the log; no I/O, no clock.
//!
//! Everything rests on one-sided bounds with 95 % confidence: Clopper–Pearson for the share of bad
//! answers, order statistics for latency quantiles. *Held* needs the upper bounds within the tolerance, *degraded* a
//! lower bound beyond it, *broken* a lower bound of the bad share of at least one half, or no recovery in time.
//! Whatever is neither is *inconclusive*. A sample that was due and not taken counts as bad for the first and as good
//! for the others: missing data is neither a pass nor a failure.
//!
//! Known limits. Samples are taken as independent; successive answers of a real service are not quite, so the true
//! error of a bound is somewhat more than 5 % for a service that is bad in bursts at a rate near its tolerance. There
//! is no correction for looking at several probes (none is needed to say that *all* held), nor for looking at the
//! baseline repeatedly until it is shown.

mod finding;
mod gate;
mod probe;
mod radius;
mod receipts;
mod stats;
mod story;
mod window;
mod windows;

#[cfg(test)]
mod tests;

use firedrill_model::log::Run;
use firedrill_model::receipt::Effect;
use firedrill_model::units::Span;
use firedrill_model::verdict::{Expectation, Judgement, Radius, Verdict};

pub use gate::{Baseline, baseline, clean};

use crate::words;
use probe::{Healing, Judged};
use stats::ALPHA;
use window::{Counts, Series};
use windows::Windows;

/// The samples of every probe of a run.
fn series(run: &Run) -> impl Iterator<Item = Series<'_>> {
    run.plan
        .probes
        .iter()
        .enumerate()
        .map(|(i, plan)| Series { plan, samples: run.samples.get(i).map_or(&[][..], Vec::as_slice) })
}

/// Judges a run that is over, from its log alone.
pub fn run(run: &Run) -> Judgement {
    let windows = Windows::of(run);
    let probes: Vec<Judged> =
        run.plan.probes.iter().enumerate().map(|(i, p)| probe::judge(run, i, p, &windows)).collect();
    let radius = radius::observe(run, &probes);
    let mut expectations = Vec::new();
    expectations.extend(early_end(run));
    expectations.push(receipts::expectation(run));
    if run.plan.judged {
        expectations.extend(steady_before(run, &windows));
    }
    // Without a fault there is nothing that the others could be about.
    if run.plan.judged && run.fault_window().is_some() {
        expectations.extend(probes.iter().filter(|p| p.judgement.judged).map(|p| holds(run, p)));
        expectations.push(healing(run, &probes));
        expectations.push(radius::expectation(run, &probes, &radius));
        expectations.extend(coverage(run));
    }
    let verdict = expectations.iter().fold(Verdict::Held, |worst, e| worst.worse(e.verdict));
    expectations.sort_by_key(|e| std::cmp::Reverse(e.verdict.rank()));
    let unproven = unproven(run, &probes, &radius);
    let finding = finding::finding(run, verdict, &expectations, &probes, &radius);
    Judgement {
        verdict,
        finding,
        expectations,
        probes: probes.into_iter().map(|p| p.judgement).collect(),
        radius,
        unproven,
    }
}

/// A run that was ended early, or never injected anything.
fn early_end(run: &Run) -> Option<Expectation> {
    let what = "the run goes to its end".to_owned();
    if let Some((_, why, invalid)) = &run.aborted {
        let verdict = if *invalid { Verdict::Invalid } else { Verdict::Aborted };
        return Some(Expectation { what, verdict, reason: why.clone() });
    }
    let nothing = "no fault was injected".to_owned();
    run.fault_window().is_none().then_some(Expectation { what, verdict: Verdict::Invalid, reason: nothing })
}

/// What speaks against a steady state before the fault. The gate has looked already; this keeps a log honest that
/// was made without it.
fn steady_before(run: &Run, windows: &Windows) -> Vec<Expectation> {
    let what = "everything is steady before the fault";
    let invalid = |reason| Expectation { what: what.into(), verdict: Verdict::Invalid, reason };
    let Some((from, to)) = windows.baseline else {
        return if run.aborted.is_some() { Vec::new() } else { vec![invalid("there was no baseline".into())] };
    };
    series(run)
        .filter_map(|series| {
            let (first, last) = series.before(from, to);
            let counts = series.counts(first, last);
            if counts.taken() == 0 && run.aborted.is_none() {
                return Some(invalid(format!("{} gave no answer before the fault", series.plan.name)));
            }
            gate::contradiction(&series, &counts, ALPHA).map(invalid)
        })
        .collect()
}

fn holds(run: &Run, probe: &Judged) -> Expectation {
    let name = run.plan.probes.get(probe.judgement.probe).map_or("", |p| p.name.as_str());
    let what = if run.plan.outage == Span::default() {
        format!("{name} holds")
    } else {
        format!("{name} holds, after an outage of at most {}", words::span(run.plan.outage))
    };
    Expectation { what, verdict: probe.judgement.verdict, reason: probe.judgement.reason.clone() }
}

fn healing(run: &Run, probes: &[Judged]) -> Expectation {
    let permitted = words::span(run.plan.healed);
    let what = format!("everything is steady again within {permitted}");
    let named = |wanted: fn(&Healing) -> bool| -> Vec<String> {
        let probes = probes.iter().filter(|p| wanted(&p.healing));
        probes.filter_map(|p| Some(run.plan.probes.get(p.judgement.probe)?.name.clone())).collect()
    };
    let late = named(|h| matches!(h, Healing::Late(_)));
    let unknown = named(|h| *h == Healing::Unknown);
    let (verdict, reason) = if !late.is_empty() {
        (Verdict::Broken, format!("{} not steady {permitted} after the last fault ended", are(&late)))
    } else if !unknown.is_empty() {
        (Verdict::Inconclusive, format!("{} not observed long enough after the last fault ended", are(&unknown)))
    } else if probes.is_empty() {
        (Verdict::Inconclusive, "no probe watches".into())
    } else {
        let slowest = probes.iter().filter_map(|p| finding::healed_after(&p.judgement)).fold(0.0, f64::max);
        (Verdict::Held, format!("the last was steady {} after the last fault ended", words::seconds(slowest)))
    };
    Expectation { what, verdict, reason }
}

/// `a was`, `a and b were`.
fn are(names: &[String]) -> String {
    format!("{} {}", words::list(names), if names.len() == 1 { "was" } else { "were" })
}

/// Without any probe nothing is known. A single component without one outside the declared radius leaves containment
/// unproven; one inside is unproven, too, and said to be, but its probes would only have been reported.
fn coverage(run: &Run) -> Option<Expectation> {
    run.plan.probes.is_empty().then(|| Expectation {
        what: "something is watched".into(),
        verdict: Verdict::Inconclusive,
        reason: "there is no probe at all".into(),
    })
}

/// What was not shown, in plain sentences.
fn unproven(run: &Run, probes: &[Judged], radius: &Radius) -> Vec<String> {
    let mut sentences: Vec<String> =
        radius.unprobed.iter().map(|c| format!("{c} has no probe, so nothing is known about it")).collect();
    if run.fault_window().is_none() {
        return sentences;
    }
    let open = |p: &&Judged| p.judgement.judged && p.judgement.verdict == Verdict::Inconclusive;
    if run.aborted.is_some() && probes.iter().any(|p| open(&p)) {
        sentences.push("the run ended early, so that what the probes show is incomplete".into());
    }
    let (mut missing, mut unseen) = (Vec::new(), Vec::new());
    for (probe, plan) in probes.iter().filter_map(|p| Some((p, run.plan.probes.get(p.judgement.probe)?))) {
        let Counts { due, .. } = probe.counts;
        if open(&probe) && run.aborted.is_none() {
            let more = match probe.counts.needed(&plan.steady) {
                Some(n) if n > due => format!(": {due} samples, and with no more bad ones {n} would show it"),
                _ => String::new(),
            };
            sentences.push(format!("{} was neither shown to hold nor shown to fail{more}", plan.name));
        }
        let fault = &probe.judgement.fault;
        if fault.missing() > 0 {
            missing.push(format!("{} of {} of {}", fault.missing(), fault.due, plan.name));
        }
        if run.plan.judged && run.aborted.is_none() && probe.healing == Healing::Unknown {
            unseen.push(plan.name.as_str());
        }
    }
    if !unseen.is_empty() {
        sentences.push(format!("whether all recovers was not observed for long enough: {}", words::list(&unseen)));
    }
    if !missing.is_empty() {
        sentences.push(format!("samples that were due under the fault and not taken: {}", words::list(&missing)));
    }
    for (_, receipt) in run.receipts.iter().filter(|(_, r)| r.effect == Effect::ArmedNoTraffic) {
        let (fault, target) = (&receipt.fault, &receipt.target);
        sentences.push(format!("{fault} on {target} met no traffic, so what it does to the system is unknown"));
    }
    sentences.extend(receipts::unproven(run));
    sentences
}
