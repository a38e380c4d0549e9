//! Tags: which sockets belong to a cgroup or a process that shares its network namespace with others.
//!
//! A tag is the number of a scope in the storage of a socket. New sockets get it from a program at their cgroup, accepted ones
//! inherit it, and those that exist when a fault begins get it from here, by their descriptors.
//!
//! Numbers are not handed out twice: a socket keeps its tags until it is looked at again, and a reused one would hit a
//! stranger.

use std::{
    collections::HashMap,
    fs::{self, File},
    io, mem,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use aya::{
    Ebpf,
    maps::{HashMap as BpfHashMap, MapData, MapError, SkStorage},
    programs::{CgroupAttachMode, CgroupSock, links::FdLink},
};
use firedrill_abi::{SCOPES_PER_SOCKET, SocketScopes};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::error::DataPlaneError;
use crate::crash_point;
use crate::sys::sockets::{pidfd_getfd, pidfd_open, socket_option};

/// A tag; it goes into [`super::RuleSpec::tag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(u32);

impl Tag {
    /// The scope of the rules for its sockets.
    pub(super) fn scope(self) -> u32 {
        self.0
    }

    /// Adds it to those of a socket or of whoever makes sockets; `false` when there is no room.
    fn add_to(self, scopes: &mut SocketScopes) -> bool {
        match scopes.iter_mut().find(|place| **place == 0 || **place == self.0) {
            Some(place) => {
                *place = self.0;
                true
            }
            None => false,
        }
    }

    /// Takes it out again, so that the rest fills from the front.
    fn remove_from(self, scopes: &mut SocketScopes) {
        keep(scopes, |scope| scope != self.0);
    }
}

/// Keeps some, in order, and fills up with 0.
fn keep(scopes: &mut SocketScopes, wanted: impl Fn(u32) -> bool) {
    let mut kept = SocketScopes::default();
    let wanted = scopes.iter().filter(|scope| **scope != 0 && wanted(**scope));
    for (to, from) in kept.iter_mut().zip(wanted) {
        *to = *from;
    }
    *scopes = kept;
}

/// Adds a tag to an entry of a map, or makes the entry.
fn put<K: aya::Pod>(
    map: &mut BpfHashMap<MapData, K, SocketScopes>,
    name: &'static str,
    key: K,
    tag: Tag,
) -> Result<(), DataPlaneError> {
    let mut scopes = map.get(&key, 0).unwrap_or_default();
    if !tag.add_to(&mut scopes) {
        return Err(too_many());
    }
    crash_point::around("tag.write", || map.insert(key, scopes, 0)).map_err(map_error(name))
}

/// Takes a tag out of an entry of a map, and the entry away with the last.
fn take<K: aya::Pod>(
    map: &mut BpfHashMap<MapData, K, SocketScopes>,
    name: &'static str,
    key: K,
    tag: Tag,
) -> Result<(), DataPlaneError> {
    let Ok(mut scopes) = map.get(&key, 0) else {
        return Ok(());
    };
    tag.remove_from(&mut scopes);
    let change = || if scopes[0] == 0 { map.remove(&key) } else { map.insert(key, scopes, 0) };
    crash_point::around("tag.remove", change).map_err(map_error(name))
}

fn too_many() -> DataPlaneError {
    DataPlaneError::Exhausted { what: "targets that one socket can belong to", limit: SCOPES_PER_SOCKET as u32 }
}

/// What a scan of descriptors found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rescan {
    /// IP sockets that got the tag now.
    pub tagged: usize,
    /// IP sockets that have it, in all.
    pub sockets: usize,
    /// Listening sockets that were spared now, because processes that are not in scope have them open too: what they accept
    /// must not inherit the tag. What the process itself accepts from them gets it by the next scan.
    pub shared_listeners: usize,
}

