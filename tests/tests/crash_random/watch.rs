//! What of a drill is on the host, cheap enough to be looked at every millisecond: the kernel is asked, no tool is run.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use aya::maps::loaded_maps;
use aya::programs::{loaded_links, loaded_programs};
use firedrill_agent::dataplane::{has_clsact, is_own_tap};
use firedrill_agent::host::{cgroup, hooks, netns, process};
use firedrill_model::change::Way;
use firedrill_model::facts::{CgroupRef, NetnsRef, ProcessRef};
use firedrill_tests::stage::pair::{self, V4, V6, WEB_PORTS};

use crate::drill::{self, Running};
use crate::support::Bench;

/// What is there of a program that has done nothing yet.
pub const OF_THE_PROGRAM: [&str; 4] = ["its process", "its guardian", "the guardian's group", "the journal"];

/// What a host looks like to which somebody's drills are done.
pub struct Watch<'a> {
    bench: &'a Bench,
    groups: Vec<CgroupRef>,
    servers: Vec<ProcessRef>,
    namespaces: Vec<NetnsRef>,
    /// The program under watch, its guardians, and its eBPF objects.
    program: Option<ProcessRef>,
    guardians: Vec<ProcessRef>,
    objects: Objects,
}

/// Numbers of eBPF objects.
#[derive(Clone, Default)]
struct Objects {
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

/// How a host came clean.
pub struct Clean {
    /// After how long.
    pub took: Duration,
    /// What was last to go.
    pub last: &'static str,
    /// What was still there when patience was over.
    pub left: Vec<&'static str>,
}

impl<'a> Watch<'a> {
    /// Finds the targets.
    ///
    /// # Errors
    /// One is not there.
    pub fn new(bench: &'a Bench) -> Result<Self> {
        let group = |name| cgroup::find(&bench.stage.cgroup(name));
        let server = |port| Ok(process::stat(pair::server(&bench.stage, port)?)?.process);
        Ok(Self {
            bench,
            groups: vec![group(pair::WEB)?, group(pair::KEPT)?],
            servers: WEB_PORTS.into_iter().map(server).collect::<Result<_>>()?,
            namespaces: ["a", "b"]
                .map(|node| netns::named(&bench.stage.netns(node)))
                .into_iter()
                .collect::<Result<_, _>>()?,
            program: None,
            guardians: Vec::new(),
            objects: Objects::default(),
        })
    }

    /// The same, with an eye on a program that runs.
    pub fn with(&self, running: &Running) -> Self {
        let pid = running.pid().as_raw();
        Self {
            bench: self.bench,
            groups: self.groups.clone(),
            servers: self.servers.clone(),
            namespaces: self.namespaces.clone(),
            program: process::stat(pid).ok().map(|stat| stat.process),
            guardians: running.guardians(),
            objects: Objects::of(pid),
        }
    }

    /// The guardians of the program under watch.
    pub fn guardians(&self) -> &[ProcessRef] {
        &self.guardians
    }

    /// Looks until another guardian watches, or all is gone.
    pub fn until_guarded(&self, running: &Running, since: Instant, patience: Duration) -> Clean {
        loop {
            // By its group, which it has before it says that it watches: to look at every process would take too long.
            let watches = |pid: &i32| !self.guardians.iter().any(|old| old.pid == *pid) && running.is_guardian(*pid);
            if sheltered().iter().any(watches) {
                return Clean { took: since.elapsed(), last: "guarded again", left: Vec::new() };
            }
            let clean = self.until_clean(since, Duration::ZERO);
            if clean.left.is_empty() || since.elapsed() > patience {
                return clean;
            }
        }
    }

