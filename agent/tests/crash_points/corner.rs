//! Namespaces, groups and processes of a worker's own.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use firedrill_agent::host::process;
use firedrill_model::change::{Change, Plan, VethEnd};
use firedrill_model::facts::Control;
use firedrill_model::fault::Fault;
use firedrill_model::run::TargetPlan;

use crate::support::{Folder, Group, Pair, Process, controlled, plan, port, target, unique, unique_seconds, words};
use crate::world::Ground;

/// A group whose owner says how to stop and start it: for faults that can act on nothing else here.
const REPLICA: &str = "replica with commands";

pub struct Corner {
    pair: Pair,
    group: Group,
    member: Process,
    loner_group: Group,
    loner: Process,
    mark: PathBuf,
    /// Names of the stage that an agent makes here.
    stage: [String; 3],
    sleeps: String,
}

impl Corner {
    pub fn new(folder: &Folder) -> Self {
        let pair = Pair::new();
        let (group, loner_group) = (Group::new("group"), Group::new("loner"));
        let (member, loner) = (serve(&group, &pair), serve(&loner_group, &pair));
        let stage = [unique("sa"), unique("sb"), unique("sg")];
        let sleeps = unique_seconds();
        Self { pair, group, member, loner_group, loner, mark: folder.0.join("stopped"), stage, sleeps }
    }
}

impl Ground for Corner {
    fn sorts(&self) -> &'static [&'static str] {
        &["namespace", "cgroup", "process", REPLICA]
    }

    fn target(&self, sort: &str) -> TargetPlan {
        match sort {
            "namespace" => target(self.pair.a.spec()),
            "cgroup" => target(self.group.spec()),
            "process" => target(self.loner.spec()),
            _ => {
                let mark = self.mark.display().to_string();
                // Slow, so that it would still be at work when somebody undoes it.
                let stop = format!("sleep 0.1; touch {mark}");
                let control = Control { stop: words(&["sh", "-c", &stop]), start: words(&["rm", "-f", &mark]) };
                controlled(self.group.spec(), control)
            }
        }
    }

    fn is_tried(&self, _: &Fault, sort: &str, before: &[&str]) -> bool {
        sort != REPLICA || before.is_empty()
    }

    fn hold(&self, _: &str) -> Duration {
        Duration::ZERO
    }

    fn stage(&self) -> Option<Plan> {
        let [a, b, group] = &self.stage;
        let end = |netns: &str, interface: &str, n: u8| VethEnd {
            netns: netns.into(),
            interface: interface.into(),
            addresses: vec![(IpAddr::from([10, 81, 0, n]), 24)],
            routes: Vec::new(),
        };
        Some(plan(vec![
            Change::Sysctl {
                netns: self.pair.b.reference(),
                key: "net.ipv4.ip_default_ttl".into(),
                value: "65".into(),
            },
            Change::Netns { name: a.clone() },
            Change::Netns { name: b.clone() },
            Change::Veth { a: end(a, "sa0", 1), b: end(b, "sb0", 2) },
            Change::MakeCgroup { path: group.clone() },
            Change::Spawn {
                name: "sleeper".into(),
                command: words(&["sleep", &self.sleeps]),
                env: BTreeMap::new(),
                netns: Some(a.clone()),
                cgroup: group.clone(),
                log: None,
            },
        ]))
    }

    fn refresh(&mut self) {
        if !process::is_alive(&self.member.identity) {
            self.member = serve(&self.group, &self.pair);
        }
        if !process::is_alive(&self.loner.identity) {
            self.loner = serve(&self.loner_group, &self.pair);
        }
    }

    fn namespaces(&self) -> Vec<String> {
        self.pair.names().to_vec()
    }

    fn marks(&self) -> Vec<String> {
        let mut marks = vec![self.group.path.clone(), self.loner_group.path.clone()];
        marks.extend(self.stage.iter().cloned());
        marks.extend([&self.member, &self.loner].map(|victim| format!("{} (", victim.pid())));
        marks
    }

    fn left(&self) -> Vec<String> {
        let sleeper = |pid: i32| process::cmdline(pid).contains(&self.sleeps);
        let sleepers = process::all().into_iter().map(|s| s.process.pid).filter(|pid| sleeper(*pid));
        let mut left: Vec<String> = sleepers.map(|pid| format!("process {pid}")).collect();
        if self.mark.exists() {
            left.push(format!("file {}", self.mark.display()));
        }
        left
    }
}

fn serve(group: &Group, pair: &Pair) -> Process {
    let port = port();
    let server = group.server(&pair.a.name, port);
    pair.a.wait_for(port);
    server
}
