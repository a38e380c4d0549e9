//! Faults on systemd's units, through the real program: in a container that systemd runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use firedrill_tests::program::Outcome;
use firedrill_tests::skip;
use firedrill_tests::systemd::{Machine, missing, web};

const WEB: &str = "http://127.0.0.1:8080/";
const NEAR: &str = "http://127.0.0.1:8081/";
const LAZY: &str = "http://127.0.0.1:8090/";
/// Time for a program to begin, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// A service that is restarted after 400 ms, and its neighbour on the same network.
fn two_services() -> Machine {
    let machine = Machine::boot(&[
        ("web.service", &web(8080, "Restart=always\nRestartSec=400ms")),
        ("near.service", &web(8081, "")),
        ("idle.service", &web(8082, "")),
    ]);
    let machine = machine.expect("a container");
    machine.start(&["web", "near"]).expect("services");
    machine
}

/// The only receipt of a run.
fn receipt(outcome: &Outcome) -> (&str, &str) {
    let receipt = &outcome.json["receipts"][0];
    (receipt["effect"].as_str().unwrap_or_default(), receipt["says"].as_str().unwrap_or_default())
}

/// The share of bad answers to the watched URL in a phase.
fn bad(outcome: &Outcome, phase: &str) -> f64 {
    outcome.probe("watched/url")[phase]["bad_share"].as_f64().unwrap_or(f64::NAN)
}

/// Whether the watched URL was down during the fault: every answer is bad but those that were sent before the unit had
/// stopped, which takes systemd some 100 ms, or a sample.
fn is_down(outcome: &Outcome) -> bool {
    let fault = &outcome.probe("watched/url")["fault"];
    matches!((fault["bad"].as_u64(), fault["taken"].as_u64()), (Some(bad), Some(taken)) if bad > 0 && bad + 2 >= taken)
}

/// The median latency (ms) of the watched URL in a phase.
fn median(outcome: &Outcome, phase: &str) -> f64 {
    outcome.probe("watched/url")[phase]["p50_ms"].as_f64().unwrap_or(f64::NAN)
}

/// Asserts that a fault was refused as bad usage, before there was a run, with these words.
fn refused(machine: &Machine, args: &[&str], words: &[&str]) {
    let front = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", "firedrill", "inject"];
    let done = machine.command(&[&front, args, &["--for", "1s"]].concat()).output().expect("started");
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!((done.status.code(), done.stdout.as_slice()), (Some(2), &b""[..]), "{told}");
    for word in words {
        assert!(told.contains(word), "{word}: {told}");
    }
}

#[test]
fn a_stopped_unit_is_down_for_the_duration_and_up_again_afterwards() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = two_services();
    let before = machine.property("near.service", "MainPID").expect("a process");
    let outcome =
        machine.drill(&["inject", "stop", "--unit", "web.service", "--for", "2s", "--watch", WEB]).expect("a run");
    outcome.expect("held", 0);
    assert_eq!(receipt(&outcome).0, "effective", "{}", outcome.told());
    assert_eq!(bad(&outcome, "baseline"), 0.0, "{}", outcome.told());
    assert!(is_down(&outcome), "{}", outcome.told());
    assert_ne!(outcome.probe("watched/url")["healed"], "not", "{}", outcome.told());
    assert_eq!(machine.state("web.service"), "active");
    assert_eq!(
        machine.property("near.service", "MainPID").expect("a process"),
        before,
        "the neighbour was not touched"
    );
}

#[test]
fn what_cannot_be_stopped_and_started_again_is_refused() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = two_services();
    refused(&machine, &["stop", "--unit", "idle"], &["inactive", "would change nothing"]);
    machine.run(&["systemd-run", "--unit=made.service", "sleep", "600"]).expect("a transient unit");
    refused(&machine, &["stop", "--unit", "made"], &["transient", "pause"]);
    refused(&machine, &["stop", "--unit", "timers.target"], &["is a target"]);
    refused(&machine, &["stop", "--unit", "wbe"], &["`wbe.service`", "did you mean `web`"]);
    refused(&machine, &["stop", "--unit", "nothing-like-it"], &["`nothing-like-it.service`"]);
    assert_eq!((machine.state("web.service").as_str(), machine.state("made.service").as_str()), ("active", "active"));
}

