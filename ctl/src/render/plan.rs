//! `firedrill plan`: what a run would do, to the last change, without doing it.

use std::fmt::Write as _;

use firedrill_model::change::Plan;
use firedrill_model::config::Config;
use firedrill_model::run::{ProbePlan, RunPlan, SETTLE};

use super::{digest, words};

const COLUMNS: usize = 100;

/// What a step would do now.
#[derive(Clone, Debug)]
pub struct StepPreview {
    /// Index of the step.
    pub step: usize,
    /// Its targets.
    pub targets: Vec<TargetPreview>,
}

/// What would happen to a target.
#[derive(Clone, Debug)]
pub struct TargetPreview {
    /// Its name.
    pub name: String,
    /// What was found: `cgroup …, 3 processes`.
    pub found: String,
    /// Faults by name, each with its changes or with why it cannot act on this target.
    pub plans: Vec<(String, Result<Plan, String>)>,
}

/// The plan in words.
pub fn text(plan: &RunPlan, resolved: &[StepPreview], config: &Config) -> String {
    let mut out = String::new();
    let title = if plan.title.is_empty() { &plan.experiment } else { &plan.title };
    let _ = writeln!(out, "{}", words::wrap(title, COLUMNS, "Plan: "));
    let _ = writeln!(out, "Nothing has been changed. A run would do this.\n");
    overview(&mut out, plan);
    field(&mut out, "caps", &format!("{} ({})", config.caps, config.origin()));
    for objection in config.objections(plan) {
        field(&mut out, "REFUSED", &objection.to_string());
    }
    for (i, step) in plan.steps.iter().enumerate() {
        let _ = writeln!(
            out,
            "\nStep {}: {} on {}, at {} for {}",
            i + 1,
            digest::faults(step),
            digest::targets(step),
            words::span(step.at),
            words::span(step.lasts)
        );
        let mut number = 0;
        for target in resolved.iter().filter(|r| r.step == i).flat_map(|r| &r.targets) {
            preview(&mut out, target, &mut number);
        }
    }
    probes(&mut out, plan);
    components(&mut out, plan);
    out
}

fn field(out: &mut String, label: &str, value: &str) {
    let _ = writeln!(out, "{}", words::wrap(value, COLUMNS, &words::pad(label, 14)));
}

fn overview(out: &mut String, plan: &RunPlan) {
    let window = plan.fault_window();
    let auto = if plan.baseline_auto { " (longer when the tolerances need it)" } else { "" };
    field(
        out,
        "time",
        &format!(
            "about {}: baseline {}{auto}, faults {}, then {} to {} until all is steady",
            words::span(plan.expected_length()),
            words::span(plan.baseline),
            words::span(window),
            words::span(SETTLE),
            words::secs((plan.healed.0 + SETTLE.0).as_secs_f64())
        ),
    );
    field(out, "deadline", &format!("{}, then everything is reverted", words::span(plan.deadline)));
    field(out, "experiment", &plan.experiment);
    field(out, "system", &plan.system);
    field(out, "seed", &plan.seed.to_string());
    for pick in &plan.picks {
        let text = format!(
            "{}: {} of {} replicas of {}: {}",
            pick.name,
            pick.chosen.len(),
            pick.of,
            pick.component,
            words::list(&pick.chosen, "none")
        );
        field(out, "pick", &text);
    }
    if !plan.judged {
        field(out, "expect", "nothing: an ad-hoc fault is reported, not judged");
        return;
    }
    field(out, "radius", &words::list(&plan.radius, "none: every probe must hold"));
    let outage =
        if plan.outage.0.is_zero() { "none".to_owned() } else { format!("at most {}", words::span(plan.outage)) };
    field(out, "outage", &format!("{outage}, outside the radius"));
    field(out, "healed", &format!("within {} of the last revert, every probe", words::span(plan.healed)));
    if plan.abort.is_empty() {
        field(out, "abort", "no rule");
    }
    for rule in &plan.abort {
        let name = plan.probes.get(rule.probe).map_or("?", |p| p.name.as_str());
        field(out, "abort", &format!("when {name} is bad for {} on end", words::span(rule.bad_for)));
    }
}

fn preview(out: &mut String, target: &TargetPreview, number: &mut usize) {
    let _ = writeln!(out, "{}", words::wrap(&target.found, COLUMNS, &format!("  {}: ", target.name)));
    for (fault, plan) in &target.plans {
        match plan {
            Err(why) => {
                let _ = writeln!(out, "{}", words::wrap(why, COLUMNS, &format!("    ✗ {fault}: ")));
            }
            Ok(plan) => {
                let _ = writeln!(out, "    {fault}, undone in reverse order:");
                for change in &plan.changes {
                    *number += 1;
                    let _ =
                        writeln!(out, "{}", words::wrap(&change.to_string(), COLUMNS, &format!("      {number:>2}. ")));
                }
                for note in &plan.notes {
                    let _ = writeln!(out, "{}", words::wrap(note, COLUMNS, "      note: "));
                }
            }
        }
    }
}

