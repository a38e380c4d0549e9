//! The data planes of this host: one for each network namespace in which a packet fault is in force.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::Instant;

use firedrill_model::change::{Action, Rule, SocketOwner, Way};
use firedrill_model::facts::{Interface, NetnsRef};
use firedrill_model::receipt::{Lost, PacketCount, StepCount};

use super::convert;
use crate::crash_point;
use crate::dataplane::{AttachMode, DataPlane, DataPlaneError, RuleId, Tag, is_own_tap};
use crate::engine::{ChangeError, Expiry};
use crate::host::{cgroup, netns, process};

/// A rule in force.
#[derive(Clone, Copy, Debug)]
pub struct RuleHandle {
    netns: u64,
    id: RuleId,
}

/// The expiry of a rule in force. It keeps nothing in force itself.
pub struct RuleExpiry {
    rule: RuleHandle,
    planes: Weak<Mutex<Planes>>,
}

impl RuleExpiry {
    pub fn new(rule: &RuleHandle, planes: &Arc<Mutex<Planes>>) -> Self {
        Self { rule: *rule, planes: Arc::downgrade(planes) }
    }
}

impl Expiry for RuleExpiry {
    fn move_to(&self, at: Instant) -> Result<bool, ChangeError> {
        let Some(planes) = self.planes.upgrade() else { return Ok(true) };
        match planes.try_lock() {
            Ok(mut planes) => planes.set_expiry(&self.rule, at).map(|()| true),
            Err(TryLockError::Poisoned(planes)) => planes.into_inner().set_expiry(&self.rule, at).map(|()| true),
            // Called from within a call to them.
            Err(TryLockError::WouldBlock) => Ok(false),
        }
    }
}

/// All data planes, by inode of their namespace.
pub struct Planes {
    mode: AttachMode,
    planes: HashMap<u64, Plane>,
}

struct Plane {
    netns: NetnsRef,
    plane: DataPlane,
    tags: Vec<(SocketOwner, Tag)>,
    /// Hooks that a change asked for, and those that were added for interfaces that came later.
    hooks: Vec<(Interface, Way)>,
    later: Vec<(u32, Way)>,
    rules: Vec<Held>,
    /// Interfaces that were removed under their hooks, by index, and when that was noticed.
    removed: Vec<(u32, Instant)>,
}

/// A rule in force, and since when.
struct Held {
    id: RuleId,
    rule: Rule,
    since: Instant,
    /// What it had counted when each of its later actions began, as far as it has come.
    steps: Vec<StepCount>,
}

impl Held {
    /// The next of its later actions, when its time has come.
    fn due(&self, now: Instant) -> Option<&Action> {
        let next = self.rule.then.get(self.steps.len())?;
        (now.saturating_duration_since(self.since) >= next.at.0).then_some(&next.action)
    }

    /// Whether it is for interfaces that come later, too.
    fn is_for_all(&self) -> bool {
        self.rule.interface.is_none()
    }

    /// Whether it looks at packets of an interface that came later.
    fn needs(&self, loopback: bool, way: Way) -> bool {
        self.is_for_all() && self.rule.ways.contains(&way) && (self.rule.sockets.is_some() || !loopback)
    }
}

impl Planes {
    /// None yet; their programs will be attached in this way.
    pub fn new(mode: AttachMode) -> Self {
        Self { mode, planes: HashMap::new() }
    }

    fn get(&mut self, netns: &NetnsRef) -> Result<&mut Plane, ChangeError> {
        use std::collections::hash_map::Entry;
        match self.planes.entry(netns.inode) {
            Entry::Occupied(there) => Ok(there.into_mut()),
            Entry::Vacant(place) => {
                let file = netns::open(netns).map_err(ChangeError::failed(format!("opening {}", netns.path)))?;
                let plane = DataPlane::open_with(file.as_fd(), self.mode)?;
                Ok(place.insert(Plane {
                    netns: netns.clone(),
                    plane,
                    tags: Vec::new(),
                    hooks: Vec::new(),
                    later: Vec::new(),
                    rules: Vec::new(),
                    removed: Vec::new(),
                }))
            }
        }
    }

    /// Drops a data plane that nothing needs any more, and with it its programs and maps.
    fn drop_if_unused(&mut self, netns: u64) {
        let unused = |p: &Plane| p.hooks.is_empty() && p.tags.is_empty() && p.plane.rules().next().is_none();
        if self.planes.get(&netns).is_some_and(unused) {
            crash_point::around("programs.unload", || self.planes.remove(&netns));
        }
    }

