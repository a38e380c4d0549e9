//! Verdicts of whole runs.

use std::cell::Cell;

use firedrill_model::event::{Bad, Event, Outcome, Phase};
use firedrill_model::receipt::Effect;
use firedrill_model::units::Span;
use firedrill_model::verdict::{Containment, Healed, Verdict};

use super::drill::*;

#[test]
fn a_clean_trace_is_held() {
    let judgement = Drill::new().judged(&|_| good(), &|_| good());
    assert_eq!(judgement.verdict, Verdict::Held, "{judgement:#?}");
    assert_eq!(judgement.radius.containment, Containment::Contained);
    assert_eq!(judgement.radius.over_predicted, ["web"]);
    assert!(judgement.unproven.is_empty(), "{:?}", judgement.unproven);
    assert!(judgement.probes.iter().all(|p| p.healed == Healed::After(Span::default()) && p.outage.is_none()));
}

#[test]
fn a_full_outage_outside_the_radius_is_broken_and_leaks() {
    let down = |due| if under_fault(due) { bad() } else { good() };
    let judgement = Drill::new().judged(&down, &down);
    assert_eq!(judgement.verdict, Verdict::Broken);
    assert_eq!(judgement.radius.containment, Containment::Leaked);
    assert_eq!(
        (judgement.radius.observed, judgement.radius.escapes),
        (vec!["front".into(), "web".into()], vec!["front".into()])
    );
    let outage = judgement.probes[0].outage.expect("an outage");
    assert!(outage.censored, "it went on to the end");
    assert!((outage.lasted.as_secs_f64() - 20.0).abs() < 2.0 * EVERY, "{outage:?}");
    assert!((outage.impact.as_secs_f64()) < 2.0 * EVERY, "{outage:?}");
    assert_eq!(outage.error, Span::from_millis(1050));
}

#[test]
fn a_full_outage_inside_the_radius_is_reported_not_judged() {
    let judgement = Drill::new().judged(&|_| good(), &|due| if under_fault(due) { bad() } else { good() });
    assert_eq!(judgement.verdict, Verdict::Held, "{judgement:#?}");
    assert_eq!((judgement.probes[1].verdict, judgement.probes[1].judged), (Verdict::Broken, false));
    assert_eq!(judgement.radius.observed, ["web"]);
    assert_eq!(judgement.radius.containment, Containment::Contained);
}

#[test]
fn a_few_percent_bad_beyond_the_tolerance_are_degraded() {
    let asked = Cell::new(0_u32);
    let flaky = |due| {
        asked.set(asked.get() + 1);
        if under_fault(due) && asked.get().is_multiple_of(10) { bad() } else { good() }
    };
    let judgement = Drill::new().judged(&flaky, &|_| good());
    assert_eq!(judgement.verdict, Verdict::Degraded, "{judgement:#?}");
}

#[test]
fn a_slow_service_is_degraded_by_its_latency_limit() {
    let mut drill = Drill::new();
    drill.plan.probes[0].steady.p95 = Some(Span::from_millis(200));
    let judgement = drill.judged(&|due| if under_fault(due) { slow(400.0) } else { good() }, &|_| good());
    assert_eq!(judgement.verdict, Verdict::Degraded, "{judgement:#?}");
    assert!(judgement.finding.contains("p95 of 400 ms"), "{}", judgement.finding);
    assert!(judgement.probes[0].moved && judgement.probes[0].outage.is_none());
}

