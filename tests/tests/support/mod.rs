//! A pair of namespaces, and the program to hold drills on it.
#![allow(dead_code, reason = "every test file uses some of it")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use firedrill_agent::host::process;
use firedrill_tests::needs;
use firedrill_tests::program::{Firedrill, Started, unique};
use firedrill_tests::stage::{Programs, Stage, pair};
use nix::unistd::Pid;

/// The stage and the program; the stage falls first.
pub struct Bench {
    pub stage: Stage,
    pub firedrill: Firedrill,
}

/// A bench; `None`, after it was said why, when this machine cannot have one.
pub fn bench() -> Option<Bench> {
    if let Some(missing) = needs::missing(&["ip", "tc", "ping", "nft"]) {
        println!("SKIPPED: {missing}");
        return None;
    }
    let firedrill = Firedrill::new().expect("firedrill");
    // In a guest it lies beside the other one.
    let stage = Some(PathBuf::from(env!("CARGO_BIN_EXE_firedrill-stage"))).filter(|path| path.is_file());
    let stage = stage.unwrap_or_else(|| firedrill.binary().with_file_name("firedrill-stage"));
    let programs = Programs { firedrill: firedrill.binary().to_owned(), stage };
    let stage = pair::raise(&programs, &unique("fdt"), &firedrill.folder().path().join("stage")).expect("a stage");
    Some(Bench { stage, firedrill })
}

impl Bench {
    /// Whether the web server answers a request from the other node.
    pub fn answers(&self, patience: Duration) -> bool {
        let server = SocketAddr::from((pair::V4[1], pair::WEB_PORTS[0]));
        self.stage.within("a", || pair::ask(server, patience)).expect("node").is_ok()
    }

    /// A system of the one web server, and experiments on it. `NETNS` and `GROUP` stand for the stage's names.
    pub fn files(&self, experiments: &str) -> String {
        let system = "\
kind: System
name: duo
netns: NETNS-a
components:
  - name: front
    user_facing: true
    probes:
      - name: page
        http: {url: \"http://10.215.0.2:8080/\", status: 200, contains: hello}
        every: 50ms
        timeout: 500ms
        steady: {bad: 20%}
  - name: web
    replicas:
      - {name: web-1, cgroup: GROUP/web}
      - name: kept
        cgroup: GROUP/kept
        control: {stop: [mkdir, FOLDER/stopped], start: [rmdir, FOLDER/stopped]}
    probes:
      - name: second
        http: {url: \"http://10.215.0.2:8081/\", status: 200}
        every: 50ms
        timeout: 500ms
        steady: {bad: 20%}
";
        let folder = self.firedrill.folder().path().display().to_string();
        let text = format!("{system}---\n{experiments}");
        let text = text.replace("NETNS", self.stage.prefix()).replace("GROUP", self.stage.prefix());
        let path = self.firedrill.folder().write("drill.yaml", &text.replace("FOLDER", &folder)).expect("written");
        path.display().to_string()
    }

    /// Starts the program, and waits until its first fault is in force.
    pub fn start(&self, args: &[&str]) -> Started {
        let mut started = self.firedrill.start(args).expect("started");
        let begun = Instant::now();
        while self.firedrill.steps_in_force() == 0 {
            assert!(started.is_running(), "it ended too early: {}{}", started.printed(), started.errors());
            assert!(begun.elapsed() < Duration::from_secs(20), "no fault after 20 s: {}", started.errors());
            std::thread::sleep(Duration::from_millis(10));
        }
        started
    }
}

/// The guardian of a running program.
pub fn guardian(program: &Started) -> Pid {
    find_guardian(program).expect("a guardian")
}

/// The guardian of a running program, found by its parent; for a moment there may be none.
pub fn find_guardian(program: &Started) -> Option<Pid> {
    let parent = program.pid().cast_signed();
    let is_child = |pid: &i32| process::lineage(*pid).get(1) == Some(&parent);
    let named = |pid: &i32| process::cmdline(*pid).starts_with("firedrill-guardian");
    let found = process::all().into_iter().map(|s| s.process.pid).find(|pid| is_child(pid) && named(pid));
    found.map(Pid::from_raw)
}
