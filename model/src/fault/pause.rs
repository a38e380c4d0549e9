//! `pause`: processes stop running but stay alive, as after a long garbage collection or a stalled disk. A
//! cgroup or unit is frozen (cgroup v2 freezer), a lone process gets SIGSTOP.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FaultKind, PlanError, Reading, stop};
use crate::change::{Change, Plan};
use crate::facts::{FactsSnapshot, TargetKind};
use crate::receipt::Measured;

/// Parameters of `pause`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pause {}

impl FaultKind for Pause {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn describe(&self) -> String {
        "frozen".into()
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let target = &facts.target;
        let changes: Vec<Change> = match (target.kind, &target.cgroup) {
            (TargetKind::Netns | TargetKind::Interface, _) => {
                return Err(PlanError::new(
                    "pause",
                    facts,
                    "only processes can be paused: name a unit, cgroup, pid or process",
                ));
            }
            _ if target.processes.is_empty() => {
                return Err(PlanError::new("pause", facts, "no process runs in it; start it first"));
            }
            (TargetKind::Cgroup | TargetKind::Unit, Some(cgroup)) => vec![Change::Freeze { cgroup: cgroup.clone() }],
            (TargetKind::Cgroup | TargetKind::Unit, None) => {
                return Err(PlanError::new("pause", facts, "it has no control group (v2) that could be frozen"));
            }
            (TargetKind::Process, _) => {
                target.processes.iter().map(|process| Change::Suspend { process: process.clone() }).collect()
            }
        };
        Ok(Plan { changes, notes: Vec::new() })
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        stop::read_states("paused", measured)
    }
}
