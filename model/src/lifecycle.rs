//! The life of a run: a pure function from a state and an input to the next state and what is to be done.
//!
//! ```text
//!            Begin            Steady             all steps over, or an end before that
//!  Ready ───────────▶ Baseline ───────▶ Acting ──────────────────────────────▶ Reverting
//!                        │                │ ▲                                      │ AllReverted
//!                        │ NotSteady,     │ │ step begins / ends at its time       ▼
//!                        │ Stop, deadline ╰─╯                                  Recovery
//!                        │                                                         │ Clean, or time is up
//!                        ▼                                                         ▼
//!                     Closing ◀──────────────────────────────────────────────── Closing ──▶ Done
//! ```
//!
//! Whatever happens, `Acting` is left only through `Reverting`: there is no way from a fault in force to the end
//! of a run that does not revert it.

use std::time::Duration;

use crate::event::Phase;
use crate::run::{RunPlan, SETTLE};

/// Where a run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not begun.
    Ready,
    /// The steady state is observed.
    Baseline,
    /// Faults come and go. The clock of the steps started at `since`.
    Acting {
        /// When the first step was due.
        since: Duration,
        /// Each step's state.
        steps: Vec<StepState>,
    },
    /// Everything is being reverted.
    Reverting,
    /// Waiting until all is steady again, at most until `until`.
    Recovery {
        /// When waiting ends.
        until: Duration,
    },
    /// Judging and writing the end of the log.
    Closing,
    /// Over.
    Done,
}

/// Where a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// Its time has not come.
    Waiting,
    /// Its faults are being injected.
    Starting,
    /// Its faults are in force, until the given time.
    InForce(Duration),
    /// Its faults are being reverted.
    Ending,
    /// It is over.
    Over,
}

/// What a run is told. Times are since the run began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Start.
    Begin,
    /// Time passes.
    Tick,
    /// The baseline is shown to be steady.
    Steady,
    /// The baseline is shown not to be steady, or did not become so in time.
    NotSteady(String),
    /// All faults of a step are in force.
    Injected(usize),
    /// A step could not be injected; what had been applied of it is being reverted with the rest.
    InjectFailed(usize, String),
    /// All faults of a step have ended.
    StepReverted(usize),
    /// Everything has been reverted, as far as it can be.
    AllReverted,
    /// Every probe has been clean for long enough.
    Clean,
    /// A rule or a person ends the run.
    Stop(String),
    /// The end of the log is written.
    Closed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Log that a phase begins.
    Enter(Phase),
    /// Resolve the targets of a step and inject its faults.
    Inject(usize),
    /// Revert the faults of a step.
    Revert(usize),
    /// Revert everything that is in force, in reverse order.
    RevertAll,
    /// Log that the run ends early; `invalid` when nothing could be tested.
    Aborted {
        /// Why.
        why: String,
        /// Whether the run is invalid rather than aborted.
        invalid: bool,
    },
    /// Judge, and write the end of the log.
    Close,
}

