//! This host: how each kind of change is made on it.

mod convert;
mod kill;
mod planes;
mod reset;

use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use firedrill_model::change::{Change, Victim, Way};
use firedrill_model::facts::{CgroupRef, HostFacts, Interface, NetnsRef, ProcessRef};
use firedrill_model::receipt::Measured;
use firedrill_model::units::Span;
use nix::libc;

use crate::calls::Calls;
use crate::dataplane::AttachMode;
use crate::engine::{ChangeError, Expiry, Host};
use crate::host::{cgroup, hooks, netns, process, systemd, wait_until};
use crate::proxy::Proxy;
use crate::target::Protected;
use crate::undo::{self, Undo, UndoError};
use crate::{crash_point, dataplane, stage, sysctl};
use kill::{KillWatch, Mercy};
use planes::{Planes, RuleExpiry, RuleHandle};
use reset::{Aim, Resets};

/// How long a state may take to be in force after it was asked for.
const STATE_PATIENCE: Duration = Duration::from_secs(5);
/// The longest that a user's own command may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// What is held while a change is in force.
pub enum Handle {
    /// Nothing: the host remembers.
    Nothing,
    /// A packet rule.
    Rule(RuleHandle),
    /// A rule on calls, by its number.
    Call(u32),
    /// A proxy, and the rule by which connections come to it.
    Proxy(u32, Proxy),
    /// A kill and its watch.
    Kill(KillWatch),
    /// A reset of connections.
    Reset(Resets),
    /// A state that is read back from time to time.
    State(Watched),
    /// A process of ours.
    Child(Child),
}

/// A state that was written: since when, and whether it was ever found not to be in force.
pub struct Watched {
    since: Instant,
    what: State,
    broken: Option<String>,
    last: String,
}

enum State {
    Frozen(CgroupRef),
    Suspended(ProcessRef),
    UnitDown(String),
    /// Our program is at an interface.
    Hooked {
        netns: NetnsRef,
        interface: Interface,
        way: Way,
        by_link: bool,
    },
    /// A user's command: its success is all that can be known.
    Done,
}

/// This host.
pub struct LocalHost {
    facts: HostFacts,
    protected: Protected,
    /// Shared with what moves the expiries of rules.
    planes: Arc<Mutex<Planes>>,
    calls: Arc<Mutex<Calls>>,
    log_directory: Option<PathBuf>,
    last_look: Instant,
}

impl LocalHost {
    /// This host. Processes of a stage write their output to files in `log_directory`.
    pub fn new(facts: HostFacts, protected: Protected, log_directory: Option<PathBuf>) -> Self {
        let mode = if facts.tcx { AttachMode::Tcx } else { AttachMode::Clsact };
        let planes = Arc::new(Mutex::new(Planes::new(mode)));
        Self { facts, protected, planes, calls: Arc::default(), log_directory, last_look: Instant::now() }
    }

    /// Replaces what is protected: there is another guardian.
    pub fn protect(&mut self, protected: Protected) {
        self.protected = protected;
    }
}

impl Host for LocalHost {
    type Handle = Handle;

