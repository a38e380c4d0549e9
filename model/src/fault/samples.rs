//! Facts of one target of each sort, as the laws of all faults are tested on.

use crate::facts::{
    CgroupRef, Control, FactsSnapshot, HostFacts, Interface, NetnsFacts, NetnsRef, ProcessRef, TargetFacts, TargetKind,
    UnitFacts,
};

/// Inode of the sample host's own network namespace.
pub const HOST_NETNS: u64 = 4_026_531_840;

/// A host with systemd and everything that faults need.
pub fn host() -> HostFacts {
    HostFacts {
        kernel: "6.18.0".into(),
        tcx: true,
        boot_id: "0b0a7e4e-5c1f-4d53-9a0e-2f6f0a7f3f10".into(),
        cgroup_root: Some("/sys/fs/cgroup".into()),
        netns: HOST_NETNS,
        systemd: true,
    }
}

/// An interface; only those that are not `lo` have an Ethernet header as the wire has it, but `lo` passes for one.
pub fn interface(index: u32, name: &str) -> Interface {
    Interface { index, name: name.into(), loopback: name == "lo", ethernet: !name.starts_with("tun") }
}

/// A process.
pub fn process(pid: i32) -> ProcessRef {
    ProcessRef { pid, started: 1_000 + pid.unsigned_abs() as u64, comm: format!("worker-{pid}") }
}

/// A control group of the sample host.
pub fn cgroup(path: &str) -> CgroupRef {
    CgroupRef { path: format!("/sys/fs/cgroup/{path}"), id: 77 }
}

fn netns(path: &str, inode: u64, names: &[&str]) -> Option<NetnsFacts> {
    let interfaces = names.iter().zip(1..).map(|(name, index)| interface(index, name)).collect();
    let spare_ports = Vec::new();
    Some(NetnsFacts { netns: NetnsRef { path: path.into(), inode }, interfaces, spare_ports })
}

fn snapshot(name: &str, kind: TargetKind) -> FactsSnapshot {
    let target = TargetFacts {
        name: name.into(),
        kind,
        netns: None,
        cgroup: None,
        unit: None,
        processes: Vec::new(),
        control: None,
        replica_of: None,
        peers: Vec::new(),
        lifted: Vec::new(),
    };
    FactsSnapshot { host: host(), target }
}

/// A namespace of its own with two interfaces.
pub fn blue() -> FactsSnapshot {
    let mut facts = snapshot("netns blue", TargetKind::Netns);
    facts.target.netns = netns("/run/netns/blue", 4_026_532_100, &["eth0", "eth1"]);
    facts
}

/// The host's own namespace as a whole, which is reached by two ports.
pub fn whole_host() -> FactsSnapshot {
    let mut facts = snapshot("netns /proc/1/ns/net", TargetKind::Netns);
    facts.target.netns = netns("/proc/1/ns/net", HOST_NETNS, &["eth0"]);
    if let Some(network) = &mut facts.target.netns {
        network.spare_ports = vec![22, 2222];
    }
    facts
}

/// One interface of a namespace.
pub fn one_interface() -> FactsSnapshot {
    let mut facts = snapshot("interface eth0 of netns blue", TargetKind::Interface);
    facts.target.netns = netns("/run/netns/blue", 4_026_532_100, &["eth0"]);
    facts
}

/// A bare control group with two processes on the host's network.
pub fn shared_cgroup() -> FactsSnapshot {
    let mut facts = snapshot("web/web-1", TargetKind::Cgroup);
    facts.target.netns = netns("/proc/1/ns/net", HOST_NETNS, &["lo", "eth0", "tun0"]);
    facts.target.cgroup = Some(cgroup("shop/web-1"));
    facts.target.processes = vec![process(101), process(102)];
    facts
}

/// A replica in a cgroup whose owner says how it is stopped and started.
pub fn controlled() -> FactsSnapshot {
    let mut facts = shared_cgroup();
    let command = |verb: &str| vec!["/usr/local/bin/web".to_owned(), verb.to_owned()];
    facts.target.control = Some(Control { stop: command("stop"), start: command("start") });
    facts
}

/// An active systemd unit on the host's network.
pub fn unit() -> FactsSnapshot {
    let mut facts = shared_cgroup();
    facts.target.name = "nginx.service".into();
    facts.target.kind = TargetKind::Unit;
    facts.target.unit = Some(UnitFacts {
        name: "nginx.service".into(),
        active: "active".into(),
        triggered_by: vec!["nginx.socket".into()],
        stops_with: Vec::new(),
        no_way_back: None,
    });
    facts
}

/// Two processes picked by what they are.
pub fn processes() -> FactsSnapshot {
    let mut facts = shared_cgroup();
    facts.target.name = "process exe redis-server".into();
    facts.target.kind = TargetKind::Process;
    facts.target.cgroup = None;
    facts
}

/// A unit that is not running: neither processes nor a cgroup nor a network.
pub fn stopped_unit() -> FactsSnapshot {
    let mut facts = snapshot("nginx.service", TargetKind::Unit);
    facts.target.unit = Some(UnitFacts {
        name: "nginx.service".into(),
        active: "inactive".into(),
        triggered_by: Vec::new(),
        stops_with: Vec::new(),
        no_way_back: None,
    });
    facts
}

/// A control group without processes, and so without a known network.
pub fn empty_cgroup() -> FactsSnapshot {
    let mut facts = snapshot("cgroup shop/web-1", TargetKind::Cgroup);
    facts.target.cgroup = Some(cgroup("shop/web-1"));
    facts
}

/// A namespace with nothing in it but `lo`, which a whole namespace does not cover.
pub fn bare_netns() -> FactsSnapshot {
    let mut facts = snapshot("netns empty", TargetKind::Netns);
    facts.target.netns = netns("/run/netns/empty", 4_026_532_200, &[]);
    facts
}

/// Targets that some fault can act on.
pub fn usable() -> Vec<FactsSnapshot> {
    vec![blue(), one_interface(), whole_host(), shared_cgroup(), controlled(), unit(), processes()]
}

/// Targets that no fault can act on.
pub fn unusable() -> Vec<FactsSnapshot> {
    vec![stopped_unit(), empty_cgroup(), bare_netns()]
}
