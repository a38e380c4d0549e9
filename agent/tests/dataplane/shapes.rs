//! What a delay line does with packets beside holding them: duplicates, damage, disorder, rates; and how losses come in bursts.

use std::{
    collections::HashSet,
    io::{Read as _, Write as _},
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use firedrill_agent::dataplane::{Action, Counters, DataPlane, Direction, Loss, RuleSpec, Shape};
use firedrill_model::change::Distribution;
use nix::sys::socket::{setsockopt, sockopt};

use crate::support::{A4, A6, B4, B6, Pair, address, later, needs_root};

fn at(ip: &str, port: u16) -> String {
    address(ip, port).to_string()
}

/// A data plane at the sending end of a pair, with a delay line.
pub fn with_line(pair: &Pair) -> DataPlane {
    let mut plane = pair.a.data_plane();
    let index = pair.a.ifindex("va");
    plane.attach(index, "va", Direction::Egress).unwrap();
    plane.delay_line_start(index, Direction::Egress).unwrap();
    plane
}

/// When nothing has come for so long after the last was sent, nothing will.
const QUIET: Duration = Duration::from_secs(1);

/// Numbered datagrams, and those that arrived, in their order. Paced, so that no socket buffer overflows.
pub fn numbers_that_arrive(from: &UdpSocket, to: &UdpSocket, count: u32) -> Vec<u32> {
    let target = to.local_addr().unwrap();
    let all_sent = AtomicBool::new(false);
    to.set_read_timeout(Some(QUIET)).unwrap();
    // A receiver that does not get the processor for a while loses nothing.
    setsockopt(to, sockopt::RcvBufForce, &(64 << 20)).unwrap();
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut bytes, mut numbers) = ([0; 64], Vec::new());
            // A sender that does not get the processor for a while is not at its end.
            loop {
                let was_all = all_sent.load(Relaxed);
                match to.recv(&mut bytes) {
                    Ok(len) => {
                        assert_eq!(len, 32);
                        numbers.push(u32::from_ne_bytes(bytes[..4].try_into().unwrap()));
                    }
                    Err(_) if was_all => return numbers,
                    Err(_) => {}
                }
            }
        });
        for number in 0..count {
            let mut bytes = [0xa5; 32];
            bytes[..4].copy_from_slice(&number.to_ne_bytes());
            from.send_to(&bytes, target).unwrap();
            if number % 16 == 15 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        all_sent.store(true, Relaxed);
        receiver.join().unwrap()
    })
}

/// Sends through a pair under one rule; gives what arrived and what the rule counted.
fn under(shape: Shape, v6: bool, count: u32) -> (Vec<u32>, Counters) {
    let pair = Pair::new();
    let mut plane = with_line(&pair);
    let spec = RuleSpec {
        protocol: firedrill_agent::dataplane::Protocol::Udp,
        ..RuleSpec::egress(Action::Hold(shape), later())
    };
    let rule = plane.add_rule(spec).unwrap();
    let (a, b) = if v6 { (A6, B6) } else { (A4, B4) };
    let (from, to) = (pair.a.udp(&at(a, 0)), pair.b.udp(&at(b, 0)));
    let numbers = numbers_that_arrive(&from, &to, count);
    let counters = plane.remove_rule(rule).unwrap().unwrap();
    (numbers, counters)
}

/// Five standard deviations of a binomial share.
fn near(found: u64, of: u32, share: f64) -> bool {
    let n = f64::from(of);
    (found as f64 / n - share).abs() < 5.0 * (share * (1.0 - share) / n).sqrt()
}

#[test]
fn a_share_arrives_twice_and_nothing_is_missing() {
    needs_root!();
    for v6 in [false, true] {
        let (numbers, counters) = under(Shape::Duplicate { share: 0.2 }, v6, 4000);
        assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), 4000);
        assert_eq!(numbers.len() as u64 - 4000, counters.acted);
        assert!(near(counters.acted, 4000, 0.2), "{}", counters.acted);
        assert!(numbers.is_sorted(), "a copy follows at once");
    }
}

