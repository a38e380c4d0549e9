//! Delays: how long, in what order, and on which interfaces.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use firedrill_agent::dataplane::{Action, DataPlane, Direction, Protocol, RuleSpec, monotonic_ns};
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::{
    A4, A6, B4, B6, Netns, Pair, address, assert_delayed, assert_undelayed, delay_ms, drop_share, needs_root, one_way,
    port, quantile_ms, slack_ms,
};

fn socket(ip: &str) -> String {
    address(ip, 0).to_string()
}

fn delayed_loopback(netns: &Netns, direction: Direction) -> (DataPlane, u32) {
    netns.allow_loopback_delay();
    let mut plane = netns.data_plane();
    let lo = netns.ifindex("lo");
    plane.attach(lo, "lo", direction).unwrap();
    plane.delay_line_start(lo, direction).unwrap();
    (plane, lo)
}

fn loopback_is_delayed(ip: &str, direction: Direction) {
    let netns = Netns::new();
    let (from, to) = (netns.udp(&socket(ip)), netns.udp(&socket(ip)));
    let (mut plane, _) = delayed_loopback(&netns, direction);
    let egress = direction == Direction::Egress;
    let rule = plane.add_rule(RuleSpec { egress, ingress: !egress, ..delay_ms(50, 0) }).unwrap();
    let delayed = one_way(&from, &to, 200, Duration::from_millis(2));
    let (p50, p99) = (quantile_ms(&delayed, 0.5), quantile_ms(&delayed, 0.99));
    eprintln!("lo {ip} {direction}: p50 {p50:.3} p99 {p99:.3} ms");
    assert_delayed(&delayed, 50.0, ip);
    let counters = plane.remove_rule(rule).unwrap().unwrap();
    assert_eq!((counters.matched, counters.diverted, counters.delays.count()), (200, 200, 200));
    let measured = counters.delays.min().unwrap();
    assert!((Duration::from_millis(50)..Duration::from_millis(55)).contains(&measured), "{measured:?}");
    let after = one_way(&from, &to, 50, Duration::from_millis(1));
    assert_undelayed(&after, "after the rule");
}

#[test]
fn a_datagram_to_127_0_0_1_takes_50_ms() {
    needs_root!();
    loopback_is_delayed("127.0.0.1", Direction::Egress);
}

#[test]
fn a_datagram_to_the_ipv6_loopback_takes_50_ms() {
    needs_root!();
    loopback_is_delayed("::1", Direction::Egress);
}

#[test]
fn the_loopback_can_be_delayed_at_ingress_too() {
    needs_root!();
    loopback_is_delayed("127.0.0.1", Direction::Ingress);
    loopback_is_delayed("::1", Direction::Ingress);
}

/// Connects, and gives the least time of three handshakes and of three questions with their answers.
fn tcp_times(netns: &Netns, at: SocketAddr) -> [Duration; 2] {
    let listener = netns.listen(&at.to_string());
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut question = [0; 4];
                stream.read_exact(&mut question).unwrap();
                stream.write_all(&question).unwrap();
            }
        });
        let mut least = [Duration::MAX; 2];
        for _ in 0..3 {
            let start = Instant::now();
            let mut stream = netns.connect(at).unwrap();
            let connected = start.elapsed();
            let start = Instant::now();
            stream.write_all(b"ping").unwrap();
            stream.read_exact(&mut [0; 4]).unwrap();
            least = [least[0].min(connected), least[1].min(start.elapsed())];
        }
        least
    })
}

#[test]
fn tcp_over_the_loopback_takes_a_delay_each_way() {
    needs_root!();
    let netns = Netns::new();
    let (mut plane, _) = delayed_loopback(&netns, Direction::Egress);
    plane.add_rule(delay_ms(50, 0)).unwrap();
    for ip in ["127.0.0.1", "::1"] {
        let times = tcp_times(&netns, address(ip, port()));
        eprintln!("{ip}: connect {:?}, answer {:?}", times[0], times[1]);
        for time in times {
            assert!((Duration::from_millis(100)..Duration::from_millis(120)).contains(&time), "{ip}: {time:?}");
        }
    }
}

