use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const V4: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2))];
pub const V6: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2))];

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

/// A frame that we send to them, with a transport of any kind.
pub fn frame([from, to]: [IpAddr; 2], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; VNET_LEN];
    frame.extend(THEIRS);
    frame.extend(OURS);
    if from.is_ipv6() {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((transport.len() as u16).to_be_bytes());
        frame.extend([protocol, 64]);
    } else {
        frame.extend([0x08, 0, 0x45, 0]);
        frame.extend((20 + transport.len() as u16).to_be_bytes());
        frame.extend([0, 9, 0x40, 0, 64, protocol, 0, 0]);
    }
    frame.extend(octets(from));
    frame.extend(octets(to));
    frame.extend(transport);
    frame
}

fn tcp(flags: u8, payload: usize) -> Vec<u8> {
    let header = [0x9c, 0x40, 0x1f, 0x90, 0, 0, 1, 0, 0, 0, 2, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    [&header[..], &vec![7; payload]].concat()
}

fn udp(payload: usize) -> Vec<u8> {
    [&[0x9c, 0x40, 0, 53, 0, 8 + payload as u8, 0, 0][..], &vec![7; payload]].concat()
}

/// The ones' complement sum of RFC 1071, another way than the code has it: byte by byte, carrying at once.
fn sum_of(bytes: &[u8]) -> u16 {
    let mut sum: u16 = 0;
    for (i, byte) in bytes.iter().enumerate() {
        let word = if i % 2 == 0 { u16::from(*byte) << 8 } else { u16::from(*byte) };
        let (next, carry) = sum.overflowing_add(word);
        sum = next + u16::from(carry);
    }
    sum
}

/// Whether every checksum and length of a frame is right, and its addresses are those of its question turned round.
pub fn assert_sound(question: &[u8], answer: &Answer) {
    let (asked, frame) = (&question[VNET_LEN..], &answer.frame[VNET_LEN..]);
    assert_eq!(answer.frame[..VNET_LEN], [0; VNET_LEN], "nothing is left to the device");
    assert_eq!((&frame[..6], &frame[6..12], &frame[12..14]), (&asked[6..12], &asked[..6], &asked[12..14]));
    let (asked, ip) = (&asked[14..], &frame[14..]);
    if frame[12] == 0x08 {
        assert_eq!((ip[0], usize::from(u16::from_be_bytes([ip[2], ip[3]]))), (0x45, ip.len()));
        assert_eq!(sum_of(&ip[..20]), 0xffff, "the header's checksum");
        assert_eq!((&ip[12..16], &ip[16..20]), (&asked[16..20], &asked[12..16]));
        let pseudo = [&ip[12..20], &[0, ip[9]], &((ip.len() - 20) as u16).to_be_bytes()].concat();
        let covered = if ip[9] == ICMP { ip[20..].to_vec() } else { [&pseudo, &ip[20..]].concat() };
        assert_eq!(sum_of(&covered), 0xffff, "the checksum of {}", ip[9]);
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([ip[4], ip[5]])), ip.len() - 40);
        assert_eq!((&ip[8..24], &ip[24..40]), (&asked[24..40], &asked[8..24]));
        let pseudo = [&ip[8..40], &((ip.len() - 40) as u32).to_be_bytes(), &[0, 0, 0, ip[6]]].concat();
        assert_eq!(sum_of(&[&pseudo, &ip[40..]].concat()), 0xffff, "the checksum of {}", ip[6]);
    }
}

fn answered(question: &[u8]) -> (Kind, Vec<u8>) {
    let answer = refusal(question).expect("an answer");
    assert_sound(question, &answer);
    let headers = VNET_LEN + 14 + if question[VNET_LEN + 12] == 0x08 { 20 } else { 40 };
    (answer.kind, answer.frame[headers..].to_vec())
}

#[test]
fn a_request_for_a_connection_is_refused_with_the_number_that_it_waits_for() {
    for addresses in [V4, V6] {
        let (kind, reset) = answered(&frame(addresses, TCP, &tcp(TCP_SYN, 0)));
        assert_eq!(kind, Kind::Reset);
        assert_eq!(reset[..4], [0x1f, 0x90, 0x9c, 0x40], "ports");
        assert_eq!((&reset[4..8], &reset[8..12]), (&[0, 0, 0, 0][..], &[0, 0, 1, 1][..]), "SYN counts as one");
        assert_eq!(reset[13], TCP_RST | TCP_ACK);
    }
}

#[test]
fn an_established_connection_is_reset_at_the_byte_that_its_sender_expects() {
    for addresses in [V4, V6] {
        let (kind, reset) = answered(&frame(addresses, TCP, &tcp(TCP_ACK | 0x08, 500)));
        assert_eq!(kind, Kind::Reset);
        assert_eq!((&reset[4..8], reset[13]), (&[0, 0, 2, 0][..], TCP_RST));
    }
}

#[test]
fn a_segment_that_acknowledges_nothing_is_acknowledged_with_all_that_it_carries() {
    let (_, reset) = answered(&frame(V4, TCP, &tcp(TCP_FIN, 300)));
    assert_eq!(reset[8..12], (0x100_u32 + 301).to_be_bytes());
}

