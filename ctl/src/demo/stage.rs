//! The demo's stage: namespaces, wires, groups and processes, as a plan of changes. The engine applies it like any
//! fault, so its journal and guardian take the whole stage down even when the demo is killed.
//!
//! ```text
//!   client   lb   web-1  web-2  web-3   store-1  store-2   db        one namespace and one cgroup each
//!      ╰──────┴─────┴──────┴──┬───┴─────────┴────────┴──────╯        one wire each, eth0 at its end
//!                            hub                                     a router between all of them
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use firedrill_model::change::{Change, Plan, Route, VethEnd};
use firedrill_model::units::Cidr;
use nix::sched::{CloneFlags, setns};

use super::shop;

/// Port on which every role of the shop serves.
pub const PORT: u16 = 8080;
/// The router's name.
const HUB: &str = "hub";
/// Where the users are.
pub const CLIENT: &str = "client";
/// The group of the Firedrill that is killed on purpose. It is in the stage's, so that it falls with the stage when
/// the demo itself is killed.
pub const VICTIM: &str = "firedrill";

/// A node of the stage.
struct Node {
    name: &'static str,
    /// Third part of its addresses.
    subnet: u8,
    /// Its role, and the names of the nodes that it asks; `None` for the client, which runs nothing of its own.
    role: Option<(&'static str, &'static [&'static str])>,
}

/// All nodes but the hub, those that are asked before those that ask.
const NODES: &[Node] = &[
    Node { name: "db", subnet: 30, role: Some(("db", &[])) },
    Node { name: "store-1", subnet: 21, role: Some(("store", &["db"])) },
    Node { name: "store-2", subnet: 22, role: Some(("store", &["db"])) },
    Node { name: "web-1", subnet: 11, role: Some(("web", &["store-1", "store-2"])) },
    Node { name: "web-2", subnet: 12, role: Some(("web", &["store-1", "store-2"])) },
    Node { name: "web-3", subnet: 13, role: Some(("web", &["store-1", "store-2"])) },
    Node { name: "lb", subnet: 1, role: Some(("lb", &["web-1", "web-2", "web-3"])) },
    Node { name: CLIENT, subnet: 100, role: None },
];

/// `HOST` of a node's two hosts: 1 is the hub's end of the wire, 2 the node's.
fn v4(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 213, subnet, host)
}

fn v6(subnet: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x213, u16::from(subnet), 0, 0, 0, 0, u16::from(host))
}

/// Name of a node's namespace.
pub fn netns(prefix: &str, node: &str) -> String {
    format!("{prefix}-{node}")
}

/// A node's control group, below the v2 mount point.
pub fn cgroup(prefix: &str, node: &str) -> String {
    format!("{prefix}/{node}")
}

/// Names of all namespaces of a stage.
pub fn all_netns(prefix: &str) -> Vec<String> {
    NODES.iter().map(|n| n.name).chain([HUB]).map(|name| netns(prefix, name)).collect()
}

/// Where users reach the shop.
pub fn front() -> SocketAddr {
    NODES.iter().find(|n| n.name == "lb").map_or_else(
        || SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)),
        |lb| SocketAddr::from((v4(lb.subnet, 2), PORT)),
    )
}

