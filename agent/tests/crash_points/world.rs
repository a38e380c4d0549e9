//! What agents act on in one worker: namespaces, groups and processes that it made, and what they must look like after.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use firedrill_agent::crash_point;
use firedrill_agent::host::process;
use firedrill_agent::snapshot::{Difference, Snapshot};
use firedrill_model::change::{Change, Plan, VethEnd};
use firedrill_model::facts::Control;
use firedrill_model::run::TargetPlan;

use crate::parts::{self, Orders};
use crate::support::{Folder, Group, Pair, Process, SOON, controlled, plan, port, shelter_of, target, unique, words};

/// The sorts of target on which each fault is tried. The last is a group, too: it is for faults that need the commands.
pub const TARGETS: [&str; 4] = ["namespace", "cgroup", "process", REPLICA];
pub const REPLICA: &str = "replica with commands";

/// A worker's own corner of the host.
pub struct World {
    pub folder: Folder,
    pair: Pair,
    group: Group,
    member: Process,
    loner_group: Group,
    loner: Process,
    mark: PathBuf,
    /// Names of the stage that an agent makes here.
    stage: [String; 3],
    sleeps: String,
    before: Snapshot,
}

impl World {
    pub fn new() -> Self {
        let (folder, pair) = (Folder::new(), Pair::new());
        let (group, loner_group) = (Group::new("group"), Group::new("loner"));
        let (member, loner) = (serve(&group, &pair), serve(&loner_group, &pair));
        let mark = folder.0.join("stopped");
        let before = Snapshot::take(&pair.names()).expect("a snapshot");
        let stage = [unique("sa"), unique("sb"), unique("sg")];
        let sleeps = crate::support::unique_seconds();
        Self { folder, pair, group, member, loner_group, loner, mark, stage, sleeps, before }
    }

    /// Starts again what an earlier agent killed.
    pub fn refresh(&mut self) {
        if !process::is_alive(&self.member.identity) {
            self.member = serve(&self.group, &self.pair);
        }
        if !process::is_alive(&self.loner.identity) {
            self.loner = serve(&self.loner_group, &self.pair);
        }
        let _ = std::fs::remove_file(parts::guardian_file(&self.folder.directories().run));
        let _ = std::fs::remove_file(self.record());
    }

    /// Where crash points are recorded.
    pub fn record(&self) -> PathBuf {
        self.folder.0.join("passed")
    }

    /// The points that `role` has passed since the last refresh.
    pub fn passed(&self, role: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.record()).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix(role)?.strip_prefix(' ')).map(str::to_owned).collect()
    }

    /// The target of a sort.
    pub fn target(&self, sort: &str) -> TargetPlan {
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

    pub fn orders(&self) -> Orders {
        let directories = self.folder.directories();
        Orders { run: directories.run, state: directories.state, stage: Plan::default(), fault: None }
    }

    /// One change of each kind that only stages have, and a kernel parameter.
    pub fn stage(&self) -> Plan {
        let [a, b, group] = &self.stage;
        let end = |netns: &str, interface: &str, n: u8| VethEnd {
            netns: netns.into(),
            interface: interface.into(),
            addresses: vec![(IpAddr::from([10, 81, 0, n]), 24)],
            routes: Vec::new(),
        };
        plan(vec![
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
        ])
    }

    /// Starts an agent with orders, which dies where `at` says (see [`crash_point::AT`]).
    pub fn agent(&self, orders: &Orders, at: &str) -> std::process::Command {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this binary"));
        command.arg("agent").arg(serde_json::to_string(orders).expect("orders"));
        command.env(crash_point::AT, at).env(crash_point::COUNT, self.record());
        command
    }

    /// The guardian of the last agent, if it got as far as to start one.
    pub fn guardian(&self) -> Option<i32> {
        let text = std::fs::read_to_string(parts::guardian_file(&self.folder.directories().run)).ok()?;
        text.parse().ok()
    }

    /// What is not as it was; waits a while for what is just going.
    pub fn left(&self) -> Vec<String> {
        let names = self.pair.names();
        let mut marks: Vec<&str> = vec![&self.group.path, &self.loner_group.path];
        marks.extend(self.stage.iter().map(String::as_str));
        let victims = [&self.member, &self.loner].map(|victim| format!("{} (", victim.pid()));
        marks.extend(victims.iter().map(String::as_str));
        let now = || -> Vec<Difference> {
            let mut all = self.before.diff(&Snapshot::take(&names).expect("a snapshot"));
            all.retain(|d| {
                let ours = d.appeared && d.line.what.contains("fdrill_");
                ours || names.contains(&d.line.place) || marks.iter().any(|mark| d.line.what.contains(mark))
            });
            all
        };
        // What is just going, and other workers' programs, are gone at a later look.
        let begun = Instant::now();
        let mut difference = now();
        while !difference.is_empty() && begun.elapsed() < SOON {
            std::thread::sleep(Duration::from_millis(20));
            let still = now();
            difference.retain(|d| still.contains(d));
        }
        let mut left: Vec<String> = difference.iter().map(ToString::to_string).collect();
        let directories = self.folder.directories();
        for path in [directories.journal(), directories.durable(), self.mark.clone()] {
            if path.exists() {
                left.push(format!("file {}", path.display()));
            }
        }
        if let Some(shelter) = self.guardian().map(shelter_of).filter(|shelter| shelter.exists()) {
            left.push(format!("group {}", shelter.display()));
        }
        let sleeper = |pid: i32| process::cmdline(pid).contains(&self.sleeps);
        left.extend(
            process::all()
                .iter()
                .filter(|s| s.state != 'Z' && sleeper(s.process.pid))
                .map(|s| format!("process {}", s.process.pid)),
        );
        left
    }
}

fn serve(group: &Group, pair: &Pair) -> Process {
    let port = port();
    let server = group.server(&pair.a.name, port);
    pair.a.wait_for(port);
    server
}