#[test]
fn units_that_keep_the_host_in_order_are_refused() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = Machine::boot(&[("ssh.service", &web(8022, ""))]).expect("a container");
    machine.start(&["dbus.service", "ssh.service"]).expect("services");
    for unit in
        ["dbus.service", "dbus.socket", "systemd-journald.service", "systemd-journald.socket", "ssh", "init.scope"]
    {
        for fault in ["stop", "pause", "kill"] {
            refused(&machine, &[fault, "--unit", unit], &["protected"]);
        }
    }
    assert_eq!((machine.state("dbus.service").as_str(), machine.state("ssh.service").as_str()), ("active", "active"));
}

#[test]
fn a_socket_does_not_bring_its_service_back_and_listens_again_afterwards() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = Machine::boot(&[
        // Without the socket it cannot run at all: the socket must be there first.
        ("lazy.service", &web(8090, "").replace("server.py 8090", "server.py inherited")),
        ("lazy.socket", "[Socket]\nListenStream=127.0.0.1:8090\n"),
        ("lazy.timer", "[Timer]\nOnActiveSec=1h\n"),
    ]);
    let machine = machine.expect("a container");
    machine.start(&["lazy.socket", "lazy.service"]).expect("a service");
    let outcome = machine.drill(&["inject", "stop", "--unit", "lazy", "--for", "2s", "--watch", LAZY]).expect("a run");
    outcome.expect("held", 0);
    assert_eq!(receipt(&outcome).0, "effective", "{}", outcome.told());
    assert_eq!(bad(&outcome, "baseline"), 0.0, "{}", outcome.told());
    assert!(is_down(&outcome), "{}", outcome.told());
    assert_eq!((machine.state("lazy.socket").as_str(), machine.state("lazy.service").as_str()), ("active", "active"));
    assert_eq!(machine.state("lazy.timer"), "inactive", "a trigger that was not in use is not started");
    assert_ne!(outcome.probe("watched/url")["healed"], "not", "{}", outcome.told());
}

#[test]
fn units_that_systemd_stops_with_it_are_started_again_too() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = Machine::boot(&[
        ("store.service", &web(8080, "")),
        ("app.service", &format!("[Unit]\nRequires=store.service\nAfter=store.service\n{}", web(8081, ""))),
        ("front.service", &format!("[Unit]\nBindsTo=app.service\nAfter=app.service\n{}", web(8082, ""))),
        ("side.service", &format!("[Unit]\nPartOf=store.service\n{}", web(8083, ""))),
    ]);
    let machine = machine.expect("a container");
    machine.start(&["front.service"]).expect("services");
    let outcome =
        machine.drill(&["inject", "stop", "--unit", "store", "--for", "1s", "--watch", "http://127.0.0.1:8082/"]);
    let outcome = outcome.expect("a run");
    outcome.expect("held", 0);
    assert!(is_down(&outcome), "{}", outcome.told());
    for unit in ["store.service", "app.service", "front.service"] {
        assert_eq!(machine.state(unit), "active", "{unit}");
    }
    assert_eq!(machine.state("side.service"), "inactive", "it was so before");
}

#[test]
fn a_limit_of_starts_does_not_keep_a_unit_down() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let limit = "[Unit]\nStartLimitBurst=1\nStartLimitIntervalSec=1h\n";
    let machine = Machine::boot(&[
        ("web.service", &format!("{limit}{}", web(8080, ""))),
        // systemd forgets a stopped unit, and how often it was started, unless another one names it.
        ("near.service", &format!("[Unit]\nWants=web.service\n{}", web(8081, ""))),
    ]);
    let machine = machine.expect("a container");
    machine.start(&["near"]).expect("services");
    let outcome = machine.drill(&["inject", "stop", "--unit", "web", "--for", "1s"]).expect("a run");
    outcome.expect("held", 0);
    assert_eq!(machine.state("web.service"), "active");
}

