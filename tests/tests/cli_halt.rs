//! Halting a host from another terminal, and the host's own account of itself.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use firedrill_agent::host::wait_until;
use firedrill_tests::stage::pair::{self, V4, WEB_PORTS};
use nix::sys::signal::Signal;
use support::{Bench, bench};

fn answers(bench: &Bench, patience: Duration) -> bool {
    let server = SocketAddr::from((V4[1], WEB_PORTS[0]));
    bench.stage.within("a", || pair::ask(server, patience)).expect("node").is_ok()
}

#[test]
fn a_halt_ends_a_run_which_still_reports_and_refuses_the_next_until_it_is_cleared() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    let pause = ["inject", "pause", "--cgroup", &group, "--for", "60s"];
    let mut program = bench.start(&[&pause[..], &["--json"]].concat());
    let status = bench.firedrill.json(&["status"]).expect("JSON");
    assert_eq!(status.json["faults"][0]["fault"], "pause", "{}", status.told());
    assert!(status.json["faults"][0]["ends_in_s"].as_f64().is_some_and(|s| s > 30.0 && s < 62.0), "{}", status.told());
    assert!(status.json["halted"].is_null(), "{}", status.told());

    let halt = bench.firedrill.json(&["halt", "--reason", "incident 4711"]).expect("JSON");
    assert_eq!(halt.code, 0, "{}", halt.told());
    assert!(answers(&bench, Duration::from_secs(1)), "when it returns all is over");
    assert_eq!(halt.json["owners"][0]["pid"], program.pid(), "{}", halt.told());
    assert!(halt.json["undone"].to_string().contains("freeze cgroup"), "{}", halt.told());
    assert_eq!(program.wait(Duration::from_secs(10)).expect("ends").code(), Some(4), "{}", program.errors());
    let json: serde_json::Value = serde_json::from_str(&program.printed()).expect("JSON");
    assert_eq!(json["changes"]["applied"], json["changes"]["undone"], "{json:#}");

    let refused = bench.firedrill.output(&pause).expect("started");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && told.contains("incident 4711") && told.contains("--clear"), "{told}");
    let status = bench.firedrill.json(&["status"]).expect("JSON");
    assert!(status.json["halted"].as_str().is_some_and(|why| why.contains("incident 4711")), "{}", status.told());
    assert_eq!(bench.firedrill.output(&["halt", "--clear"]).expect("started").status.code(), Some(0));
    let status = bench.firedrill.json(&["status"]).expect("JSON");
    assert!(status.json["halted"].is_null(), "{}", status.told());
}

#[test]
fn a_run_that_is_wedged_is_killed_and_undone_by_a_halt() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    let mut program = bench.start(&["inject", "pause", "--cgroup", &group, "--for", "60s"]);
    program.signal(Signal::SIGSTOP).expect("runs");
    let begun = Instant::now();
    let halt = bench.firedrill.output(&["halt"]).expect("started");
    let told = String::from_utf8_lossy(&halt.stdout).into_owned();
    assert_eq!(halt.status.code(), Some(0), "{told}");
    assert!(told.contains("was killed") && told.contains("undone: freeze cgroup"), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
    assert!(answers(&bench, Duration::from_secs(1)));
    assert!(program.wait(Duration::from_secs(1)).expect("it is dead").code().is_none());
}

#[test]
fn what_has_changed_since_a_snapshot_is_told_and_gone_when_the_fault_is() {
    let Some(bench) = bench() else { return };
    let netns = bench.stage.netns("b");
    let file = bench.firedrill.folder().path().join("before.json").display().to_string();
    let taken = bench.firedrill.output(&["doctor", "--snapshot", &file, "--netns", &netns]).expect("started");
    assert_eq!(taken.status.code(), Some(0), "{}", String::from_utf8_lossy(&taken.stderr));
    // Other tests come and go on this machine: only this namespace is looked at here.
    let differences = || -> Vec<String> {
        let found = bench.firedrill.json(&["doctor", "--diff", &file]).expect("JSON");
        let all = found.json["differences"].as_array().expect("a list");
        assert_eq!(found.code, if all.is_empty() { 0 } else { 5 }, "{}", found.told());
        all.iter().filter(|d| d["place"] == netns.as_str()).map(ToString::to_string).collect()
    };
    assert_eq!(differences(), [] as [String; 0]);
    let mut program = bench.start(&["inject", "latency", "--netns", &netns, "--delay", "50ms", "--for", "60s"]);
    let during = differences();
    assert!(during.iter().any(|d| d.contains("interface") && d.contains("fdl")), "the delay line's TAP: {during:?}");
    program.signal(Signal::SIGINT).expect("runs");
    program.wait(Duration::from_secs(10)).expect("ends");
    assert!(wait_until(Duration::from_secs(3), || differences().is_empty()), "{:?}", differences());

    std::fs::write(&file, "{}").expect("written");
    let refused = bench.firedrill.output(&["doctor", "--diff", &file]).expect("started");
    assert_eq!(refused.status.code(), Some(2), "{}", String::from_utf8_lossy(&refused.stderr));
}