#[derive(Debug, Default)]
struct Holder {
    /// Where the tagging program is attached for this tag.
    cgroups: Vec<u64>,
    /// How many of them were named as a target, and are not there for a process.
    cgroups_named: usize,
    processes: Vec<(u32, OwnedFd)>,
    /// Inodes of the sockets that the last scan saw, and whether they have the tag, so that the next only opens new ones.
    seen: HashMap<u64, bool>,
}

/// One pass over the descriptors of some processes.
struct Scan<'a> {
    tag: Tag,
    pids: &'a [u32],
    spare_shared_listeners: bool,
    seen: HashMap<u64, bool>,
    found: HashMap<u64, bool>,
    tagged: usize,
    shared_listeners: usize,
}

/// The link of the tagging program at a cgroup, and how many tags need it.
#[derive(Debug)]
struct Attached {
    link: FdLink,
    users: usize,
}

/// The tags of a data plane.
#[derive(Debug)]
pub(super) struct Tags {
    program: &'static str,
    with_process: bool,
    cgroup_tags: BpfHashMap<MapData, u64, SocketScopes>,
    process_tags: BpfHashMap<MapData, u32, SocketScopes>,
    socket_tags: SkStorage<MapData, SocketScopes>,
    links: HashMap<u64, Attached>,
    holders: HashMap<Tag, Holder>,
}

fn map_error(map: &'static str) -> impl Fn(MapError) -> DataPlaneError {
    move |error| DataPlaneError::Map { map, reason: super::chain(&error) }
}

impl Tags {
    pub(super) fn new(
        cgroup_tags: BpfHashMap<MapData, u64, SocketScopes>,
        process_tags: BpfHashMap<MapData, u32, SocketScopes>,
        socket_tags: SkStorage<MapData, SocketScopes>,
        program: &'static str,
        with_process: bool,
    ) -> Self {
        Self {
            program,
            with_process,
            cgroup_tags,
            process_tags,
            socket_tags,
            links: HashMap::new(),
            holders: HashMap::new(),
        }
    }

    /// Whether new sockets can be tagged by process, not only by the scans.
    pub(super) fn with_process(&self) -> bool {
        self.with_process
    }

    /// A tag of a scope that was never given out before.
    pub(super) fn begin(&mut self, scope: u32) -> Tag {
        let tag = Tag(scope);
        self.holders.insert(tag, Holder::default());
        tag
    }

    /// Tags what is made from now on in a cgroup and those below it.
    pub(super) fn add_cgroup(&mut self, bpf: &mut Ebpf, tag: Tag, path: &Path) -> Result<(), DataPlaneError> {
        let id = self.attach(bpf, path)?;
        put(&mut self.cgroup_tags, "CGROUP_TAGS", id, tag)?;
        let holder = self.holders.entry(tag).or_default();
        holder.cgroups.push(id);
        holder.cgroups_named += 1;
        Ok(())
    }

    /// Tags what a process makes from now on. `cgroup` is the directory of the cgroup that it is in.
    pub(super) fn add_process(
        &mut self,
        bpf: &mut Ebpf,
        tag: Tag,
        pid: u32,
        cgroup: &Path,
    ) -> Result<(), DataPlaneError> {
        let pidfd = pidfd_open(pid).map_err(|source| DataPlaneError::Process { pid, what: "pidfd_open", source })?;
        if self.with_process {
            let id = self.attach(bpf, cgroup)?;
            self.holders.entry(tag).or_default().cgroups.push(id);
            put(&mut self.process_tags, "PROCESS_TAGS", pid, tag)?;
        }
        self.holders.entry(tag).or_default().processes.push((pid, pidfd));
        Ok(())
    }

