//! Frames that are not plain: through a delay line they arrive whole and late, or pass it by as the documentation says.

use std::{
    io::ErrorKind,
    net::UdpSocket,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use firedrill_agent::{
    dataplane::{Direction, Protocol, RuleSpec},
    sys::sockets::set_socket_option,
};

use crate::support::{
    A4, A6, B4, B6, Netns, Pair, address, assert_delayed, assert_undelayed, delay_ms, needs_root, one_way,
};

const DELAY_MS: u64 = 60;

/// A data plane in the first namespace of a pair that delays what leaves there, or arrives.
fn delays(netns: &Netns, interface: &str, direction: Direction) -> firedrill_agent::dataplane::DataPlane {
    let mut plane = netns.data_plane();
    let index = netns.ifindex(interface);
    plane.attach(index, interface, direction).unwrap();
    plane.delay_line_start(index, direction).unwrap();
    let ingress = direction == Direction::Ingress;
    plane.add_rule(RuleSpec { egress: !ingress, ingress, ..delay_ms(DELAY_MS, 0) }).unwrap();
    plane
}

fn sockets(pair: &Pair, a: &str, b: &str) -> (UdpSocket, UdpSocket) {
    (pair.a.udp(&address(a, 0).to_string()), pair.b.udp(&address(b, 0).to_string()))
}

/// Sends one datagram of so many bytes, which arrives whole and not early.
fn assert_whole_and_late(from: &UdpSocket, to: &UdpSocket, length: usize, what: &str) {
    let sent: Vec<u8> = (0..length).map(|i| (i * 7 + i / 256) as u8).collect();
    let begun = Instant::now();
    from.send_to(&sent, to.local_addr().unwrap()).unwrap();
    let mut got = vec![0; length + 1];
    let arrived = to.recv(&mut got).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(got[..arrived] == sent, "{what}: {arrived} of {length} bytes");
    assert!(begun.elapsed() >= Duration::from_millis(DELAY_MS), "{what}: {:?}", begun.elapsed());
}

#[test]
fn datagrams_in_fragments_arrive_whole_and_late_both_ways() {
    needs_root!();
    for direction in [Direction::Egress, Direction::Ingress] {
        let pair = Pair::new();
        let _plane = delays(&pair.a, "va", direction);
        for (a, b) in [(A4, B4), (A6, B6)] {
            let (near, far) = sockets(&pair, a, b);
            let (from, to) = if direction == Direction::Egress { (&near, &far) } else { (&far, &near) };
            assert_whole_and_late(from, to, 4000, &format!("{direction:?} from {a}"));
        }
    }
}

#[test]
fn packets_with_ipv6_extension_headers_arrive_whole_and_late() {
    needs_root!();
    /// `IPV6_DSTOPTS`, `IPV6_HOPOPTS`: headers in front of what a socket sends.
    const HEADERS: [i32; 2] = [59, 54];
    let pair = Pair::new();
    let mut plane = delays(&pair.a, "va", Direction::Egress);
    let (from, to) = sockets(&pair, A6, B6);
    for option in HEADERS {
        // Next header, length (8 bytes), and padding of 6 bytes.
        set_socket_option(from.as_fd(), libc::IPPROTO_IPV6, option, &[0u8, 0, 1, 4, 0, 0, 0, 0]).unwrap();
    }
    assert_whole_and_late(&from, &to, 700, "with headers");
    assert_whole_and_late(&from, &to, 4000, "with headers, in fragments");
    plane.shut_down().unwrap();
}

#[test]
fn jumbo_frames_arrive_whole_and_late_and_so_does_a_stream_of_them() {
    needs_root!();
    let pair = Pair::new();
    pair.a.ip("link set va mtu 9000");
    pair.b.ip("link set vb mtu 9000");
    let _plane = delays(&pair.a, "va", Direction::Egress);
    for (a, b) in [(A4, B4), (A6, B6)] {
        let (from, to) = sockets(&pair, a, b);
        assert_whole_and_late(&from, &to, 8900, &format!("from {a}"));
        pair.assert_carries_a_stream(b, 1_000_000);
    }
}

#[test]
fn an_icmp_error_that_arrives_through_the_line_is_late_and_still_an_error() {
    needs_root!();
    let pair = Pair::new();
    let _plane = delays(&pair.a, "va", Direction::Ingress);
    for (a, b) in [(A4, B4), (A6, B6)] {
        let (client, nobody) = sockets(&pair, a, b);
        pair.a.within(|| client.connect(nobody.local_addr().unwrap())).unwrap();
        drop(nobody);
        let begun = Instant::now();
        client.send(b"is anybody there").unwrap();
        assert_eq!(client.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused, "from {b}");
        assert!(begun.elapsed() >= Duration::from_millis(DELAY_MS), "{:?}", begun.elapsed());
    }
}

#[test]
fn tagged_frames_pass_at_the_parent_and_are_delayed_at_the_vlan_interface() {
    needs_root!();
    let pair = Pair::new();
    let add = |netns: &Netns, parent: &str| {
        netns.run(&format!("ip link add link {parent} name {parent}.5 type vlan id 5")).status.success()
    };
    if !add(&pair.a, "va") || !add(&pair.b, "vb") {
        println!("UNSUPPORTED: this kernel has no VLAN interfaces");
        return;
    }
    for (netns, dev, v4, v6) in [(&pair.a, "va.5", "10.78.0.1", "fd78::1"), (&pair.b, "vb.5", "10.78.0.2", "fd78::2")] {
        netns.ip(&format!("addr add {v4}/24 dev {dev}"));
        netns.ip(&format!("addr add {v6}/64 dev {dev} nodad"));
        netns.ip(&format!("link set {dev} up"));
    }
    let pairs = [("10.78.0.1", "10.78.0.2"), ("fd78::1", "fd78::2")].map(|(a, b)| sockets(&pair, a, b));
    let all = |what: &str, check: fn(&[Option<Duration>], &str)| {
        for (from, to) in &pairs {
            check(&one_way(from, to, 10, Duration::from_millis(1)), what);
        }
    };
    all("without a rule", assert_undelayed);
    let mut parent = delays(&pair.a, "va", Direction::Egress);
    // The kernel itself reports to multicast groups now and then, without a tag.
    let rule = parent.add_rule(RuleSpec { protocol: Protocol::Udp, ..delay_ms(DELAY_MS, 0) }).unwrap();
    all("at the parent", assert_undelayed);
    assert_eq!(parent.counters(rule).unwrap().matched, 0);
    parent.shut_down().unwrap();
    let _vlan = delays(&pair.a, "va.5", Direction::Egress);
    all("at the VLAN interface", |delays, what| assert_delayed(delays, DELAY_MS as f64, what));
}
