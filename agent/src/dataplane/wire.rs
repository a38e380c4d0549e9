//! Frames as a TAP gives and takes them: a `virtio_net_hdr`, then an Ethernet frame. Pure.
//!
//! A frame may be a burst that the stack leaves to the device to cut (GSO), and its checksum may be left to the device, too
//! (virtio specification 1.2, 5.1.6). What acts on packets one by one cuts and completes them here.

/// Bytes of `struct virtio_net_hdr`, without the number of merged buffers.
pub(super) const VNET_LEN: usize = 10;
/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
pub(super) const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: a flag beside the type.
const GSO_ECN: u8 = 0x80;

/// Bytes of an Ethernet header.
pub(super) const ETHERNET_LEN: usize = 14;
/// The protocol.
pub(super) const TCP: u8 = 6;
/// The protocol.
pub(super) const UDP: u8 = 17;
/// FIN and PSH are the last segment's, CWR the first's.
const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

fn short(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 2).map_or(0, |two| usize::from(u16::from_ne_bytes([two[0], two[1]])))
}

fn gso_type(frame: &[u8]) -> u8 {
    frame.get(1).map_or(GSO_NONE, |kind| kind & !GSO_ECN)
}

/// Where the parts of an IP frame lie, from the beginning of the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub v6: bool,
    pub protocol: u8,
    pub transport: usize,
    pub payload: usize,
    pub end: usize,
}

/// The network layer of a frame; places count from the beginning of the Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Network {
    /// IPv6, not IPv4.
    pub v6: bool,
    /// What follows the header and its extensions.
    pub protocol: u8,
    /// Where that begins; not behind `end`.
    pub transport: usize,
    /// Where the packet ends; the frame may be padded.
    pub end: usize,
    /// Not a fragment.
    pub whole: bool,
    /// Whole, or the first fragment: the one with the transport header.
    pub first: bool,
}

/// `None`: not IP, or headers that are not understood.
pub(super) fn network(ethernet: &[u8]) -> Option<Network> {
    let ip = ethernet.get(ETHERNET_LEN..)?;
    let word = |at: usize| Some(u16::from_be_bytes([*ip.get(at)?, *ip.get(at + 1)?]));
    let (mut whole, mut first) = (true, true);
    let (v6, protocol, transport, end) = match ethernet.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(ip.first()? & 0x0f) * 4;
            let fragment = word(6)?;
            (whole, first) = (fragment & 0x3fff == 0, fragment & 0x1fff == 0);
            if header < 20 {
                return None;
            }
            (false, *ip.get(9)?, header, usize::from(word(2)?))
        }
        [0x86, 0xdd] => {
            let end = 40 + usize::from(word(4)?);
            let (mut next, mut at) = (*ip.get(6)?, 40);
            // Hop-by-hop options, routing, fragment, destination options; what else stands there hides the transport.
            while first && matches!(next, 0 | 43 | 44 | 60) {
                let extension = ip.get(at..at + 2)?;
                let length = if next == 44 {
                    (whole, first) = (false, word(at + 2)? & 0xfff8 == 0);
                    8
                } else {
                    (usize::from(extension[1]) + 1) * 8
                };
                (next, at) = (extension[0], at + length);
            }
            (true, next, at, end)
        }
        _ => return None,
    };
    // A burst of more than 64 KiB has no length; a short frame may be padded.
    let end = if end <= transport { ip.len() } else { end.min(ip.len()) };
    let (transport, end) = (ETHERNET_LEN + transport, ETHERNET_LEN + end);
    (transport <= end).then_some(Network { v6, protocol, transport, end, whole, first })
}

/// `None`: not TCP or UDP, a fragment, or headers that are not understood.
pub(super) fn layout(ethernet: &[u8]) -> Option<Layout> {
    let Network { v6, protocol, transport, end, whole, .. } = network(ethernet)?;
    let header = match protocol {
        TCP => usize::from(ethernet.get(transport + 12)? >> 4) * 4,
        UDP => 8,
        _ => return None,
    };
    let payload = transport + header;
    (whole && payload <= end).then_some(Layout { v6, protocol, transport, payload, end })
}

/// Bytes on the link: a burst is cut there, and each part gets headers of its own.
pub(super) fn link_len(frame: &[u8]) -> usize {
    let ethernet = frame.len().saturating_sub(VNET_LEN);
    let size = short(frame, 4);
    if gso_type(frame) == GSO_NONE || size == 0 {
        return ethernet;
    }
    let headers = match layout(&frame[VNET_LEN..]) {
        Some(layout) => layout.payload,
        None => short(frame, 2),
    };
    let parts = ethernet.saturating_sub(headers).div_ceil(size).max(1);
    ethernet + (parts - 1) * headers
}

/// The packets of a frame: those that a burst is cut into, or the frame itself.
pub(super) fn segments(frame: &[u8]) -> Vec<Box<[u8]>> {
    cut(frame).unwrap_or_else(|| vec![frame.into()])
}

