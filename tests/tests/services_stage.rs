//! `firedrill-stage`, as people use it: it stands until Ctrl-C, and nothing of it outlives it, whatever ends it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use firedrill_agent::host::{cgroup, netns, wait_until};
use firedrill_tests::needs;
use firedrill_tests::program::{Folder, binary, unique};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Namespaces and control groups of a stage.
fn standing(prefix: &str) -> Vec<String> {
    let ours = |name: &String| name.contains(prefix);
    netns::names().into_iter().filter(ours).chain(cgroup::all().into_iter().filter(ours)).collect()
}

/// Starts the tool, and waits until its stage stands.
fn start(prefix: &str, folder: &Path, out: &Path) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firedrill-stage"));
    command.args(["haproxy", "--prefix", prefix, "--folder"]).arg(folder);
    command.env("FIREDRILL_BIN", binary().expect("firedrill is built"));
    command.stdin(Stdio::null()).stdout(fs::File::create(out).expect("a file"));
    let mut child = command.spawn().expect("started");
    let begun = Instant::now();
    while !fs::read_to_string(out).is_ok_and(|text| text.contains("Ctrl-C")) {
        assert!(matches!(child.try_wait(), Ok(None)), "it ended too early");
        assert!(begun.elapsed() < Duration::from_secs(30), "the stage does not stand");
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}

fn ends_with(signal: Signal, patience: Duration) {
    if let Some(missing) = needs::missing(&["haproxy"]) {
        println!("SKIPPED: {missing}");
        return;
    }
    let (place, prefix) = (Folder::new().expect("a folder"), unique("fds"));
    let mut stage = start(&prefix, &place.path().join("stage"), &place.path().join("out"));
    // Five nodes and the router; four services, the router, the keepers and the group of all.
    assert_eq!(standing(&prefix).len(), 6 + 7, "{:?}", standing(&prefix));
    let text = fs::read_to_string(place.path().join("out")).expect("a file");
    assert!(text.contains(&format!("{prefix}-web-1")) && text.contains("experiments/systems/haproxy.yaml"), "{text}");
    kill(Pid::from_raw(stage.id().cast_signed()), signal).expect("runs");
    stage.wait().expect("ends");
    wait_until(patience, || standing(&prefix).is_empty());
    assert_eq!(standing(&prefix), Vec::<String>::new());
}

#[test]
fn ctrl_c_takes_a_stage_down() {
    ends_with(Signal::SIGINT, Duration::ZERO);
}

#[test]
fn a_stage_does_not_outlive_its_owner() {
    ends_with(Signal::SIGKILL, Duration::from_secs(3));
}
