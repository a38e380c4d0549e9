//! The wall clock jumps while faults are in force: they last as long as they were asked to, and a run that hangs loses
//! them as soon.

use std::fs;
use std::net::UdpSocket;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use firedrill_agent::host::{cgroup, netns, wait_until};
use firedrill_agent::stage;
use firedrill_tests::needs_guest;
use firedrill_tests::program::{Firedrill, Started};
use nix::sys::signal::Signal;

const DAY: i64 = 24 * 60 * 60;
/// How long the faults are asked to last.
const ASKED: Duration = Duration::from_secs(16);
/// Guests are emulated, and the host may be busy: this much later is not late.
const SLACK: Duration = Duration::from_secs(8);

const EXPERIMENT: &str = "\
kind: System
name: site
components:
  - name: web
    replicas:
      - {name: frozen, cgroup: clock-web}
      - {name: cut, netns: clock-net, interface: lo}
---
kind: Experiment
name: clock
system: site
steps:
  - {target: web/frozen, inject: [{pause: {}}], for: 16s}
  - {target: web/cut, inject: [{loss: {percent: 100%}}], for: 16s}
expect: {radius: [web], healed: 5s}
";

/// A group with a process, a namespace, and a run whose faults act on both.
struct Drill {
    member: Child,
    run: Started,
    in_force: Instant,
    _program: Firedrill,
}

impl Drill {
    fn begin() -> Self {
        let group = cgroup::path_of("clock-web").expect("cgroup v2");
        fs::create_dir(&group).expect("a group");
        let member = Command::new("sleep").arg("1000").spawn().expect("a process");
        fs::write(group.join("cgroup.procs"), member.id().to_string()).expect("moved");
        stage::make_netns("clock-net").expect("a namespace");
        assert!(passes(), "packets pass before");

        let program = Firedrill::new().expect("firedrill");
        let file = program.folder().write("clock.yaml", EXPERIMENT).expect("written").display().to_string();
        let mut run = program.start(&["run", &file, "--quiet"]).expect("started");
        let in_force = || program.steps_in_force() == 2;
        let seen = wait_until(Duration::from_secs(60), || in_force() || !run.is_running());
        if !(seen && in_force()) {
            let status = run.wait(Duration::ZERO);
            panic!("the faults are not in force: {status:?} {}{}", run.printed(), run.errors());
        }
        Self { member, run, in_force: Instant::now(), _program: program }
    }

    fn acts(&self) -> bool {
        cgroup::find("clock-web").is_ok_and(|group| cgroup::is_frozen(&group)) && !passes()
    }

    fn is_over(&self) -> bool {
        cgroup::find("clock-web").is_ok_and(|group| !cgroup::is_frozen(&group)) && passes()
    }

    /// The faults act until their time, and no longer. It began a little before we saw that.
    fn lasts_as_asked(&mut self) {
        const SEEN_LATE: Duration = Duration::from_secs(6);
        while self.in_force.elapsed() < ASKED - SEEN_LATE {
            let at = self.in_force.elapsed();
            // What was asked before its end may be answered after it.
            assert!(self.acts() || self.in_force.elapsed() >= ASKED - SEEN_LATE, "over after {at:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(wait_until(SEEN_LATE + SLACK, || self.is_over()), "still there after {:?}", self.in_force.elapsed());
        self.run.wait(Duration::from_secs(60)).expect("ends");
        assert!(!self.run.printed().contains("not renewed"), "{}", self.run.printed());
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        let group = cgroup::path_of("clock-web").expect("cgroup v2");
        let _ = fs::write(group.join("cgroup.freeze"), "0");
        let _ = self.member.kill();
        let _ = self.member.wait();
        let _ = stage::remove_cgroup(&group);
        let _ = stage::delete_netns("clock-net");
    }
}

/// Whether a datagram passes the loopback of the namespace.
fn passes() -> bool {
    let reference = netns::named("clock-net").expect("the namespace");
    netns::within(&reference, || {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        socket.send_to(b"?", socket.local_addr().expect("an address")).expect("the sender sees no error");
        socket.recv(&mut [0; 8]).is_ok()
    })
    .expect("entered")
}

/// Moves the wall clock, and back when it goes.
struct Jump(i64);

impl Jump {
    fn by(seconds: i64) -> Self {
        move_clock(seconds);
        Self(seconds)
    }
}

impl Drop for Jump {
    fn drop(&mut self) {
        move_clock(-self.0);
    }
}

fn move_clock(seconds: i64) {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs().cast_signed();
    let wanted = now() + seconds;
    let date = Command::new("date").args(["-s", &format!("@{wanted}")]).output().expect("date");
    assert!(date.status.success() && (now() - wanted).abs() < 60, "{}", String::from_utf8_lossy(&date.stderr));
}

#[test]
fn a_fault_lasts_as_asked_though_the_clock_jumps_a_day() {
    needs_guest!();
    for seconds in [DAY, -DAY] {
        let mut drill = Drill::begin();
        let _jump = Jump::by(seconds);
        drill.lasts_as_asked();
    }
}

#[test]
fn a_run_that_hangs_loses_its_faults_though_the_clock_jumps_a_day() {
    needs_guest!();
    for seconds in [DAY, -DAY] {
        let mut drill = Drill::begin();
        drill.run.signal(Signal::SIGSTOP).expect("runs");
        let stopped = Instant::now();
        let _jump = Jump::by(seconds);
        std::thread::sleep(Duration::from_secs(2));
        assert!(cgroup::find("clock-web").is_ok_and(|group| cgroup::is_frozen(&group)), "slow is not hung");
        assert!(wait_until(Duration::from_secs(4) + SLACK, || drill.is_over()), "still there");
        println!("over {:.1} s after the run was stopped", stopped.elapsed().as_secs_f64());
        let status = drill.run.wait(Duration::from_secs(5)).expect("its guardian has killed it");
        assert_eq!(status.code(), None, "by a signal");
    }
}
