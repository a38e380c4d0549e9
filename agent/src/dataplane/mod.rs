//! The packet data plane: loss, partition and latency by eBPF, in one network namespace.
//!
//! ```text
//!                    rules (maps)
//!                       |
//!  socket --> [fdrill_egress at eth0] --next--> others' programs, qdisc, wire
//!                       |  ^                       (dropped packets vanish: the sender is not told)
//!              divert   |  | reinject
//!                       v  |
//!                 TAP fdl0 <--> line thread: holds each packet until it is due
//! ```
//!
//! - One [`DataPlane`] for each namespace, with maps of its own: interface indexes are unambiguous, and namespaces cost
//!   each other nothing. Programs are loaded once; a rule is a map entry.
//! - Programs are attached with [`DataPlane::attach`] and see every packet of that hook.
//! - Delaying needs a line at the hook ([`DataPlane::delay_line_start`]); without one, or when its thread hangs, packets
//!   pass and are counted as `passed`. A line can answer packets, too (`answer.rs`, `dns.rs`).
//! - Everything ends with this process's descriptors: links, maps and TAPs; on kernels before 6.6, filters remain, for
//!   which see [`remove_clsact_filters`]. Whatever remains, a rule is ignored once it has expired.
//! - On the loopback interface a delayed packet comes back at ingress, where the kernel must be told to accept its own
//!   addresses: `net.ipv4.conf.lo.route_localnet=1` and `net.ipv4.conf.lo.accept_local=1` are preconditions, which the
//!   caller sets (and journals) before it starts a line on `lo`. IPv6 needs nothing.
//!
//! Invariants: no qdisc of others is touched; no bit of `skb->mark` is used; ARP, neighbour discovery and non-IP pass.
//! An interface must have an Ethernet header. VLAN-tagged frames pass at the parent; name the VLAN interface instead.
//! A packet that was delayed at egress has no socket any more for what comes after us; one that was delayed on the loopback
//! passes connection tracking a second time, so addresses that are rewritten on the way to `lo` are not supported there.
//! Adding or removing a clsact qdisc stops the interface's queues for about a millisecond (`qdisc_graft`), and what is sent
//! then is lost; adding a filter costs nothing. So before Linux 6.6 an interface that had none loses a packet or two at
//! the beginning and the end of a fault.
//! What a line holds when the process is killed is lost; what exceeds its room of 256 MiB goes on undelayed.

mod answer;
mod attach;
mod chance;
mod clsact;
mod dns;
mod error;
mod frame;
mod histogram;
mod line;
mod lines;
mod load;
mod netns;
mod queue;
mod record;
mod rule;
mod rules;
mod scopes;
mod shape;
mod spares;
mod tags;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use aya::Ebpf;
use firedrill_abi::{Interface, MAX_INTERFACES, Rule, TAP_PREFIX};

pub use self::{
    attach::{AttachMode, Attachment, Direction},
    clsact::{PROGRAM_PREFIX, has_clsact, own_filters, remove_clsact_filter, remove_clsact_filters},
    error::DataPlaneError,
    histogram::DelayHistogram,
    load::{Support, kernel_support},
    netns::within,
    rule::{Action, Cidr, Loss, MAX_DELAY, Protocol, RuleError, RuleSpec},
    shape::Shape,
    tags::{Rescan, Tag},
};
pub use crate::sys::clock::monotonic_ns;

/// What loading has of use to others of the agent's programs.
pub(crate) mod loading {
    pub(crate) use super::error::chain;
    pub use super::load::{absent_is_fine, object, program, refused, take, zeros};
}
/// Parts of rules as the kernel has them.
pub(crate) mod encoding {
    pub use super::rule::{networks, ports, threshold};
}

pub(crate) use self::error::map_error;
use self::{
    attach::Hooked,
    error::chain,
    line::Line,
    load::Maps,
    record::{Record, Records},
    scopes::Scopes,
    spares::Spares,
    tags::Tags,
};
use crate::{
    crash_point,
    sys::{mmap::LineTable, tun},
};

/// A rule in force. Never given twice by one data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId(u64);

