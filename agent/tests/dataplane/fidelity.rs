//! Whether a fault is what was asked for, by statistics: shares, independence, chains, distributions, rates, and those who
//! are not meant.

use std::{
    io::{Read as _, Write as _},
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use firedrill_agent::dataplane::{Action, DataPlane, Direction, Loss, Protocol, RuleSpec, Shape};
use firedrill_model::change::Distribution;
use nix::sys::socket::{setsockopt, sockopt};

use crate::{
    arrivals::{arrivals, note_arrivals},
    shapes::{numbers_that_arrive, with_line},
    statistics::{FAR, FAR_APART, below, binomial_z, distance, distance_but_for, runs_z},
    support::{A4, A6, B4, B6, Pair, address, drop_share, in_guest, later, needs_root, one_way},
};

/// Both families: from, and to.
pub const FAMILIES: [(&str, &str); 2] = [(A4, B4), (A6, B6)];

pub fn sockets(pair: &Pair, (a, b): (&str, &str)) -> (UdpSocket, UdpSocket) {
    (pair.a.udp(&address(a, 0).to_string()), pair.b.udp(&address(b, 0).to_string()))
}

/// A data plane at what leaves the pair's near end.
fn at_egress(pair: &Pair) -> DataPlane {
    let mut plane = pair.a.data_plane();
    plane.attach(pair.a.ifindex("va"), "va", Direction::Egress).unwrap();
    plane
}

/// Of datagrams, whether each was lost.
pub fn losses(from: &UdpSocket, to: &UdpSocket, count: u32) -> Vec<bool> {
    let mut lost = vec![true; count as usize];
    for number in numbers_that_arrive(from, to, count) {
        lost[number as usize] = false;
    }
    lost
}

#[test]
fn losses_are_as_many_as_asked_and_independent_and_the_sender_is_not_told() {
    needs_root!();
    const SENT: u32 = 12_000;
    for family in FAMILIES {
        let pair = Pair::new();
        let mut plane = at_egress(&pair);
        let rule = plane.add_rule(RuleSpec { protocol: Protocol::Udp, ..drop_share(0.1) }).unwrap();
        let (from, to) = sockets(&pair, family);
        // With these options the kernel reports what it knows of a loss; each `send` must succeed.
        if family.0.contains(':') {
            setsockopt(&from, sockopt::Ipv6RecvErr, &true).unwrap();
        } else {
            setsockopt(&from, sockopt::Ipv4RecvErr, &true).unwrap();
        }
        let lost = losses(&from, &to, SENT);
        assert!(from.take_error().unwrap().is_none());
        let count = lost.iter().filter(|lost| **lost).count();
        let (share, runs) = (binomial_z(count, lost.len(), 0.1), runs_z(&lost));
        println!("{}: {count} of {SENT} lost, {share:+.2} deviations; runs {runs:+.2}", family.0);
        assert_eq!(plane.counters(rule).unwrap().dropped, count as u64, "nothing else was lost");
        assert!(share.abs() < FAR, "{count} of {SENT}: {share}");
        assert!(runs.abs() < FAR, "losses depend on each other: {runs}");
    }
}

#[test]
fn losses_of_a_chain_follow_it() {
    needs_root!();
    const SENT: u32 = 20_000;
    let (worsens, recovers) = (0.02, 0.25);
    for family in FAMILIES {
        let pair = Pair::new();
        let mut plane = at_egress(&pair);
        let loss = Loss::GilbertElliott { worsens, recovers, in_good: 0.0, in_bad: 1.0 };
        let spec = RuleSpec { protocol: Protocol::Udp, ..RuleSpec::egress(Action::Drop(loss), later()) };
        let rule = plane.add_rule(spec).unwrap();
        let (from, to) = sockets(&pair, family);
        let lost = losses(&from, &to, SENT);
        let count = lost.iter().filter(|lost| **lost).count();
        assert_eq!(plane.counters(rule).unwrap().dropped, count as u64, "nothing else was lost");
        assert_follows_chain(&lost, worsens, recovers, family.0);
    }
}

/// Checks how many were lost, and in bursts of what length, against Gilbert's chain.
pub fn assert_follows_chain(lost: &[bool], worsens: f64, recovers: f64, what: &str) {
    let n = lost.len() as f64;
    let count = lost.iter().filter(|lost| **lost).count() as f64;
    let bursts = lost.windows(2).filter(|pair| !pair[0] && pair[1]).count() as f64;
    // Packets of such a chain are alike by 1 - worsens - recovers from one to the next: they count for fewer.
    let (share, memory) = (worsens / (worsens + recovers), 1.0 - worsens - recovers);
    let share_deviation = (share * (1.0 - share) / n * (1.0 + memory) / (1.0 - memory)).sqrt();
    let share_z = (count / n - share) / share_deviation;
    // Lengths of bursts are geometric.
    let length_deviation = (1.0 - recovers).sqrt() / recovers / bursts.sqrt();
    let length_z = (count / bursts - 1.0 / recovers) / length_deviation;
    println!("{what}: {count} of {n} lost, {share_z:+.2} deviations; bursts of {:.2}, {length_z:+.2}", count / bursts);
    assert!(share_z.abs() < FAR, "{what}: a share of {} was lost, {share} expected", count / n);
    assert!(length_z.abs() < FAR, "{what}: bursts of {}, {} expected", count / bursts, 1.0 / recovers);
}

/// A number of `/proc/net/snmp`'s table of TCP in the near namespace.
fn tcp_counter(pair: &Pair, name: &str) -> u64 {
    let text = pair.a.within(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let names = lines.next().unwrap().split(' ');
    let numbers = lines.next().unwrap().split(' ');
    names.zip(numbers).find(|(key, _)| *key == name).unwrap().1.parse().unwrap()
}

#[test]
fn tcp_takes_a_loss_for_one_on_the_way_and_sends_again_all_that_was_dropped() {
    needs_root!();
    const ENOUGH: u64 = 20;
    for (_, b) in FAMILIES {
        let pair = Pair::new();
        let mut plane = at_egress(&pair);
        let rule = plane.add_rule(RuleSpec { protocol: Protocol::Tcp, ..drop_share(0.02) }).unwrap();
        let before = tcp_counter(&pair, "RetransSegs");
        let listener = pair.b.listen(&address(b, 0).to_string());
        let mut stream = pair.a.connect(listener.local_addr().unwrap()).unwrap();
        let begun = Instant::now();
        let (sent, got) = thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let (mut accepted, mut buffer, mut got) = (listener.accept().unwrap().0, vec![0; 1 << 16], 0);
                while let Ok(len @ 1..) = accepted.read(&mut buffer) {
                    got += len;
                }
                got
            });
            let (block, mut sent) = (vec![0; 1 << 20], 0);
            while plane.counters(rule).unwrap().dropped < ENOUGH && begun.elapsed() < Duration::from_secs(30) {
                stream.write_all(&block).unwrap();
                sent += block.len();
            }
            drop(stream);
            (sent, receiver.join().unwrap())
        });
        assert_eq!(got, sent);
        let dropped = plane.counters(rule).unwrap().dropped;
        let again = tcp_counter(&pair, "RetransSegs") - before;
        println!("{b}: {dropped} dropped, {again} segments sent again");
        assert!(dropped >= ENOUGH, "{dropped}");
        // What the own host refuses stays in the queue, and is not counted as sent again. Of what was dropped, acknowledgements of
        // the connection's begin and end are not sent again either.
        assert!(again + 2 >= dropped, "{again} sent again of {dropped} dropped");
    }
}