#[test]
fn damage_that_the_checksum_shows_is_dropped_by_the_receiver_and_counted() {
    needs_root!();
    for v6 in [false, true] {
        let (numbers, counters) = under(Shape::Corrupt { share: 0.25, bits: 1, fix: false }, v6, 4000);
        assert!(near(counters.acted, 4000, 0.25), "{}", counters.acted);
        assert_eq!(4000 - numbers.len() as u64, counters.acted, "each damaged one is missing, and no other");
    }
}

#[test]
fn damage_with_a_checksum_made_right_reaches_the_application() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_line(&pair);
    let shape = Shape::Corrupt { share: 1.0, bits: 2, fix: true };
    let rule = plane.add_rule(RuleSpec::egress(Action::Hold(shape), later())).unwrap();
    for (a, b) in [(A4, B4), (A6, B6)] {
        let (from, to) = (pair.a.udp(&at(a, 0)), pair.b.udp(&at(b, 0)));
        let sent = [0x5a; 200];
        from.send_to(&sent, to.local_addr().unwrap()).unwrap();
        let mut got = [0; 300];
        let len = to.recv(&mut got).expect("it arrives");
        assert_eq!(len, 200);
        let flipped: u32 = sent.iter().zip(&got).map(|(a, b)| (a ^ b).count_ones()).sum();
        // Two draws may hit the same bit.
        assert!(flipped == 2 || flipped == 0, "{flipped}");
    }
    assert!(plane.counters(rule).unwrap().acted >= 2);
}

#[test]
fn a_tcp_stream_survives_damage_and_disorder_whole() {
    needs_root!();
    for shape in [
        // One bit always shows in the checksum; of three, one packet in some hundreds has the same sum again.
        Shape::Corrupt { share: 0.01, bits: 1, fix: false },
        Shape::Reorder { share: 0.05, by: Duration::from_millis(2) },
        Shape::Duplicate { share: 0.05 },
    ] {
        let pair = Pair::new();
        let mut plane = with_line(&pair);
        let rule = plane.add_rule(RuleSpec::egress(Action::Hold(shape.clone()), later())).unwrap();
        pair.assert_carries_a_stream(B4, 2_000_000);
        let counters = plane.counters(rule).unwrap();
        assert!(counters.acted > 5, "{shape:?}: bursts are cut, so there are packets to act on: {counters:?}");
    }
}

#[test]
fn a_share_is_overtaken_and_nothing_is_missing() {
    needs_root!();
    let (numbers, counters) = under(Shape::Reorder { share: 0.1, by: Duration::from_millis(5) }, false, 4000);
    assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), 4000);
    assert_eq!(numbers.len(), 4000);
    assert!(near(counters.acted, 4000, 0.1), "{}", counters.acted);
    let late = numbers.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(late > 100, "{late} came after one that was sent later");
}

#[test]
fn packets_overtake_each_other_within_a_flow_only_when_that_was_asked() {
    needs_root!();
    for reorder in [false, true] {
        let (delay, jitter) = (Duration::from_millis(20), Duration::from_millis(10));
        let shape = Shape::Delay { delay, jitter, distribution: Distribution::Normal, correlation: 0.0, reorder };
        let (numbers, _) = under(shape, false, 1000);
        assert_eq!(numbers.len(), 1000);
        assert_eq!(numbers.is_sorted(), !reorder);
    }
}

