//! What is protected, how its protection is lifted, caps, and faults that fight.

use std::os::unix::fs::symlink;
use std::time::Duration;

use firedrill_agent::agent::InjectError;
use firedrill_agent::host::{process, wait_until};
use firedrill_agent::target::TargetError;
use firedrill_model::config::Config;
use firedrill_model::facts::TargetFacts;
use firedrill_model::protect::Thing;
use firedrill_model::run::TargetPlan;
use firedrill_model::target::TargetSpec;
use serde_json::json;

use crate::support::{Bench, Folder, Group, LONG, Pair, Process, SOON, eventually, fault, port, target};

fn config(text: &str) -> Config {
    Config::parse("test.toml", text).expect("a configuration")
}

fn allowing(spec: TargetSpec, things: &[&str]) -> TargetPlan {
    let allow_protected = things.iter().map(|thing| thing.parse().expect("a thing")).collect();
    TargetPlan { allow_protected, ..target(spec) }
}

/// A program by another name: what is protected is known by the names of processes.
struct Renamed(Folder);

impl Renamed {
    fn new() -> Self {
        Self(Folder::new())
    }

    fn program(&self, real: &str, name: &str) -> String {
        let path = self.0.0.join(name);
        symlink(real, &path).expect("a link");
        path.display().to_string()
    }

    /// A process of this name in a group.
    fn start(&self, name: &str, group: &Group) -> Process {
        let path = self.0.0.join(name);
        let path = if path.exists() { path.display().to_string() } else { self.program("/bin/sleep", name) };
        group.start(&[&path, "1000"], None)
    }
}

fn name_of(process: &Process) -> String {
    process::stat(process.pid()).map(|stat| stat.process.comm).unwrap_or_default()
}

/// Moves a process into a group.
fn join(process: &Process, group: &Group) {
    std::fs::write(group.directory.join("cgroup.procs"), process.pid().to_string()).expect("it joins");
}

/// The error of a refusal, which must name the words that lift it.
fn refused(bench: &Bench, spec: TargetSpec, word: &str) {
    let error = bench.agent.resolve(&target(spec.clone())).expect_err("refused");
    let text = error.to_string();
    assert!(matches!(error, TargetError::Protected { .. }), "{spec}: {text}");
    assert!(text.contains(&format!("--allow-protected \"{word}\"")), "{spec}: {text}");
    assert!(text.contains(&format!("allow_protected: [\"{word}\"]")), "{spec}: {text}");
}

pub fn what_keeps_a_host_in_order_is_refused_alone_and_in_groups_and_allowed_by_its_name() {
    let names = [
        ("sshd", "sshd"),
        ("sshd-session", "sshd-session"),
        ("systemd", "systemd"),
        ("dbus-daemon", "dbus-daemon"),
        ("dbus-broker", "dbus-broker"),
        ("dockerd", "dockerd"),
        ("containerd", "containerd"),
        // The kernel keeps 15 bytes.
        ("containerd-shim-runc-v2", "containerd-shim"),
        ("podman", "podman"),
        ("conmon", "conmon"),
        ("crio", "crio"),
    ];
    let (renamed, bench) = (Renamed::new(), Bench::new());
    for (program, name) in names {
        let outer = Group::new("protected");
        let inner = outer.below("inner");
        let (protected, _other) = (renamed.start(program, &inner), outer.start(&["sleep", "1000"], None));
        let word = format!("process {name}");
        for spec in [protected.spec(), inner.spec(), outer.spec()] {
            refused(&bench, spec.clone(), &word);
            assert!(bench.agent.resolve(&allowing(spec.clone(), &["process other", "port 22"])).is_err(), "{spec}");
            let found = bench.agent.resolve(&allowing(spec, &[&word])).expect("allowed by its name");
            assert_eq!(found.lifted, [Thing::Process(name.into())]);
        }
    }
}

pub fn what_was_allowed_is_noted_in_the_plan() {
    let (renamed, bench, group) = (Renamed::new(), Bench::new(), Group::new("noted"));
    let _sshd = renamed.start("sshd", &group);
    let found = bench.agent.resolve(&allowing(group.spec(), &["process sshd"])).expect("allowed");
    let injected = bench.agent.inject(&found, &fault("pause", json!({})), LONG).expect("injected");
    assert!(group.is_frozen());
    assert!(injected.notes.iter().any(|note| note.contains("`process sshd` is not protected")), "{:?}", injected.notes);
    bench.agent.revert(injected.id);
}

