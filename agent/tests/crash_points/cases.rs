//! Which deaths are tried, and what happens after each.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use firedrill_agent::host::{self, process, wait_until};
use firedrill_agent::owner::{Holder, Owner};
use firedrill_agent::recover;
use firedrill_model::fault::Fault;
use nix::sys::signal::Signal;

use crate::parts::{NOT_FOR_THIS_TARGET, Orders};
use crate::samples;
use crate::support::in_guest;
use crate::table::{Row, Table};
use crate::world::{REPLICA, TARGETS, World};

/// Seconds of deaths; those that do not fit in are left out. The order is drawn, so each run leaves out others.
const BUDGET: &str = "FIREDRILL_CRASH_BUDGET";
/// Set to try every point of every recovery as well, however long that takes.
const ALL: &str = "FIREDRILL_CRASH_ALL";
/// Name of the only fault to try, or `stage`.
const ONLY: &str = "FIREDRILL_CRASH_ONLY";
/// Seed of what is drawn.
const SEED: &str = "FIREDRILL_CRASH_SEED";
/// The longest that an agent of these tests, or what it leaves to a guardian, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an agent does, and the points that it passes.
struct Scenario {
    fault: Option<Fault>,
    sort: &'static str,
    points: Vec<String>,
}

impl Scenario {
    fn orders(&self, world: &World) -> Orders {
        match &self.fault {
            None => Orders { stage: world.stage(), ..world.orders() },
            Some(fault) => Orders { fault: Some((world.target(self.sort), fault.clone())), ..world.orders() },
        }
    }

    fn name(&self) -> &'static str {
        name_of(self.fault.as_ref())
    }
}

fn name_of(fault: Option<&Fault>) -> &'static str {
    fault.map_or("stage", Fault::name)
}

/// A death: of the agent of a scenario at one of its points.
#[derive(Clone, Copy)]
struct Case {
    scenario: usize,
    point: u64,
}

pub fn the_host_is_clean_wherever_an_agent_its_guardian_or_the_recovery_dies() -> Result<(), String> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let all = std::env::var_os(ALL).is_some();
    let budget = (!all).then(|| Duration::from_secs(number(BUDGET).unwrap_or(if in_guest() { 240 } else { 150 })));
    let seed = number(SEED).unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}: {SEED}={seed} draws the same again");
    let mut draw = Draw(seed);

    let mut first = World::new();
    let scenarios = scenarios(&mut first)?;
    let begun = Instant::now();
    let cases = cases(&scenarios, &mut draw);
    let rows =
        scenarios.iter().map(|s| Row::new(s.name(), if s.fault.is_some() { s.sort } else { "-" }, s.points.len()));
    let table = Mutex::new(Table::new(seed, all, rows.collect()));
    let queue: Mutex<VecDeque<(Case, u64)>> = Mutex::new(cases.into_iter().map(|case| (case, draw.next())).collect());

    let work = |mut world: World| {
        while budget.is_none_or(|budget| begun.elapsed() < budget) {
            let Some((case, drawn)) = lock(&queue).pop_front() else { return };
            let scenario = &scenarios[case.scenario];
            for line in try_all_of(&mut world, scenario, case, drawn, all, |time| {
                lock(&table).rows[case.scenario].ran(case.point, time);
            }) {
                lock(&table).rows[case.scenario].survivors.push(line);
                // Whatever is wrong with this one must not be found again.
                world = World::new();
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| work(World::new()));
        work(first);
    });
    let table = table.into_inner().unwrap_or_else(PoisonError::into_inner);
    table.finish(begun.elapsed())
}

