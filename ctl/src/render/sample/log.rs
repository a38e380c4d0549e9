//! Writing a log, and reading it back.

use firedrill_model::change::Change;
use firedrill_model::event::{Bad, Event, Outcome, Phase, Record, Sample};
use firedrill_model::facts::{HostFacts, TargetFacts, TargetKind};
use firedrill_model::log::Run;
use firedrill_model::receipt::Receipt;
use firedrill_model::run::RunPlan;
use firedrill_model::units::Span;
use firedrill_model::verdict::{ExitCode, Healed, Judgement, Outage, ProbeJudgement, Verdict, WindowStats};

/// Writes a log and reads it back.
pub struct Log {
    records: Vec<Record>,
    plan: RunPlan,
    changes: Vec<usize>,
}

impl Log {
    /// An empty log of this plan.
    pub fn new(plan: RunPlan) -> Self {
        Self { records: Vec::new(), plan, changes: Vec::new() }
    }

    /// Adds an event.
    pub fn at(&mut self, at: f64, event: Event) -> &mut Self {
        self.records.push(Record { at, event });
        self
    }

    /// A phase begins.
    pub fn phase(&mut self, at: f64, phase: Phase) -> &mut Self {
        self.at(at, Event::PhaseBegan { phase })
    }

    /// Adds a note.
    pub fn note(&mut self, at: f64, text: &str) -> &mut Self {
        self.at(at, Event::Note { text: text.into() })
    }

    /// All probes, every 50 ms.
    pub fn probes(&mut self, from: f64, to: f64, outcome: impl Fn(usize, f64) -> Outcome) -> &mut Self {
        for probe in 0..self.plan.probes.len() {
            for tick in 0..((to - from) / 0.05) as u32 {
                let due = from + f64::from(tick) * 0.05;
                let outcome = outcome(probe, due);
                let took = match &outcome {
                    Outcome::Good(ms) | Outcome::Bad(Bad { ms, .. }) => ms / 1e3,
                    Outcome::Missed(_) => 0.0,
                };
                self.at(due + took, Event::Sample(Sample { probe, due, outcome }));
            }
        }
        self
    }

    /// A step of one fault begins and comes into force.
    pub fn fault(&mut self, at: f64, step: usize, fault: &str, changes: Vec<Change>) -> &mut Self {
        if step == 0 {
            self.phase(at, Phase::Inject);
        }
        let target = self.plan.steps[step].targets[0].name.clone();
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
        self.at(at, Event::StepBegan { step, targets: vec![facts] });
        for (i, change) in changes.into_iter().enumerate() {
            self.changes.push(step);
            let number = self.changes.len() as u64;
            let event = Event::Applied {
                change: number,
                step,
                target: target.clone(),
                fault: fault.into(),
                what: Box::new(change),
            };
            self.at(at + 0.002 * (i + 1) as f64, event);
        }
        self.at(at + 0.01, Event::StepInForce { step })
    }

    /// The changes of a step are undone.
    pub fn undo(&mut self, at: f64, step: usize, note: &str) -> &mut Self {
        let numbers: Vec<u64> = (1u64..).zip(&self.changes).filter(|(_, s)| **s == step).map(|(n, _)| n).collect();
        for (i, change) in numbers.into_iter().rev().enumerate() {
            self.at(at + 0.002 * i as f64, Event::Reverted { change, note: note.into(), error: None });
        }
        self
    }

    /// A fault measures.
    pub fn receipt(&mut self, at: f64, step: usize, receipt: Receipt) -> &mut Self {
        self.at(at, Event::Receipt { step, last: false, receipt })
    }

    /// A judgement of one probe whose numbers are those of its samples.
    pub fn judge(
        &self,
        probe: usize,
        judged: bool,
        verdict: Verdict,
        reason: &str,
        outage: Option<Outage>,
    ) -> ProbeJudgement {
        let phase = |wanted: Phase| {
            self.records
                .iter()
                .find(|r| matches!(&r.event, Event::PhaseBegan { phase } if *phase == wanted))
                .map(|r| r.at)
        };
        let (inject, recovery) = (phase(Phase::Inject).unwrap_or(0.0), phase(Phase::Recovery).unwrap_or(0.0));
        let moved = matches!(verdict, Verdict::Degraded | Verdict::Broken);
        ProbeJudgement {
            probe,
            judged,
            verdict,
            reason: reason.into(),
            moved,
            baseline: self.stats(probe, 0.0, inject),
            fault: self.stats(probe, inject, recovery),
            recovery: self.stats(probe, recovery, f64::INFINITY),
            outage,
            healed: Healed::After(if outage.is_some_and(|o| o.censored) {
                Span::from_millis(950)
            } else {
                Span::default()
            }),
        }
    }

    fn stats(&self, probe: usize, from: f64, to: f64) -> WindowStats {
        let mut stats = WindowStats::default();
        let mut good = Vec::new();
        for record in &self.records {
            let Event::Sample(sample) = &record.event else { continue };
            if sample.probe != probe || !(from..to).contains(&sample.due) {
                continue;
            }
            stats.due += 1;
            stats.taken += usize::from(!matches!(sample.outcome, Outcome::Missed(_)));
            stats.bad += usize::from(sample.outcome.is_bad());
            if let Outcome::Good(ms) = sample.outcome {
                good.push(ms);
            }
        }
        good.sort_by(f64::total_cmp);
        let quantile = |q: f64| good.get(((good.len() as f64 * q) as usize).min(good.len().saturating_sub(1))).copied();
        (stats.p50_ms, stats.p95_ms, stats.p99_ms) = (quantile(0.5), quantile(0.95), quantile(0.99));
        let share = stats.bad_share();
        let margin = (3.0 / stats.taken.max(1) as f64).min(1.0);
        (stats.bad_lower, stats.bad_upper) = ((share - margin).max(0.0), (share + margin).min(1.0));
        stats
    }

    /// The end, and the run as it is read back.
    pub fn judged(mut self, judgement: Judgement, exit: ExitCode, left_over: &[&str]) -> Run {
        self.records.sort_by(|a, b| a.at.total_cmp(&b.at));
        let end = self.records.last().map_or(0.0, |r| r.at) + 0.05;
        self.at(end, Event::Judged(Box::new(judgement)));
        let left_over = left_over.iter().map(|s| (*s).to_owned()).collect();
        self.at(end + 0.01, Event::RunEnded { exit, left_over });
        let host = HostFacts {
            kernel: "6.18.5-amd64".into(),
            tcx: true,
            boot_id: "0f1e2d3c".into(),
            cgroup_root: Some("/sys/fs/cgroup".into()),
            netns: 4_026_531_840,
            systemd: true,
        };
        let replay =
            ["firedrill", "run", "shop.yaml", "--experiment", &self.plan.experiment, "--seed", "7"].map(str::to_owned);
        let start = Event::RunStarted {
            id: format!("20261123-144710-{}", self.plan.experiment),
            version: "0.1.0".into(),
            started: "2026-11-23T14:47:10+01:00".into(),
            replay: replay.to_vec(),
            host: Box::new(host),
            plan: Box::new(self.plan),
        };
        self.records.insert(0, Record { at: 0.0, event: start });
        let lines: Vec<String> = self.records.iter().map(|r| serde_json::to_string(r).expect("serialises")).collect();
        Run::parse(&(lines.join("\n") + "\n")).expect("a log")
    }
}