#[test]
fn datagrams_are_answered_with_port_unreachable_that_quotes_them() {
    for (addresses, kind, code, most) in [(V4, 3, 3, 548), (V6, 1, 4, 1232)] {
        for payload in [0, 100] {
            let question = frame(addresses, UDP, &udp(payload));
            let (sort, error) = answered(&question);
            assert_eq!((sort, error[0], error[1]), (Kind::Unreachable, kind, code));
            assert_eq!(error[8..], question[VNET_LEN + 14..]);
        }
        let long = frame(addresses, UDP, &[&udp(0)[..], &[1; 1400]].concat());
        let (_, error) = answered(&long);
        assert_eq!(error.len(), 8 + most, "an error fits in every network");
    }
}

#[test]
fn other_protocols_are_told_that_they_are_prohibited() {
    let echo = [8, 0, 0, 0, 0, 1, 0, 1];
    assert_eq!(answered(&frame(V4, ICMP, &echo)).1[..2], [3, 13]);
    assert_eq!(answered(&frame(V4, 132, &[0; 12])).1[..2], [3, 13], "SCTP");
    assert_eq!(answered(&frame(V6, ICMPV6, &[128, 0, 0, 0, 0, 1, 0, 1])).1[..2], [1, 1]);
    assert_eq!(answered(&frame(V6, 51, &[6, 4, 0, 0, 0, 0, 0, 0])).1[..2], [1, 1], "what is authenticated");
}

#[test]
fn resets_errors_and_what_is_for_many_or_from_nobody_have_no_answer() {
    let none = |question: Vec<u8>, what: &str| assert_eq!(refusal(&question), None, "{what}");
    for addresses in [V4, V6] {
        none(frame(addresses, TCP, &tcp(TCP_RST, 0)), "a reset");
        none(frame(addresses, TCP, &tcp(TCP_RST | TCP_ACK, 0)), "a reset");
        let mut to_group = frame(addresses, UDP, &udp(3));
        to_group[VNET_LEN] |= 1;
        none(to_group, "a frame for many");
    }
    for kind in [3, 4, 5, 11, 12] {
        none(frame(V4, ICMP, &[kind, 0, 0, 0, 0, 0, 0, 0]), "an error of ICMP");
    }
    for kind in [1, 2, 3, 4, 127] {
        none(frame(V6, ICMPV6, &[kind, 0, 0, 0, 0, 0, 0, 0]), "an error of ICMPv6");
    }
    let v4 = |from: [u8; 4], to: [u8; 4]| frame([from.into(), to.into()], UDP, &udp(3));
    none(v4([10, 0, 0, 1], [224, 0, 0, 251]), "multicast");
    none(v4([10, 0, 0, 1], [255; 4]), "broadcast");
    none(v4([0; 4], [10, 0, 0, 2]), "from nobody");
    let all_nodes: IpAddr = "ff02::1".parse().unwrap();
    none(frame([V6[0], all_nodes], UDP, &udp(3)), "multicast");
    none(frame([Ipv6Addr::UNSPECIFIED.into(), V6[1]], UDP, &udp(3)), "from nobody");
}

#[test]
fn the_first_fragment_is_answered_for_its_datagram_and_later_ones_are_not() {
    let mut v4 = frame(V4, UDP, &udp(100));
    let flags = VNET_LEN + 14 + 6;
    v4[flags..flags + 2].copy_from_slice(&[0x20, 0]);
    assert_eq!(answered(&v4).0, Kind::Unreachable);
    v4[flags..flags + 2].copy_from_slice(&[0x20, 3]);
    assert_eq!(refusal(&v4), None);
    let fragment = |offset: u8| frame(V6, 44, &[&[UDP, 0, 0, offset << 3 | 1, 0, 0, 0, 9][..], &udp(80)].concat());
    assert_eq!(answered(&fragment(0)).1[..2], [1, 4]);
    assert_eq!(refusal(&fragment(2)), None);
}

#[test]
fn extension_headers_are_passed_over() {
    // Hop-by-hop options, then destination options of 16 bytes.
    let extensions = [[60, 0, 1, 4, 0, 0, 0, 0], [TCP, 1, 1, 4, 0, 0, 0, 0], [0; 8]].concat();
    let (kind, reset) = answered(&frame(V6, 0, &[&extensions[..], &tcp(TCP_SYN, 0)].concat()));
    assert_eq!((kind, &reset[8..12]), (Kind::Reset, &[0, 0, 1, 1][..]));
}

#[test]
fn padding_is_no_data() {
    let mut padded = frame(V4, TCP, &tcp(TCP_SYN, 0));
    padded.extend([0; 6]);
    assert_eq!(answered(&padded).1[8..12], [0, 0, 1, 1]);
}

proptest! {
    #[test]
    fn hostile_frames_get_a_sound_answer_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Some(answer) = refusal(&bytes) {
            assert_sound(&bytes, &answer);
        }
    }

    #[test]
    fn frames_that_begin_well_get_a_sound_answer_or_none(
        v6 in any::<bool>(),
        protocol in prop::sample::select(vec![0, 1, 6, 17, 43, 44, 51, 58, 60, 132]),
        transport in prop::collection::vec(any::<u8>(), 0..120),
        change in prop::option::of((0_usize..80, any::<u8>())),
        length in 0_usize..200,
    ) {
        let mut question = frame(if v6 { V6 } else { V4 }, protocol, &transport);
        if let Some((at, byte)) = change && let Some(place) = question.get_mut(VNET_LEN + at) {
            *place = byte;
        }
        question.truncate(length + 20);
        if let Some(answer) = refusal(&question) {
            assert_sound(&question, &answer);
        }
    }
}
