//! Rules on system calls: what programs at control groups and the agent share.

use crate::{MAX_PEERS, MAX_PORTS, Peer, PortRange};

/// Rules on calls that one host can have at once; each is a bit of its callers' sets.
pub const MAX_CALL_RULES: u32 = 64;
/// Connections that listeners of ours can have at once.
pub const MAX_ORIGINALS: u32 = 65_536;
/// Callers that rules can be about at once.
pub const MAX_CALLERS: u32 = 1024;

/// [`CallRule::calls`]: connect(2), of streams and of datagram sockets.
pub const CALL_CONNECT: u32 = 1;
/// [`CallRule::calls`]: sendto(2) and sendmsg(2) of datagrams that name their receiver.
pub const CALL_SEND: u32 = 2;
/// [`CallRule::calls`]: bind(2) that leaves the choice of the port to the kernel.
pub const CALL_BIND: u32 = 4;

/// [`Caller::kind`]: a control group of version 2 and those below it, by its id.
pub const CALLER_CGROUP: u32 = 1;
/// [`Caller::kind`]: a process (thread group), as the initial PID namespace numbers it.
pub const CALLER_PROCESS: u32 = 2;
/// [`Caller::kind`]: whoever has a socket of a network namespace, by its cookie.
pub const CALLER_NETNS: u32 = 3;

/// Whose calls.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller {
    /// Its number.
    pub id: u64,
    /// [`CALLER_CGROUP`] and so on.
    pub kind: u32,
    /// Always 0.
    pub reserved: u32,
}

/// One rule. Whose calls ask it is said by the sets of the callers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallRule {
    /// `CLOCK_MONOTONIC` time from which the rule is ignored, nanoseconds.
    pub expires_ns: u64,
    /// Only sockets of the network namespace with this cookie; 0: any.
    pub netns: u64,
    /// Acts when a random `u32` is below it; [`crate::ALWAYS`] always.
    pub threshold: u32,
    /// The error that the call gives, as a positive number; 0: it goes to `listener`.
    pub errno: u32,
    /// The port of the loopback interface to which a connect goes instead, if somebody listens there.
    pub listener: u32,
    /// The thread whose calls are left alone: that of the listener.
    pub exempt: u32,
    /// IP protocol, 0 any.
    pub protocol: u32,
    /// Which calls, as bits.
    pub calls: u32,
    /// Not 0: only calls on sockets that have no local port yet.
    pub without_port: u32,
    /// Always 0.
    pub reserved: u32,
    /// Networks of the peer; all entries count, as in [`crate::Rule::peers`]. A bind has the peer `::`, port 0.
    pub peers: [Peer; MAX_PEERS],
    /// Ranges of the peer's ports, likewise.
    pub peer_ports: [PortRange; MAX_PORTS],
}

/// Where a connection that goes to a listener of ours was to go, by the cookie of its socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Original {
    /// The peer, as in [`Peer::address`].
    pub peer: [u64; 2],
    /// The address that the listener's own connection to the peer has, likewise.
    pub local: [u64; 2],
    /// The peer's port.
    pub peer_port: u32,
    /// The port of that connection; 0 while there is none.
    pub local_port: u32,
}

/// What a rule on calls did.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallCounters {
    /// Calls that met the conditions of the rule.
    pub matched: u64,
    /// Of those, calls that it made fail.
    pub failed: u64,
}

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn rules_callers_and_counters_have_no_padding() {
        assert_eq!(size_of::<CallRule>(), 2 * 8 + 8 * 4 + MAX_PEERS * 32 + MAX_PORTS * 4);
        assert_eq!(offset_of!(CallRule, peers), 48);
        assert_eq!(size_of::<Caller>(), 16);
        assert_eq!(size_of::<CallCounters>(), 16);
        assert_eq!(size_of::<Original>(), 40);
    }

    #[test]
    fn every_rule_on_calls_is_a_bit() {
        assert_eq!(MAX_CALL_RULES, u64::BITS);
    }
}
