//! Answers to packets that their receiver never gets: frames that go back to the sender, as if nobody were there. Pure.
//!
//! TCP is answered with a reset whose numbers the sender accepts (RFC 9293, 3.10.7.1), everything else with an error of ICMP
//! (RFC 792, RFC 1812 4.3.2) or ICMPv6 (RFC 4443): "port unreachable" for UDP, "administratively prohibited" for the rest. What must
//! not be answered is not: resets, errors of ICMP, later fragments, and what was for many or comes from nobody.

use super::wire::{self, ETHERNET_LEN, Network, TCP, UDP, VNET_LEN};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;
/// Hops that an answer may take, as Linux has it for packets of its own.
const HOPS: u8 = 64;
/// The greatest IPv4 packet that every host takes, so that an error fits in whatever way it takes.
const LARGEST_ERROR_V4: usize = 576;
/// The least MTU of IPv6, likewise.
const LARGEST_ERROR_V6: usize = 1280;

/// What sort of answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A reset of TCP.
    Reset,
    /// An error of ICMP or ICMPv6.
    Unreachable,
    /// An answer of DNS.
    Dns,
}

/// A frame that goes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// What it is.
    pub kind: Kind,
    /// What to write to the TAP.
    pub frame: Box<[u8]>,
}

/// The answer to a frame to which nobody listens; `None` when there must be none.
pub(super) fn refusal(frame: &[u8]) -> Option<Answer> {
    let ethernet = frame.get(VNET_LEN..)?;
    let network = wire::network(ethernet)?;
    if !network.first || !is_between_two(ethernet, network.v6) {
        return None;
    }
    let transport = &ethernet[network.transport..network.end];
    match network.protocol {
        TCP => Some(Answer { kind: Kind::Reset, frame: reset(ethernet, &network, transport)? }),
        ICMP if !network.v6 && matches!(transport.first()?, 3 | 4 | 5 | 11 | 12) => None,
        ICMPV6 if network.v6 && *transport.first()? < 128 => None,
        _ => Some(Answer { kind: Kind::Unreachable, frame: unreachable(ethernet, &network) }),
    }
}

/// Whether it is from one host to one other, by both kinds of its addresses. The frame has its IP header.
fn is_between_two(ethernet: &[u8], v6: bool) -> bool {
    let is_group = |mac: u8| mac & 1 != 0;
    if is_group(ethernet[0]) || is_group(ethernet[6]) {
        return false;
    }
    let ip = &ethernet[ETHERNET_LEN..];
    if v6 {
        let (source, destination) = (&ip[8..24], &ip[24..40]);
        source[0] != 0xff && destination[0] != 0xff && source.iter().any(|byte| *byte != 0)
    } else {
        // This network; multicast, reserved, and the broadcast of all.
        let (source, destination) = (ip[12], ip[16]);
        source != 0 && source < 224 && destination < 224
    }
}

fn reset(ethernet: &[u8], network: &Network, segment: &[u8]) -> Option<Box<[u8]>> {
    let header = usize::from(segment.get(12)? >> 4) * 4;
    let flags = *segment.get(13)?;
    if header < 20 || header > segment.len() || flags & TCP_RST != 0 {
        return None;
    }
    let word = |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
    let (sequence, acknowledges, flags) = if flags & TCP_ACK != 0 {
        (word(8), 0, TCP_RST)
    } else {
        let length = segment.len() - header + usize::from(flags & TCP_SYN != 0) + usize::from(flags & TCP_FIN != 0);
        (0, word(4).wrapping_add(length as u32), TCP_RST | TCP_ACK)
    };
    let mut frame = envelope(ethernet, network.v6, TCP, 20);
    frame.extend_from_slice(&segment[2..4]);
    frame.extend_from_slice(&segment[0..2]);
    frame.extend_from_slice(&sequence.to_be_bytes());
    frame.extend_from_slice(&acknowledges.to_be_bytes());
    frame.extend_from_slice(&[5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    wire::complete(&mut frame[VNET_LEN..]);
    Some(frame.into())
}

fn unreachable(ethernet: &[u8], network: &Network) -> Box<[u8]> {
    let is_udp = network.protocol == UDP;
    let (protocol, kind, code, most) = match (network.v6, is_udp) {
        (false, true) => (ICMP, 3, 3, LARGEST_ERROR_V4 - 20 - 8),
        (false, false) => (ICMP, 3, 13, LARGEST_ERROR_V4 - 20 - 8),
        (true, true) => (ICMPV6, 1, 4, LARGEST_ERROR_V6 - 40 - 8),
        (true, false) => (ICMPV6, 1, 1, LARGEST_ERROR_V6 - 40 - 8),
    };
    let quoted = &ethernet[ETHERNET_LEN..network.end.min(ETHERNET_LEN + most)];
    let length = 8 + quoted.len();
    let mut frame = envelope(ethernet, network.v6, protocol, length);
    let at = frame.len();
    frame.extend_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(quoted);
    let pseudo = if network.v6 {
        let addresses = VNET_LEN + ETHERNET_LEN + 8..VNET_LEN + ETHERNET_LEN + 40;
        wire::sum(&frame[addresses], u64::from(ICMPV6) + length as u64)
    } else {
        0
    };
    let checksum = !wire::fold(wire::sum(&frame[at..], pseudo));
    frame[at + 2..at + 4].copy_from_slice(&checksum.to_be_bytes());
    frame.into()
}

/// The headers before `length` bytes of a protocol that go back to the sender of a frame. The frame has its IP header.
pub(super) fn envelope(ethernet: &[u8], v6: bool, protocol: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![0; VNET_LEN];
    frame.extend_from_slice(&ethernet[6..12]);
    frame.extend_from_slice(&ethernet[..6]);
    frame.extend_from_slice(&ethernet[12..14]);
    let ip = &ethernet[ETHERNET_LEN..];
    if v6 {
        frame.extend_from_slice(&[0x60, 0, 0, 0]);
        frame.extend_from_slice(&(length as u16).to_be_bytes());
        frame.extend_from_slice(&[protocol, HOPS]);
        frame.extend_from_slice(&ip[24..40]);
        frame.extend_from_slice(&ip[8..24]);
    } else {
        let at = frame.len();
        frame.extend_from_slice(&[0x45, 0]);
        frame.extend_from_slice(&(20 + length as u16).to_be_bytes());
        // No identification is needed for what must not be fragmented (RFC 6864).
        frame.extend_from_slice(&[0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
        frame.extend_from_slice(&ip[16..20]);
        frame.extend_from_slice(&ip[12..16]);
        let checksum = !wire::fold(wire::sum(&frame[at..], 0));
        frame[at + 10..at + 12].copy_from_slice(&checksum.to_be_bytes());
    }
    frame
}

#[cfg(test)]
pub(super) mod tests;
