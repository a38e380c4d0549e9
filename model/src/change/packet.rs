//! Packet rules: which packets, and what happens to them.

use std::fmt;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DnsQueries, SocketOwner, Way};
use crate::facts::Interface;
use crate::units::{Cidr, Percent, Ports, Rate, Size, Span};

/// A packet rule: which packets, and what happens to them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Only packets of this interface. `None`: of every one, those that come later included; without `sockets`, the
    /// loopback interface is left out.
    pub interface: Option<Interface>,
    /// Only packets of these sockets; must have been marked by an earlier [`super::Change::Tag`].
    pub sockets: Option<SocketOwner>,
    /// The ways that it looks at.
    pub ways: Vec<Way>,
    /// Which packets of those.
    pub filter: Filter,
    /// Packets from or to these ports, of this side or the other, always pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spare: Vec<u16>,
    /// What is done to a packet that matches.
    pub action: Action,
    /// What is done to it later, in the order of time: the steps of ramps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Update>,
}

/// Another action of the same kind, from a time on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Update {
    /// Counted from when the rule came into force.
    pub at: Span,
    /// The action.
    pub action: Action,
}

/// What a rule does at first and later.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// At first.
    pub action: Action,
    /// Later.
    pub then: Vec<Update>,
}

impl Course {
    /// What an action is at first, and at each of these times.
    pub fn of(times: impl IntoIterator<Item = Span>, action: impl Fn(Span) -> Action) -> Self {
        let then = times.into_iter().map(|at| Update { at, action: action(at) }).collect();
        Self { action: action(Span::default()), then }
    }
}

impl From<Action> for Course {
    fn from(action: Action) -> Self {
        Self { action, then: Vec::new() }
    }
}

/// Conditions on a packet. All given ones must hold; an empty one is no condition.
///
/// `P` says how the other side is named: by its networks in a plan, as people name it in the parameters of a fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Filter<P = Cidr> {
    /// The transport protocol.
    pub protocol: Option<Protocol>,
    /// The other side.
    pub peers: Vec<P>,
    /// Ports on this side.
    pub local_ports: Vec<Ports>,
    /// Ports on the other side.
    pub peer_ports: Vec<Ports>,
    /// Share of the flows: one that is in is in for as long as the fault lasts. `None`: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<Percent>,
}

/// Transport protocols that a filter can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP over IPv4, ICMPv6 over IPv6 (neighbour discovery always passes).
    Icmp,
}

/// What is done to a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Dropped, if it is among the chosen.
    Drop(Losses),
    /// Held back for `delay`, and by chance more or less.
    Delay {
        /// Mean of the delay.
        delay: Span,
        /// Its spread, as the distribution has it.
        jitter: Span,
        /// How the delays are spread.
        #[serde(default)]
        distribution: Distribution,
        /// How much each delay is like the one before.
        #[serde(default)]
        correlation: Correlation,
        /// Whether packets of one flow may overtake each other.
        #[serde(default)]
        reorder: bool,
    },
    /// Some are held back, while those behind them pass.
    Reorder {
        /// Share of the packets.
        share: Percent,
        /// How long they are held.
        by: Span,
    },
    /// Some arrive twice.
    Duplicate {
        /// Share of the packets.
        share: Percent,
    },
    /// Some arrive with bits flipped.
    Corrupt {
        /// Share of the packets.
        share: Percent,
        /// How many bits of what is behind the transport header.
        bits: u16,
        /// What becomes of the checksum.
        checksum: Checksum,
    },
    /// They leave no faster than at a rate; those that wait are bounded, and the rest is dropped.
    Limit {
        /// Bits a second, of frames as they are on the link.
        rate: Rate,
        /// So much may leave at once after a rest.
        burst: Size,
        /// So much may wait.
        queue: Size,
        /// What shares the rate.
        per: Per,
    },
    /// Taken, and answered as if nobody were there: TCP with a reset, what else may be answered with an ICMP error.
    Reject,
    /// DNS queries for certain names are answered in place of their server, or delayed; all others pass at once.
    Answer(DnsQueries),
}

/// Which packets a loss takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Losses {
    /// Each by a draw of its own (Bernoulli).
    Share(Percent),
    /// By a chain of two states (Gilbert 1960, Elliott 1963). Its state decides about a packet, then it takes a step.
    GilbertElliott {
        /// Chance to go from the good to the bad state.
        worsens: Percent,
        /// Chance to go from the bad to the good state.
        recovers: Percent,
        /// Loss in the good state.
        in_good: Percent,
        /// Loss in the bad state.
        in_bad: Percent,
    },
    /// Every n-th packet.
    Every(u32),
}

