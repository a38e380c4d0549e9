//! What becomes of more packets than a delay line can take.

use std::time::{Duration, Instant};

use firedrill_agent::dataplane::{Action, Direction, RuleSpec};

use crate::Extent;
use crate::support::Netns;
use crate::table::{Goal, Table};
use crate::world::{World, later};

/// Asked of the line.
const DELAY: Duration = Duration::from_millis(50);

pub fn measure(world: &World, extent: &Extent, table: &mut Table) {
    table.section(
        "More than a delay line can take",
        "Datagrams of 64 bytes as fast as one processor can through 50 ms. What the far interface got is compared with what the \
         receipt and the line's own totals say.",
    );
    let (near, _far) = world.sockets();
    let mut plane = world.plane_with_line();
    let rule = plane.add_rule(RuleSpec::egress(Action::delay(DELAY, Duration::ZERO), later())).expect("a rule");
    let before = received(&world.pair.b);
    let (begun, mut sent) = (Instant::now(), 0u64);
    while begun.elapsed() < extent.block * 40 {
        for _ in 0..64 {
            near.send(&[0; 64]).expect("the sender sees no error");
        }
        sent += 64;
    }
    let offered = sent as f64 / begun.elapsed().as_secs_f64() / 1e3;
    let counters = plane.remove_rule(rule).expect("removed").expect("in force");
    let totals = plane.delay_line_stop(world.ifindex, Direction::Egress).expect("stopped");
    let longest = counters.delays.max().unwrap_or_default().as_secs_f64();
    // The address resolution of the pair may add one or two of its own.
    let arrived = received(&world.pair.b).saturating_sub(before).min(sent);
    let known = arrived + totals.tap_full + counters.lost;
    let unknown = (sent.saturating_sub(known)) as f64;
    let undelayed = counters.passed + counters.overflowed + totals.refused;
    let beside = format!(
        "{offered:.0} kpps offered, {sent} in all: {arrived} arrived, {undelayed} of them undelayed; {} found the line full",
        totals.tap_full
    );
    table.row("packets of which nothing is known", unknown, &format!("{unknown:.0}"), &beside, Goal::AtMost(0.0));
    let beside = format!("p50 {:.3} s", counters.delays.quantile(0.5).unwrap_or_default().as_secs_f64());
    table.row("longest delay, 50 ms asked", longest, &format!("{longest:.3} s"), &beside, Goal::AtMost(1.0));
}

/// Packets that the far interface got: the second number of its line in /proc/net/dev.
fn received(netns: &Netns) -> u64 {
    let table = netns.within(|| std::fs::read_to_string("/proc/thread-self/net/dev")).expect("the table");
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix("vb:")).expect("the interface");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
