//! Loss and partition: how much, of what, and what the sender sees.

use std::{io, net::UdpSocket, os::fd::AsFd, time::Duration};

use firedrill_agent::{
    dataplane::{Action, Cidr, Direction, Loss, Protocol, RuleSpec},
    sys::sockets::set_socket_option,
};
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::{A4, A6, B4, B6, Netns, Pair, address, delay_ms, drop_share, later, needs_root, one_way, port};

/// Five standard deviations of a binomial share: a sound program fails once in a million runs.
fn near(lost: usize, sent: u32, share: f64) -> bool {
    let n = f64::from(sent);
    (lost as f64 / n - share).abs() < 5.0 * (share * (1.0 - share) / n).sqrt()
}

/// Loss of UDP alone: the kernel sends multicast reports of its own now and then.
fn udp(probability: f64) -> RuleSpec {
    RuleSpec { protocol: Protocol::Udp, ..drop_share(probability) }
}

fn lost(from: &UdpSocket, to: &UdpSocket, count: u32) -> usize {
    to.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    // A pause keeps the receive buffer from overflowing: that would be loss, too.
    one_way(from, to, count, Duration::from_micros(20)).iter().filter(|delay| delay.is_none()).count()
}

fn any(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:0") } else { format!("{ip}:0") }
}

fn a_share_is_lost(source: &str, target: &str) {
    const SENT: u32 = 4000;
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (from, to) = (pair.a.udp(&any(source)), pair.b.udp(&any(target)));
    // With these options the kernel reports to the sender what it knows of a loss.
    if source.contains(':') {
        setsockopt(&from, sockopt::Ipv6RecvErr, &true).unwrap();
    } else {
        setsockopt(&from, sockopt::Ipv4RecvErr, &true).unwrap();
    }
    let rule = plane.add_rule(udp(0.3)).unwrap();
    let lost = lost(&from, &to, SENT);
    let counters = plane.counters(rule).unwrap();
    eprintln!("{source}: {lost} of {SENT} lost, {} counted", counters.dropped);
    assert!(near(lost, SENT, 0.3), "{lost} of {SENT}");
    assert_eq!(counters.matched, u64::from(SENT));
    assert_eq!(counters.dropped, lost as u64);
    assert!(from.take_error().unwrap().is_none());
    plane.remove_rule(rule).unwrap();
    assert_eq!(self::lost(&from, &to, 200), 0);
}

#[test]
fn thirty_percent_loss_is_thirty_percent_and_the_sender_sees_no_error() {
    needs_root!();
    a_share_is_lost(A4, B4);
}

#[test]
fn thirty_percent_loss_of_ipv6_is_thirty_percent_and_the_sender_sees_no_error() {
    needs_root!();
    a_share_is_lost(A6, B6);
}

#[test]
fn ping_measures_the_loss() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    plane.add_rule(RuleSpec { protocol: Protocol::Icmp, ..drop_share(0.3) }).unwrap();
    for target in [B4, B6] {
        let output = pair.a.run(&format!("ping -q -i 0.002 -c 1000 -W 1 {target}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let share: f64 = text
            .split(',')
            .find_map(|part| part.trim().strip_suffix("% packet loss"))
            .and_then(|share| share.parse().ok())
            .unwrap_or_else(|| panic!("{text}"));
        assert!(near((share * 10.0) as usize, 1000, 0.3), "{target}: {text}");
    }
}

#[test]
fn a_partition_stops_both_directions_and_ends() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (a, b) = (pair.a.udp(&any(A4)), pair.b.udp(&any(B4)));
    let both = RuleSpec { ingress: true, ..drop_share(1.0) };
    let rule = plane.add_rule(both).unwrap();
    assert_eq!(lost(&a, &b, 50), 50);
    assert_eq!(lost(&b, &a, 50), 50);
    let listener = pair.b.listen(&any(B6));
    let target = listener.local_addr().unwrap();
    let refused = pair.a.within(|| std::net::TcpStream::connect_timeout(&target, Duration::from_millis(300)));
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::TimedOut, "silence, not an error");
    let counters = plane.remove_rule(rule).unwrap().unwrap();
    assert_eq!(counters.matched, counters.dropped);
    assert!(counters.dropped >= 101);
    assert_eq!(lost(&a, &b, 50), 0);
    assert_eq!(lost(&b, &a, 50), 0);
    pair.a.connect(target).unwrap();
}

