//! How much goes through a delay: one TCP stream.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use firedrill_agent::dataplane::{Action, RuleSpec};

use crate::Extent;
use crate::sample::{Sample, side_by_side};
use crate::table::{Goal, Table};
use crate::world::{FAR, World, later};

/// A stream is left alone for so many blocks before it is measured for as many.
const WARM: u32 = 30;

pub fn measure(world: &World, extent: &Extent, table: &mut Table) {
    table.section(
        "Bulk TCP through a delay",
        "One stream; a new connection for each block, warm before it is measured; blocks without and with the delay in turns. \
         Both ends may have 256 MiB under way.",
    );
    for netns in [&world.pair.a, &world.pair.b] {
        netns.within(|| {
            for setting in ["tcp_rmem", "tcp_wmem"] {
                let most = 256 << 20;
                std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), format!("4096 131072 {most}"))
                    .expect("written");
            }
        });
    }
    for ms in [10, 50] {
        let mut plane = world.plane_with_line();
        let blocks = side_by_side(extent.rounds.div_ceil(8), |with| {
            let delay = Action::delay(Duration::from_millis(ms), Duration::ZERO);
            let rule = with.then(|| plane.add_rule(RuleSpec::egress(delay, later())).expect("a rule"));
            let rate = gigabits(world, extent.block * WARM);
            if let Some(rule) = rule {
                let counters = plane.remove_rule(rule).expect("removed").expect("in force");
                assert!(counters.delays.count() > 0, "it went through the line");
            }
            rate
        });
        let ratios = Sample::new(blocks.iter().map(|(without, with)| with / without).collect());
        let untouched = Sample::new(blocks.iter().map(|(without, _)| *without).collect()).median();
        let delayed = Sample::new(blocks.iter().map(|(_, with)| *with).collect()).median();
        let beside = format!("{}; {delayed:.1} of {untouched:.1} Gbit/s", ratios.middle_half());
        let shown = format!("{:.3}", ratios.median());
        table.row(&format!("{ms} ms: ratio to untouched"), ratios.median(), &shown, &beside, Goal::AtLeast(0.9));
    }
}

/// What arrives of one stream after it had time to become as fast as it gets.
fn gigabits(world: &World, block: Duration) -> f64 {
    let listener = world.pair.b.within(|| TcpListener::bind((FAR, 0))).expect("bound");
    let at = listener.local_addr().expect("bound");
    let (over, received) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut buffer = vec![0; 1 << 20];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                received.fetch_add(len as u64, Relaxed);
            }
        });
        let stream = world.pair.a.within(|| TcpStream::connect(at)).expect("connected");
        stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a time-out");
        scope.spawn(|| {
            let mut stream = stream;
            let buffer = vec![7; 1 << 20];
            while !over.load(Relaxed) {
                let _ = stream.write(&buffer);
            }
        });
        std::thread::sleep(block);
        let (before, begun) = (received.load(Relaxed), Instant::now());
        std::thread::sleep(block);
        let bytes = received.load(Relaxed) - before;
        let took = begun.elapsed();
        over.store(true, Relaxed);
        bytes as f64 * 8.0 / took.as_secs_f64() / 1e9
    })
}