    /// Whether the clsact hook of an interface is ours.
    pub fn has_own_hook(&self, netns: &NetnsRef, interface: &Interface) -> bool {
        self.planes.get(&netns.inode).is_some_and(|p| p.plane.has_own_hook(interface.index))
    }

    pub fn attach(&mut self, netns: &NetnsRef, interface: &Interface, way: Way) -> Result<(), ChangeError> {
        let plane = self.get(netns)?;
        let attached = plane.plane.attach(interface.index, &interface.name, convert::direction(way));
        if attached.is_ok() {
            plane.hooks.push((interface.clone(), way));
        }
        self.drop_if_unused(netns.inode);
        attached.map(drop).map_err(Into::into)
    }

    pub fn detach(&mut self, netns: &NetnsRef, interface: &Interface, way: Way) -> Result<(), ChangeError> {
        let Some(plane) = self.planes.get_mut(&netns.inode) else { return Ok(()) };
        // Where the interface was removed, its index may be another's by now.
        let detached = match plane.hooks.iter().position(|(i, w)| (i, *w) == (interface, way)) {
            Some(at) => {
                plane.hooks.remove(at);
                plane.plane.detach(interface.index, convert::direction(way))
            }
            None => Ok(()),
        };
        self.drop_if_unused(netns.inode);
        detached.map_err(Into::into)
    }

    pub fn start_line(&mut self, netns: &NetnsRef, interface: &Interface, way: Way) -> Result<(), ChangeError> {
        let started = self.get(netns)?.plane.delay_line_start(interface.index, convert::direction(way));
        self.drop_if_unused(netns.inode);
        started.map(drop).map_err(Into::into)
    }

    pub fn stop_line(&mut self, netns: &NetnsRef, interface: &Interface, way: Way) -> Result<(), ChangeError> {
        let Some(plane) = self.planes.get_mut(&netns.inode) else { return Ok(()) };
        if !plane.hooks.iter().any(|(i, w)| (i, *w) == (interface, way)) {
            return Ok(());
        }
        plane.plane.delay_line_stop(interface.index, convert::direction(way)).map(drop).map_err(Into::into)
    }

    pub fn tag(&mut self, netns: &NetnsRef, owner: &SocketOwner) -> Result<(), ChangeError> {
        let plane = self.get(netns)?;
        let tag = plane.plane.allocate_tag();
        plane.tags.push((owner.clone(), tag));
        let tagged = plane.begin_tag(owner, tag);
        if tagged.is_err() {
            // The error that matters is the first one.
            let _ = self.untag(netns, owner);
        }
        tagged
    }

    pub fn untag(&mut self, netns: &NetnsRef, owner: &SocketOwner) -> Result<(), ChangeError> {
        let Some(plane) = self.planes.get_mut(&netns.inode) else { return Ok(()) };
        let mut result = Ok(());
        if let Some(at) = plane.tags.iter().position(|(o, _)| o == owner) {
            let (_, tag) = plane.tags.remove(at);
            result = plane.plane.release_tag(tag).map_err(Into::into);
        }
        self.drop_if_unused(netns.inode);
        result
    }

    pub fn add_rule(&mut self, netns: &NetnsRef, rule: &Rule, expires: Instant) -> Result<RuleHandle, ChangeError> {
        let plane = self.get(netns)?;
        let tag = match &rule.sockets {
            None => None,
            Some(owner) => match plane.tags.iter().find(|(o, _)| o == owner) {
                Some((_, tag)) => Some(*tag),
                None => {
                    let missing = std::io::Error::other("its sockets were not marked before");
                    return Err(ChangeError::failed(format!("a rule for {owner}"))(missing));
                }
            },
        };
        let added = plane.plane.add_rule(convert::rule(rule, tag, expires));
        if let Ok(id) = &added {
            plane.rules.push(Held { id: *id, rule: rule.clone(), since: Instant::now(), steps: Vec::new() });
        }
        self.drop_if_unused(netns.inode);
        Ok(RuleHandle { netns: netns.inode, id: added? })
    }

