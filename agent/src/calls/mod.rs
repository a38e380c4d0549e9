//! Rules on system calls: connect(2), sendto(2) and bind(2) of chosen callers fail, or their connections go to a listener of ours.
//!
//! The programs are linked to the root of the control groups, so that each call meets its rules once, whatever groups its
//! caller is in; whoever has no rule goes on at once. They are loaded and linked with the first rule that needs them, and go
//! with the last. All of it ends with this process's descriptors, and a rule is ignored once it has expired.
//!
//! The control group and the process are those that make the call, and not those that made the socket.

mod originals;
mod rule;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use firedrill_abi::{CallCounters, CallRule as Encoded, Caller as Key, MAX_CALL_RULES, MAX_CALLERS};
use firedrill_model::change::{Call, CallRule, Caller, Filter, SocketOwner};
use firedrill_model::facts::NetnsRef;
use firedrill_model::receipt::{CallCount, Lost};
use firedrill_model::units::Percent;

use crate::crash_point;
use crate::dataplane::{DataPlaneError, loading, map_error};
use crate::host::{cgroup, netns, process};
use crate::proxy::Listener;
use crate::sys::bpf::{self, Shared};
use crate::sys::sockets;

pub use self::originals::Originals;

/// An error of the rules on calls.
#[derive(Debug, thiserror::Error)]
pub enum CallsError {
    /// The programs or their maps.
    #[error(transparent)]
    Programs(#[from] DataPlaneError),
    /// The rule cannot be expressed.
    #[error(transparent)]
    Rule(#[from] crate::dataplane::RuleError),
    /// The root of the control groups cannot be used.
    #[error(
        "the root of the control groups, where calls are seen: {0}; `bpftool cgroup tree` shows what is attached there"
    )]
    Root(String),
    /// The caller is not there, or cannot be known.
    #[error("rules on the calls of {caller}: {source}")]
    Caller {
        /// Whose calls.
        caller: String,
        /// Why.
        source: io::Error,
    },
    /// Everything is taken.
    #[error("all {0} rules on calls, or {MAX_CALLERS} callers, of this host are in use: end a fault")]
    Full(u32),
}