/// Mean and spread of delays that are drawn, and how late one may be.
fn drawn() -> (Duration, Duration, f64) {
    let ms = Duration::from_millis;
    if in_guest() { (ms(400), ms(100), 40.0) } else { (ms(100), ms(25), 5.0) }
}

#[test]
fn drawn_delays_have_the_distribution_that_was_asked() {
    needs_root!();
    use Distribution::{Normal, Pareto, ParetoNormal, Uniform};
    const SENT: u32 = 1_500;
    let (delay, jitter, late) = drawn();
    for (distribution, family) in [Uniform, Normal, Pareto, ParetoNormal].into_iter().zip(FAMILIES.iter().cycle()) {
        let pair = Pair::new();
        let mut plane = with_line(&pair);
        // One may overtake another, or each would wait for the slowest before it.
        let shape = Shape::Delay { delay, jitter, distribution, correlation: 0.0, reorder: true };
        let spec = RuleSpec { protocol: Protocol::Udp, ..RuleSpec::egress(Action::Hold(shape), later()) };
        plane.add_rule(spec).unwrap();
        let (from, to) = sockets(&pair, *family);
        let delays = one_way(&from, &to, SENT, Duration::from_millis(1));
        let in_jitters = |ms: f64| (ms - delay.as_secs_f64() * 1e3) / (jitter.as_secs_f64() * 1e3);
        let sample: Vec<f64> = delays.iter().map(|d| in_jitters(d.unwrap().as_secs_f64() * 1e3)).collect();
        let late = late / (jitter.as_secs_f64() * 1e3);
        let apart = distance(sample, late, |x| below(distribution, x)) * f64::from(SENT).sqrt() / FAR_APART;
        println!("{distribution:?}: {apart:.2} of the distance that chance permits");
        assert!(apart < 1.0, "{distribution:?}: {apart} times the distance that chance permits");
    }
}