/// One step of a run's life at time `now`, counted from the run's beginning.
pub fn step(plan: &RunPlan, state: State, input: Input, now: Duration) -> (State, Vec<Effect>) {
    // The deadline ends any phase before the revert. Reverting and recovery are bounded by themselves.
    if matches!(state, State::Baseline | State::Acting { .. }) && matches!(input, Input::Tick) && now >= plan.deadline.0
    {
        return end_early(state, format!("its deadline of {} was reached", plan.deadline), false);
    }
    match (state, input) {
        (State::Ready, Input::Begin) => (State::Baseline, vec![Effect::Enter(Phase::Baseline)]),
        (State::Baseline, Input::Steady) => {
            let steps = vec![StepState::Waiting; plan.steps.len()];
            let mut effects = vec![Effect::Enter(Phase::Inject)];
            let (state, more) = advance(plan, State::Acting { since: now, steps }, now);
            effects.extend(more);
            (state, effects)
        }
        (State::Baseline, Input::NotSteady(why)) => end_early(State::Baseline, why, true),
        (state @ (State::Ready | State::Baseline | State::Acting { .. }), Input::Stop(why)) => {
            end_early(state, why, false)
        }
        (state @ State::Acting { .. }, Input::InjectFailed(_, why)) => end_early(state, why, true),
        (State::Acting { since, mut steps }, Input::Injected(i)) if steps.get(i) == Some(&StepState::Starting) => {
            let first = steps.iter().all(|s| matches!(s, StepState::Waiting | StepState::Starting));
            steps[i] = StepState::InForce(now + plan.steps[i].lasts.0);
            let effects = if first { vec![Effect::Enter(Phase::Hold)] } else { Vec::new() };
            (State::Acting { since, steps }, effects)
        }
        (State::Acting { since, mut steps }, Input::StepReverted(i)) if steps.get(i) == Some(&StepState::Ending) => {
            steps[i] = StepState::Over;
            if steps.iter().all(|s| *s == StepState::Over) {
                // All have ended by themselves; the engine still sweeps, so that nothing rests on bookkeeping.
                (State::Reverting, vec![Effect::RevertAll])
            } else {
                advance(plan, State::Acting { since, steps }, now)
            }
        }
        (state @ State::Acting { .. }, Input::Tick) => advance(plan, state, now),
        (State::Reverting, Input::AllReverted) => {
            let until = now + plan.healed.0 + SETTLE.0;
            (State::Recovery { until }, vec![Effect::Enter(Phase::Recovery)])
        }
        (State::Recovery { .. }, Input::Clean) => close(),
        (State::Recovery { until }, Input::Tick) if now >= until => close(),
        (State::Recovery { .. }, Input::Stop(why)) => {
            let (state, mut effects) = close();
            effects.insert(0, Effect::Aborted { why, invalid: false });
            (state, effects)
        }
        (State::Closing, Input::Closed) => (State::Done, Vec::new()),
        // Anything else comes too late or too early to matter: a second Ctrl-C while reverting, a step's end that
        // crosses an abort, the same message twice. Reverting goes on.
        (state, _) => (state, Vec::new()),
    }
}

/// Begins and ends steps whose time has come.
fn advance(plan: &RunPlan, state: State, now: Duration) -> (State, Vec<Effect>) {
    let State::Acting { since, mut steps } = state else { return (state, Vec::new()) };
    let mut effects = Vec::new();
    for (i, step) in steps.iter_mut().enumerate() {
        match *step {
            StepState::Waiting if now >= since + plan.steps[i].at.0 => {
                *step = StepState::Starting;
                effects.push(Effect::Inject(i));
            }
            StepState::InForce(until) if now >= until => {
                *step = StepState::Ending;
                effects.push(Effect::Revert(i));
            }
            _ => {}
        }
    }
    if all_ending(&steps) && !effects.is_empty() {
        effects.insert(0, Effect::Enter(Phase::Revert));
    }
    (State::Acting { since, steps }, effects)
}

/// Whether nothing is left but to revert the last steps: the phase `revert` has begun.
fn all_ending(steps: &[StepState]) -> bool {
    steps.iter().all(|s| matches!(s, StepState::Ending | StepState::Over))
}

/// Ends a run before its time: faults are reverted first, then it is closed.
fn end_early(state: State, why: String, invalid: bool) -> (State, Vec<Effect>) {
    let aborted = Effect::Aborted { why, invalid };
    match state {
        State::Acting { steps, .. } => {
            let mut effects = vec![aborted];
            if !all_ending(&steps) {
                effects.push(Effect::Enter(Phase::Revert));
            }
            effects.push(Effect::RevertAll);
            (State::Reverting, effects)
        }
        _ => {
            let (state, mut effects) = close();
            effects.insert(0, aborted);
            (state, effects)
        }
    }
}

fn close() -> (State, Vec<Effect>) {
    (State::Closing, vec![Effect::Enter(Phase::Verdict), Effect::Close])
}

#[cfg(test)]
mod tests;
