//! Runs to test the reports with: written as events, through the log and back, as a real one.

mod log;

use std::path::Path;

use firedrill_model::change::{Action, Change, Filter, Rule, Way};
use firedrill_model::event::{Bad, Event, Outcome, Phase};
use firedrill_model::facts::{CgroupRef, Interface, NetnsRef};
use firedrill_model::fault::Fault;
use firedrill_model::file::Steady;
use firedrill_model::log::Run;
use firedrill_model::receipt::{DelayHistogram, Effect, Measured, PacketCount, Receipt};
use firedrill_model::run::{AbortPlan, ComponentPlan, PickPlan, ProbePlan, RunPlan, StepPlan, TargetPlan};
use firedrill_model::target::TargetSpec;
use firedrill_model::units::{Percent, Span};
use firedrill_model::verdict::{Containment, ExitCode, Expectation, Judgement, Outage, Radius, Verdict};

use self::log::Log;

/// Probes of the sample system, by index.
const CHECKOUT: usize = 0;
const CATALOG: usize = 1;
const LOGIN: usize = 2;
const STORE: usize = 3;

/// Every sample with its name.
pub fn all() -> Vec<(&'static str, Run)> {
    vec![
        ("refuted", shared_store()),
        ("held", lost_web()),
        ("invalid", no_effect()),
        ("aborted", left_over()),
        ("cut", cut()),
        ("inject", inject()),
    ]
}

/// A "redundant" session store whose two replicas share one datastore.
pub fn shared_store() -> Run {
    let mut plan =
        plan("lose-one-store", "The session store survives the loss of one replica", &["session", "datastore"]);
    plan.steps = vec![
        step(0, 10, "session/session-a", "pause: {}"),
        step(12, 10, "datastore/main", "latency: {delay: 80ms, jitter: 10ms}"),
    ];
    plan.picks =
        vec![PickPlan { name: "victim".into(), component: "session".into(), chosen: vec!["session-a".into()], of: 2 }];
    let mut log = Log::new(plan);
    log.phase(0.0, Phase::Baseline).probes(0.0, 62.0, |probe, due| match (probe, due) {
        (LOGIN, 16.3..24.0) => bad(1000.0, "timeout after 1s"),
        (CHECKOUT, 17.1..24.2) => bad(12.0, "status 503, not 200"),
        (STORE, 27.0..37.0) => good(probe, due, 81.0),
        (LOGIN, 27.0..37.0) => good(probe, due, 166.0),
        (CHECKOUT, 27.0..37.0) => good(probe, due, 170.0),
        (CATALOG, 30.0..31.0) => Outcome::Missed("the host had no time for it".into()),
        _ => good(probe, due, 0.0),
    });
    log.fault(15.0, 0, "pause", vec![Change::Freeze { cgroup: cgroup("shop/session-a") }]);
    log.phase(15.02, Phase::Hold).receipt(20.0, 0, frozen(4));
    log.undo(25.0, 0, "thawed").receipt(25.0, 0, frozen(10)).at(25.01, Event::StepEnded { step: 0 });
    log.fault(27.0, 1, "latency", latency_changes());
    log.receipt(32.0, 1, delayed(211)).phase(37.0, Phase::Revert).receipt(37.0, 1, delayed(408));
    log.undo(37.02, 1, "as it was before").at(37.03, Event::StepEnded { step: 1 });
    log.phase(37.05, Phase::Recovery).phase(62.0, Phase::Verdict);
    log.note(14.8, "sockets of session-a were opened before it was moved to its cgroup; they are not delayed");
    let probes = vec![
        log.judge(
            LOGIN,
            true,
            Verdict::Broken,
            "35 % bad (at least 32 %), where at most 1 % is promised",
            Some(outage(1.3, 7.65)),
        ),
        log.judge(
            CHECKOUT,
            true,
            Verdict::Degraded,
            "32 % bad (at least 29 %), where at most 1 % is promised",
            Some(outage(2.1, 7.1)),
        ),
        log.judge(CATALOG, true, Verdict::Inconclusive, "20 samples were not taken, so at most 1 % is not shown", None),
        log.judge(STORE, false, Verdict::Degraded, "p95 88 ms, where at most 50 ms is promised", None),
    ];
    log.judged(
        Judgement {
            verdict: Verdict::Broken,
            finding: "Losing session/session-a took the login of all users down for 7.7 s: the two session replicas \
                      are not redundant, they share the datastore."
                .into(),
            expectations: vec![
                expect("login/login holds, without an outage", Verdict::Broken, "35 % bad for 7.7 s"),
                expect("front/checkout holds, without an outage", Verdict::Degraded, "32 % bad for 7.1 s"),
                expect("catalog/list holds", Verdict::Inconclusive, "20 of 440 samples were not taken"),
                expect("every probe is steady again within 30s", Verdict::Held, "the slowest took 40 ms"),
            ],
            probes,
            radius: radius(&["session", "datastore"], &["login", "front", "datastore"], &["login", "front"], &[]),
            unproven: vec![
                "Nothing is known about web and session: they have no probe.".into(),
                "catalog/list was not shown to hold: 20 samples of its fault window are missing.".into(),
            ],
        },
        ExitCode::Finding,
        &[],
    )
}

