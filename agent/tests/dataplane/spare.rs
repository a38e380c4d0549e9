//! Ports that a rule spares: both families, both ends, connections old and new.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use firedrill_agent::dataplane::RuleSpec;

use crate::support::{
    A4, A6, B4, B6, Netns, Pair, address, assert_delayed, delay_ms, drop_share, needs_root, one_way, port,
};

/// Everything is cut, but for these ports.
fn partition_but(ports: &[u16]) -> RuleSpec {
    RuleSpec { ingress: true, spare_ports: ports.to_vec(), ..drop_share(1.0) }
}

/// A connection from one namespace to the other, both its ends.
fn connection(from: &Netns, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let near = from.connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

/// Whether a word gets there and back within a second.
fn talks((near, far): &mut (TcpStream, TcpStream)) -> bool {
    let mut heard = [0; 4];
    near.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    far.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let asked = near.write_all(b"ping").and_then(|()| far.read_exact(&mut heard));
    let answered = asked.and_then(|()| far.write_all(b"pong")).and_then(|()| near.read_exact(&mut heard));
    answered.is_ok() && heard == *b"pong"
}

fn can_connect(from: &Netns, to: SocketAddr) -> bool {
    from.within(|| TcpStream::connect_timeout(&to, Duration::from_millis(600))).is_ok()
}

/// The faulted side is `a`. `near`: its own address; `far`: that of `b`.
fn a_partition_spares(near: &str, far: &str) {
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (spared, other) = (port(), port());
    let serving = |netns: &Netns, ip: &str, port| netns.listen(&address(ip, port).to_string());
    // Of this host, as sshd's port is; and of the peer, as that of a session to another host.
    let (own, peers) = (serving(&pair.a, near, spared), serving(&pair.b, far, spared));
    let (own_other, peers_other) = (serving(&pair.a, near, other), serving(&pair.b, far, other));
    let mut kept = [connection(&pair.b, &own), connection(&pair.a, &peers)];
    let mut cut = [connection(&pair.b, &own_other), connection(&pair.a, &peers_other)];
    assert!(kept.iter_mut().chain(&mut cut).all(talks), "all talk before");

    let rule = plane.add_rule(partition_but(&[spared])).unwrap();
    assert!(kept.iter_mut().all(talks), "{near}: connections of the spared port live on");
    assert!(can_connect(&pair.b, own.local_addr().unwrap()), "{near}: new ones to us can be made");
    assert!(can_connect(&pair.a, peers.local_addr().unwrap()), "{near}: new ones to the peer, too");
    assert!(!cut.iter_mut().any(talks), "{near}: the other port is cut");
    assert!(!can_connect(&pair.b, own_other.local_addr().unwrap()), "{near}: also for new connections");
    assert!(!can_connect(&pair.a, peers_other.local_addr().unwrap()), "{near}: also for new connections");

    let counters = plane.remove_rule(rule).unwrap().unwrap();
    assert!(counters.matched > 0);
    assert_eq!(counters.matched, counters.dropped, "what is spared is not counted");
    assert!(can_connect(&pair.b, own_other.local_addr().unwrap()), "{near}: all is back");
}

#[test]
fn a_partition_spares_ports_of_both_ends_over_ipv4() {
    needs_root!();
    a_partition_spares(A4, B4);
}

#[test]
fn a_partition_spares_ports_of_both_ends_over_ipv6() {
    needs_root!();
    a_partition_spares(A6, B6);
}

#[test]
fn each_rule_spares_its_own_ports_only() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (first, second) = (port(), port());
    let datagrams = |port| (pair.a.udp(&address(A4, port).to_string()), pair.b.udp(&address(B4, port).to_string()));
    let ((from_first, to_first), (from_second, to_second)) = (datagrams(first), datagrams(second));
    to_first.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    to_second.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let lost = |from, to| one_way(from, to, 20, Duration::ZERO).iter().filter(|delay| delay.is_none()).count();

    let both = plane.add_rule(partition_but(&[first, second])).unwrap();
    let one = plane.add_rule(partition_but(&[first])).unwrap();
    assert_eq!((lost(&from_first, &to_first), lost(&from_second, &to_second)), (0, 20));
    plane.remove_rule(one).unwrap();
    assert_eq!((lost(&from_first, &to_first), lost(&from_second, &to_second)), (0, 0));
    plane.remove_rule(both).unwrap();
    // A rule that spares nothing takes the slots of those that did.
    plane.add_rule(partition_but(&[])).unwrap();
    assert_eq!((lost(&from_first, &to_first), lost(&from_second, &to_second)), (20, 20));
}

#[test]
fn a_spared_port_is_not_delayed_and_others_are() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, firedrill_agent::dataplane::Direction::Egress).unwrap();
    let (spared, other) = (port(), port());
    plane.add_rule(RuleSpec { spare_ports: vec![spared], ..delay_ms(60, 0) }).unwrap();
    for (port, ms) in [(spared, 0.0), (other, 60.0)] {
        let (from, to) = (pair.a.udp(&address(A6, port).to_string()), pair.b.udp(&address(B6, port).to_string()));
        assert_delayed(&one_way(&from, &to, 20, Duration::from_millis(2)), ms, &format!("port {port}"));
    }
}

#[test]
fn a_datagram_in_fragments_is_spared_whole() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let (spared, other) = (port(), port());
    plane.add_rule(partition_but(&[spared])).unwrap();
    // Three fragments on a link of 1500 bytes.
    let sent = [7; 4000];
    for (near, far) in [(A4, B4), (A6, B6)] {
        for (port, arrives) in [(spared, true), (other, false)] {
            let (from, to) =
                (pair.a.udp(&address(near, port).to_string()), pair.b.udp(&address(far, port).to_string()));
            to.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            from.send_to(&sent, to.local_addr().unwrap()).unwrap();
            let mut heard = [0; 4096];
            assert_eq!(to.recv(&mut heard).is_ok_and(|len| len == sent.len()), arrives, "{near} port {port}");
        }
    }
}

#[test]
fn more_spared_ports_than_the_kernel_is_told_are_refused_and_leave_no_rule() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = pair.data_plane();
    let many: Vec<u16> = (1..=300).collect();
    let error = plane.add_rule(partition_but(&many)).unwrap_err();
    assert!(error.to_string().contains("spared ports"), "{error}");
    assert_eq!(plane.rules().count(), 0);
    plane.add_rule(partition_but(&many[..256])).unwrap();
}