    /// Removes a rule. Its last counts include the packets that its delay line sends on now.
    pub fn remove_rule(&mut self, rule: RuleHandle) -> Result<Option<PacketCount>, ChangeError> {
        let Some(plane) = self.planes.get_mut(&rule.netns) else { return Ok(None) };
        // An interface that went a moment ago is not missed by the receipt.
        plane.notice_removed();
        let (lost, steps) = (plane.lost(rule.id), plane.steps(rule.id));
        let removed = plane.plane.remove_rule(rule.id);
        plane.rules.retain(|held| held.id != rule.id);
        let detached = plane.detach_unneeded();
        self.drop_if_unused(rule.netns);
        let last = removed?.map(|last| PacketCount { lost, steps, ..convert::count(&last) });
        detached.map(|()| last)
    }

    pub fn set_expiry(&mut self, rule: &RuleHandle, expires: Instant) -> Result<(), ChangeError> {
        let Some(plane) = self.planes.get_mut(&rule.netns) else { return Ok(()) };
        if plane.rules.iter().any(|held| held.id == rule.id && plane.has_lost_interface(held)) {
            return Ok(());
        }
        plane.plane.set_expiry(rule.id, convert::kernel_time(expires)).map_err(Into::into)
    }

    pub fn count(&self, rule: &RuleHandle) -> Option<PacketCount> {
        let plane = self.planes.get(&rule.netns)?;
        let counters = plane.plane.counters(rule.id).ok()?;
        Some(PacketCount { lost: plane.lost(rule.id), steps: plane.steps(rule.id), ..convert::count(&counters) })
    }

