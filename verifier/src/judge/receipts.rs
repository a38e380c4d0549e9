//! Did every fault take effect? No effect, no verdict.

use firedrill_model::fault::Fault;
use firedrill_model::log::Run;
use firedrill_model::receipt::{Effect, Measured, Receipt};
use firedrill_model::verdict::{Expectation, Verdict};

use crate::words;

/// Share of a step's duration that a killed victim must be gone for, or its loss was hardly tested.
const AWAY: f64 = 0.1;

/// The expectation that every fault took effect.
pub(crate) fn expectation(run: &Run) -> Expectation {
    let mut worst = Verdict::Held;
    let mut reasons = Vec::new();
    for (i, step) in run.plan.steps.iter().enumerate() {
        let begun = run.steps.get(i).filter(|s| s.began.is_some());
        let Some(begun) = begun else {
            if run.aborted.is_none() {
                worst = worst.worse(Verdict::Inconclusive);
                reasons.push(format!("step {} was never begun", i + 1));
            }
            continue;
        };
        for fault in &step.faults {
            let receipts: Vec<&Receipt> = of(run, i, fault.name()).collect();
            if receipts.is_empty() {
                worst = worst.worse(Verdict::Invalid);
                reasons.push(format!(
                    "{} in step {} left no receipt, so nothing shows that it did anything",
                    fault.name(),
                    i + 1
                ));
            } else if receipts.len() < begun.targets.len() {
                worst = worst.worse(Verdict::Inconclusive);
                let (have, want) = (receipts.len(), begun.targets.len());
                reasons.push(format!("{} in step {} left receipts for {have} of {want} targets", fault.name(), i + 1));
            }
        }
    }
    for (_, receipt) in &run.receipts {
        let (verdict, what) = match receipt.effect {
            Effect::Effective => continue,
            Effect::ArmedNoTraffic => (Verdict::Inconclusive, "was in force, but nothing came by for it to act on"),
            Effect::None => (Verdict::Invalid, "had no effect"),
        };
        worst = worst.worse(verdict);
        reasons.push(format!("{} on {} {what} ({})", receipt.fault, receipt.target, receipt.says));
    }
    let reason = if reasons.is_empty() {
        let says: Vec<String> =
            run.receipts.iter().map(|(_, r)| format!("{} on {}: {}", r.fault, r.target, r.says)).collect();
        if says.is_empty() {
            worst = Verdict::Invalid;
            "nothing was injected".into()
        } else {
            says.join("; ")
        }
    } else {
        reasons.join("; ")
    };
    Expectation { what: "every fault takes effect".into(), verdict: worst, reason }
}

fn of<'a>(run: &'a Run, step: usize, fault: &'a str) -> impl Iterator<Item = &'a Receipt> {
    run.receipts.iter().filter(move |(s, r)| *s == step && r.fault == fault).map(|(_, r)| r)
}

/// What the receipts leave open: victims that were back at once.
pub(crate) fn unproven(run: &Run) -> Vec<String> {
    let mut sentences = Vec::new();
    for (i, step) in run.plan.steps.iter().enumerate() {
        let once = step.faults.iter().any(|f| matches!(f, Fault::Kill(kill) if !kill.keep));
        if !once {
            continue;
        }
        let lasted = step.lasts.as_secs_f64();
        for receipt in of(run, i, "kill") {
            let downtime = receipt.measured.iter().find_map(|m| match m {
                Measured::Kill(count) => count.downtime,
                _ => None,
            });
            if let Some(gone) = downtime.filter(|gone| gone.as_secs_f64() < AWAY * lasted) {
                sentences.push(format!(
                    "{} was back {} after it was killed, so its loss for {} was not tested; `keep: true` keeps it down",
                    receipt.target,
                    words::span(gone),
                    words::seconds(lasted)
                ));
            }
        }
    }
    sentences
}
