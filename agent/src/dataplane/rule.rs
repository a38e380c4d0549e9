//! Rules as a person thinks of them, and their encoding for the kernel. Pure.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::RangeInclusive,
    time::Duration,
};

use firedrill_abi::{
    ACTION_DROP, ACTION_HOLD, ALWAYS, MAX_PEERS, MAX_PORTS, MODEL_EVERY_NTH, MODEL_GILBERT_ELLIOTT, MODEL_INDEPENDENT,
    Peer, PortRange, Rule,
};

use firedrill_model::change::Distribution;

use super::{Direction, shape::Shape, tags::Tag};

/// The longest delay, jitter included. Longer ones are a `partition`.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// Why a rule cannot be expressed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RuleError {
    /// Too many peer networks.
    #[error("{0} peer networks: a rule takes at most {MAX_PEERS}; use wider networks or several faults")]
    TooManyPeers(usize),
    /// Too many port ranges of one kind.
    #[error("{0} port ranges: a rule takes at most {MAX_PORTS}; use wider ranges or several faults")]
    TooManyPorts(usize),
    /// An empty range.
    #[error("port range {0}-{1} is empty: write the lower port first")]
    EmptyRange(u16, u16),
    /// A prefix that does not fit.
    #[error("{0}/{1}: the prefix of this address is at most {2}")]
    Prefix(IpAddr, u8, u8),
    /// A share outside 0 to 1.
    #[error("a share of {0} is not between 0 and 1")]
    Probability(String),
    /// Too long.
    #[error("a delay of {0:?} (jitter included) is longer than {MAX_DELAY:?}; use partition to stop traffic")]
    TooLong(Duration),
    /// Neither direction.
    #[error("the rule applies to neither direction")]
    NoDirection,
    /// Ports for a protocol without.
    #[error("ports need tcp or udp, and this rule is for icmp")]
    PortsOfIcmp,
    /// A rate of nothing.
    #[error("a rate of 0 lets nothing pass; use partition to stop traffic")]
    NoRate,
    /// Every packet and none.
    #[error("every 0th packet is none: n is at least 1")]
    EveryZeroth,
    /// The kind of a rule in force cannot change.
    #[error("a rule that drops cannot become one that delays, nor the reverse: remove it and add another")]
    KindChanged,
}

/// A network of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    /// Any address in it.
    pub address: IpAddr,
    /// Bits that count: at most 32 for IPv4, 128 for IPv6.
    pub prefix: u8,
}

/// Which packets by protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// All of IP; ARP and neighbour discovery always pass.
    #[default]
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6, but not neighbour discovery.
    Icmp,
}

/// What to do with a packet that matches.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Drop it; the sender is not told.
    Drop(Loss),
    /// Send it through the delay line, which does this with it.
    Hold(Shape),
}

impl Action {
    /// Holds packets for a time that is drawn evenly from `delay` plus or minus `jitter`.
    pub fn delay(delay: Duration, jitter: Duration) -> Self {
        let distribution = Distribution::Uniform;
        Self::Hold(Shape::Delay { delay, jitter, distribution, correlation: 0.0, reorder: false })
    }
}

/// Which of the packets that match are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Each by a draw of its own (Bernoulli).
    Independent {
        /// Share of the packets, 0 to 1.
        probability: f64,
    },
    /// By a chain of two states that takes a step after each packet (Gilbert 1960, Elliott 1963). All are probabilities.
    GilbertElliott {
        /// From the good to the bad state.
        worsens: f64,
        /// From the bad to the good state.
        recovers: f64,
        /// Of loss in the good state.
        in_good: f64,
        /// Of loss in the bad state.
        in_bad: f64,
    },
    /// Every n-th, counted over all flows.
    EveryNth(u32),
}

