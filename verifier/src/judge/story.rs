//! What was done, as part of a sentence.

use firedrill_model::fault::Fault;
use firedrill_model::log::Run;
use firedrill_model::run::StepPlan;

use crate::words;

/// Steps that are told one by one.
const TOLD: usize = 3;

/// Steps that were begun.
pub(crate) fn begun(run: &Run) -> impl Iterator<Item = (usize, &StepPlan)> {
    let did = |i: usize| run.steps.get(i).is_some_and(|s| s.began.is_some());
    run.plan.steps.iter().enumerate().filter(move |(i, _)| did(*i))
}

/// `web/web-2 was stopped for 20s`, several steps joined. Empty when nothing was done.
pub(crate) fn told(run: &Run) -> String {
    let mut parts: Vec<String> = begun(run).map(|(i, step)| clause(run, i, step)).collect();
    let more = parts.len().saturating_sub(TOLD);
    parts.truncate(TOLD);
    let mut text = parts.join(", then ");
    if more > 0 {
        text.push_str(&format!(", then {more} more"));
    }
    text
}

fn clause(run: &Run, index: usize, step: &StepPlan) -> String {
    let targets: Vec<&str> = step.targets.iter().map(|t| t.name.as_str()).collect();
    let was = if targets.len() == 1 { "was" } else { "were" };
    let done: Vec<String> = step
        .faults
        .iter()
        .map(|fault| match fault.name() {
            "stop" => "stopped".into(),
            "pause" => "paused".into(),
            "kill" if matches!(fault, Fault::Kill(kill) if kill.keep) => "killed whenever it came back".into(),
            "kill" => "killed".into(),
            "latency" => format!("slowed ({})", fault.describe()),
            "loss" => format!("losing packets ({})", fault.describe()),
            "partition" => "cut off".into(),
            // A fault that this list does not know reads a little worse, and that is all.
            other => format!("under {other} ({})", fault.describe()),
        })
        .collect();
    let done = format!("{} {was} {}", words::list(&targets), words::list(&done));
    if step.faults.iter().all(|f| matches!(f, Fault::Kill(kill) if !kill.keep)) {
        // What happens at one moment has no duration.
        return done;
    }
    format!("{done} for {}", lasted(run, index, step))
}

/// How long a step lasted: as planned, unless it was noticeably otherwise.
fn lasted(run: &Run, index: usize, step: &StepPlan) -> String {
    let planned = step.lasts.as_secs_f64();
    let real = run.steps.get(index).and_then(|s| Some(s.ended.unwrap_or(run.last_event) - s.in_force.or(s.began)?));
    match real {
        Some(real) if (real - planned).abs() > 0.2 + 0.05 * planned => words::seconds(real),
        _ => words::seconds(planned),
    }
}

/// `losing db`, `slowing web/web-1 and web/web-2`: the steps as the subject of a sentence.
pub(crate) fn doing(run: &Run) -> String {
    let mut parts: Vec<(String, Vec<&str>)> = Vec::new();
    for (_, step) in begun(run) {
        for fault in &step.faults {
            let verb = match fault.name() {
                "stop" | "pause" | "kill" => "losing".into(),
                "latency" => "slowing".into(),
                "loss" => "packet loss on".into(),
                "partition" => "cutting off".into(),
                other => format!("{other} on"),
            };
            let place = parts.iter().position(|(v, _)| *v == verb).unwrap_or_else(|| {
                parts.push((verb, Vec::new()));
                parts.len() - 1
            });
            for target in &step.targets {
                if !parts[place].1.contains(&target.name.as_str()) {
                    parts[place].1.push(&target.name);
                }
            }
        }
    }
    let parts: Vec<String> = parts.iter().map(|(verb, targets)| format!("{verb} {}", words::list(targets))).collect();
    words::list(&parts)
}

/// The component whose replicas were taken away, and what it says about it when others go down with them: `db is a
/// single point of failure`. `None` when the faults take nothing away, or hit several components.
pub(crate) fn weakness(run: &Run) -> Option<(&str, String)> {
    let mut lost: Vec<(&str, &str)> = Vec::new();
    for (_, step) in begun(run) {
        if !step.faults.iter().any(|f| matches!(f.name(), "stop" | "pause" | "kill" | "partition")) {
            return None;
        }
        for target in &step.targets {
            let pair = (target.component.as_deref()?, target.name.as_str());
            if !lost.contains(&pair) {
                lost.push(pair);
            }
        }
    }
    let (name, _) = *lost.first()?;
    if lost.iter().any(|(component, _)| *component != name) {
        return None;
    }
    let replicas = run.plan.components.iter().find(|c| c.name == name)?.replicas.len();
    let says = match (lost.len(), replicas) {
        (_, 0 | 1) => format!("{name} is a single point of failure"),
        (n, of) if n >= of => format!("nothing stands in for all {of} replicas of {name}"),
        (n, of) => format!("the loss of {n} of {of} replicas of {name} is not survived"),
    };
    Some((name, says))
}