/// A hook: name of the program, `enum bpf_attach_type`.
type Hook = (&'static str, u32);

/// The hooks at which a call is seen.
fn hooks(call: Call) -> [Hook; 2] {
    match call {
        Call::Connect => [("fdrill_connect4", 10), ("fdrill_connect6", 11)],
        Call::Send => [("fdrill_send4", 14), ("fdrill_send6", 15)],
        Call::Bind => [("fdrill_bind4", 8), ("fdrill_bind6", 9)],
    }
}

/// The hooks of connections that go to a listener of ours: those of connect(2), and where their addresses are told.
fn hooks_of_detours() -> Vec<Hook> {
    let names = [("fdrill_peer4", 29), ("fdrill_peer6", 30), ("fdrill_name4", 31), ("fdrill_name6", 32)];
    names.into_iter().chain(hooks(Call::Connect)).collect()
}

/// The rules on calls that are in force on this host.
#[derive(Default)]
pub struct Calls {
    programs: Option<Programs>,
    rules: BTreeMap<u32, Active>,
}

/// A rule in force.
struct Active {
    caller: Caller,
    keys: Vec<Key>,
    hooks: Vec<Hook>,
    encoded: Encoded,
}

/// What is loaded while there are rules.
struct Programs {
    bpf: Ebpf,
    root: File,
    rules: HashMap<MapData, u32, Shared<Encoded>>,
    counters: PerCpuArray<MapData, Shared<CallCounters>>,
    callers: HashMap<MapData, Shared<Key>, u64>,
    /// What each caller has in the kernel.
    published: BTreeMap<Key, u64>,
    links: BTreeMap<u32, Linked>,
}

/// A program at its hook.
struct Linked {
    /// Held: it ends with this.
    _link: FdLink,
    program: u32,
}

impl Calls {
    /// Puts a rule in force; gives its number.
    ///
    /// # Errors
    /// The caller is gone, all numbers are taken, or the kernel refuses.
    pub fn add(&mut self, caller: &Caller, rule: &CallRule, expires_ns: u64) -> Result<u32, CallsError> {
        let encoded = rule::encode(rule, expires_ns)?;
        self.add_encoded(caller, encoded, rule.calls.iter().flat_map(|call| hooks(*call)).collect())
    }

    /// Has connections of a caller go to a listener, from now on; gives the number of the rule.
    ///
    /// # Errors
    /// As [`Calls::add`], or the namespace is gone.
    pub fn detour(
        &mut self,
        caller: &Caller,
        filter: &Filter,
        share: Percent,
        (netns, listener): (&NetnsRef, Listener),
        expires_ns: u64,
    ) -> Result<u32, CallsError> {
        let missing = |source| CallsError::Caller { caller: caller.to_string(), source };
        let mut encoded = rule::detour(filter, share, expires_ns)?;
        encoded.netns = cookie(netns).map_err(missing)?;
        (encoded.listener, encoded.exempt) = (listener.port.into(), listener.thread);
        self.add_encoded(caller, encoded, hooks_of_detours())
    }

    /// Where connections that go to listeners were to go. What is loaded for it goes with the last rule.
    ///
    /// # Errors
    /// The kernel refuses the programs.
    pub fn originals(&mut self) -> Result<Originals, CallsError> {
        Originals::of(&self.programs()?.bpf)
    }

    fn programs(&mut self) -> Result<&mut Programs, CallsError> {
        match &mut self.programs {
            Some(programs) => Ok(programs),
            none => Ok(none.insert(Programs::load()?)),
        }
    }

    fn add_encoded(&mut self, caller: &Caller, encoded: Encoded, hooks: Vec<Hook>) -> Result<u32, CallsError> {
        let keys = keys(caller).map_err(|source| CallsError::Caller { caller: caller.to_string(), source })?;
        let free = (0..MAX_CALL_RULES).find(|number| !self.rules.contains_key(number));
        let number = free.ok_or(CallsError::Full(MAX_CALL_RULES))?;
        self.programs()?;
        self.rules.insert(number, Active { caller: caller.clone(), keys, hooks, encoded });
        let added = self.begin(number);
        if added.is_err() {
            // The error that matters is the first one.
            let _ = self.remove(number);
        }
        added.map(|()| number)
    }

    fn begin(&mut self, number: u32) -> Result<(), CallsError> {
        let (Some(programs), Some(rule)) = (&mut self.programs, self.rules.get(&number)) else { return Ok(()) };
        for (name, hook) in &rule.hooks {
            programs.link(name, *hook)?;
        }
        programs.reset(number)?;
        programs.write(number, rule.encoded)?;
        self.publish()
    }

    /// Unloads what no rule needs.
    pub fn unload_unused(&mut self) {
        if self.rules.is_empty() && self.programs.is_some() {
            crash_point::around("calls.unload", || self.programs = None);
        }
    }

    /// Ends a rule, and gives what it did. `None`: it had ended before.
    ///
    /// # Errors
    /// A map refuses.
    pub fn remove(&mut self, number: u32) -> Result<Option<CallCount>, CallsError> {
        let count = self.count(number);
        let Some(ended) = self.rules.remove(&number) else { return Ok(None) };
        let published = self.publish();
        // What came between is counted.
        let last = self.matched(number);
        let mut removed = Ok(());
        if let Some(programs) = &mut self.programs {
            removed = programs.remove(number);
            let needed: BTreeSet<u32> =
                self.rules.values().flat_map(|rule| &rule.hooks).map(|(_, hook)| *hook).collect();
            programs.links.retain(|hook, _| needed.contains(hook) || crash_point::around("call.unlink", || false));
        }
        self.unload_unused();
        drop(ended);
        published.and(removed)?;
        Ok(count.map(|count| CallCount { matched: last.matched, failed: last.failed, ..count }))
    }

    /// Moves the time (`CLOCK_MONOTONIC`, nanoseconds) from which a rule is ignored.
    ///
    /// # Errors
    /// The map refuses.
    pub fn set_expiry(&mut self, number: u32, expires_ns: u64) -> Result<(), CallsError> {
        let (Some(programs), Some(rule)) = (&mut self.programs, self.rules.get_mut(&number)) else { return Ok(()) };
        rule.encoded.expires_ns = expires_ns;
        programs.write(number, rule.encoded)
    }

    /// What a rule has done so far.
    pub fn count(&self, number: u32) -> Option<CallCount> {
        let (programs, rule) = (self.programs.as_ref()?, self.rules.get(&number)?);
        let CallCounters { matched, failed } = self.matched(number);
        let removed = rule.hooks.iter().any(|(_, hook)| !programs.is_in_place(*hook));
        Some(CallCount { matched, failed, removed, lost: lost(&rule.caller).into_iter().collect() })
    }

    fn matched(&self, number: u32) -> CallCounters {
        let per_cpu = self.programs.as_ref().and_then(|programs| programs.counters.get(&number, 0).ok());
        per_cpu.iter().flat_map(|values| values.iter()).fold(CallCounters::default(), |sum, Shared(cpu)| CallCounters {
            matched: sum.matched + cpu.matched,
            failed: sum.failed + cpu.failed,
        })
    }

    /// Forgets processes that have ended: their numbers may be another's soon.
    pub fn look_again(&mut self) {
        let mut changed = false;
        for rule in self.rules.values_mut() {
            if let Caller::Owner(SocketOwner::Processes(list)) = &rule.caller {
                let dead = |key: &Key| !list.iter().any(|p| pid(p.pid) == key.id && process::is_alive(p));
                let before = rule.keys.len();
                rule.keys.retain(|key| !dead(key));
                changed |= rule.keys.len() < before;
            }
        }
        if changed && let Err(error) = self.publish() {
            tracing::warn!(%error, "a process whose calls were to fail has ended");
        }
    }

    /// Tells the kernel which rules each caller has.
    fn publish(&mut self) -> Result<(), CallsError> {
        let Some(programs) = &mut self.programs else { return Ok(()) };
        let mut wanted: BTreeMap<Key, u64> = BTreeMap::new();
        for (number, rule) in &self.rules {
            for key in &rule.keys {
                *wanted.entry(*key).or_default() |= 1 << number;
            }
        }
        if wanted.len() > MAX_CALLERS as usize {
            return Err(CallsError::Full(MAX_CALL_RULES));
        }
        programs.publish(wanted)
    }
}

impl Programs {
    fn load() -> Result<Self, CallsError> {
        let root = cgroup::mount_point().ok_or_else(|| CallsError::Root("no cgroup v2 hierarchy is mounted".into()))?;
        let root = File::open(&root).map_err(|error| CallsError::Root(error.to_string()))?;
        let mut bpf = crash_point::around("calls.load", loading::object)?;
        Ok(Self {
            rules: loading::take(&mut bpf, "CALL_RULES")?,
            counters: loading::take(&mut bpf, "CALL_COUNTERS")?,
            callers: loading::take(&mut bpf, "CALLERS")?,
            published: BTreeMap::new(),
            links: BTreeMap::new(),
            bpf,
            root,
        })
    }

    /// Links a program to its hook, unless it is there.
    fn link(&mut self, name: &'static str, hook: u32) -> Result<(), CallsError> {
        if self.links.contains_key(&hook) {
            return Ok(());
        }
        let failed = |error: &dyn std::error::Error| CallsError::Root(format!("{name}: {}", loading::chain(error)));
        let program: &mut CgroupSockAddr = loading::program(&mut self.bpf, name)?;
        if program.fd().is_err() {
            crate::pulse::beat();
            program.load().map_err(|error| loading::refused(name, &error))?;
        }
        let id = program.info().map_err(|error| failed(&error))?.id();
        let root = &self.root;
        let link = crash_point::around("call.link", || program.attach(root, CgroupAttachMode::Single))
            .and_then(|id| program.take_link(id))
            .map_err(|error| failed(&error))?;
        let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
        self.links.insert(hook, Linked { _link: link, program: id });
        Ok(())
    }

    /// Whether the program is still at its hook; if that cannot be seen, it is.
    fn is_in_place(&self, hook: u32) -> bool {
        let Some(linked) = self.links.get(&hook) else { return false };
        let there = bpf::attached(self.root.as_fd().as_raw_fd().cast_unsigned(), hook);
        there.map_or(true, |ids| ids.contains(&linked.program))
    }

    /// Sets the counters of a rule to 0.
    fn reset(&mut self, number: u32) -> Result<(), CallsError> {
        let zeros = loading::zeros(Shared(CallCounters::default()))?;
        let counters = &mut self.counters;
        Ok(crash_point::around("call.counters", || counters.set(number, zeros, 0))
            .map_err(map_error("CALL_COUNTERS"))?)
    }

    /// Replaces a rule as a whole.
    fn write(&mut self, number: u32, rule: Encoded) -> Result<(), CallsError> {
        let rules = &mut self.rules;
        Ok(crash_point::around("call.write", || rules.insert(number, Shared(rule), 0))
            .map_err(map_error("CALL_RULES"))?)
    }

    /// Removes a rule that no caller has. One that is not there is no error.
    fn remove(&mut self, number: u32) -> Result<(), CallsError> {
        let rules = &mut self.rules;
        let removed = crash_point::around("call.remove", || rules.remove(&number));
        Ok(loading::absent_is_fine(removed).map_err(map_error("CALL_RULES"))?)
    }

    fn publish(&mut self, wanted: BTreeMap<Key, u64>) -> Result<(), CallsError> {
        let (callers, there) = (&mut self.callers, &mut self.published);
        let gone: Vec<Key> = there.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            let removed = crash_point::around("caller.remove", || callers.remove(&Shared(key)));
            loading::absent_is_fine(removed).map_err(map_error("CALLERS"))?;
            there.remove(&key);
        }
        for (key, rules) in wanted {
            if there.get(&key) != Some(&rules) {
                crash_point::around("caller.write", || callers.insert(Shared(key), rules, 0))
                    .map_err(map_error("CALLERS"))?;
                there.insert(key, rules);
            }
        }
        Ok(())
    }
}

