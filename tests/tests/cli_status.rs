//! What `firedrill status` shows: the living and their faults, the dead and what was done after them.

mod support;

use std::fs;
use std::time::Duration;

use firedrill_agent::host::wait_until;
use firedrill_tests::stage::pair;
use nix::sys::signal::{Signal, kill};
use support::{bench, guardian};

/// The names in the run directory that hold something.
fn files(bench: &support::Bench) -> Vec<String> {
    let entries = fs::read_dir(bench.firedrill.run_directory()).expect("there").flatten();
    let full = entries.filter(|e| e.metadata().is_ok_and(|m| m.len() > 0));
    full.filter_map(|e| e.file_name().into_string().ok()).collect()
}

#[test]
fn a_fault_is_shown_with_its_owner_both_deadlines_and_a_receipt_that_grows() {
    let Some(bench) = bench() else { return };
    let netns = bench.stage.netns("b");
    let mut program = bench.start(&["inject", "latency", "--netns", &netns, "--delay", "5ms", "--for", "60s"]);
    let mut seen = Vec::new();
    let grows = || {
        bench.answers(Duration::from_secs(1));
        let status = bench.firedrill.json(&["status"]).expect("JSON");
        let (json, fault) = (&status.json, &status.json["faults"][0]);
        assert_eq!((&json["owner"]["pid"], status.code), (&program.pid().into(), 0), "{}", status.told());
        assert_eq!((&fault["fault"], &fault["target"]), (&"latency".into(), &format!("netns {netns}").into()));
        let number = |key: &str| fault[key].as_f64().expect("a number");
        assert!(number("lease_ends_in_s") <= 5.0 && number("ends_in_s") > 10.0, "{}", status.told());
        assert!(number("for_s") < json["owner"]["for_s"].as_f64().expect("a number") + 0.1, "{}", status.told());
        let measured = fault["receipt"]["measured"].as_array().expect("measured").iter();
        seen.push(measured.filter_map(|m| m["packets"]["delayed"].as_u64()).sum::<u64>());
        seen.last() > seen.first() && seen.last() > Some(&0)
    };
    assert!(wait_until(Duration::from_secs(20), grows), "{seen:?}");
    let text = bench.firedrill.output(&["status"]).expect("started").stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    for words in ["owns this host: inject latency", "at the latest", "if not renewed", "effective"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    program.signal(Signal::SIGINT).expect("runs");
    program.wait(Duration::from_secs(15)).expect("ends");
    assert_eq!(files(&bench), [] as [&str; 0], "after an orderly end nothing in a file means something");
}

#[test]
fn a_killed_run_is_named_with_what_its_guardian_undid_until_the_next_begins() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    let mut program = bench.start(&["inject", "pause", "--cgroup", &group, "--for", "60s"]);
    let pid = program.pid();
    program.signal(Signal::SIGKILL).expect("runs");
    program.wait(Duration::from_secs(2)).expect("dies");
    assert!(wait_until(Duration::from_secs(5), || files(&bench) == ["last-recovery.json"]), "{:?}", files(&bench));
    let status = bench.firedrill.json(&["status"]).expect("JSON");
    let told = &status.json["last_recovery"];
    assert_eq!((status.code, &told["owner"]["pid"], &told["by"]), (0, &pid.into(), &"its guardian".into()));
    assert!(told["undone"].to_string().contains("freeze cgroup"), "{}", status.told());
    let text = bench.firedrill.output(&["status"]).expect("started").stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("its guardian undid 1 change in") && text.contains(&pid.to_string()), "{text}");
    let next = bench.firedrill.output(&["inject", "pause", "--cgroup", &group, "--for", "200ms"]).expect("started");
    assert_eq!(next.status.code(), Some(0), "{}", String::from_utf8_lossy(&next.stderr));
    assert_eq!(files(&bench), [] as [&str; 0], "it is history then");
}

#[test]
fn when_both_are_killed_it_says_by_whom_what_is_left_and_what_to_do() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    let mut program = bench.start(&["inject", "pause", "--cgroup", &group, "--for", "60s"]);
    kill(guardian(&program), Signal::SIGKILL).expect("runs");
    program.signal(Signal::SIGKILL).expect("runs");
    program.wait(Duration::from_secs(2)).expect("dies");
    let status = bench.firedrill.json(&["status"]).expect("JSON");
    assert_eq!((status.code, &status.json["dead"]["pid"]), (5, &program.pid().into()), "{}", status.told());
    assert_eq!(status.json["faults"], serde_json::json!([]), "of the dead only changes are left: {}", status.told());
    let text = bench.firedrill.output(&["status"]).expect("started").stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    for words in ["nobody owns", "inject pause", "was killed", "left in force: freeze cgroup", "sudo firedrill recover"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    let recover = || {
        let done = bench.firedrill.output(&["recover"]).expect("started");
        (done.status.code(), String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let (code, told) = recover();
    assert!(code == Some(0) && told.contains("undone: freeze cgroup") && told.contains("is undone"), "{told}");
    assert!(bench.answers(Duration::from_secs(1)));
    let (code, told) = recover();
    assert!(code == Some(0) && told.starts_with("nothing to undo") && told.lines().count() == 1, "calm: {told}");
}

#[test]
fn a_target_that_is_not_there_is_bad_usage_and_leaves_no_run() {
    let Some(bench) = bench() else { return };
    let netns = bench.stage.netns("b");
    let nearly = format!("{netns}x");
    for (target, fault, words) in [
        (["--netns", nearly.as_str()], "partition", "did you mean"),
        (["--netns", netns.as_str()], "stop", "cannot act"),
    ] {
        let refused = bench.firedrill.output(&[&["inject", fault][..], &target].concat()).expect("started");
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && told.contains(words), "{told}");
    }
    assert!(bench.firedrill.only_run().is_err() && files(&bench).is_empty(), "{:?}", files(&bench));
}
