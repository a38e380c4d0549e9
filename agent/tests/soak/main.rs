//! A long life: one agent applies and reverts every fault on every sort of target over and over, and nothing grows.
//!
//! The binary has a `main` of its own because it also plays the guardian and the victims.

#[path = "../crash_points/corner.rs"]
mod corner;
mod measure;
#[path = "../crash_points/parts.rs"]
#[allow(dead_code, reason = "shared with the crash points, which use all of it")]
mod parts;
#[path = "../crash_points/samples.rs"]
#[allow(dead_code, reason = "shared with the crash points, which use all of it")]
mod samples;
#[path = "../host/support.rs"]
#[allow(dead_code, reason = "shared with the other tests of the agent, which use all of it")]
mod support;
#[path = "../crash_points/units.rs"]
mod units;
#[path = "../crash_points/world.rs"]
#[allow(dead_code, reason = "shared with the crash points, which use all of it")]
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use firedrill_agent::agent::{Agent, InjectError};
use firedrill_agent::host::wait_until;
use firedrill_model::fault::Fault;
use libtest_mimic::{Arguments, Trial};

use measure::Measured;
use support::{SOON, in_guest};
use world::World;

/// How many cycles; each applies and reverts one fault.
const CYCLES: &str = "FIREDRILL_SOAK_CYCLES";
/// In the ordinary test.
const FEW: usize = 300;
/// In guests, where all takes many times as long.
const FEW_IN_GUESTS: usize = 60;
/// How often it is measured.
const SAMPLES: usize = 100;

fn main() -> ExitCode {
    if let Some(code) = parts::play() {
        return code;
    }
    let root = support::is_root();
    let test = Trial::test("an_agent_that_lives_long_holds_no_more_than_at_first", || {
        an_agent_that_lives_long_holds_no_more_than_at_first().map_err(Into::into)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![test.with_ignored_flag(!root)]).exit_code()
}

/// What a cycle applies: a fault on a sort of target, or the stage.
struct Turn(Option<(Fault, &'static str)>);

fn an_agent_that_lives_long_holds_no_more_than_at_first() -> Result<(), String> {
    let cycles = std::env::var(CYCLES).ok().and_then(|text| text.parse().ok());
    let cycles = cycles.unwrap_or(if in_guest() { FEW_IN_GUESTS } else { FEW });
    let mut world = World::new();
    world.refresh();
    let directories = world.folder.directories();
    let agent = Agent::start(support::options(&directories, "a soak")).map_err(|e| e.to_string())?;
    let turns = turns(&agent, &mut world)?;
    let mut measured = Measured::default();
    let begun = Instant::now();
    for cycle in 0..cycles {
        if cycle % (cycles / SAMPLES).max(1) == 0 {
            measured.take(cycle, &world, &directories)?;
        }
        if !apply_and_revert(&agent, &mut world, &turns[cycle % turns.len()])? {
            return Err(format!("in cycle {cycle} a target is not what it was"));
        }
        agent.renew()?;
    }
    measured.take(cycles, &world, &directories)?;
    let took = begun.elapsed();
    let farewell = agent.stop();
    drop(agent);
    println!("{cycles} cycles of {} faults on targets in {:.0} s", turns.len(), took.as_secs_f64());
    if !farewell.left_over.is_empty() {
        return Err(format!("left over: {:?}", farewell.left_over));
    }
    measured.finish(cycles, turns.len(), took)
}

/// The stage, and every fault on every sort of target that it can act on.
fn turns(agent: &Agent, world: &mut World) -> Result<Vec<Turn>, String> {
    let mut turns = vec![Turn(None)];
    for fault in samples::faults()? {
        let mut sorts = Vec::new();
        for &sort in world.ground.sorts() {
            if !world.ground.is_tried(&fault, sort, &sorts) {
                continue;
            }
            let turn = Turn(Some((fault.clone(), sort)));
            if apply_and_revert(agent, world, &turn)? {
                sorts.push(sort);
                turns.push(turn);
            }
        }
        if sorts.is_empty() {
            return Err(format!("`{}` acts on none of {:?}", fault.name(), world.ground.sorts()));
        }
    }
    Ok(turns)
}

/// Whether the fault can act on that target.
fn apply_and_revert(agent: &Agent, world: &mut World, turn: &Turn) -> Result<bool, String> {
    const LONG: Duration = Duration::from_secs(60);
    let injected = match &turn.0 {
        None => agent.apply(&world.ground.stage().unwrap_or_default(), LONG),
        Some((fault, sort)) => {
            // One that was killed in the cycle before may be seen alive for a moment.
            let mut found = Err(String::new());
            wait_until(SOON, || {
                world.ground.refresh();
                found = agent.resolve(&world.ground.target(sort)).map_err(|e| e.to_string());
                found.is_ok()
            });
            agent.inject(&found?, fault, LONG)
        }
    };
    match injected {
        Ok(injected) => {
            let ended = agent.revert(injected.id).ok_or("it had ended already")?;
            match ended.changes.into_iter().find_map(|change| change.error) {
                None => Ok(true),
                Some(error) => Err(error),
            }
        }
        Err(InjectError::Plan(_)) => Ok(false),
        Err(e) => Err(e.to_string()),
    }
}