impl Losses {
    /// The share that is lost in the long run, 0 to 1. Of the chain it is that of its stationary distribution:
    /// `bad = worsens / (worsens + recovers)`.
    pub fn expected(&self) -> f64 {
        match *self {
            Self::Share(share) => share.fraction(),
            Self::Every(n) => 1.0 / f64::from(n.max(1)),
            Self::GilbertElliott { worsens, recovers, in_good, in_bad } => {
                let leaves = worsens.fraction() + recovers.fraction();
                let bad = if leaves > 0.0 { worsens.fraction() / leaves } else { 0.0 };
                bad * in_bad.fraction() + (1.0 - bad) * in_good.fraction()
            }
        }
    }
}

/// How delays are spread about their mean. None is shorter than 0, and none longer than a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// Evenly between delay - jitter and delay + jitter
    #[default]
    Uniform,
    /// Normal, with jitter as the standard deviation
    Normal,
    /// Pareto of index 3, moved to the mean and scaled by 4/3 jitter, as netem has it: many a little early, few very late
    Pareto,
    /// A quarter of the normal deviation and three quarters of the Pareto one of the same draw, as netem has it
    ParetoNormal,
}

/// How much each draw is like the one before: the correlation of the normal deviates behind them, so that the distribution
/// stays what it is.
pub type Correlation = Percent;

/// What becomes of the checksum of a packet whose bits were flipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Checksum {
    /// Left as it was: the receiver's kernel finds the damage and drops the packet
    #[default]
    Left,
    /// Made right: the application gets the damaged bytes
    Fixed,
}

/// What shares a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// All packets that the fault is about, together
    #[default]
    Total,
    /// Each flow for itself
    Flow,
}

impl Action {
    /// Drops a share of the packets, each by a draw of its own.
    pub const fn drop_share(share: Percent) -> Self {
        Self::Drop(Losses::Share(share))
    }

    /// Whether packets pass through a delay line for it.
    pub const fn needs_line(&self) -> bool {
        !matches!(self, Self::Drop(_))
    }
}

impl<P> Default for Filter<P> {
    fn default() -> Self {
        let (peers, local_ports, peer_ports) = (Vec::new(), Vec::new(), Vec::new());
        Self { protocol: None, peers, local_ports, peer_ports, flows: None }
    }
}

impl Filter {
    /// Whether a connection between these ends meets the conditions on addresses and ports.
    pub fn admits(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        let among = |ports: &[Ports], port: u16| ports.is_empty() || ports.iter().any(|p| p.contains(port));
        (self.peers.is_empty() || self.peers.iter().any(|network| network.contains(peer.ip())))
            && among(&self.local_ports, local.port())
            && among(&self.peer_ports, peer.port())
    }
}

impl<P: fmt::Display> fmt::Display for Filter<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(protocol) = self.protocol {
            parts.push(format!("{protocol:?}").to_lowercase());
        }
        let list = |items: Vec<String>| items.join(", ");
        if !self.peers.is_empty() {
            parts.push(format!("peer {}", list(self.peers.iter().map(P::to_string).collect())));
        }
        if !self.local_ports.is_empty() {
            parts.push(format!("local port {}", list(self.local_ports.iter().map(Ports::to_string).collect())));
        }
        if !self.peer_ports.is_empty() {
            parts.push(format!("peer port {}", list(self.peer_ports.iter().map(Ports::to_string).collect())));
        }
        if let Some(share) = self.flows {
            parts.push(format!("{share} of the flows"));
        }
        if parts.is_empty() { f.write_str("all packets") } else { f.write_str(&parts.join(", ")) }
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share(share) => write!(f, "{share}"),
            Self::Every(n) => write!(f, "one in {n}"),
            Self::GilbertElliott { worsens, recovers, in_good, in_bad } => write!(
                f,
                "{in_good} in good times and {in_bad} in bad ones, which begin at {worsens} and end at {recovers} of the packets"
            ),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop(losses) => write!(f, "drop {losses} of"),
            Self::Delay { delay, jitter, .. } if jitter.0.is_zero() => write!(f, "delay by {delay}"),
            Self::Delay { delay, jitter, distribution, correlation, reorder } => {
                write!(f, "delay by {delay} ± {jitter}")?;
                if *distribution != Distribution::Uniform {
                    write!(f, " ({})", format!("{distribution:?}").to_lowercase())?;
                }
                if correlation.percent() > 0.0 {
                    write!(f, ", each like the one before by {correlation},")?;
                }
                if *reorder { f.write_str(" in any order") } else { Ok(()) }
            }
            Self::Reorder { share, by } => write!(f, "put {share} behind others by {by} of"),
            Self::Duplicate { share } => write!(f, "duplicate {share} of"),
            Self::Corrupt { share, bits, checksum } => {
                let then = if *checksum == Checksum::Fixed { " with a checksum made right" } else { "" };
                write!(f, "flip {bits} bits{then} in {share} of")
            }
            Self::Reject => f.write_str("refuse"),
            Self::Answer(queries) => write!(f, "{queries}, of"),
            Self::Limit { rate, per: Per::Total, .. } => write!(f, "limit to {rate}"),
            Self::Limit { rate, per: Per::Flow, .. } => write!(f, "limit each flow to {rate},"),
        }
    }
}