    fn prepare(&mut self, change: &Change) -> Result<Undo, ChangeError> {
        crate::pulse::beat();
        let failed = || ChangeError::failed(change.to_string());
        Ok(match change {
            Change::Attach { netns, interface, direction } if !self.facts.tcx => {
                let has_clsact =
                    netns::within(netns, || dataplane::has_clsact(interface.index)).and_then(|r| r).map_err(failed())?;
                Undo::Clsact {
                    netns: netns.clone(),
                    index: interface.index,
                    name: interface.name.clone(),
                    way: Some(*direction),
                    had_clsact: has_clsact && !self.planes().has_own_hook(netns, interface),
                }
            }
            Change::Attach { netns, interface, direction } => Undo::Unlinked {
                netns: netns.clone(),
                index: interface.index,
                name: interface.name.clone(),
                way: *direction,
            },
            Change::Tag { .. }
            | Change::DelayLine { .. }
            | Change::Rule { .. }
            | Change::CallRule { .. }
            | Change::Proxy { .. } => Undo::DiesWithAgent,
            Change::Sysctl { netns, key, value } => Undo::Sysctl {
                netns: netns.clone(),
                key: key.clone(),
                old: sysctl::read(netns, key).map_err(failed())?,
                ours: value.clone(),
            },
            // Killed again and again, a unit runs into its limit of restarts, and would stay down for ever.
            Change::Kill { victim: Victim::Unit { unit, .. }, keep: true, .. } => Undo::Revive { unit: unit.clone() },
            Change::Kill { .. } => Undo::Irreversible("a kill is not undone; its supervisor brings it back".into()),
            Change::Reset { .. } => {
                Undo::Irreversible("connections are not brought back; applications connect again".into())
            }
            Change::Suspend { process } => {
                if process::is_stopped(process) {
                    return Err(taken(change, "somebody else has stopped it already"));
                }
                if !process::is_alive(process) {
                    return Err(gone(change));
                }
                Undo::Continue { process: process.clone() }
            }
            Change::Freeze { cgroup } => {
                if !cgroup::is_same(cgroup) {
                    return Err(gone(change));
                }
                if cgroup::freeze_value(cgroup).map_err(failed())? != "0" {
                    return Err(taken(change, "somebody else has frozen it already"));
                }
                Undo::Thaw { cgroup: cgroup.clone() }
            }
            Change::StopUnit { unit, triggers, dependents } => {
                Undo::StartUnit { unit: unit.clone(), triggers: triggers.clone(), dependents: dependents.clone() }
            }
            Change::Command { undo, .. } => {
                Undo::Command { argv: undo.clone(), directory: std::env::current_dir().map_err(failed())? }
            }
            Change::Netns { name } => {
                if netns::named(name).is_ok() {
                    return Err(taken(change, "there is a namespace of that name already"));
                }
                Undo::DeleteNetns { name: name.clone() }
            }
            Change::Veth { .. } => Undo::DiesWithAgent,
            Change::MakeCgroup { path } => {
                let path = cgroup::path_of(path).map_err(failed())?;
                if path.exists() {
                    return Err(taken(change, "there is a group of that name already"));
                }
                Undo::RemoveCgroup { path }
            }
            Change::Spawn { .. } => Undo::Irreversible("it ends with its cgroup".into()),
        })
    }

    fn apply(&mut self, change: &Change, expires: Instant) -> Result<Handle, ChangeError> {
        let failed = || ChangeError::failed(change.to_string());
        Ok(match change {
            Change::Attach { netns, interface, direction } => {
                self.planes().attach(netns, interface, *direction)?;
                let (netns, interface) = (netns.clone(), interface.clone());
                let hook = State::Hooked { netns, interface, way: *direction, by_link: self.facts.tcx };
                self.in_force(change, hook)?
            }
            Change::DelayLine { netns, interface, direction } => {
                self.planes().start_line(netns, interface, *direction)?;
                Handle::Nothing
            }
            Change::Tag { netns, sockets } => {
                self.planes().tag(netns, sockets)?;
                Handle::Nothing
            }
            Change::Rule { netns, rule } => Handle::Rule(self.planes().add_rule(netns, rule, expires)?),
            Change::CallRule { caller, rule } => {
                Handle::Call(self.calls().add(caller, rule, convert::kernel_time(expires))?)
            }
            Change::Proxy { netns, caller, filter, share, toxics } => {
                let mut calls = self.calls();
                let originals = calls.originals()?;
                let begun = Proxy::begin(netns, toxics.clone(), originals).map_err(failed()).and_then(|proxy| {
                    let to = (netns, proxy.listener);
                    let rule = calls.detour(caller, filter, *share, to, convert::kernel_time(expires))?;
                    Ok(Handle::Proxy(rule, proxy))
                });
                calls.unload_unused();
                begun?
            }
            Change::Sysctl { netns, key, value } => {
                sysctl::write(netns, key, value).map_err(failed())?;
                Handle::Nothing
            }
            Change::Kill { victim, signal, keep, allow } => {
                let mercy = Mercy { protected: self.protected.clone(), allow: allow.clone() };
                Handle::Kill(KillWatch::begin(victim, *signal, *keep, mercy).map_err(failed())?)
            }
            Change::Reset { netns, interface, sockets, filter, spare, every, allow } => {
                let aim = Aim {
                    netns: netns.clone(),
                    interface: interface.clone(),
                    sockets: sockets.clone(),
                    filter: filter.clone(),
                    spare: spare.clone(),
                    protected: self.protected.clone(),
                    allow: allow.clone(),
                };
                Handle::Reset(Resets::begin(aim, *every).map_err(failed())?)
            }
            Change::Suspend { process } => {
                if process::signal(process, libc::SIGSTOP).map_err(failed())? == process::Delivery::Gone {
                    return Err(gone(change));
                }
                self.in_force(change, State::Suspended(process.clone()))?
            }
            Change::Freeze { cgroup } => {
                cgroup::set_freeze(cgroup, "1").map_err(failed())?;
                self.in_force(change, State::Frozen(cgroup.clone()))?
            }
            // Those that depend on it are stopped by systemd.
            Change::StopUnit { unit, triggers, .. } => {
                for name in triggers.iter().chain([unit]) {
                    systemd::stop(name).map_err(failed())?;
                }
                self.in_force(change, State::UnitDown(unit.clone()))?
            }
            Change::Command { run, .. } => {
                undo::command(run, &std::env::current_dir().map_err(failed())?, COMMAND_PATIENCE).map_err(failed())?;
                self.in_force(change, State::Done)?
            }
            Change::Netns { name } => {
                stage::make_netns(name).map_err(|e| taken_or_failed(change, e))?;
                Handle::Nothing
            }
            Change::Veth { a, b } => {
                stage::join(a, b).map_err(failed())?;
                Handle::Nothing
            }
            Change::MakeCgroup { path } => {
                stage::make_cgroup(path).map_err(|e| taken_or_failed(change, e))?;
                Handle::Nothing
            }
            Change::Spawn { name, command, env, netns, cgroup, log } => {
                let file = log.as_ref().map(PathBuf::from);
                let file = file.or_else(|| self.log_directory.as_ref().map(|d| d.join(format!("{name}.log"))));
                let what = stage::Spawn { command, env, netns: netns.as_deref(), cgroup, log: file.as_deref() };
                Handle::Child(stage::spawn(&what).map_err(failed())?.0)
            }
        })
    }

