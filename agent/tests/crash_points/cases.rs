//! Which deaths are tried.
//!
//! Points between which nothing is changed find the host in the same *state*: a journal is written, and right after it,
//! before the next call, nothing is different. One death in each state is enough, at a point of it that is drawn. With
//! [`ALL`] one dies at every point.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use firedrill_agent::guardian::AGENT_DEAD;
use firedrill_model::fault::Fault;

use crate::deaths::{Death, live, try_one};
use crate::parts::{NOT_FOR_THIS_TARGET, Orders};
use crate::samples;
use crate::support::in_guest;
use crate::table::{Row, Table};
use crate::units::Units;
use crate::world::{Point, World};

/// Seconds of deaths; those that do not fit in are left out, and the table says so, but for one of each fault on each target. The
/// order is drawn, so each run leaves out others. There is no limit with [`ALL`].
const BUDGET: &str = "FIREDRILL_CRASH_BUDGET";
/// The budget otherwise: less than the test command allows a binary, by what is left to do at its end.
const USUAL_BUDGET: Duration = Duration::from_secs(420);
/// The budget in guests, where a death takes many times as long.
const BUDGET_IN_GUESTS: Duration = Duration::from_secs(240);
/// Set to try every point of the agent, and for each every point of its guardian's recovery, however long that takes.
const ALL: &str = "FIREDRILL_CRASH_ALL";
/// Name of the only fault to try, or `stage`, or `guardian`.
const ONLY: &str = "FIREDRILL_CRASH_ONLY";
/// Seed of what is drawn.
const SEED: &str = "FIREDRILL_CRASH_SEED";
/// How many deaths are tried at a time: a worker waits as long as it works. Units are changed one after the other.
const WORKERS: usize = 4;

/// What an agent does, who dies, and the points that it passes.
pub struct Scenario {
    /// What stands in the table.
    pub name: String,
    pub sort: &'static str,
    /// Whether the guardian dies, and its agent goes on.
    of_guardian: bool,
    fault: Option<Fault>,
    /// The points that are passed, counted from 1, by the state that they see.
    states: Vec<Vec<u64>>,
}

impl Scenario {
    pub fn orders(&self, world: &World) -> Orders {
        match &self.fault {
            None => Orders { stage: world.ground.stage().unwrap_or_default(), ..world.orders() },
            Some(fault) => Orders {
                fault: Some((world.ground.target(self.sort), fault.clone())),
                hold: world.ground.hold(self.sort),
                ..world.orders()
            },
        }
    }

    /// A death at one of its points; `then`: the guardian's at one of its own, later.
    fn death(&self, point: u64, then: Option<u64>) -> Death {
        match (self.of_guardian, then) {
            (true, _) => Death::Guardian(point),
            (false, None) => Death::Agent(point),
            (false, Some(later)) => Death::Both(point, later),
        }
    }
}

/// A death in a scenario.
#[derive(Clone, Copy)]
struct Case {
    scenario: usize,
    state: usize,
    point: u64,
}

pub fn the_host_is_clean_wherever_an_agent_its_guardian_or_the_recovery_dies() -> Result<(), String> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let all = std::env::var_os(ALL).is_some();
    let usual = if in_guest() { BUDGET_IN_GUESTS } else { USUAL_BUDGET };
    let budget = (!all).then(|| number(BUDGET).map_or(usual, Duration::from_secs));
    let seed = number(SEED).unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}: {SEED}={seed} draws the same again");
    let mut draw = Draw(seed);

    let mut first = World::new();
    let scenarios = scenarios(&mut first)?;
    let begun = Instant::now();
    let cases = cases(&scenarios, all, &mut draw);
    let rows = scenarios.iter().map(|s| Row::new(&s.name, s.sort, s.states.iter().map(Vec::len).sum(), s.states.len()));
    let table = Mutex::new(Table::new(seed, all, rows.collect()));
    let queue: Mutex<VecDeque<(Case, u64)>> = Mutex::new(cases.into_iter().map(|case| (case, draw.next())).collect());
    // The queue begins with one of each scenario; on however slow a machine, those are tried.
    let optional = lock(&queue).len().saturating_sub(scenarios.len());

    let work = |mut world: World| {
        loop {
            let next = {
                let mut queue = lock(&queue);
                let in_time = budget.is_none_or(|budget| begun.elapsed() < budget);
                if in_time || queue.len() > optional { queue.pop_front() } else { None }
            };
            let Some((case, drawn)) = next else { return };
            let ran = |time| lock(&table).rows[case.scenario].ran(case.state, time);
            if let Err(wrong) = try_all_of(&mut world, &scenarios[case.scenario], case.point, drawn, all, ran) {
                lock(&table).rows[case.scenario].survivors.push(wrong);
                // Whatever is wrong with this one must not be found again.
                world = World::new();
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..if Units::are_wanted() { 1 } else { WORKERS } {
            scope.spawn(|| work(World::new()));
        }
        work(first);
    });
    let table = table.into_inner().unwrap_or_else(PoisonError::into_inner);
    table.finish(begun.elapsed())
}