pub fn nothing_lifts_the_protection_of_firedrill_itself() {
    let bench = Bench::new();
    let me = process::stat(std::process::id().cast_signed()).expect("this process").process;
    let spec = |pid| TargetSpec { pid: Some(pid), ..TargetSpec::default() };
    let things = [format!("process {}", me.comm), "process systemd".into(), "process init".into()];
    let things: Vec<&str> = things.iter().map(String::as_str).collect();
    for pid in [me.pid, 1] {
        let error = bench.agent.resolve(&allowing(spec(pid), &things)).expect_err("refused").to_string();
        assert!(error.contains("is protected") && !error.contains("--allow-protected"), "{error}");
    }
    let root = TargetSpec { cgroup: Some("/".into()), ..TargetSpec::default() };
    assert!(bench.agent.resolve(&allowing(root, &things)).is_err());
}

pub fn a_protected_process_that_joins_before_the_fault_stops_it() {
    let (renamed, bench, group) = (Renamed::new(), Bench::new(), Group::new("joins"));
    let _other = group.start(&["sleep", "1000"], None);
    let found = bench.resolve(group.spec());
    let _sshd = renamed.start("sshd", &group);
    for (name, parameters) in [("pause", json!({})), ("kill", json!({})), ("partition", json!({}))] {
        let error = bench.agent.inject(&found, &fault(name, parameters), LONG).expect_err("refused");
        assert!(matches!(error, InjectError::Target(TargetError::Protected { .. })), "{name}: {error}");
    }
    assert!(!group.is_frozen());
}

pub fn a_protected_process_that_joins_later_is_not_killed_with_the_others() {
    let (renamed, bench, group) = (Renamed::new(), Bench::new(), Group::new("keep"));
    let mut first = group.start(&["sleep", "1000"], None);
    let kill = fault("kill", json!({ "keep": true }));
    // Under its name before it comes: what forks in the group is somebody else until it has become its own program.
    let sshd = Process::start(&[&renamed.program("/bin/sleep", "sshd"), "1000"]);
    eventually("it has its name", || name_of(&sshd) == "sshd");
    let injected = bench.agent.inject(&bench.resolve(group.spec()), &kill, LONG).expect("injected");
    first.child.wait().expect("it was killed");
    join(&sshd, &group);
    let mut stranger = group.start(&["sleep", "1000"], None);
    stranger.child.wait().expect("it was killed, too");
    // Time for several looks.
    assert!(!wait_until(Duration::from_millis(300), || sshd.state() == 'Z'), "sshd lives");
    bench.agent.revert(injected.id);
    assert_eq!(sshd.state(), 'S');
}

pub fn a_configuration_adds_to_what_is_protected() {
    let (renamed, group) = (Renamed::new(), Group::new("added"));
    let bench = Bench::with(config("[protect]\nprocesses = [\"fdr-ledger\"]\nports = [8443]\n"));
    let ledger = renamed.start("fdr-ledger", &group);
    for spec in [ledger.spec(), group.spec()] {
        refused(&bench, spec, "process fdr-ledger");
    }
    assert!(spared(&bench, &[]).contains(&8443));
}

/// Ports that faults on the host's own network would let through. It is only looked at.
fn spared(bench: &Bench, allowed: &[&str]) -> Vec<u16> {
    let host = TargetSpec { netns: Some("host".into()), ..TargetSpec::default() };
    let lo = TargetSpec { interface: Some("lo".into()), ..TargetSpec::default() };
    let [host, lo]: [TargetFacts; 2] =
        [host, lo].map(|spec| bench.agent.resolve(&allowing(spec, allowed)).expect("the host's own network"));
    let ports = |found: &TargetFacts| found.netns.as_ref().expect("a network").spare_ports.clone();
    assert_eq!(ports(&host), ports(&lo));
    assert_eq!(host.netns.as_ref().map(|n| n.netns.inode), Some(bench.agent.host().netns));
    ports(&host)
}