/// One of three web replicas stopped; users hardly notice.
pub fn lost_web() -> Run {
    let mut plan = plan("lose-one-web", "Checkout survives the loss of one web replica", &["web"]);
    plan.steps = vec![step(0, 20, "web/web-2", "kill: {keep: true}")];
    plan.outage = Span::from_secs(5);
    let mut log = Log::new(plan);
    log.phase(0.0, Phase::Baseline).probes(0.0, 40.0, |probe, due| match (probe, due) {
        (CHECKOUT, 15.2..16.05) => bad(3.0, "connection refused"),
        _ => good(probe, due, 0.0),
    });
    let victim = firedrill_model::change::Victim::Cgroup(cgroup("shop/web-2"));
    log.fault(15.0, 0, "kill", vec![Change::Kill { victim, signal: 9, keep: true, allow: vec![] }])
        .phase(15.01, Phase::Hold);
    let count = firedrill_model::receipt::KillCount {
        signalled: 2,
        gone: 2,
        slowest_end: Some(Span::from_millis(3)),
        downtime: None,
        again: 0,
    };
    log.receipt(35.0, 0, receipt_of("kill: {keep: true}", "web/web-2", vec![Measured::Kill(count)]));
    log.phase(35.0, Phase::Revert).at(35.01, Event::StepEnded { step: 0 });
    log.phase(35.02, Phase::Recovery).phase(40.0, Phase::Verdict);
    let probes = vec![
        log.judge(
            CHECKOUT,
            true,
            Verdict::Held,
            "0.4 % bad after the permitted outage, at most 0.9 % (limit 1 %)",
            Some(outage(0.2, 0.85)),
        ),
        log.judge(CATALOG, true, Verdict::Held, "0 % bad, at most 0.7 % (limit 1 %)", None),
        log.judge(LOGIN, true, Verdict::Held, "0 % bad, at most 0.7 % (limit 1 %)", None),
        log.judge(STORE, true, Verdict::Held, "0 % bad, at most 0.7 % (limit 1 %)", None),
    ];
    log.judged(
        Judgement {
            verdict: Verdict::Held,
            finding: "Checkout survived the loss of web/web-2: users were back after 850 ms, and nothing else moved."
                .into(),
            expectations: vec![
                expect(
                    "front/checkout holds, after an outage of at most 5s",
                    Verdict::Held,
                    "outage 850 ms, then 0 % bad",
                ),
                expect("every probe is steady again within 30s", Verdict::Held, "all were at once"),
            ],
            probes,
            radius: radius(&["web"], &[], &[], &[]),
            unproven: vec!["Nothing is known about web and session: they have no probe.".into()],
        },
        ExitCode::Held,
        &[],
    )
}

/// A fault that matched nothing.
pub fn no_effect() -> Run {
    let mut plan = plan("deaf-fault", "Nothing is behind this port", &["datastore"]);
    plan.steps = vec![step(0, 15, "datastore/main", "latency: {delay: 80ms, jitter: 10ms}")];
    let mut log = Log::new(plan);
    log.phase(0.0, Phase::Baseline).probes(0.0, 32.0, |probe, due| good(probe, due, 0.0));
    log.fault(15.0, 0, "latency", latency_changes());
    log.phase(15.1, Phase::Hold).phase(30.0, Phase::Revert);
    log.receipt(
        30.0,
        0,
        receipt_of(
            "latency: {delay: 80ms, jitter: 10ms}",
            "datastore/main",
            vec![Measured::Packets(PacketCount { matched: 41, ..PacketCount::default() })],
        ),
    );
    log.undo(30.1, 0, "as it was before").at(30.1, Event::StepEnded { step: 0 });
    log.phase(30.2, Phase::Recovery).phase(32.0, Phase::Verdict);
    let probes = (0..4).map(|p| log.judge(p, p != STORE, Verdict::Held, "0 % bad", None)).collect();
    log.judged(
        Judgement {
            verdict: Verdict::Invalid,
            finding:
                "The latency on datastore/main had no effect: 41 packets matched and none was delayed, so this run \
                      shows nothing."
                    .into(),
            expectations: vec![expect(
                "every fault has an effect",
                Verdict::Invalid,
                "latency on datastore/main had none",
            )],
            probes,
            radius: radius(&["datastore"], &[], &[], &["datastore"]),
            unproven: vec!["Whether anything depends on the datastore's speed.".into()],
        },
        ExitCode::Unproven,
        &[],
    )
}

