//! Rules on system calls: whose, which, and the error that they give.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Filter, SocketOwner};
use crate::facts::NetnsRef;
use crate::units::{Cidr, Percent};

/// Whose calls a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Caller {
    /// A control group and those below it, or certain processes.
    Owner(SocketOwner),
    /// Whoever has a socket of a network namespace.
    Netns(NetnsRef),
}

/// System calls that a rule can have fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// connect(2), of streams and of datagram sockets.
    Connect,
    /// sendto(2) and sendmsg(2) of datagrams that name their receiver.
    Send,
    /// bind(2) that leaves the choice of the port to the kernel.
    Bind,
}

/// Which calls, and the error that they give.
///
/// `P` says how the other side is named: by its networks in a plan, as people name it in the parameters of a fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallRule<P = Cidr> {
    /// The calls.
    pub calls: Vec<Call>,
    /// Only calls that name such a peer, on sockets of this protocol; local ports and flows have no meaning here.
    pub filter: Filter<P>,
    /// Only sockets that have no local port yet.
    pub without_port: bool,
    /// Share of the calls, each by a draw of its own.
    pub share: Percent,
    /// What they give.
    pub error: Errno,
}

/// Errors of calls, by the names of errno(3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Errno {
    /// Nobody listens there
    #[default]
    Econnrefused,
    /// The peer does not answer
    Etimedout,
    /// There is no route to its network
    Enetunreach,
    /// There is no route to it
    Ehostunreach,
    /// The network is down
    Enetdown,
    /// A firewall or policy of this host forbids it
    Eacces,
    /// The same, as netfilter tells it
    Eperm,
    /// No local port is free
    Eaddrnotavail,
    /// The address is taken
    Eaddrinuse,
    /// No memory for it
    Enobufs,
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_uppercase())
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(owner) => owner.fmt(f),
            Self::Netns(netns) => write!(f, "everybody in {}", netns.path),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Send => "sendto",
            Self::Bind => "bind to port 0",
        })
    }
}

impl<P: fmt::Display + PartialEq> fmt::Display for CallRule<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = self.calls.iter().map(Call::to_string).collect::<Vec<_>>().join(", ");
        write!(f, "fail {} of {calls} with {}", self.share, self.error)?;
        if self.filter == Filter::default() { Ok(()) } else { write!(f, ", {}", self.filter) }
    }
}
