//! `stop`: a unit is stopped and stays down, then gets its earlier state back. A replica whose owner gives
//! commands for it (`control:` in the system file) is stopped and started by those.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FaultKind, PlanError, Reading};
use crate::change::{Change, Plan};
use crate::facts::{FactsSnapshot, TargetKind};
use crate::receipt::{Effect, Measured, ReceiptLine};
use crate::units::Span;

/// Parameters of `stop`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {}

impl FaultKind for Stop {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn describe(&self) -> String {
        "stopped".into()
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let target = &facts.target;
        if let Some(control) = &target.control {
            let change = Change::Command { run: control.stop.clone(), undo: control.start.clone() };
            return Ok(Plan { changes: vec![change], notes: Vec::new() });
        }
        match (&target.unit, target.kind) {
            (Some(unit), _) if unit.active == "active" => {
                if let Some(why) = &unit.no_way_back {
                    return Err(PlanError::new("stop", facts, format!("{why}; use `pause` or `kill`")));
                }
                let change = Change::StopUnit {
                    unit: unit.name.clone(),
                    triggers: unit.triggered_by.clone(),
                    dependents: unit.stops_with.clone(),
                };
                let note =
                    || format!("systemd stops {} with it; they are started again, too", unit.stops_with.join(", "));
                let notes = (!unit.stops_with.is_empty()).then(note).into_iter().collect();
                Ok(Plan { changes: vec![change], notes })
            }
            (Some(unit), _) => {
                let why = format!("it is {}, not active; stopping it would change nothing", unit.active);
                Err(PlanError::new("stop", facts, why))
            }
            (None, TargetKind::Process) => Err(PlanError::new(
                "stop",
                facts,
                "a lone process cannot be started again by us; use `pause` (SIGSTOP) or `kill`",
            )),
            (None, TargetKind::Cgroup) => Err(PlanError::new(
                "stop",
                facts,
                "nobody knows how to start a bare cgroup again: give the replica `control: {stop: [..], start: [..]}` in \
                 the system file, or use `pause` or `kill`",
            )),
            (None, _) => Err(PlanError::new("stop", facts, "only units and replicas with `control:` can be stopped")),
        }
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        read_states("stopped", measured)
    }
}

/// Reads states that were written and read back: all of them must have been in force.
pub(super) fn read_states(word: &str, measured: &[Measured]) -> Reading {
    let states: Vec<_> = measured
        .iter()
        .filter_map(|m| {
            if let Measured::State { in_force, seen, held } = m { Some((*in_force, seen, *held)) } else { None }
        })
        .collect();
    let held = states.iter().map(|s| s.2).min().unwrap_or_default();
    let in_force = states.iter().filter(|s| s.0).count();
    let effect = if in_force == states.len() && in_force > 0 { Effect::Effective } else { Effect::None };
    let seen = states.first().map_or("nothing was read back", |s| s.1.as_str());
    let held = Span::from_millis(u64::try_from(held.0.as_millis()).unwrap_or(u64::MAX));
    let says = match effect {
        Effect::Effective => format!("{word} for {held}"),
        _ => format!("not {word}: {seen}"),
    };
    Reading { effect, says, lines: vec![ReceiptLine::new("state", word, seen)] }
}