/// A rule to add.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleSpec {
    /// Only this interface; `None`: every interface that is attached, now or later.
    pub ifindex: Option<u32>,
    /// With neither interface nor tag: not for the loopback interface. One data plane holds only one of the two kinds.
    pub not_loopback: bool,
    /// On what leaves.
    pub egress: bool,
    /// On what arrives.
    pub ingress: bool,
    /// Protocol.
    pub protocol: Protocol,
    /// Networks of the peer (destination at egress, source at ingress); empty: any.
    pub peers: Vec<Cidr>,
    /// Ports of this host; empty: any.
    pub local_ports: Vec<RangeInclusive<u16>>,
    /// Ports of the peer; empty: any.
    pub peer_ports: Vec<RangeInclusive<u16>>,
    /// Only packets of sockets with this tag; `None`: any packet.
    pub tag: Option<Tag>,
    /// Only a share of the flows, 0 to 1; a flow is in or out for as long as the rule lasts.
    pub flows: f64,
    /// Packets from or to these ports, of this host or the peer, are none of this rule's.
    pub spare_ports: Vec<u16>,
    /// What to do.
    pub action: Action,
    /// `CLOCK_MONOTONIC` time, nanoseconds, from which the kernel ignores the rule.
    pub expires_ns: u64,
}

impl RuleSpec {
    /// A rule for every packet that leaves through any attached interface.
    pub fn egress(action: Action, expires_ns: u64) -> Self {
        Self {
            ifindex: None,
            not_loopback: false,
            egress: true,
            ingress: false,
            protocol: Protocol::Any,
            peers: Vec::new(),
            local_ports: Vec::new(),
            peer_ports: Vec::new(),
            tag: None,
            flows: 1.0,
            spare_ports: Vec::new(),
            action,
            expires_ns,
        }
    }

    /// Whether it looks at packets that go this way.
    pub fn looks_at(&self, direction: Direction) -> bool {
        match direction {
            Direction::Egress => self.egress,
            Direction::Ingress => self.ingress,
        }
    }

    /// Whether it sends packets to a delay line.
    pub fn delays(&self) -> bool {
        matches!(self.action, Action::Hold(_))
    }

    /// As the kernel reads it.
    ///
    /// # Errors
    /// It has too many conditions or impossible ones.
    pub fn encode(&self) -> Result<Rule, RuleError> {
        if !self.egress && !self.ingress {
            return Err(RuleError::NoDirection);
        }
        let needs_ports = !self.local_ports.is_empty() || !self.peer_ports.is_empty();
        if needs_ports && self.protocol == Protocol::Icmp {
            return Err(RuleError::PortsOfIcmp);
        }
        let mut rule = Rule {
            expires_ns: self.expires_ns,
            ifindex: self.ifindex.unwrap_or(0),
            flows: threshold(self.flows)?,
            protocol: self.protocol.number(),
            needs_ports: u32::from(needs_ports),
            peers: networks(&self.peers)?,
            local_ports: ports(&self.local_ports)?,
            peer_ports: ports(&self.peer_ports)?,
            ..Rule::default()
        };
        set_action(&mut rule, &self.action)?;
        Ok(rule)
    }
}

/// All entries of an array: those given, and then the first again; without any, all `otherwise`.
fn filled<T: Copy, const N: usize>(given: &[T], otherwise: T) -> [T; N] {
    let first = given.first().copied().unwrap_or(otherwise);
    let mut all = [first; N];
    for (to, from) in all.iter_mut().zip(given) {
        *to = *from;
    }
    all
}

/// Networks as a rule has them; without any, every peer.
pub fn networks(given: &[Cidr]) -> Result<[Peer; MAX_PEERS], RuleError> {
    if given.len() > MAX_PEERS {
        return Err(RuleError::TooManyPeers(given.len()));
    }
    let networks = given.iter().map(|network| peer(*network)).collect::<Result<Vec<_>, _>>()?;
    Ok(filled(&networks, Peer::default()))
}

/// Port ranges as a rule has them; without any, every port.
pub fn ports(given: &[RangeInclusive<u16>]) -> Result<[PortRange; MAX_PORTS], RuleError> {
    if given.len() > MAX_PORTS {
        return Err(RuleError::TooManyPorts(given.len()));
    }
    if let Some(empty) = given.iter().find(|range| range.is_empty()) {
        return Err(RuleError::EmptyRange(*empty.start(), *empty.end()));
    }
    let ranges: Vec<_> = given.iter().map(|range| PortRange { first: *range.start(), last: *range.end() }).collect();
    Ok(filled(&ranges, PortRange { first: 0, last: u16::MAX }))
}

