//! From files to a run plan: names resolved across the files, defaults filled in, choices made, and everything
//! that can be known to be wrong before a host is touched said at its place.

mod probes;
mod steps;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fault::Fault;
use crate::file::{
    Baseline, Check, Diagnostic, Document, Experiment, GameDay, Place, Spanned, System, did_you_mean, parse,
};
use crate::peer::Peer;
use crate::run::{AbortPlan, ComponentPlan, PeerPlan, ProbePlan, RunPlan, StepPlan, TargetPlan};
use crate::sampling;
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
        Err(vec![Diagnostic::new(
            file,
            "",
            Place::default(),
            format!("there is no experiment `{experiment}`"),
            Some(help),
        )])
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

    fn lower_one(
        &self,
        source: &Source,
        experiment: &Experiment,
        choices: &Choices<'_>,
    ) -> Result<Lowered, Vec<Diagnostic>> {
        let mut site = Site::new(source);
        let Some((system_source, system)) = self.system_of(&mut site, experiment) else { return Err(site.found) };
        let mut system_site = Site::new(system_source);
        let (components, probes, checks) = lower_system(&mut system_site, system, choices);
        let seed = if choices.force_seed { choices.seed } else { experiment.seed.unwrap_or(choices.seed) };
        let picks = steps::lower_picks(&mut site, experiment, system, seed);
        let steps: Vec<_> = experiment
            .steps
            .iter()
            .map(|s| steps::lower_step(&mut site, experiment, &s.value, system, &picks))
            .collect();
        if steps.is_empty() {
            site.report(Place::of(&experiment.name), "it has no steps, so nothing would happen", None);
        }
        let names: Vec<&str> = components.iter().map(|c| c.name.as_str()).collect();
        for name in &experiment.expect.radius {
            if !names.contains(&name.value.as_str()) {
                let help = did_you_mean(&name.value, names.iter().copied());
                site.report(
                    Place::of(name),
                    format!("system `{}` has no component `{}`", system.name.value, name.value),
                    Some(help),
                );
            }
        }
        let abort = lower_abort(&mut site, experiment, system, &probes);
        let (baseline, baseline_auto) = lower_baseline(&mut site, experiment, &probes);
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
        plan.deadline = Span(plan.expected_length().0.mul_f64(1.5) + patience + SLACK);
        if let Some(deadline) = &experiment.deadline {
            plan.deadline = deadline.value;
            if plan.deadline.0 < plan.baseline.0 + plan.fault_window().0 {
                let message = format!(
                    "the deadline of {} is shorter than the baseline of {} and the faults of {} together",
                    plan.deadline,
                    plan.baseline,
                    plan.fault_window()
                );
                site.report(Place::of(deadline), message, Some("make it longer, or leave it out".into()));
            }
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

fn lower_system(
    site: &mut Site<'_>,
    system: &System,
    choices: &Choices<'_>,
) -> (Vec<ComponentPlan>, Vec<ProbePlan>, Vec<Check>) {
    let mut components: Vec<ComponentPlan> = Vec::new();
    let (mut plans, mut checks) = (Vec::new(), Vec::new());
    let names: Vec<&str> = system.components.iter().map(|c| c.value.name.value.as_str()).collect();
    for Spanned { value: component, .. } in &system.components {
        let name = component.name.value.clone();
        if name.is_empty() || name.contains('/') {
            let help = Some("`component/replica` and `component/probe` are told apart by the slash".into());
            site.report(Place::of(&component.name), format!("`{name}` cannot be the name of a component"), help);
        }
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
                    site.report(
                        Place::of(&probe.value.name),
                        format!("there are two probes named `{}`", plan.name),
                        None,
                    );
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

/// How long `needs` samples of a probe take.
fn time_for_samples(probe: &ProbePlan) -> Duration {
    probe.every.0.saturating_mul(u32::try_from(probe.needs).unwrap_or(u32::MAX))
}

/// The length of the baseline, and whether it may go on beyond that.
fn lower_baseline(site: &mut Site<'_>, experiment: &Experiment, probes: &[ProbePlan]) -> (Span, bool) {
    let slowest = probes.iter().max_by_key(|p| time_for_samples(p));
    let needed = slowest.map(time_for_samples).unwrap_or_default();
    let (given, place) = match &experiment.baseline {
        Some(given) => (given.value, Place::of(given)),
        None => (Baseline::Auto, Place::of(&experiment.name)),
    };
    if let Some(probe) = slowest.filter(|_| needed > Span::LONGEST.0) {
        let message =
            format!("`{}` needs {} samples to show its tolerance, which takes years", probe.name, probe.needs);
        site.report(place, message, Some("probe more often, or tolerate more (`steady: {bad: ..}`)".into()));
        return (Span::default(), true);
    }
    match given {
        // One sample more, for the first may be due a little after the phase began.
        Baseline::Auto => (Span(needed + probes.iter().map(|p| p.every.0).max().unwrap_or_default()), true),
        Baseline::For(span) => {
            if let Some(probe) = slowest.filter(|_| span.0 < needed) {
                let message = format!(
                    "a baseline of {span} is too short: `{}` needs {} samples, one every {}, so {}",
                    probe.name,
                    probe.needs,
                    probe.every,
                    Span(needed)
                );
                site.report(place, message, Some("make it longer, or write `baseline: auto`".into()));
            }
            (span, false)
        }
    }
}

fn lower_abort(site: &mut Site<'_>, experiment: &Experiment, system: &System, probes: &[ProbePlan]) -> Vec<AbortPlan> {
    let components = system.components.iter().map(|c| &c.value);
    let written: Vec<String> = components
        .flat_map(|c| c.probes.iter().map(|p| format!("{}/{}", c.name.value, p.value.name.value)).collect::<Vec<_>>())
        .collect();
    let mut rules = Vec::new();
    for rule in &experiment.abort {
        match probes.iter().position(|p| p.name == rule.probe.value) {
            Some(probe) => rules.push(AbortPlan { probe, bad_for: rule.bad_for }),
            // It is there but wrong, which has been reported already.
            None if written.contains(&rule.probe.value) => {}
            None => {
                let help = did_you_mean(&rule.probe.value, written.iter().map(String::as_str));
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
        // In whole nanoseconds: 14.95 s / 50 ms is 298.99 in binary fractions.
        let samples = window.as_nanos() / probe.every.0.as_nanos().max(1);
        if samples < probe.needs as u128 {
            let lacking = time_for_samples(probe).saturating_add(plan.outage.0);
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
                Span(lacking)
            );
            let place = experiment.steps.last().map_or(Place::of(&experiment.name), |s| Place::of(&s.value.lasts));
            site.report(place, message, Some(help));
        }
    }
}

/// A plan for one ad-hoc fault, as `firedrill inject` makes it: reported, not judged.
pub fn ad_hoc(
    mut target: TargetPlan,
    fault: Fault,
    lasts: Span,
    watched: Option<(ProbePlan, Check)>,
    seed: u64,
) -> Lowered {
    let hosts = fault.peers().iter().filter(|peer| matches!(peer, Peer::Host(_)));
    target.peers = hosts.map(|host| PeerPlan { peer: host.clone(), replicas: Vec::new() }).collect();
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
        title: format!("{} on {}: {}", fault.name(), target.name, fault.describe()),
        system: "ad hoc".into(),
        components: if probes.is_empty() { Vec::new() } else { vec![watched(&probes)] },
        radius: if probes.is_empty() { Vec::new() } else { vec!["watched".into()] },
        probes,
        baseline,
        baseline_auto: false,
        picks: Vec::new(),
        steps: vec![StepPlan { at: Span::default(), lasts, targets: vec![target], faults: vec![fault] }],
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
pub use probes::{mask_url, watch};

/// Samples with which every tolerance of a probe can be shown to hold.
pub(crate) fn needs(steady: &crate::file::Steady) -> Option<usize> {
    sampling::needed(steady)
}

#[cfg(test)]
mod tests;
