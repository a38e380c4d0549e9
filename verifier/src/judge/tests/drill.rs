//! Made-up runs, built event by event as a real one is.

use firedrill_model::event::{Bad, Event, Outcome, Phase, Record, Sample};
use firedrill_model::facts::{HostFacts, TargetFacts, TargetKind};
use firedrill_model::fault::Fault;
use firedrill_model::file::Steady;
use firedrill_model::log::Run;
use firedrill_model::receipt::{Effect, KillCount, Measured, Receipt};
use firedrill_model::run::{ComponentPlan, ProbePlan, RunPlan, StepPlan, TargetPlan};
use firedrill_model::sampling;
use firedrill_model::target::TargetSpec;
use firedrill_model::units::{Percent, Span};
use firedrill_model::verdict::Judgement;

/// When the fault begins and ends, and when observation ends.
pub const FAULT: (f64, f64) = (10.0, 30.0);
pub const END: f64 = 40.0;
/// Interval of every probe.
pub const EVERY: f64 = 0.05;

/// What a probe answers to a question due at a time; `None` when no sample is logged at all.
pub type Answer<'a> = &'a dyn Fn(f64) -> Option<Outcome>;

/// A run in the making: components `front` (users meet it) and `web` (hit), one probe each, 1 % bad tolerated.
pub struct Drill {
    pub plan: RunPlan,
    pub events: Vec<Record>,
}

pub fn good() -> Option<Outcome> {
    Some(Outcome::Good(12.0))
}

pub fn slow(ms: f64) -> Option<Outcome> {
    Some(Outcome::Good(ms))
}

pub fn bad() -> Option<Outcome> {
    Some(Outcome::Bad(Bad { ms: 3.0, why: "connection refused".into() }))
}

pub fn missed() -> Option<Outcome> {
    Some(Outcome::Missed("not sent: this host was 80ms late with it".into()))
}

pub fn probe(name: &str) -> ProbePlan {
    let steady = Steady::default();
    ProbePlan {
        name: name.into(),
        component: name.split('/').next().expect("a component").into(),
        kind: "http".into(),
        describe: "GET http://127.0.0.1/ gives 2xx".into(),
        every: Span::from_millis(50),
        timeout: Span::from_secs(1),
        steady,
        netns: None,
        needs: sampling::needed(&steady).expect("can be shown"),
    }
}

fn component(name: &str, replicas: &[&str], probes: &[usize]) -> ComponentPlan {
    ComponentPlan {
        name: name.into(),
        user_facing: name == "front",
        depends_on: Vec::new(),
        replicas: replicas.iter().map(|r| (*r).to_owned()).collect(),
        probes: probes.to_vec(),
    }
}

pub fn fault(json: &str) -> Fault {
    serde_json::from_str(json).expect("a fault")
}

