//! What the drills came to, beside what was expected, and what follows from all of them together. Pure.

use std::path::PathBuf;

use firedrill_model::log::Run;
use firedrill_model::run::ComponentPlan;
use firedrill_model::verdict::{ExitCode, Verdict};

use super::drills::{Drill, Expected};

/// A drill that was run.
#[derive(Debug)]
pub struct Outcome {
    /// The drill.
    pub drill: &'static Drill,
    /// Its run.
    pub run: Run,
    /// The folder of its log and reports.
    pub folder: PathBuf,
}

impl Outcome {
    /// The computed verdict; invalid when there is none.
    pub fn verdict(&self) -> Verdict {
        self.run.judgement.as_ref().map_or(Verdict::Invalid, |j| j.verdict)
    }

    /// The finding, in one sentence.
    pub fn finding(&self) -> &str {
        self.run.judgement.as_ref().map_or("there is no judgement", |j| &j.finding)
    }

    /// Whether it came out as expected.
    pub fn as_expected(&self) -> bool {
        match self.drill.expected {
            Expected::Is(verdict) => self.verdict() == verdict,
            Expected::AsMeasured => self.was_judged(),
        }
    }

    /// Whether the drill says anything: invalid and aborted do only where that is the point.
    pub fn was_judged(&self) -> bool {
        match self.verdict() {
            Verdict::Held | Verdict::Degraded | Verdict::Broken => true,
            other => self.drill.expected == Expected::Is(other),
        }
    }

    /// Whether a person ended it, so that it says nothing about the shop.
    pub fn was_stopped(&self) -> bool {
        self.run.aborted.as_ref().is_some_and(|(_, why, _)| why.starts_with("stopped by "))
    }

    /// Whether nothing was injected, for example because the host was too busy for a steady state.
    pub fn never_began(&self) -> bool {
        self.run.steps.iter().all(|s| s.began.is_none())
    }
}

/// What follows from the drills for redundancy, in sentences: single points of failure, and claims that they refute.
pub fn findings(runs: &[&Run]) -> Vec<String> {
    let mut sentences = Vec::new();
    for run in runs.iter().filter(|r| r.judgement.as_ref().is_some_and(|j| j.verdict == Verdict::Broken)) {
        let Some(judgement) = &run.judgement else { continue };
        let hit = |c: &&ComponentPlan| judgement.radius.observed.contains(&c.name);
        let users: Vec<&str> =
            run.plan.components.iter().filter(|c| c.user_facing).filter(hit).map(|c| c.name.as_str()).collect();
        let lost: Vec<&ComponentPlan> = targets(run).into_iter().filter(|c| c.replicas.len() == 1).collect();
        if users.is_empty() {
            continue;
        }
        for single in lost {
            sentences.push(format!(
                "{} is a single point of failure: it has one replica, and without it {} fails.",
                single.name,
                users.join(" and ")
            ));
            for claimed in
                run.plan.components.iter().filter(hit).filter(|c| c.replicas.len() > 1 && needs(run, c, single))
            {
                let survived = runs.iter().find(|r| {
                    r.judgement.as_ref().is_some_and(|j| j.verdict == Verdict::Held)
                        && targets(r).iter().any(|t| t.name == claimed.name)
                });
                if let Some(held) = survived {
                    sentences.push(format!(
                        "{} is not redundant, although it has {} replicas and one can go ({}: held): all of them need {}.",
                        claimed.name,
                        claimed.replicas.len(),
                        held.plan.experiment,
                        single.name
                    ));
                }
            }
        }
    }
    sentences.dedup();
    sentences
}

/// The components that a run's faults acted on.
fn targets(run: &Run) -> Vec<&ComponentPlan> {
    let names: Vec<&str> =
        run.plan.steps.iter().flat_map(|s| &s.targets).filter_map(|t| t.component.as_deref()).collect();
    run.plan.components.iter().filter(|c| names.contains(&c.name.as_str())).collect()
}

/// Whether `from` depends on `on` directly.
fn needs(run: &Run, from: &ComponentPlan, on: &ComponentPlan) -> bool {
    run.plan.components.iter().any(|c| c.name == from.name && c.depends_on.contains(&on.name))
}

/// The demo's exit code: 0 when every drill could be run and judged, whatever it showed; 3 when one could not; 5 when
/// anything was left behind.
pub fn exit_code(outcomes: &[Outcome], drills: usize, survived: bool, left_over: &[String]) -> ExitCode {
    let all = outcomes.len() == drills && outcomes.iter().all(Outcome::was_judged) && survived;
    let code = if all { ExitCode::Held } else { ExitCode::Unproven };
    if left_over.is_empty() { code } else { code.worse(ExitCode::NotRestored) }
}
