//! From files to a run plan: names resolved across the files, defaults filled in, choices made, and everything
//! that can be known to be wrong before a host is touched said at its place.

mod probes;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fault::Fault;
use crate::file::{
    Baseline, Check, Component, Diagnostic, Document, Experiment, GameDay, Pick, Place, Spanned, Step, System, did_you_mean,
    parse,
};
use crate::pick;
use crate::run::{AbortPlan, ComponentPlan, PickPlan, ProbePlan, RunPlan, SETTLE, StepPlan, TargetPlan};
use crate::sampling;
use crate::target::{StepTarget, TargetSpec};
use crate::units::Span;

/// All documents that are looked at together: of the files given, or of a folder.
#[derive(Clone, Debug, Default)]
pub struct Library {
    sources: Vec<Source>,
}

#[derive(Clone, Debug)]
struct Source {
    file: String,
    text: String,
    documents: Vec<Document>,
}

/// A run plan, and beside it the probes with everything that must not be logged.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The plan.
    pub plan: RunPlan,
    /// The check of each of the plan's probes.
    pub checks: Vec<Check>,
}

/// What the caller decides.
pub struct Choices<'a> {
    /// Seed for random choices when the file gives none.
    pub seed: u64,
    /// Overrides the file's seed (for a replay).
    pub force_seed: bool,
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

/// What a run may take beyond its plan before its deadline ends it: half as much again, and a minute for targets
/// that are slow to stop.
const SLACK: Duration = Duration::from_secs(60);

/// How far beyond its planned length an automatic baseline may go on.
pub const BASELINE_PATIENCE: u32 = 3;

impl Library {
    /// Adds a file.
    ///
    /// # Errors
    /// When it is not YAML, or does not fit its kinds.
    pub fn add(&mut self, file: &str, text: &str) -> Result<(), Box<Diagnostic>> {
        let documents = parse(file, text)?;
        self.sources.push(Source { file: file.to_owned(), text: text.to_owned(), documents });
        Ok(())
    }

    fn documents(&self) -> impl Iterator<Item = (&Source, &Document)> {
        self.sources.iter().flat_map(|s| s.documents.iter().map(move |d| (s, d)))
    }

    /// Names of the experiments of one file, or of all, in order.
    pub fn experiments(&self, file: Option<&str>) -> Vec<String> {
        self.documents()
            .filter(|(s, d)| matches!(d, Document::Experiment(_)) && file.is_none_or(|f| s.file == f))
            .map(|(_, d)| d.name().to_owned())
            .collect()
    }

    /// The game days of one file, or of all.
    pub fn game_days(&self, file: Option<&str>) -> Vec<&GameDay> {
        self.documents()
            .filter(|(s, _)| file.is_none_or(|f| s.file == f))
            .filter_map(|(_, d)| if let Document::GameDay(day) = d { Some(day) } else { None })
            .collect()
    }