fn cut(frame: &[u8]) -> Option<Vec<Box<[u8]>>> {
    let (kind, size) = (gso_type(frame), short(frame, 4));
    let ethernet = frame.get(VNET_LEN..)?;
    let parts = layout(ethernet)?;
    let known = match parts.protocol {
        TCP => kind == if parts.v6 { GSO_TCPV6 } else { GSO_TCPV4 },
        _ => kind == GSO_UDP_L4,
    };
    if !known || size == 0 {
        return None;
    }
    let (headers, payload) = (&ethernet[..parts.payload], &ethernet[parts.payload..parts.end]);
    let count = payload.len().div_ceil(size).max(1);
    let mut segments = Vec::with_capacity(count);
    for (i, chunk) in payload.chunks(size).enumerate() {
        let mut segment = vec![0; VNET_LEN];
        segment.extend_from_slice(headers);
        segment.extend_from_slice(chunk);
        let packet = &mut segment[VNET_LEN..];
        let length = (packet.len() - ETHERNET_LEN) as u16;
        if parts.v6 {
            packet[ETHERNET_LEN + 4..ETHERNET_LEN + 6].copy_from_slice(&(length - 40).to_be_bytes());
        } else {
            packet[ETHERNET_LEN + 2..ETHERNET_LEN + 4].copy_from_slice(&length.to_be_bytes());
            let id = u16::from_be_bytes([packet[ETHERNET_LEN + 4], packet[ETHERNET_LEN + 5]]).wrapping_add(i as u16);
            packet[ETHERNET_LEN + 4..ETHERNET_LEN + 6].copy_from_slice(&id.to_be_bytes());
            packet[ETHERNET_LEN + 10..ETHERNET_LEN + 12].fill(0);
            let sum = !fold(sum(&packet[ETHERNET_LEN..parts.transport], 0));
            packet[ETHERNET_LEN + 10..ETHERNET_LEN + 12].copy_from_slice(&sum.to_be_bytes());
        }
        if parts.protocol == TCP {
            let at = parts.transport + 4;
            let first = u32::from_be_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]);
            let sequence = first.wrapping_add((i * size) as u32);
            packet[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            let flags = &mut packet[parts.transport + 13];
            if i + 1 < count {
                *flags &= !(TCP_FIN | TCP_PSH);
            }
            if i > 0 {
                *flags &= !TCP_CWR;
            }
        } else {
            let length = (8 + chunk.len()) as u16;
            packet[parts.transport + 4..parts.transport + 6].copy_from_slice(&length.to_be_bytes());
        }
        complete(packet);
        segments.push(segment.into());
    }
    Some(segments)
}