/// Ended by its rule, and one change could not be undone.
pub fn left_over() -> Run {
    let mut plan = plan("slow-store", "A slow datastore only slows checkout down", &["datastore"]);
    plan.steps = vec![step(0, 60, "datastore/main", "latency: {delay: 80ms, jitter: 10ms}")];
    plan.abort = vec![AbortPlan { probe: CHECKOUT, bad_for: Span::from_secs(5) }];
    let mut log = Log::new(plan);
    log.phase(0.0, Phase::Baseline).probes(0.0, 28.0, |probe, due| match (probe, due) {
        (CHECKOUT | LOGIN, 15.0..22.0) => bad(1000.0, "timeout after 1s"),
        _ => good(probe, due, 0.0),
    });
    log.fault(15.0, 0, "latency", latency_changes()).phase(15.1, Phase::Hold);
    log.at(
        21.0,
        Event::Aborted { why: "front/checkout was bad for 5s on end (rule `bad_for: 5s`)".into(), invalid: false },
    );
    log.phase(21.0, Phase::Revert).receipt(21.0, 0, delayed(77));
    log.undo(21.1, 0, "as it was before");
    let error = "Permission denied (os error 13); write 0 to it by hand".to_owned();
    log.at(21.2, Event::Reverted { change: 2, note: String::new(), error: Some(error) });
    log.at(21.2, Event::StepEnded { step: 0 }).phase(21.3, Phase::Recovery).phase(28.0, Phase::Verdict);
    let probes = vec![
        log.judge(
            CHECKOUT,
            true,
            Verdict::Aborted,
            "bad for 5s on end",
            Some(Outage { censored: true, ..outage(0.05, 6.0) }),
        ),
        log.judge(LOGIN, true, Verdict::Broken, "100 % bad", Some(outage(0.1, 6.95))),
    ];
    log.judged(
        Judgement {
            verdict: Verdict::Aborted,
            finding: "Ended by its rule: front/checkout was bad for 5s on end (rule `bad_for: 5s`) while the datastore was slow.".into(),
            expectations: vec![expect("front/checkout holds, without an outage", Verdict::Aborted, "the run ended before its time")],
            probes,
            radius: radius(&["datastore"], &["front", "login", "datastore"], &["front", "login"], &[]),
            unproven: vec!["How long checkout would have been out: the fault ended 54 s early.".into()],
        },
        ExitCode::NotRestored,
        &["net.ipv4.conf.lo.accept_local = 1 in /run/netns/fd-shop-db (was 0)"],
    )
}

/// A log that stops in mid-fault.
pub fn cut() -> Run {
    let mut run = shared_store();
    let until = 18.0;
    run.samples.iter_mut().for_each(|s| s.retain(|x| x.due < until));
    run.phases.retain(|p| p.1 < until);
    run.changes.retain(|c| c.applied < until);
    run.changes.iter_mut().for_each(|c| c.reverted = None);
    run.steps[0].ended = None;
    run.steps[1] = Default::default();
    run.receipts.clear();
    (run.judgement, run.ended, run.last_event) = (None, None, until);
    run
}