/// Bits a second on the link that arrive of datagrams that are sent as fast as possible, for so many seconds at the rate asked.
pub fn rate_through(pair: &Pair, family: (&str, &str), asked: u64, seconds: u64) -> f64 {
    const PAYLOAD: usize = 1200;
    let headers = if family.0.contains(':') { 14 + 40 + 8 } else { 14 + 20 + 8 };
    let bits = ((PAYLOAD + headers) * 8) as u64;
    let (from, to) = sockets(pair, family);
    note_arrivals(&to, 128 << 20);
    let count = (asked * seconds / bits) as usize;
    for _ in 0..count {
        from.send_to(&[0; PAYLOAD], to.local_addr().unwrap()).unwrap();
    }
    let arrived = arrivals(&to, count);
    assert_eq!(arrived.len(), count);
    // The median of many spans: a line that stood still for a moment catches up.
    let half = count / 2;
    let mut spans: Vec<Duration> = arrived.iter().zip(&arrived[half..]).map(|(from, to)| to.1 - from.1).collect();
    spans.sort_unstable();
    half as f64 * bits as f64 / spans[spans.len() / 2].as_secs_f64()
}

#[test]
fn datagrams_arrive_at_the_rate_that_was_asked() {
    needs_root!();
    // A guest's one processor is busy for a while with what is sent at first.
    let rates: &[u64] = if in_guest() { &[1_000_000, 4_000_000] } else { &[1_000_000, 10_000_000, 100_000_000] };
    for family in FAMILIES {
        let pair = Pair::new();
        let mut plane = with_line(&pair);
        for &rate in rates {
            // Room for all of it.
            let shape = Shape::Limit { rate, burst: 3_000, queue: rate, per_flow: false };
            let rule = plane.add_rule(RuleSpec::egress(Action::Hold(shape), later())).unwrap();
            let measured = rate_through(&pair, family, rate, 2);
            plane.remove_rule(rule).unwrap();
            println!("{}: {measured:.0} of {rate} bit/s", family.0);
            assert!((measured / rate as f64 - 1.0).abs() < 0.02, "{}: {measured} of {rate} bit/s", family.0);
        }
    }
}

#[test]
fn another_flow_is_as_quick_as_without_a_fault_and_loses_nothing() {
    needs_root!();
    const BLOCKS: u32 = 60;
    const IN_BLOCK: u32 = 30;
    // A program at the hook costs less than a microsecond. But the thread that holds the others' packets takes a processor now and
    // then, or keeps one from sleeping, so either may be quicker by some of this. The fault is 2 ms.
    let late_ms = if in_guest() { 1.5 } else { 0.5 };
    for family in FAMILIES {
        let pair = Pair::new();
        let va = pair.a.ifindex("va");
        let mut plane = pair.a.data_plane();
        let (from, to) = sockets(&pair, family);
        let (hit, away) = sockets(&pair, family);
        let port = away.local_addr().unwrap().port();
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for block in 0..BLOCKS {
            let faults = block % 2 == 1;
            if faults {
                plane.attach_with_line(va, "va", Direction::Egress).unwrap();
                let other = |action| RuleSpec { peer_ports: vec![port..=port], ..RuleSpec::egress(action, later()) };
                plane.add_rule(other(Action::Drop(Loss::Independent { probability: 0.3 }))).unwrap();
                plane.add_rule(other(Action::delay(Duration::from_millis(2), Duration::ZERO))).unwrap();
            }
            let delays = thread::scope(|scope| {
                scope.spawn(|| {
                    for _ in 0..IN_BLOCK {
                        hit.send_to(&[0; 4], away.local_addr().unwrap()).unwrap();
                        thread::sleep(Duration::from_micros(500));
                    }
                });
                one_way(&from, &to, IN_BLOCK, Duration::from_micros(500))
            });
            let ms = delays.iter().map(|delay| delay.expect("it arrives").as_secs_f64() * 1e3);
            if faults {
                with.extend(ms);
                plane.shut_down().unwrap();
            } else {
                without.extend(ms);
            }
        }
        let apart = distance_but_for(&without, &with, late_ms);
        println!("{}: {apart:.2} of the distance that chance permits", family.0);
        // Neighbouring packets are alike, so chance permits more than for independent ones; if all were late it would be 8.
        assert!(apart < 4.0, "{}: {apart}", family.0);
    }
}