/// Everything that has to be made for a shop, in order. `prefix` keeps two demos apart, `program` is this binary,
/// `ipv6` is whether the kernel has it.
pub fn plan(prefix: &str, program: &str, ipv6: bool) -> Plan {
    let mut changes: Vec<Change> = all_netns(prefix).into_iter().map(|name| Change::Netns { name }).collect();
    changes.extend(NODES.iter().map(|node| wire(prefix, node, ipv6)));
    // The group of the whole stage first: a group needs its parent.
    changes.push(Change::MakeCgroup { path: prefix.to_owned() });
    let running = || [HUB, VICTIM].into_iter().chain(NODES.iter().filter(|n| n.role.is_some()).map(|n| n.name));
    changes.extend(running().map(|name| Change::MakeCgroup { path: cgroup(prefix, name) }));
    let spawn = |node: &str, args: Vec<String>| Change::Spawn {
        name: node.to_owned(),
        command: [program.to_owned()].into_iter().chain(args).collect(),
        env: BTreeMap::new(),
        netns: Some(netns(prefix, node)),
        cgroup: cgroup(prefix, node),
        log: None,
    };
    changes.push(spawn(HUB, shop::router_args(&netns(prefix, HUB))));
    for node in NODES {
        if let Some((role, asks)) = node.role {
            let any = if ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
            let listen = SocketAddr::from((any, PORT));
            let to: Vec<SocketAddr> = asks.iter().map(|asked| address(node, asked, ipv6)).collect();
            changes.push(spawn(node.name, shop::service_args(role, node.name, listen, &to)));
        }
    }
    Plan { changes, notes: Vec::new() }
}

/// The address at which a node asks another one. The second store talks IPv6, so that both families carry the shop,
/// and a fault that forgot one of them would show.
fn address(from: &Node, to: &str, ipv6: bool) -> SocketAddr {
    let subnet = NODES.iter().find(|n| n.name == to).map_or(0, |n| n.subnet);
    let ip = if ipv6 && from.name == "store-2" { IpAddr::V6(v6(subnet, 2)) } else { IpAddr::V4(v4(subnet, 2)) };
    SocketAddr::from((ip, PORT))
}

fn wire(prefix: &str, node: &Node, ipv6: bool) -> Change {
    let hosts = |host| [IpAddr::V4(v4(node.subnet, host)), IpAddr::V6(v6(node.subnet, host))];
    let used = |ip: &IpAddr| ipv6 || ip.is_ipv4();
    let addresses = |host| hosts(host).into_iter().filter(used).map(|ip| (ip, if ip.is_ipv4() { 24 } else { 64 }));
    // A router asks for its neighbours' addresses from a link-local address of its own. The automatic one is tentative
    // for two seconds (duplicate address detection), in which it would not ask.
    let link_local = ipv6.then_some((IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), 64));
    let everything = |via: &IpAddr| match via {
        IpAddr::V4(_) => Cidr { address: Ipv4Addr::UNSPECIFIED.into(), prefix: 0 },
        IpAddr::V6(_) => Cidr { address: Ipv6Addr::UNSPECIFIED.into(), prefix: 0 },
    };
    Change::Veth {
        a: VethEnd {
            netns: netns(prefix, node.name),
            interface: "eth0".into(),
            addresses: addresses(2).collect(),
            routes: hosts(1).into_iter().filter(used).map(|via| Route { to: everything(&via), via }).collect(),
        },
        b: VethEnd {
            netns: netns(prefix, HUB),
            interface: node.name.to_owned(),
            addresses: addresses(1).chain(link_local).collect(),
            routes: Vec::new(),
        },
    }
}

/// Why the shop did not open.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The users' namespace cannot be entered.
    #[error("cannot enter network namespace {0}: {1}")]
    Enter(String, std::io::Error),
    /// It does not serve.
    #[error("the shop did not open within {0:?}; its last answer: {1}")]
    Closed(Duration, String),
}

/// Waits until users get a checkout several times in a row.
///
/// # Errors
/// When that does not happen within `patience`.
pub fn wait_until_open(prefix: &str, patience: Duration) -> Result<(), StageError> {
    /// Each web replica twice.
    const IN_A_ROW: usize = 6;
    within(&netns(prefix, CLIENT), move || {
        let began = Instant::now();
        let (mut good, mut last) = (0, "none yet".to_owned());
        while good < IN_A_ROW {
            if began.elapsed() > patience {
                return Err(StageError::Closed(patience, last));
            }
            match checkout() {
                Ok(()) => good += 1,
                Err(why) => {
                    (good, last) = (0, why);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
        Ok(())
    })?
}

/// Runs `work` in a named namespace, on a thread of its own: what a thread entered, it cannot leave unseen.
fn within<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<T, StageError> {
    let path = format!("/run/netns/{name}");
    let failed = |error| StageError::Enter(name.to_owned(), error);
    let file = File::open(path).map_err(failed)?;
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from)?;
        Ok(work())
    });
    thread.join().map_err(|_| failed(std::io::Error::other("the thread that entered it died")))?.map_err(failed)
}

