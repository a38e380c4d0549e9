//! What the packet data plane costs, how exactly it delays, and how quickly it comes and goes.
//!
//! As a test it takes some seconds and sees that there is a table; `cargo xtask bench network` measures for minutes.
//! The binary has a `main` of its own because it also plays the guardian and the agents that are weighed and killed.

#[path = "../dataplane/arrivals.rs"]
mod arrivals;
mod bulk;
mod cost;
mod delay;
mod flood;
mod footprint;
mod reaction;
mod sample;
#[path = "../host/support.rs"]
#[allow(dead_code, reason = "shared with the other tests of the agent, which use all of it")]
mod support;
mod table;
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};

use table::Table;
use world::World;

/// File that takes the table; without it, this is the short test.
const FILE: &str = "FIREDRILL_BENCH_TABLE";
/// Measures little, so that it is soon over.
const QUICK: &str = "FIREDRILL_BENCH_QUICK";

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Pairs of blocks, one without and one with what is measured.
    pub rounds: usize,
    /// How long a block lasts.
    pub block: Duration,
    /// Numbers of rules of others.
    pub rules: &'static [usize],
    /// Packets of each delay that is measured.
    pub packets: usize,
    /// Faults that come and go, and processes that are killed.
    pub turns: usize,
}

const WHOLE: Extent = Extent {
    rounds: 40,
    block: Duration::from_millis(50),
    rules: &[1, 10, 100, 1_000, 10_000],
    packets: 10_000,
    turns: 30,
};

const SHORT: Extent = Extent { rounds: 2, block: Duration::from_millis(10), rules: &[1, 100], packets: 200, turns: 2 };

fn main() -> ExitCode {
    if let Some(code) = footprint::play() {
        return code;
    }
    let root = support::is_root();
    let test = Trial::test("a_benchmark_of_the_network_ends_in_a_table", || {
        a_benchmark_of_the_network_ends_in_a_table().map_err(Into::into)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![test.with_ignored_flag(!root)]).exit_code()
}

fn a_benchmark_of_the_network_ends_in_a_table() -> Result<(), String> {
    let file = std::env::var_os(FILE);
    let quick = file.is_none() || std::env::var_os(QUICK).is_some();
    let extent = if quick { SHORT } else { WHOLE };
    let begun = Instant::now();
    let world = World::new();
    let mut table = Table::default();
    cost::measure(&world, &extent, &mut table);
    delay::measure(&world, &extent, &mut table);
    bulk::measure(&world, &extent, &mut table);
    flood::measure(&world, &extent, &mut table);
    reaction::measure(&world, &extent, &mut table);
    footprint::measure(&world, &extent, &mut table);
    let text = table.markdown();
    println!("{text}\nmeasured in {:.0} s", begun.elapsed().as_secs_f64());
    if let Some(file) = file {
        std::fs::write(file, text).map_err(|e| format!("the table cannot be written: {e}"))?;
    }
    // Nothing is said of how good the figures are: a test must not depend on how busy the machine is.
    let missing = table.missing();
    if missing.is_empty() { Ok(()) } else { Err(format!("not measured: {missing:?}")) }
}
