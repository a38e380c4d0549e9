//! `firedrill plan`: a dry run. The very changes that a run would make, from the same planning code.

use anyhow::Result;
use firedrill_agent::host;
use firedrill_agent::target::{self, Protected};
use firedrill_model::change::Change;
use firedrill_model::config::Config;
use firedrill_model::facts::{FactsSnapshot, HostFacts, TargetFacts};
use firedrill_model::lower::Choices;
use firedrill_model::run::{RunPlan, StepPlan, TargetPlan};
use firedrill_model::verdict::ExitCode;
use firedrill_verifier::probe;

use super::files;
use crate::cli::PlanArgs;
use crate::render::plan::{StepPreview, TargetPreview, text};
use crate::render::say::say;

pub fn run(args: &PlanArgs) -> Result<ExitCode> {
    let (library, _) = files::read(&args.files)?;
    let config = super::config()?;
    let facts = host::facts();
    let protected = Protected::new(None, &config.protect);
    let seed: u64 = rand::random();
    let choices = Choices {
        seed: args.seed.unwrap_or(seed),
        force_seed: args.seed.is_some(),
        env: &|name| std::env::var(name).ok(),
    };
    let mut possible = true;
    let mut plans = Vec::new();
    for name in files::experiments(&library, &args.experiment)? {
        let mut lowered = library.lower(&name, &choices).map_err(|found| files::refuse(&found))?;
        let steps = preview(&lowered.plan, &facts, &protected);
        // What a plan shows is what a log may have.
        lowered.plan.mask();
        // A target without plans was not found.
        possible &= config.objections(&lowered.plan).is_empty();
        possible &=
            steps.iter().flat_map(|s| &s.targets).all(|t| !t.plans.is_empty() && t.plans.iter().all(|p| p.1.is_ok()));
        plans.push((lowered.plan, steps));
    }
    if args.json {
        // One document, as `run --json` has it: an object for one experiment, an array for several.
        let all = plans.iter().map(|(plan, steps)| json(plan, steps, &config)).collect::<Result<Vec<_>>>()?;
        say(if let [one] = all.as_slice() { one.clone() } else { format!("[\n{}\n]", all.join(",\n")) })?;
    } else {
        for (plan, steps) in &plans {
            say(text(plan, steps, &config))?;
        }
    }
    Ok(if possible { ExitCode::Held } else { ExitCode::Usage })
}

fn json(plan: &RunPlan, steps: &[StepPreview], config: &Config) -> Result<String> {
    let of_target = |t: &TargetPreview| {
        let faults: Vec<_> = t
            .plans
            .iter()
            .map(|(fault, plan)| match plan {
                Ok(plan) => serde_json::json!({ "fault": fault, "plan": plan }),
                Err(why) => serde_json::json!({ "fault": fault, "refused": why }),
            })
            .collect();
        serde_json::json!({ "target": t.name, "found": t.found, "faults": faults })
    };
    let of_step = |s: &StepPreview| {
        let targets: Vec<_> = s.targets.iter().map(of_target).collect();
        serde_json::json!({ "step": s.step, "targets": targets })
    };
    let steps: Vec<_> = steps.iter().map(of_step).collect();
    let refused: Vec<_> = config.objections(plan).iter().map(ToString::to_string).collect();
    let all = serde_json::json!({ "run": plan, "steps": steps, "caps": config.caps.to_string(), "refused": refused });
    Ok(serde_json::to_string_pretty(&all)?)
}

/// What each step would find and do on this host.
pub fn preview(plan: &RunPlan, facts: &HostFacts, protected: &Protected) -> Vec<StepPreview> {
    let of_step = |(i, step): (usize, &StepPlan)| StepPreview {
        step: i,
        targets: step.targets.iter().map(|t| of_target(step, t, facts, protected)).collect(),
    };
    plan.steps.iter().enumerate().map(of_step).collect()
}

fn of_target(step: &StepPlan, plan: &TargetPlan, facts: &HostFacts, protected: &Protected) -> TargetPreview {
    match target::resolve(plan, facts, protected, probe::resolve) {
        Ok(found) => {
            let snapshot = FactsSnapshot { host: facts.clone(), target: found.clone() };
            let plans = step.faults.iter().map(|fault| {
                let name = format!("{} {}", fault.name(), fault.describe());
                let plan = fault.plan(&snapshot).map(|mut plan| {
                    plan.changes.iter_mut().for_each(Change::mask);
                    plan
                });
                (name, plan.map_err(|e| e.to_string()))
            });
            TargetPreview { name: plan.name.clone(), found: describe(&found), plans: plans.collect() }
        }
        Err(error) => TargetPreview { name: plan.name.clone(), found: format!("nothing: {error}"), plans: Vec::new() },
    }
}

fn describe(target: &TargetFacts) -> String {
    let mut parts = Vec::new();
    if let Some(unit) = &target.unit {
        parts.push(format!("unit {} ({})", unit.name, unit.active));
    }
    if let Some(cgroup) = &target.cgroup {
        parts.push(format!("cgroup {}", cgroup.path));
    }
    match target.processes.as_slice() {
        [] => {}
        [one] => parts.push(format!("process {} ({})", one.pid, one.comm)),
        many => parts.push(format!("{} processes", many.len())),
    }
    if let Some(network) = &target.netns {
        let names: Vec<&str> = network.interfaces.iter().map(|i| i.name.as_str()).collect();
        parts.push(format!("{} with {}", network.netns.path, names.join(", ")));
    }
    parts.join("; ")
}
