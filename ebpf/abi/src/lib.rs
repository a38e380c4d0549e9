//! The types that the in-kernel programs and the agent share.
//!
//! Everything is `repr(C)` without implicit padding, in native byte order unless a field says otherwise, so that
//! both sides, built by different compilers for different targets, agree on every byte. The tests pin the layout.
#![no_std]
#![forbid(unsafe_code)]

mod calls;

use core::mem::size_of;

pub use calls::*;

/// Rules that one data plane (one network namespace) can hold.
pub const MAX_RULES: u32 = 16_384;
/// Rules of one scope; each is a bit of its [`Lists`].
pub const RULES_PER_SCOPE: u32 = 64;
/// Scopes of one data plane that have rules at the same time.
pub const MAX_SCOPES: u32 = 16_384;
/// Socket scopes that one socket can be in at the same time.
pub const SCOPES_PER_SOCKET: usize = 4;
/// Rules that can hold one packet at the same time.
pub const MAX_HOLDERS: usize = 8;
/// The scope of rules for every interface of the namespace. All others are given out by the agent, and none twice.
pub const NAMESPACE_SCOPE: u32 = 1;
/// Peer networks of one rule.
pub const MAX_PEERS: usize = 8;
/// Port ranges of one rule for local ports, and as many for peer ports.
pub const MAX_PORTS: usize = 8;
/// Delay lines of one data plane.
pub const MAX_LINES: u32 = 32;
/// Interfaces of one data plane that can carry rules.
pub const MAX_INTERFACES: u32 = 256;
/// Cgroups, and processes, that can carry a tag.
pub const MAX_TAGGED: u32 = 1024;
/// Ports that rules of one data plane can spare, in at most 64 sets.
pub const MAX_SPARED: u32 = 256;

/// [`Rule::action`]: drop the packet.
pub const ACTION_DROP: u32 = 1;
/// [`Rule::action`]: send the packet to the delay line, which knows what to do with it.
pub const ACTION_HOLD: u32 = 2;

/// [`Rule::model`]: each packet is chosen by a draw of its own, against [`Rule::threshold`].
pub const MODEL_INDEPENDENT: u32 = 0;
/// [`Rule::model`]: a chain of two states, each with a threshold of its own. See [`Rule::chain`].
pub const MODEL_GILBERT_ELLIOTT: u32 = 1;
/// [`Rule::model`]: every [`Rule::nth`] packet that matches.
pub const MODEL_EVERY_NTH: u32 = 2;

/// [`Rule::threshold`] of a rule that acts upon every packet that it matches.
pub const ALWAYS: u32 = u32::MAX;

/// [`Line::stage`] and `skb->cb[4]`: the packet was taken at the egress hook.
pub const STAGE_EGRESS: u32 = 1;
/// [`Line::stage`] and `skb->cb[4]`: the packet was taken at the ingress hook.
pub const STAGE_INGRESS: u32 = 2;

/// [`Line::reinject_flags`]: `BPF_F_INGRESS` of `bpf_redirect`.
pub const REINJECT_INGRESS: u32 = 1;

/// A delay line whose heartbeat is older than this is taken for hung, and packets pass it by. Its death is covered
/// by the links; this is only for an agent that lives and does not run. Nanoseconds.
pub const HEARTBEAT_TIMEOUT_NS: u64 = 1_000_000_000;

/// The prefix of the name of every interface that the data plane makes.
pub const TAP_PREFIX: &str = "fdl";

/// A network: sixteen bytes in network order (IPv4 as `::ffff:a.b.c.d`), read as two words, and its mask likewise.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The address, already masked.
    pub address: [u64; 2],
    /// Ones where the address counts.
    pub mask: [u64; 2],
}

/// An inclusive range of ports, in host order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// The socket scopes of a socket, 0 for none.
pub type SocketScopes = [u32; SCOPES_PER_SOCKET];

/// The rules of a scope for one direction, as bits. The number of the rule at a bit is `scope << 6 | bit`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Rules that drop.
    pub drops: u64,
    /// Rules that hold.
    pub holds: u64,
}

/// The number of a rule.
#[inline(always)]
pub const fn rule_number(scope: u32, bit: u32) -> u32 {
    scope << 6 | bit
}

/// The rules of a scope.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// For what leaves.
    pub egress: Lists,
    /// For what arrives.
    pub ingress: Lists,
}

/// One rule. Which packets ask it at all is said by its scope: those of an interface, of certain sockets, or all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `CLOCK_MONOTONIC` time from which the rule is ignored, nanoseconds.
    pub expires_ns: u64,
    /// The set of ports whose packets are none of this rule's, as a bit; 0: none. A map says which port is in which sets.
    pub spare: u64,
    /// Acts when a random `u32` is below it; [`ALWAYS`] always.
    pub threshold: u32,
    /// [`ACTION_DROP`] or [`ACTION_HOLD`].
    pub action: u32,
    /// How packets are chosen: [`MODEL_INDEPENDENT`] and so on.
    pub model: u32,
    /// IP protocol, 0 any; 1 stands for ICMP and ICMPv6.
    pub protocol: u32,
    /// Not 0: the rule has a condition on ports, which a packet without ports does not meet.
    pub needs_ports: u32,
    /// Only packets of this interface; 0: any.
    pub ifindex: u32,
    /// Only flows whose number is below it; [`ALWAYS`]: every flow.
    pub flows: u32,
    /// What the flow's number is mixed with, so that two rules choose different flows.
    pub flow_seed: u32,
    /// [`MODEL_GILBERT_ELLIOTT`]: thresholds of the way from good to bad, from bad to good, and of an action in the bad
    /// state ([`Rule::threshold`] is that of the good one). [`MODEL_EVERY_NTH`]: the first is n.
    pub chain: [u32; 3],
    /// Always 0.
    pub reserved: u32,
    /// Networks of the peer: destination at egress, source at ingress. All entries count: one that is not needed repeats
    /// another, and a rule for any peer has networks with an empty mask.
    pub peers: [Peer; MAX_PEERS],
    /// Ranges of local ports; all entries count, as above. `first` is not above `last`.
    pub local_ports: [PortRange; MAX_PORTS],
    /// Ranges of the peer's ports, likewise.
    pub peer_ports: [PortRange; MAX_PORTS],
}

