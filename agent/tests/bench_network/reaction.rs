//! How long from a request to its effect on packets.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use firedrill_agent::agent::Agent;
use serde_json::json;

use crate::Extent;
use crate::sample::Sample;
use crate::support::{Folder, LONG, fault, options, target};
use crate::table::{Goal, Table};
use crate::world::{DEVICE, World, keep};

/// Between two datagrams: as exactly is it known when something begins.
const GAP: Duration = Duration::from_micros(30);
/// How long a state is watched.
const WATCHED: Duration = Duration::from_millis(25);

pub fn measure(world: &World, extent: &Extent, table: &mut Table) {
    table.section(
        "From a request to its effect",
        "A stream of datagrams, one every 30 µs; `loss` of all of them is injected and reverted through the agent, journal \
         and guardian included, while another fault is in force on the same namespace. Beside it, `tc` is started to add and \
         remove a qdisc that drops everything.",
    );
    let folder = Folder::new();
    let agent = Agent::start(options(&folder.directories(), "a benchmark")).expect("an agent");
    let found = agent.resolve(&target(world.pair.a.spec())).expect("the namespace");
    let other = fault("loss", json!({"percent": "100%", "protocol": "icmp"}));
    agent.inject(&found, &other, LONG * 10).expect("the fault that keeps the programs there");
    let loss = fault("loss", json!({"percent": "100%", "protocol": "udp"}));
    let mut in_force = None;
    let agents = reactions(world, extent.turns, |on| {
        agent.renew().expect("renewed");
        let asked = Instant::now();
        if on {
            in_force = Some(agent.inject(&found, &loss, LONG).expect("injected").id);
        } else if let Some(id) = in_force.take() {
            agent.revert(id).expect("in force");
        }
        asked
    });
    let left = agent.stop().left_over;
    assert!(left.is_empty(), "{left:?}");
    let qdisc = ["netem loss 100%", "blackhole"].into_iter().find(|qdisc| {
        let there = tc("add", qdisc, world).is_some();
        there && tc("del", "", world).is_some()
    });
    let processes = qdisc.map(|qdisc| {
        reactions(world, extent.turns, |on| {
            if on { tc("add", qdisc, world) } else { tc("del", "", world) }.expect("it worked before")
        })
    });
    for (at, what) in
        ["from request to the first lost packet", "from revert to the first that arrives"].iter().enumerate()
    {
        rows(table, what, "firedrill", &agents[at], Goal::AtMost(2.0));
        if let (Some(qdisc), Some(processes)) = (qdisc, &processes) {
            rows(table, what, &format!("`tc`, {qdisc}"), &processes[at], Goal::None);
        }
    }
}

fn rows(table: &mut Table, what: &str, by: &str, ms: &Sample, goal: Goal) {
    let beside = format!("p95 {:.2} ms, worst {:.2} ms, {} times", ms.quantile(0.95), ms.quantile(1.0), ms.len());
    table.row(&format!("{what}, {by}: median"), ms.median(), &format!("{:.2} ms", ms.median()), &beside, goal);
}

/// When `tc` was started, if it could do what it was told.
fn tc(verb: &str, qdisc: &str, world: &World) -> Option<Instant> {
    let mut command = Command::new("tc");
    command.args(["qdisc", verb, "dev", DEVICE, "root"]).args(qdisc.split_whitespace());
    command.stderr(Stdio::null());
    world.pair.a.within(|| {
        let begun = Instant::now();
        command.status().is_ok_and(|status| status.success()).then_some(begun)
    })
}

/// Switches something on and off beside a stream. Gives how long after the request it began, and ended (milliseconds).
fn reactions(world: &World, turns: usize, mut switch: impl FnMut(bool) -> Instant) -> [Sample; 2] {
    let (near, far) = world.sockets();
    keep(&far, 64 << 20);
    let over = AtomicBool::new(false);
    let (requests, sent, arrived) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut arrived, mut number) = (Vec::new(), [0; 8]);
            // While all is lost, nothing comes for a while.
            while !over.load(Relaxed) {
                while far.recv(&mut number).is_ok() {
                    arrived.push(u64::from_ne_bytes(number) as usize);
                }
            }
            arrived
        });
        let sender = scope.spawn(|| {
            let mut sent = Vec::new();
            while !over.load(Relaxed) {
                sent.push(Instant::now());
                near.send(&(sent.len() as u64 - 1).to_ne_bytes()).expect("sent");
                std::thread::sleep(GAP);
            }
            sent
        });
        let requests: Vec<[Instant; 2]> = (0..turns)
            .map(|_| {
                [true, false].map(|on| {
                    std::thread::sleep(WATCHED);
                    switch(on)
                })
            })
            .collect();
        std::thread::sleep(WATCHED);
        over.store(true, Relaxed);
        (requests, sender.join().expect("the sender"), receiver.join().expect("the receiver"))
    });
    let mut passed = vec![false; sent.len()];
    for number in arrived {
        passed[number] = true;
    }
    let first = |after: Instant, state: bool| {
        let from = sent.partition_point(|at| *at < after);
        let index = (from..sent.len()).find(|index| passed[*index] == state)?;
        Some((sent[index] - after).as_secs_f64() * 1e3)
    };
    let times = |which: usize, state| requests.iter().filter_map(|at| first(at[which], state)).collect();
    [Sample::new(times(0, false)), Sample::new(times(1, true))]
}
