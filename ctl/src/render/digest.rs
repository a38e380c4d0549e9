//! A run in words: what every report says, sorted by subject, before any of them lays it out.

use firedrill_model::change::Change;
use firedrill_model::file::Steady;
use firedrill_model::log::{ChangeRun, Run};
use firedrill_model::receipt::Effect;
use firedrill_model::run::{ProbePlan, StepPlan};
use firedrill_model::verdict::{ProbeJudgement, WindowStats};
use serde::Serialize;

use super::words::{self, Mark, NOTHING, Tone};

/// The headline of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Headline {
    /// The verdict, or why there is none.
    pub mark: Mark,
    /// The finding, in one sentence.
    pub finding: String,
    /// What must not be overlooked: a host not restored, a log that was cut, an end before time.
    pub alerts: Vec<String>,
}

/// Whether what was done to the host was undone.
#[derive(Clone, Debug, Serialize)]
pub struct Restored {
    /// In one sentence.
    pub says: String,
    /// Good only when nothing is left.
    pub tone: Tone,
    /// What is left on the host.
    pub left: Vec<String>,
    /// What the log tells no end of: it was cut, or the run goes on. The guardian may have undone it since.
    pub unknown: Vec<String>,
    /// What cannot be undone by its nature.
    pub irreversible: Vec<String>,
}

/// A probe with its three windows.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeRow {
    /// Index into the plan's probes.
    pub index: usize,
    /// `component/probe`.
    pub name: String,
    /// What it does.
    pub describe: String,
    /// What it must hold.
    pub tolerance: String,
    /// Whether it counts for the verdict.
    pub judged: bool,
    /// `judged`, or why not.
    pub role: String,
    /// Its verdict.
    pub mark: Mark,
    /// Why.
    pub reason: String,
    /// Before, during and after the fault.
    pub windows: Vec<WindowRow>,
    /// Length of its outage.
    pub outage: String,
    /// How soon it came back.
    pub healed: String,
}

/// One window of a probe.
#[derive(Clone, Debug, Serialize)]
pub struct WindowRow {
    /// Which.
    pub name: &'static str,
    /// Bad share.
    pub bad: String,
    /// The numbers behind it.
    pub detail: String,
    /// 95th percentile of good answers.
    pub p95: String,
    /// Samples that were due and not taken.
    pub missing: usize,
}

/// A change on the host and its undoing.
#[derive(Clone, Debug, Serialize)]
pub struct ChangeRow {
    /// Its number.
    pub number: u64,
    /// The change.
    pub what: String,
    /// The fault and target that it served.
    pub serves: String,
    /// When it was applied.
    pub applied: String,
    /// When it was undone.
    pub undone: String,
    /// How, or what went wrong.
    pub note: String,
    /// Undone, irreversible or left.
    pub mark: Mark,
}

/// A step as planned and as it went.
#[derive(Clone, Debug, Serialize)]
pub struct StepRow {
    /// Its number, counting from 1.
    pub number: usize,
    /// Faults in words.
    pub faults: String,
    /// Targets by name.
    pub targets: String,
    /// `at 5 s for 20 s`.
    pub planned: String,
    /// When it was in force.
    pub real: String,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Undone.
    Undone,
    /// There is no way back, by its nature.
    Irreversible,
    /// Its undoing failed.
    Failed,
    /// The log does not tell of its undoing.
    Pending,
}

/// What became of a change.
pub fn fate(change: &ChangeRun) -> Fate {
    match &change.reverted {
        Some((_, _, Some(_))) => Fate::Failed,
        _ if matches!(change.what, Change::Kill { .. } | Change::Reset { .. }) => Fate::Irreversible,
        Some(_) => Fate::Undone,
        None => Fate::Pending,
    }
}