    fn measure(&mut self, change: &Change, handle: &mut Handle) -> Option<Measured> {
        match (change, handle) {
            (_, Handle::Rule(rule)) => self.planes().count(rule).map(Measured::Packets),
            (_, Handle::Call(rule)) => self.calls().count(*rule).map(Measured::Calls),
            (_, Handle::Proxy(rule, proxy)) => {
                self.calls().count(*rule).map(|rule| Measured::Proxy(convert::proxied(rule, proxy.count())))
            }
            (_, Handle::Kill(watch)) => Some(Measured::Kill(watch.count())),
            (_, Handle::Reset(resets)) => Some(Measured::Reset(resets.count())),
            (_, Handle::State(watched)) => Some(watched.read_back()),
            _ => None,
        }
    }

    fn expiry(&self, handle: &Handle) -> Option<Box<dyn Expiry>> {
        match handle {
            Handle::Rule(rule) => Some(Box::new(RuleExpiry::new(rule, &self.planes))),
            Handle::Call(rule) | Handle::Proxy(rule, _) => {
                Some(Box::new(CallExpiry { rule: *rule, calls: Arc::downgrade(&self.calls) }))
            }
            _ => None,
        }
    }

    fn release(&mut self, change: &Change, handle: Handle) -> Result<Option<Measured>, ChangeError> {
        match (change, handle) {
            (_, Handle::Rule(rule)) => {
                return Ok(self.planes().remove_rule(rule)?.map(Measured::Packets));
            }
            (_, Handle::Call(rule)) => return Ok(self.calls().remove(rule)?.map(Measured::Calls)),
            (_, Handle::Proxy(rule, mut proxy)) => {
                // No new ones first; then those that it carries are reset.
                let ended = self.calls().remove(rule);
                let carried = proxy.end();
                return Ok(ended?.map(|rule| Measured::Proxy(convert::proxied(rule, carried))));
            }
            (_, Handle::Kill(mut watch)) => return Ok(Some(Measured::Kill(watch.end()))),
            (_, Handle::Reset(mut resets)) => return Ok(Some(Measured::Reset(resets.end()))),
            (Change::Attach { netns, interface, direction }, _) => {
                self.planes().detach(netns, interface, *direction)?
            }
            (Change::DelayLine { netns, interface, direction }, _) => {
                self.planes().stop_line(netns, interface, *direction)?;
            }
            (Change::Tag { netns, sockets }, _) => self.planes().untag(netns, sockets)?,
            (Change::Spawn { .. }, Handle::Child(mut child)) => {
                // Killed here as well as with its group, so that it is reaped and does not keep the group busy.
                let _ = crash_point::around("spawn.kill", || child.kill());
                child.wait().map_err(ChangeError::failed(format!("waiting for process {}", child.id())))?;
            }
            _ => {}
        }
        Ok(None)
    }