pub fn on_the_hosts_own_network_the_ports_of_ssh_are_let_through_unless_they_are_named() {
    let (renamed, bench, group) = (Renamed::new(), Bench::new(), Group::new("ports"));
    assert!(spared(&bench, &[]).contains(&22));
    assert!(!spared(&bench, &["port 22"]).contains(&22), "allowed by its name");
    let this = std::env::current_exe().expect("this binary").display().to_string();
    let (sshd, own) = (renamed.program(&this, "sshd"), port());
    let _server = group.start(&[&sshd, "answer", &own.to_string()], None);
    eventually("a port on which an sshd listens", || spared(&bench, &[]).contains(&own));
    let pair = Pair::new();
    let other = bench.resolve(pair.a.spec());
    assert_eq!(other.netns.expect("a network").spare_ports, [] as [u16; 0], "another namespace is nobody's way in");
}

pub fn a_fault_that_would_fight_with_another_is_refused_with_its_name() {
    let (bench, outer) = (Bench::new(), Group::new("fights"));
    let inner = outer.below("inner");
    let members = [outer.start(&["sleep", "1000"], None), inner.start(&["sleep", "1000"], None)];
    let pause = fault("pause", json!({}));
    let first = bench.agent.inject(&bench.resolve(outer.spec()), &pause, LONG).expect("injected");
    let others = [
        (inner.spec(), pause.clone()),
        (members[1].spec(), pause.clone()),
        (outer.spec(), fault("kill", json!({}))),
        (members[0].spec(), fault("kill", json!({ "keep": true }))),
    ];
    for (spec, second) in others {
        let error = bench.agent.inject(&bench.resolve(spec), &second, LONG).expect_err("refused").to_string();
        assert!(error.contains(&format!("`pause` on cgroup {}, of this run", outer.path)), "{error}");
    }
    assert!(members.iter().all(|m| m.state() != 'Z'), "nobody was killed");
    // One that came into the group after it was frozen.
    let late = Process::start(&["sleep", "1000"]);
    join(&late, &inner);
    assert!(bench.agent.inject(&bench.resolve(late.spec()), &pause, LONG).is_err());
    let packets = fault("partition", json!({}));
    let along = bench.agent.inject(&bench.resolve(inner.spec()), &packets, LONG).expect("packets get along");
    bench.agent.revert(first.id);
    eventually("it thaws", || !outer.is_frozen());
    let free = bench.agent.inject(&bench.resolve(inner.spec()), &pause, LONG).expect("nobody holds it any more");
    bench.agent.revert(free.id);
    bench.agent.revert(along.id);
}

pub fn caps_are_kept_by_the_agent_and_say_where_they_are_set() {
    let bench = Bench::with(config("[caps]\ntargets = 2\nreplicas = \"50%\"\nduration = \"30s\"\n"));
    let groups = [Group::new("one"), Group::new("two"), Group::new("three")];
    let _members: Vec<Process> = groups.iter().map(|group| group.start(&["sleep", "1000"], None)).collect();
    let (pause, short) = (fault("pause", json!({})), Duration::from_secs(20));
    let replica =
        |group: &Group, of: &str| TargetPlan { component: Some(of.into()), replicas: 3, ..target(group.spec()) };
    let found = |plan: &TargetPlan| bench.agent.resolve(plan).expect("a target");
    let refused = |plan: &TargetPlan, lasts, parts: &[&str]| {
        let error = bench.agent.inject(&found(plan), &pause, lasts).expect_err("refused");
        assert!(matches!(error, InjectError::Cap(_)), "{error}");
        let text = error.to_string();
        assert!(parts.iter().chain(&["test.toml"]).all(|part| text.contains(part)), "{text}");
    };
    refused(&target(groups[0].spec()), LONG, &["caps.duration", "30s"]);
    let first = bench.agent.inject(&found(&replica(&groups[0], "web")), &pause, short).expect("the first");
    refused(&replica(&groups[1], "web"), short, &["caps.replicas", "50%", "2 of the 3 replicas of web"]);
    let second = bench.agent.inject(&found(&replica(&groups[1], "db")), &pause, short).expect("another component");
    refused(&target(groups[2].spec()), short, &["caps.targets", "permits 2"]);
    assert!(groups[0].is_frozen() && groups[1].is_frozen() && !groups[2].is_frozen());
    bench.agent.revert(first.id);
    let third = bench.agent.inject(&found(&replica(&groups[2], "web")), &pause, short).expect("there is room again");
    for id in [second.id, third.id] {
        bench.agent.revert(id);
    }
    assert!(wait_until(SOON, || groups.iter().all(|group| !group.is_frozen())));
}