#[test]
fn ingress_only_loses_nothing_that_leaves() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (a, b) = (pair.a.udp(&any(A4)), pair.b.udp(&any(B4)));
    plane.add_rule(RuleSpec { egress: false, ingress: true, ..drop_share(1.0) }).unwrap();
    assert_eq!(lost(&a, &b, 50), 0);
    assert_eq!(lost(&b, &a, 50), 50);
}

#[test]
fn filters_by_port_network_and_protocol_hit_only_what_they_name() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (named, other) = (port(), port());
    let from = pair.a.udp(&any(A4));
    let from6 = pair.a.udp(&any(A6));
    let to_named = pair.b.udp(&address(B4, named).to_string());
    let to_other = pair.b.udp(&address(B4, other).to_string());
    let to_named6 = pair.b.udp(&address(B6, named).to_string());
    let cidr = |ip: &str, prefix| Cidr { address: ip.parse().unwrap(), prefix };
    let local = from.local_addr().unwrap().port();
    let drop = drop_share(1.0);
    let cases = [
        ("peer port", RuleSpec { peer_ports: vec![named..=named], ..drop.clone() }, [true, false, true]),
        ("local port", RuleSpec { local_ports: vec![local..=local], ..drop.clone() }, [true, true, false]),
        (
            "both ports",
            RuleSpec { local_ports: vec![local..=local], peer_ports: vec![other..=other], ..drop.clone() },
            [false, true, false],
        ),
        ("v4 network", RuleSpec { peers: vec![cidr("10.77.0.0", 24)], ..drop.clone() }, [true, true, false]),
        ("v6 host", RuleSpec { peers: vec![cidr(B6, 128)], ..drop.clone() }, [false, false, true]),
        (
            "other networks",
            RuleSpec { peers: vec![cidr("10.78.0.0", 16), cidr("fd78::", 16)], ..drop.clone() },
            [false, false, false],
        ),
        (
            "eight networks",
            RuleSpec {
                peers: (0..7).map(|i| cidr("10.99.0.0", 16 + i)).chain([cidr(B4, 32)]).collect(),
                ..drop.clone()
            },
            [true, true, false],
        ),
        ("tcp", RuleSpec { protocol: Protocol::Tcp, ..drop.clone() }, [false, false, false]),
        ("udp", RuleSpec { protocol: Protocol::Udp, ..drop.clone() }, [true, true, true]),
        ("another interface", RuleSpec { ifindex: Some(9999), ..drop.clone() }, [false, false, false]),
    ];
    for (name, spec, expected) in cases {
        let rule = plane.add_rule(spec).unwrap();
        let got =
            [(&from, &to_named), (&from, &to_other), (&from6, &to_named6)].map(|(from, to)| match lost(from, to, 5) {
                0 => false,
                5 => true,
                some => panic!("{name}: {some} of 5 lost"),
            });
        assert_eq!(got, expected, "{name}");
        plane.remove_rule(rule).unwrap();
    }
}

#[test]
fn fragments_meet_conditions_on_networks_and_only_the_first_those_on_ports() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    for (source, target, network) in [(A4, B4, "10.77.0.0"), (A6, B6, "fd77::")] {
        let (from, to) = (pair.a.udp(&any(source)), pair.b.udp(&any(target)));
        to.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let to_address = to.local_addr().unwrap();
        let network = Cidr { address: network.parse().unwrap(), prefix: 24 };
        let all = plane.add_rule(RuleSpec { peers: vec![network], ..udp(0.0) }).unwrap();
        let port = to_address.port();
        let first = plane.add_rule(RuleSpec { peer_ports: vec![port..=port], ..udp(0.0) }).unwrap();
        // Three fragments of at most 1500 bytes.
        from.send_to(&[7; 4000], to_address).unwrap();
        assert_eq!(to.recv(&mut [0; 5000]).unwrap(), 4000);
        assert_eq!(plane.remove_rule(all).unwrap().unwrap().matched, 3, "{source}");
        assert_eq!(plane.remove_rule(first).unwrap().unwrap().matched, 1, "{source}");
        let drop = plane.add_rule(RuleSpec { peer_ports: vec![port..=port], ..udp(1.0) }).unwrap();
        from.send_to(&[7; 4000], to_address).unwrap();
        assert!(to.recv(&mut [0; 5000]).is_err(), "without its first fragment the datagram is lost");
        plane.remove_rule(drop).unwrap();
    }
}