/// Every point of every scenario, in an order that is drawn, such that any beginning of it has its share of each.
fn cases(scenarios: &[Scenario], draw: &mut Draw) -> Vec<Case> {
    let mut cases = Vec::new();
    for (scenario, of) in scenarios.iter().enumerate() {
        let mut points: Vec<u64> = (1..=of.points.len() as u64).collect();
        for i in (1..points.len()).rev() {
            points.swap(i, draw.below(i as u64 + 1) as usize);
        }
        let share = |rank: usize| (rank as f64) / (of.points.len() as f64);
        cases.extend(points.into_iter().enumerate().map(|(rank, point)| (share(rank), Case { scenario, point })));
    }
    cases.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    cases.into_iter().map(|(_, case)| case).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stage, and every fault on every sort of target that it can act on, each lived through once.
fn scenarios(world: &mut World) -> Result<Vec<Scenario>, String> {
    let mut found = Vec::new();
    let faults: Vec<Option<Fault>> = std::iter::once(None).chain(samples::faults()?.into_iter().map(Some)).collect();
    let only = std::env::var(ONLY).ok();
    let wanted = |fault: &Option<Fault>| only.as_deref().is_none_or(|only| only == name_of(fault.as_ref()));
    for fault in faults.into_iter().filter(wanted) {
        let before = found.len();
        for sort in TARGETS {
            if sort == REPLICA && found.len() > before {
                continue;
            }
            let mut scenario = Scenario { fault: fault.clone(), sort, points: Vec::new() };
            world.refresh();
            let (status, said) = live(world, &scenario.orders(world), "");
            match status.and_then(|status| status.code()) {
                Some(0) => {
                    scenario.points = world.passed("agent");
                    let left = world.left();
                    if !left.is_empty() {
                        return Err(format!("{} without a death leaves {left:?}", scenario.name()));
                    }
                    found.push(scenario);
                }
                Some(code) if code == i32::from(NOT_FOR_THIS_TARGET) => {}
                _ => return Err(format!("{} on {sort}: {status:?}: {said}", scenario.name())),
            }
            if fault.is_none() {
                break;
            }
        }
        if found.len() == before {
            let name = name_of(fault.as_ref());
            return Err(format!("`{name}` acts on none of {TARGETS:?}: make one that it acts on"));
        }
    }
    Ok(found)
}

/// Runs an agent to its end; `None` when it had to be ended.
fn live(world: &World, orders: &Orders, at: &str) -> (Option<ExitStatus>, String) {
    let path = world.folder.0.join("said");
    let said = File::create(&path).expect("a file");
    let mut child =
        world.agent(orders, at).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().expect("an agent");
    let mut status = None;
    wait_until(PATIENCE, || {
        status = child.try_wait().expect("ours");
        status.is_some()
    });
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    (status, fs::read_to_string(&path).unwrap_or_default())
}

/// The agent dies at a point and its guardian clears up; then again, and the guardian dies, too, at one of the points
/// that it has passed (or at each), and a recovery clears up. Gives what is wrong.
fn try_all_of(
    world: &mut World,
    scenario: &Scenario,
    case: Case,
    drawn: u64,
    all: bool,
    mut ran: impl FnMut(Duration),
) -> Vec<String> {
    match try_one(world, scenario, case.point, None) {
        Ok(time) => ran(time),
        Err(wrong) => return vec![wrong],
    }
    let passed = world.passed("guardian").len() as u64;
    let deaths = match passed {
        0 => 0..0,
        _ if all => 1..passed + 1,
        _ => drawn % passed + 1..drawn % passed + 2,
    };
    for point in deaths {
        match try_one(world, scenario, case.point, Some(point)) {
            Ok(time) => ran(time),
            Err(wrong) => return vec![wrong],
        }
    }
    Vec::new()
}

/// One death, or two. Gives how long the clearing up took.
fn try_one(world: &mut World, scenario: &Scenario, point: u64, guardian: Option<u64>) -> Result<Duration, String> {
    world.refresh();
    let at = guardian.map_or_else(|| format!("agent:{point}"), |k| format!("agent:{point},guardian:{k}"));
    let what = || {
        let name = scenario.points.get(point as usize - 1).map_or("?", String::as_str);
        let then = guardian.map(|k| format!(", its guardian at its {k}. ({:?})", world.passed("guardian").last()));
        format!(
            "{} on {}, the agent killed at its {point}. point ({name}){}",
            scenario.name(),
            scenario.sort,
            then.unwrap_or_default()
        )
    };
    let (status, said) = live(world, &scenario.orders(world), &at);
    let died = Instant::now();
    if status.and_then(|status| status.signal()) != Some(Signal::SIGKILL as i32) {
        return Err(format!("{}: it did not die there: {status:?}: {said}", what()));
    }
    if let Some(pid) = world.guardian() {
        let gone = || process::stat(pid).map_or(true, |stat| stat.state == 'Z');
        if !wait_until(PATIENCE, gone) {
            return Err(format!("{}: the guardian does not end", what()));
        }
    }
    let mut time = died.elapsed();
    let directories = world.folder.directories();
    if guardian.is_some() {
        let begun = Instant::now();
        let holder = Holder::clearing_up("a recovery");
        let owner = Owner::take(&directories.run, &holder, Duration::from_secs(2));
        let owner = owner.map_err(|e| format!("{}: {e}", what()))?;
        let recovery = recover::recover(&directories, &host::facts().boot_id);
        time = begun.elapsed();
        drop(owner);
        if !recovery.left.is_empty() {
            return Err(format!("{}: the recovery leaves {:?}", what(), recovery.left));
        }
    }
    let left = world.left();
    if left.is_empty() { Ok(time) } else { Err(format!("{}: left {left:?}", what())) }
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