/// A point of every state of every scenario, or all points, in an order that is drawn, such that any beginning of it has
/// its share of each.
fn cases(scenarios: &[Scenario], all: bool, draw: &mut Draw) -> Vec<Case> {
    let mut cases = Vec::new();
    for (scenario, of) in scenarios.iter().enumerate() {
        let mut own = Vec::new();
        for (state, points) in of.states.iter().enumerate() {
            let drawn = draw.below(points.len() as u64) as usize;
            let chosen = if all { &points[..] } else { &points[drawn..=drawn] };
            own.extend(chosen.iter().map(|&point| Case { scenario, state, point }));
        }
        for i in (1..own.len()).rev() {
            own.swap(i, draw.below(i as u64 + 1) as usize);
        }
        let count = own.len() as f64;
        cases.extend(own.into_iter().enumerate().map(|(rank, case)| (rank as f64 / count, case)));
    }
    cases.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    cases.into_iter().map(|(_, case)| case).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The guardian's own life, the stage, and every fault on every sort of target that it can act on: each lived through
/// once.
fn scenarios(world: &mut World) -> Result<Vec<Scenario>, String> {
    let only = std::env::var(ONLY).ok();
    let is_wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let mut found = Vec::new();
    if world.ground.stage().is_some() {
        let of = |name: &str, of_guardian| Scenario {
            name: name.to_owned(),
            sort: "-",
            of_guardian,
            fault: None,
            states: Vec::new(),
        };
        for scenario in [of("guardian", true), of("stage", false)].into_iter().filter(|s| is_wanted(&s.name)) {
            found.extend(lived_through(world, scenario)?);
        }
    }
    let faults = samples::faults()?;
    for fault in faults.iter().filter(|fault| is_wanted(fault.name())) {
        let name = samples::label(fault, &faults);
        let mut sorts = Vec::new();
        for &sort in world.ground.sorts() {
            if !world.ground.is_tried(fault, sort, &sorts) {
                continue;
            }
            let (name, fault) = (name.clone(), Some(fault.clone()));
            let scenario = Scenario { name, sort, of_guardian: false, fault, states: Vec::new() };
            if let Some(scenario) = lived_through(world, scenario)? {
                sorts.push(sort);
                found.push(scenario);
            }
        }
        if sorts.is_empty() {
            let sorts = world.ground.sorts();
            return Err(format!("`{name}` acts on none of {sorts:?}: make a target here that it acts on"));
        }
    }
    Ok(found)
}

/// The scenario with the points that are passed when nobody dies; `None` when the fault cannot act on such a target.
fn lived_through(world: &mut World, scenario: Scenario) -> Result<Option<Scenario>, String> {
    world.refresh();
    let (status, said) = live(world, &scenario.orders(world), "");
    match status.and_then(|status| status.code()) {
        Some(0) => {
            let states = states(&world.passed(if scenario.of_guardian { "guardian" } else { "agent" }));
            let left = world.left();
            if !left.is_empty() {
                return Err(format!("{} on {} without a death leaves {left:?}", scenario.name, scenario.sort));
            }
            Ok(Some(Scenario { states, ..scenario }))
        }
        Some(code) if code == i32::from(NOT_FOR_THIS_TARGET) => Ok(None),
        _ => Err(format!("{} on {}: {status:?}: {said}", scenario.name, scenario.sort)),
    }
}

/// The numbers of the points, by the state that they see.
fn states(passed: &[Point]) -> Vec<Vec<u64>> {
    let mut numbers = 1..;
    let same = passed.chunk_by(|a, b| a.changes == b.changes);
    same.map(|points| numbers.by_ref().take(points.len()).collect()).collect()
}

/// The agent dies at a point and its guardian clears up; then again, and the guardian dies, too, at one of the points
/// of its recovery (or at each), and a second recovery clears up.
fn try_all_of(
    world: &mut World,
    scenario: &Scenario,
    point: u64,
    drawn: u64,
    all: bool,
    mut ran: impl FnMut(Duration),
) -> Result<(), String> {
    ran(try_one(world, scenario, scenario.death(point, None))?);
    let passed = world.passed("guardian");
    // Those of its start come before; without a death of the agent there are no others.
    let Some(start) = passed.iter().position(|point| point.name == AGENT_DEAD) else { return Ok(()) };
    let (start, count) = (start as u64, (passed.len() - start) as u64);
    let deaths = if all { 0..count } else { drawn % count..drawn % count + 1 };
    for nth in deaths {
        ran(try_one(world, scenario, scenario.death(point, Some(start + nth + 1)))?);
    }
    Ok(())
}

/// SplitMix64: small, and the same everywhere.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
