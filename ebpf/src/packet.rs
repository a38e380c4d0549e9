//! What rules can ask about a packet.

use core::ptr;

use crate::{
    maps::PACKET,
    skb::{self, Skb, field},
};

const ETH_HLEN: u32 = 14;
/// What ICMP and ICMPv6 both show as.
const ICMP: u32 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDPLITE: u8 = 136;

/// Extension headers that are walked before the transport header; packets with more have no ports.
const MAX_EXTENSIONS: u32 = 6;

/// An IP packet, seen from this host: `local` and `peer` instead of source and destination.
///
/// It lives in a map, not on the stack: the verifier forgets what was written there, so that all the ways of parsing meet in
/// one state and the rules are verified once, not once for each kind of packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    /// Sixteen bytes in network order as two words, IPv4 as `::ffff:a.b.c.d`.
    pub local: [u64; 2],
    /// Likewise.
    pub peer: [u64; 2],
    /// Host order.
    pub local_port: u32,
    /// Host order.
    pub peer_port: u32,
    /// IP protocol; ICMPv6 shows as ICMP.
    pub protocol: u32,
    /// 1: IPv6, not IPv4.
    pub v6: u32,
    /// 1: the ports are known: a transport with ports, not a later fragment.
    pub has_ports: u32,
    /// 1: part of a fragmented datagram.
    pub fragment: u32,
    /// While parsing IPv6: the kind of the next header.
    next: u32,
    /// Where it begins.
    at: u32,
}

impl Packet {
    /// Parses a frame into the scratch memory of this CPU. `None` for what always passes: ARP, neighbour discovery, whatever
    /// is not IP (tagged VLAN frames on the parent interface included), and malformed headers.
    #[inline(always)]
    pub fn parse(skb: Skb, egress: bool) -> Option<&'static Self> {
        if field!(skb, vlan_present) != 0 {
            return None;
        }
        // SAFETY: this CPU's entry; programs at these hooks run with bottom halves off and do not interrupt each other.
        let packet = unsafe { &mut *PACKET.get_ptr_mut(0)? };
        packet.has_ports = 0;
        packet.fragment = 0;
        packet.local_port = 0;
        packet.peer_port = 0;
        let kind: [u8; 2] = skb::load(skb, ETH_HLEN - 2)?;
        match kind {
            [0x08, 0x00] => packet.parse_v4(skb, egress)?,
            [0x86, 0xdd] => packet.parse_v6(skb, egress)?,
            _ => return None,
        }
        Some(packet)
    }

    #[inline(always)]
    fn parse_v4(&mut self, skb: Skb, egress: bool) -> Option<()> {
        let header: [u8; 20] = skb::load(skb, ETH_HLEN)?;
        let header_len = u32::from(header[0] & 0x0f) * 4;
        if header_len < 20 {
            return None;
        }
        self.v6 = 0;
        self.protocol = u32::from(header[9]);
        let source = mapped([header[12], header[13], header[14], header[15]]);
        let destination = mapped([header[16], header[17], header[18], header[19]]);
        (self.local, self.peer) = if egress { (source, destination) } else { (destination, source) };
        let offset = u16::from_be_bytes([header[6] & 0x1f, header[7]]);
        if offset != 0 || header[6] & 0x20 != 0 {
            self.fragment = 1;
        }
        if offset == 0 {
            self.read_ports(skb, ETH_HLEN + header_len, header[9], egress);
        }
        Some(())
    }

    #[inline(always)]
    fn parse_v6(&mut self, skb: Skb, egress: bool) -> Option<()> {
        let header: [u8; 40] = skb::load(skb, ETH_HLEN)?;
        self.v6 = 1;
        let source = [word(&header, 8), word(&header, 16)];
        let destination = [word(&header, 24), word(&header, 32)];
        (self.local, self.peer) = if egress { (source, destination) } else { (destination, source) };
        self.at = ETH_HLEN + 40;
        self.next = u32::from(header[6]);
        for _ in 0..MAX_EXTENSIONS {
            // Hop-by-hop, routing, fragment, authentication, destination options, mobility.
            let kind = self.next();
            if !matches!(kind, 0 | 43 | 44 | 51 | 60 | 135) {
                break;
            }
            let extension: [u8; 4] = skb::load(skb, self.at())?;
            self.next = u32::from(extension[0]);
            self.at += match kind {
                44 => {
                    self.fragment = 1;
                    if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                        self.protocol = if self.next() == ICMPV6 { ICMP } else { u32::from(self.next()) };
                        return Some(());
                    }
                    8
                }
                // Length in units of 4, less 2.
                51 => (u32::from(extension[1]) + 2) * 4,
                // Length in units of 8, after the first 8.
                _ => (u32::from(extension[1]) + 1) * 8,
            };
        }
        if self.next() == ICMPV6 {
            self.protocol = ICMP;
            let kind: [u8; 1] = skb::load(skb, self.at())?;
            return (!(133..=137).contains(&kind[0])).then_some(());
        }
        self.protocol = self.next;
        self.read_ports(skb, self.at(), self.next(), egress);
        Some(())
    }

    /// Read from memory each time, as the optimiser would not, for the sake of the verifier.
    #[inline(always)]
    fn next(&self) -> u8 {
        // SAFETY: a reference.
        unsafe { ptr::read_volatile(&self.next) as u8 }
    }

    /// Likewise.
    #[inline(always)]
    fn at(&self) -> u32 {
        // SAFETY: a reference.
        unsafe { ptr::read_volatile(&self.at) }
    }

    #[inline(always)]
    fn read_ports(&mut self, skb: Skb, at: u32, protocol: u8, egress: bool) {
        if !matches!(protocol, TCP | UDP | SCTP | UDPLITE) {
            return;
        }
        let Some(ports) = skb::load::<4>(skb, at) else { return };
        let source = u32::from(u16::from_be_bytes([ports[0], ports[1]]));
        let destination = u32::from(u16::from_be_bytes([ports[2], ports[3]]));
        (self.local_port, self.peer_port) = if egress { (source, destination) } else { (destination, source) };
        self.has_ports = 1;
    }

    /// TCP.
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol == u32::from(TCP)
    }

    /// UDP.
    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.protocol == u32::from(UDP)
    }

    /// A number that all packets of a flow share. Fragments of a datagram share it too, at the price that they do
    /// not share it with whole packets of their flow.
    #[inline(always)]
    pub fn flow(&self) -> u32 {
        let ports = if self.fragment != 0 { 0 } else { u64::from(self.local_port) << 16 | u64::from(self.peer_port) };
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
