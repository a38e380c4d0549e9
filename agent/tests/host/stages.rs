//! Stages: namespaces, links, groups and processes of our own, and that nothing of them is left.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use firedrill_agent::host::{cgroup, netns, process};
use firedrill_agent::snapshot::Snapshot;
use firedrill_model::change::{Change, Route, VethEnd};
use firedrill_model::units::Cidr;
use serde_json::json;

use crate::support::{Bench, Folder, Group, LONG, Netns, assert_unchanged, eventually, fault, plan, unique, words};

/// Two joined namespaces, a group, and a process in the first and the group.
pub struct Stage {
    pub a: String,
    pub b: String,
    pub group: String,
    pub log: std::path::PathBuf,
}

impl Stage {
    pub fn new(folder: &Folder) -> Self {
        Self { a: unique("sa"), b: unique("sb"), group: unique("sg"), log: folder.0.join("sleeper.log") }
    }

    pub fn changes(&self, command: &[&str]) -> Vec<Change> {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let end = |netns: &str, interface: &str, n: u8, routes| VethEnd {
            netns: netns.into(),
            interface: interface.into(),
            addresses: vec![(address(&format!("10.79.0.{n}")), 24), (address(&format!("fd79::{n}")), 64)],
            routes,
        };
        let route = |to: &str, via: &str| Route { to: to.parse::<Cidr>().expect("a network"), via: address(via) };
        let routes =
            vec![route("0.0.0.0/0", "10.79.0.2"), route("::/0", "fd79::2"), route("10.80.0.0/16", "10.79.0.2")];
        vec![
            Change::Netns { name: self.a.clone() },
            Change::Netns { name: self.b.clone() },
            Change::Veth { a: end(&self.a, "veth-a", 1, routes), b: end(&self.b, "veth-b", 2, Vec::new()) },
            Change::MakeCgroup { path: self.group.clone() },
            Change::MakeCgroup { path: format!("{}/inner", self.group) },
            Change::Spawn {
                name: "sleeper".into(),
                command: words(command),
                env: BTreeMap::from([("GREETING".into(), "hello".into())]),
                netns: Some(self.a.clone()),
                cgroup: format!("{}/inner", self.group),
                log: Some(self.log.display().to_string()),
            },
        ]
    }

    pub fn is_gone(&self) -> bool {
        let named = [&self.a, &self.b].iter().any(|name| netns::named(name).is_ok());
        !named && cgroup::find(&self.group).is_err()
    }
}

fn in_namespace(name: &str, command: &[&str]) -> std::process::Output {
    let netns = netns::named(name).expect("the namespace");
    netns::within(&netns, || std::process::Command::new(command[0]).args(&command[1..]).output())
        .expect("entered")
        .expect("the command")
}

pub fn two_namespaces_joined_by_a_veth_pair_hear_each_other() {
    let folder = Folder::new();
    let stage = Stage::new(&folder);
    let before = Snapshot::take(&[]).expect("a snapshot");
    let bench = Bench::new();
    bench.agent.apply(&plan(stage.changes(&["sleep", "1000"])), LONG).expect("a stage");
    // The first packets may be lost: IPv6 waits for the links to settle.
    for (from, to) in [(&stage.a, "10.79.0.2"), (&stage.a, "fd79::2"), (&stage.b, "10.79.0.1"), (&stage.b, "fd79::1")] {
        let output = in_namespace(from, &["ping", "-c4", "-i0.4", "-W2", to]);
        assert!(output.status.success(), "{from} to {to}: {}", String::from_utf8_lossy(&output.stdout));
    }
    // Its own loopback, and the routes, which lead elsewhere than the addresses.
    assert!(in_namespace(&stage.b, &["ping", "-c1", "-W2", "127.0.0.1"]).status.success());
    let routes = String::from_utf8_lossy(&in_namespace(&stage.a, &["ip", "route"]).stdout).into_owned();
    assert!(routes.contains("default via 10.79.0.2") && routes.contains("10.80.0.0/16 via 10.79.0.2"), "{routes}");
    let routes = String::from_utf8_lossy(&in_namespace(&stage.a, &["ip", "-6", "route"]).stdout).into_owned();
    assert!(routes.contains("default via fd79::2"), "{routes}");
    bench.ends_clean(&before, &[], &[&stage.a, &stage.b, &stage.group]);
    assert!(stage.is_gone());
}

