//! Kills, and what a supervisor makes of them.

use std::time::Duration;

use firedrill_model::receipt::{Effect, KillCount, Measured};
use firedrill_model::target::{ProcessSelector, TargetSpec};
use serde_json::json;

use crate::parts::LINGERS;
use crate::support::{Bench, Group, LONG, Process, SOON, eventually, fault, unique_seconds};
use firedrill_agent::host::{cgroup, wait_until};

/// A shell that starts `sleep SECONDS` again, 300 ms after it has ended.
fn supervisor(seconds: &str) -> Process {
    Process::start(&["sh", "-c", &format!("while :; do sleep {seconds}; sleep 0.3; done")])
}

fn sleeps(seconds: &str) -> TargetSpec {
    let process = ProcessSelector { exe: Some("sleep".into()), cmdline: Some(seconds.into()), ..Default::default() };
    TargetSpec { process: Some(process), ..TargetSpec::default() }
}

/// Kills whatever a supervised `sleep` leaves alive when the test is over.
struct Orphans(String);

impl Drop for Orphans {
    fn drop(&mut self) {
        for stat in firedrill_agent::host::process::all() {
            if firedrill_agent::host::process::cmdline(stat.process.pid) == format!("sleep {}", self.0) {
                let _ = firedrill_agent::host::process::signal(&stat.process, 9);
            }
        }
    }
}

fn count(bench: &Bench) -> KillCount {
    let receipt = bench.agent.receipts().remove(0).1;
    match receipt.measured.into_iter().next() {
        Some(Measured::Kill(count)) => count,
        other => panic!("a kill measures a kill, not {other:?}"),
    }
}

fn restarted(count: &KillCount) {
    let downtime = count.downtime.expect("it came back").0;
    eprintln!("down for {downtime:?}, {count:?}");
    assert!((Duration::from_millis(280)..Duration::from_millis(1200)).contains(&downtime), "{downtime:?}");
}

pub fn the_downtime_of_a_restarted_process_is_measured() {
    let seconds = unique_seconds();
    let _orphans = Orphans(seconds.clone());
    let _supervisor = supervisor(&seconds);
    let bench = Bench::new();
    eventually("it runs", || bench.agent.resolve(&crate::support::target(sleeps(&seconds))).is_ok());
    let found = bench.resolve(sleeps(&seconds));
    assert_eq!(found.processes.len(), 1);
    let injected = bench.agent.inject(&found, &fault("kill", json!({})), LONG).expect("killed");
    assert!(wait_until(SOON, || count(&bench).downtime.is_some()), "it came back");
    restarted(&count(&bench));
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!(receipt.effect, Effect::Effective);
    assert!(bench.agent.stop().left_over.is_empty());
    assert_eq!(count_alive(&seconds), 1, "it was killed once");
}

fn count_alive(seconds: &str) -> usize {
    use firedrill_agent::host::process;
    process::all().iter().filter(|s| process::cmdline(s.process.pid) == format!("sleep {seconds}")).count()
}

pub fn any_of_several_processes_may_be_the_one_that_comes_back() {
    // Told apart by their last digit; the first one is nobody's.
    let common = unique_seconds();
    let (lone, restarted_one) = (format!("{common}1"), format!("{common}2"));
    let _orphans = Orphans(restarted_one.clone());
    let _lone = Process::start(&["sleep", &lone]);
    let _supervisor = supervisor(&restarted_one);
    let bench = Bench::new();
    let both = || bench.agent.resolve(&crate::support::target(sleeps(&common))).is_ok_and(|t| t.processes.len() == 2);
    eventually("both run", both);
    bench.agent.inject(&bench.resolve(sleeps(&common)), &fault("kill", json!({})), LONG).expect("killed");
    assert!(wait_until(SOON, || count(&bench).downtime.is_some()), "one came back");
    restarted(&count(&bench));
    assert_eq!(count(&bench).gone, 2);
    bench.agent.stop();
}

