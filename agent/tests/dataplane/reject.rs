//! Packets that are refused: what the sender sees, both ways, in both families, and on the loopback interface.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use firedrill_agent::dataplane::{Action, Counters, DataPlane, Direction, Protocol, RuleSpec, Shape};

use crate::support::{A4, A6, B4, B6, Netns, Pair, address, later, needs_root, port, slack_ms};

fn refuse() -> RuleSpec {
    RuleSpec::egress(Action::Hold(Shape::Reject), later())
}

fn with_lines(netns: &Netns, interface: &str) -> DataPlane {
    let mut plane = netns.data_plane();
    let index = netns.ifindex(interface);
    for direction in [Direction::Egress, Direction::Ingress] {
        plane.attach(index, interface, direction).unwrap();
        plane.delay_line_start(index, direction).unwrap();
    }
    plane
}

fn assert_at_once(begun: Instant, what: &str) {
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(100 + slack_ms() as u64 * 10), "{what} took {took:?}");
}

/// All that matched was dealt with, and nothing went past the line.
fn assert_all_refused(counters: &Counters, what: &str) {
    assert!(counters.matched > 0 && counters.matched == counters.acted + counters.dropped, "{what}: {counters:?}");
    assert_eq!((counters.passed, counters.lost), (0, 0), "{what}: {counters:?}");
}

#[test]
fn a_connection_from_the_target_is_refused_at_once() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_lines(&pair.a, "va");
    for ip in [B4, B6] {
        let listener = pair.b.listen(&address(ip, 0).to_string());
        let server = listener.local_addr().unwrap();
        pair.a.connect(server).expect("reachable before");
        let rule = plane.add_rule(refuse()).unwrap();
        let begun = Instant::now();
        let error = pair.a.connect(server).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{ip}");
        assert_at_once(begun, ip);
        let counters = plane.remove_rule(rule).unwrap().unwrap();
        assert_all_refused(&counters, ip);
        assert!(counters.resets >= 1, "{counters:?}");
        pair.a.connect(server).expect("reachable again");
    }
}

#[test]
fn a_connection_to_the_target_is_refused_at_once_when_only_what_arrives_is_cut() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_lines(&pair.a, "va");
    for ip in [A4, A6] {
        let listener = pair.a.listen(&address(ip, 0).to_string());
        let server = listener.local_addr().unwrap();
        let rule = plane.add_rule(RuleSpec { egress: false, ingress: true, ..refuse() }).unwrap();
        let begun = Instant::now();
        let error = pair.b.connect(server).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{ip}");
        assert_at_once(begun, ip);
        assert_all_refused(&plane.remove_rule(rule).unwrap().unwrap(), ip);
        pair.b.connect(server).expect("reachable again");
    }
}

#[test]
fn an_established_connection_is_reset_when_it_sends() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_lines(&pair.a, "va");
    for ip in [B4, B6] {
        let listener = pair.b.listen(&address(ip, 0).to_string());
        let mut client = pair.a.connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"before").unwrap();
        let mut bytes = [0; 6];
        server.read_exact(&mut bytes).unwrap();
        let rule = plane.add_rule(RuleSpec { ingress: true, ..refuse() }).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client.write_all(b"during").unwrap();
        let begun = Instant::now();
        assert_eq!(client.read(&mut bytes).expect_err("reset").kind(), ErrorKind::ConnectionReset, "{ip}");
        assert_at_once(begun, ip);
        // The other end learns of it in the same way as soon as it sends.
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        server.write_all(b"during").unwrap();
        assert_eq!(server.read(&mut bytes).expect_err("reset").kind(), ErrorKind::ConnectionReset, "{ip}");
        assert_all_refused(&plane.remove_rule(rule).unwrap().unwrap(), ip);
    }
}

