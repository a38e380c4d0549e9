//! The blast radius: declared against observed, by component.

use firedrill_model::log::Run;
use firedrill_model::verdict::{Containment, Expectation, Radius, Verdict};

use super::probe::Judged;
use crate::words;

/// The radius, from the judged probes.
pub(crate) fn observe(run: &Run, probes: &[Judged]) -> Radius {
    let plan = &run.plan;
    let moved = |name: &str| {
        let of = |p: &&Judged| plan.probes.get(p.judgement.probe).is_some_and(|plan| plan.component == name);
        probes.iter().filter(of).any(|p| p.judgement.moved)
    };
    let names = || plan.components.iter().map(|c| c.name.clone());
    let observed: Vec<String> = names().filter(|c| moved(c)).collect();
    let unprobed: Vec<String> =
        plan.components.iter().filter(|c| c.probes.is_empty()).map(|c| c.name.clone()).collect();
    let inside = |c: &String| plan.radius.contains(c);
    let escapes: Vec<String> = observed.iter().filter(|c| !inside(c)).cloned().collect();
    let over_predicted =
        plan.radius.iter().filter(|c| !observed.contains(c) && !unprobed.contains(c)).cloned().collect();
    let all_held = probes.iter().filter(|p| p.judgement.judged).all(|p| p.judgement.verdict == Verdict::Held);
    let nothing_to_say = !plan.judged || plan.probes.is_empty() || run.fault_window().is_none();
    let containment = if !plan.judged {
        Containment::Unproven
    } else if !escapes.is_empty() {
        Containment::Leaked
    } else if nothing_to_say || !all_held || unprobed.iter().any(|c| !inside(c)) {
        Containment::Unproven
    } else {
        Containment::Contained
    };
    Radius {
        declared: plan.radius.clone(),
        observed,
        escapes,
        over_predicted,
        unprobed,
        components: plan.components.len(),
        containment,
    }
}

/// The expectation that the effect stays inside the declared radius.
pub(crate) fn expectation(run: &Run, probes: &[Judged], radius: &Radius) -> Expectation {
    let what = if radius.declared.is_empty() {
        "no component is hit".to_owned()
    } else {
        format!("the effect stays inside {}", bracketed(&radius.declared))
    };
    let (verdict, reason) = match radius.containment {
        Containment::Contained => {
            let outside = probes.iter().filter(|p| p.judgement.judged).count();
            let reason = match outside {
                0 => "no component lies outside".to_owned(),
                1 => "the probe outside is shown to have held".to_owned(),
                n => format!("all {n} probes outside are shown to have held"),
            };
            (Verdict::Held, reason)
        }
        Containment::Leaked => {
            let escaped = |p: &&Judged| {
                let component = run.plan.probes.get(p.judgement.probe).map(|plan| &plan.component);
                p.judgement.judged && component.is_some_and(|c| radius.escapes.contains(c))
            };
            let worst = probes.iter().filter(escaped).fold(Verdict::Degraded, |v, p| v.worse(p.judgement.verdict));
            (worst, format!("leaked: {} moved too", words::list(&radius.escapes)))
        }
        Containment::Unproven => {
            let open: Vec<&str> = probes
                .iter()
                .filter(|p| p.judgement.judged && p.judgement.verdict != Verdict::Held)
                .filter_map(|p| run.plan.probes.get(p.judgement.probe).map(|plan| plan.name.as_str()))
                .collect();
            let blind: Vec<&String> = radius.unprobed.iter().filter(|c| !radius.declared.contains(c)).collect();
            let reason = if !open.is_empty() {
                format!("unproven: {} not shown to have held", words::list(&open))
            } else if !blind.is_empty() {
                format!("unproven: no probe watches {}", words::list(&blind))
            } else {
                "unproven: there is nothing to tell it by".to_owned()
            };
            (Verdict::Inconclusive, reason)
        }
    };
    Expectation { what, verdict, reason }
}

/// `[db, store]`.
pub(crate) fn bracketed(names: &[String]) -> String {
    format!("[{}]", names.join(", "))
}
