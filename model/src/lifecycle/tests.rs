//! Laws of the lifecycle: shown for every state of a small plan, and on many random runs.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Effect, Input, State, StepState, step};
use crate::event::Phase;
use crate::run::{RunPlan, SETTLE, StepPlan};
use crate::units::Span;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A plan of steps given as `(at, lasts)` in seconds.
fn plan(steps: &[(u64, u64)], healed: u64, deadline: u64) -> RunPlan {
    let step = |(at, lasts): &(u64, u64)| StepPlan {
        at: Span::from_secs(*at),
        lasts: Span::from_secs(*lasts),
        targets: Vec::new(),
        faults: Vec::new(),
    };
    RunPlan {
        experiment: "e".into(),
        title: "e".into(),
        system: "s".into(),
        components: Vec::new(),
        probes: Vec::new(),
        baseline: Span::from_secs(1),
        baseline_auto: true,
        picks: Vec::new(),
        steps: steps.iter().map(step).collect(),
        radius: Vec::new(),
        outage: Span::default(),
        healed: Span::from_secs(healed),
        abort: Vec::new(),
        deadline: Span::from_secs(deadline),
        seed: 1,
        judged: true,
    }
}

/// Everything that a run of two steps can be told; the last three name a step that does not exist.
fn inputs() -> Vec<Input> {
    let mut inputs = vec![
        Input::Begin,
        Input::Tick,
        Input::Steady,
        Input::NotSteady("unsteady".into()),
        Input::AllReverted,
        Input::Clean,
        Input::Stop("stop".into()),
        Input::Closed,
    ];
    for i in 0..=2 {
        inputs.extend([Input::Injected(i), Input::InjectFailed(i, "failed".into()), Input::StepReverted(i)]);
    }
    inputs
}

/// Every state of `plan` that any inputs can lead to by `until` seconds, with the edges between them.
fn explore(plan: &RunPlan, until: u64) -> Vec<(State, Input, State, Vec<Effect>)> {
    let mut edges = Vec::new();
    let mut seen = BTreeSet::new();
    let mut queue = VecDeque::from([(State::Ready, 0)]);
    while let Some((state, now)) = queue.pop_front() {
        if !seen.insert(format!("{state:?} {now}")) {
            continue;
        }
        if now < until {
            queue.push_back((state.clone(), now + 1));
        }
        for input in inputs() {
            let (next, effects) = step(plan, state.clone(), input.clone(), secs(now));
            queue.push_back((next.clone(), now));
            edges.push((state.clone(), input, next, effects));
        }
    }
    assert!(seen.len() > 100, "the exploration saw only {} states", seen.len());
    edges
}

#[test]
fn from_acting_no_path_leads_on_without_reverting_everything() {
    let edges = explore(&plan(&[(0, 2), (1, 2)], 2, 6), 12);
    for (from, input, to, effects) in &edges {
        let reverts = effects.iter().filter(|e| **e == Effect::RevertAll).count();
        let leaves = matches!(from, State::Acting { .. }) && !matches!(to, State::Acting { .. });
        assert_eq!(reverts, usize::from(leaves), "{from:?} on {input:?} to {to:?}: {effects:?}");
        if leaves {
            assert_eq!(*to, State::Reverting, "{from:?} on {input:?}");
        }
        // And there is no way back to where faults are.
        if matches!(to, State::Acting { .. }) {
            assert!(matches!(from, State::Baseline | State::Acting { .. }), "{from:?} on {input:?} to {to:?}");
        }
    }
    assert!(edges.iter().any(|(_, _, to, _)| *to == State::Done));
}

#[test]
fn only_an_answer_ends_reverting_and_closing() {
    for (from, input, to, effects) in explore(&plan(&[(0, 2), (1, 2)], 2, 6), 12) {
        match from {
            State::Reverting if input != Input::AllReverted => {
                assert_eq!((to, effects), (State::Reverting, Vec::new()), "{input:?}");
            }
            State::Closing if input != Input::Closed => {
                assert_eq!((to, effects), (State::Closing, Vec::new()), "{input:?}");
            }
            State::Done => assert_eq!((to, effects), (State::Done, Vec::new()), "{input:?}"),
            _ => {}
        }
    }
}

/// What a run did, in order, with the time of each effect.
struct Trace {
    effects: Vec<(Duration, Effect)>,
    end: Duration,
    acted: bool,
}

impl Trace {
    fn count(&self, wanted: impl Fn(&Effect) -> bool) -> usize {
        self.effects.iter().filter(|(_, e)| wanted(e)).count()
    }

