//! An agent that hangs: the guardian waits for a sign of life as long as a lease lasts, then kills and reverts.

use std::time::{Duration, Instant};

use firedrill_agent::guardian::HUNG_AFTER;
use firedrill_agent::host::{process, wait_until};
use firedrill_agent::recover;
use firedrill_agent::snapshot::Snapshot;
use firedrill_model::change::Change;
use firedrill_model::facts::Control;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::crash::Doomed;
use crate::stages::Stage;
use crate::support::{
    B4, Bench, Folder, Group, LONG, Pair, SOON, assert_unchanged, controlled, eventually, fault, in_guest, plan, port,
    read, target, words,
};

/// What the guardian may take beyond its patience: to look, to kill and to revert.
fn slack() -> Duration {
    Duration::from_secs(if in_guest() { 10 } else { 2 })
}

pub fn a_stopped_agent_delays_nothing_after_a_second_and_leaves_nothing_after_five() {
    hangs_by(Signal::SIGSTOP);
}

pub fn a_stop_from_the_terminal_is_a_hang() {
    hangs_by(Signal::SIGTSTP);
}

fn hangs_by(signal: Signal) {
    let (folder, pair, frozen, serving) = (Folder::new(), Pair::new(), Group::new("frozen"), Group::new("serving"));
    let _member = frozen.start(&["sleep", "1000"], None);
    let port = port();
    let _server = serving.server(&pair.b.name, port);
    pair.b.wait_for(port);
    let ttl = || pair.b.parameter("/proc/sys/net/ipv4/ip_default_ttl");
    let usual = ttl();
    let directories = folder.directories();
    let before = Snapshot::take(&pair.names()).expect("a snapshot");
    let parameter =
        Change::Sysctl { netns: pair.b.reference(), key: "net.ipv4.ip_default_ttl".into(), value: "65".into() };
    let mut doomed = Doomed::armed(
        &directories,
        plan(vec![parameter]),
        vec![
            (target(frozen.spec()), fault("pause", json!({}))),
            (target(pair.a.spec()), fault("latency", json!({"delay": "200ms"}))),
        ],
    );
    // Too late an answer is none: `None` beyond 400 ms.
    let fast = || pair.a.round_trip(B4, port).is_some_and(|time| time < Duration::from_millis(150));
    assert!(!fast() && frozen.is_frozen() && ttl() == "65");
    // Its patience begins with the last sign of life, which may be up to 250 ms old.
    let agent = doomed.identity();
    let at = Instant::now();
    process::signal(&agent, signal as i32).expect("stopped");
    assert!(wait_until(SOON, fast), "packets pass by a delay line that nobody serves");
    let bypassed = at.elapsed();
    assert!(process::is_stopped(&agent), "not killed yet");
    assert!(wait_until(HUNG_AFTER + slack(), || doomed.has_ended()), "it is killed, and never goes on");
    let killed = at.elapsed();
    let clean = || !frozen.is_frozen() && ttl() == usual && !pair.a.has_tap() && !directories.journal().exists();
    assert!(wait_until(slack(), clean));
    let reverted = at.elapsed();
    eprintln!("{signal}: packets pass after {bypassed:.2?}, killed after {killed:.2?}, clean after {reverted:.2?}");
    // A second of the line's own, and an answer that was under way.
    assert!(bypassed < Duration::from_millis(1500) + slack(), "{bypassed:?}");
    assert!(killed > HUNG_AFTER - Duration::from_millis(500), "{killed:?}: not before its time");
    assert!(reverted < HUNG_AFTER + slack(), "{reverted:?}");
    let told = directories.run.join("last-recovery.json");
    assert!(wait_until(slack(), || told.exists()), "it is written last");
    let report = read(&told).expect("a report");
    assert!(report.contains("hung and was killed") && report.contains("\"left\":[]"), "{report}");
    assert_unchanged(&before, &pair.names(), &[&frozen.path]);
}

pub fn an_engine_that_is_stuck_in_a_call_is_a_hang() {
    let folder = Folder::new();
    let mut stage = Stage::new(&folder);
    // To open a pipe that nobody reads takes for ever: the process lives, and its engine's thread does not return.
    stage.log = folder.0.join("nobody-reads");
    nix::unistd::mkfifo(&stage.log, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let directories = folder.directories();
    let all = stage.changes(&["sleep", "1000"]);
    let number = all.len();
    let mut doomed = Doomed::start(&directories, plan(all), Vec::new());
    eventually("it is stuck in the last change", || recover::outstanding(&directories).len() == number);
    let at = Instant::now();
    assert!(!process::is_stopped(&doomed.identity()) && !doomed.has_ended());
    assert!(wait_until(HUNG_AFTER + slack(), || doomed.has_ended()), "it is killed");
    assert!(at.elapsed() > HUNG_AFTER - Duration::from_millis(500), "not before its time: {:?}", at.elapsed());
    eventually("the stage is gone", || stage.is_gone() && !directories.journal().exists());
}

pub fn a_stopped_agent_that_holds_nothing_is_left_alone() {
    let folder = Folder::new();
    let mut doomed = Doomed::armed(&folder.directories(), plan(Vec::new()), Vec::new());
    let agent = doomed.identity();
    process::signal(&agent, Signal::SIGSTOP as i32).expect("stopped");
    std::thread::sleep(HUNG_AFTER + Duration::from_secs(1));
    assert!(!doomed.has_ended() && process::is_stopped(&agent));
    process::signal(&agent, Signal::SIGCONT as i32).expect("continued");
    eventually("it goes on", || !process::is_stopped(&agent));
}

pub fn a_slow_command_is_no_hang() {
    let (group, bench) = (Group::new("slow"), Bench::new());
    let _member = group.start(&["sleep", "1000"], None);
    let slowly = (HUNG_AFTER + Duration::from_secs(2)).as_secs().to_string();
    let control = Control { stop: words(&["sleep", &slowly]), start: words(&["true"]) };
    let found = bench.agent.resolve(&controlled(group.spec(), control)).expect("a target");
    let begun = Instant::now();
    bench.agent.inject(&found, &fault("stop", json!({})), LONG).expect("neither killed nor lapsed");
    assert!(begun.elapsed() > HUNG_AFTER);
    assert!(bench.agent.renew().is_ok(), "the guardian is there");
    let farewell = bench.agent.stop();
    assert!(farewell.left_over.is_empty() && farewell.ended.len() == 1, "{farewell:?}");
}
