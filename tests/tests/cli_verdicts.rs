//! `firedrill run`: every verdict and its exit code, on real packets and processes.

mod support;

use firedrill_tests::stage::pair;
use support::bench;

/// An experiment on the pair, in one step.
fn experiment(target: &str, fault: &str, lasts: &str, rest: &str) -> String {
    format!(
        "kind: Experiment\nname: drill\nsystem: duo\nsteps:\n  - target: {target}\n    inject: [{fault}]\n    \
         for: {lasts}\n{rest}\n"
    )
}

#[test]
fn a_fault_that_the_service_bears_is_held() {
    let Some(bench) = bench() else { return };
    let latency = "{latency: {delay: 20ms, protocol: tcp}}";
    let file = bench.files(&experiment("{netns: NETNS-b}", latency, "3s", "expect: {healed: 5s}"));
    let outcome = bench.firedrill.json(&["run", &file, "--quiet"]).expect("a result");
    outcome.expect("held", 0);
    let p50 = outcome.probe("front/page")["fault"]["p50_ms"].as_f64();
    assert!(p50 >= Some(40.0), "connecting and asking take a delayed answer each: {p50:?}");
    assert_eq!(outcome.json["receipts"][0]["effect"], "effective", "{}", outcome.told());
}

#[test]
fn a_fault_that_it_does_not_bear_is_broken_and_heals() {
    let Some(bench) = bench() else { return };
    let partition = "{partition: {local_ports: [8080]}}";
    let file = bench.files(&experiment("{netns: NETNS-b}", partition, "2s", "expect: {radius: [web], healed: 5s}"));
    let outcome = bench.firedrill.json(&["run", &file, "--quiet"]).expect("a result");
    outcome.expect("broken", 1);
    assert_eq!(outcome.json["radius"]["escapes"], serde_json::json!(["front"]), "{}", outcome.told());
    assert_eq!(outcome.probe("web/second")["moved"], false, "the other port is not meant: {}", outcome.told());
    assert_eq!(outcome.probe("front/page")["healed"], "after", "{}", outcome.told());
}

#[test]
fn a_fault_that_matches_nothing_is_invalid() {
    let Some(bench) = bench() else { return };
    let target = "{process: {cmdline: there-is-no-such-process}}";
    let file = bench.files(&experiment(target, "{kill: {}}", "2s", "expect: {healed: 5s}"));
    let outcome = bench.firedrill.json(&["run", &file, "--quiet"]).expect("a result");
    outcome.expect("invalid", 3);
    assert!(outcome.told().contains("there-is-no-such-process"), "{}", outcome.told());
}

#[test]
fn a_system_that_is_not_steady_before_gets_no_fault() {
    let Some(bench) = bench() else { return };
    let file = bench.files(&experiment("{netns: NETNS-b}", "{partition: {}}", "2s", "expect: {healed: 5s}"));
    let down = std::fs::read_to_string(&file).expect("written").replace("10.215.0.2:8080", "10.215.0.2:9999");
    std::fs::write(&file, down).expect("written");
    let outcome = bench.firedrill.json(&["run", &file, "--quiet"]).expect("a result");
    outcome.expect("invalid", 3);
    assert_eq!(outcome.json["changes"]["applied"], 0, "{}", outcome.told());
}

#[test]
fn a_fault_that_nothing_comes_by_proves_nothing() {
    let Some(bench) = bench() else { return };
    let partition = "{partition: {peers: [203.0.113.0/24]}}";
    let file = bench.files(&experiment("{netns: NETNS-b}", partition, "2s", "expect: {healed: 5s}"));
    let outcome = bench.firedrill.json(&["run", &file, "--quiet"]).expect("a result");
    outcome.expect("inconclusive", 3);
    assert_eq!(outcome.json["receipts"][0]["effect"], "armed-no-traffic", "{}", outcome.told());
}

#[test]
fn an_abort_rule_ends_a_drill_that_hurts_too_much() {
    let Some(bench) = bench() else { return };
    let rest = "expect: {radius: [front, web], healed: 5s}\nabort: [{probe: front/page, bad_for: 700ms}]";
    let file = bench.files(&experiment("{netns: NETNS-b}", "{partition: {}}", "40s", rest));
    let outcome = bench.firedrill.json(&["run", &file, "--quiet"]).expect("a result");
    outcome.expect("aborted", 4);
    let seconds = outcome.json["seconds"].as_f64().unwrap_or(f64::MAX);
    assert!(seconds < 20.0, "it took {seconds} s of 40 s");
}

#[test]
fn a_killed_server_that_nobody_starts_again_is_gone() {
    let Some(bench) = bench() else { return };
    let target = format!("{{pid: {}}}", pair::server(&bench.stage, pair::WEB_PORTS[0]).expect("runs"));
    let file = bench.files(&experiment(&target, "{kill: {}}", "2s", "expect: {radius: [web], healed: 2s}"));
    let outcome = bench.firedrill.json(&["run", &file, "--quiet"]).expect("a result");
    outcome.expect("broken", 1);
    assert_eq!(outcome.probe("front/page")["healed"], "not-within", "{}", outcome.told());
    assert_eq!(outcome.probe("web/second")["moved"], false, "its neighbour lives: {}", outcome.told());
}

#[test]
fn a_game_day_runs_its_experiments_in_order_and_its_worst_result_counts() {
    let Some(bench) = bench() else { return };
    let partition = "{partition: {local_ports: [8080]}}";
    let first = experiment("{netns: NETNS-b}", "{latency: {delay: 5ms}}", "3s", "expect: {healed: 5s}");
    let second = experiment("{netns: NETNS-b}", partition, "2s", "expect: {radius: [web], healed: 5s}");
    let second = second.replace("name: drill", "name: second");
    let day = "kind: GameDay\nname: day\nsteps:\n  - {run: drill, note: begin gently}\n  - {run: second}\n";
    let file = bench.files(&format!("{first}---\n{second}---\n{day}"));
    let output = bench.firedrill.output(&["run", &file, "--quiet", "--json"]).expect("started");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let verdicts: Vec<&str> = json.as_array().into_iter().flatten().filter_map(|run| run["verdict"].as_str()).collect();
    assert_eq!((verdicts.as_slice(), output.status.code()), (["held", "broken"].as_slice(), Some(1)), "{told}");
    assert!(told.contains("begin gently"), "{told}");
    // The note belongs to the report, so it is in the log.
    let report = bench.firedrill.output(&["report", "drill", "--format", "markdown"]).expect("started");
    assert!(String::from_utf8_lossy(&report.stdout).contains("begin gently"));
}
