//! The gates before and after the fault.

use firedrill_model::event::{Event, Outcome, Sample};
use firedrill_model::units::Span;

use super::drill::*;
use crate::judge::{Baseline, baseline, clean};

/// A run that is in its baseline, with the samples of the first probe's first so many slots.
fn young(slots: usize, answer: Answer<'_>) -> Drill {
    let end = slots as f64 * EVERY;
    Drill::new().baseline().answers_until(0, end + 0.005, answer).answers_until(1, end + 0.025, &|_| good())
}

fn auto(mut drill: Drill) -> Drill {
    drill.plan.baseline_auto = true;
    drill.plan.baseline = Span::from_secs(15);
    drill
}

#[test]
fn an_automatic_baseline_ends_at_299_good_samples_for_1_percent() {
    for (slots, steady) in [(298, false), (299, true)] {
        let drill = auto(young(slots, &|_| good()));
        let now = slots as f64 * EVERY + 0.03;
        let got = baseline(&drill.run(), now);
        assert_eq!(got == Baseline::Steady, steady, "{slots}: {got:?}");
    }
}

#[test]
fn it_says_how_much_longer_it_takes() {
    let drill = auto(young(199, &|_| good()));
    let Baseline::NeedMore { for_another } = baseline(&drill.run(), 199.0 * EVERY + 0.03) else { panic!("too early") };
    assert!((for_another.as_secs_f64() - 100.0 * EVERY).abs() < 0.2, "{for_another}");
}

#[test]
fn one_early_blip_makes_the_baseline_longer_and_does_not_end_it() {
    let blip = |due| if due < EVERY { bad() } else { good() };
    for slots in [1, 3, 50, 299, 472] {
        let got = baseline(&auto(young(slots, &blip)).run(), slots as f64 * EVERY + 0.03);
        assert!(matches!(got, Baseline::NeedMore { .. }), "{slots}: {got:?}");
    }
    assert_eq!(baseline(&auto(young(473, &blip)).run(), 473.0 * EVERY + 0.03), Baseline::Steady);
}

#[test]
fn a_dead_service_ends_an_automatic_baseline_within_a_few_samples() {
    let drill = auto(young(5, &|_| bad()));
    let Baseline::NotSteady(why) = baseline(&drill.run(), 5.0 * EVERY + 0.03) else { panic!("it is dead") };
    assert!(why.contains("front/checkout was not steady before the fault: 5 of 5 bad"), "{why}");
    assert!(why.ends_with(": connection refused"), "{why}");
}

#[test]
fn an_automatic_baseline_gives_up_after_three_times_its_length_and_2_s() {
    // Two in a thousand: never shown to be too many, nor few enough.
    let drill =
        |end| auto(Drill::new().baseline().answers_until(0, end, &|_| missed()).answers_until(1, end, &|_| good()));
    assert!(matches!(baseline(&drill(46.0).run(), 46.0), Baseline::NeedMore { .. }));
    let Baseline::NotSteady(why) = baseline(&drill(47.1).run(), 47.1) else { panic!("patience is over") };
    assert!(why.contains("missing"), "{why}");
}

#[test]
fn a_probe_without_samples_is_never_steady() {
    let drill = auto(Drill::new().baseline().answers_until(1, 50.0, &|_| good()));
    assert!(matches!(baseline(&drill.run(), 20.0), Baseline::NeedMore { .. }));
    assert!(matches!(baseline(&drill.run(), 48.0), Baseline::NotSteady(_)));
}

#[test]
fn answers_that_are_still_out_do_not_count_and_nor_does_what_came_after_them() {
    // 298 in, one out, many quick ones after it.
    let hole = 298.0 * EVERY + 0.01;
    let drill = auto(young(310, &|due| if (due - hole).abs() < 1e-6 { None } else { good() }));
    assert!(matches!(baseline(&drill.run(), 310.0 * EVERY), Baseline::NeedMore { .. }));
    // Its time-out is over and it never came: it is missing, and the others count.
    let drill = auto(young(500, &|due| if (due - hole).abs() < 1e-6 { None } else { good() }));
    assert_eq!(baseline(&drill.run(), 500.0 * EVERY), Baseline::Steady, "473 suffice for one missing");
    let drill = auto(young(400, &|due| if (due - hole).abs() < 1e-6 { None } else { good() }));
    assert!(matches!(baseline(&drill.run(), 400.0 * EVERY), Baseline::NeedMore { .. }));
}