#[test]
fn ports_are_found_behind_ipv6_extension_headers() {
    needs_root!();
    /// `IPV6_DSTOPTS`, `IPV6_HOPOPTS`: headers in front of what a socket sends.
    const HEADERS: [i32; 2] = [59, 54];
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (from, to) = (pair.a.udp(&any(A6)), pair.b.udp(&any(B6)));
    for option in HEADERS {
        // Next header, length (8 bytes), and padding of 6 bytes.
        let header = [0u8, 0, 1, 4, 0, 0, 0, 0];
        set_socket_option(from.as_fd(), libc::IPPROTO_IPV6, option, &header).unwrap();
    }
    let port = to.local_addr().unwrap().port();
    let rule = plane.add_rule(RuleSpec { peer_ports: vec![port..=port], ..udp(1.0) }).unwrap();
    assert_eq!(lost(&from, &to, 10), 10);
    assert_eq!(plane.remove_rule(rule).unwrap().unwrap().dropped, 10);
    assert_eq!(lost(&from, &to, 10), 0);
}

#[test]
fn rules_overlap_and_a_drop_comes_before_a_delay() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    let (a, b) = (pair.a.udp(&any(A4)), pair.b.udp(&any(B4)));
    let delay = plane.add_rule(RuleSpec { protocol: Protocol::Udp, ..delay_ms(20, 0) }).unwrap();
    let drop = plane.add_rule(udp(1.0)).unwrap();
    assert_eq!(lost(&a, &b, 20), 20);
    assert_eq!(plane.counters(delay).unwrap().matched, 0, "what was dropped does not reach the delay");
    assert_eq!(plane.remove_rule(drop).unwrap().unwrap().dropped, 20);
    let half = plane.add_rule(udp(0.5)).unwrap();
    let other_half = plane.add_rule(udp(0.5)).unwrap();
    let lost = lost(&a, &b, 2000);
    assert!(near(lost, 2000, 0.75), "{lost}");
    let second = plane.counters(other_half).unwrap();
    let first = plane.counters(half).unwrap();
    assert_eq!(first.matched, 2000);
    assert_eq!(second.matched, 2000 - first.dropped);
    assert_eq!(plane.counters(delay).unwrap().matched, 2000 - lost as u64);
}

#[test]
fn a_rule_is_ignored_once_it_has_expired_whatever_the_agent_does() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (a, b) = (pair.a.udp(&any(A4)), pair.b.udp(&any(B4)));
    let soon = firedrill_agent::dataplane::monotonic_ns() + 700_000_000;
    let rule = plane.add_rule(RuleSpec { expires_ns: soon, ..drop_share(1.0) }).unwrap();
    assert_eq!(lost(&a, &b, 5), 5);
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(lost(&a, &b, 5), 0);
    plane.set_expiry(rule, later()).unwrap();
    assert_eq!(lost(&a, &b, 5), 5, "a lease can be renewed");
}

#[test]
fn a_rule_can_be_turned_up_and_down_but_not_into_another_kind() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (a, b) = (pair.a.udp(&any(A4)), pair.b.udp(&any(B4)));
    let rule = plane.add_rule(udp(0.0)).unwrap();
    assert_eq!(lost(&a, &b, 100), 0);
    plane.update_rule(rule, Action::Drop(Loss::Independent { probability: 1.0 })).unwrap();
    assert_eq!(lost(&a, &b, 10), 10);
    let delay = Action::delay(Duration::from_millis(1), Duration::ZERO);
    assert!(plane.update_rule(rule, delay).is_err());
    assert_eq!(plane.counters(rule).unwrap().matched, 110);
}

#[test]
fn address_resolution_passes_a_full_partition() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    plane.add_rule(RuleSpec { ingress: true, ..drop_share(1.0) }).unwrap();
    pair.a.ip("neigh flush dev va");
    for target in [B4, B6] {
        pair.a.run(&format!("ping -c2 -i0.2 -W1 {target}"));
    }
    let neighbours = pair.a.ip("neigh show dev va");
    for target in [B4, B6] {
        let known = neighbours.lines().any(|line| line.starts_with(target) && line.contains("lladdr"));
        assert!(known, "{target} in {neighbours}");
    }
}

#[test]
fn an_interface_without_an_ethernet_header_is_refused_with_advice() {
    needs_root!();
    let netns = Netns::new();
    netns.ip("tuntap add mode tun name tun0");
    let mut plane = netns.data_plane();
    let error = plane.attach(netns.ifindex("tun0"), "tun0", Direction::Egress).unwrap_err().to_string();
    assert!(error.contains("tun0 has no Ethernet header"), "{error}");
    let gone = plane.attach(77, "nonesuch", Direction::Egress).unwrap_err().to_string();
    assert!(gone.contains("nonesuch no longer has index 77"), "{gone}");
}