pub fn a_process_is_in_its_group_and_namespace_from_the_start_and_all_go_together() {
    let folder = Folder::new();
    let stage = Stage::new(&folder);
    let before = Snapshot::take(&[]).expect("a snapshot");
    let bench = Bench::new();
    // What it does first: it tells where it is; it has a child, too.
    let script = "cat /proc/self/cgroup; readlink /proc/self/ns/net; echo $GREETING; echo oops >&2; sleep 1000 & wait";
    bench.agent.apply(&plan(stage.changes(&["sh", "-c", script])), LONG).expect("a stage");
    let said = || fs::read_to_string(&stage.log).unwrap_or_default();
    eventually("it has spoken", || said().contains("oops"));
    let inode = fs::metadata(format!("/run/netns/{}", stage.a)).expect("the namespace").ino();
    for wanted in [format!("0::/{}/inner", stage.group), format!("net:[{inode}]"), "hello".into(), "oops".into()] {
        assert!(said().contains(&wanted), "{wanted} is not in {}", said());
    }
    let group = cgroup::find(&stage.group).expect("the group");
    eventually("it has a child", || cgroup::processes(&group).len() == 2);
    let members = cgroup::processes(&group);
    bench.ends_clean(&before, &[], &[&stage.a, &stage.b, &stage.group]);
    assert!(stage.is_gone());
    assert!(!members.iter().any(process::is_alive));
}

pub fn a_program_that_is_not_there_is_an_error_and_leaves_nothing() {
    let folder = Folder::new();
    let stage = Stage::new(&folder);
    let before = Snapshot::take(&[]).expect("a snapshot");
    let bench = Bench::new();
    let failed = bench.agent.apply(&plan(stage.changes(&["no-such-program"])), LONG).expect_err("not there");
    assert!(failed.to_string().contains("there is no program `no-such-program`"), "{failed}");
    assert!(stage.is_gone());
    bench.ends_clean(&before, &[], &[&stage.a, &stage.b, &stage.group]);
}

pub fn a_name_that_is_taken_is_refused_and_its_owner_untouched() {
    let (theirs, group) = (Netns::new("theirs"), Group::new("theirs"));
    let member = group.start(&["sleep", "1000"], None);
    let before = Snapshot::take(std::slice::from_ref(&theirs.name)).expect("a snapshot");
    let bench = Bench::new();
    for change in [Change::Netns { name: theirs.name.clone() }, Change::MakeCgroup { path: group.path.clone() }] {
        let refused = bench.agent.apply(&plan(vec![change]), LONG).expect_err("taken");
        assert!(refused.to_string().contains("of that name already"), "{refused}");
    }
    let outside = bench.agent.apply(&plan(vec![Change::MakeCgroup { path: "../elsewhere".into() }]), LONG);
    assert!(outside.expect_err("outside").to_string().contains("not a path below"));
    bench.agent.stop();
    assert_eq!(member.state(), 'S');
    assert_unchanged(&before, std::slice::from_ref(&theirs.name), &[&theirs.name, &group.path]);
}

pub fn a_frozen_or_stopped_process_does_not_keep_its_stage() {
    let folder = Folder::new();
    let stage = Stage::new(&folder);
    let before = Snapshot::take(&[]).expect("a snapshot");
    let bench = Bench::new();
    bench.agent.apply(&plan(stage.changes(&["sleep", "1000"])), LONG).expect("a stage");
    let spec = firedrill_model::target::TargetSpec { cgroup: Some(stage.group.clone()), ..Default::default() };
    let found = bench.resolve(spec);
    bench.agent.inject(&found, &fault("pause", json!({})), LONG).expect("frozen");
    // By somebody else, after us: nothing of ours will thaw or continue it.
    let inner = cgroup::find(&format!("{}/inner", stage.group)).expect("the group");
    cgroup::set_freeze(&inner, "1").expect("frozen");
    process::signal(&found.processes[0], 19).expect("stopped");
    bench.ends_clean(&before, &[], &[&stage.a, &stage.b, &stage.group]);
    assert!(stage.is_gone());
}