#[test]
fn a_latency_limit_must_be_shown_before_the_fault_too() {
    let mut drill = auto(young(400, &|_| slow(300.0)));
    drill.plan.probes[0].steady.p95 = Some(Span::from_millis(200));
    let Baseline::NotSteady(why) = baseline(&drill.run(), 20.0) else { panic!("it is slow") };
    assert!(why.contains("its p95 was 300 ms, and at most 200 ms is tolerated"), "{why}");
}

#[test]
fn a_fixed_baseline_is_decided_at_its_end() {
    let mut drill = Drill::new().baseline().answers(0, &|_| good()).answers(1, &|_| good());
    drill.plan.baseline = Span::from_secs(16);
    assert!(matches!(baseline(&drill.run(), 15.8), Baseline::NeedMore { .. }), "not before");
    assert_eq!(baseline(&drill.run(), 16.01), Baseline::Steady);
    drill.plan.baseline = Span::from_secs(5);
    assert!(matches!(baseline(&drill.run(), 9.0), Baseline::NotSteady(_)), "too short for 1 %");
}

#[test]
fn a_fixed_baseline_as_long_as_the_tolerance_needs_waits_for_its_last_sample() {
    let mut drill = Drill::new().baseline().answers(0, &|_| good()).answers(1, &|_| good());
    drill.plan.baseline = Span::from_millis(299 * 50);
    assert!(matches!(baseline(&drill.run(), 14.95), Baseline::NeedMore { .. } | Baseline::Steady));
    assert_eq!(baseline(&drill.run(), 15.1), Baseline::Steady);
}

#[test]
fn the_baseline_of_an_ad_hoc_fault_is_only_time() {
    let mut drill = Drill::new().baseline().answers(0, &|_| bad());
    drill.plan.judged = false;
    assert!(matches!(baseline(&drill.run(), 9.9), Baseline::NeedMore { .. }));
    assert_eq!(baseline(&drill.run(), 10.0), Baseline::Steady);
}

#[test]
fn clean_means_clean_for_2_s_since_the_revert() {
    let drill =
        Drill::new().baseline().answers(0, &|_| good()).answers(1, &|due| if due < 31.0 { bad() } else { good() });
    let whole = drill.fault();
    let at = |now: f64| {
        // What has been answered by now.
        let events = whole.events.iter().filter(|r| r.at <= now).cloned().collect();
        clean(&Drill { plan: whole.plan.clone(), events }.run(), now)
    };
    for (now, expected) in [(30.5, false), (31.5, false), (32.9, false), (33.1, true), (35.0, true)] {
        assert_eq!(at(now), expected, "at {now}");
    }
}

#[test]
fn missing_samples_are_not_clean() {
    let drill =
        Drill::new().baseline().answers(0, &|_| good()).answers(1, &|due| if due < 31.0 { good() } else { None });
    assert!(!clean(&drill.fault().run(), 40.0));
}

#[test]
fn a_slow_probe_is_not_clean() {
    let mut drill =
        Drill::new().baseline().answers(0, &|_| good()).answers(1, &|due| slow(if due < 34.0 { 300.0 } else { 12.0 }));
    drill.plan.probes[1].steady.p95 = Some(Span::from_millis(200));
    let drill = drill.fault();
    assert!(!clean(&drill.run(), 34.2));
    assert!(clean(&drill.run(), 37.0));
}

#[test]
fn a_probe_rarer_than_2_s_is_clean_after_one_good_answer() {
    let mut drill = Drill::new().baseline().answers(0, &|_| good()).fault();
    drill.plan.probes[1].every = Span::from_secs(7);
    let rare = |drill: Drill, due: f64, outcome: Option<Outcome>| {
        let outcome = outcome.expect("an answer");
        drill.at(due + 0.02, Event::Sample(Sample { probe: 1, due, outcome }))
    };
    let mut drill = rare(rare(drill, 18.0, bad()), 25.0, bad());
    assert!(!clean(&drill.run(), 31.9));
    drill = rare(drill, 32.0, good());
    assert!(clean(&drill.run(), 32.1));
}
