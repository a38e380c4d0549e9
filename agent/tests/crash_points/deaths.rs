//! One death, or two, and what happens after.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use firedrill_agent::host::{self, process, wait_until};
use firedrill_agent::owner::{Holder, Owner};
use firedrill_agent::recover;
use nix::sys::signal::Signal;

use crate::cases::Scenario;
use crate::parts::Orders;
use crate::world::World;

/// The longest that an agent of these tests, or what it leaves to a guardian, may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a death is tried that does not come, because this time somebody had to look once less.
const TRIES: usize = 3;

/// Who dies at which of its points, counted from 1.
#[derive(Clone, Copy, Debug)]
pub enum Death {
    /// The agent; its guardian clears up.
    Agent(u64),
    /// The agent, and then its guardian; a second recovery clears up.
    Both(u64, u64),
    /// The guardian; its agent undoes everything by itself.
    Guardian(u64),
}

impl Death {
    fn at(self) -> String {
        match self {
            Self::Agent(point) => format!("agent:{point}"),
            Self::Both(point, later) => format!("agent:{point},guardian:{later}"),
            Self::Guardian(point) => format!("guardian:{point}"),
        }
    }

    /// How often agent and guardian have passed a point when all have died who shall.
    fn is_done(self, world: &World) -> bool {
        let passed = |role| world.passed(role).len() as u64;
        match self {
            Self::Agent(point) => passed("agent") == point,
            Self::Both(point, later) => passed("agent") == point && passed("guardian") == later,
            Self::Guardian(point) => passed("guardian") == point,
        }
    }
}

/// Runs an agent to its end; `None` when it had to be ended.
pub fn live(world: &World, orders: &Orders, at: &str) -> (Option<ExitStatus>, String) {
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

/// One death, or two. Gives how long the clearing up took.
pub fn try_one(world: &mut World, scenario: &Scenario, death: Death) -> Result<Duration, String> {
    let mut time = Duration::ZERO;
    for _ in 0..TRIES {
        world.refresh();
        time = die(world, scenario, death).map_err(|wrong| {
            let last = |role| world.passed(role).pop().map_or("nothing".into(), |point| point.name);
            let at = format!("`{}` of the agent, `{}` of the guardian", last("agent"), last("guardian"));
            format!("{} on {}, {death:?} (last: {at}): {wrong}", scenario.name, scenario.sort)
        })?;
        if death.is_done(world) {
            return Ok(time);
        }
    }
    Err(format!("{} on {}: {death:?} does not come (clean after {time:?})", scenario.name, scenario.sort))
}

fn die(world: &World, scenario: &Scenario, death: Death) -> Result<Duration, String> {
    let (status, said) = live(world, &scenario.orders(world), &death.at());
    let begun = Instant::now();
    let killed = status.and_then(|status| status.signal()) == Some(Signal::SIGKILL as i32);
    let well = match death {
        // It may give up without a guardian, but in order.
        Death::Guardian(_) => status.is_some_and(|status| status.code().is_some()),
        Death::Agent(_) | Death::Both(..) => killed || status.is_some_and(|status| status.success()),
    };
    if !well {
        return Err(format!("the agent ended with {status:?}: {said}"));
    }
    // One that was just started says soon which process it is.
    let started = world.passed("agent").iter().any(|point| point.name == "guardian.start.after");
    if started && !wait_until(PATIENCE, || world.guardian().is_some()) {
        return Err("the guardian does not begin".into());
    }
    if let Some(pid) = world.guardian() {
        let gone = || process::stat(pid).map_or(true, |stat| stat.state == 'Z');
        if !wait_until(PATIENCE, gone) {
            return Err("the guardian does not end".into());
        }
    }
    let mut time = begun.elapsed();
    if let Death::Both(..) = death {
        let begun = Instant::now();
        let directories = world.folder.directories();
        let owner = Owner::take(&directories.run, &Holder::clearing_up("a recovery"), Duration::from_secs(2));
        let owner = owner.map_err(|e| e.to_string())?;
        let recovery = recover::recover(&directories, &host::facts().boot_id);
        time = begun.elapsed();
        drop(owner);
        if !recovery.left.is_empty() {
            return Err(format!("the recovery leaves {:?}", recovery.left));
        }
    }
    let left = world.left();
    if left.is_empty() { Ok(time) } else { Err(format!("left {left:?}")) }
}