    fn position(&self, wanted: &Effect) -> Option<usize> {
        self.effects.iter().position(|(_, e)| e == wanted)
    }

    fn phases(&self) -> Vec<Phase> {
        self.effects.iter().filter_map(|(_, e)| if let Effect::Enter(p) = e { Some(*p) } else { None }).collect()
    }
}

/// Drives a run to its end with an engine that answers after random times, now and then fails, and says things
/// twice; `stops` is the chance of a Stop at each tick.
fn drive(plan: &RunPlan, rng: &mut StdRng, stops: f64) -> Trace {
    let mut state = State::Ready;
    let mut now = Duration::ZERO;
    let mut trace = Trace { effects: Vec::new(), end: now, acted: false };
    let mut due: Vec<(Duration, Input)> = vec![(now, Input::Begin)];
    let mut said: Vec<Input> = Vec::new();
    let limit = plan.deadline.0 + plan.healed.0 + SETTLE.0 + secs(60);
    while state != State::Done {
        assert!(now < limit, "still {state:?} after {now:?}");
        let mut inputs: Vec<Input> = Vec::new();
        due.retain(|(at, input)| {
            let is_due = *at <= now;
            if is_due {
                inputs.push(input.clone());
            }
            !is_due
        });
        inputs.push(Input::Tick);
        if rng.random_bool(stops) {
            inputs.push(Input::Stop("ctrl-c".into()));
        }
        if !said.is_empty() && rng.random_bool(0.3) {
            inputs.push(said[rng.random_range(0..said.len())].clone());
        }
        for input in inputs {
            let (next, effects) = step(plan, state, input.clone(), now);
            state = next;
            trace.acted |= matches!(state, State::Acting { .. });
            // What was an honest answer once may come again late, but nobody claims a revert that is still under way.
            if !matches!(input, Input::AllReverted | Input::Closed | Input::Clean) {
                said.push(input);
            }
            for effect in effects {
                let after = now + Duration::from_millis(rng.random_range(0..1500));
                match &effect {
                    Effect::Enter(Phase::Baseline) => due.push(match rng.random_range(0..10) {
                        0 => (after, Input::NotSteady("unsteady".into())),
                        _ => (after, Input::Steady),
                    }),
                    Effect::Inject(i) => due.push(match rng.random_range(0..20) {
                        0 => (after, Input::InjectFailed(*i, "no such target".into())),
                        _ => (after, Input::Injected(*i)),
                    }),
                    Effect::Revert(i) => due.push((after, Input::StepReverted(*i))),
                    Effect::RevertAll => due.push((after, Input::AllReverted)),
                    Effect::Enter(Phase::Recovery) if rng.random_bool(0.5) => due.push((after, Input::Clean)),
                    Effect::Close => due.push((after, Input::Closed)),
                    _ => {}
                }
                trace.effects.push((now, effect));
            }
        }
        now += Duration::from_millis(rng.random_range(50..400));
    }
    trace.end = now;
    trace
}

fn random_plan(rng: &mut StdRng) -> RunPlan {
    let steps: Vec<(u64, u64)> =
        (0..rng.random_range(1..5)).map(|_| (rng.random_range(0..8), rng.random_range(1..6))).collect();
    plan(&steps, rng.random_range(0..5), rng.random_range(1..25))
}

fn runs(stops: f64) -> impl Iterator<Item = (u64, RunPlan, Trace)> {
    (0..1500).map(move |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        let plan = random_plan(&mut rng);
        let trace = drive(&plan, &mut rng, stops);
        (seed, plan, trace)
    })
}

#[test]
fn a_run_that_acts_reverts_everything_exactly_once_before_it_is_judged() {
    let mut acted = 0;
    for (seed, _, trace) in runs(0.01) {
        assert_eq!(trace.count(|e| *e == Effect::RevertAll), usize::from(trace.acted), "seed {seed}");
        assert_eq!(trace.count(|e| *e == Effect::Close), 1, "seed {seed}");
        if trace.acted {
            acted += 1;
            assert!(trace.position(&Effect::RevertAll) < trace.position(&Effect::Close), "seed {seed}");
        }
    }
    assert!(acted > 500, "only {acted} runs acted");
}

#[test]
fn phases_come_in_order_and_once_each() {
    for stops in [0.0, 0.01, 0.2] {
        for (seed, _, trace) in runs(stops) {
            let phases = trace.phases();
            assert!(phases.is_sorted_by(|a, b| a < b), "seed {seed}: {phases:?}");
            assert_eq!(phases.last(), Some(&Phase::Verdict), "seed {seed}");
        }
    }
}