    /// How many documents there are.
    pub fn len(&self) -> usize {
        self.documents().count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Everything that is wrong with any document, as far as it can be known without a host.
    pub fn check(&self) -> Vec<Diagnostic> {
        let mut found = self.check_names();
        let choices = Choices { seed: 0, force_seed: false, env: &|name| Some(format!("${{{name}}}")) };
        for (source, document) in self.documents() {
            match document {
                Document::Experiment(experiment) => {
                    if let Err(more) = self.lower_one(source, experiment, &choices) {
                        found.extend(more);
                    }
                }
                Document::System(system) => {
                    let mut site = Site::new(source);
                    lower_system(&mut site, system, &choices);
                    found.extend(site.found);
                }
                Document::GameDay(day) => {
                    let names = self.experiments(None);
                    for step in &day.steps {
                        if !names.contains(&step.run.value) {
                            let help = did_you_mean(&step.run.value, names.iter().map(String::as_str));
                            let message = format!("there is no experiment `{}`", step.run.value);
                            found.push(Site::new(source).diagnostic(Place::of(&step.run), message, Some(help)));
                        }
                    }
                }
            }
        }
        found.sort_by(|a, b| (&a.file, a.place, &a.message).cmp(&(&b.file, b.place, &b.message)));
        found.dedup();
        found
    }

    fn check_names(&self) -> Vec<Diagnostic> {
        let mut seen: BTreeMap<(&str, &str), &str> = BTreeMap::new();
        let mut found = Vec::new();
        for (source, document) in self.documents() {
            let place = match document {
                Document::System(d) => Place::of(&d.name),
                Document::Experiment(d) => Place::of(&d.name),
                Document::GameDay(d) => Place::of(&d.name),
            };
            if let Some(other) = seen.insert((document.kind(), document.name()), &source.file) {
                let message = format!("there is another {} named `{}`, in {other}", document.kind(), document.name());
                found.push(Site::new(source).diagnostic(place, message, Some("give one of them another name".into())));
            }
        }
        found
    }

    /// Makes the run plan of one experiment.
    ///
    /// # Errors
    /// Everything that is wrong with it, each finding at its place.
    pub fn lower(&self, experiment: &str, choices: &Choices<'_>) -> Result<Lowered, Vec<Diagnostic>> {
        for (source, document) in self.documents() {
            if let Document::Experiment(e) = document
                && e.name.value == experiment
            {
                return self.lower_one(source, e, choices);
            }
        }
        let names = self.experiments(None);
        let help = did_you_mean(experiment, names.iter().map(String::as_str));
        let file = self.sources.first().map_or("-", |s| s.file.as_str());
        Err(vec![Diagnostic::new(file, "", Place::default(), format!("there is no experiment `{experiment}`"), Some(help))])
    }

    fn system_of<'a>(&'a self, site: &mut Site<'_>, experiment: &Experiment) -> Option<(&'a Source, &'a System)> {
        let systems: Vec<_> = self
            .documents()
            .filter_map(|(s, d)| if let Document::System(system) = d { Some((s, system)) } else { None })
            .collect();
        match &experiment.system {
            Some(name) => {
                let hit = systems.iter().find(|(_, s)| s.name.value == name.value).copied();
                if hit.is_none() {
                    let help = if systems.is_empty() {
                        "no file given holds a `kind: System`; give its file too".to_owned()
                    } else {
                        did_you_mean(&name.value, systems.iter().map(|(_, s)| s.name.value.as_str()))
                    };
                    site.report(Place::of(name), format!("there is no system `{}`", name.value), Some(help));
                }
                hit
            }
            None => match systems.as_slice() {
                [one] => Some(*one),
                [] => {
                    let help = "add a `kind: System` document with the components and their probes".to_owned();
                    site.report(Place::of(&experiment.name), "there is no system to judge this by", Some(help));
                    None
                }
                _ => {
                    let help = did_you_mean("", systems.iter().map(|(_, s)| s.name.value.as_str()));
                    site.report(Place::of(&experiment.name), "`system:` is missing, and there are several", Some(help));
                    None
                }
            },
        }
    }

    fn lower_one(&self, source: &Source, experiment: &Experiment, choices: &Choices<'_>) -> Result<Lowered, Vec<Diagnostic>> {
        let mut site = Site::new(source);
        let Some((system_source, system)) = self.system_of(&mut site, experiment) else { return Err(site.found) };
        let mut system_site = Site::new(system_source);
        let (components, probes, checks) = lower_system(&mut system_site, system, choices);
        let seed = if choices.force_seed { choices.seed } else { experiment.seed.unwrap_or(choices.seed) };
        let picks = lower_picks(&mut site, experiment, system, seed);
        let steps = experiment.steps.iter().map(|s| lower_step(&mut site, &s.value, system, &picks)).collect::<Vec<_>>();
        if steps.is_empty() {
            site.report(Place::of(&experiment.name), "it has no steps, so nothing would happen", None);
        }
        let names: Vec<&str> = components.iter().map(|c| c.name.as_str()).collect();
        for name in &experiment.expect.radius {
            if !names.contains(&name.value.as_str()) {
                let help = did_you_mean(&name.value, names.iter().copied());
                site.report(Place::of(name), format!("system `{}` has no component `{}`", system.name.value, name.value), Some(help));
            }
        }
        let abort = lower_abort(&mut site, experiment, &probes);
        let slowest = probes.iter().map(|p| p.every.0 * u32::try_from(p.needs).unwrap_or(u32::MAX)).max().unwrap_or_default();
        let (baseline, baseline_auto) = match experiment.baseline {
            // One sample more, for the first may be due a little after the phase began.
            Baseline::Auto => (Span(slowest + probes.iter().map(|p| p.every.0).max().unwrap_or_default()), true),
            Baseline::For(span) => (span, false),
        };
        if !baseline_auto && baseline.0 < slowest {
            let message = format!("a baseline of {baseline} is too short for the probes' tolerances, which need {}", Span(slowest));
            site.report(Place::of(&experiment.name), message, Some("make it longer, or `baseline: auto`".into()));
        }
        let mut plan = RunPlan {
            experiment: experiment.name.value.clone(),
            title: experiment.title.clone().unwrap_or_else(|| experiment.name.value.clone()),
            system: system.name.value.clone(),
            components,
            probes,
            baseline,
            baseline_auto,
            picks,
            steps,
            radius: experiment.expect.radius.iter().map(|r| r.value.clone()).collect(),
            outage: experiment.expect.outage,
            healed: experiment.expect.healed,
            abort,
            deadline: Span::default(),
            seed,
            judged: true,
        };
        check_windows(&mut site, experiment, &plan);
        let patience = if baseline_auto { baseline.0 * (BASELINE_PATIENCE - 1) } else { Duration::ZERO };
        plan.deadline = experiment.deadline.unwrap_or(Span(plan.expected_length().0.mul_f64(1.5) + patience + SLACK));
        if plan.deadline.0 < plan.expected_length().0 - SETTLE.0 {
            let message = format!("the deadline of {} is shorter than the run, {}", plan.deadline, plan.expected_length());
            site.report(Place::of(&experiment.name), message, Some("make it longer, or leave it out".into()));
        }
        site.found.extend(system_site.found);
        if site.found.is_empty() { Ok(Lowered { plan, checks }) } else { Err(site.found) }
    }
}