/// Writes the checksum of TCP or UDP as it must be.
pub(super) fn complete(ethernet: &mut [u8]) {
    let Some(parts) = layout(ethernet) else { return };
    let at = parts.transport + if parts.protocol == TCP { 16 } else { 6 };
    ethernet[at..at + 2].fill(0);
    let addresses = if parts.v6 { ETHERNET_LEN + 8..ETHERNET_LEN + 40 } else { ETHERNET_LEN + 12..ETHERNET_LEN + 20 };
    let pseudo = sum(&ethernet[addresses], u64::from(parts.protocol) + (parts.end - parts.transport) as u64);
    let mut checksum = !fold(sum(&ethernet[parts.transport..parts.end], pseudo));
    // For UDP, 0 would mean that there is none (RFC 768).
    if checksum == 0 && parts.protocol == UDP {
        checksum = 0xffff;
    }
    ethernet[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// The sum of 16-bit words of RFC 1071, not folded yet.
pub(super) fn sum(bytes: &[u8], start: u64) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let whole: u64 = words.by_ref().map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    start + whole + words.remainder().first().map_or(0, |last| u64::from(*last) << 8)
}

/// The sum in sixteen bits; the checksum is its complement.
pub(super) fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Flips bits of what a packet carries, each drawn by `chance` (which gives a number below its argument). With `fix` the checksum is
/// made right afterwards, without it is what it was for the undamaged packet. `false`: there is nothing to flip.
pub(super) fn damage(frame: &mut [u8], bits: u16, fix: bool, mut chance: impl FnMut(usize) -> usize) -> bool {
    let Some((header, ethernet)) = frame.split_at_mut_checked(VNET_LEN) else { return false };
    let Some(parts) = layout(ethernet) else { return false };
    if parts.payload == parts.end {
        return false;
    }
    // Nobody else may write a checksum over what is done here.
    if header[0] & NEEDS_CSUM != 0 {
        header.fill(0);
        complete(ethernet);
    }
    for _ in 0..bits {
        let bit = chance((parts.end - parts.payload) * 8);
        ethernet[parts.payload + bit / 8] ^= 1 << (bit % 8);
    }
    if fix {
        complete(ethernet);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP frame over IPv4 or IPv6 with so much payload, as a burst to be cut at `size` bytes when that is not 0.
    fn tcp(v6: bool, payload: usize, size: u16) -> Vec<u8> {
        let mut frame = vec![0; VNET_LEN];
        if size > 0 {
            (frame[0], frame[1]) = (NEEDS_CSUM, if v6 { GSO_TCPV6 } else { GSO_TCPV4 });
            frame[4..6].copy_from_slice(&size.to_ne_bytes());
        }
        frame.extend([0; 12]);
        let length = (20 + payload) as u16;
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([TCP, 64]);
            frame.extend((0..32).map(|i| i as u8 + 7));
        } else {
            frame.extend([0x08, 0, 0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0, 9, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        frame.extend([
            0x1f,
            0x90,
            0xc0,
            0,
            0,
            0,
            0,
            100,
            0,
            0,
            0,
            1,
            0x50,
            TCP_FIN | TCP_PSH | TCP_CWR | 0x10,
            1,
            0,
            0,
            0,
            0,
            0,
        ]);
        frame.extend((0..payload).map(|i| i as u8));
        frame
    }

    fn is_sound(frame: &[u8]) -> bool {
        let mut again = frame.to_vec();
        complete(&mut again[VNET_LEN..]);
        again == frame
    }

    #[test]
    fn a_burst_is_cut_into_packets_that_carry_the_same_bytes_in_order() {
        for v6 in [false, true] {
            let burst = tcp(v6, 2500, 1000);
            let parts = segments(&burst);
            assert_eq!(parts.len(), 3);
            let mut carried = Vec::new();
            for (i, part) in parts.iter().enumerate() {
                assert!(is_sound(part), "checksum of part {i}");
                assert_eq!(part[..VNET_LEN], [0; VNET_LEN], "nothing is left to the device");
                let at = layout(&part[VNET_LEN..]).unwrap();
                let packet = &part[VNET_LEN..];
                let sequence = u32::from_be_bytes(packet[at.transport + 4..at.transport + 8].try_into().unwrap());
                assert_eq!(sequence, 100 + 1000 * i as u32);
                let flags = packet[at.transport + 13];
                assert_eq!(flags & (TCP_FIN | TCP_PSH) != 0, i == 2);
                assert_eq!(flags & TCP_CWR != 0, i == 0);
                carried.extend_from_slice(&packet[at.payload..at.end]);
            }
            assert_eq!(carried, burst[burst.len() - 2500..]);
            let total: usize = parts.iter().map(|part| part.len() - VNET_LEN).sum();
            assert_eq!(link_len(&burst), total, "what the rate of a link counts");
        }
    }

    #[test]
    fn a_packet_that_is_no_burst_stays_as_it_is() {
        let frame = tcp(false, 100, 0);
        assert_eq!(segments(&frame), [frame.clone().into()]);
        assert_eq!(link_len(&frame), frame.len() - VNET_LEN);
        let arp = [vec![0; VNET_LEN + 12], vec![0x08, 0x06], vec![0; 28]].concat();
        assert_eq!(segments(&arp).len(), 1);
    }

    #[test]
    fn damage_flips_that_many_bits_and_the_checksum_shows_it_unless_it_is_fixed() {
        for v6 in [false, true] {
            for fix in [false, true] {
                let mut whole = tcp(v6, 200, 0);
                complete(&mut whole[VNET_LEN..]);
                let mut damaged = whole.clone();
                let mut next = 0;
                assert!(damage(&mut damaged, 3, fix, |_| {
                    next += 77;
                    next
                }));
                let payload = whole.len() - 200;
                let flipped: u32 =
                    whole[payload..].iter().zip(&damaged[payload..]).map(|(a, b)| (a ^ b).count_ones()).sum();
                assert_eq!(flipped, 3);
                assert_eq!(is_sound(&damaged), fix);
            }
        }
    }

    #[test]
    fn a_checksum_that_was_left_to_the_device_is_that_of_the_undamaged_packet() {
        let mut frame = tcp(false, 200, 0);
        frame[0] = NEEDS_CSUM;
        let mut whole = frame.clone();
        complete(&mut whole[VNET_LEN..]);
        assert!(damage(&mut frame, 1, false, |_| 5));
        assert_eq!(frame[0], 0, "the device must not make it right");
        let at = VNET_LEN + 14 + 20 + 16;
        assert_eq!(frame[at..at + 2], whole[at..at + 2]);
        assert!(!is_sound(&frame));
    }

    #[test]
    fn what_carries_nothing_or_is_no_tcp_or_udp_is_not_damaged() {
        assert!(!damage(&mut tcp(false, 0, 0), 1, false, |_| 0));
        assert!(!damage(&mut [0; 60], 1, false, |_| 0));
        assert!(!damage(&mut [0; 5], 1, false, |_| 0));
    }
}