#[test]
fn every_injected_step_is_reverted_and_none_is_injected_twice() {
    for (seed, plan, trace) in runs(0.01) {
        let all = trace.position(&Effect::RevertAll);
        for i in 0..plan.steps.len() {
            assert!(trace.count(|e| *e == Effect::Inject(i)) <= 1, "seed {seed}: step {i} is injected twice");
            assert!(trace.count(|e| *e == Effect::Revert(i)) <= 1, "seed {seed}: step {i} is reverted twice");
            let Some(injected) = trace.position(&Effect::Inject(i)) else {
                assert_eq!(trace.position(&Effect::Revert(i)), None, "seed {seed}: step {i}");
                continue;
            };
            assert!(all.is_some_and(|all| all > injected), "seed {seed}: step {i} outlives the run");
            if let Some(reverted) = trace.position(&Effect::Revert(i)) {
                assert!(reverted > injected, "seed {seed}: step {i} is reverted before it is injected");
                let (from, to) = (trace.effects[injected].0, trace.effects[reverted].0);
                assert!(to - from >= plan.steps[i].lasts.0, "seed {seed}: step {i} is cut short");
            }
        }
    }
}

#[test]
fn a_run_ends_by_its_deadline_and_its_recovery_whatever_happens() {
    // `drive` itself fails when a run goes on for too long; here a run whose engine never answers an injection.
    let plan = plan(&[(0, 5)], 3, 10);
    let (state, _) = step(&plan, State::Ready, Input::Begin, Duration::ZERO);
    let (mut state, effects) = step(&plan, state, Input::Steady, secs(1));
    assert_eq!(effects, [Effect::Enter(Phase::Inject), Effect::Inject(0)]);
    for now in 1..10 {
        let effects;
        (state, effects) = step(&plan, state, Input::Tick, secs(now));
        assert_eq!(effects, []);
    }
    let (state, effects) = step(&plan, state, Input::Tick, secs(10));
    assert_eq!(state, State::Reverting);
    let why = "its deadline of 10s was reached".to_owned();
    assert_eq!(effects, [Effect::Aborted { why, invalid: false }, Effect::Enter(Phase::Revert), Effect::RevertAll]);
    for (seed, plan, trace) in runs(0.0) {
        let bound = plan.deadline.0 + plan.healed.0 + SETTLE.0 + secs(5);
        assert!(trace.end <= bound, "seed {seed}: ended after {:?}", trace.end);
    }
}

#[test]
fn the_deadline_also_ends_a_baseline_that_never_becomes_steady() {
    let plan = plan(&[(0, 5)], 3, 10);
    let (state, _) = step(&plan, State::Ready, Input::Begin, Duration::ZERO);
    let (state, effects) = step(&plan, state, Input::Tick, secs(10));
    assert_eq!(state, State::Closing);
    assert!(effects.iter().all(|e| !matches!(e, Effect::Inject(_) | Effect::RevertAll)), "{effects:?}");
}

#[test]
fn a_baseline_that_is_not_steady_never_injects_and_makes_the_run_invalid() {
    let plan = plan(&[(0, 5)], 3, 10);
    let (state, _) = step(&plan, State::Ready, Input::Begin, Duration::ZERO);
    let (state, effects) = step(&plan, state, Input::NotSteady("3 of 10 bad".into()), secs(1));
    assert_eq!(state, State::Closing);
    let why = "3 of 10 bad".to_owned();
    assert_eq!(effects, [Effect::Aborted { why, invalid: true }, Effect::Enter(Phase::Verdict), Effect::Close]);
}

#[test]
fn a_second_stop_does_not_skip_the_revert() {
    let plan = plan(&[(0, 5)], 3, 30);
    let (state, _) = step(&plan, State::Ready, Input::Begin, Duration::ZERO);
    let (state, _) = step(&plan, state, Input::Steady, secs(1));
    let (state, _) = step(&plan, state, Input::Injected(0), secs(1));
    let (mut state, effects) = step(&plan, state, Input::Stop("ctrl-c".into()), secs(2));
    assert_eq!(effects.last(), Some(&Effect::RevertAll));
    for _ in 0..3 {
        let effects;
        (state, effects) = step(&plan, state, Input::Stop("ctrl-c".into()), secs(2));
        assert_eq!((&state, effects), (&State::Reverting, Vec::new()));
    }
    let (state, _) = step(&plan, state, Input::AllReverted, secs(3));
    assert!(matches!(state, State::Recovery { .. }), "a stopped run is watched until it has healed: {state:?}");
}

