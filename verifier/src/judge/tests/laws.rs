//! What must be true of every run, tried on many made at random.

use firedrill_model::event::{Event, Outcome};
use firedrill_model::verdict::{Containment, Verdict};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::drill::*;
use crate::judge;

/// A run with answers that are bad at a random rate, with a random outage and random gaps.
fn random(rng: &mut StdRng) -> Drill {
    let (rate, gaps) =
        (rng.random_range(0.0..0.03), if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.0..0.05) });
    let start = rng.random_range(FAULT.0..FAULT.1);
    let end = if rng.random_bool(0.5) { start } else { start + rng.random_range(0.0..8.0) };
    let cell = std::cell::RefCell::new(StdRng::seed_from_u64(rng.random()));
    let answer = |due: f64| {
        let mut rng = cell.borrow_mut();
        if rng.random_bool(gaps) {
            if rng.random_bool(0.5) { None } else { missed() }
        } else if (start..end).contains(&due) || (due > FAULT.0 && rng.random_bool(rate)) {
            bad()
        } else {
            good()
        }
    };
    let drill = Drill::new().permitting(rng.random_range(0..6));
    drill.baseline().answers(0, &answer).answers(1, &|_| good()).fault()
}

#[test]
fn missing_data_never_held() {
    let mut rng = StdRng::seed_from_u64(3);
    for _ in 0..50 {
        // More missing than 1 % can bear, either way of missing.
        let share = rng.random_range(0.03..1.0);
        let silent = rng.random_bool(0.5);
        let cell = std::cell::RefCell::new(StdRng::seed_from_u64(rng.random()));
        let judgement = Drill::new().judged(
            &|due| match under_fault(due) && cell.borrow_mut().random_bool(share) {
                true if silent => None,
                true => missed(),
                false => good(),
            },
            &|_| good(),
        );
        assert_eq!(judgement.verdict, Verdict::Inconclusive, "share {share}, silent {silent}: {judgement:#?}");
        assert_eq!(judgement.radius.containment, Containment::Unproven);
    }
}

#[test]
fn missing_data_alone_is_no_failure_either() {
    let judgement = Drill::new().judged(&|due| if under_fault(due) { missed() } else { good() }, &|_| good());
    assert_eq!(judgement.verdict, Verdict::Inconclusive, "{judgement:#?}");
    assert!(judgement.radius.observed.is_empty());
}

#[test]
fn fewer_samples_never_turn_anything_into_held() {
    let mut rng = StdRng::seed_from_u64(4);
    let mut tried = 0;
    for _ in 0..150 {
        let drill = random(&mut rng);
        if judge::run(&drill.run()).verdict == Verdict::Held {
            continue;
        }
        tried += 1;
        let (keep, only_bad) = (rng.random_range(0.0..1.0), rng.random_bool(0.5));
        let mut fewer = Drill { plan: drill.plan.clone(), events: drill.events.clone() };
        // Nothing is taken from before the fault: that would make a run with no baseline.
        fewer.events.retain(|record| match &record.event {
            Event::Sample(s) if s.probe == 0 && under_fault(s.due) => {
                (only_bad && !s.outcome.is_bad()) || rng.random_bool(keep)
            }
            _ => true,
        });
        let verdict = judge::run(&fewer.run()).verdict;
        assert_ne!(verdict, Verdict::Held, "after removing samples from\n{:#?}", judge::run(&drill.run()));
    }
    assert!(tried > 50, "only {tried} runs were not held to begin with");
}

#[test]
fn a_sample_that_turns_bad_never_makes_the_verdict_of_its_probe_better() {
    let mut rng = StdRng::seed_from_u64(5);
    for _ in 0..60 {
        // Without a permitted outage: with one, an earlier first bad sample may spend it elsewhere.
        let mut drill = random(&mut rng);
        drill.plan.outage = firedrill_model::units::Span::default();
        let before = judge::run(&drill.run()).probes[0].verdict;
        for record in &mut drill.events {
            if let Event::Sample(s) = &mut record.event
                && s.probe == 0
                && under_fault(s.due)
                && rng.random_bool(0.02)
            {
                s.outcome = bad().expect("bad");
            }
        }
        let after = judge::run(&drill.run()).probes[0].verdict;
        assert!(after.rank() >= before.rank(), "{before} became {after}");
    }
}

#[test]
fn the_judgement_does_not_depend_on_the_order_in_which_samples_arrive() {
    let mut rng = StdRng::seed_from_u64(6);
    for _ in 0..10 {
        let drill = random(&mut rng);
        let run = drill.run();
        let mut shuffled = run.clone();
        let mut samples: Vec<_> = shuffled.samples.iter_mut().flat_map(std::mem::take).collect();
        samples.shuffle(&mut rng);
        for sample in samples {
            shuffled.push(&firedrill_model::event::Record { at: 0.0, event: Event::Sample(sample) });
        }
        assert_eq!(judge::run(&run), judge::run(&shuffled));
    }
}

#[test]
fn counts_add_up_and_bounds_enclose_what_was_seen() {
    let mut rng = StdRng::seed_from_u64(7);
    for _ in 0..50 {
        let run = random(&mut rng).run();
        for probe in judge::run(&run).probes {
            for stats in [&probe.baseline, &probe.fault, &probe.recovery] {
                assert!(stats.bad <= stats.taken && stats.taken <= stats.due, "{stats:?}");
                let share = stats.bad as f64 / stats.due.max(1) as f64;
                assert!(stats.bad_lower <= share && share <= stats.bad_upper, "{stats:?}");
            }
            let logged = run.samples[probe.probe].iter().filter(|s| under_fault(s.due));
            assert_eq!(probe.fault.bad, logged.filter(|s| s.outcome.is_bad()).count());
            assert_eq!(probe.fault.due, 400, "the schedule has 400 slots in 20 s, logged or not");
        }
    }
}

#[test]
fn no_log_makes_judging_panic() {
    let mut rng = StdRng::seed_from_u64(8);
    let odd = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, f64::MAX];
    for _ in 0..40 {
        let mut drill = random(&mut rng);
        for record in &mut drill.events {
            if rng.random_bool(0.01) {
                record.at = odd[rng.random_range(0..odd.len())];
            }
            if let Event::Sample(s) = &mut record.event
                && rng.random_bool(0.01)
            {
                s.due = odd[rng.random_range(0..odd.len())];
                s.outcome = Outcome::Good(odd[rng.random_range(0..odd.len())]);
            }
        }
        drill.plan.probes[0].every = firedrill_model::units::Span::default();
        let run = drill.run();
        judge::run(&run);
        judge::clean(&run, odd[rng.random_range(0..odd.len())]);
        judge::baseline(&run, odd[rng.random_range(0..odd.len())]);
    }
}