#[test]
fn own_addresses_of_other_interfaces_are_delayed_on_the_loopback() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, _) = delayed_loopback(&pair.a, Direction::Egress);
    plane.add_rule(delay_ms(20, 0)).unwrap();
    for ip in [A4, A6] {
        let (from, to) = (pair.a.udp(&socket(ip)), pair.a.udp(&socket(ip)));
        assert_delayed(&one_way(&from, &to, 50, Duration::from_millis(1)), 20.0, ip);
    }
}

#[test]
fn rules_of_the_loopback_ingress_still_see_what_was_delayed_at_its_egress() {
    needs_root!();
    let netns = Netns::new();
    let (mut plane, lo) = delayed_loopback(&netns, Direction::Egress);
    plane.attach(lo, "lo", Direction::Ingress).unwrap();
    plane.add_rule(delay_ms(5, 0)).unwrap();
    let drop = plane.add_rule(RuleSpec { egress: false, ingress: true, ..drop_share(1.0) }).unwrap();
    let (from, to) = (netns.udp("127.0.0.1:0"), netns.udp("127.0.0.1:0"));
    to.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let arrived = one_way(&from, &to, 10, Duration::ZERO);
    assert!(arrived.iter().all(Option::is_none), "{arrived:?}");
    assert_eq!(plane.counters(drop).unwrap().dropped, 10);
}

#[test]
fn fifty_ms_on_a_veth_are_fifty_ms_in_each_direction_and_family() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    plane.delay_line_start(va, Direction::Ingress).unwrap();
    for (a_ip, b_ip) in [(A4, B4), (A6, B6)] {
        let (a, b) = (pair.a.udp(&socket(a_ip)), pair.b.udp(&socket(b_ip)));
        for (egress, from, to) in [(true, &a, &b), (false, &b, &a)] {
            let rule = plane.add_rule(RuleSpec { egress, ingress: !egress, ..delay_ms(50, 0) }).unwrap();
            let there = one_way(from, to, 300, Duration::from_millis(1));
            let back = one_way(to, from, 50, Duration::from_millis(1));
            plane.remove_rule(rule).unwrap();
            let (p50, p99) = (quantile_ms(&there, 0.5), quantile_ms(&there, 0.99));
            eprintln!("{a_ip} egress {egress}: p50 {p50:.3} p99 {p99:.3} ms");
            assert_delayed(&there, 50.0, a_ip);
            assert_undelayed(&back, "the other direction");
        }
    }
}

#[test]
fn delays_of_two_rules_add_up() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    let (a, b) = (pair.a.udp(&socket(A4)), pair.b.udp(&socket(B4)));
    plane.add_rule(delay_ms(30, 0)).unwrap();
    plane.add_rule(delay_ms(20, 0)).unwrap();
    assert_delayed(&one_way(&a, &b, 100, Duration::from_millis(1)), 50.0, "30 + 20 ms");
}

#[test]
fn jitter_spreads_the_delay_and_keeps_the_order_of_a_flow() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    let (a, b) = (pair.a.udp(&socket(A4)), pair.b.udp(&socket(B4)));
    plane.add_rule(delay_ms(50, 20)).unwrap();
    // Further apart than the jitter is wide: each packet's delay is its own.
    let alone = one_way(&a, &b, 100, Duration::from_millis(41));
    let (low, high) = (quantile_ms(&alone, 0.05), quantile_ms(&alone, 0.95));
    eprintln!("50 +- 20 ms: p5 {low:.1} p50 {:.1} p95 {high:.1}", quantile_ms(&alone, 0.5));
    assert!((30.0..35.0 + slack_ms()).contains(&low), "{low}");
    assert!((60.0..70.0 + slack_ms()).contains(&high), "{high}");
    // Close together, a later one must not overtake.
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut bytes = [0; 4];
            for index in 0..500u32 {
                b.recv(&mut bytes).unwrap();
                assert_eq!(u32::from_ne_bytes(bytes), index, "in the order in which they were sent");
            }
        });
        for index in 0..500u32 {
            a.send_to(&index.to_ne_bytes(), b.local_addr().unwrap()).unwrap();
            thread::sleep(Duration::from_micros(200));
        }
        receiver.join().unwrap();
    });
}

