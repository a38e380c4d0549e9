//! The run is its log: what is written is read back, event by event, and a cut log is still readable.

use firedrill_model::change::{Change, Victim};
use firedrill_model::event::{Bad, Event, Outcome, Phase, Record, Sample};
use firedrill_model::facts::{
    CgroupRef, Control, HostFacts, Interface, NetnsFacts, NetnsRef, ProcessRef, ReplicaOf, TargetFacts, TargetKind,
};
use firedrill_model::log::{LogError, Run};
use firedrill_model::lower::{Choices, Library};
use firedrill_model::protect::Thing;
use firedrill_model::receipt::{
    DelayHistogram, Effect, KillCount, Lost, Measured, PacketCount, Receipt, ReceiptLine, StepCount,
};
use firedrill_model::run::RunPlan;
use firedrill_model::units::Span;
use firedrill_model::verdict::{
    Containment, ExitCode, Expectation, Healed, Judgement, Outage, ProbeJudgement, Radius, Verdict, WindowStats,
};

const FILE: &str = r#"kind: System
name: shop
components:
  - name: front
    probes: [{name: page, http: {url: "http://127.0.0.1/"}, every: 50ms}, {name: port, tcp: {address: "127.0.0.1:80"}}]
  - name: web
    replicas: [{name: web-1, cgroup: shop/web-1, control: {stop: [a], start: [b]}}]
---
kind: Experiment
name: e
steps:
  - {target: web, inject: [{stop: {}}, {loss: {percent: 12.5%}}], for: 40s}
  - {at: 50s, target: {netns: blue}, inject: [{latency: {delay: 80ms, jitter: 10ms, peers: [10.0.0.0/8]}}], for: 20s}
"#;

fn plan() -> RunPlan {
    let mut library = Library::default();
    library.add("x.yaml", FILE).unwrap_or_else(|e| panic!("{e}"));
    library.lower("e", &Choices { seed: 3, force_seed: false, env: &|_| None }).unwrap_or_else(|e| panic!("{e:?}")).plan
}

fn target() -> TargetFacts {
    let interface = Interface { index: 2, name: "eth0".into(), loopback: false, ethernet: true };
    TargetFacts {
        name: "web/web-1".into(),
        kind: TargetKind::Cgroup,
        netns: Some(NetnsFacts {
            netns: NetnsRef { path: "/proc/7/ns/net".into(), inode: u64::MAX },
            interfaces: vec![interface],
            spare_ports: vec![22],
        }),
        cgroup: Some(CgroupRef { path: "/sys/fs/cgroup/shop/web-1".into(), id: u64::MAX }),
        unit: None,
        processes: vec![ProcessRef { pid: 7, started: 99, comm: "we b\"\n".into() }],
        control: Some(Control { stop: vec!["a".into()], start: vec!["b".into()] }),
        replica_of: Some(ReplicaOf { component: "web".into(), replicas: 2 }),
        peers: Vec::new(),
        lifted: vec![Thing::Process("ss hd".into()), Thing::Port(22)],
    }
}

fn receipt(fault: &str, measured: Measured) -> Event {
    let receipt = Receipt {
        fault: fault.into(),
        target: "web/web-1".into(),
        effect: Effect::Effective,
        says: "it worked".into(),
        lines: vec![ReceiptLine::new("loss", "12.5%", "12.4%")],
        measured: vec![measured],
    };
    Event::Receipt { step: 0, last: true, receipt }
}

fn judgement() -> Judgement {
    let window = WindowStats {
        due: 400,
        taken: 399,
        bad: 1,
        bad_lower: 0.0001,
        bad_upper: 0.0118,
        p50_ms: Some(0.1),
        p95_ms: None,
        p99_ms: Some(2.5),
    };
    let outage = Outage {
        impact: Span::from_millis(50),
        lasted: Span::from_millis(1250),
        error: Span::from_millis(1100),
        censored: false,
    };
    let probe = |healed, outage| ProbeJudgement {
        probe: 0,
        judged: true,
        verdict: Verdict::Held,
        reason: "1 of 399 bad".into(),
        moved: false,
        baseline: window.clone(),
        fault: window.clone(),
        recovery: WindowStats::default(),
        outage,
        healed,
    };
    Judgement {
        verdict: Verdict::Inconclusive,
        finding: "Nothing is known.".into(),
        expectations: vec![Expectation { what: "holds".into(), verdict: Verdict::Held, reason: "so".into() }],
        probes: vec![
            probe(Healed::After(Span::from_secs(1)), Some(outage)),
            probe(Healed::NotWithin(Span::from_secs(9)), None),
            probe(Healed::Unknown, None),
        ],
        radius: Radius {
            declared: vec!["web".into()],
            observed: vec![],
            escapes: vec![],
            over_predicted: vec!["web".into()],
            unprobed: vec!["web".into()],
            components: 2,
            containment: Containment::Unproven,
        },
        unproven: vec!["web has no probe".into()],
    }
}

