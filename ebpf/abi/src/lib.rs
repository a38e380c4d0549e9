//! The types that the in-kernel programs and the agent share.
//!
//! Everything is `repr(C)` without implicit padding, in native byte order unless a field says otherwise, so that
//! both sides, built by different compilers for different targets, agree on every byte. The tests pin the layout.
#![no_std]
#![forbid(unsafe_code)]

use core::mem::size_of;

/// Rules that one data plane (one network namespace) can hold; a rule is a bit of a `u64`.
pub const MAX_RULES: u32 = 64;
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

/// Ports that rules of one data plane can spare.
pub const MAX_SPARED: u32 = 256;

/// [`Rule::action`]: drop the packet.
pub const ACTION_DROP: u32 = 1;
/// [`Rule::action`]: hold the packet.
pub const ACTION_DELAY: u32 = 2;

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

/// One rule. Which interfaces and directions it applies to is said by the masks of [`Hook`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// `CLOCK_MONOTONIC` time from which the rule is ignored, nanoseconds. 0: the slot is free.
    pub expires_ns: u64,
    /// How long to hold a packet, nanoseconds.
    pub delay_ns: u64,
    /// Uniform jitter: the delay lies between `delay_ns - jitter_ns` (not below 0) and `delay_ns + jitter_ns`.
    pub jitter_ns: u64,
    /// 0: any packet. Else the packet's socket must carry one of these tags.
    pub tag_mask: u64,
    /// Acts when a random `u32` is below it; [`ALWAYS`] always.
    pub threshold: u32,
    /// [`ACTION_DROP`] or [`ACTION_DELAY`].
    pub action: u32,
    /// IP protocol, 0 any; 1 stands for ICMP and ICMPv6.
    pub protocol: u32,
    /// Not 0: the rule has a condition on ports, which a packet without ports does not meet.
    pub needs_ports: u32,
    /// Networks of the peer: destination at egress, source at ingress. All entries count: one that is not needed repeats
    /// another, and a rule for any peer has networks with an empty mask.
    pub peers: [Peer; MAX_PEERS],
    /// Ranges of local ports; all entries count, as above. `first` is not above `last`.
    pub local_ports: [PortRange; MAX_PORTS],
    /// Ranges of the peer's ports, likewise.
    pub peer_ports: [PortRange; MAX_PORTS],
}

/// The rules of one direction of one interface, as bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hook {
    /// Rules that drop: they are asked first.
    pub drops: u64,
    /// Rules that delay.
    pub delays: u64,
    /// Those of both that need the tags of the packet's socket.
    pub tagged: u64,
    /// Those of both that spare some ports. For each port that any rule spares, a map has the rules that spare it.
    pub sparing: u64,
    /// Delay line: its slot + 1; 0: none.
    pub line: u32,
    /// Always 0.
    pub reserved: u32,
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
    /// How long to hold it, jitter included, nanoseconds.
    pub delay_ns: u64,
    /// The rules that hold it, as bits.
    pub rules: u64,
    /// Packets of one flow have the same, and keep their order.
    pub flow: u32,
    /// The packet's mark, to be restored.
    pub mark: u32,
    /// The packet's priority, to be restored.
    pub priority: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Bytes of [`Meta`].
pub const META_LEN: u32 = size_of::<Meta>() as u32;

#[cfg(test)]
mod tests {
    use core::mem::{align_of, offset_of, size_of};

    use super::*;

    #[test]
    fn a_rule_has_no_padding() {
        assert_eq!(size_of::<Rule>(), 4 * 8 + 4 * 4 + MAX_PEERS * 32 + 2 * MAX_PORTS * 4);
        assert_eq!(offset_of!(Rule, threshold), 32);
        assert_eq!(offset_of!(Rule, peers), 48);
        assert_eq!(offset_of!(Rule, local_ports), 48 + 256);
        assert_eq!(offset_of!(Rule, peer_ports), 48 + 256 + 32);
    }

    #[test]
    fn the_header_of_a_diverted_frame_has_48_bytes() {
        assert_eq!(META_LEN, 48);
        assert_eq!(offset_of!(Meta, flow), 32);
        assert_eq!(offset_of!(Meta, mark), 36);
        assert_eq!(offset_of!(Meta, priority), 40);
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
        assert_eq!(size_of::<Hook>(), 40);
        assert_eq!(size_of::<Interface>(), 80);
        assert_eq!(size_of::<Counters>(), 40);
    }

    #[test]
    fn every_rule_is_a_bit() {
        assert_eq!(MAX_RULES, u64::BITS);
    }
}