/// What a rule did since it was added. A GSO or GRO burst counts as one packet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that met its conditions.
    pub matched: u64,
    /// Their bytes, link-layer header included.
    pub bytes: u64,
    /// Packets that it dropped.
    pub dropped: u64,
    /// Packets that it sent to a delay line.
    pub diverted: u64,
    /// Packets that it should have delayed and did not: no line, or the line's thread hung.
    pub passed: u64,
    /// Packets that the line could not hold for lack of room, and sent on at once.
    pub overflowed: u64,
    /// Packets that the line could not send on: lost.
    pub lost: u64,
    /// Packets that the line changed, answered, held up for others or put behind them, as the rule has it.
    pub acted: u64,
    /// Of those, packets of TCP that were answered with a reset.
    pub resets: u64,
    /// Bytes on the link of packets that left while others waited for the same rate.
    pub limited_bytes: u64,
    /// The time that those took, nanoseconds.
    pub limited_ns: u64,
    /// How long the packets were held, as measured.
    pub delays: DelayHistogram,
}

/// What a line did over its life, beside what the rules count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineTotals {
    /// Packets lost because the TAP was full: the machine cannot keep up.
    pub tap_full: u64,
    /// Packets that could not be given a header, and passed undelayed.
    pub refused: u64,
}

/// A line that was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineInfo {
    /// Its TAP; see [`is_own_tap`].
    pub tap_name: String,
    /// The index of the TAP.
    pub tap_ifindex: u32,
}

#[derive(Debug)]
struct ActiveRule {
    number: u32,
    spec: RuleSpec,
    encoded: Rule,
    record: Arc<Record>,
}

#[derive(Debug)]
struct ActiveHook {
    name: String,
    hooked: Hooked,
    line: Option<ActiveLine>,
}

#[derive(Debug)]
struct ActiveLine {
    slot: u32,
    tap_ifindex: u32,
    line: Line,
    /// Keeps the program at the TAP.
    reinject: Hooked,
}

/// The faults on packets of one network namespace. Calls are synchronous and enter the namespace on a thread of their
/// own; do not call from an async task.
pub struct DataPlane {
    netns: OwnedFd,
    mode: AttachMode,
    nonce: u64,
    hooks: BTreeMap<(u32, Direction), ActiveHook>,
    own_qdiscs: Vec<u32>,
    rules: BTreeMap<RuleId, ActiveRule>,
    next_rule: u64,
    records: Records,
    scopes: Scopes,
    spares: Spares,
    /// What the kernel knows of each interface.
    published: BTreeMap<u32, Interface>,
    tags: Tags,
    table: Arc<LineTable>,
    maps: Maps,
    bpf: Ebpf,
}

