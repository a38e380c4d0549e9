//! The guardian killed, alone or together with the program.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use firedrill_agent::host::wait_until;
use firedrill_tests::stage::pair::{self, V4, WEB_PORTS};
use nix::sys::signal::{Signal, kill};
use support::{Bench, bench, find_guardian, guardian};

fn answers(bench: &Bench, patience: Duration) -> bool {
    let server = SocketAddr::from((V4[1], WEB_PORTS[0]));
    bench.stage.within("a", || pair::ask(server, patience)).expect("node").is_ok()
}

/// Freezes the server's group, and kills guardian and program in one go.
fn both_killed(bench: &Bench) {
    let group = bench.stage.cgroup(pair::WEB);
    let mut program = bench.start(&["inject", "pause", "--cgroup", &group, "--for", "60s"]);
    let guardian = guardian(&program);
    // Stopped first, so that it does not get itself another one.
    program.signal(Signal::SIGSTOP).expect("runs");
    kill(guardian, Signal::SIGKILL).expect("runs");
    program.signal(Signal::SIGKILL).expect("runs");
    program.wait(Duration::from_secs(2)).expect("dies");
    assert!(!answers(bench, Duration::from_millis(300)), "nobody is left who could thaw it");
}

#[test]
fn a_guardian_that_is_killed_is_replaced_and_the_run_goes_on() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    let program = bench.start(&["inject", "pause", "--cgroup", &group, "--for", "60s", "--json"]);
    for _ in 0..3 {
        let last = guardian(&program);
        kill(last, Signal::SIGKILL).expect("runs");
        let next = || find_guardian(&program).is_some_and(|pid| pid != last);
        assert!(wait_until(Duration::from_secs(10), next), "another one takes its place");
        assert!(!answers(&bench, Duration::from_millis(300)), "the fault goes on");
    }
    program.signal(Signal::SIGKILL).expect("runs");
    assert!(wait_until(Duration::from_secs(5), || answers(&bench, Duration::from_millis(300))), "thawed by the last");
}

#[test]
fn what_both_left_is_shown_and_recovered() {
    let Some(bench) = bench() else { return };
    both_killed(&bench);
    let status = bench.firedrill.output(&["status"]).expect("started");
    let told = String::from_utf8_lossy(&status.stdout).into_owned();
    assert_eq!(status.status.code(), Some(5), "{told}");
    assert!(told.contains("freeze cgroup") && told.contains("firedrill recover"), "{told}");
    let recover = bench.firedrill.output(&["recover"]).expect("started");
    assert_eq!(recover.status.code(), Some(0), "{}", String::from_utf8_lossy(&recover.stderr));
    assert!(answers(&bench, Duration::from_secs(1)), "thawed");
    assert_eq!(bench.firedrill.output(&["status"]).expect("started").status.code(), Some(0));
}

#[test]
fn the_next_run_recovers_first() {
    let Some(bench) = bench() else { return };
    both_killed(&bench);
    let netns = bench.stage.netns("b");
    let next = bench.firedrill.output(&["inject", "latency", "--netns", &netns, "--delay", "1ms", "--for", "1s"]);
    let told = String::from_utf8_lossy(&next.expect("started").stderr).into_owned();
    assert!(wait_until(Duration::from_secs(1), || answers(&bench, Duration::from_millis(300))), "{told}");
}