    /// Has each rule do what it is to do by now, where that changes with time.
    pub fn follow_ramps(&mut self, now: Instant) {
        for plane in self.planes.values_mut() {
            for held in &mut plane.rules {
                while let Some(action) = held.due(now) {
                    let before = plane.plane.counters(held.id).map(|counters| convert::count(&counters));
                    let updated = before
                        .and_then(|before| plane.plane.update_rule(held.id, convert::action(action)).map(|()| before));
                    match updated {
                        Ok(before) => held.steps.push(before.so_far()),
                        // It is tried again; the receipt tells which steps were made.
                        Err(error) => {
                            tracing::warn!(%error, "a step of a ramp");
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Marks sockets that were missed, notices interfaces that were removed, and attaches to those that came later, for
    /// rules that are for every interface.
    pub fn look_again(&mut self) {
        for plane in self.planes.values_mut() {
            for (owner, tag) in plane.tags.clone() {
                // A process that ends in between is no reason to stop looking at the others.
                let _ = plane.plane.rescan(tag, &pids(&owner));
            }
            plane.notice_removed();
            plane.attach_later_interfaces();
        }
    }
}

impl Plane {
    /// New sockets first, then those that exist, so that none falls between.
    fn begin_tag(&mut self, owner: &SocketOwner, tag: Tag) -> Result<(), ChangeError> {
        match owner {
            SocketOwner::Cgroup(group) => {
                if !cgroup::is_same(group) {
                    return Err(gone(owner));
                }
                self.plane.tag_cgroup(tag, Path::new(&group.path))?;
            }
            SocketOwner::Processes(list) => {
                if !list.iter().any(process::is_alive) {
                    return Err(gone(owner));
                }
                let root = cgroup::mount_point().ok_or_else(|| {
                    ChangeError::failed("marking sockets")(std::io::Error::other("no cgroup v2 hierarchy is mounted"))
                })?;
                for process in list.iter().filter(|p| process::is_alive(p)) {
                    let below = cgroup::of_process(process.pid).unwrap_or_else(|| "/".into());
                    self.plane.tag_process(tag, process.pid.cast_unsigned(), &root.join(below.trim_matches('/')))?;
                }
            }
        }
        self.plane.rescan(tag, &pids(owner))?;
        Ok(())
    }

    /// Forgets hooks of interfaces that were removed. One that has their name, or even index, now is another.
    fn notice_removed(&mut self) {
        // A namespace that cannot be entered for a moment is looked at again.
        for (index, direction) in self.plane.forget_lost().unwrap_or_default() {
            let is_it = |i: u32, way: Way| (i, convert::direction(way)) == (index, direction);
            self.later.retain(|(i, way)| !is_it(*i, *way));
            self.hooks.retain(|(i, way)| !is_it(i.index, *way));
            self.removed.push((index, Instant::now()));
            // Should that index be another's, no rule of the old one must follow.
            let of_it = self.plane.rules().filter(|(_, spec)| spec.ifindex == Some(index)).map(|(id, _)| id);
            for id in of_it.collect::<Vec<_>>() {
                if let Err(error) = self.plane.set_expiry(id, 1) {
                    tracing::warn!(%error, index, "a rule of an interface that was removed");
                }
            }
        }
    }

    fn has_lost_interface(&self, held: &Held) -> bool {
        let Some(interface) = &held.rule.interface else { return false };
        self.removed.iter().any(|(index, at)| *index == interface.index && *at >= held.since)
    }

    /// What a rule had counted when each of its later actions began.
    fn steps(&self, id: RuleId) -> Vec<StepCount> {
        self.rules.iter().find(|held| held.id == id).map(|held| held.steps.clone()).unwrap_or_default()
    }

    /// What a rule was for and is no longer there.
    fn lost(&self, id: RuleId) -> Vec<Lost> {
        let Some(held) = self.rules.iter().find(|held| held.id == id) else { return Vec::new() };
        let interface = held.rule.interface.iter().filter(|_| self.has_lost_interface(held)).map(|i| {
            let there = netns::interfaces(&self.netns).unwrap_or_default();
            Lost { what: format!("interface {}", i.name), replaced: there.iter().any(|other| other.name == i.name) }
        });
        let owner = held.rule.sockets.as_ref().and_then(|owner| {
            let (gone, replaced) = match owner {
                SocketOwner::Cgroup(group) => (!cgroup::is_same(group), Path::new(&group.path).exists()),
                SocketOwner::Processes(list) => (!list.iter().any(process::is_alive), false),
            };
            gone.then(|| Lost { what: owner.to_string(), replaced })
        });
        interface.chain(owner).collect()
    }

    /// Whether a rule needs a hook of an interface that came later; and whether it needs a delay line there.
    fn need(&self, loopback: bool, way: Way) -> Option<bool> {
        let rules = self.rules.iter().filter(|held| held.needs(loopback, way));
        rules.map(|held| held.rule.action.needs_line()).reduce(|a, b| a || b)
    }

    fn attach_later_interfaces(&mut self) {
        // A clsact filter would outlive us, and no record tells of those that no plan has.
        if self.plane.mode() == AttachMode::Clsact || !self.rules.iter().any(Held::is_for_all) {
            return;
        }
        let Ok(interfaces) = netns::interfaces(&self.netns) else { return };
        for interface in interfaces.iter().filter(|i| i.ethernet && !is_own_tap(&i.name)) {
            for way in [Way::Egress, Way::Ingress] {
                let key = (interface.index, way);
                let known = self.later.contains(&key) || self.hooks.iter().any(|(i, w)| (i.index, *w) == key);
                let Some(delays) = self.need(interface.loopback, way).filter(|_| !known) else { continue };
                if let Err(error) = self.attach_later(interface, way, delays) {
                    tracing::warn!(%error, interface = interface.name, "came later, and is left alone");
                }
            }
        }
    }

    /// Attaches to an interface that came later, with all that its packets need, or not at all.
    fn attach_later(&mut self, interface: &Interface, way: Way, delays: bool) -> Result<(), DataPlaneError> {
        let direction = convert::direction(way);
        if delays {
            self.plane.attach_with_line(interface.index, &interface.name, direction)?;
        } else {
            self.plane.attach(interface.index, &interface.name, direction)?;
        }
        self.later.push((interface.index, way));
        Ok(())
    }

    /// Detaches from interfaces that came later when no rule needs it any more.
    fn detach_unneeded(&mut self) -> Result<(), ChangeError> {
        let mut result = Ok(());
        for (index, way) in std::mem::take(&mut self.later) {
            if self.need(false, way).is_some() {
                self.later.push((index, way));
            } else {
                result = result.and(self.plane.detach(index, convert::direction(way)).map_err(Into::into));
            }
        }
        result
    }
}

fn gone(owner: &SocketOwner) -> ChangeError {
    let why = "it is gone; its target was resolved a moment ago, so it has just ended or been replaced";
    ChangeError::failed(format!("marking the sockets of {owner}"))(std::io::Error::new(
        std::io::ErrorKind::NotFound,
        why,
    ))
}

/// The processes whose sockets are marked, right now.
fn pids(owner: &SocketOwner) -> Vec<u32> {
    let list = match owner {
        SocketOwner::Cgroup(group) => cgroup::processes(group),
        SocketOwner::Processes(list) => list.iter().filter(|p| process::is_alive(p)).cloned().collect(),
    };
    list.iter().map(|p| p.pid.cast_unsigned()).collect()
}