impl fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPlane")
            .field("mode", &self.mode)
            .field("hooks", &self.hooks)
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// Whether an interface is one that a data plane made: no target, and no part of a namespace's interfaces.
pub fn is_own_tap(ifname: &str) -> bool {
    ifname.strip_prefix(TAP_PREFIX).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

impl DataPlane {
    /// Loads the programs for a network namespace, in the best mode that the kernel has. Nothing is attached yet.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel refuses the programs.
    pub fn open(netns: BorrowedFd<'_>) -> Result<Self, DataPlaneError> {
        let mode = if kernel_support().tcx { AttachMode::Tcx } else { AttachMode::Clsact };
        Self::open_with(netns, mode)
    }

    /// As [`DataPlane::open`], in a given mode.
    ///
    /// # Errors
    /// As [`DataPlane::open`].
    pub fn open_with(netns: BorrowedFd<'_>, mode: AttachMode) -> Result<Self, DataPlaneError> {
        let netns = netns.try_clone_to_owned().map_err(DataPlaneError::Namespace)?;
        let load::Loaded { bpf, maps, tags, table, nonce } = crash_point::around("programs.load", load::load)?;
        Ok(Self {
            netns,
            mode,
            nonce,
            hooks: BTreeMap::new(),
            own_qdiscs: Vec::new(),
            rules: BTreeMap::new(),
            next_rule: 1,
            records: Records::default(),
            scopes: Scopes::default(),
            spares: Spares::default(),
            published: BTreeMap::new(),
            tags,
            table: Arc::new(table),
            maps,
            bpf,
        })
    }

    /// How it attaches.
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Whether sockets that a tagged process makes are tagged at once, and not only by [`DataPlane::rescan`].
    pub fn tags_new_sockets_of_processes(&self) -> bool {
        self.tags.with_process()
    }

    /// Attaches at one hook of an interface of the namespace, before all that is there. Rules for every interface apply
    /// to it from now on. Attaching twice gives an error.
    ///
    /// # Errors
    /// The interface changed or has no Ethernet header, or the kernel refuses.
    pub fn attach(&mut self, ifindex: u32, ifname: &str, direction: Direction) -> Result<Attachment, DataPlaneError> {
        self.attach_and(ifindex, ifname, direction, |plane| plane.publish(ifindex))
    }

    /// As [`DataPlane::attach`] and [`DataPlane::delay_line_start`] in one: rules in force act from when both are there.
    ///
    /// # Errors
    /// As those.
    pub fn attach_with_line(&mut self, ifindex: u32, ifname: &str, direction: Direction) -> Result<(), DataPlaneError> {
        self.attach_and(ifindex, ifname, direction, |plane| plane.delay_line_start(ifindex, direction).map(drop))
            .map(drop)
    }

    /// Attaches, and then does `begin`, which tells the kernel what the hook is for.
    fn attach_and(
        &mut self,
        ifindex: u32,
        ifname: &str,
        direction: Direction,
        begin: impl FnOnce(&mut Self) -> Result<(), DataPlaneError>,
    ) -> Result<Attachment, DataPlaneError> {
        if self.hooks.contains_key(&(ifindex, direction)) {
            let reason = "it is attached already".into();
            return Err(DataPlaneError::Attach { name: ifname.into(), direction, reason });
        }
        let indexes: BTreeSet<u32> = self.hooks.keys().map(|(index, _)| *index).collect();
        if indexes.len() as u32 >= MAX_INTERFACES && !indexes.contains(&ifindex) {
            return Err(DataPlaneError::Exhausted { what: "interfaces", limit: MAX_INTERFACES });
        }
        let program = match direction {
            Direction::Egress => load::EGRESS,
            Direction::Ingress => load::INGRESS,
        };
        let (bpf, mode) = (&mut self.bpf, self.mode);
        let (hooked, attachment) = in_netns(&self.netns, || {
            check_interface(ifindex, ifname)?;
            attach::attach(bpf, program, mode, ifindex, ifname, direction)
        })?;
        if attachment == (Attachment::Clsact { created_qdisc: true }) {
            self.own_qdiscs.push(ifindex);
        }
        self.hooks.insert((ifindex, direction), ActiveHook { name: ifname.into(), hooked, line: None });
        if let Err(error) = begin(self) {
            // Nothing is left half done; the first error is the one that tells.
            let _ = self.detach(ifindex, direction);
            return Err(error);
        }
        Ok(attachment)
    }

    /// Lets go of hooks whose program the kernel has detached, because the interface was removed: another one may have
    /// its name and even its index by now. Gives them.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn forget_lost(&mut self) -> Result<Vec<(u32, Direction)>, DataPlaneError> {
        let hooks = &self.hooks;
        let lost: Vec<(u32, Direction)> = in_netns(&self.netns, || {
            let lost = hooks.iter().filter(|((index, way), hook)| !attach::is_attached(&hook.hooked, *index, *way));
            Ok(lost.map(|(key, _)| *key).collect())
        })?;
        for (ifindex, direction) in &lost {
            if let Some(hook) = self.hooks.get_mut(&(*ifindex, *direction)) {
                // What has its index now is not ours to detach from.
                hook.hooked = Hooked::Lost;
            }
            self.own_qdiscs.retain(|own| own != ifindex);
            if let Err(error) = self.detach(*ifindex, *direction) {
                tracing::warn!(%error, ifindex, "after its interface was removed");
            }
        }
        Ok(lost)
    }

    /// Detaches from a hook, after stopping its line. Nothing attached there, or the interface gone, is no error.
    ///
    /// # Errors
    /// The kernel refuses; the line did not end in order.
    pub fn detach(&mut self, ifindex: u32, direction: Direction) -> Result<(), DataPlaneError> {
        let stopped = self.delay_line_stop(ifindex, direction).map(|_| ());
        let Some(hook) = self.hooks.remove(&(ifindex, direction)) else {
            return stopped;
        };
        let published = self.publish(ifindex);
        let last = !self.hooks.keys().any(|(other, _)| *other == ifindex);
        let own_qdisc = last && self.own_qdiscs.contains(&ifindex);
        let detached = in_netns(&self.netns, || attach::detach(hook.hooked, ifindex, direction, own_qdisc));
        if detached.is_ok() && last {
            self.own_qdiscs.retain(|own| *own != ifindex);
        }
        stopped.and(published).and(detached)
    }

    /// A new tag for the sockets of a target. A socket can have four at the same time.
    pub fn allocate_tag(&mut self) -> Tag {
        let scope = self.scopes.fresh();
        self.tags.begin(scope)
    }

    /// Tags the sockets that are made from now on in a cgroup (its directory in the v2 hierarchy) and below. For those
    /// that exist, call [`DataPlane::rescan`] with its processes, now and every half second.
    ///
    /// # Errors
    /// The directory is no cgroup, or the kernel refuses to attach there.
    pub fn tag_cgroup(&mut self, tag: Tag, cgroup: &Path) -> Result<(), DataPlaneError> {
        self.tags.add_cgroup(&mut self.bpf, tag, cgroup)
    }

    /// Tags the sockets that a process makes from now on; `cgroup` is the directory of the cgroup that it is in.
    /// For those that exist, as for [`DataPlane::tag_cgroup`]. A listening socket that it shares with others (a pre-fork
    /// server) is spared, and what it accepts from that is tagged by the next scan.
    ///
    /// # Errors
    /// The process is gone, or as for [`DataPlane::tag_cgroup`].
    pub fn tag_process(&mut self, tag: Tag, pid: u32, cgroup: &Path) -> Result<(), DataPlaneError> {
        self.tags.add_process(&mut self.bpf, tag, pid, cgroup)
    }

    /// Tags the IP sockets that these processes have open; those that end meanwhile are left out.
    ///
    /// # Errors
    /// A process cannot be read (no right to trace it), or the kernel refuses the tag.
    pub fn rescan(&mut self, tag: Tag, pids: &[u32]) -> Result<Rescan, DataPlaneError> {
        self.tags.rescan(tag, pids)
    }

    /// Ends a tag: no new socket gets it. Remove its rules first. A tag that ended before is no error.
    ///
    /// # Errors
    /// A map refuses.
    pub fn release_tag(&mut self, tag: Tag) -> Result<(), DataPlaneError> {
        self.tags.release(tag)
    }

    /// The ids of all links in force, for whoever checks that they are gone: at interfaces and cgroups.
    pub fn link_ids(&self) -> Vec<u32> {
        let mut ids = self.tags.link_ids();
        for hook in self.hooks.values() {
            let reinject = hook.line.as_ref().map(|line| &line.reinject);
            for hooked in [Some(&hook.hooked), reinject].into_iter().flatten() {
                if let Hooked::Tcx(link, _) = hooked {
                    ids.extend(link.info().ok().map(|info| info.id()));
                }
            }
        }
        ids
    }

    /// Whether the clsact hook of an interface was added by this data plane.
    pub fn has_own_hook(&self, ifindex: u32) -> bool {
        self.own_qdiscs.contains(&ifindex)
    }

    /// The names of the TAPs, for the same purpose.
    pub fn tap_names(&self) -> Vec<String> {
        self.hooks.values().filter_map(|hook| hook.line.as_ref()).map(|line| line.line.tap_name.clone()).collect()
    }

    /// Stops all lines, ends all rules, detaches everywhere. What [`Drop`] does too, without telling.
    ///
    /// # Errors
    /// The first that occurred; everything is tried.
    pub fn shut_down(&mut self) -> Result<(), DataPlaneError> {
        let mut result = Ok(());
        for id in self.rules.keys().copied().collect::<Vec<_>>() {
            result = result.and(self.remove_rule(id).map(|_| ()));
        }
        for (ifindex, direction) in self.hooks.keys().copied().collect::<Vec<_>>() {
            result = result.and(self.detach(ifindex, direction));
        }
        result
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        if let Err(error) = self.shut_down() {
            tracing::warn!(%error, "the data plane did not shut down in order");
        }
    }
}