#[test]
fn a_kill_measures_how_long_systemd_takes_to_bring_it_back() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = two_services();
    let outcome = machine.drill(&["inject", "kill", "--unit", "web", "--for", "2s", "--watch", WEB]).expect("a run");
    outcome.expect("held", 0);
    assert_eq!(outcome.json["changes"]["irreversible"], 1, "{}", outcome.told());
    let lines = outcome.json["receipts"][0]["lines"].as_array().expect("lines");
    let downtime = lines.iter().find(|line| line["what"] == "downtime").expect("downtime")["applied"].as_str();
    let millis: u64 = downtime.and_then(|d| d.strip_suffix("ms")?.parse().ok()).expect("less than a second");
    assert!((400..1000).contains(&millis), "RestartSec=400ms: {millis} ms");
    assert_eq!(machine.property("web.service", "NRestarts").expect("a number"), "1");
    assert_eq!(machine.state("web.service"), "active");
    let share = bad(&outcome, "fault");
    assert!(share > 0.05 && share < 0.7, "{}", outcome.told());
}

#[test]
fn a_unit_that_is_killed_whenever_it_comes_back_is_down_and_is_given_back_at_the_end() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    // Two restarts, then systemd gives up.
    let limit = "[Unit]\nStartLimitBurst=3\nStartLimitIntervalSec=1h\n";
    let unit = format!("{limit}{}", web(8080, "Restart=always\nRestartSec=100ms"));
    let machine = Machine::boot(&[("web.service", &unit), ("once.service", &web(8081, ""))]).expect("a container");
    machine.start(&["web", "once"]).expect("services");
    let outcome =
        machine.drill(&["inject", "kill", "--keep", "--unit", "web", "--for", "2s", "--watch", WEB]).expect("a run");
    outcome.expect("held", 0);
    assert!(receipt(&outcome).1.contains("2 successors killed too"), "{}", outcome.told());
    assert!(bad(&outcome, "fault") > 0.8, "{}", outcome.told());
    machine.wait_for("web.service", "active", PATIENCE).expect("systemd had given up, and it was started");
    // Nobody supervises this one, so nobody brings it back.
    machine.drill(&["inject", "kill", "--keep", "--unit", "once", "--for", "500ms"]).expect("a run").expect("held", 0);
    assert_eq!(machine.state("once.service"), "failed");
}

#[test]
fn a_paused_unit_answers_late_and_is_the_same_process_afterwards() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = two_services();
    let before = machine.property("web.service", "MainPID").expect("a process");
    let outcome = machine.drill(&["inject", "pause", "--unit", "web", "--for", "2s", "--watch", WEB]).expect("a run");
    outcome.expect("held", 0);
    let (effect, says) = receipt(&outcome);
    assert!(effect == "effective" && says.starts_with("paused for 2s"), "{}", outcome.told());
    assert!(median(&outcome, "fault") > 300.0 || bad(&outcome, "fault") > 0.5, "{}", outcome.told());
    assert!(median(&outcome, "baseline") < 100.0, "{}", outcome.told());
    assert_eq!(machine.property("web.service", "MainPID").expect("a process"), before);
    let group =
        format!("/sys/fs/cgroup{}/cgroup.events", machine.property("web.service", "ControlGroup").expect("a group"));
    assert!(machine.run(&["cat", &group]).expect("events").contains("frozen 0"));
}

#[test]
fn latency_on_a_unit_slows_its_answers_on_loopback_and_not_its_neighbours() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = two_services();
    let inject = ["inject", "latency", "--unit", "web.service", "--delay", "50ms", "--for", "2s", "--watch"];
    let own = machine.drill(&[&inject[..], &[WEB]].concat()).expect("a run");
    own.expect("held", 0);
    assert_eq!(receipt(&own).0, "effective", "{}", own.told());
    assert!(median(&own, "fault") > 50.0 + median(&own, "baseline"), "{}", own.told());
    assert!(median(&own, "recovery") < 50.0, "{}", own.told());

    let near = machine.drill(&[&inject[..], &[NEAR]].concat()).expect("a run");
    near.expect("inconclusive", 3);
    assert_eq!(receipt(&near).0, "armed-no-traffic", "{}", near.told());
    assert!(median(&near, "fault") < 50.0, "{}", near.told());
}

