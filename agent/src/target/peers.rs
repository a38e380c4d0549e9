//! From the names of peers to their addresses, and to the ports by which they are reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use firedrill_model::change::SocketOwner;
use firedrill_model::facts::{HostFacts, NetnsRef, TargetKind};
use firedrill_model::peer::{Peer, PeerFacts};
use firedrill_model::run::PeerPlan;
use firedrill_model::target::TargetSpec;
use firedrill_model::units::{Cidr, Ports};

use super::{TargetError, find, io_error, shared_namespace};
use crate::host::connections::{self, Owned};
use crate::host::netns::{self, NAMED};

/// Looks up the addresses of a host, from within the calling thread's network namespace. `netns` is the name of that one,
/// when it has a name: it may have files of its own under `/etc/netns`. An error says why there is none.
pub type Resolver = fn(netns: Option<&str>, host: &str) -> Result<Vec<IpAddr>, String>;

/// An address, and the port by which it is reached; without one, by any.
type End = (Option<u16>, IpAddr);

/// What a name stands for, seen from a target in `from`.
///
/// # Errors
/// It stands for nothing.
pub(super) fn look_up(
    plan: &PeerPlan,
    from: &NetnsRef,
    host: &HostFacts,
    resolver: Resolver,
) -> Result<Vec<PeerFacts>, TargetError> {
    let unknown = |why: String| TargetError::Peer { peer: plan.peer.to_string(), why };
    let mut ends: Vec<End> = Vec::new();
    match &plan.peer {
        Peer::Network(_) => return Ok(Vec::new()),
        Peer::Host(name) => {
            let named = Path::new(&from.path).strip_prefix(NAMED).ok().and_then(Path::to_str);
            let found = netns::within(from, || resolver(named, name));
            let found = found.map_err(|e| io_error(&format!("network namespace {}", from.path), e))?;
            ends.extend(found.map_err(unknown)?.into_iter().map(|address| (None, address.to_canonical())));
        }
        Peer::Component(_) => {
            for replica in &plan.replicas {
                let found = of_replica(replica, from, host).map_err(|e| unknown(e.to_string()))?;
                if found.is_empty() {
                    let why = format!("its replica {replica} has no address of its own and listens on no port");
                    return Err(unknown(format!("{why}; name addresses instead")));
                }
                ends.extend(found);
            }
        }
    }
    if ends.is_empty() {
        return Err(unknown("it has no address".into()));
    }
    Ok(by_addresses(&plan.peer, ends))
}

/// One entry for each set of addresses, with the ports that all of them have.
fn by_addresses(peer: &Peer, ends: Vec<End>) -> Vec<PeerFacts> {
    let mut by_port: BTreeMap<Option<u16>, BTreeSet<IpAddr>> = BTreeMap::new();
    for (port, address) in ends {
        by_port.entry(port).or_default().insert(address);
    }
    let mut ports: BTreeMap<BTreeSet<IpAddr>, Vec<Ports>> = BTreeMap::new();
    for (port, addresses) in by_port {
        ports.entry(addresses).or_default().extend(port.map(Ports::one));
    }
    let facts = |(addresses, ports): (BTreeSet<IpAddr>, _)| PeerFacts {
        peer: peer.clone(),
        addresses: addresses.into_iter().map(Cidr::one).collect(),
        ports,
    };
    ports.into_iter().map(facts).collect()
}

/// Where a replica is reached: a namespace or interface by its addresses, whatever the port; a unit, group or process by
/// those on which it listens.
fn of_replica(replica: &TargetSpec, from: &NetnsRef, host: &HostFacts) -> Result<Vec<End>, TargetError> {
    let found = find(&replica.to_string(), replica, None, host)?;
    let of_namespace = |netns: &NetnsRef| -> Result<Vec<(String, IpAddr)>, TargetError> {
        let all = netns::within(netns, netns::addresses).and_then(|r| r);
        let mut all = all.map_err(|e| io_error(&format!("the addresses of {}", netns.path), e))?;
        // One that is valid on its link only is known by no other name; others cannot come in by our loopback.
        all.retain(|(_, address)| !is_link_local(address) && (!address.is_loopback() || netns.inode == from.inode));
        Ok(all)
    };
    if let (TargetKind::Netns | TargetKind::Interface, Some(network)) = (found.kind, &found.netns) {
        let is_its = |name: &str| network.interfaces.iter().any(|i| i.name == name);
        let all = of_namespace(&network.netns)?.into_iter();
        return Ok(all.filter(|(name, _)| is_its(name)).map(|(_, address)| (None, address)).collect());
    }
    let Some(network) = shared_namespace(&found.name, &found.processes)? else { return Ok(Vec::new()) };
    let all = of_namespace(&network.netns)?;
    let owner = found.cgroup.map_or(SocketOwner::Processes(found.processes), SocketOwner::Cgroup);
    let owned = Owned::of(&owner);
    let listening = netns::within(&network.netns, || connections::listening(&owned)).and_then(|r| r);
    let listening = listening.map_err(|e| io_error(&format!("the listening sockets of {}", network.netns.path), e))?;
    let mut ends = Vec::new();
    for socket in listening {
        let (address, port) = (socket.local.ip(), Some(socket.local.port()));
        // `[::]` takes IPv4 as well.
        let takes = |other: &IpAddr| address.is_unspecified() && (address.is_ipv6() || other.is_ipv4());
        ends.extend(all.iter().map(|(_, own)| *own).filter(|own| *own == address || takes(own)).map(|own| (port, own)));
    }
    Ok(ends)
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_at_the_same_addresses_stand_together() {
        let (a, b): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [127, 0, 0, 1].into());
        let peer = Peer::Component("db".into());
        let facts = by_addresses(&peer, vec![(Some(80), a), (Some(80), b), (Some(81), b), (Some(81), a), (Some(9), b)]);
        let text: Vec<String> = facts.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["component db is 10.0.0.1, 127.0.0.1, port 80, 81", "component db is 127.0.0.1, port 9"]);
        let host = by_addresses(&Peer::Host("x".into()), vec![(None, b), (None, a), (None, a)]);
        assert_eq!(host[0].to_string(), "x is 10.0.0.1, 127.0.0.1");
    }
}