    /// Tags the IP sockets that these processes have open.
    pub(super) fn rescan(&mut self, tag: Tag, pids: &[u32]) -> Result<Rescan, DataPlaneError> {
        self.forget_dead(tag)?;
        let holder = self.holders.entry(tag).or_default();
        let mut scan = Scan {
            tag,
            pids,
            // A cgroup's listener may come from a service manager; a process's from a sibling, whose clients must not suffer.
            spare_shared_listeners: holder.cgroups_named == 0,
            seen: mem::take(&mut holder.seen),
            found: HashMap::new(),
            tagged: 0,
            shared_listeners: 0,
        };
        for pid in pids {
            match self.scan_process(&mut scan, *pid) {
                Ok(()) => {}
                // It ended, or closed the socket, meanwhile.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT)) => {}
                Err(source) => {
                    return Err(DataPlaneError::Process { pid: *pid, what: "reading its sockets", source });
                }
            }
        }
        let sockets = scan.found.values().filter(|tagged| **tagged).count();
        let shared_listeners = scan.shared_listeners;
        self.holders.entry(tag).or_default().seen = scan.found;
        Ok(Rescan { tagged: scan.tagged, sockets, shared_listeners })
    }

    fn scan_process(&mut self, scan: &mut Scan<'_>, pid: u32) -> io::Result<()> {
        let pidfd = pidfd_open(pid)?;
        for (number, inode) in socket_descriptors(pid)? {
            if scan.found.contains_key(&inode) {
                continue;
            }
            if let Some(tagged) = scan.seen.get(&inode) {
                scan.found.insert(inode, *tagged);
                continue;
            }
            let socket = match pidfd_getfd(pidfd.as_fd(), number) {
                Ok(socket) => File::from(socket),
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => continue,
                Err(error) => return Err(error),
            };
            // Another socket may have the number by now; the tag goes to what we hold, so it must be the one we saw.
            if socket.metadata()?.ino() != inode {
                continue;
            }
            let wanted = self.tag_socket(scan, &socket, inode)?;
            scan.found.insert(inode, wanted);
        }
        Ok(())
    }

    fn tag_socket(&mut self, scan: &mut Scan<'_>, socket: &File, inode: u64) -> io::Result<bool> {
        if !matches!(socket_option(socket.as_fd(), libc::SO_DOMAIN), Ok(libc::AF_INET | libc::AF_INET6)) {
            return Ok(false);
        }
        let listening = socket_option(socket.as_fd(), libc::SO_ACCEPTCONN).unwrap_or(0) != 0;
        if scan.spare_shared_listeners && listening && shared_with_others(inode, scan.pids) {
            scan.shared_listeners += 1;
            return Ok(false);
        }
        let mut scopes = self.socket_tags.get(socket, 0).unwrap_or_default();
        // Those of faults that are over make room.
        keep(&mut scopes, |scope| self.holders.contains_key(&Tag(scope)));
        if !scan.tag.add_to(&mut scopes) {
            return Err(io::Error::other(too_many()));
        }
        crash_point::around("tag.socket", || self.socket_tags.insert(socket, scopes, 0))
            .map_err(|error| io::Error::other(super::chain(&error)))?;
        scan.tagged += 1;
        Ok(true)
    }

    /// A number that a dead process had may be another's soon.
    fn forget_dead(&mut self, tag: Tag) -> Result<(), DataPlaneError> {
        let Some(holder) = self.holders.get_mut(&tag) else {
            return Ok(());
        };
        let mut dead = Vec::new();
        holder.processes.retain(|(pid, pidfd)| {
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            let ended = matches!(nix::poll::poll(&mut fds, PollTimeout::ZERO), Ok(1));
            if ended {
                dead.push(*pid);
            }
            !ended
        });
        dead.into_iter().try_for_each(|pid| self.untag_process(tag, pid))
    }

    /// Ends a tag: nothing new gets it. Sockets that have it keep it, and no rule asks for it any more. Idempotent.
    pub(super) fn release(&mut self, tag: Tag) -> Result<(), DataPlaneError> {
        let Some(holder) = self.holders.remove(&tag) else {
            return Ok(());
        };
        let mut result = Ok(());
        for (pid, _) in holder.processes {
            result = result.and(self.untag_process(tag, pid));
        }
        for id in holder.cgroups {
            result = result.and(self.untag_cgroup(tag, id));
            self.detach(id);
        }
        result
    }