/// Whom to ask about the packets of one direction of one interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hook {
    /// [`NAMESPACE_SCOPE`] when it has rules for this direction, else 0.
    pub namespace: u32,
    /// The interface's own scope when it has rules for this direction, else 0.
    pub own: u32,
    /// Not 0: there are rules for sockets for this direction, so the packet's socket must be found.
    pub sockets: u32,
    /// Not 0: there are rules that spare ports, so those of the packet must be looked up.
    pub sparing: u32,
    /// Delay line: its slot + 1; 0: none.
    pub line: u32,
}

/// An interface under rules, by its index in the data plane's namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// What leaves through it.
    pub egress: Hook,
    /// What arrives through it.
    pub ingress: Hook,
}

/// What a rule did in the kernel; one for each CPU. A GSO or GRO burst counts as one packet, as the hook sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that met the conditions of the rule.
    pub matched: u64,
    /// Their bytes, link-layer header included.
    pub bytes: u64,
    /// Of those, dropped by this rule.
    pub dropped: u64,
    /// Of those, sent to a delay line.
    pub diverted: u64,
    /// Of those, passed undelayed because no line was there or its thread hung.
    pub passed: u64,
}

/// One delay line, in a map that the agent has mapped into memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// `CLOCK_MONOTONIC` time at which its thread was last seen running, nanoseconds.
    pub heartbeat_ns: u64,
    /// The TAP; 0: the line is off and packets pass undelayed.
    pub tap_ifindex: u32,
    /// The interface that packets go back to.
    pub target_ifindex: u32,
    /// Flags of `bpf_redirect` on the way back.
    pub reinject_flags: u32,
    /// Which hook the line serves.
    pub stage: u32,
    /// Mark of the packet that is being written back: the program at the TAP runs inside that `write`.
    pub mark: u32,
    /// Priority of that packet.
    pub priority: u32,
}

/// What the kernel puts in front of a frame on its way to the delay line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// The first word of the data plane's nonce: anything else on the TAP is not ours.
    pub nonce: u64,
    /// `CLOCK_MONOTONIC` time at which the packet was taken, nanoseconds.
    pub taken_ns: u64,
    /// Packets of one flow have the same, and keep their order.
    pub flow: u32,
    /// The packet's mark, to be restored.
    pub mark: u32,
    /// The packet's priority, to be restored.
    pub priority: u32,
    /// How many of `holders` count.
    pub held: u32,
    /// The numbers of the rules that hold it.
    pub holders: [u32; MAX_HOLDERS],
}

/// Bytes of [`Meta`].
pub const META_LEN: u32 = size_of::<Meta>() as u32;

#[cfg(test)]
mod tests {
    use core::mem::{align_of, offset_of, size_of};

    use super::*;

    #[test]
    fn a_rule_has_no_padding() {
        assert_eq!(size_of::<Rule>(), 2 * 8 + 12 * 4 + MAX_PEERS * 32 + 2 * MAX_PORTS * 4);
        assert_eq!(offset_of!(Rule, threshold), 16);
        assert_eq!(offset_of!(Rule, chain), 48);
        assert_eq!(offset_of!(Rule, peers), 64);
        assert_eq!(offset_of!(Rule, local_ports), 64 + 256);
        assert_eq!(offset_of!(Rule, peer_ports), 64 + 256 + 32);
    }

    #[test]
    fn the_header_of_a_diverted_frame_has_64_bytes() {
        assert_eq!(META_LEN, 64);
        assert_eq!(offset_of!(Meta, flow), 16);
        assert_eq!(offset_of!(Meta, held), 28);
        assert_eq!(offset_of!(Meta, holders), 32);
    }

    #[test]
    fn lines_can_be_mapped_as_an_array() {
        // The kernel rounds the size of an element up to 8 bytes.
        assert_eq!(size_of::<Line>() % 8, 0);
        assert_eq!(size_of::<Line>(), 32);
        assert_eq!(align_of::<Line>(), 8);
        assert_eq!(offset_of!(Line, tap_ifindex), 8);
        assert_eq!(offset_of!(Line, mark), 24);
    }

    #[test]
    fn hooks_and_counters_have_no_padding() {
        assert_eq!(size_of::<Hook>(), 20);
        assert_eq!(size_of::<Interface>(), 40);
        assert_eq!(size_of::<Scope>(), 32);
        assert_eq!(size_of::<Counters>(), 40);
    }

    #[test]
    fn every_rule_of_a_scope_is_a_bit() {
        assert_eq!(RULES_PER_SCOPE, u64::BITS);
        assert_eq!(rule_number(3, 5), 3 * 64 + 5);
    }
}