/// Where findings are collected for one file.
struct Site<'a> {
    source: &'a Source,
    found: Vec<Diagnostic>,
}

impl<'a> Site<'a> {
    fn new(source: &'a Source) -> Self {
        Self { source, found: Vec::new() }
    }

    fn diagnostic(&self, place: Place, message: impl Into<String>, help: Option<String>) -> Diagnostic {
        Diagnostic::new(&self.source.file, &self.source.text, place, message, help)
    }

    fn report(&mut self, place: Place, message: impl Into<String>, help: Option<String>) {
        let diagnostic = self.diagnostic(place, message, help);
        self.found.push(diagnostic);
    }
}

fn lower_system(site: &mut Site<'_>, system: &System, choices: &Choices<'_>) -> (Vec<ComponentPlan>, Vec<ProbePlan>, Vec<Check>) {
    let mut components: Vec<ComponentPlan> = Vec::new();
    let (mut plans, mut checks) = (Vec::new(), Vec::new());
    let names: Vec<&str> = system.components.iter().map(|c| c.value.name.value.as_str()).collect();
    for Spanned { value: component, .. } in &system.components {
        let name = component.name.value.clone();
        if components.iter().any(|c| c.name == name) {
            site.report(Place::of(&component.name), format!("there are two components named `{name}`"), None);
        }
        for needed in &component.depends_on {
            if !names.contains(&needed.value.as_str()) {
                let help = did_you_mean(&needed.value, names.iter().copied());
                site.report(Place::of(needed), format!("there is no component `{}`", needed.value), Some(help));
            }
        }
        let mut replicas: Vec<String> = Vec::new();
        for replica in &component.replicas {
            if let Err(why) = replica.value.target().check() {
                site.report(Place::of(replica), why, None);
            }
            let replica_name = replica.value.name();
            if replicas.contains(&replica_name) {
                let help = Some("give one of them a `name:`".into());
                site.report(Place::of(replica), format!("`{name}` has two replicas named `{replica_name}`"), help);
            }
            replicas.push(replica_name);
        }
        let first = plans.len();
        for probe in &component.probes {
            if let Some((plan, check)) = probes::lower(site, system, component, probe, choices) {
                if plans.iter().any(|p: &ProbePlan| p.name == plan.name) {
                    site.report(Place::of(&probe.value.name), format!("there are two probes named `{}`", plan.name), None);
                }
                plans.push(plan);
                checks.push(check);
            }
        }
        components.push(ComponentPlan {
            name,
            user_facing: component.user_facing,
            depends_on: component.depends_on.iter().map(|d| d.value.clone()).collect(),
            replicas,
            probes: (first..plans.len()).collect(),
        });
    }
    (components, plans, checks)
}

fn component<'a>(system: &'a System, name: &str) -> Option<&'a Component> {
    system.components.iter().map(|c| &c.value).find(|c| c.name.value == name)
}