#[test]
fn a_failed_injection_reverts_what_was_applied_and_makes_the_run_invalid() {
    let plan = plan(&[(0, 5), (1, 5)], 3, 30);
    let (state, _) = step(&plan, State::Ready, Input::Begin, Duration::ZERO);
    let (state, _) = step(&plan, state, Input::Steady, secs(1));
    let (state, _) = step(&plan, state, Input::Injected(0), secs(1));
    let (state, effects) = step(&plan, state, Input::Tick, secs(2));
    assert_eq!(effects, [Effect::Inject(1)]);
    let (state, effects) = step(&plan, state, Input::InjectFailed(1, "gone".into()), secs(2));
    assert_eq!(state, State::Reverting);
    assert!(effects.contains(&Effect::Aborted { why: "gone".into(), invalid: true }));
    assert_eq!(effects.last(), Some(&Effect::RevertAll));
}

#[test]
fn a_stop_while_the_last_step_is_reverted_does_not_begin_the_phase_again() {
    let plan = plan(&[(0, 1)], 3, 30);
    let (state, _) = step(&plan, State::Ready, Input::Begin, Duration::ZERO);
    let (state, _) = step(&plan, state, Input::Steady, secs(1));
    let (state, effects) = step(&plan, state, Input::Injected(0), secs(1));
    assert_eq!(effects, [Effect::Enter(Phase::Hold)]);
    let (state, effects) = step(&plan, state, Input::Tick, secs(2));
    assert_eq!(effects, [Effect::Enter(Phase::Revert), Effect::Revert(0)]);
    let (_, effects) = step(&plan, state, Input::Stop("ctrl-c".into()), secs(2));
    assert_eq!(effects, [Effect::Aborted { why: "ctrl-c".into(), invalid: false }, Effect::RevertAll]);
}

#[test]
fn a_message_that_comes_twice_or_names_no_step_changes_nothing() {
    let plan = plan(&[(0, 5), (20, 5)], 3, 60);
    let (state, _) = step(&plan, State::Ready, Input::Begin, Duration::ZERO);
    let (state, _) = step(&plan, state, Input::Steady, secs(1));
    let (state, _) = step(&plan, state, Input::Injected(0), secs(2));
    let in_force = State::Acting { since: secs(1), steps: vec![StepState::InForce(secs(7)), StepState::Waiting] };
    assert_eq!(state, in_force);
    let strange =
        [Input::Injected(0), Input::StepReverted(0), Input::Injected(1), Input::StepReverted(1), Input::Injected(9)];
    for input in
        strange.into_iter().chain([Input::StepReverted(9), Input::Begin, Input::Steady, Input::Clean, Input::Closed])
    {
        assert_eq!(step(&plan, in_force.clone(), input.clone(), secs(3)), (in_force.clone(), Vec::new()), "{input:?}");
    }
}

#[test]
fn recovery_ends_at_its_time_when_nothing_becomes_clean() {
    let plan = plan(&[(0, 1)], 3, 30);
    let (state, effects) = step(&plan, State::Reverting, Input::AllReverted, secs(10));
    assert_eq!(effects, [Effect::Enter(Phase::Recovery)]);
    assert_eq!(state, State::Recovery { until: secs(13) + SETTLE.0 });
    let (state, _) = step(&plan, state, Input::Tick, secs(14));
    assert!(matches!(state, State::Recovery { .. }));
    assert_eq!(step(&plan, state, Input::Tick, secs(15)).0, State::Closing);
}

#[test]
fn steps_begin_at_their_time_after_the_first_fault_and_last_from_when_they_are_in_force() {
    let plan = plan(&[(0, 5), (3, 5)], 3, 60);
    let (state, _) = step(&plan, State::Ready, Input::Begin, Duration::ZERO);
    let (state, effects) = step(&plan, state, Input::Steady, secs(10));
    assert_eq!(effects, [Effect::Enter(Phase::Inject), Effect::Inject(0)]);
    let (state, _) = step(&plan, state, Input::Injected(0), secs(11));
    assert_eq!(step(&plan, state.clone(), Input::Tick, secs(12)).1, []);
    let (state, effects) = step(&plan, state, Input::Tick, secs(13));
    assert_eq!(effects, [Effect::Inject(1)]);
    let (state, _) = step(&plan, state, Input::Injected(1), secs(13));
    assert_eq!(step(&plan, state.clone(), Input::Tick, secs(15)).1, []);
    assert_eq!(step(&plan, state, Input::Tick, secs(16)).1, [Effect::Revert(0)]);
}