/// The headline.
pub fn headline(run: &Run) -> Headline {
    let mut alerts = Vec::new();
    let host = restored(run);
    if !host.left.is_empty() {
        let what = words::list(&host.left, "");
        alerts.push(format!("The host is not fully restored: {what}. Run `firedrill recover`."));
    }
    if !host.unknown.is_empty() {
        let what = words::list(&host.unknown, "");
        alerts.push(format!("The log does not tell whether this was undone: {what}. `firedrill status` tells."));
    }
    let (mark, finding) = match (&run.judgement, &run.aborted) {
        (Some(judgement), _) => {
            let mark = if run.plan.judged {
                Mark::from(judgement.verdict)
            } else {
                Mark::new("reported, not judged", "·", Tone::Plain)
            };
            (mark, judgement.finding.clone())
        }
        (None, Some((_, why, true))) => (Mark::new("invalid", "∅", Tone::Unknown), words::capital(why)),
        (None, Some((_, why, false))) => (Mark::new("aborted", "■", Tone::Warn), words::capital(why)),
        (None, None) => {
            let phase = run.phases.last().map_or("before the first phase", |(p, _)| p.name());
            let finding =
                format!("The log stops {} after the start ({phase}): nothing was judged.", words::secs(run.last_event));
            (Mark::new("unfinished", "?", Tone::Unknown), finding)
        }
    };
    if let (Some(_), Some((at, why, invalid))) = (&run.judgement, &run.aborted) {
        let how = if *invalid { "Nothing could be tested" } else { "Ended early" };
        let text = format!("{how}, at {}: {why}", words::moment(*at));
        if !finding.contains(why.as_str()) {
            alerts.push(text);
        }
    }
    if run.ended.is_none() {
        alerts.push("The log has no end: Firedrill itself was ended, or is still running.".into());
    }
    Headline { mark, finding, alerts }
}

/// What was done to the host, and whether it was undone.
pub fn restored(run: &Run) -> Restored {
    let of = |wanted: Fate| run.changes.iter().filter(move |c| fate(c) == wanted);
    let mut left = Vec::new();
    if let Some((_, left_over)) = &run.ended {
        left.extend(left_over.iter().cloned());
    }
    if left.is_empty() {
        // The end of the log says what is left; without it, or besides it, the changes themselves do.
        left.extend(of(Fate::Failed).map(|c| {
            let why = c.reverted.as_ref().and_then(|r| r.2.as_deref()).unwrap_or_default();
            format!("{} ({why})", c.what)
        }));
    }
    // A run that came to its end says itself what is left.
    let open = of(Fate::Pending).filter(|_| run.ended.is_none() || left.is_empty());
    let unknown: Vec<String> = open.map(|c| c.what.to_string()).collect();
    let irreversible: Vec<String> = of(Fate::Irreversible).map(|c| c.what.to_string()).collect();
    let (all, undone) = (run.changes.len(), of(Fate::Undone).count());
    let changes = words::count(all - irreversible.len(), "change on the host", "changes on the host");
    let kills = of(Fate::Irreversible).filter(|c| matches!(c.what, Change::Kill { .. })).count();
    let parts =
        [(kills, "kill", "kills"), (irreversible.len() - kills, "reset of connections", "resets of connections")];
    let parts = parts.into_iter().filter(|(n, ..)| *n > 0).map(|(n, one, many)| words::count(n, one, many));
    let lasting = parts.collect::<Vec<_>>().join(" and ");
    let says = match (all - irreversible.len(), undone) {
        _ if all == 0 => "Nothing was changed on the host.".to_owned(),
        (0, _) => {
            format!("{}, which cannot be undone; nothing else was changed on the host.", words::capital(&lasting))
        }
        (1, 1) => "1 change on the host, undone.".to_owned(),
        (reversible, undone) if reversible == undone => format!("{changes}, all undone."),
        _ if unknown.is_empty() => format!("{changes}, {undone} undone."),
        _ => format!("{changes}, {undone} undone; of {} the log does not tell.", unknown.len()),
    };
    let says = match irreversible.len() {
        0 => says,
        n if n == all => says,
        _ => format!("{says} Besides, {lasting}, which cannot be undone."),
    };
    let tone = match (left.is_empty(), unknown.is_empty()) {
        (true, true) => Tone::Good,
        (true, false) => Tone::Unknown,
        _ => Tone::Bad,
    };
    Restored { says, tone, left, unknown, irreversible }
}