/// An ad-hoc `inject … --watch`.
pub fn inject() -> Run {
    let mut plan = plan("inject", "latency 80ms ± 10ms on netns blue", &[]);
    plan.judged = false;
    plan.system = "ad hoc".into();
    plan.components = vec![component("watched", true, &[], &[], &[0])];
    plan.probes = vec![probe("watched/http", "watched")];
    plan.steps = vec![step(0, 10, "datastore/main", "latency: {delay: 80ms, jitter: 10ms}")];
    let mut log = Log::new(plan);
    log.phase(0.0, Phase::Baseline)
        .probes(0.0, 15.0, |p, due| good(p, due, if (3.0..13.0).contains(&due) { 80.0 } else { 0.0 }));
    log.fault(3.0, 0, "latency", latency_changes()).phase(3.1, Phase::Hold);
    log.receipt(13.0, 0, delayed(500)).phase(13.0, Phase::Revert).undo(13.1, 0, "as it was before");
    log.at(13.1, Event::StepEnded { step: 0 }).phase(13.2, Phase::Recovery).phase(15.0, Phase::Verdict);
    let probes = vec![log.judge(0, false, Verdict::Degraded, "p95 92 ms, before 5.4 ms", None)];
    let radius = Radius { components: 1, ..radius(&[], &["watched"], &[], &[]) };
    log.judged(
        Judgement {
            verdict: Verdict::Held,
            finding:
                "The latency worked: 500 packets delayed by 80 ms on average; watched/http went from 5.4 ms to 92 ms."
                    .into(),
            expectations: Vec::new(),
            probes,
            radius: Radius { unprobed: Vec::new(), ..radius },
            unproven: Vec::new(),
        },
        ExitCode::Held,
        &[],
    )
}

/// Compares with a file under `golden/`; with `BLESS=1` in the environment it writes the file instead.
pub fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/render/golden").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).expect("the golden file can be written");
        return;
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(wanted == text, "{} differs (BLESS=1 accepts it); it is now:\n{text}", path.display());
}

fn plan(name: &str, title: &str, radius: &[&str]) -> RunPlan {
    let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    RunPlan {
        experiment: name.into(),
        title: title.into(),
        system: "shop".into(),
        components: vec![
            component("front", true, &["web", "catalog"], &["lb"], &[CHECKOUT]),
            component("web", false, &["login"], &["web-1", "web-2", "web-3"], &[]),
            component("catalog", false, &[], &["catalog"], &[CATALOG]),
            component("login", true, &["session"], &["login"], &[LOGIN]),
            component("session", false, &["datastore"], &["session-a", "session-b"], &[]),
            component("datastore", false, &[], &["main"], &[STORE]),
        ],
        probes: vec![
            probe("front/checkout", "front"),
            probe("catalog/list", "catalog"),
            probe("login/login", "login"),
            probe("datastore/ping", "datastore"),
        ],
        baseline: Span::from_secs(15),
        baseline_auto: true,
        picks: Vec::new(),
        steps: Vec::new(),
        radius: names(radius),
        outage: Span::default(),
        healed: Span::from_secs(30),
        abort: Vec::new(),
        deadline: Span::from_secs(180),
        seed: 7,
        judged: true,
    }
}

fn component(name: &str, user_facing: bool, needs: &[&str], replicas: &[&str], probes: &[usize]) -> ComponentPlan {
    let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    ComponentPlan {
        name: name.into(),
        user_facing,
        depends_on: names(needs),
        replicas: names(replicas),
        probes: probes.to_vec(),
    }
}

fn probe(name: &str, component: &str) -> ProbePlan {
    let steady = Steady {
        bad: Percent::new(1.0).expect("valid"),
        p95: Some(Span::from_millis(if component == "datastore" { 50 } else { 200 })),
        ..Steady::default()
    };
    ProbePlan {
        name: name.into(),
        component: component.into(),
        kind: "http".into(),
        describe: format!("GET http://10.77.0.1:8080/{component} is 200"),
        every: Span::from_millis(50),
        timeout: Span::from_secs(1),
        steady,
        netns: Some("fd-shop-user".into()),
        needs: 299,
    }
}

/// A fault as files write it, in flow style: `latency: {delay: 80ms}`.
pub fn fault(text: &str) -> Fault {
    let (name, fields) = text.split_once(": ").expect("name: fields");
    let mut map = serde_json::Map::new();
    for field in fields.trim_matches(['{', '}']).split(", ").filter(|f| !f.is_empty()) {
        let (key, value) = field.split_once(": ").expect("key: value");
        let value = if value == "true" { serde_json::Value::Bool(true) } else { value.into() };
        map.insert(key.into(), value);
    }
    serde_json::from_value(serde_json::json!({ name: map })).expect("a fault")
}

fn step(at: u64, lasts: u64, target: &str, what: &str) -> StepPlan {
    let spec = TargetSpec { cgroup: Some(target.replace("session/", "shop/")), ..TargetSpec::default() };
    let component = target.split('/').next().map(str::to_owned);
    StepPlan {
        at: Span::from_secs(at),
        lasts: Span::from_secs(lasts),
        targets: vec![TargetPlan { name: target.into(), component, spec: spec.clone(), ..TargetPlan::of(spec) }],
        faults: vec![fault(what)],
    }
}