fn probes(out: &mut String, plan: &RunPlan) {
    if plan.probes.is_empty() {
        let _ = writeln!(out, "\nNo probe watches: nothing but the receipts will be known.");
        return;
    }
    let _ = writeln!(out, "\nProbes");
    for probe in &plan.probes {
        let role = match (plan.judged, plan.is_inside(probe)) {
            (false, _) => "reported",
            (true, true) => "inside the radius: reported, must heal",
            (true, false) => "judged",
        };
        let _ = writeln!(out, "  {} ({role})", probe.name);
        let place = probe.netns.as_ref().map(|n| format!(", in netns {n}")).unwrap_or_default();
        let what = format!("{}{place}, every {}, timeout {}", probe.describe, probe.every, probe.timeout);
        let _ = writeln!(out, "{}", words::wrap(&what, COLUMNS, "    "));
        let _ = writeln!(out, "    steady: {}", digest::tolerance(&probe.steady));
        let _ = writeln!(out, "{}", words::wrap(&samples(plan, probe), COLUMNS, "    "));
    }
}

/// How many samples a probe needs, and how many the windows give.
fn samples(plan: &RunPlan, probe: &ProbePlan) -> String {
    let every = probe.every.as_secs_f64().max(1e-3);
    let gives = |secs: f64| (secs / every) as usize;
    let permitted = if plan.is_inside(probe) { 0.0 } else { plan.outage.as_secs_f64() };
    let (before, under) =
        (gives(plan.baseline.as_secs_f64()), gives((plan.fault_window().as_secs_f64() - permitted).max(0.0)));
    let mut text = format!(
        "needs {} samples ({}); the baseline gives {before}, the fault window {under}",
        probe.needs,
        words::secs(probe.needs as f64 * every)
    );
    if under < probe.needs && plan.judged && !plan.is_inside(probe) {
        text.push_str(": too few to show that it holds, so `held` cannot be reached");
    }
    text
}

fn components(out: &mut String, plan: &RunPlan) {
    let without: Vec<&str> = plan.components.iter().filter(|c| c.probes.is_empty()).map(|c| c.name.as_str()).collect();
    if !without.is_empty() {
        let text = format!("{}: nothing will be known about them", words::list(&without, ""));
        let _ = writeln!(out, "\n{}", words::wrap(&text, COLUMNS, "Without a probe: "));
    }
}

#[cfg(test)]
mod tests {
    use firedrill_model::change::Change;
    use firedrill_model::facts::CgroupRef;
    use firedrill_model::units::Span;

    use super::super::sample::{self, golden};
    use super::*;

    fn previews() -> Vec<StepPreview> {
        let freeze = Change::Freeze { cgroup: CgroupRef { path: "/sys/fs/cgroup/shop/session-a".into(), id: 7 } };
        let notes = vec!["3 sockets of session-a belong to another cgroup and will not be delayed".to_owned()];
        let pause = Plan { changes: vec![freeze], notes: Vec::new() };
        let latency = Plan { changes: sample::latency_changes(), notes };
        let target = |name: &str, found: &str, fault: &str, plan| TargetPreview {
            name: name.into(),
            found: found.into(),
            plans: vec![(fault.to_owned(), plan)],
        };
        vec![
            StepPreview {
                step: 0,
                targets: vec![target(
                    "session/session-a",
                    "cgroup /sys/fs/cgroup/shop/session-a, 2 processes",
                    "pause",
                    Ok(pause),
                )],
            },
            StepPreview {
                step: 1,
                targets: vec![
                    target("datastore/main", "netns fd-shop-db, interface lo", "latency", Ok(latency)),
                    target(
                        "datastore/spare",
                        "unit spare.service, inactive",
                        "stop",
                        Err("it is inactive, not active".into()),
                    ),
                ],
            },
        ]
    }

    #[test]
    fn the_plan_is_as_it_should_be() {
        golden("plan.txt", &text(&sample::shared_store().plan, &previews(), &Config::default()));
    }

    #[test]
    fn every_change_is_printed_in_the_order_in_which_it_is_applied() {
        let text = text(&sample::shared_store().plan, &previews(), &Config::default()).replace("\n          ", " ");
        let mut from = 0;
        for change in sample::latency_changes() {
            let line = change.to_string();
            from += text[from..].find(&line).unwrap_or_else(|| panic!("`{line}` is missing or too early"));
        }
    }

    #[test]
    fn a_window_that_cannot_reach_held_is_said_to_be_too_short() {
        let mut plan = sample::lost_web().plan;
        assert!(!text(&plan, &[], &Config::default()).contains("cannot be reached"));
        plan.steps[0].lasts = Span::from_secs(10);
        assert!(text(&plan, &[], &Config::default()).contains("cannot be reached"));
    }
}
