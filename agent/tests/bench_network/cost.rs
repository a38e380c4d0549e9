//! What traffic pays that no rule is for.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use firedrill_agent::dataplane::{Action, DataPlane, Direction, Loss, RuleId, RuleSpec};

use crate::Extent;
use crate::sample::{Sample, side_by_side};
use crate::table::{Goal, Table};
use crate::world::{DEVICE, World, later};

/// What a target can have (`firedrill_abi::RULES_PER_SCOPE`).
const FULL: usize = 64;

/// What becomes of one block of traffic.
struct Block {
    /// Datagrams a second that one processor sends.
    rate: f64,
    /// Round trips, microseconds.
    trips: Sample,
}

pub fn measure(world: &World, extent: &Extent, table: &mut Table) {
    table.section(
        "Traffic that no rule is for",
        "Datagrams of 64 bytes from one thread as fast as it can, by the second of processor time that it got, so that others on the \
         machine count little; and round trips one after another. Blocks without and with the programs attached both ways, in \
         turns. Ratio: with to without for packets, without to with for the time of a round trip, so that less than 1 is a loss.",
    );
    ratios(world, extent, table, "untouched against untouched", Goal::None, |_| None);
    for &count in extent.rules {
        let what = format!("{} of other targets", rules_in_words(count));
        ratios(world, extent, table, &what, Goal::AtLeast(0.98), |plane| Some(rules_of_others(plane, count)));
    }
    for count in [1, FULL] {
        let what = format!("{} of this namespace, for other ports", rules_in_words(count));
        ratios(world, extent, table, &what, Goal::None, |plane| Some(rules_of_this_namespace(plane, count)));
    }
}

fn rules_in_words(count: usize) -> String {
    if count == 1 { "1 rule".to_owned() } else { format!("{count} rules") }
}

/// Rules for sockets that no process here has.
fn rules_of_others(plane: &mut DataPlane, count: usize) -> Vec<RuleId> {
    let mut rules = Vec::with_capacity(count);
    while rules.len() < count {
        let tag = plane.allocate_tag();
        let here = FULL.min(count - rules.len());
        rules.extend((0..here).map(|_| plane.add_rule(RuleSpec { tag: Some(tag), ..partition() }).expect("a rule")));
    }
    rules
}

/// Rules that every packet is compared with.
fn rules_of_this_namespace(plane: &mut DataPlane, count: usize) -> Vec<RuleId> {
    let other = RuleSpec { peer_ports: vec![1..=1], ..partition() };
    (0..count).map(|_| plane.add_rule(other.clone()).expect("a rule")).collect()
}

fn partition() -> RuleSpec {
    RuleSpec { ingress: true, ..RuleSpec::egress(Action::Drop(Loss::Independent { probability: 1.0 }), later()) }
}

/// Rows for one sort of rules; `None`: nothing is ever attached, which shows how exact the figures are.
fn ratios(
    world: &World,
    extent: &Extent,
    table: &mut Table,
    what: &str,
    goal: Goal,
    rules: impl FnOnce(&mut DataPlane) -> Option<Vec<RuleId>>,
) {
    let mut plane = world.plane();
    let in_force = rules(&mut plane);
    let (near, far) = world.sockets();
    let echo = Echo::start(world);
    let blocks = side_by_side(extent.rounds, |with| {
        let attached = with && in_force.is_some();
        if attached {
            for direction in [Direction::Egress, Direction::Ingress] {
                plane.attach(world.ifindex, DEVICE, direction).expect("attached");
            }
        }
        let block = Block { rate: rate(&near, extent.block), trips: echo.trips(extent.block) };
        if attached {
            for direction in [Direction::Egress, Direction::Ingress] {
                plane.detach(world.ifindex, direction).expect("detached");
            }
        }
        block
    });
    drop(far);
    for rule in in_force.into_iter().flatten() {
        let counters = plane.remove_rule(rule).expect("removed").expect("in force");
        assert_eq!(counters.matched, 0, "the rule was for others");
    }
    let ratio = |of: &dyn Fn(&(Block, Block)) -> f64| Sample::new(blocks.iter().map(of).collect());
    let median = |of: &dyn Fn(&(Block, Block)) -> f64| ratio(of).median();
    let rates = ratio(&|(without, with)| with.rate / without.rate);
    let (untouched, touched) = (median(&|b| b.0.rate), median(&|b| b.1.rate));
    let beside = format!("{}; {:.0} of {:.0} kpps", rates.middle_half(), touched / 1e3, untouched / 1e3);
    row(table, &format!("packets/s, {what}"), &rates, &beside, goal);
    for (name, q) in [("median", 0.5), ("p99", 0.99)] {
        let trips = ratio(&|(without, with)| without.trips.quantile(q) / with.trips.quantile(q));
        let (untouched, touched) = (median(&|b| b.0.trips.quantile(q)), median(&|b| b.1.trips.quantile(q)));
        let beside = format!("{}; {touched:.1} against {untouched:.1} µs", trips.middle_half());
        row(table, &format!("round trip, {name}, {what}"), &trips, &beside, goal);
    }
}

fn row(table: &mut Table, what: &str, ratios: &Sample, beside: &str, goal: Goal) {
    table.row(what, ratios.median(), &format!("{:.3}", ratios.median()), beside, goal);
}

/// Sends for a while. Nobody reads at the other end: what is lost there costs the same each time.
fn rate(from: &UdpSocket, block: Duration) -> f64 {
    let (begun, mut sent) = (Instant::now(), 0u32);
    let before = processor_time();
    while begun.elapsed() < block {
        for _ in 0..64 {
            from.send(&[0; 64]).expect("sent");
        }
        sent += 64;
    }
    f64::from(sent) / (processor_time() - before).as_secs_f64()
}

/// What this thread got so far: the first number of its `schedstat`, nanoseconds.
fn processor_time() -> Duration {
    // The kernel adds up when it looks for another thread.
    std::thread::yield_now();
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts");
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number"))
}

/// Somebody who answers at the far end; ends with its socket's last question.
struct Echo {
    near: UdpSocket,
}

/// The question that ends it.
const END: &[u8] = b"end";

impl Echo {
    fn start(world: &World) -> Self {
        let (near, far) = world.sockets();
        near.set_read_timeout(Some(Duration::from_secs(2))).expect("a time-out");
        far.set_read_timeout(None).expect("no time-out");
        std::thread::spawn(move || {
            let mut question = [0; 64];
            while let Ok((len, from)) = far.recv_from(&mut question)
                && question[..len] != *END
            {
                let _ = far.send_to(&question[..len], from);
            }
        });
        Self { near }
    }

    /// Asks and waits for the answer, over and over.
    fn trips(&self, block: Duration) -> Sample {
        let (begun, mut trips) = (Instant::now(), Vec::new());
        let mut answer = [0; 64];
        while begun.elapsed() < block {
            let asked = Instant::now();
            self.near.send(&[1; 32]).expect("sent");
            self.near.recv(&mut answer).expect("an answer");
            trips.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        Sample::new(trips)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.near.send(END);
    }
}
