//! `kill`: processes are ended by a signal, through a pidfd whose identity was checked. There is no inverse:
//! whoever supervises them brings them back, and the receipt tells how long that took.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{FaultKind, PlanError, Reading};
use crate::change::{Change, Plan, Victim};
use crate::facts::{FactsSnapshot, TargetKind};
use crate::receipt::{Effect, Measured, ReceiptLine};

/// Parameters of `kill`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kill {
    /// The signal: KILL (default), TERM, INT, QUIT, ABRT, HUP, SEGV, USR1 or USR2
    #[serde(default)]
    pub signal: Signal,
    /// Kill again whatever a supervisor brings back, until the end
    #[serde(default)]
    pub keep: bool,
}

/// Signals that end a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names are the kernel's own")]
pub enum Signal {
    #[default]
    Kill,
    Term,
    Int,
    Quit,
    Abrt,
    Hup,
    Segv,
    Usr1,
    Usr2,
}

impl Signal {
    /// The number on Linux for all architectures that Firedrill runs on (`signal(7)`).
    pub fn number(self) -> i32 {
        match self {
            Self::Hup => 1,
            Self::Int => 2,
            Self::Quit => 3,
            Self::Abrt => 6,
            Self::Kill => 9,
            Self::Usr1 => 10,
            Self::Segv => 11,
            Self::Usr2 => 12,
            Self::Term => 15,
        }
    }
}

impl FaultKind for Kill {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn describe(&self) -> String {
        let name = format!("{:?}", self.signal).to_uppercase();
        if self.keep { format!("SIG{name}, again whenever it comes back") } else { format!("SIG{name}") }
    }

    fn plan(&self, facts: &FactsSnapshot) -> Result<Plan, PlanError> {
        let target = &facts.target;
        let victim = match (target.kind, &target.cgroup, &target.unit) {
            (TargetKind::Netns | TargetKind::Interface, ..) => {
                return Err(PlanError::new(
                    "kill",
                    facts,
                    "only processes can be killed: name a unit, cgroup, pid or process",
                ));
            }
            _ if target.processes.is_empty() => {
                return Err(PlanError::new("kill", facts, "no process runs in it; start it first"));
            }
            (TargetKind::Unit, Some(cgroup), Some(unit)) => {
                Victim::Unit { unit: unit.name.clone(), cgroup: cgroup.clone() }
            }
            (TargetKind::Cgroup, Some(cgroup), _) => Victim::Cgroup(cgroup.clone()),
            (TargetKind::Unit | TargetKind::Cgroup, ..) => {
                return Err(PlanError::new("kill", facts, "its control group is unknown, and so are its processes"));
            }
            (TargetKind::Process, ..) => Victim::Processes { processes: target.processes.clone() },
        };
        let change =
            Change::Kill { victim, signal: self.signal.number(), keep: self.keep, allow: target.lifted.clone() };
        let mut notes = vec!["a kill cannot be undone: a supervisor must bring it back".to_owned()];
        if let (true, TargetKind::Unit) = (self.keep, target.kind) {
            notes.push("when systemd has given up because of so many kills, the unit is started at the end".into());
        }
        Ok(Plan { changes: vec![change], notes })
    }

    fn read(&self, measured: &[Measured]) -> Reading {
        let Some(count) = measured.iter().find_map(|m| if let Measured::Kill(k) = m { Some(k) } else { None }) else {
            return Reading { effect: Effect::None, says: "no process was signalled".into(), lines: Vec::new() };
        };
        let effect = if count.gone > 0 { Effect::Effective } else { Effect::None };
        let back = match (&count.downtime, count.again) {
            (Some(t), 0) => format!("; back after {t}"),
            (_, 0) => "; not back while it lasted".to_owned(),
            (_, n) => format!("; {n} successors killed too"),
        };
        let downtime = count.downtime.map_or_else(|| "not back".to_owned(), |t| t.to_string());
        Reading {
            effect,
            says: format!("{} of {} processes ended{back}", count.gone, count.signalled),
            lines: vec![
                ReceiptLine::new("ended", count.signalled, count.gone),
                ReceiptLine::new("downtime", "-", downtime),
            ],
        }
    }
}
