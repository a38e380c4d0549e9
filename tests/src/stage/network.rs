//! A star of nodes around a router, one network namespace each, and the services on them, as a plan of changes.
//!
//! ```text
//!   client   a-1   a-2  …      one namespace each, with one wire (eth0)
//!      ╰──────┴─┬───┴──╯
//!              hub             a router
//! ```

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use firedrill_agent::host::cgroup as groups;
use firedrill_model::change::{Change, Plan, Route, VethEnd};
use firedrill_model::units::Cidr;

use super::Programs;

/// The router's name.
const HUB: &str = "hub";
/// The group of those who start killed services again: apart from the services, so that a kill spares them.
const KEEPERS: &str = "keepers";

/// A node: a network namespace with an address.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// Its name; at most 15 letters, for it names an interface of the router, too.
    pub name: &'static str,
    /// Third part of its address.
    pub subnet: u8,
}

impl Node {
    /// Its address: the same in every stage, for stages do not see each other.
    pub fn address(&self) -> Ipv4Addr {
        wire_end(self.subnet, 2)
    }
}

/// A service on a node: processes in a control group of their own.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, and that of its group.
    pub name: String,
    /// Name of its node.
    pub node: &'static str,
    /// Program and arguments.
    pub command: Vec<String>,
    /// How long after its death it is started again, as its supervisor would.
    pub restart_after: Duration,
}

/// Nodes and services.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    /// All nodes but the router.
    pub nodes: Vec<Node>,
    /// All services, in the order in which they are started.
    pub services: Vec<Service>,
}

impl Topology {
    /// Everything that has to be made, in order.
    ///
    /// # Errors
    /// There is no cgroup v2 hierarchy.
    pub fn plan(&self, programs: &Programs, prefix: &str) -> std::io::Result<Plan> {
        let mut changes = vec![Change::Netns { name: netns(prefix, HUB) }];
        changes.extend(self.nodes.iter().map(|node| Change::Netns { name: netns(prefix, node.name) }));
        changes.extend(self.nodes.iter().map(|node| wire(prefix, node)));
        let own_groups = self.services.iter().map(|s| s.name.as_str()).chain([HUB, KEEPERS]);
        changes.push(Change::MakeCgroup { path: prefix.to_owned() });
        changes.extend(own_groups.map(|name| Change::MakeCgroup { path: cgroup(prefix, name) }));
        // Nobody but this script writes the parameter, and it goes with the namespace.
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward && exec sleep infinity";
        changes.push(spawn(prefix, HUB, HUB, HUB, vec!["/bin/sh".into(), "-c".into(), forward.into()]));
        for service in &self.services {
            let group = groups::path_of(&cgroup(prefix, &service.name))?;
            let command = kept(&programs.stage, &group, service);
            changes.push(spawn(prefix, &service.name, service.node, KEEPERS, command));
        }
        Ok(Plan { changes, notes: Vec::new() })
    }

    /// Address of a node.
    pub fn address(&self, node: &str) -> Ipv4Addr {
        self.nodes.iter().find(|n| n.name == node).map_or(Ipv4Addr::UNSPECIFIED, Node::address)
    }
}

pub(super) fn netns(prefix: &str, node: &str) -> String {
    format!("{prefix}-{node}")
}

pub(super) fn cgroup(prefix: &str, service: &str) -> String {
    format!("{prefix}/{service}")
}

/// `HOST` of a wire's two ends: 1 is the hub's, 2 the node's.
fn wire_end(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 214, subnet, host)
}

fn wire(prefix: &str, node: &Node) -> Change {
    let end = |host| vec![(IpAddr::V4(wire_end(node.subnet, host)), 24)];
    let everything = Cidr { address: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 };
    Change::Veth {
        a: VethEnd {
            netns: netns(prefix, node.name),
            interface: "eth0".into(),
            addresses: end(2),
            routes: vec![Route { to: everything, via: wire_end(node.subnet, 1).into() }],
        },
        b: VethEnd {
            netns: netns(prefix, HUB),
            interface: node.name.to_owned(),
            addresses: end(1),
            routes: Vec::new(),
        },
    }
}

fn spawn(prefix: &str, name: &str, node: &str, group: &str, command: Vec<String>) -> Change {
    Change::Spawn {
        name: name.to_owned(),
        command,
        env: BTreeMap::new(),
        netns: Some(netns(prefix, node)),
        cgroup: cgroup(prefix, group),
        log: None,
    }
}

/// A service's command, run by a keeper.
fn kept(stage: &Path, group: &Path, service: &Service) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let after = format!("{}ms", service.restart_after.as_millis());
    let mut command = vec![path(stage), "keep".into(), "--group".into(), path(group), "--after".into(), after];
    command.push("--".into());
    command.extend(service.command.iter().cloned());
    command
}
