//! SIGKILL of `firedrill` in the middle of each fault: within a second the host is as before.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use firedrill_agent::snapshot::{Difference, Snapshot};
use firedrill_tests::program::Started;
use firedrill_tests::stage::pair::{self, V4, WEB_PORTS};
use nix::sys::signal::Signal;
use support::{Bench, bench};

/// After this the host must be clean.
const CLEAN_WITHIN: Duration = Duration::from_secs(1);

fn snapshot(bench: &Bench) -> Snapshot {
    Snapshot::take(&["a", "b"].map(|node| bench.stage.netns(node))).expect("a snapshot")
}

/// What differs and is this test's doing: other drills on the same machine come and go. An eBPF program that is still
/// loaded although its owner is dead belongs to nobody; it counts.
fn ours(bench: &Bench, program: u32, differences: Vec<Difference>) -> Vec<String> {
    let guardian = format!("firedrill-guardian-{program}");
    let prefix = bench.stage.prefix();
    let mine = |d: &Difference| {
        let what = &d.line.what;
        let ebpf = d.line.kind.starts_with("eBPF") && d.appeared && what.contains("fdrill_");
        let server =
            |port: &u16| pair::server(&bench.stage, *port).is_ok_and(|pid| what.starts_with(&format!("{pid} ")));
        let stopped = d.line.kind == "stopped process" && WEB_PORTS.iter().any(server);
        d.line.place.starts_with(prefix) || what.contains(prefix) || what.contains(&guardian) || ebpf || stopped
    };
    differences.into_iter().filter(mine).map(|d| d.to_string()).collect()
}

/// Kills the program in mid-fault, and compares the host with `before`.
fn kill_and_compare(bench: &Bench, mut program: Started, before: &Snapshot) {
    let pid = program.pid();
    program.signal(Signal::SIGKILL).expect("runs");
    let begun = Instant::now();
    program.wait(Duration::from_secs(1)).expect("dies");
    let namespaces = ["a", "b"].map(|node| bench.stage.netns(node));
    let left = before.lasting_diff(&namespaces, CLEAN_WITHIN).expect("a snapshot");
    let left = ours(bench, pid, left);
    assert!(left.is_empty(), "left after {CLEAN_WITHIN:?}: {left:#?}");
    println!("clean after at most {:.2} s", begun.elapsed().as_secs_f64());
}

/// Injects, kills, compares. `touched` is what must be seen on the host meanwhile, so that the comparison means
/// something; `None` for what a snapshot does not show.
fn killed_in(args: &[&str], touched: Option<&str>) {
    let Some(bench) = bench() else { return };
    let names = |word: &str| word.replace("NETNS", bench.stage.prefix()).replace("GROUP", bench.stage.prefix());
    let pid = pair::server(&bench.stage, WEB_PORTS[0]).expect("runs").to_string();
    let args: Vec<String> = args.iter().map(|word| names(word).replace("PID", &pid)).collect();
    let args: Vec<&str> =
        ["inject"].into_iter().chain(args.iter().map(String::as_str)).chain(["--for", "60s"]).collect();

    let before = snapshot(&bench);
    let program = bench.start(&args);
    let during = ours(&bench, program.pid(), before.diff(&snapshot(&bench)));
    if let Some(touched) = touched {
        assert!(during.iter().any(|line| line.contains(touched)), "no {touched} in {during:#?}");
    }
    let server = SocketAddr::from((V4[1], WEB_PORTS[0]));
    let ask = |patience| bench.stage.within("a", || pair::ask(server, patience)).expect("node");
    assert!(ask(Duration::from_millis(300)).is_err(), "the fault has an effect");
    kill_and_compare(&bench, program, &before);
    // Not only as before: it works.
    ask(Duration::from_secs(2)).expect("the server answers");
    let status = bench.firedrill.output(&["status"]).expect("status");
    assert_eq!(status.status.code(), Some(0), "{}", String::from_utf8_lossy(&status.stdout));
}

#[test]
fn loss_ends_with_the_program() {
    killed_in(&["loss", "--netns", "NETNS-b", "--percent", "100%"], None);
}

#[test]
fn a_partition_of_a_group_ends_with_the_program() {
    killed_in(&["partition", "--cgroup", "GROUP/web"], None);
}

#[test]
fn latency_of_a_namespace_ends_with_the_program() {
    killed_in(&["latency", "--netns", "NETNS-b", "--delay", "400ms"], Some("interface"));
}

#[test]
fn latency_of_a_process_and_its_loopback_ends_with_the_program() {
    killed_in(&["latency", "--pid", "PID", "--delay", "400ms"], Some("route_localnet"));
}

#[test]
fn a_frozen_group_is_thawed() {
    killed_in(&["pause", "--cgroup", "GROUP/web"], Some("frozen cgroup"));
}

#[test]
fn a_stopped_process_is_continued() {
    killed_in(&["pause", "--pid", "PID"], Some("stopped process"));
}

#[test]
fn a_victim_that_was_to_be_kept_down_comes_back() {
    let Some(bench) = bench() else { return };
    let before = snapshot(&bench);
    let group = bench.stage.cgroup(pair::KEPT);
    let program = bench.start(&["inject", "kill", "--cgroup", &group, "--keep", "--for", "60s"]);
    let server = SocketAddr::from((V4[1], pair::KEPT_PORT));
    let ask = || bench.stage.within("a", || pair::ask(server, Duration::from_millis(300))).expect("node");
    assert!(ask().is_err(), "it is down");
    kill_and_compare(&bench, program, &before);
    bench.stage.wait(Duration::from_secs(5), |_| ask()).expect("its supervisor brings it back");
}

#[test]
fn what_was_stopped_by_its_owners_command_is_started_by_it() {
    let Some(bench) = bench() else { return };
    let file = bench.files(
        "kind: Experiment\nname: stop-kept\nsystem: duo\nsteps:\n  - target: web/kept\n    inject: [{stop: {}}]\n    \
         for: 60s\nexpect: {radius: [web], healed: 5s}\n",
    );
    let before = snapshot(&bench);
    let program = bench.start(&["run", &file, "--quiet"]);
    let stopped = bench.firedrill.folder().path().join("stopped");
    assert!(stopped.is_dir(), "its command has run");
    kill_and_compare(&bench, program, &before);
    assert!(!stopped.exists(), "the command that starts it has run");
}
