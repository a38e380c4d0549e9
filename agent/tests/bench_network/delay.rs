//! How exactly packets are delayed.

use std::net::UdpSocket;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use firedrill_agent::dataplane::{Action, Counters, RuleSpec};

use crate::Extent;
use crate::arrivals::{arrivals, note_arrivals};
use crate::sample::Sample;
use crate::table::{Goal, Table};
use crate::world::{World, later};

/// How datagrams are sent: so many at this distance, and then nothing until the period is over.
#[derive(Clone, Copy)]
struct Pace {
    what: &'static str,
    gap: Duration,
    /// A burst, and how long from its beginning to that of the next.
    burst: Option<(usize, Duration)>,
    goal: Goal,
}

const PACES: [Pace; 3] = [
    Pace { what: "1 kpps", gap: Duration::from_millis(1), burst: None, goal: Goal::None },
    Pace { what: "10 kpps", gap: Duration::from_micros(100), burst: None, goal: Goal::AtMost(0.3) },
    // As long as a burst of a real sender, or the receiver's buffer would tell of itself.
    Pace {
        what: "250 kpps, bursts of 2,500",
        gap: Duration::from_micros(4),
        burst: Some((2_500, Duration::from_millis(100))),
        goal: Goal::AtMost(1.0),
    },
];

pub fn measure(world: &World, extent: &Extent, table: &mut Table) {
    table.section(
        "How exactly packets are delayed",
        "From before the `send` to the kernel's own time of arrival at the other end, less the delay that was asked: what the \
         sender's way through the kernel takes is part of the error.",
    );
    for ms in [1, 10, 50, 200] {
        errors(world, extent.packets.min(2_000), ms, PACES[0], table);
    }
    for pace in &PACES[1..] {
        errors(world, extent.packets, 50, *pace, table);
    }
}

/// One row: the 99th percentile, and what lies before and beyond it.
fn errors(world: &World, packets: usize, ms: u64, pace: Pace, table: &mut Table) {
    let (near, far) = world.sockets();
    note_arrivals(&far, 64 << 20);
    let mut plane = world.plane_with_line();
    let asked = Duration::from_millis(ms);
    let rule = plane.add_rule(RuleSpec::egress(Action::delay(asked, Duration::ZERO), later())).expect("a rule");
    let sent = send(&near, packets, pace);
    std::thread::sleep(asked);
    let errors: Vec<f64> = arrivals(&far, packets)
        .into_iter()
        .map(|(index, at)| (at.as_secs_f64() - sent[index].as_secs_f64() - asked.as_secs_f64()) * 1e3)
        .collect();
    let counters = plane.remove_rule(rule).expect("removed").expect("in force");
    let arrived = errors.len();
    let errors = Sample::new(errors);
    let (p99, p50) = (errors.quantile(0.99), errors.median());
    let beside =
        format!("p50 {p50:+.3} ms, least {:+.3} ms{}", errors.quantile(0.0), losses(packets, arrived, &counters));
    table.row(
        &format!("{ms} ms at {}: p99 of the error", pace.what),
        p99,
        &format!("{p99:+.3} ms"),
        &beside,
        pace.goal,
    );
}

fn losses(sent: usize, arrived: usize, counters: &Counters) -> String {
    let Counters { passed, overflowed, lost, .. } = counters;
    if arrived == sent && passed + overflowed + lost == 0 {
        return String::new();
    }
    format!("; {arrived} of {sent} arrived, {passed} and {overflowed} undelayed")
}

/// Sends numbered datagrams; gives when.
fn send(from: &UdpSocket, packets: usize, pace: Pace) -> Vec<Duration> {
    let begun = Instant::now();
    let (length, period) = pace.burst.unwrap_or((packets, Duration::ZERO));
    let mut sent = Vec::with_capacity(packets);
    for index in 0..packets {
        let at = period * (index / length) as u32 + pace.gap * (index % length) as u32;
        wait_until(begun + at);
        sent.push(now());
        from.send(&(index as u64).to_ne_bytes()).expect("sent");
    }
    sent
}

/// Sleeps, and is awake in time.
fn wait_until(at: Instant) {
    const EARLY: Duration = Duration::from_micros(200);
    let left = at.saturating_duration_since(Instant::now());
    if left > EARLY {
        std::thread::sleep(left - EARLY);
    }
    while Instant::now() < at {
        std::hint::spin_loop();
    }
}

/// The kernel gives times of arrival by this clock.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock that is set")
}