fn pid(pid: i32) -> u64 {
    u64::from(pid.cast_unsigned())
}

/// The number by which programs know a network namespace.
fn cookie(namespace: &NetnsRef) -> io::Result<u64> {
    netns::within(namespace, sockets::netns_cookie)?
}

/// The numbers by which the kernel knows a caller.
fn keys(caller: &Caller) -> io::Result<Vec<Key>> {
    let key = |kind, id| Key { id, kind, reserved: 0 };
    let gone = || io::Error::new(io::ErrorKind::NotFound, "it is gone; its target was resolved a moment ago");
    match caller {
        Caller::Owner(SocketOwner::Cgroup(group)) if cgroup::is_same(group) => {
            Ok(vec![key(firedrill_abi::CALLER_CGROUP, group.id)])
        }
        Caller::Owner(SocketOwner::Cgroup(_)) => Err(gone()),
        Caller::Owner(SocketOwner::Processes(list)) => {
            let alive = list.iter().filter(|p| process::is_alive(p));
            let keys: Vec<Key> = alive.map(|p| key(firedrill_abi::CALLER_PROCESS, pid(p.pid))).collect();
            if keys.is_empty() { Err(gone()) } else { Ok(keys) }
        }
        Caller::Netns(netns) => Ok(vec![key(firedrill_abi::CALLER_NETNS, cookie(netns)?)]),
    }
}

/// What a rule was for and is no longer there.
fn lost(caller: &Caller) -> Option<Lost> {
    let (gone, replaced) = match caller {
        Caller::Owner(SocketOwner::Cgroup(group)) => (!cgroup::is_same(group), Path::new(&group.path).exists()),
        Caller::Owner(SocketOwner::Processes(list)) => (!list.iter().any(process::is_alive), false),
        Caller::Netns(_) => (false, false),
    };
    gone.then(|| Lost { what: caller.to_string(), replaced })
}