    fn undo(&mut self, undo: &Undo) -> Result<String, UndoError> {
        crate::pulse::beat();
        undo.revert()
    }

    fn tick(&mut self) {
        // New sockets and new interfaces of a target are found by looking, where the kernel does not tell us.
        const LOOK_EVERY: Duration = Duration::from_millis(500);
        self.planes().follow_ramps(Instant::now());
        if self.last_look.elapsed() >= LOOK_EVERY {
            self.last_look = Instant::now();
            self.planes().look_again();
            self.calls().look_again();
        }
    }
}

impl LocalHost {
    fn planes(&self) -> MutexGuard<'_, Planes> {
        self.planes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a state is in force, and watches it from then on.
    fn in_force(&self, change: &Change, what: State) -> Result<Handle, ChangeError> {
        let mut watched = Watched { since: Instant::now(), what, broken: None, last: String::new() };
        if wait_until(STATE_PATIENCE, || watched.look().0) {
            Ok(Handle::State(watched))
        } else {
            Err(ChangeError::NoEffect { what: change.to_string(), seen: watched.look().1 })
        }
    }
}

/// The expiry of a rule on calls in force. It keeps nothing in force itself.
struct CallExpiry {
    rule: u32,
    calls: Weak<Mutex<Calls>>,
}

impl Expiry for CallExpiry {
    fn move_to(&self, at: Instant) -> Result<bool, ChangeError> {
        let Some(calls) = self.calls.upgrade() else { return Ok(true) };
        let mut calls = match calls.try_lock() {
            Ok(calls) => calls,
            Err(TryLockError::Poisoned(calls)) => calls.into_inner(),
            // Called from within a call to them.
            Err(TryLockError::WouldBlock) => return Ok(false),
        };
        calls.set_expiry(self.rule, convert::kernel_time(at))?;
        Ok(true)
    }
}

impl Watched {
    fn look(&mut self) -> (bool, String) {
        match &self.what {
            State::Frozen(cgroup) => {
                if !cgroup::is_same(cgroup) {
                    return (false, "the group was removed, or removed and made anew".into());
                }
                let frozen = cgroup::is_frozen(cgroup);
                (frozen, format!("frozen {}", u8::from(frozen)))
            }
            State::Suspended(process) => {
                let letter = process::stat(process.pid).map(|s| s.state.to_string());
                (process::is_stopped(process), format!("state {}", letter.unwrap_or_else(|_| "gone".into())))
            }
            State::UnitDown(unit) => match systemd::active_state(unit) {
                Ok(state) => (matches!(state.as_str(), "inactive" | "failed"), state),
                Err(e) => (false, e.to_string()),
            },
            State::Hooked { netns, interface, way, by_link } => {
                let name = &interface.name;
                match hooks::is_in_place(netns, interface.index, name, *way, *by_link) {
                    Ok(Some(true)) => (true, format!("attached to {name} {way}")),
                    Ok(Some(false)) => (false, format!("somebody removed our program from {name} {way}")),
                    // Nothing passes there any more that it could miss.
                    Ok(None) => (true, format!("{name} has gone")),
                    Err(e) => (false, format!("whether our program is at {name} {way} cannot be seen: {e}")),
                }
            }
            State::Done => (true, "its command succeeded".into()),
        }
    }

    fn read_back(&mut self) -> Measured {
        let (in_force, seen) = self.look();
        if !in_force {
            self.broken.get_or_insert(seen.clone());
        }
        self.last = seen;
        Measured::State {
            in_force: self.broken.is_none(),
            seen: self.broken.clone().unwrap_or_else(|| self.last.clone()),
            held: Span(self.since.elapsed()),
        }
    }
}

fn taken(change: &Change, holder: &str) -> ChangeError {
    ChangeError::Taken { what: change.to_string(), holder: holder.to_owned() }
}

/// Somebody was faster between our look and our change: what is there is theirs.
fn taken_or_failed(change: &Change, error: std::io::Error) -> ChangeError {
    if error.kind() == std::io::ErrorKind::AlreadyExists {
        taken(change, "somebody else has just made it")
    } else {
        ChangeError::failed(change.to_string())(error)
    }
}

fn gone(change: &Change) -> ChangeError {
    ChangeError::failed(change.to_string())(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        "it is gone; its target was resolved a moment ago, so it has just ended or been replaced",
    ))
}
