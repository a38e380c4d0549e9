//! Ctrl-C, and two at a time.

mod support;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use firedrill_agent::host::wait_until;
use firedrill_tests::stage::pair::{self, V4, WEB_PORTS};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
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

#[test]
fn no_number_of_signals_skips_the_revert() {
    let Some(bench) = bench() else { return };
    let file = bench.files(
        "kind: Experiment\nname: slow\nsystem: duo\nsteps:\n  - target: web/kept\n    inject: [{stop: {}}]\n    for: 60s\n\
         expect: {radius: [front, web], healed: 5s}\n",
    );
    let slow = std::fs::read_to_string(&file).expect("there");
    let slow = slow.replace("start: [rmdir, ", "start: [sh, -c, 'sleep 3; rmdir $0', ");
    std::fs::write(&file, slow).expect("written");
    let mut program = bench.start(&["run", &file, "--quiet", "--json"]);
    let stopped = bench.firedrill.folder().path().join("stopped");
    assert!(stopped.is_dir(), "in force");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        program.signal(signal).expect("runs");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(program.is_running() && stopped.is_dir(), "it is not done yet");
    assert_eq!(program.wait(Duration::from_secs(30)).expect("ends").code(), Some(4), "{}", program.errors());
    assert!(!stopped.exists(), "reverted");
    let json: serde_json::Value = serde_json::from_str(&program.printed()).expect("JSON");
    assert!(json["aborted"]["why"].as_str().is_some_and(|why| why.contains("SIGTERM")), "the first counts: {json:#}");
    assert_eq!(json["changes"]["applied"], json["changes"]["undone"], "{json:#}");
    let log = std::fs::read_to_string(bench.firedrill.only_run().expect("one").join("events.ndjson")).expect("a log");
    assert!(log.contains("this is not skipped"), "it says that it goes on reverting");
}

/// Ctrl-\\ is for a program that does not listen: this one ends at once, and its guardian reverts.
#[test]
fn sigquit_ends_it_at_once_and_the_guardian_reverts() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    // It would leave a file of 100 MB.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0).expect("lowered");
    let mut program = bench.start(&["inject", "pause", "--cgroup", &group, "--for", "60s"]);
    assert!(!bench.answers(Duration::from_millis(300)), "frozen");
    program.signal(Signal::SIGQUIT).expect("runs");
    assert_eq!(program.wait(Duration::from_secs(2)).expect("ends").signal(), Some(Signal::SIGQUIT as i32));
    assert!(wait_until(Duration::from_secs(3), || bench.answers(Duration::from_millis(300))), "thawed");
}

#[test]
fn a_terminal_that_goes_away_is_a_reason_to_revert() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    let terminal = nix::pty::openpty(None, None).expect("a terminal");
    // It is open as long as anybody has this end.
    fcntl(&terminal.master, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("set");
    let line = bench.firedrill.command(&["inject", "pause", "--cgroup", &group, "--for", "60s"]);
    // In a session of its own, which this terminal controls.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP", "setsid", "--ctty"]).arg(line.get_program()).args(line.get_args());
    command.envs(line.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let end = || Stdio::from(terminal.slave.try_clone().expect("a descriptor"));
    let mut program = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("started");
    drop(command);
    drop(terminal.slave);
    // What is drawn must be read, or the program waits.
    let reader = {
        let screen = terminal.master.try_clone().expect("a descriptor");
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut part = [0; 4096];
            while !seen.load(std::sync::atomic::Ordering::SeqCst) {
                let mut ready = [PollFd::new(screen.as_fd(), PollFlags::POLLIN)];
                if poll(&mut ready, 20_u16).is_ok_and(|n| n > 0) && nix::unistd::read(&screen, &mut part).is_err() {
                    return;
                }
            }
        });
        (stop, thread)
    };
    assert!(wait_until(Duration::from_secs(20), || !bench.answers(Duration::from_millis(300))), "frozen");
    reader.0.store(true, std::sync::atomic::Ordering::SeqCst);
    reader.1.join().expect("it ends");
    drop(terminal.master);
    let mut ended = None;
    wait_until(Duration::from_secs(10), || {
        ended = program.try_wait().expect("a child");
        ended.is_some()
    });
    let _ = program.kill();
    assert_eq!(ended.and_then(|status| status.code()), Some(4), "reverted and reported, though nobody could see it");
    assert!(bench.answers(Duration::from_secs(1)));
}