    fn untag_process(&mut self, tag: Tag, pid: u32) -> Result<(), DataPlaneError> {
        take(&mut self.process_tags, "PROCESS_TAGS", pid, tag)
    }

    fn untag_cgroup(&mut self, tag: Tag, id: u64) -> Result<(), DataPlaneError> {
        take(&mut self.cgroup_tags, "CGROUP_TAGS", id, tag)
    }

    fn attach(&mut self, bpf: &mut Ebpf, path: &Path) -> Result<u64, DataPlaneError> {
        let failed = |reason: String| DataPlaneError::Cgroup { path: path.display().to_string(), reason };
        let directory = File::open(path).map_err(|error| failed(error.to_string()))?;
        let id = directory.metadata().map_err(|error| failed(error.to_string()))?.ino();
        if let Some(attached) = self.links.get_mut(&id) {
            attached.users += 1;
            return Ok(id);
        }
        let program: &mut CgroupSock = bpf
            .program_mut(self.program)
            .and_then(|program| program.try_into().ok())
            .ok_or_else(|| failed(format!("the eBPF object has no program {}", self.program)))?;
        let link = crash_point::around("tag.attach", || program.attach(&directory, CgroupAttachMode::Single))
            .and_then(|id| program.take_link(id))
            .map_err(|error| failed(super::chain(&error)))?;
        let link = FdLink::try_from(link).map_err(|error| failed(super::chain(&error)))?;
        self.links.insert(id, Attached { link, users: 1 });
        Ok(id)
    }

    fn detach(&mut self, id: u64) {
        if let Some(attached) = self.links.get_mut(&id) {
            attached.users -= 1;
            if attached.users == 0 {
                crash_point::around("tag.detach", || self.links.remove(&id));
            }
        }
    }

    /// The ids of the links at cgroups.
    pub(super) fn link_ids(&self) -> Vec<u32> {
        self.links.values().filter_map(|attached| attached.link.info().ok()).map(|info| info.id()).collect()
    }
}

/// Descriptor numbers and inodes of a process's sockets.
fn socket_descriptors(pid: u32) -> io::Result<Vec<(i32, u64)>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let (Some(number), Some(inode)) = (number, target.to_str().and_then(socket_inode)) {
            sockets.push((number, inode));
        }
    }
    Ok(sockets)
}

/// Whether a process that is not one of `pids` has the socket open. Process 1 does not count: it hands sockets out. Of
/// this process the one descriptor with which we look at the socket does not.
fn shared_with_others(inode: u64, pids: &[u32]) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()))
        .filter(|pid| *pid != 1 && !pids.contains(pid))
        .any(|pid| {
            let sockets = socket_descriptors(pid).unwrap_or_default();
            let open = sockets.iter().filter(|(_, other)| *other == inode).count();
            open > usize::from(pid == std::process::id())
        })
}

/// The inode in `socket:[12345]`.
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_socket_links_have_an_inode() {
        assert_eq!(socket_inode("socket:[12345]"), Some(12345));
        assert_eq!(socket_inode("pipe:[12345]"), None);
        assert_eq!(socket_inode("/tmp/socket:[1]"), None);
        assert_eq!(socket_inode("socket:[]"), None);
    }

    #[test]
    fn a_socket_has_room_for_so_many_tags_and_none_is_lost_when_one_goes() {
        let mut scopes = SocketScopes::default();
        assert!((2..6).all(|scope| Tag(scope).add_to(&mut scopes)));
        assert!(Tag(3).add_to(&mut scopes), "one that is there needs no room");
        assert!(!Tag(6).add_to(&mut scopes));
        Tag(3).remove_from(&mut scopes);
        assert_eq!(scopes, [2, 4, 5, 0]);
        assert!(Tag(6).add_to(&mut scopes));
    }

    #[test]
    fn own_sockets_are_found_by_descriptor() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&socket);
        let sockets = socket_descriptors(std::process::id()).unwrap();
        assert!(sockets.iter().any(|(found, _)| *found == number));
    }
}