#[test]
fn a_latency_limit_that_has_too_few_samples_is_inconclusive() {
    let mut drill = Drill::new();
    // 400 samples under the fault; p99 needs 299 of them fast, and 5 slow ones leave it open.
    drill.plan.probes[0].steady.p99 = Some(Span::from_millis(200));
    let judgement = drill.judged(&|due| if (12.0..12.25).contains(&due) { slow(400.0) } else { good() }, &|_| good());
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{judgement:#?}");
}

#[test]
fn a_permitted_outage_is_not_an_escape() {
    let blip = |due| if (12.0..15.0).contains(&due) { bad() } else { good() };
    let judgement = Drill::new().permitting(4).judged(&blip, &|_| good());
    assert_eq!(judgement.verdict, Verdict::Held, "{judgement:#?}");
    assert!(judgement.radius.escapes.is_empty());
    let outage = judgement.probes[0].outage.expect("an outage");
    assert!(!outage.censored);
    assert!((outage.lasted.as_secs_f64() - 3.0).abs() <= 2.0 * EVERY, "{outage:?}");
    assert!((outage.impact.as_secs_f64() - 2.0).abs() <= 2.0 * EVERY, "{outage:?}");
    assert!(judgement.finding.contains("after an outage of 3s (4s permitted)"), "{}", judgement.finding);
}

#[test]
fn the_same_outage_unpermitted_is_an_escape() {
    let blip = |due| if (12.0..15.0).contains(&due) { bad() } else { good() };
    let judgement = Drill::new().judged(&blip, &|_| good());
    assert_eq!(judgement.verdict, Verdict::Degraded, "{judgement:#?}");
    assert_eq!(judgement.radius.escapes, ["front"]);
}

#[test]
fn an_outage_longer_than_permitted_does_not_hold() {
    let blip = |due| if (12.0..15.0).contains(&due) { bad() } else { good() };
    let judgement = Drill::new().permitting(1).judged(&blip, &|_| good());
    assert_eq!(judgement.verdict, Verdict::Degraded, "{judgement:#?}");
}

#[test]
fn a_second_outage_is_not_permitted_by_the_first() {
    let twice = |due| if (12.0..14.0).contains(&due) || (20.0..22.0).contains(&due) { bad() } else { good() };
    let judgement = Drill::new().permitting(4).judged(&twice, &|_| good());
    assert_eq!(judgement.verdict, Verdict::Degraded, "{judgement:#?}");
    assert!(judgement.probes[0].reason.contains("bad again"), "{}", judgement.probes[0].reason);
}

#[test]
fn what_does_not_heal_in_time_is_broken_inside_the_radius_too() {
    let judgement = Drill::new().judged(&|_| good(), &|due| if due >= FAULT.0 { bad() } else { good() });
    assert_eq!(judgement.verdict, Verdict::Broken, "{judgement:#?}");
    assert!(matches!(judgement.probes[1].healed, Healed::NotWithin(_)));
    assert!(
        judgement.finding.contains("web/ready was still not steady 5s after the fault ended"),
        "{}",
        judgement.finding
    );
}

#[test]
fn what_heals_late_is_broken_with_the_time_it_took() {
    let judgement =
        Drill::new().judged(&|_| good(), &|due| if (FAULT.0..36.5).contains(&due) { bad() } else { good() });
    assert_eq!(judgement.verdict, Verdict::Broken, "{judgement:#?}");
    assert!(judgement.finding.contains("steady only 6.5s after the fault ended"), "{}", judgement.finding);
}

#[test]
fn what_heals_in_time_is_held_with_the_time_it_took() {
    let judgement =
        Drill::new().judged(&|_| good(), &|due| if (FAULT.0..32.5).contains(&due) { bad() } else { good() });
    assert_eq!(judgement.verdict, Verdict::Held, "{judgement:#?}");
    let Healed::After(after) = judgement.probes[1].healed else { panic!("{judgement:#?}") };
    assert!((after.as_secs_f64() - 2.5).abs() <= 2.0 * EVERY, "{after}");
}

#[test]
fn a_service_that_is_bad_within_its_tolerance_counts_as_healed() {
    let asked = Cell::new(0_u32);
    let flaky = |_| {
        asked.set(asked.get() + 1);
        if asked.get().is_multiple_of(7) { bad() } else { good() }
    };
    let judgement = Drill::new().tolerance(1, 30.0).judged(&|_| good(), &flaky);
    assert_eq!(judgement.verdict, Verdict::Held, "{judgement:#?}");
}

#[test]
fn nobody_looking_after_the_fault_leaves_healing_unproven() {
    let drill = Drill::new().baseline().answers_until(0, 30.5, &|_| good()).answers_until(1, 30.5, &|_| good());
    let judgement = crate::judge::run(&drill.fault().phase(30.5, Phase::Verdict).run());
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{judgement:#?}");
    assert!(judgement.unproven.iter().any(|s| s.contains("recovers")), "{:?}", judgement.unproven);
}

#[test]
fn a_fault_without_effect_makes_the_run_invalid() {
    let drill = Drill::new().baseline().answers(0, &|_| good()).answers(1, &|_| good());
    let judgement = crate::judge::run(&drill.fault_with(Effect::None).phase(END, Phase::Verdict).run());
    assert_eq!(judgement.verdict, Verdict::Invalid);
    assert!(
        judgement.finding.starts_with("Invalid: nothing was tested: pause on web/web-2 had no effect"),
        "{}",
        judgement.finding
    );
}

#[test]
fn a_fault_without_effect_is_invalid_even_when_users_were_hit() {
    let down = |due| if under_fault(due) { bad() } else { good() };
    let drill = Drill::new().baseline().answers(0, &down).answers(1, &down);
    let judgement = crate::judge::run(&drill.fault_with(Effect::None).phase(END, Phase::Verdict).run());
    assert_eq!(judgement.verdict, Verdict::Invalid);
}

#[test]
fn a_fault_that_met_no_traffic_is_inconclusive() {
    let drill = Drill::new().baseline().answers(0, &|_| good()).answers(1, &|_| good());
    let judgement = crate::judge::run(&drill.fault_with(Effect::ArmedNoTraffic).phase(END, Phase::Verdict).run());
    assert_eq!(judgement.verdict, Verdict::Inconclusive);
}

#[test]
fn a_fault_without_a_receipt_makes_the_run_invalid() {
    let mut drill = Drill::new().baseline().answers(0, &|_| good()).answers(1, &|_| good()).fault();
    drill.events.retain(|r| !matches!(r.event, Event::Receipt { .. }));
    let judgement = crate::judge::run(&drill.phase(END, Phase::Verdict).run());
    assert_eq!(judgement.verdict, Verdict::Invalid, "{judgement:#?}");
}

#[test]
fn a_run_that_injected_nothing_is_invalid() {
    let drill = Drill::new().baseline().answers(0, &|_| good()).answers(1, &|_| good()).phase(END, Phase::Verdict);
    let judgement = crate::judge::run(&drill.run());
    assert_eq!(judgement.verdict, Verdict::Invalid);
    assert!(judgement.expectations.iter().all(|e| !e.what.contains("holds")), "{:?}", judgement.expectations);
    assert_ne!(judgement.radius.containment, Containment::Contained);
}

#[test]
fn an_end_before_its_time_is_aborted_or_invalid_as_its_cause_says() {
    for (invalid, verdict) in [(false, Verdict::Aborted), (true, Verdict::Invalid)] {
        let why = "front/checkout was bad for 5.1s (limit 5s): connection refused".to_owned();
        let drill = Drill::new().baseline().answers(0, &|_| good()).answers(1, &|_| good()).fault();
        let judgement =
            crate::judge::run(&drill.at(20.0, Event::Aborted { why, invalid }).phase(END, Phase::Verdict).run());
        assert_eq!(judgement.verdict, verdict, "{judgement:#?}");
        assert!(judgement.finding.contains("bad for 5.1s"), "{}", judgement.finding);
    }
}

#[test]
fn what_was_never_injected_took_no_effect() {
    let why = "no network namespace matches `bleu`; did you mean `blue`?".to_owned();
    let drill = Drill::new().baseline().answers(0, &|_| good()).answers(1, &|_| good());
    let run = drill.at(20.0, Event::Aborted { why, invalid: true }).phase(END, Phase::Verdict).run();
    let judgement = crate::judge::run(&run);
    let effect = judgement.expectations.iter().find(|e| e.what.contains("takes effect")).expect("always there");
    assert_eq!(effect.verdict, Verdict::Invalid);
    assert!(judgement.finding.ends_with("did you mean `blue`?"), "{}", judgement.finding);
}

#[test]
fn a_baseline_that_was_bad_makes_the_run_invalid_even_without_a_gate() {
    let judgement = Drill::new().judged(&|due| if due < 1.0 { bad() } else { good() }, &|_| good());
    assert_eq!(judgement.verdict, Verdict::Invalid, "{judgement:#?}");
}

#[test]
fn questions_under_way_when_the_fault_began_do_not_speak_against_the_baseline() {
    let hit = |due: f64| {
        let late = Outcome::Bad(Bad { ms: 1000.0, why: "timed out after 1s".into() });
        if (FAULT.0 - 0.9..FAULT.1).contains(&due) { Some(late) } else { good() }
    };
    let judgement = Drill::new().judged(&hit, &hit);
    assert_eq!(judgement.verdict, Verdict::Broken, "{judgement:#?}");
    assert_eq!(judgement.probes[0].baseline.bad, 0);
}

#[test]
fn a_component_without_a_probe_is_unproven_inside_the_radius_and_outside() {
    for radius in ["web", "store"] {
        let mut drill = Drill::new();
        drill.plan.radius = vec!["web".into(), radius.into()];
        let mut store = drill.plan.components[1].clone();
        (store.name, store.probes) = ("store".into(), Vec::new());
        drill.plan.components.push(store);
        let judgement = drill.judged(&|_| good(), &|_| good());
        // Inside, its probes would only have been reported; outside, they would have been judged.
        let verdict = if radius == "store" { Verdict::Held } else { Verdict::Inconclusive };
        assert_eq!(judgement.verdict, verdict, "{judgement:#?}");
        assert_eq!(judgement.radius.unprobed, ["store"]);
        assert!(judgement.unproven.iter().any(|s| s.contains("store has no probe")), "{:?}", judgement.unproven);
        let contained = judgement.radius.containment == Containment::Contained;
        assert_eq!(contained, radius == "store", "what lies outside unwatched cannot be called contained");
    }
}

#[test]
fn a_run_without_any_probe_is_inconclusive() {
    let mut drill = Drill::new();
    (drill.plan.probes, drill.plan.components, drill.plan.radius) = (Vec::new(), Vec::new(), Vec::new());
    let judgement = crate::judge::run(&drill.baseline().fault().phase(END, Phase::Verdict).run());
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{judgement:#?}");
}

#[test]
fn a_victim_that_was_back_at_once_is_told() {
    for (downtime, told) in [(Some(Span::from_millis(300)), true), (Some(Span::from_secs(5)), false), (None, false)] {
        let mut drill = Drill::new();
        drill.plan.steps[0].faults.push(fault(r#"{"kill": {}}"#));
        let judgement = drill.killed(downtime).judged(&|_| good(), &|_| good());
        assert_eq!(
            judgement.unproven.iter().any(|s| s.contains("was back 300ms after")),
            told,
            "{:?}",
            judgement.unproven
        );
    }
}

#[test]
fn an_ad_hoc_fault_is_judged_by_its_receipt_alone() {
    let down = |due| if under_fault(due) { bad() } else { good() };
    for (effect, verdict) in [
        (Effect::Effective, Verdict::Held),
        (Effect::ArmedNoTraffic, Verdict::Inconclusive),
        (Effect::None, Verdict::Invalid),
    ] {
        let mut drill = Drill::new();
        drill.plan.judged = false;
        let drill = drill.baseline().answers(0, &down).answers(1, &down).fault_with(effect).phase(END, Phase::Verdict);
        let judgement = crate::judge::run(&drill.run());
        assert_eq!(judgement.verdict, verdict, "{judgement:#?}");
        assert!(judgement.probes.iter().all(|p| !p.judged && p.fault.bad == 400));
        if effect == Effect::Effective {
            assert!(
                judgement.finding.starts_with("Took effect: web/web-2 was paused for 20s"),
                "{}",
                judgement.finding
            );
            assert!(judgement.finding.contains("front/checkout was bad 400 of 400 times"), "{}", judgement.finding);
        }
    }
}