#[test]
fn loss_on_a_unit_drops_its_packets_and_not_its_neighbours() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = two_services();
    let inject = ["inject", "loss", "--unit", "web.service", "--percent", "30%", "--for", "3s", "--watch"];
    let own = machine.drill(&[&inject[..], &[WEB]].concat()).expect("a run");
    own.expect("held", 0);
    let (effect, says) = receipt(&own);
    let numbers: Vec<f64> = says.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let &[dropped, all] = numbers.as_slice() else { panic!("{says}") };
    // Five standard deviations of a binomial number.
    let spread = 5.0 * (0.3_f64 * 0.7 / all).sqrt();
    assert!(effect == "effective" && all >= 30.0, "{}", own.told());
    assert!((dropped / all - 0.3).abs() < spread, "{dropped} of {all}: {}", own.told());

    let near = machine.drill(&[&inject[..], &[NEAR]].concat()).expect("a run");
    near.expect("inconclusive", 3);
    assert_eq!((receipt(&near).0, bad(&near, "fault")), ("armed-no-traffic", 0.0), "{}", near.told());
}

#[test]
fn a_plan_names_the_unit_its_triggers_and_what_stops_with_it_and_touches_nothing() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let machine = Machine::boot(&[
        ("web.service", &web(8080, "")),
        ("web.timer", "[Timer]\nOnActiveSec=1h\n"),
        ("app.service", &format!("[Unit]\nRequires=web.service\nAfter=web.service\n{}", web(8081, ""))),
    ]);
    let machine = machine.expect("a container");
    machine.start(&["web.timer", "app.service"]).expect("services");
    let file = "kind: System
name: shop
components:
  - name: web
    replicas: [{unit: web.service}]
    probes:
      - {name: page, http: {url: \"http://127.0.0.1:8080/\"}, every: 50ms, steady: {bad: 5%}}
---
kind: Experiment
name: stop-web
system: shop
baseline: auto
steps:
  - {at: 0s, target: web, inject: [{stop: {}}], for: 5s}
expect: {radius: [web], outage: 10s, healed: 10s}
";
    machine.folder().write("shop.yaml", file).expect("a file");
    let plan = machine.run(&["firedrill", "plan", &Machine::inside("shop.yaml")]).expect("a plan");
    let plan = plan.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(plan.contains("stop web.timer, then unit web.service, and with it app.service"), "{plan}");
    for unit in ["web.service", "web.timer", "app.service"] {
        assert_eq!(machine.state(unit), "active", "{unit}");
    }
}

/// Stops a unit for a minute, kills Firedrill in its own way, and asserts that the guardian starts the unit again.
fn survives(kill: impl Fn(&Machine)) {
    let machine = two_services();
    machine.drill_in_background(&["inject", "stop", "--unit", "web.service", "--for", "60s"]).expect("a drill");
    machine.wait_for("web.service", "inactive", PATIENCE).expect("stopped");
    // Down, and read back: the drill is under way.
    std::thread::sleep(Duration::from_millis(300));
    kill(&machine);
    let back = machine.wait_for("web.service", "active", PATIENCE).expect("started by the guardian");
    // Its own work takes some 30 ms; asking systemd for the state takes as long again.
    assert!(back < Duration::from_secs(1), "{back:?}");
    let report = "/run/firedrill/last-recovery.json";
    let written =
        machine.run(&["sh", "-c", &format!("for i in $(seq 100); do cat {report} && break; sleep 0.05; done")]);
    let report: serde_json::Value = serde_json::from_str(&written.expect("a report")).expect("JSON");
    assert_eq!((&report["left"], &report["undone"][0][0]), (&serde_json::json!([]), &"stop unit web.service".into()));
    let groups = machine.run(&["sh", "-c", "sleep 0.5; ls /sys/fs/cgroup"]).expect("groups");
    assert!(!groups.contains("firedrill"), "{groups}");
    // Nothing keeps the next drill from running.
    let next = machine.drill(&["inject", "pause", "--unit", "web.service", "--for", "500ms"]).expect("a run");
    next.expect("held", 0);
}

#[test]
fn a_stopped_unit_is_up_again_within_a_second_of_the_death_of_firedrill() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    survives(|machine| {
        machine.run(&["systemctl", "kill", "--kill-who=main", "--signal=KILL", "drill.service"]).expect("killed");
    });
}