/// Packets that a rule of nft has counted.
fn counted(netns: &Netns) -> Vec<u32> {
    let output = netns.run("nft list ruleset");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers = text.split("counter packets ").skip(1);
    numbers.map(|rest| rest.split(' ').next().and_then(|count| count.parse().ok()).expect("a count")).collect()
}

fn nft(netns: &Netns, rules: &str) {
    for rule in rules.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let output = netns.run(&format!("nft {rule}"));
        assert!(output.status.success(), "nft {rule}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_mark_of_others_survives_the_delay() {
    needs_root!();
    // Both ends in one namespace, since a mark ends at its border.
    let netns = Netns::new();
    netns.ip("link add va type veth peer name vb");
    netns.ip("link set vb up address 02:00:00:00:00:99");
    netns.ip("link set va up");
    netns.ip("addr add 10.88.0.1/24 dev va");
    netns.ip("neigh add 10.88.0.9 lladdr 02:00:00:00:00:99 dev va");
    nft(
        &netns,
        "add table netdev t
         add chain netdev t i { type filter hook ingress device vb priority 0; }
         add rule netdev t i udp dport 999 meta mark 0xfeedbeef counter
         add rule netdev t i udp dport 999 meta mark 0 counter",
    );
    let mut plane = netns.data_plane();
    let va = netns.ifindex("va");
    plane.attach(va, "va", Direction::Egress).unwrap();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    let rule = plane.add_rule(delay_ms(500, 0)).unwrap();
    let (marked, plain) = (netns.udp("10.88.0.1:0"), netns.udp("10.88.0.1:0"));
    setsockopt(&marked.as_fd(), sockopt::Mark, &0xfeed_beef).unwrap();
    for _ in 0..10 {
        marked.send_to(b"marked", "10.88.0.9:999").unwrap();
        plain.send_to(b"plain", "10.88.0.9:999").unwrap();
    }
    assert_eq!(counted(&netns), [0, 0], "they are held");
    thread::sleep(Duration::from_millis(700));
    assert_eq!(counted(&netns), [10, 10]);
    assert!(plane.counters(rule).unwrap().delays.count() >= 20);
}

#[test]
fn a_mark_survives_the_delay_on_the_loopback() {
    needs_root!();
    let netns = Netns::new();
    let (mut plane, _) = delayed_loopback(&netns, Direction::Egress);
    nft(
        &netns,
        "add table inet t
         add chain inet t i { type filter hook input priority 0; }
         add rule inet t i meta mark 0xfeedbeef counter",
    );
    plane.add_rule(delay_ms(10, 0)).unwrap();
    for ip in ["127.0.0.1", "::1"] {
        let (marked, to) = (netns.udp(&socket(ip)), netns.udp(&socket(ip)));
        setsockopt(&marked.as_fd(), sockopt::Mark, &0xfeed_beef).unwrap();
        let delays = one_way(&marked, &to, 20, Duration::from_millis(1));
        assert_delayed(&delays, 10.0, ip);
    }
    assert_eq!(counted(&netns), [40]);
}

#[test]
fn removing_a_rule_sends_on_what_it_holds_in_order() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    let (a, b) = (pair.a.udp(&socket(A4)), pair.b.udp(&socket(B4)));
    let rule = plane.add_rule(delay_ms(20_000, 0)).unwrap();
    let start = Instant::now();
    for index in 0..200u32 {
        a.send_to(&index.to_ne_bytes(), b.local_addr().unwrap()).unwrap();
    }
    let counters = plane.remove_rule(rule).unwrap().unwrap();
    for index in 200..250u32 {
        a.send_to(&index.to_ne_bytes(), b.local_addr().unwrap()).unwrap();
    }
    let mut bytes = [0; 4];
    for index in 0..250u32 {
        b.recv(&mut bytes).unwrap();
        assert_eq!(u32::from_ne_bytes(bytes), index);
    }
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(counters.delays.count(), 200);
    assert!(plane.remove_rule(rule).unwrap().is_none(), "removing twice is no error");
}