/// One checkout, as the thread's namespace sees it.
fn checkout() -> Result<(), String> {
    let ask = || -> std::io::Result<Vec<u8>> {
        // Short, for a first packet that was lost while the stage was being set up would be sent again after 1 s.
        let mut stream = TcpStream::connect_timeout(&front(), Duration::from_millis(200))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /checkout HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(16 * 1024).read_to_end(&mut answer)?;
        Ok(answer)
    };
    match ask().map(|answer| shop::parse_answer(&answer)) {
        Ok(Some(reply)) if reply.status == 200 => Ok(()),
        Ok(Some(reply)) => Err(format!("status {}: {}", reply.status, reply.body.trim())),
        Ok(None) => Err("not HTTP".into()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn named(plan: &Plan) -> (Vec<&str>, Vec<&str>) {
        let of = |pick: fn(&Change) -> Option<&str>| plan.changes.iter().filter_map(pick).collect();
        (
            of(|c| if let Change::Netns { name } = c { Some(name) } else { None }),
            of(|c| if let Change::MakeCgroup { path } = c { Some(path) } else { None }),
        )
    }

    #[test]
    fn two_stages_share_no_name() {
        let (one, two) = (plan("d1", "fd", true), plan("d2", "fd", true));
        let ((n1, c1), (n2, c2)) = (named(&one), named(&two));
        assert!(n1.iter().chain(&c1).all(|name| !n2.contains(name) && !c2.contains(name)));
        assert_eq!(one, plan("d1", "fd", true), "planning is deterministic");
    }

    #[test]
    fn everything_is_made_before_it_is_used() {
        let plan = plan("d", "fd", true);
        let (mut netns, mut groups) = (BTreeSet::new(), BTreeSet::new());
        for change in &plan.changes {
            match change {
                Change::Netns { name } => assert!(netns.insert(name.clone()), "{name} twice"),
                Change::MakeCgroup { path } => {
                    let parent = path.rsplit_once('/').map(|(parent, _)| parent);
                    assert!(parent.is_none_or(|p| groups.contains(p)), "{path} before its parent");
                    assert!(groups.insert(path.clone()), "{path} twice");
                }
                Change::Veth { a, b } => assert!(netns.contains(&a.netns) && netns.contains(&b.netns), "{change}"),
                Change::Spawn { netns: Some(n), cgroup, .. } => {
                    assert!(netns.contains(n) && groups.contains(cgroup), "{change}");
                }
                other => panic!("a stage has no {other}"),
            }
        }
    }

    #[test]
    fn interface_and_namespace_names_fit_the_kernel_for_any_pid() {
        // IFNAMSIZ is 16 with the final zero.
        for change in plan("fdemo4194304", "fd", true).changes {
            if let Change::Veth { a, b } = change {
                assert!(a.interface.len() < 16 && b.interface.len() < 16, "{} {}", a.interface, b.interface);
            }
        }
    }

    #[test]
    fn both_families_carry_the_shop() {
        let plan = plan("d", "fd", true);
        let asks = |node: &str| {
            plan.changes.iter().find_map(|c| match c {
                Change::Spawn { name, command, .. } if name == node => Some(command.join(" ")),
                _ => None,
            })
        };
        assert!(asks("store-1").is_some_and(|c| c.contains("--to 10.213.30.2:8080")));
        assert!(asks("store-2").is_some_and(|c| c.contains("--to [fd00:213:1e::2]:8080")));
    }

    #[test]
    fn a_kernel_without_ipv6_gets_a_shop_without_it() {
        let changes = plan("d", "fd", false).changes;
        assert!(
            !changes.iter().any(|c| format!("{c:?}").contains("fd00") || format!("{c:?}").contains("::")),
            "{changes:?}"
        );
    }
}