    /// Looks until all is gone, or patience is over.
    pub fn until_clean(&self, since: Instant, patience: Duration) -> Clean {
        let mut last = "nothing";
        loop {
            let left = self.dirt();
            let took = since.elapsed();
            if left.is_empty() || took > patience {
                return Clean { took, last, left };
            }
            last = left.last().copied().unwrap_or(last);
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    /// What is there that was not before.
    pub fn dirt(&self) -> Vec<&'static str> {
        let mut found = Vec::new();
        let mut check = |what, is_there: bool| {
            if is_there {
                found.push(what);
            }
        };
        let run = self.bench.firedrill.run_directory();
        check("its process", self.program.as_ref().is_some_and(process::is_alive));
        check("its guardian", self.guardians.iter().any(process::is_alive));
        check(
            "the guardian's group",
            self.guardians.iter().any(|guardian| shelter_of(guardian).is_some_and(|d| d.exists())),
        );
        check("the journal", run.join("journal.ndjson").exists());
        check("a record of what is in force", run.join("standing.json").exists());
        check(
            "a frozen group",
            self.groups.iter().any(|g| cgroup::freeze_value(g).is_ok_and(|v| v != "0") || cgroup::is_frozen(g)),
        );
        check("a stopped process", self.servers.iter().any(process::is_stopped));
        check("a stopped replica", drill::mark(self.bench).exists());
        for namespace in &self.namespaces {
            for what in netns::within(namespace, dirt_here).unwrap_or_default() {
                check(what, true);
            }
        }
        let (programs, links, maps) = self.objects.left();
        check("an eBPF link", links);
        check("an eBPF program", programs);
        check("an eBPF map", maps);
        found
    }

    /// Whether the targets serve, over both families.
    ///
    /// # Errors
    /// One does not.
    pub fn targets_work(&self) -> Result<()> {
        self.bench.stage.wait(crate::limit(), |stage| {
            for port in WEB_PORTS.into_iter().chain([pair::KEPT_PORT]) {
                for ip in [IpAddr::V4(V4[1]), IpAddr::V6(V6[1])] {
                    let server = SocketAddr::new(ip, port);
                    stage.within("a", || pair::ask(server, Duration::from_millis(500)))??;
                }
            }
            Ok(())
        })
    }
}

/// The processes that have a guardian's group.
fn sheltered() -> Vec<i32> {
    let entries = cgroup::mount_point().and_then(|root| fs::read_dir(root).ok());
    let pid = |name: &str| name.strip_prefix("firedrill-guardian-")?.parse().ok();
    entries.into_iter().flatten().flatten().filter_map(|entry| pid(entry.file_name().to_str()?)).collect()
}

fn shelter_of(guardian: &ProcessRef) -> Option<PathBuf> {
    Some(cgroup::mount_point()?.join(format!("firedrill-guardian-{}", guardian.pid)))
}

/// What is there in the calling thread's network namespace.
fn dirt_here() -> Vec<&'static str> {
    let mut found = Vec::new();
    let interfaces = nix::net::if_::if_nameindex();
    for interface in interfaces.iter().flat_map(|list| list.iter()) {
        let name = interface.name().to_string_lossy();
        if is_own_tap(&name) {
            found.push("a TAP");
        } else if has_clsact(interface.index()).unwrap_or(false) {
            found.push("a clsact hook");
        } else if [Way::Egress, Way::Ingress].into_iter().any(|way| hooks::ours_here(&name, way).is_ok_and(|n| n > 0)) {
            found.push("a program at an interface");
        }
    }
    let is_set = |key: &str| {
        let path = Path::new("/proc/sys/net/ipv4/conf/lo").join(key);
        fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
    };
    if ["route_localnet", "accept_local"].into_iter().any(is_set) {
        found.push("a parameter");
    }
    found
}

impl Objects {
    /// Those that a process has open.
    fn of(pid: i32) -> Self {
        let mut objects = Self::default();
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return objects };
        for entry in entries.flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let id = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u32>().ok());
            objects.programs.extend(id("prog_id:"));
            objects.links.extend(id("link_id:"));
            objects.maps.extend(id("map_id:"));
        }
        objects
    }

    /// Whether there are programs, links, maps of them.
    fn left(&self) -> (bool, bool, bool) {
        if self.programs.is_empty() && self.links.is_empty() && self.maps.is_empty() {
            return (false, false, false);
        }
        (
            loaded_programs().flatten().any(|p| self.programs.contains(&p.id())),
            loaded_links().flatten().any(|l| self.links.contains(&l.id())),
            loaded_maps().flatten().any(|m| self.maps.contains(&m.id())),
        )
    }
}
