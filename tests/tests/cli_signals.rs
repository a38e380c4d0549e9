//! Ctrl-C, and two at a time.

mod support;

use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use firedrill_tests::stage::pair::{self, V4, WEB_PORTS};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::bench;

const CUT_OFF: &str = "kind: Experiment\nname: cut-off\nsystem: duo\nsteps:\n  - target: {netns: NETNS-b}\n    \
                       inject: [{partition: {}}]\n    for: 60s\nexpect: {radius: [front, web], healed: 5s}\n";

#[test]
fn ctrl_c_reverts_then_reports() {
    let Some(bench) = bench() else { return };
    let file = bench.files(CUT_OFF);
    let mut program = bench.start(&["run", &file, "--quiet", "--json"]);
    let server = SocketAddr::from((V4[1], WEB_PORTS[0]));
    let ask = |patience| bench.stage.within("a", || pair::ask(server, patience)).expect("node");
    assert!(ask(Duration::from_millis(300)).is_err(), "cut off");
    program.signal(Signal::SIGINT).expect("runs");
    assert_eq!(program.wait(Duration::from_secs(15)).expect("ends").code(), Some(4), "{}", program.errors());
    ask(Duration::from_secs(1)).expect("reverted");
    let json: serde_json::Value = serde_json::from_str(&program.printed()).expect("JSON");
    assert_eq!(json["verdict"], "aborted", "{json:#}");
    assert!(json["aborted"]["why"].as_str().is_some_and(|why| why.contains("Ctrl-C")), "{json:#}");
    assert_eq!(json["changes"]["applied"], json["changes"]["undone"], "{json:#}");
    assert!(bench.firedrill.only_run().expect("one run").join("report.html").is_file(), "and there is a report");
}

#[test]
fn a_second_run_is_refused_with_the_name_of_the_first() {
    let Some(bench) = bench() else { return };
    let file = bench.files(CUT_OFF);
    let first = bench.start(&["run", &file, "--quiet"]);
    let output = bench.firedrill.output(&["run", &file, "--quiet"]).expect("started");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("run cut-off") && told.contains(&first.pid().to_string()), "{told}");
    bench.firedrill.only_run().expect("the second has begun no run");
}

/// Starts `inject pause` by a program that decides what becomes of SIGHUP, sends that, and gives the exit code.
/// (A test suite may itself run under `nohup`, so neither case may be left to what is inherited.)
fn hang_up(bench: &support::Bench, by: &[&str], lasts: &str) -> Option<i32> {
    let group = bench.stage.cgroup(pair::WEB);
    let line = bench.firedrill.command(&["inject", "pause", "--cgroup", &group, "--for", lasts]);
    let mut command = Command::new(by[0]);
    command.args(&by[1..]).arg(line.get_program()).args(line.get_args());
    command.envs(line.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut program = command.spawn().expect("started");
    std::thread::sleep(Duration::from_millis(1500));
    kill(Pid::from_raw(i32::try_from(program.id()).expect("a pid")), Signal::SIGHUP).expect("runs");
    let code = program.wait().expect("ends").code();
    let server = SocketAddr::from((V4[1], WEB_PORTS[0]));
    bench.stage.within("a", || pair::ask(server, Duration::from_secs(1))).expect("node").expect("it runs again");
    code
}

#[test]
fn inject_stops_in_order_when_its_terminal_closes() {
    let Some(bench) = bench() else { return };
    assert_eq!(hang_up(&bench, &["env", "--default-signal=HUP"], "30s"), Some(4));
}

#[test]
fn under_nohup_it_goes_on_when_the_terminal_closes() {
    let Some(bench) = bench() else { return };
    assert_eq!(hang_up(&bench, &["nohup"], "3s"), Some(0));
}
