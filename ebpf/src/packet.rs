//! What rules can ask about a packet.

use crate::skb::{self, Skb, field};

const ETH_HLEN: u32 = 14;
const IPPROTO_ICMP: u8 = 1;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_SCTP: u8 = 132;
const IPPROTO_UDPLITE: u8 = 136;

/// Extension headers that are walked before the transport header; packets with more have no ports.
const MAX_EXTENSIONS: u32 = 6;

/// An IP packet, seen from this host: `local` and `peer` instead of source and destination.
#[derive(Clone, Copy)]
pub struct Packet {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// IP protocol; ICMPv6 shows as ICMP.
    pub protocol: u8,
    /// The ports are known: a transport with ports, not a later fragment.
    pub has_ports: bool,
    /// Part of a fragmented datagram.
    pub fragment: bool,
    /// Sixteen bytes in network order as two words, IPv4 as `::ffff:a.b.c.d`.
    pub local: [u64; 2],
    /// Likewise.
    pub peer: [u64; 2],
    /// Host order.
    pub local_port: u16,
    /// Host order.
    pub peer_port: u16,
}

impl Packet {
    /// Parses a frame. `None` for what always passes: ARP, neighbour discovery, whatever is not IP (tagged VLAN frames
    /// on the parent interface included), and malformed headers.
    #[inline(always)]
    pub fn parse(skb: Skb, egress: bool) -> Option<Self> {
        if field!(skb, vlan_present) != 0 {
            return None;
        }
        let kind: [u8; 2] = skb::load(skb, ETH_HLEN - 2)?;
        match kind {
            [0x08, 0x00] => Self::parse_v4(skb, egress),
            [0x86, 0xdd] => Self::parse_v6(skb, egress),
            _ => None,
        }
    }

    #[inline(always)]
    fn parse_v4(skb: Skb, egress: bool) -> Option<Self> {
        let header: [u8; 20] = skb::load(skb, ETH_HLEN)?;
        let header_len = u32::from(header[0] & 0x0f) * 4;
        if header_len < 20 {
            return None;
        }
        let offset = u16::from_be_bytes([header[6] & 0x1f, header[7]]);
        let source = mapped([header[12], header[13], header[14], header[15]]);
        let destination = mapped([header[16], header[17], header[18], header[19]]);
        let (local, peer) = if egress { (source, destination) } else { (destination, source) };
        let mut packet = Self {
            v6: false,
            protocol: header[9],
            has_ports: false,
            fragment: offset != 0 || header[6] & 0x20 != 0,
            local,
            peer,
            local_port: 0,
            peer_port: 0,
        };
        if offset == 0 {
            packet.read_ports(skb, ETH_HLEN + header_len, egress);
        }
        Some(packet)
    }

    #[inline(always)]
    fn parse_v6(skb: Skb, egress: bool) -> Option<Self> {
        let header: [u8; 40] = skb::load(skb, ETH_HLEN)?;
        let source = [word(&header, 8), word(&header, 16)];
        let destination = [word(&header, 24), word(&header, 32)];
        let (local, peer) = if egress { (source, destination) } else { (destination, source) };
        let mut packet =
            Self { v6: true, protocol: 0, has_ports: false, fragment: false, local, peer, local_port: 0, peer_port: 0 };
        let mut next = header[6];
        let mut at = ETH_HLEN + 40;
        let mut first = true;
        for _ in 0..MAX_EXTENSIONS {
            let len = match next {
                // Hop-by-hop, routing, destination options, mobility: length in units of 8 after the first 8.
                0 | 43 | 60 | 135 => 8,
                // Fragment.
                44 => 0,
                // Authentication: length in units of 4, less 2.
                51 => 4,
                _ => break,
            };
            let extension: [u8; 4] = skb::load(skb, at)?;
            if len == 0 {
                packet.fragment = true;
                first = u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 == 0;
                at += 8;
            } else if len == 4 {
                at += (u32::from(extension[1]) + 2) * 4;
            } else {
                at += (u32::from(extension[1]) + 1) * 8;
            }
            next = extension[0];
            if !first {
                break;
            }
        }
        packet.protocol = next;
        if next == IPPROTO_ICMPV6 {
            packet.protocol = IPPROTO_ICMP;
            if first {
                let kind: [u8; 1] = skb::load(skb, at)?;
                if (133..=137).contains(&kind[0]) {
                    return None;
                }
            }
        }
        if first {
            packet.read_ports(skb, at, egress);
        }
        Some(packet)
    }

    #[inline(always)]
    fn read_ports(&mut self, skb: Skb, at: u32, egress: bool) {
        if !matches!(self.protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP | IPPROTO_UDPLITE) {
            return;
        }
        let Some(ports) = skb::load::<4>(skb, at) else { return };
        let source = u16::from_be_bytes([ports[0], ports[1]]);
        let destination = u16::from_be_bytes([ports[2], ports[3]]);
        (self.local_port, self.peer_port) = if egress { (source, destination) } else { (destination, source) };
        self.has_ports = true;
    }

    /// TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol == IPPROTO_TCP
    }

    /// UDP.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.protocol == IPPROTO_UDP
    }

    /// A number that all packets of a flow share. Fragments of a datagram share it too, at the price that they do
    /// not share it with whole packets of their flow.
    #[inline(always)]
    pub fn flow(&self) -> u32 {
        let ports = if self.fragment { 0 } else { u64::from(self.local_port) << 16 | u64::from(self.peer_port) };
        let mut hash = mix(self.local[0] ^ self.local[1].rotate_left(32));
        hash = mix(hash ^ self.peer[0] ^ self.peer[1].rotate_left(17));
        hash = mix(hash ^ ports ^ u64::from(self.protocol) << 32);
        (hash >> 32) as u32
    }
}

/// The finaliser of SplitMix64.
#[inline(always)]
fn mix(word: u64) -> u64 {
    let mut word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[inline(always)]
fn mapped(v4: [u8; 4]) -> [u64; 2] {
    [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3]])]
}

#[inline(always)]
fn word(header: &[u8; 40], at: usize) -> u64 {
    u64::from_ne_bytes([
        header[at],
        header[at + 1],
        header[at + 2],
        header[at + 3],
        header[at + 4],
        header[at + 5],
        header[at + 6],
        header[at + 7],
    ])
}