/// A whole run with every sort of event in it, in the order of their times.
fn records() -> Vec<Record> {
    let applied = DelayHistogram { count: 2, sum_ns: 3, min_ns: 1, max_ns: 2, buckets: vec![(1, 1), (2, 1)] };
    let lost = vec![Lost { what: "interface eth0".into(), replaced: true }];
    let packets = PacketCount {
        matched: u64::MAX,
        dropped: 1,
        delayed: 2,
        bypassed: 3,
        bytes: 4,
        acted: 5,
        resets: 8,
        limited_bytes: 6,
        limited_ns: 7,
        applied,
        lost,
        steps: vec![StepCount { matched: 3, ..StepCount::default() }],
    };
    let kill = KillCount { signalled: 2, gone: 2, slowest_end: Some(Span::from_millis(3)), downtime: None, again: 1 };
    let freeze = Change::Freeze { cgroup: CgroupRef { path: "/sys/fs/cgroup/a".into(), id: 5 } };
    let killed = Change::Kill {
        victim: Victim::Processes { processes: target().processes },
        signal: 9,
        keep: true,
        allow: vec![],
    };
    let applied = |change, what| Event::Applied {
        change,
        step: 0,
        target: "web/web-1".into(),
        fault: "stop".into(),
        what: Box::new(what),
    };
    let sample = |probe, due, outcome| Event::Sample(Sample { probe, due, outcome });
    let events = vec![
        Event::RunStarted {
            id: "2026-11-23-1".into(),
            version: "0.1.0".into(),
            started: "2026-11-23T15:00:00.123+01:00".into(),
            replay: vec!["firedrill".into(), "run".into(), "x.yaml".into(), "--seed=3".into()],
            host: Box::new(HostFacts {
                kernel: "6.18".into(),
                tcx: true,
                netns: 4_026_531_840,
                ..HostFacts::default()
            }),
            plan: Box::new(plan()),
        },
        Event::PhaseBegan { phase: Phase::Baseline },
        sample(0, 0.1, Outcome::Good(0.734_215_6)),
        sample(1, 0.1, Outcome::Bad(Bad { ms: 1000.0, why: "timed out".into() })),
        Event::PhaseBegan { phase: Phase::Inject },
        Event::StepBegan { step: 0, targets: vec![target()] },
        applied(1, freeze),
        applied(2, killed),
        Event::StepInForce { step: 0 },
        Event::PhaseBegan { phase: Phase::Hold },
        sample(0, 0.3, Outcome::Missed("the host was too busy".into())),
        // A slow answer, due before one that is in the log already.
        sample(0, 0.2, Outcome::Good(3.0)),
        receipt("stop", Measured::State { in_force: true, seen: "inactive".into(), held: Span::from_secs(1) }),
        receipt("loss", Measured::Packets(packets)),
        receipt("kill", Measured::Kill(kill)),
        receipt("loss", Measured::Packets(PacketCount::default())),
        Event::Note { text: "eth1 has no address".into() },
        Event::PhaseBegan { phase: Phase::Revert },
        Event::Aborted { why: "front/page was bad for 5s".into(), invalid: false },
        Event::Aborted { why: "and again".into(), invalid: true },
        Event::Reverted { change: 2, note: "nothing to undo".into(), error: None },
        Event::Reverted { change: 1, note: "thawed".into(), error: Some("still frozen".into()) },
        Event::StepEnded { step: 0 },
        Event::PhaseBegan { phase: Phase::Recovery },
        Event::PhaseBegan { phase: Phase::Verdict },
        Event::Judged(Box::new(judgement())),
        Event::RunEnded { exit: ExitCode::NotRestored, left_over: vec!["cgroup a is frozen".into()] },
    ];
    events.into_iter().zip(0u32..).map(|(event, i)| Record { at: f64::from(i) * 0.37, event }).collect()
}

/// An event's name; a new event does not compile until it is named here, and is then missed by the test below.
fn name(event: &Event) -> &'static str {
    match event {
        Event::RunStarted { .. } => "run-started",
        Event::PhaseBegan { .. } => "phase-began",
        Event::Sample(_) => "sample",
        Event::StepBegan { .. } => "step-began",
        Event::Applied { .. } => "applied",
        Event::Reverted { .. } => "reverted",
        Event::StepInForce { .. } => "step-in-force",
        Event::StepEnded { .. } => "step-ended",
        Event::Receipt { .. } => "receipt",
        Event::Note { .. } => "note",
        Event::Aborted { .. } => "aborted",
        Event::Judged(_) => "judged",
        Event::RunEnded { .. } => "run-ended",
    }
}

fn line(record: &Record) -> String {
    serde_json::to_string(record).expect("plain data")
}

fn log(records: &[Record]) -> String {
    records.iter().map(|r| line(r) + "\n").collect()
}