#[test]
fn a_rate_is_what_was_asked_over_tcp_and_the_receipt_has_measured_it() {
    needs_root!();
    for (rate, bytes) in [(2_000_000, 500_000), (50_000_000, 12_000_000)] {
        let pair = Pair::new();
        let mut plane = with_line(&pair);
        let shape = Shape::Limit { rate, burst: 16 << 10, queue: 256 << 10, per_flow: false };
        let rule = plane.add_rule(RuleSpec::egress(Action::Hold(shape), later())).unwrap();
        let listener = pair.b.listen(&at(B4, 0));
        let mut stream = pair.a.connect(listener.local_addr().unwrap()).unwrap();
        let took = thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut accepted = listener.accept().unwrap().0;
                let (mut buffer, mut got, begun) = (vec![0; 1 << 16], 0, Instant::now());
                while got < bytes {
                    got += accepted.read(&mut buffer).unwrap();
                }
                begun.elapsed()
            });
            stream.write_all(&vec![0; bytes]).unwrap();
            receiver.join().unwrap()
        });
        let counters = plane.counters(rule).unwrap();
        let measured = counters.limited_bytes as f64 * 8e9 / counters.limited_ns as f64;
        let goodput = bytes as f64 * 8.0 / took.as_secs_f64();
        println!("{rate} bit/s: measured {measured:.0}, application {goodput:.0}");
        assert!((measured / rate as f64 - 1.0).abs() < 0.02, "{measured} of {rate}");
        // Headers are a twentieth of what is on the link; what is lost in the queue is sent again.
        assert!(goodput < rate as f64 * 1.1 && goodput > rate as f64 * 0.75, "{goodput} of {rate}");
    }
}

#[test]
fn every_third_packet_is_every_third_packet() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = pair.a.data_plane();
    plane.attach(pair.a.ifindex("va"), "va", Direction::Egress).unwrap();
    let spec = RuleSpec {
        protocol: firedrill_agent::dataplane::Protocol::Udp,
        peer_ports: vec![4321..=4321],
        ..RuleSpec::egress(Action::Drop(Loss::EveryNth(3)), later())
    };
    plane.add_rule(spec).unwrap();
    let (from, to) = (pair.a.udp(&at(A4, 0)), pair.b.udp(&at(B4, 4321)));
    let arrived = numbers_that_arrive(&from, &to, 300);
    assert_eq!(arrived, (0..300).filter(|n| n % 3 != 2).collect::<Vec<_>>());
}

#[test]
fn a_share_of_the_flows_is_hit_whole_and_the_others_not_at_all() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = pair.a.data_plane();
    plane.attach(pair.a.ifindex("va"), "va", Direction::Egress).unwrap();
    let drop = Action::Drop(Loss::Independent { probability: 1.0 });
    plane.add_rule(RuleSpec { flows: 0.3, ..RuleSpec::egress(drop, later()) }).unwrap();
    let to = pair.b.udp(&at(B4, 0));
    let mut hit = 0;
    for _ in 0..200 {
        let from = pair.a.udp(&at(A4, 0));
        for _ in 0..3 {
            from.send_to(&[0; 8], to.local_addr().unwrap()).unwrap();
        }
        to.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let got = (0..3).map_while(|_| to.recv(&mut [0; 8]).ok()).count();
        assert!(got == 0 || got == 3, "{got} of 3 packets of one flow");
        hit += usize::from(got == 0);
    }
    assert!((30..=95).contains(&hit), "{hit} of 200 flows");
}

#[test]
fn ten_thousand_rules_of_other_targets_cost_a_packet_nothing_that_shows_and_more_than_a_scope_holds_are_refused() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = pair.a.data_plane();
    plane.attach(pair.a.ifindex("va"), "va", Direction::Egress).unwrap();
    let drop = |tag| {
        let drop = Action::Drop(Loss::Independent { probability: 1.0 });
        RuleSpec { tag: Some(tag), ..RuleSpec::egress(drop, later()) }
    };
    let full = plane.allocate_tag();
    for _ in 0..64 {
        plane.add_rule(drop(full)).unwrap();
    }
    let error = plane.add_rule(drop(full)).unwrap_err().to_string();
    assert!(error.contains("64"), "{error}");
    let begun = Instant::now();
    let mut rules = Vec::new();
    for _ in 0..155 {
        let tag = plane.allocate_tag();
        rules.extend((0..64).map(|_| plane.add_rule(drop(tag)).unwrap()));
    }
    println!("{} rules in {:?}", rules.len() + 64, begun.elapsed());
    let (from, to) = (pair.a.udp(&at(A4, 0)), pair.b.udp(&at(B4, 0)));
    assert_eq!(numbers_that_arrive(&from, &to, 1000).len(), 1000);
    assert!(rules.iter().all(|rule| plane.counters(*rule).unwrap().matched == 0));
}
