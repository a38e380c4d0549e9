//! Delays: how long, in what order, and on which interfaces.

use std::time::Duration;

use firedrill_agent::dataplane::Direction;

use crate::support::{Netns, delay_ms, needs_root, one_way, quantile_ms};

fn loopback_is_delayed(ip: &str) {
    let netns = Netns::new();
    netns.allow_loopback_delay();
    let (from, to) = (netns.udp(&format!("{ip}:0")), netns.udp(&format!("{ip}:0")));
    let mut plane = netns.data_plane();
    let lo = netns.ifindex("lo");
    plane.attach(lo, "lo", Direction::Egress).unwrap();
    plane.delay_line_start(lo, Direction::Egress).unwrap();
    let untouched = one_way(&from, &to, 50, Duration::from_millis(1));
    let rule = plane.add_rule(delay_ms(50, 0)).unwrap();
    let delayed = one_way(&from, &to, 200, Duration::from_millis(2));
    assert!(delayed.iter().all(Option::is_some), "nothing is lost: {delayed:?}");
    let p50 = quantile_ms(&delayed, 0.5);
    eprintln!(
        "lo {ip}: untouched p50 {:.3} ms, delayed p50 {p50:.3} p99 {:.3}",
        quantile_ms(&untouched, 0.5),
        quantile_ms(&delayed, 0.99)
    );
    assert!((50.0..55.0).contains(&p50), "{p50}");
    let counters = plane.remove_rule(rule).unwrap().unwrap();
    assert_eq!((counters.matched, counters.diverted, counters.delays.count()), (200, 200, 200));
    let after = one_way(&from, &to, 50, Duration::from_millis(1));
    assert!(quantile_ms(&after, 0.5) < 5.0);
}

#[test]
fn a_datagram_to_127_0_0_1_takes_50_ms() {
    needs_root!();
    loopback_is_delayed("127.0.0.1");
}

#[test]
fn a_datagram_to_the_ipv6_loopback_takes_50_ms() {
    needs_root!();
    loopback_is_delayed("[::1]");
}
