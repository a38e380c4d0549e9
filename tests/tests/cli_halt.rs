//! Halting a host from another terminal, and the host's own account of itself.

mod support;

use std::time::{Duration, Instant};

use firedrill_agent::host::{process, wait_until};
use firedrill_tests::program::Started;
use firedrill_tests::stage::pair;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{bench, guardian};

/// A run, and its guardian.
struct Running<'a> {
    program: &'a Started,
    guardian: Pid,
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
    assert!(bench.answers(Duration::from_secs(1)), "when it returns all is over");
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
    assert!(bench.answers(Duration::from_secs(1)));
    assert!(program.wait(Duration::from_secs(1)).expect("it is dead").code().is_none());
}

/// Freezes the server's group for a minute, does something to program and guardian, halts, and asserts that all is over.
/// What the halt said.
fn halted_after(what: impl Fn(&Running<'_>)) -> Option<String> {
    let bench = bench()?;
    let group = bench.stage.cgroup(pair::WEB);
    let mut program = bench.start(&["inject", "pause", "--cgroup", &group, "--for", "60s"]);
    let guardian = guardian(&program);
    what(&Running { program: &program, guardian });
    let halt = bench.firedrill.output(&["halt"]).expect("started");
    let told = String::from_utf8_lossy(&halt.stdout).into_owned();
    assert_eq!(halt.status.code(), Some(0), "{told}");
    assert!(bench.answers(Duration::from_secs(1)), "when it returns all is over: {told}");
    program.wait(Duration::from_secs(5)).expect("it has ended");
    let gone = || !process::cmdline(guardian.as_raw()).starts_with("firedrill-guardian");
    assert!(wait_until(Duration::from_secs(2), gone), "its guardian has gone, too");
    let status = bench.firedrill.json(&["status"]).expect("JSON");
    assert_eq!((status.code, &status.json["in_force"]), (0, &serde_json::json!([])), "{}", status.told());
    Some(told)
}

#[test]
fn a_halt_does_not_need_the_guardian_of_a_wedged_run_to_live() {
    let told = halted_after(|running| {
        running.program.signal(Signal::SIGSTOP).expect("runs");
        kill(running.guardian, Signal::SIGKILL).expect("runs");
    });
    assert!(told.is_none_or(|told| told.contains("was killed") && told.contains("undone: freeze cgroup")));
}

#[test]
fn a_halt_does_not_wait_for_a_guardian_that_is_stopped_with_its_run() {
    let told = halted_after(|running| {
        kill(running.guardian, Signal::SIGSTOP).expect("runs");
        running.program.signal(Signal::SIGSTOP).expect("runs");
    });
    assert!(told.is_none_or(|told| told.contains("was killed") && told.contains("undone: freeze cgroup")));
}

#[test]
fn a_run_that_is_told_to_end_does_not_wait_for_a_guardian_that_is_stopped() {
    let told = halted_after(|running| kill(running.guardian, Signal::SIGSTOP).expect("runs"));
    assert!(
        told.is_none_or(|told| told.contains("ended when it was told to") && told.contains("undone: freeze cgroup"))
    );
}

#[test]
fn a_halt_does_not_wait_for_a_run_that_waits_for_a_users_slow_command() {
    let Some(bench) = bench() else { return };
    let text = "kind: Experiment\nname: slow\nsystem: duo\nsteps:\n  - target: kept\n    inject: [{stop: {}}]\n    for: 60s\n\
                expect: {radius: [front, web], healed: 5s}\n";
    let file = bench.files(&text.replace("target: kept", "target: web/kept"));
    let slow =
        std::fs::read_to_string(&file).expect("there").replace("stop: [mkdir, ", "stop: [sh, -c, exec sleep 600, ");
    std::fs::write(&file, slow.replace("start: [rmdir, ", "start: [mkdir, ")).expect("written");
    let mut program = bench.firedrill.start(&["run", &file, "--quiet"]).expect("started");
    let waits =
        || bench.firedrill.json(&["status"]).expect("JSON").json["in_force"].to_string().contains("run `sh ***`");
    assert!(wait_until(Duration::from_secs(30), waits), "{}", program.errors());
    let halt = bench.firedrill.output(&["halt"]).expect("started");
    let told = String::from_utf8_lossy(&halt.stdout).into_owned();
    assert_eq!(halt.status.code(), Some(0), "{told}");
    assert!(told.contains("was killed") && told.contains("undone: run `sh ***`"), "{told}");
    assert!(bench.firedrill.folder().path().join("stopped").is_dir(), "its inverse was run: {told}");
    program.wait(Duration::from_secs(1)).expect("it is dead");
}

#[test]
fn a_file_that_is_made_by_hand_halts_the_host() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    let pause = ["inject", "pause", "--cgroup", &group, "--for", "60s"];
    let mut program = bench.start(&pause);
    std::fs::write(bench.firedrill.run_directory().join("halt"), "").expect("written");
    assert_eq!(program.wait(Duration::from_secs(15)).expect("ends").code(), Some(4), "{}", program.errors());
    assert!(bench.answers(Duration::from_secs(1)), "reverted");
    let refused = bench.firedrill.output(&pause).expect("started");
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && told.contains("halted") && told.contains("--clear"), "{told}");
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
