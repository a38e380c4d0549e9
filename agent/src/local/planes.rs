//! The data planes of this host: one for each network namespace in which a packet fault is in force.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, TryLockError, Weak};
use std::time::Instant;

use firedrill_model::change::{Rule, SocketOwner, Way};
use firedrill_model::facts::{Interface, NetnsRef};
use firedrill_model::receipt::PacketCount;

use super::convert;
use crate::crash_point;
use crate::dataplane::{AttachMode, DataPlane, RuleId, Tag, is_own_tap};
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
        let detached = plane.plane.detach(interface.index, convert::direction(way));
        plane.hooks.retain(|(i, w)| (i, *w) != (interface, way));
        self.drop_if_unused(netns.inode);
        detached.map_err(Into::into)
    }

    pub fn start_line(&mut self, netns: &NetnsRef, interface: &Interface, way: Way) -> Result<(), ChangeError> {
        self.get(netns)?.plane.delay_line_start(interface.index, convert::direction(way))?;
        Ok(())
    }

    pub fn stop_line(&mut self, netns: &NetnsRef, interface: &Interface, way: Way) -> Result<(), ChangeError> {
        let Some(plane) = self.planes.get_mut(&netns.inode) else { return Ok(()) };
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
        if plane.tags.is_empty() {
            for (index, way) in std::mem::take(&mut plane.later) {
                result = result.and(plane.plane.detach(index, convert::direction(way)).map_err(Into::into));
            }
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
        let id = plane.plane.add_rule(convert::rule(rule, tag, expires))?;
        Ok(RuleHandle { netns: netns.inode, id })
    }

    /// Removes a rule. Its last counts include the packets that its delay line sends on now.
    pub fn remove_rule(&mut self, netns: &NetnsRef, rule: RuleHandle) -> Result<Option<PacketCount>, ChangeError> {
        let Some(plane) = self.planes.get_mut(&netns.inode) else { return Ok(None) };
        let removed = plane.plane.remove_rule(rule.id);
        self.drop_if_unused(netns.inode);
        Ok(removed?.map(|last| convert::count(&last)))
    }

    pub fn set_expiry(&mut self, rule: &RuleHandle, expires: Instant) -> Result<(), ChangeError> {
        let Some(plane) = self.planes.get_mut(&rule.netns) else { return Ok(()) };
        plane.plane.set_expiry(rule.id, convert::kernel_time(expires)).map_err(Into::into)
    }

    pub fn count(&self, netns: &NetnsRef, rule: &RuleHandle) -> Option<PacketCount> {
        self.planes.get(&netns.inode)?.plane.counters(rule.id).ok().map(|c| convert::count(&c))
    }

    /// Marks sockets that were missed, and attaches to interfaces that came later, for targets that are marked by
    /// their sockets: they may talk through any interface.
    pub fn look_again(&mut self) {
        for plane in self.planes.values_mut().filter(|p| !p.tags.is_empty()) {
            for (owner, tag) in plane.tags.clone() {
                // A process that ends in between is no reason to stop looking at the others.
                let _ = plane.plane.rescan(tag, &pids(&owner));
            }
            plane.attach_later_interfaces();
        }
    }
}

impl Plane {
    /// New sockets first, then those that exist, so that none falls between.
    fn begin_tag(&mut self, owner: &SocketOwner, tag: Tag) -> Result<(), ChangeError> {
        match owner {
            SocketOwner::Cgroup(group) => self.plane.tag_cgroup(tag, Path::new(&group.path))?,
            SocketOwner::Processes(list) => {
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

    fn attach_later_interfaces(&mut self) {
        let ways: Vec<Way> = {
            let mut ways: Vec<Way> = self.hooks.iter().map(|(_, w)| *w).collect();
            ways.sort_unstable();
            ways.dedup();
            ways
        };
        let Ok(interfaces) = netns::interfaces(&self.netns) else { return };
        for interface in interfaces.iter().filter(|i| i.ethernet && !is_own_tap(&i.name)) {
            for way in &ways {
                let known = self.hooks.iter().any(|(i, w)| i.index == interface.index && w == way)
                    || self.later.contains(&(interface.index, *way));
                if !known && self.plane.attach(interface.index, &interface.name, convert::direction(*way)).is_ok() {
                    self.later.push((interface.index, *way));
                }
            }
        }
    }
}

/// The processes whose sockets are marked, right now.
fn pids(owner: &SocketOwner) -> Vec<u32> {
    let list = match owner {
        SocketOwner::Cgroup(group) => cgroup::processes(group),
        SocketOwner::Processes(list) => list.iter().filter(|p| process::is_alive(p)).cloned().collect(),
    };
    list.iter().map(|p| p.pid.cast_unsigned()).collect()
}