/// Changes in the order in which they were applied.
pub fn changes(run: &Run) -> Vec<ChangeRow> {
    let row = |c: &ChangeRun| {
        let mark = match fate(c) {
            Fate::Undone => Mark::new("undone", "✓", Tone::Good),
            Fate::Irreversible => Mark::new("cannot be undone", "·", Tone::Plain),
            Fate::Failed => Mark::new("NOT UNDONE", "✗", Tone::Bad),
            Fate::Pending => Mark::new("not known to be undone", "?", Tone::Unknown),
        };
        let (undone, note) = match &c.reverted {
            Some((at, note, None)) => (words::moment(*at), note.clone()),
            Some((at, note, Some(error))) if note.is_empty() => (words::moment(*at), error.clone()),
            Some((at, note, Some(error))) => (words::moment(*at), format!("{error} ({note})")),
            None => (NOTHING.to_owned(), String::new()),
        };
        let serves = format!("{} on {}", c.fault, c.target);
        let applied = words::moment(c.applied);
        ChangeRow { number: c.number, what: c.what.to_string(), serves, applied, undone, note, mark }
    };
    run.changes.iter().map(row).collect()
}

/// Probes: judged ones first, worst first; then those that are only reported. Without a judgement, in the plan's
/// order and without numbers.
pub fn probes(run: &Run) -> Vec<ProbeRow> {
    let Some(judgement) = &run.judgement else { return Vec::new() };
    let mut judged: Vec<&ProbeJudgement> = judgement.probes.iter().collect();
    judged.sort_by_key(|p| (!p.judged, std::cmp::Reverse(p.verdict.rank()), p.probe));
    judged
        .into_iter()
        .filter_map(|p| {
            let plan = run.plan.probes.get(p.probe)?;
            let role = match (run.plan.judged, p.judged) {
                (_, true) => "judged",
                (true, false) => "inside the radius: reported",
                (false, false) => "reported",
            };
            Some(ProbeRow {
                index: p.probe,
                name: plan.name.clone(),
                describe: plan.describe.clone(),
                tolerance: tolerance(&plan.steady),
                judged: p.judged,
                role: role.into(),
                mark: p.verdict.into(),
                reason: p.reason.clone(),
                windows: vec![window("before", &p.baseline), window("fault", &p.fault), window("after", &p.recovery)],
                outage: words::outage(p.outage.as_ref()),
                healed: words::healed(p),
            })
        })
        .collect()
}

fn window(name: &'static str, stats: &WindowStats) -> WindowRow {
    let detail = if stats.taken == 0 {
        format!("{} due, none taken", stats.due)
    } else {
        format!(
            "{} bad of {} taken, {} due; the true share is at most {} and at least {} (95 % each); p50 {}, p99 {}",
            stats.bad,
            stats.taken,
            stats.due,
            words::share(stats.bad_upper),
            words::share(stats.bad_lower),
            words::some_ms(stats.p50_ms),
            words::some_ms(stats.p99_ms)
        )
    };
    WindowRow { name, bad: words::bad(stats), detail, p95: words::some_ms(stats.p95_ms), missing: stats.missing() }
}

/// `bad ≤ 1%, p95 ≤ 200ms`.
pub fn tolerance(steady: &Steady) -> String {
    let mut parts = vec![format!("bad ≤ {}", steady.bad)];
    for (name, limit) in [("p50", steady.p50), ("p95", steady.p95), ("p99", steady.p99)] {
        parts.extend(limit.map(|limit| format!("{name} ≤ {limit}")));
    }
    parts.join(", ")
}