#[test]
fn a_connected_datagram_socket_sees_that_it_is_refused() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_lines(&pair.a, "va");
    for (ip, any) in [(B4, "0.0.0.0:0"), (B6, "[::]:0")] {
        let server = pair.b.udp(&address(ip, 0).to_string());
        let client = pair.a.udp(any);
        pair.a.within(|| client.connect(server.local_addr().unwrap())).unwrap();
        // The kernel itself reports to multicast groups now and then.
        let rule = plane.add_rule(RuleSpec { protocol: Protocol::Udp, ..refuse() }).unwrap();
        client.send(b"question").expect("the sender is told later");
        let begun = Instant::now();
        assert_eq!(client.recv(&mut [0; 8]).expect_err("refused").kind(), ErrorKind::ConnectionRefused, "{ip}");
        assert_at_once(begun, ip);
        // A datagram in fragments has one answer, to the first of them.
        client.send(&[7; 4000]).expect("in fragments");
        assert_eq!(client.recv(&mut [0; 8]).expect_err("refused").kind(), ErrorKind::ConnectionRefused, "{ip}");
        let counters = plane.remove_rule(rule).unwrap().unwrap();
        assert_all_refused(&counters, ip);
        assert_eq!((counters.resets, counters.acted, counters.dropped), (0, 2, 2), "{counters:?}");
    }
}

#[test]
fn a_ping_learns_that_it_is_filtered() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_lines(&pair.a, "va");
    for ip in [B4, B6] {
        let rule = plane.add_rule(refuse()).unwrap();
        let output = pair.a.run(&format!("ping -n -c1 -W1 {ip}"));
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(told.contains("+1 errors") && told.contains("100% packet loss"), "{told}");
        assert_all_refused(&plane.remove_rule(rule).unwrap().unwrap(), ip);
        assert!(pair.a.run(&format!("ping -n -c1 -W2 {ip}")).status.success(), "{ip} again");
    }
}

#[test]
fn on_the_loopback_interface_both_ways_are_refused() {
    needs_root!();
    let netns = Netns::new();
    netns.allow_loopback_delay();
    let mut plane = with_lines(&netns, "lo");
    let lo = Some(netns.ifindex("lo"));
    for ip in ["127.0.0.1", "::1"] {
        let listener = netns.listen(&address(ip, 0).to_string());
        let server: SocketAddr = listener.local_addr().unwrap();
        for (egress, ingress) in [(true, false), (false, true)] {
            let spec = RuleSpec { ifindex: lo, egress, ingress, peer_ports: vec![], ..refuse() };
            let rule = plane.add_rule(spec).unwrap();
            let begun = Instant::now();
            let error = netns.connect(server).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{ip} egress {egress}");
            assert_at_once(begun, ip);
            assert_all_refused(&plane.remove_rule(rule).unwrap().unwrap(), ip);
            netns.connect(server).expect("reachable again");
        }
    }
}

#[test]
fn the_answer_comes_after_the_delay_of_another_rule() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_lines(&pair.a, "va");
    plane.add_rule(crate::support::delay_ms(80, 0)).unwrap();
    plane.add_rule(refuse()).unwrap();
    let begun = Instant::now();
    let error = pair.a.connect(address(B4, port())).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert!(begun.elapsed() >= Duration::from_millis(80), "{:?}", begun.elapsed());
}

#[test]
fn others_are_let_through() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_lines(&pair.a, "va");
    let (refused, other) = (pair.b.listen(&address(B4, 0).to_string()), pair.b.listen(&address(B4, 0).to_string()));
    let of = |listener: &std::net::TcpListener| listener.local_addr().unwrap();
    let port = of(&refused).port();
    let rule = plane.add_rule(RuleSpec { peer_ports: vec![port..=port], ..refuse() }).unwrap();
    for _ in 0..20 {
        pair.a.connect(of(&other)).expect("another port is not meant");
        pair.a.connect(of(&refused)).expect_err("refused");
    }
    assert_all_refused(&plane.remove_rule(rule).unwrap().unwrap(), "one port");
}