#[test]
fn the_guardian_outlives_the_unit_that_firedrill_was_started_in() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    // All of its processes at once, then whatever systemd finds in its group.
    survives(|machine| {
        let group = machine.property("drill.service", "ControlGroup").expect("a group");
        machine.run(&["sh", "-c", &format!("echo 1 > /sys/fs/cgroup{group}/cgroup.kill")]).expect("killed");
    });
}

#[test]
fn a_unit_that_was_killed_whenever_it_came_back_is_given_back_when_firedrill_dies() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let limit = "[Unit]\nStartLimitBurst=3\nStartLimitIntervalSec=1h\n";
    let unit = format!("{limit}{}", web(8080, "Restart=always\nRestartSec=100ms"));
    let machine = Machine::boot(&[("web.service", &unit)]).expect("a container");
    machine.start(&["web"]).expect("a service");
    machine.drill_in_background(&["inject", "kill", "--keep", "--unit", "web", "--for", "60s"]).expect("a drill");
    machine.wait_for("web.service", "failed", PATIENCE).expect("systemd gives up");
    machine.run(&["systemctl", "kill", "--signal=KILL", "drill.service"]).expect("killed");
    machine.wait_for("web.service", "active", PATIENCE).expect("started by the guardian");
}

#[test]
fn a_halt_does_not_wait_for_a_run_that_waits_for_a_slow_unit() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let unit = web(8080, "ExecStop=/bin/sleep 12\nTimeoutStopSec=120");
    let machine = Machine::boot(&[("slow.service", &unit)]).expect("a container");
    machine.start(&["slow"]).expect("a service");
    machine.drill_in_background(&["inject", "stop", "--unit", "slow", "--for", "60s"]).expect("a drill");
    machine.wait_for("slow.service", "deactivating", PATIENCE).expect("it takes its time");
    let told = machine.run(&["firedrill", "halt"]).expect("exit code 0");
    assert!(told.contains("was killed") && told.contains("undone: stop unit slow.service"), "{told}");
    // systemd lets the stop run to its end, and then starts it.
    assert_eq!(machine.state("slow.service"), "active", "when a halt returns, all is over");
}

#[test]
fn units_are_as_before_wherever_an_agent_its_guardian_or_the_recovery_dies() {
    if let Some(why) = missing() {
        skip!("{why}");
    }
    let Some(program) = crash_points() else {
        skip!("the crash points of the agent are not built; cargo build --workspace --all-targets");
    };
    let machine = Machine::boot(&[]).expect("a container");
    machine.bring("crash_points", &program).expect("the test");
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments/faults");
    machine.bring("faults", &examples).expect("the examples");
    let asked = |name: &str| std::env::var(name).ok().map(|value| format!("{name}={value}"));
    let budget = asked("FIREDRILL_CRASH_BUDGET").unwrap_or_else(|| "FIREDRILL_CRASH_BUDGET=200".into());
    let examples = format!("FIREDRILL_EXAMPLES={}", Machine::inside("faults"));
    let drawn = [asked("FIREDRILL_CRASH_SEED"), asked("FIREDRILL_CRASH_ONLY")];
    let program = Machine::inside("crash_points");
    let mut command = vec!["env", "FIREDRILL_CRASH_UNITS=1", &examples, &budget];
    command.extend(drawn.iter().flatten().map(String::as_str));
    command.extend([program.as_str(), "--nocapture"]);
    let told = machine.run(&command);
    println!("{}", told.expect("the host is clean after each death"));
}

/// The test binary of the agent: beside this one, where cargo puts all of them. Of several builds the newest.
fn crash_points() -> Option<PathBuf> {
    let folder = std::env::current_exe().ok()?.parent()?.to_path_buf();
    let is_it = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        path.extension().is_none() && name.starts_with("crash_points-")
    };
    let all = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).filter(is_it);
    all.max_by_key(|path| path.metadata().and_then(|m| m.modified()).ok())
}