fn in_netns<T: Send>(
    netns: &OwnedFd,
    work: impl FnOnce() -> Result<T, DataPlaneError> + Send,
) -> Result<T, DataPlaneError> {
    within(netns.as_fd(), work).map_err(DataPlaneError::Namespace)?
}

/// Checks that the interface is still the one that was resolved, and gives its hardware type.
fn check_interface(ifindex: u32, ifname: &str) -> Result<u16, DataPlaneError> {
    if index_of(ifname).ok() != Some(ifindex) {
        return Err(DataPlaneError::InterfaceChanged { name: ifname.into(), ifindex });
    }
    match tun::hardware_type(ifname) {
        Ok(hardware @ (tun::HARDWARE_ETHERNET | tun::HARDWARE_LOOPBACK)) => Ok(hardware),
        Ok(hardware) => Err(DataPlaneError::NoEthernetHeader { name: ifname.into(), hardware }),
        Err(_) => Err(DataPlaneError::InterfaceChanged { name: ifname.into(), ifindex }),
    }
}

fn index_of(ifname: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(ifname)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_taps_are_told_by_their_names() {
        assert!(is_own_tap("fdl0"));
        assert!(is_own_tap("fdl17"));
        assert!(!is_own_tap("fdl"));
        assert!(!is_own_tap("fdlink0"));
        assert!(!is_own_tap("eth0"));
    }
}
