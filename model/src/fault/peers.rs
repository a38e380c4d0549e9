//! From peers as people name them to the addresses of a rule.

use super::PlanError;
use super::network::{MOST_PEERS, MOST_PORTS};
use crate::change::{Filter, Protocol};
use crate::facts::FactsSnapshot;
use crate::peer::Peer;
use crate::units::{Cidr, Ports};

/// Where a peer is reached: any of the ports (all of them, when there are none) at any of the addresses.
type Ends = (Vec<Cidr>, Vec<Ports>);

/// The filter with the addresses that names stand for, and a note for each name. A component brings its ports along,
/// unless the filter has some for the other side.
///
/// # Errors
/// A name was not looked up, or one rule cannot hold all that the names stand for.
pub fn looked_up(
    fault: &'static str,
    facts: &FactsSnapshot,
    filter: Filter<Peer>,
) -> Result<(Filter, Vec<String>), PlanError> {
    let no = |why: String| PlanError::new(fault, facts, why);
    let Filter { protocol, peers, local_ports, peer_ports, flows } = filter;
    let (mut all, mut notes): (Vec<Ends>, Vec<String>) = (Vec::new(), Vec::new());
    for peer in &peers {
        if let Peer::Network(network) = peer {
            all.push((vec![*network], Vec::new()));
            continue;
        }
        let mut found = facts.target.peers.iter().filter(|known| known.peer == *peer).peekable();
        if found.peek().is_none() {
            return Err(no(format!("what {peer} stands for is not known here: name its address")));
        }
        for known in found {
            notes.push(known.to_string());
            all.push((known.addresses.clone(), known.ports.clone()));
        }
    }
    if protocol == Some(Protocol::Icmp) || !peer_ports.is_empty() {
        let wanted = |port: &Ports| peer_ports.is_empty() || peer_ports.iter().any(|other| other.contains(port.first));
        all.retain(|(_, ports)| ports.is_empty() || ports.iter().any(wanted));
        all.iter_mut().for_each(|(_, ports)| ports.clear());
        if all.is_empty() && !peers.is_empty() {
            return Err(no("none of its peers is reached by one of the `peer_ports`".into()));
        }
    }
    let (addresses, ports) = join(all).ok_or_else(|| {
        no("its peers are reached by some ports at one address and by others at another, which one rule cannot tell apart: name \
            `peer_ports`, or use one fault for each"
            .into())
    })?;
    let peer_ports = if peer_ports.is_empty() { ports } else { peer_ports };
    if addresses.len() > MOST_PEERS || peer_ports.len() > MOST_PORTS {
        return Err(no(format!(
            "its peers are {} addresses and {} ports, and one fault takes {MOST_PEERS} and {MOST_PORTS}: name networks or \
             port ranges that hold them",
            addresses.len(),
            peer_ports.len()
        )));
    }
    Ok((Filter { protocol, peers: addresses, local_ports, peer_ports, flows }, notes))
}

/// All ends as one, where that is no more than they are together: when they have either the same ports or the same addresses.
fn join(all: Vec<Ends>) -> Option<Ends> {
    let same_addresses = all.windows(2).all(|pair| pair[0].0 == pair[1].0);
    let same_ports = all.windows(2).all(|pair| pair[0].1 == pair[1].1);
    let (mut addresses, mut ports): (Vec<Cidr>, Vec<Ports>) = (Vec::new(), Vec::new());
    for (its_addresses, its_ports) in all {
        // Some at any port, others at certain ones.
        if same_addresses && !same_ports && its_ports.is_empty() {
            return None;
        }
        let new = its_addresses.into_iter().filter(|a| !addresses.contains(a)).collect::<Vec<_>>();
        addresses.extend(new);
        ports.extend(its_ports);
    }
    ports.sort_unstable();
    let mut joined: Vec<Ports> = Vec::new();
    for port in ports {
        match joined.last_mut().filter(|last| port.first <= last.last.saturating_add(1)) {
            Some(last) => last.last = last.last.max(port.last),
            None => joined.push(port),
        }
    }
    (same_addresses || same_ports).then_some((addresses, joined))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::samples;
    use crate::peer::PeerFacts;

    fn known(peer: &str, addresses: &[&str], ports: &[u16]) -> PeerFacts {
        PeerFacts {
            peer: Peer::Component(peer.into()),
            addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
            ports: ports.iter().map(|p| Ports::one(*p)).collect(),
        }
    }

    fn planned(peers: Vec<PeerFacts>, peer_ports: &[u16]) -> Result<String, String> {
        let mut facts = samples::blue();
        let mut names: Vec<Peer> = peers.iter().map(|p| p.peer.clone()).collect();
        names.dedup();
        facts.target.peers = peers;
        let filter = Filter {
            peers: names,
            peer_ports: peer_ports.iter().map(|p| Ports::one(*p)).collect(),
            ..Filter::default()
        };
        looked_up("loss", &facts, filter).map(|(filter, _)| filter.to_string()).map_err(|e| e.why)
    }

    #[test]
    fn replicas_become_one_rule_when_they_share_addresses_or_ports() {
        let a = || known("db", &["10.0.0.1", "127.0.0.1"], &[5432]);
        assert_eq!(planned(vec![a()], &[]), Ok("peer 10.0.0.1, 127.0.0.1, peer port 5432".into()));
        let other_ports = known("db", &["10.0.0.1", "127.0.0.1"], &[5433, 6000]);
        assert_eq!(
            planned(vec![a(), other_ports], &[]),
            Ok("peer 10.0.0.1, 127.0.0.1, peer port 5432-5433, 6000".into())
        );
        let other_addresses = known("db", &["10.0.0.2"], &[5432]);
        assert_eq!(
            planned(vec![a(), other_addresses], &[]),
            Ok("peer 10.0.0.1, 127.0.0.1, 10.0.0.2, peer port 5432".into())
        );
    }

    #[test]
    fn a_rule_never_is_about_more_than_the_names_stand_for() {
        let two = || vec![known("db", &["10.0.0.1"], &[5432]), known("db", &["10.0.0.2"], &[5433])];
        assert!(planned(two(), &[]).is_err_and(|why| why.contains("`peer_ports`")));
        assert_eq!(planned(two(), &[5433]), Ok("peer 10.0.0.2, peer port 5433".into()));
        assert!(planned(two(), &[80]).is_err_and(|why| why.contains("none of its peers")), "and not everybody");
        let any_port = vec![known("db", &["10.0.0.1"], &[5432]), known("cache", &["10.0.0.1"], &[])];
        assert!(planned(any_port, &[]).is_err());
        let many: Vec<String> = (1..=9).map(|i| format!("10.0.0.{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(planned(vec![known("db", &many, &[])], &[]).is_err_and(|why| why.contains("9 addresses")));
        let mut facts = samples::blue();
        facts.target.peers = Vec::new();
        let filter = Filter { peers: vec![Peer::Host("db".into())], ..Filter::default() };
        assert!(looked_up("loss", &facts, filter).is_err_and(|e| e.why.contains("db")));
    }
}
