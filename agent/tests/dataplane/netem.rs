//! The same request to tc-netem and to us, one after the other on one pair: shares, bursts, distributions and rates must be
//! alike. Where the kernel has no netem, as where this is developed, only guests tell.

use std::{
    collections::HashSet,
    net::UdpSocket,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use firedrill_agent::dataplane::{Action, Direction, Loss, Protocol, RuleSpec, Shape};
use firedrill_model::change::Distribution;

use crate::{
    arrivals::{arrivals, note_arrivals},
    fidelity::{FAMILIES, assert_follows_chain, losses, rate_through, sockets},
    shapes::numbers_that_arrive,
    statistics::{FAR, binomial_z, distance_but_for, shares_z},
    support::{Pair, in_guest, later, needs_root},
};

/// Makes the pair, or leaves the test where there is no netem.
macro_rules! needs_netem {
    () => {
        match pair() {
            Some(pair) => pair,
            None => {
                println!("UNSUPPORTED: this kernel has no sch_netem");
                return;
            }
        }
    };
}

fn pair() -> Option<Pair> {
    let pair = Pair::new();
    let there = tc(&pair, "add", "netem limit 1000");
    assert!(there || !in_guest(), "guests have sch_netem and tc");
    (there && tc(&pair, "del", "")).then_some(pair)
}

fn tc(pair: &Pair, verb: &str, qdisc: &str) -> bool {
    let output = pair.a.run(&format!("tc qdisc {verb} dev va root {qdisc}"));
    if !output.status.success() {
        eprintln!("tc {verb} {qdisc}: {}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

/// What `measure` sees under netem, and under us.
fn both<T>(pair: &Pair, netem: &str, ours: Action, mut measure: impl FnMut() -> T) -> [T; 2] {
    assert!(tc(pair, "add", &format!("netem limit 100000 {netem}")), "{netem}");
    let theirs = measure();
    assert!(tc(pair, "del", ""));
    let mut plane = pair.a.data_plane();
    plane.attach_with_line(pair.a.ifindex("va"), "va", Direction::Egress).unwrap();
    plane.add_rule(RuleSpec { protocol: Protocol::Udp, ..RuleSpec::egress(ours, later()) }).unwrap();
    [theirs, measure()]
}

/// Numbered datagrams, one every millisecond: how long each was under way (ms), in the order of arrival.
fn delays(from: &UdpSocket, to: &UdpSocket, count: usize) -> Vec<f64> {
    note_arrivals(to, 16 << 20);
    let mut sent = Vec::with_capacity(count);
    for number in 0..count {
        sent.push(SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        from.send_to(&number.to_ne_bytes(), to.local_addr().unwrap()).unwrap();
        thread::sleep(Duration::from_millis(1));
    }
    let arrived = arrivals(to, count);
    assert_eq!(arrived.len(), count, "none is lost");
    arrived.into_iter().map(|(number, at)| (at.as_secs_f64() - sent[number].as_secs_f64()) * 1e3).collect()
}

#[test]
fn delays_are_distributed_as_those_of_netem() {
    needs_root!();
    let pair = needs_netem!();
    const SENT: usize = 1_200;
    // Jitter much greater than what software emulation adds.
    let (mean, jitter, slack) = if in_guest() { (400, 100, 20.0) } else { (100, 25, 3.0) };
    let (delay, spread) = (Duration::from_millis(mean), Duration::from_millis(jitter));
    let all = [
        (Distribution::Uniform, "uniform"),
        (Distribution::Normal, "normal"),
        (Distribution::Pareto, "pareto"),
        (Distribution::ParetoNormal, "paretonormal"),
    ];
    for ((distribution, name), family) in all.into_iter().zip(FAMILIES.iter().cycle()) {
        let shape = Shape::Delay { delay, jitter: spread, distribution, correlation: 0.0, reorder: true };
        let (from, to) = sockets(&pair, *family);
        // Without a table netem draws evenly.
        let table = if name == "uniform" { String::new() } else { format!("distribution {name}") };
        let netem = format!("delay {mean}ms {jitter}ms {table}");
        let [theirs, ours] = both(&pair, &netem, Action::Hold(shape), || delays(&from, &to, SENT));
        let quantiles = |sample: &[f64]| {
            let mut sorted = sample.to_vec();
            sorted.sort_by(f64::total_cmp);
            [0.1, 0.5, 0.9, 0.99].map(|q| sorted[(q * (SENT - 1) as f64) as usize].round())
        };
        let apart = distance_but_for(&theirs, &ours, slack);
        println!(
            "{name}: p10 p50 p90 p99 {:?} ms of netem, {:?} ours; {apart:.2} of the distance that chance permits",
            quantiles(&theirs),
            quantiles(&ours)
        );
        assert!(apart < 1.0, "{name}: {apart} times the distance that chance permits, but for {slack} ms");
    }
}

#[test]
fn as_many_are_lost_as_by_netem() {
    needs_root!();
    let pair = needs_netem!();
    const SENT: u32 = 6_000;
    for family in FAMILIES {
        let (from, to) = sockets(&pair, family);
        let drop = Action::Drop(Loss::Independent { probability: 0.1 });
        let lost = both(&pair, "loss 10%", drop, || losses(&from, &to, SENT));
        let [theirs, ours] = lost.map(|lost| lost.into_iter().filter(|lost| *lost).count());
        let z = shares_z(theirs, ours, SENT as usize);
        println!("{}: {theirs} of netem and {ours} of ours of {SENT} lost: {z:+.2} deviations", family.0);
        assert!(z.abs() < FAR, "{z}");
    }
}

#[test]
fn losses_come_in_bursts_like_those_of_netem() {
    needs_root!();
    let pair = needs_netem!();
    const SENT: u32 = 10_000;
    let (worsens, recovers) = (0.02, 0.25);
    let loss = Loss::GilbertElliott { worsens, recovers, in_good: 0.0, in_bad: 1.0 };
    let (from, to) = sockets(&pair, FAMILIES[1]);
    let [theirs, ours] = both(&pair, "loss gemodel 2% 25% 100% 0%", Action::Drop(loss), || losses(&from, &to, SENT));
    assert_follows_chain(&theirs, worsens, recovers, "netem");
    assert_follows_chain(&ours, worsens, recovers, "ours");
}

#[test]
fn as_many_arrive_twice_as_by_netem() {
    needs_root!();
    let pair = needs_netem!();
    const SENT: u32 = 4_000;
    let (from, to) = sockets(&pair, FAMILIES[0]);
    let twice = Action::Hold(Shape::Duplicate { share: 0.2 });
    let arrived = both(&pair, "duplicate 20%", twice, || numbers_that_arrive(&from, &to, SENT));
    let [theirs, ours] = arrived.map(|numbers| {
        assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), SENT as usize, "none is missing");
        numbers.len() - SENT as usize
    });
    let z = shares_z(theirs, ours, SENT as usize);
    println!("{theirs} of netem and {ours} of ours of {SENT} twice: {z:+.2} deviations");
    assert!(z.abs() < FAR, "{z}");
}

#[test]
fn as_many_are_held_back_as_by_netem() {
    needs_root!();
    let pair = needs_netem!();
    const SENT: usize = 2_000;
    let (from, to) = sockets(&pair, FAMILIES[1]);
    let by = Duration::from_millis(200);
    let held = Action::Hold(Shape::Reorder { share: 0.1, by });
    // Netem names the share that is not held.
    let delays = both(&pair, "delay 200ms reorder 90%", held, || delays(&from, &to, SENT));
    let [theirs, ours] = delays.map(|all| all.into_iter().filter(|ms| *ms > 100.0).count());
    let z = shares_z(theirs, ours, SENT);
    println!("{theirs} of netem and {ours} of ours of {SENT} held back: {z:+.2} deviations");
    assert!(z.abs() < FAR, "{z}");
}

#[test]
fn as_many_are_damaged_as_by_netem_but_for_bits_that_nobody_checks() {
    needs_root!();
    let pair = needs_netem!();
    const SENT: u32 = 4_000;
    let (from, to) = sockets(&pair, FAMILIES[0]);
    let damage = Action::Hold(Shape::Corrupt { share: 0.25, bits: 1, fix: false });
    let lost = both(&pair, "corrupt 25%", damage, || losses(&from, &to, SENT));
    let [theirs, ours] = lost.map(|lost| lost.into_iter().filter(|lost| *lost).count());
    println!("{theirs} of netem and {ours} of ours of {SENT} damaged and dropped");
    assert!(binomial_z(ours, SENT as usize, 0.25).abs() < FAR, "{ours}");
    // It damages headers, too: of 74 bytes, the sender's Ethernet address is checked by nobody, and of others' not every bit.
    let z = |share| binomial_z(theirs, SENT as usize, share);
    assert!(z(0.25) < FAR && z(0.25 * 60.0 / 74.0) > -FAR, "{theirs}");
}

#[test]
fn a_rate_is_as_exact_as_that_of_netem() {
    needs_root!();
    let pair = needs_netem!();
    for (rate, family) in [1_000_000, 4_000_000].into_iter().zip(FAMILIES) {
        let limit = Shape::Limit { rate, burst: 3_000, queue: rate, per_flow: false };
        let netem = format!("rate {rate}bit");
        let [theirs, ours] = both(&pair, &netem, Action::Hold(limit), || rate_through(&pair, family, rate, 2));
        println!("{rate} bit/s: {theirs:.0} of netem, {ours:.0} ours");
        assert!((theirs / rate as f64 - 1.0).abs() < 0.02, "netem: {theirs} of {rate}");
        assert!((ours / rate as f64 - 1.0).abs() < 0.02, "{ours} of {rate}");
    }
}