fn built(records: &[Record]) -> Run {
    let mut run = Run::start(&records[0]).expect("begins with a started run");
    records[1..].iter().for_each(|r| run.push(r));
    run
}

#[test]
fn every_event_is_read_back_as_it_was_written_on_one_line() {
    let records = records();
    let mut names: Vec<&str> = records.iter().map(|r| name(&r.event)).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 13, "every sort of event is in the sample: {names:?}");
    for record in &records {
        let text = line(record);
        assert!(!text.contains('\n'), "{text}");
        assert!(text.contains(&format!("\"{}\":", name(&record.event))), "{text}");
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap_or_else(|e| panic!("{text}: {e}")), *record);
    }
}

#[test]
fn a_log_reads_as_the_run_that_was_built_event_by_event() {
    let records = records();
    for length in 1..=records.len() {
        let run = Run::parse(&log(&records[..length])).unwrap_or_else(|e| panic!("{length}: {e}"));
        assert_eq!(run, built(&records[..length]));
    }
}

#[test]
fn a_run_holds_what_its_events_said() {
    let run = built(&records());
    assert_eq!(run.plan, plan());
    assert_eq!(run.phases.iter().map(|p| p.0).collect::<Vec<_>>().len(), 6);
    assert!(run.phases.is_sorted());
    let due: Vec<f64> = run.samples[0].iter().map(|s| s.due).collect();
    assert_eq!(due, [0.1, 0.2, 0.3], "by due time, though one came late");
    assert_eq!(run.steps[0].targets, [target()]);
    assert!(run.steps[1].began.is_none());
    let (from, to) = run.fault_window().expect("a fault was injected");
    assert_eq!((Some(from), Some(to)), (run.steps[0].began, run.steps[0].ended));
    assert_eq!(run.receipts.len(), 3, "the last word of each fault");
    let Measured::Packets(count) = &run.receipts[1].1.measured[0] else { panic!("{:?}", run.receipts[1]) };
    assert_eq!(*count, PacketCount::default());
    assert_eq!(run.changes[0].reverted.as_ref().and_then(|r| r.2.clone()).as_deref(), Some("still frozen"));
    assert_eq!(
        run.aborted.as_ref().map(|a| a.1.as_str()),
        Some("front/page was bad for 5s"),
        "the first reason stands"
    );
    assert_eq!(run.ended, Some((ExitCode::NotRestored, vec!["cgroup a is frozen".into()])));
}

#[test]
fn a_fault_still_in_force_reaches_to_the_last_event() {
    let records = records();
    let end = records.iter().position(|r| matches!(r.event, Event::StepEnded { .. })).expect("there");
    let run = built(&records[..end]);
    assert_eq!(run.fault_window().map(|w| w.1), Some(run.last_event));
    let before = records.iter().position(|r| matches!(r.event, Event::StepBegan { .. })).expect("there");
    assert_eq!(built(&records[..before]).fault_window(), None);
}

#[test]
fn a_last_line_that_was_cut_anywhere_is_left_out() {
    let records = records();
    let whole = log(&records[..records.len() - 1]);
    let last = line(&records[records.len() - 1]);
    let without = built(&records[..records.len() - 1]);
    for cut in 0..last.len() {
        let run = Run::parse(&format!("{whole}{}", &last[..cut])).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
        assert_eq!(run, without, "cut at {cut}");
    }
    assert_eq!(Run::parse(&format!("{whole}{last}")).expect("whole"), built(&records));
}

#[test]
fn a_broken_line_that_is_not_the_last_is_an_error_with_its_number() {
    let records = records();
    let text = format!("{}\n\n{{\"at\":1}}\n{}", line(&records[0]), log(&records[1..3]));
    match Run::parse(&text) {
        Err(LogError::Line { line: 3, why }) => assert!(!why.is_empty()),
        other => panic!("{other:?}"),
    }
    // A whole last line that is no event was not cut; it is wrong.
    let text = format!("{}nonsense\n", log(&records[..2]));
    assert!(matches!(Run::parse(&text), Err(LogError::Line { line: 3, .. })));
}

#[test]
fn a_log_without_its_beginning_is_refused() {
    let records = records();
    for text in [String::new(), "\n\n".into(), log(&records[1..]), line(&records[0])[..40].to_owned()] {
        assert!(matches!(Run::parse(&text), Err(LogError::NoStart)), "{text}");
    }
}

#[test]
fn events_about_things_that_the_plan_does_not_have_do_no_harm() {
    let mut run = built(&records()[..1]);
    for event in [
        Event::Sample(Sample { probe: 99, due: 0.0, outcome: Outcome::Good(1.0) }),
        Event::StepBegan { step: 99, targets: Vec::new() },
        Event::StepInForce { step: 99 },
        Event::StepEnded { step: 99 },
        Event::Reverted { change: 99, note: String::new(), error: None },
    ] {
        run.push(&Record { at: 0.0, event });
    }
    assert_eq!(run, built(&records()[..1]));
}