impl Drill {
    pub fn new() -> Self {
        let target = |name: &str| TargetPlan {
            name: name.into(),
            component: Some("web".into()),
            ..TargetPlan::of(TargetSpec { cgroup: Some("shop/web-2".into()), ..TargetSpec::default() })
        };
        let plan = RunPlan {
            experiment: "lose-one-web".into(),
            title: "Checkout survives the loss of one web replica".into(),
            system: "shop".into(),
            components: vec![component("front", &[], &[0]), component("web", &["web-1", "web-2"], &[1])],
            probes: vec![probe("front/checkout"), probe("web/ready")],
            baseline: Span::from_secs(10),
            baseline_auto: false,
            picks: Vec::new(),
            steps: vec![StepPlan {
                at: Span::default(),
                lasts: Span::from_secs(20),
                targets: vec![target("web/web-2")],
                faults: vec![fault(r#"{"pause": {}}"#)],
            }],
            radius: vec!["web".into()],
            outage: Span::default(),
            healed: Span::from_secs(5),
            abort: Vec::new(),
            deadline: Span::from_secs(120),
            seed: 7,
            judged: true,
        };
        Self { plan, events: Vec::new() }
    }

    /// A permitted outage of so many seconds.
    pub fn permitting(mut self, seconds: u64) -> Self {
        self.plan.outage = Span::from_secs(seconds);
        self
    }

    pub fn tolerance(mut self, probe: usize, percent: f64) -> Self {
        self.plan.probes[probe].steady.bad = Percent::new(percent).expect("a percentage");
        self
    }

    pub fn at(mut self, at: f64, event: Event) -> Self {
        self.events.push(Record { at, event });
        self
    }

    /// All samples of a probe from the beginning to the end.
    pub fn answers(self, probe: usize, answer: Answer<'_>) -> Self {
        self.answers_until(probe, END, answer)
    }

    pub fn answers_until(mut self, probe: usize, end: f64, answer: Answer<'_>) -> Self {
        for slot in 0.. {
            // Shifted against each other and against the windows, as real schedules are.
            let due = 0.01 + 0.02 * probe as f64 + f64::from(slot) * EVERY;
            if due >= end {
                break;
            }
            let Some(outcome) = answer(due) else { continue };
            let took = match &outcome {
                Outcome::Good(ms) => ms / 1e3,
                Outcome::Bad(bad) => bad.ms / 1e3,
                Outcome::Missed(_) => 0.0,
            };
            self.events.push(Record { at: due + took, event: Event::Sample(Sample { probe, due, outcome }) });
        }
        self
    }

    pub fn phase(self, at: f64, phase: Phase) -> Self {
        self.at(at, Event::PhaseBegan { phase })
    }

    pub fn baseline(self) -> Self {
        self.phase(0.0, Phase::Baseline)
    }

    /// The fault from its beginning to its end, with a receipt.
    pub fn fault(self) -> Self {
        self.fault_with(Effect::Effective)
    }

    pub fn fault_with(self, effect: Effect) -> Self {
        let name = self.plan.steps[0].faults[0].name().to_owned();
        let target = self.plan.steps[0].targets[0].name.clone();
        let facts = TargetFacts {
            name: target.clone(),
            kind: TargetKind::Cgroup,
            netns: None,
            cgroup: None,
            unit: None,
            processes: Vec::new(),
            control: None,
            replica_of: None,
            peers: Vec::new(),
            lifted: Vec::new(),
        };
        let receipt = Receipt {
            fault: name,
            target,
            effect,
            says: "frozen for 20s".into(),
            lines: Vec::new(),
            measured: Vec::new(),
        };
        self.phase(FAULT.0, Phase::Inject)
            .at(FAULT.0, Event::StepBegan { step: 0, targets: vec![facts] })
            .at(FAULT.0 + 0.01, Event::StepInForce { step: 0 })
            .phase(FAULT.0 + 0.01, Phase::Hold)
            .phase(FAULT.1 - 0.01, Phase::Revert)
            .at(FAULT.1, Event::Receipt { step: 0, last: true, receipt })
            .at(FAULT.1, Event::StepEnded { step: 0 })
            .phase(FAULT.1, Phase::Recovery)
    }

    /// The receipt of a kill, beside the one that [`Self::fault`] logs.
    pub fn killed(self, downtime: Option<Span>) -> Self {
        let measured = vec![Measured::Kill(KillCount { signalled: 1, gone: 1, downtime, ..KillCount::default() })];
        let receipt = Receipt {
            fault: "kill".into(),
            target: "web/web-2".into(),
            effect: Effect::Effective,
            says: "1 of 1 processes ended".into(),
            lines: Vec::new(),
            measured,
        };
        self.at(FAULT.1, Event::Receipt { step: 0, last: true, receipt })
    }

    /// The run as its log tells it, up to now.
    pub fn run(&self) -> Run {
        let start = Event::RunStarted {
            id: "r1".into(),
            version: "0.1.0".into(),
            started: "2026-11-23T10:00:00Z".into(),
            replay: Vec::new(),
            host: Box::new(HostFacts::default()),
            plan: Box::new(self.plan.clone()),
        };
        let mut run = Run::start(&Record { at: 0.0, event: start }).expect("a beginning");
        let mut events: Vec<&Record> = self.events.iter().collect();
        events.sort_by(|a, b| a.at.total_cmp(&b.at));
        for event in events {
            run.push(event);
        }
        run
    }

    /// A whole run with the given answers, judged.
    pub fn judged(self, front: Answer<'_>, web: Answer<'_>) -> Judgement {
        let drill = self.baseline().answers(0, front).answers(1, web).fault().phase(END, Phase::Verdict);
        crate::judge::run(&drill.run())
    }
}

/// Whether a time lies under the fault.
pub fn under_fault(due: f64) -> bool {
    (FAULT.0..FAULT.1).contains(&due)
}