fn lower_picks(site: &mut Site<'_>, experiment: &Experiment, system: &System, seed: u64) -> Vec<PickPlan> {
    let mut picks = Vec::new();
    for (name, pick) in &experiment.pick {
        let Pick { component: wanted, count, percent } = pick;
        let Some(component) = component(system, &wanted.value) else {
            let help = did_you_mean(&wanted.value, system.components.iter().map(|c| c.value.name.value.as_str()));
            site.report(Place::of(wanted), format!("there is no component `{}` to pick from", wanted.value), Some(help));
            continue;
        };
        let replicas: Vec<String> = component.replicas.iter().map(|r| r.value.name()).collect();
        if replicas.is_empty() {
            site.report(Place::of(wanted), format!("`{}` has no replicas to pick from", wanted.value), None);
            continue;
        }
        let wanted_count = match (count, percent) {
            (Some(count), None) => count.value,
            (None, Some(percent)) => percent.of(replicas.len()),
            _ => {
                let help = Some("for example `count: 1` or `percent: 30%`".into());
                site.report(Place::of(wanted), format!("pick `{name}` needs either `count` or `percent`"), help);
                continue;
            }
        };
        if wanted_count == 0 || wanted_count > replicas.len() {
            let place = count.as_ref().map_or(Place::of(wanted), Place::of);
            let message = format!("cannot pick {wanted_count} of the {} replicas of `{}`", replicas.len(), wanted.value);
            site.report(place, message, None);
            continue;
        }
        let chosen = pick::choose(&replicas, wanted_count, seed, name);
        picks.push(PickPlan { name: name.clone(), component: wanted.value.clone(), chosen, of: replicas.len() });
    }
    picks
}

fn lower_step(site: &mut Site<'_>, step: &Step, system: &System, picks: &[PickPlan]) -> StepPlan {
    let mut faults: Vec<Fault> = Vec::new();
    for fault in &step.inject {
        if let Err(why) = fault.value.check() {
            site.report(Place::of(fault), format!("{}: {why}", fault.value.name()), None);
        }
        faults.push(fault.value.clone());
    }
    if faults.is_empty() {
        site.report(Place::of(&step.target), "this step injects nothing", None);
    }
    if step.lasts.value.0.is_zero() {
        site.report(Place::of(&step.lasts), "a step of no duration does nothing", Some("for example `for: 20s`".into()));
    }
    let targets = match &step.target.value {
        StepTarget::Spec(spec) => {
            if let Err(why) = spec.check() {
                site.report(Place::of(&step.target), why, None);
            }
            vec![TargetPlan { name: spec.to_string(), component: None, spec: spec.clone(), control: None }]
        }
        StepTarget::Named(name) => named_targets(site, &step.target, name, system, picks),
    };
    StepPlan { at: step.at, lasts: step.lasts.value, targets, faults }
}

/// The replicas that a name stands for: a pick, a whole component, or `component/replica`.
fn named_targets(
    site: &mut Site<'_>,
    at: &Spanned<StepTarget>,
    name: &str,
    system: &System,
    picks: &[PickPlan],
) -> Vec<TargetPlan> {
    let all = |component: &Component, keep: &dyn Fn(&str) -> bool| -> Vec<TargetPlan> {
        let owner = &component.name.value;
        let replicas = component.replicas.iter().map(|r| &r.value).filter(|r| keep(&r.name()));
        let plan = |r: &crate::file::Replica| TargetPlan {
            name: format!("{owner}/{}", r.name()),
            component: Some(owner.clone()),
            spec: r.target(),
            control: r.control.clone(),
        };
        replicas.map(plan).collect()
    };
    if let Some(pick) = picks.iter().find(|p| p.name == name) {
        return component(system, &pick.component).map(|c| all(c, &|r| pick.chosen.iter().any(|n| n == r))).unwrap_or_default();
    }
    let found = match name.split_once('/') {
        Some((owner, replica)) => component(system, owner).map(|c| all(c, &|r| r == replica)),
        None => component(system, name).map(|c| all(c, &|_| true)),
    };
    match found {
        Some(targets) if !targets.is_empty() => targets,
        Some(_) => {
            let what = if name.contains('/') { "there is no such replica" } else { "it has no replicas to act on" };
            let known: Vec<String> = replica_names(system);
            let help = did_you_mean(name, known.iter().map(String::as_str));
            site.report(Place::of(at), format!("`{name}`: {what}"), Some(help));
            Vec::new()
        }
        None => {
            let mut known: Vec<String> = picks.iter().map(|p| p.name.clone()).collect();
            known.extend(system.components.iter().map(|c| c.value.name.value.clone()));
            known.extend(replica_names(system));
            let help = did_you_mean(name, known.iter().map(String::as_str));
            site.report(Place::of(at), format!("there is no pick, component or replica `{name}`"), Some(help));
            Vec::new()
        }
    }
}

