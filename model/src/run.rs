//! The plan of a run: an experiment with every name resolved, every default filled in and every random choice
//! made. It is what `firedrill plan` prints, what the log begins with, and all that judging knows of the files.

use serde::{Deserialize, Serialize};

use crate::config::Held;
use crate::facts::Control;
use crate::fault::Fault;
use crate::file::Steady;
use crate::peer::Peer;
use crate::protect::Thing;
use crate::target::TargetSpec;
use crate::units::Span;

/// A run, ready to go. Holds no secrets: probes are described, not spelled out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunPlan {
    /// Name of the experiment.
    pub experiment: String,
    /// What it shows.
    pub title: String,
    /// Name of the system.
    pub system: String,
    /// All components of the system, in the file's order.
    pub components: Vec<ComponentPlan>,
    /// All probes of the system; samples refer to them by index.
    pub probes: Vec<ProbePlan>,
    /// How long the steady state is observed.
    pub baseline: Span,
    /// Whether the baseline may go on longer until the tolerances are shown (`baseline: auto`).
    pub baseline_auto: bool,
    /// The choices that were made.
    pub picks: Vec<PickPlan>,
    /// What is done.
    pub steps: Vec<StepPlan>,
    /// Components that may be hit.
    pub radius: Vec<String>,
    /// Outage permitted outside the radius.
    pub outage: Span,
    /// Time in which all must be steady again.
    pub healed: Span,
    /// Rules that end the run early.
    pub abort: Vec<AbortPlan>,
    /// Longest that the whole run may take.
    pub deadline: Span,
    /// Seed of the random choices.
    pub seed: u64,
    /// Whether the outcome is judged. An ad-hoc `inject` only reports.
    pub judged: bool,
}

/// A component.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComponentPlan {
    /// Its name.
    pub name: String,
    /// Whether users meet it directly.
    pub user_facing: bool,
    /// Components that it needs.
    pub depends_on: Vec<String>,
    /// Names of its replicas.
    pub replicas: Vec<String>,
    /// Indices of its probes.
    pub probes: Vec<usize>,
}

/// A probe, without its secrets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbePlan {
    /// `component/probe`.
    pub name: String,
    /// Its component.
    pub component: String,
    /// `http`, `tcp`, `dns` or `exec`.
    pub kind: String,
    /// What it does, secrets masked.
    pub describe: String,
    /// Time from one probe to the next.
    pub every: Span,
    /// An answer later than this is bad.
    pub timeout: Span,
    /// What counts as steady.
    pub steady: Steady,
    /// Namespace in which it runs.
    pub netns: Option<String>,
    /// Samples needed to show that its tolerances hold.
    pub needs: usize,
}

/// A choice of replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PickPlan {
    /// Its name in the file.
    pub name: String,
    /// The component chosen from.
    pub component: String,
    /// Replicas chosen.
    pub chosen: Vec<String>,
    /// Replicas there are.
    pub of: usize,
}

/// Faults that act together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepPlan {
    /// When it begins, counted from the first fault.
    pub at: Span,
    /// How long it lasts.
    pub lasts: Span,
    /// What it acts on.
    pub targets: Vec<TargetPlan>,
    /// The faults.
    pub faults: Vec<Fault>,
}

/// A target of a step, to be resolved when the step begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetPlan {
    /// `component/replica`, or the target in words.
    pub name: String,
    /// The component it belongs to, if it is a replica.
    pub component: Option<String>,
    /// How many replicas that component has.
    #[serde(default)]
    pub replicas: usize,
    /// How to find it.
    pub spec: TargetSpec,
    /// Its owner's commands.
    pub control: Option<Control>,
    /// Protected things in it on which faults may act all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_protected: Vec<Thing>,
    /// Names of peers in the step's faults.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerPlan>,
}

impl TargetPlan {
    /// A target that is no replica, by what it is, with nothing allowed.
    pub fn of(spec: TargetSpec) -> Self {
        let name = spec.to_string();
        Self { name, component: None, replicas: 0, spec, control: None, allow_protected: Vec::new(), peers: Vec::new() }
    }

    /// As caps count it.
    pub fn held(&self) -> Held<'_> {
        Held { target: &self.name, of: self.component.as_deref().map(|component| (component, self.replicas)) }
    }
}

/// A name of the other side of packets, to be looked up when the step begins.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerPlan {
    /// The name.
    pub peer: Peer,
    /// The replicas of a component.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<TargetSpec>,
}

/// A rule that ends the run early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbortPlan {
    /// Index of the probe.
    pub probe: usize,
    /// Bad without a good answer in between for this long.
    pub bad_for: Span,
}

impl RunPlan {
    /// Leaves of users' own commands only what may be shown.
    pub fn mask(&mut self) {
        let targets = self.steps.iter_mut().flat_map(|step| &mut step.targets);
        targets.filter_map(|target| target.control.as_mut()).for_each(Control::mask);
    }

    /// From the first inject to the last revert, as planned.
    pub fn fault_window(&self) -> Span {
        Span(self.steps.iter().map(|s| s.at.0 + s.lasts.0).max().unwrap_or_default())
    }

    /// How long the run takes when all goes well, without recovery.
    pub fn expected_length(&self) -> Span {
        Span(self.baseline.0 + self.fault_window().0 + SETTLE.0)
    }

    /// Whether a probe's component lies inside the declared radius, and so is reported, not judged.
    pub fn is_inside(&self, probe: &ProbePlan) -> bool {
        self.radius.contains(&probe.component)
    }
}

/// How long a probe must be clean before it counts as recovered (R in the design's definitions).
pub const SETTLE: Span = Span::from_secs(2);