fn cgroup(path: &str) -> CgroupRef {
    CgroupRef { path: format!("/sys/fs/cgroup/{path}"), id: 4711 }
}

/// The changes of a latency on loopback.
pub fn latency_changes() -> Vec<Change> {
    let netns = NetnsRef { path: "/run/netns/fd-shop-db".into(), inode: 4_026_532_201 };
    let interface = Interface { index: 1, name: "lo".into(), loopback: true, ethernet: true };
    let action = Action::Delay {
        delay: Span::from_millis(80),
        jitter: Span::from_millis(10),
        distribution: Default::default(),
        correlation: Default::default(),
        reorder: false,
    };
    let rule = Rule {
        interface: Some(interface.clone()),
        sockets: None,
        ways: vec![Way::Egress],
        filter: Filter::default(),
        spare: vec![],
        action,
        then: vec![],
    };
    vec![
        Change::Sysctl { netns: netns.clone(), key: "net.ipv4.conf.lo.accept_local".into(), value: "1".into() },
        Change::DelayLine { netns: netns.clone(), interface: interface.clone(), direction: Way::Egress },
        Change::Attach { netns: netns.clone(), interface, direction: Way::Egress },
        Change::Rule { netns, rule },
    ]
}

fn receipt_of(what: &str, target: &str, measured: Vec<Measured>) -> Receipt {
    fault(what).receipt(target, measured)
}

fn frozen(secs: u64) -> Receipt {
    let state = Measured::State { in_force: true, seen: "frozen 1".into(), held: Span::from_secs(secs) };
    receipt_of("pause: {}", "session/session-a", vec![state])
}

fn delayed(n: u64) -> Receipt {
    let mut hist = DelayHistogram {
        count: n,
        sum_ns: n * 80_120_000,
        min_ns: 70_040_000,
        max_ns: 90_310_000,
        ..Default::default()
    };
    // Buckets of a sixteenth of an octave between 70 and 90 ms, with a remainder in the middle.
    let edges: Vec<u64> = (0..7).map(|i| (67_108_864.0 * 2f64.powf(f64::from(i) / 16.0)) as u64).collect();
    let weights = [8, 15, 17, 18, 17, 16, 9];
    hist.buckets = edges.into_iter().zip(weights.map(|w| n * w / 100)).collect();
    let rest = n - hist.buckets.iter().map(|b| b.1).sum::<u64>();
    hist.buckets[3].1 += rest;
    let count = PacketCount { matched: n + 3, delayed: n, bytes: n * 412, applied: hist, ..PacketCount::default() };
    let receipt = receipt_of("latency: {delay: 80ms, jitter: 10ms}", "datastore/main", vec![Measured::Packets(count)]);
    assert_eq!(receipt.effect, Effect::Effective);
    receipt
}

/// A good answer: a few milliseconds with noise and a rare slow one, plus what the fault adds.
fn good(probe: usize, due: f64, added: f64) -> Outcome {
    let seed = ((due * 1000.0) as u64 + 1).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(probe as u64 * 977);
    let unit = ((seed ^ (seed >> 29)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / f64::from(1 << 24);
    let base = [4.0, 2.2, 3.1, 0.6][probe];
    let slow = if unit > 0.985 { 6.0 } else { 1.0 };
    Outcome::Good(((base * (0.8 + unit * 0.6) * slow + added * (0.9 + 0.2 * unit)) * 1000.0).round() / 1000.0)
}

fn bad(ms: f64, why: &str) -> Outcome {
    Outcome::Bad(Bad { ms, why: why.into() })
}

fn outage(impact: f64, lasted: f64) -> Outage {
    let span = |s: f64| Span(std::time::Duration::from_millis((s * 1000.0) as u64));
    Outage { impact: span(impact), lasted: span(lasted), error: span(1.05), censored: false }
}

fn expect(what: &str, verdict: Verdict, reason: &str) -> Expectation {
    Expectation { what: what.into(), verdict, reason: reason.into() }
}

fn radius(declared: &[&str], observed: &[&str], escapes: &[&str], over: &[&str]) -> Radius {
    let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    Radius {
        declared: names(declared),
        observed: names(observed),
        escapes: names(escapes),
        over_predicted: names(over),
        unprobed: names(&["web", "session"]),
        components: 6,
        containment: if escapes.is_empty() { Containment::Unproven } else { Containment::Leaked },
    }
}
