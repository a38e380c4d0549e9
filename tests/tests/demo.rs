//! The demo as a user plays it: its verdicts, its times, and that nothing is left, also when it is killed itself.

use std::fs;
use std::time::{Duration, Instant};

use firedrill_tests::needs;
use firedrill_tests::program::Firedrill;
use firedrill_tests::skip;
use nix::sys::signal::Signal;
use serde_json::Value;

/// Names of namespaces, groups and processes that carry the demo's prefix.
fn left_of(demo: u32) -> Vec<String> {
    let prefix = format!("fdemo{demo}");
    let mut left = Vec::new();
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok()).collect()
    };
    left.extend(names("/run/netns").into_iter().filter(|n| n.starts_with(&prefix)));
    left.extend(firedrill_agent::host::cgroup::all().into_iter().filter(|path| path.starts_with(&prefix)));
    let processes = firedrill_agent::host::process::all().into_iter().map(|s| s.process.pid);
    let lines = processes.map(|pid| format!("{pid}: {}", firedrill_agent::host::process::cmdline(pid)));
    left.extend(lines.filter(|line| line.contains(&prefix)));
    left
}

fn result(firedrill: &Firedrill) -> Value {
    let folders = fs::read_dir(firedrill.runs()).expect("runs").flatten().map(|e| e.path());
    let file = folders.map(|f| f.join("demo.json")).find(|f| f.is_file()).expect("the demo's result");
    serde_json::from_str(&fs::read_to_string(file).expect("readable")).expect("JSON")
}

#[test]
fn the_demo_shows_what_it_promises_and_leaves_nothing() {
    if let Some(missing) = needs::missing(&[]) {
        skip!("{missing}");
    }
    let firedrill = Firedrill::new().expect("built");
    let began = Instant::now();
    let mut demo = firedrill.start(&["demo"]).expect("starts");
    let mut first = None;
    while demo.is_running() && began.elapsed() < Duration::from_secs(240) {
        if first.is_none() && demo.printed().contains("after the start)") {
            first = Some(began.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = demo.pid();
    let status = demo.wait(Duration::from_secs(1)).expect("it ends");
    let told = format!("{}\n{}", demo.printed(), demo.errors());
    assert_eq!(status.code(), Some(0), "{told}");
    println!("first verdict after {first:?}, all after {:?}", began.elapsed());
    assert!(first.is_some_and(|t| t < Duration::from_secs(15)), "first verdict after {first:?}\n{told}");
    assert!(began.elapsed() < Duration::from_secs(120), "{told}");

    let result = result(&firedrill);
    let verdict = |name: &str| {
        let drills = result["drills"].as_array().expect("drills");
        drills.iter().find(|d| d["experiment"] == name).map_or("", |d| d["verdict"].as_str().unwrap_or_default())
    };
    assert_eq!(verdict("lose-one-web"), "held", "{told}");
    assert!(["held", "degraded"].contains(&verdict("slow-web")), "{told}");
    assert_eq!(verdict("lose-one-store"), "held", "{told}");
    assert_eq!(verdict("lose-the-datastore"), "broken", "{told}");
    assert_eq!(verdict("misspelt-target"), "invalid", "{told}");
    assert_eq!(verdict("abort-rule"), "aborted", "{told}");
    assert!(told.contains("db is a single point of failure"), "{told}");
    assert!(told.contains("store is not redundant"), "{told}");
    let clean = result["survival"]["clean_after_ms"].as_f64().expect("traffic was clean again");
    assert!(clean < 2000.0, "{clean} ms\n{told}");
    assert_eq!(result["survival"]["differences"], serde_json::json!([]), "{told}");
    assert_eq!(result["left_over"], serde_json::json!([]), "{told}");
    assert_eq!(left_of(pid), Vec::<String>::new());
}

/// Kills the demo while its `number`th drill has its faults in force.
fn killed_in_drill(number: usize, into: Duration) {
    if let Some(missing) = needs::missing(&[]) {
        skip!("{missing}");
    }
    let firedrill = Firedrill::new().expect("built");
    let mut demo = firedrill.start(&["demo"]).expect("starts");
    let pid = demo.pid();
    let began = Instant::now();
    while !demo.printed().contains(&format!("{number}/7 ")) {
        assert!(
            demo.is_running() && began.elapsed() < Duration::from_secs(60),
            "{}\n{}",
            demo.printed(),
            demo.errors()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(into);
    assert!(!left_of(pid).is_empty(), "the stage stands");
    demo.signal(Signal::SIGKILL).expect("it runs");
    demo.wait(Duration::from_secs(1)).expect("it dies");
    let killed = Instant::now();
    while !left_of(pid).is_empty() && killed.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(left_of(pid), Vec::<String>::new());
    println!("nothing was left {:?} after the kill", killed.elapsed());
    // The stopped replica's own undo command found the stage gone, and that was no error.
    let status = firedrill.output(&["status"]).expect("status");
    assert_eq!(status.status.code(), Some(0), "{}", String::from_utf8_lossy(&status.stdout));
}

#[test]
fn a_demo_killed_while_a_replica_is_stopped_leaves_nothing() {
    // The baseline takes two and a half seconds, the fault five.
    killed_in_drill(1, Duration::from_secs(4));
}

#[test]
fn a_demo_killed_while_packets_are_delayed_leaves_nothing() {
    killed_in_drill(2, Duration::from_secs(4));
}