/// Steps as planned and as they went.
pub fn steps(run: &Run) -> Vec<StepRow> {
    let row = |(i, step): (usize, &StepPlan)| {
        let went = run.steps.get(i);
        let real = match went.map(|s| (s.began, s.in_force, s.ended)) {
            Some((_, Some(from), Some(to))) => {
                format!("in force {} to {} ({})", words::moment(from), words::moment(to), words::secs(to - from))
            }
            Some((_, Some(from), None)) => format!("in force since {}", words::moment(from)),
            Some((Some(began), None, Some(_))) => format!("begun {}, never fully in force", words::moment(began)),
            Some((Some(began), ..)) => format!("begun {}", words::moment(began)),
            _ => "never begun".into(),
        };
        let planned = format!("at {} for {}", words::span(step.at), words::span(step.lasts));
        StepRow { number: i + 1, faults: faults(step), targets: targets(step), planned, real }
    };
    run.plan.steps.iter().enumerate().map(row).collect()
}

/// `latency 80ms ± 10ms, egress`.
pub fn faults(step: &StepPlan) -> String {
    let each = step.faults.iter().map(|fault| {
        let describe = fault.describe();
        // `stop: stopped` and `pause: frozen` would say the same twice.
        if matches!(describe.as_str(), "stopped" | "frozen") {
            fault.name().to_owned()
        } else {
            format!("{} {describe}", fault.name())
        }
    });
    words::list(&each.collect::<Vec<_>>(), "nothing")
}

/// Names of a step's targets.
pub fn targets(step: &StepPlan) -> String {
    words::list(&step.targets.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), "nothing")
}

/// How many faults had an effect: `2 of 2 effective`.
pub fn effects(run: &Run) -> (String, Tone) {
    let all = run.receipts.len();
    let good = run.receipts.iter().filter(|(_, r)| r.effect == Effect::Effective).count();
    let none = run.receipts.iter().any(|(_, r)| r.effect == Effect::None);
    let tone = if all == 0 {
        Tone::Unknown
    } else if none {
        Tone::Bad
    } else if good < all {
        Tone::Warn
    } else {
        Tone::Good
    };
    let says = if all == 0 { "no receipt".into() } else { format!("{good} of {all} effective") };
    (says, tone)
}

/// What else identifies and repeats a run: label and value.
pub fn about(run: &Run) -> Vec<(String, String)> {
    let plan = &run.plan;
    let mut rows = vec![("Run".to_owned(), run.id.clone()), ("Started".into(), run.started.replacen('T', " ", 1))];
    rows.push(("Lasted".into(), words::secs(run.last_event)));
    rows.push(("Experiment".into(), plan.experiment.clone()));
    rows.push(("System".into(), plan.system.clone()));
    rows.push(("Seed".into(), plan.seed.to_string()));
    for pick in &plan.picks {
        let chosen =
            format!("{} of {} replicas of {}: {}", pick.chosen.len(), pick.of, pick.component, pick.chosen.join(", "));
        rows.push((format!("Pick {}", pick.name), chosen));
    }
    rows.push(("Firedrill".into(), run.version.clone()));
    let hooks = if run.host.tcx { "tcx links" } else { "clsact filters" };
    rows.push(("Kernel".into(), format!("{} ({hooks})", run.host.kernel)));
    if let Some(root) = &run.host.cgroup_root {
        rows.push(("cgroup v2".into(), root.clone()));
    }
    if let Some((exit, _)) = &run.ended {
        rows.push(("Exit code".into(), format!("{} ({})", *exit as u8, meaning(*exit as u8))));
    }
    rows
}

/// What an exit code means.
pub fn meaning(code: u8) -> &'static str {
    match code {
        0 => "expectations held",
        1 => "degraded, broken or leaked",
        2 => "bad usage or invalid file",
        3 => "inconclusive, unproven or invalid",
        4 => "aborted",
        _ => "the host could not be fully restored",
    }
}

/// `1 of 5 components, 1 without a probe`.
pub fn reach(run: &Run) -> Option<String> {
    let radius = &run.judgement.as_ref()?.radius;
    let probed = radius.components.saturating_sub(radius.unprobed.len());
    let all = words::count(radius.components, "component", "components");
    Some(format!("{} of {all} moved; {probed} of {} probed", radius.observed.len(), radius.components))
}

/// A probe by its index, for titles.
pub fn probe(run: &Run, index: usize) -> Option<&ProbePlan> {
    run.plan.probes.get(index)
}