impl Protocol {
    fn number(self) -> u32 {
        match self {
            Self::Any => 0,
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// Puts an action into an encoded rule.
///
/// # Errors
/// Its numbers are out of range.
pub fn set_action(rule: &mut Rule, action: &Action) -> Result<(), RuleError> {
    match action {
        Action::Drop(loss) => {
            rule.action = ACTION_DROP;
            match *loss {
                Loss::Independent { probability } => {
                    (rule.model, rule.threshold) = (MODEL_INDEPENDENT, threshold(probability)?);
                }
                Loss::GilbertElliott { worsens, recovers, in_good, in_bad } => {
                    (rule.model, rule.threshold) = (MODEL_GILBERT_ELLIOTT, threshold(in_good)?);
                    rule.chain = [threshold(worsens)?, threshold(recovers)?, threshold(in_bad)?];
                }
                Loss::EveryNth(0) => return Err(RuleError::EveryZeroth),
                Loss::EveryNth(n) => (rule.model, rule.chain) = (MODEL_EVERY_NTH, [n, 0, 0]),
            }
        }
        Action::Hold(shape) => {
            rule.action = ACTION_HOLD;
            rule.threshold = ALWAYS;
            check(shape)?;
        }
    }
    Ok(())
}

fn check(shape: &Shape) -> Result<(), RuleError> {
    let is_share = |share: f64| {
        if (0.0..=1.0).contains(&share) { Ok(()) } else { Err(RuleError::Probability(share.to_string())) }
    };
    let fits = |longest: Duration| if longest > MAX_DELAY { Err(RuleError::TooLong(longest)) } else { Ok(()) };
    match *shape {
        Shape::Delay { delay, jitter, correlation, .. } => {
            fits(delay.saturating_add(jitter)).and(is_share(correlation))
        }
        Shape::Reorder { share, by } => fits(by).and(is_share(share)),
        Shape::Duplicate { share } | Shape::Corrupt { share, .. } => is_share(share),
        Shape::Limit { rate: 0, .. } => Err(RuleError::NoRate),
        Shape::Answer(ref queries) => fits(queries.delay.0),
        Shape::Limit { .. } | Shape::Reject | Shape::Pass => Ok(()),
    }
}

/// A share as draws are compared with it.
pub fn threshold(probability: f64) -> Result<u32, RuleError> {
    if !(0.0..=1.0).contains(&probability) {
        return Err(RuleError::Probability(probability.to_string()));
    }
    // 2^32 times the share; only 1 itself reaches `ALWAYS`.
    let threshold = probability * 4_294_967_296.0;
    if probability >= 1.0 { Ok(ALWAYS) } else { Ok((threshold as u32).min(ALWAYS - 1)) }
}

fn peer(network: Cidr) -> Result<Peer, RuleError> {
    let (octets, extra, width) = match network.address {
        IpAddr::V4(v4) => (v4.to_ipv6_mapped().octets(), 96, Ipv4Addr::BITS as u8),
        IpAddr::V6(v6) => (v6.octets(), 0, 128),
    };
    if network.prefix > width {
        return Err(RuleError::Prefix(network.address, network.prefix, width));
    }
    let bits = u32::from(network.prefix) + extra;
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
    let address = (u128::from_be_bytes(octets) & mask).to_be_bytes();
    Ok(Peer { address: words(address), mask: words(mask.to_be_bytes()) })
}

/// Sixteen bytes in network order as the kernel programs read them: two words in native order.
fn words(bytes: [u8; 16]) -> [u64; 2] {
    let (low, high) = bytes.split_at(8);
    [low, high].map(|half| {
        let mut word = [0; 8];
        word.copy_from_slice(half);
        u64::from_ne_bytes(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loss(probability: f64) -> RuleSpec {
        RuleSpec::egress(Action::Drop(Loss::Independent { probability }), 1)
    }

    fn matches(peer: &Peer, address: &str) -> bool {
        let octets = match address.parse().unwrap() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let address = words(octets);
        (address[0] ^ peer.address[0]) & peer.mask[0] == 0 && (address[1] ^ peer.address[1]) & peer.mask[1] == 0
    }

    #[test]
    fn a_network_matches_its_own_addresses_and_no_others() {
        let of = |address: &str, prefix| peer(Cidr { address: address.parse().unwrap(), prefix }).unwrap();
        let v4 = of("10.1.2.3", 24);
        assert!(matches(&v4, "10.1.2.255"));
        assert!(!matches(&v4, "10.1.3.0"));
        assert!(!matches(&v4, "::"));
        let v6 = of("2001:db8::1", 32);
        assert!(matches(&v6, "2001:db8:ffff::"));
        assert!(!matches(&v6, "2001:db9::"));
        let all_v4 = of("1.2.3.4", 0);
        assert!(matches(&all_v4, "255.255.255.255"));
        assert!(!matches(&all_v4, "2001:db8::1"), "0.0.0.0/0 is all of IPv4, not of IPv6");
        assert!(matches(&of("::", 0), "10.0.0.1"), "::/0 is everything");
        assert!(!matches(&of("::1", 128), "::2"));
    }

    #[test]
    fn shares_become_thresholds() {
        assert_eq!(loss(1.0).encode().unwrap().threshold, ALWAYS);
        assert_eq!(loss(0.0).encode().unwrap().threshold, 0);
        assert_eq!(loss(0.5).encode().unwrap().threshold, 1 << 31);
        assert!(loss(0.999_999_999_99).encode().unwrap().threshold < ALWAYS);
        for wrong in [-0.1, 1.1, f64::NAN] {
            assert!(matches!(loss(wrong).encode(), Err(RuleError::Probability(_))));
        }
    }

    #[test]
    fn conditions_beyond_the_limits_are_refused_with_the_limit() {
        let cidr = Cidr { address: "10.0.0.0".parse().unwrap(), prefix: 8 };
        let mut rule = loss(1.0);
        rule.peers = vec![cidr; MAX_PEERS + 1];
        assert_eq!(rule.encode(), Err(RuleError::TooManyPeers(9)));
        rule.peers = vec![Cidr { prefix: 33, ..cidr }];
        assert_eq!(rule.encode(), Err(RuleError::Prefix(cidr.address, 33, 32)));
        rule.peers.clear();
        rule.local_ports = vec![1..=2; 9];
        assert_eq!(rule.encode(), Err(RuleError::TooManyPorts(9)));
        rule.local_ports = vec![RangeInclusive::new(9, 8)];
        assert_eq!(rule.encode(), Err(RuleError::EmptyRange(9, 8)));
        rule.protocol = Protocol::Icmp;
        assert_eq!(rule.encode(), Err(RuleError::PortsOfIcmp));
        rule.egress = false;
        assert_eq!(rule.encode(), Err(RuleError::NoDirection));
    }

    #[test]
    fn unused_entries_repeat_the_first_or_match_everything() {
        let mut rule = loss(1.0);
        let encoded = rule.encode().unwrap();
        assert_eq!(encoded.needs_ports, 0);
        assert!(encoded.peers.iter().all(|peer| matches(peer, "10.0.0.1") && matches(peer, "::1")));
        rule.local_ports = vec![80..=81, 443..=443];
        rule.peers = vec![Cidr { address: "10.0.0.1".parse().unwrap(), prefix: 32 }];
        let encoded = rule.encode().unwrap();
        assert_eq!(encoded.needs_ports, 1);
        assert_eq!(encoded.local_ports[1], PortRange { first: 443, last: 443 });
        assert!(encoded.local_ports[2..].iter().all(|range| *range == PortRange { first: 80, last: 81 }));
        assert!(encoded.peer_ports.iter().all(|range| *range == PortRange { first: 0, last: u16::MAX }));
        assert!(encoded.peers.iter().all(|peer| !matches(peer, "10.0.0.2")));
    }

    #[test]
    fn a_delay_longer_than_a_minute_is_refused() {
        let delay = Action::delay(Duration::from_secs(59), Duration::from_secs(2));
        assert_eq!(RuleSpec::egress(delay, 1).encode(), Err(RuleError::TooLong(Duration::from_secs(61))));
    }

    #[test]
    fn a_chain_of_two_states_has_a_threshold_for_each_way_and_each_state() {
        let chain = Loss::GilbertElliott { worsens: 0.25, recovers: 0.5, in_good: 0.0, in_bad: 1.0 };
        let encoded = RuleSpec::egress(Action::Drop(chain), 1).encode().unwrap();
        assert_eq!((encoded.model, encoded.threshold), (MODEL_GILBERT_ELLIOTT, 0));
        assert_eq!(encoded.chain, [1 << 30, 1 << 31, ALWAYS]);
        let nth = |n| RuleSpec::egress(Action::Drop(Loss::EveryNth(n)), 1).encode();
        assert_eq!(nth(3).unwrap().chain[0], 3);
        assert_eq!(nth(0), Err(RuleError::EveryZeroth));
    }
}