#[test]
fn stopping_the_line_sends_on_what_it_holds_and_removes_the_tap() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    let info = plane.delay_line_start(va, Direction::Egress).unwrap();
    assert!(pair.a.ip("link").contains(&info.tap_name));
    let (a, b) = (pair.a.udp(&socket(A4)), pair.b.udp(&socket(B4)));
    plane.add_rule(RuleSpec { protocol: Protocol::Udp, ..delay_ms(20_000, 0) }).unwrap();
    for index in 0..100u32 {
        a.send_to(&index.to_ne_bytes(), b.local_addr().unwrap()).unwrap();
    }
    let totals = plane.delay_line_stop(va, Direction::Egress).unwrap();
    assert_eq!((totals.tap_full, totals.refused), (0, 0));
    let mut bytes = [0; 4];
    for index in 0..100u32 {
        b.recv(&mut bytes).unwrap();
        assert_eq!(u32::from_ne_bytes(bytes), index);
    }
    assert!(!pair.a.ip("link").contains("fdl"), "the TAP is gone");
    let undelayed = one_way(&a, &b, 20, Duration::from_millis(1));
    assert_undelayed(&undelayed, "without a line");
    let (_, rule) = plane.rules().next().map(|(id, _)| (id, plane.counters(id).unwrap())).unwrap();
    assert_eq!(rule.passed, 20, "and are counted");
}

#[test]
fn packets_are_held_no_longer_than_the_rule_lasts() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    let (a, b) = (pair.a.udp(&socket(A4)), pair.b.udp(&socket(B4)));
    let expires_ns = monotonic_ns() + 400_000_000;
    plane.add_rule(RuleSpec { expires_ns, ..delay_ms(20_000, 0) }).unwrap();
    let delays = one_way(&a, &b, 10, Duration::from_millis(1));
    let worst = quantile_ms(&delays, 1.0);
    assert!((300.0..600.0).contains(&worst), "{worst}");
}

/// Sends for a while, and gives Gbit/s.
fn throughput(from: &Netns, to: &Netns, at: SocketAddr) -> f64 {
    const BYTES: usize = 1 << 20;
    let listener = to.listen(&at.to_string());
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, _): (TcpStream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; BYTES];
            let (mut received, start) = (0, Instant::now());
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                received += len;
            }
            received as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
        });
        let mut stream = from.connect(at).unwrap();
        let buffer = vec![7; BYTES];
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1500) {
            stream.write_all(&buffer).unwrap();
        }
        drop(stream);
        receiver.join().unwrap()
    })
}

#[test]
fn bulk_tcp_through_the_line_does_not_collapse() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    let untouched = throughput(&pair.a, &pair.b, address(B4, port()));
    plane.delay_line_start(va, Direction::Egress).unwrap();
    let rule = plane.add_rule(delay_ms(5, 0)).unwrap();
    let v4 = throughput(&pair.a, &pair.b, address(B4, port()));
    let v6 = throughput(&pair.a, &pair.b, address(B6, port()));
    let counters = plane.remove_rule(rule).unwrap().unwrap();
    plane.delay_line_start(va, Direction::Ingress).unwrap();
    plane.add_rule(RuleSpec { egress: false, ingress: true, ..delay_ms(5, 0) }).unwrap();
    let ingress = throughput(&pair.b, &pair.a, address(A4, port()));
    eprintln!(
        "untouched {untouched:.1}, 5 ms: v4 {v4:.1}, v6 {v6:.1}, ingress {ingress:.1} Gbit/s, p50 {:?}",
        counters.delays.quantile(0.5)
    );
    assert_eq!((counters.overflowed, counters.lost), (0, 0));
    let mean = counters.bytes / counters.matched;
    assert!(mean > 4000, "bursts stay whole: {mean} bytes a packet");
    // One small segment at a time gives a twentieth.
    for delayed in [v4, v6, ingress] {
        assert!(delayed > untouched / 10.0, "{untouched}: {delayed}");
    }
}

#[test]
fn a_ramp_changes_the_delay_of_a_rule_in_force() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    let (a, b) = (pair.a.udp(&socket(A4)), pair.b.udp(&socket(B4)));
    let rule = plane.add_rule(delay_ms(10, 0)).unwrap();
    for ms in [10, 30, 20] {
        let delay = Duration::from_millis(ms);
        plane.update_rule(rule, Action::delay(delay, Duration::ZERO)).unwrap();
        assert_delayed(&one_way(&a, &b, 50, Duration::from_millis(1)), ms as f64, "a step of the ramp");
    }
}