pub fn the_downtime_of_a_restarted_group_is_measured() {
    let group = Group::new("killed");
    // The supervisor is outside the group, as systemd is.
    let procs = group.directory.join("cgroup.procs").display().to_string();
    let script = format!("while :; do sh -c 'echo 0 > {procs}; exec sleep 1000'; sleep 0.3; done");
    let _supervisor = Process::start(&["sh", "-c", &script]);
    let members = || cgroup::processes(&cgroup::at(&group.directory).expect("the group"));
    eventually("it runs", || members().iter().any(|p| p.comm == "sleep"));
    let bench = Bench::new();
    bench.agent.inject(&bench.resolve(group.spec()), &fault("kill", json!({})), LONG).expect("killed");
    assert!(wait_until(SOON, || count(&bench).downtime.is_some()), "it came back");
    restarted(&count(&bench));
    assert!(bench.agent.stop().left_over.is_empty());
}

pub fn what_comes_back_is_killed_again_when_asked_for() {
    let seconds = unique_seconds();
    let _orphans = Orphans(seconds.clone());
    let _supervisor = supervisor(&seconds);
    let bench = Bench::new();
    eventually("it runs", || bench.agent.resolve(&crate::support::target(sleeps(&seconds))).is_ok());
    let injected = bench
        .agent
        .inject(&bench.resolve(sleeps(&seconds)), &fault("kill", json!({"keep": true})), LONG)
        .expect("killed");
    std::thread::sleep(Duration::from_millis(1500));
    let again = count(&bench).again;
    assert!((2..=5).contains(&again), "one in a little more than 300 ms: {again}");
    let ended = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert!(ended.says.contains("successors"), "{}", ended.says);
    assert!(wait_until(SOON, || count_alive(&seconds) == 1), "it may come back after the end");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(count_alive(&seconds), 1, "and stay");
    bench.agent.stop();
}

pub fn a_successor_that_is_slow_to_end_is_counted_once() {
    let group = Group::new("slow");
    let procs = group.directory.join("cgroup.procs").display().to_string();
    let this = std::env::current_exe().expect("this binary").display().to_string();
    let script = format!("while :; do sh -c 'echo 0 > {procs}; exec {this} linger'; done");
    let _supervisor = Process::start(&["sh", "-c", &script]);
    let members = || cgroup::processes(&cgroup::at(&group.directory).expect("the group"));
    eventually("it runs", || members().iter().any(|p| p.comm.starts_with("host")));
    let bench = Bench::new();
    let kill = fault("kill", json!({"signal": "TERM", "keep": true}));
    bench.agent.inject(&bench.resolve(group.spec()), &kill, LONG).expect("killed");
    std::thread::sleep(LINGERS * 4);
    let count = count(&bench);
    // Four of them, and some that were still a shell and so ended at once; not one at each of three hundred looks.
    assert!((2..=40).contains(&count.again), "told once each: {count:?}");
    assert!(count.slowest_end >= Some(LINGERS.into()), "{count:?}");
    bench.agent.stop();
}

pub fn a_process_that_nobody_restarts_is_not_back() {
    let (process, _) = Process::sleep();
    let bench = Bench::new();
    let injected = bench.agent.inject(&bench.resolve(process.spec()), &fault("kill", json!({})), LONG).expect("killed");
    assert!(wait_until(SOON, || count(&bench).gone == 1), "it ended");
    assert_eq!(count(&bench).downtime, None);
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!(receipt.effect, Effect::Effective);
    assert!(receipt.says.contains("not back"), "{}", receipt.says);
    let again = bench.agent.inject(&bench_facts(&process, &bench), &fault("kill", json!({})), LONG);
    let injected = again.expect("a kill of what is gone is no error").id;
    let receipt = bench.agent.revert(injected).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!(receipt.effect, Effect::None, "but it had no effect: {receipt:?}");
}

/// Facts of a process that was there when they were taken.
fn bench_facts(process: &Process, bench: &Bench) -> firedrill_model::facts::TargetFacts {
    let (other, _) = Process::sleep();
    let mut facts = bench.resolve(other.spec());
    facts.processes = vec![process.identity.clone()];
    facts
}