fn replica_names(system: &System) -> Vec<String> {
    let of = |c: &Component| c.replicas.iter().map(|r| format!("{}/{}", c.name.value, r.value.name())).collect::<Vec<_>>();
    system.components.iter().flat_map(|c| of(&c.value)).collect()
}

fn lower_abort(site: &mut Site<'_>, experiment: &Experiment, probes: &[ProbePlan]) -> Vec<AbortPlan> {
    let mut rules = Vec::new();
    for rule in &experiment.abort {
        match probes.iter().position(|p| p.name == rule.probe.value) {
            Some(probe) => rules.push(AbortPlan { probe, bad_for: rule.bad_for }),
            None => {
                let help = did_you_mean(&rule.probe.value, probes.iter().map(|p| p.name.as_str()));
                let message = format!("there is no probe `{}`", rule.probe.value);
                site.report(Place::of(&rule.probe), message, Some(help));
            }
        }
    }
    rules
}

/// Refuses fault windows in which a judged probe cannot reach `held`, whatever happens.
fn check_windows(site: &mut Site<'_>, experiment: &Experiment, plan: &RunPlan) {
    let window = plan.fault_window().0.saturating_sub(plan.outage.0);
    for probe in plan.probes.iter().filter(|p| !plan.is_inside(p)) {
        let samples = (window.as_secs_f64() / probe.every.as_secs_f64()).floor() as usize;
        if samples < probe.needs {
            let lacking = probe.every.0 * u32::try_from(probe.needs).unwrap_or(u32::MAX) + plan.outage.0;
            let message = format!(
                "`{}` cannot be shown to hold: {} of faults less {} of permitted outage give {samples} samples, and its \
                 tolerance needs {}",
                probe.name,
                plan.fault_window(),
                plan.outage,
                probe.needs
            );
            let help = format!(
                "let the faults last {} or longer, probe more often, or tolerate more (`steady: {{bad: ..}}`)",
                Span(Duration::from_millis(u64::try_from(lacking.as_millis()).unwrap_or(u64::MAX) + 1))
            );
            let place = experiment.steps.last().map_or(Place::of(&experiment.name), |s| Place::of(&s.value.lasts));
            site.report(place, message, Some(help));
        }
    }
}

/// A plan for one ad-hoc fault, as `firedrill inject` makes it: reported, not judged.
pub fn ad_hoc(target: &TargetSpec, fault: Fault, lasts: Span, watched: Option<(ProbePlan, Check)>, seed: u64) -> Lowered {
    let (probes, checks): (Vec<_>, Vec<_>) = watched.into_iter().unzip();
    let watched = |probes: &[ProbePlan]| ComponentPlan {
        name: "watched".into(),
        user_facing: true,
        depends_on: Vec::new(),
        replicas: Vec::new(),
        probes: (0..probes.len()).collect(),
    };
    let baseline = if probes.is_empty() { Span::default() } else { Span::from_secs(2) };
    let plan = RunPlan {
        experiment: format!("inject-{}", fault.name()),
        title: format!("{} on {target}: {}", fault.name(), fault.describe()),
        system: "ad hoc".into(),
        components: if probes.is_empty() { Vec::new() } else { vec![watched(&probes)] },
        radius: if probes.is_empty() { Vec::new() } else { vec!["watched".into()] },
        probes,
        baseline,
        baseline_auto: false,
        picks: Vec::new(),
        steps: vec![StepPlan {
            at: Span::default(),
            lasts,
            targets: vec![TargetPlan { name: target.to_string(), component: None, spec: target.clone(), control: None }],
            faults: vec![fault],
        }],
        outage: Span::default(),
        healed: Span::from_secs(5),
        abort: Vec::new(),
        deadline: Span(lasts.0 + baseline.0 + SLACK),
        seed,
        judged: false,
    };
    Lowered { plan, checks }
}

/// The probe that `inject --watch` makes.
pub use probes::watch;

/// Samples with which every tolerance of a probe can be shown to hold.
pub(crate) fn needs(steady: &crate::file::Steady) -> Option<usize> {
    sampling::needed(steady)
}

#[cfg(test)]
mod tests;
