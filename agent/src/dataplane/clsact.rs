//! Attaching on kernels before 6.6, which have no tcx links: a `clsact` qdisc with `cls_bpf` filters, over rtnetlink.
//!
//! Such filters do not end with a descriptor. They are told from others' by the names of our programs; rules expire in
//! the kernel; and [`remove_clsact_filters`] takes them away, from any process.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use nix::{errno::Errno, sys::socket::SockProtocol};

use super::{Direction, error::DataPlaneError, netns};
use crate::{
    crash_point,
    netlink::{self, NLM_F_CREATE, NLM_F_EXCL, Request, attributes, number, push_attribute, text},
};

/// What the names of our programs start with.
pub const PROGRAM_PREFIX: &str = "fdrill_";

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

const TC_H_CLSACT: u32 = 0xffff_fff1;
const TC_H_CLSACT_HANDLE: u32 = 0xffff_0000;
const TC_H_MIN_INGRESS: u32 = 0xffff_fff2;
const TC_H_MIN_EGRESS: u32 = 0xffff_fff3;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// `htons(ETH_P_ALL)`.
const ETH_P_ALL_BE: u32 = 3u16.to_be() as u32;
const TCMSG_LEN: usize = 20;

/// A filter at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Its chain; packets begin in chain 0.
    pub chain: u32,
    /// Its priority; lower ones come first.
    pub priority: u16,
    /// Its handle.
    pub handle: u32,
    /// Its protocol, network order.
    pub protocol: u16,
    /// Its kind, such as `bpf`.
    pub kind: String,
    /// The name of a `bpf` filter.
    pub name: String,
}

/// A traffic-control request, with its `tcmsg`.
fn request(kind: u16, flags: u16, ifindex: u32, parent: u32, handle: u32, info: u32) -> Request {
    let mut fixed = Vec::with_capacity(TCMSG_LEN);
    for word in [0, ifindex, handle, parent, info] {
        fixed.extend(word.to_ne_bytes());
    }
    Request::new(kind, flags, &fixed)
}

fn change(request: Request) -> io::Result<()> {
    crash_point::around("tc", || netlink::change(SockProtocol::NetlinkRoute, request))
}

fn list(request: Request) -> io::Result<Vec<Vec<u8>>> {
    netlink::dump(SockProtocol::NetlinkRoute, request)
}

/// Whether the interface has a `clsact` qdisc. In the calling thread's namespace, as all that follow.
///
/// # Errors
/// What the kernel says.
pub fn has_clsact(ifindex: u32) -> io::Result<bool> {
    let is_it = |payload: &Vec<u8>| {
        let kind = attributes(payload.get(TCMSG_LEN..).unwrap_or_default()).find(|(kind, _)| *kind == TCA_KIND);
        number(payload, 4) == ifindex
            && number(payload, 12) == TC_H_CLSACT
            && kind.is_some_and(|(_, value)| text(value) == "clsact")
    };
    Ok(list(request(RTM_GETQDISC, 0, ifindex, 0, 0, 0))?.iter().any(is_it))
}

/// Adds a `clsact` qdisc.
///
/// # Errors
/// EEXIST when there is one already, or an `ingress` qdisc.
pub fn add_clsact(ifindex: u32) -> io::Result<()> {
    let request = request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, ifindex, TC_H_CLSACT, TC_H_CLSACT_HANDLE, 0);
    change(request.attribute(TCA_KIND, b"clsact\0"))
}

fn delete_clsact(ifindex: u32) -> io::Result<()> {
    let request = request(RTM_DELQDISC, 0, ifindex, TC_H_CLSACT, TC_H_CLSACT_HANDLE, 0);
    change(request.attribute(TCA_KIND, b"clsact\0"))
}

fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => TC_H_MIN_EGRESS,
        Direction::Ingress => TC_H_MIN_INGRESS,
    }
}

/// Adds a direct-action filter before all that are there.
///
/// # Errors
/// What the kernel says; ENOENT or EINVAL without a `clsact` qdisc. Nothing can be put before what is there.
pub fn add_filter(ifindex: u32, direction: Direction, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut name_z = name.as_bytes().to_vec();
    name_z.push(0);
    let mut options = Vec::new();
    push_attribute(&mut options, TCA_BPF_FD, &(program.as_raw_fd() as u32).to_ne_bytes());
    push_attribute(&mut options, TCA_BPF_NAME, &name_z);
    push_attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let info = u32::from(first_priority(&filters(ifindex, direction)?)?) << 16 | ETH_P_ALL_BE;
    let request = request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, ifindex, parent(direction), 0, info)
        .attribute(TCA_KIND, b"bpf\0")
        .attribute(TCA_OPTIONS, &options);
    change(request)
}

/// The priority that comes before these filters; 0 leaves it to the kernel, whose choice would come after those with a low
/// number. Filters of one priority are of one kind and protocol, and a new program comes first among them.
fn first_priority(filters: &[Filter]) -> io::Result<u16> {
    match filters.iter().filter(|filter| filter.chain == 0).min_by_key(|filter| filter.priority) {
        None => Ok(0),
        Some(first) if first.priority > 1 => Ok(first.priority - 1),
        Some(first) if first.kind == "bpf" && u32::from(first.protocol) == ETH_P_ALL_BE => Ok(first.priority),
        Some(first) => Err(io::Error::other(format!(
            "a `{}` filter of another's has priority 1, before which nothing can be put: give it a higher number \
             (`tc filter ... pref 2`)",
            first.kind
        ))),
    }
}

/// The filters at a hook; none without a `clsact` qdisc.
///
/// # Errors
/// What the kernel says.
pub fn filters(ifindex: u32, direction: Direction) -> io::Result<Vec<Filter>> {
    match list(request(RTM_GETTFILTER, 0, ifindex, parent(direction), 0, 0)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(all) => Ok(all.iter().filter_map(|payload| filter(payload)).collect()),
    }
}

/// A filter from a dump; the first entry of each priority has no handle and is not one.
fn filter(payload: &[u8]) -> Option<Filter> {
    let handle = number(payload, 8);
    let info = number(payload, 16);
    let mut filter = Filter {
        chain: 0,
        priority: (info >> 16) as u16,
        handle,
        protocol: info as u16,
        kind: String::new(),
        name: String::new(),
    };
    for (kind, value) in attributes(payload.get(TCMSG_LEN..)?) {
        match kind {
            TCA_KIND => filter.kind = text(value),
            TCA_CHAIN => filter.chain = number(value, 0),
            TCA_OPTIONS => {
                if let Some((_, name)) = attributes(value).find(|(kind, _)| *kind == TCA_BPF_NAME) {
                    filter.name = text(name);
                }
            }
            _ => {}
        }
    }
    (handle != 0).then_some(filter)
}

fn delete_filter(ifindex: u32, direction: Direction, filter: &Filter) -> io::Result<()> {
    let info = u32::from(filter.priority) << 16 | u32::from(filter.protocol);
    change(
        request(RTM_DELTFILTER, 0, ifindex, parent(direction), filter.handle, info)
            .attribute(TCA_KIND, filter.kind.as_bytes()),
    )
}

/// Whether a filter is one of ours.
pub fn is_ours(filter: &Filter) -> bool {
    filter.kind == "bpf" && filter.name.starts_with(PROGRAM_PREFIX)
}

/// How many of our filters are at a hook.
///
/// # Errors
/// What the kernel says.
pub fn own_filters(ifindex: u32, direction: Direction) -> io::Result<usize> {
    Ok(filters(ifindex, direction)?.iter().filter(|filter| is_ours(filter)).count())
}

/// Removes our filters at one hook; those that are gone already are no error. Gives how many were removed.
///
/// # Errors
/// What the kernel says, after all were tried.
pub fn remove_ours(ifindex: u32, direction: Direction) -> io::Result<usize> {
    let mut removed = 0;
    let mut result = Ok(());
    for filter in filters(ifindex, direction)? {
        if !is_ours(&filter) {
            continue;
        }
        match delete_filter(ifindex, direction, &filter) {
            Ok(()) => removed += 1,
            Err(error) if is_gone(&error) => {}
            Err(error) => result = Err(error),
        }
    }
    result.map(|()| removed)
}

/// Removes the `clsact` qdisc when nobody uses it. Gives whether it was removed.
///
/// # Errors
/// What the kernel says.
pub fn remove_if_unused(ifindex: u32) -> io::Result<bool> {
    let used = !filters(ifindex, Direction::Egress)?.is_empty() || !filters(ifindex, Direction::Ingress)?.is_empty();
    if used || !has_clsact(ifindex)? {
        return Ok(false);
    }
    match delete_clsact(ifindex) {
        Err(error) if !is_gone(&error) => Err(error),
        result => Ok(result.is_ok()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::ENOENT | Errno::ENODEV | Errno::EINVAL | Errno::ENXIO)
    )
}

/// Takes away what a dead agent left on an interface: the filters with our names, and the `clsact` qdisc when it was ours
/// (`had_clsact` is false) and nobody else uses it now. Idempotent; an interface that is gone has nothing left.
///
/// # Errors
/// The namespace cannot be entered, or the kernel refuses.
pub fn remove_clsact_filters(netns: BorrowedFd<'_>, ifindex: u32, had_clsact: bool) -> Result<(), DataPlaneError> {
    remove(netns, ifindex, &[Direction::Egress, Direction::Ingress], had_clsact)
}

/// As [`remove_clsact_filters`], of one direction: another fault may still be in force in the other.
///
/// # Errors
/// As [`remove_clsact_filters`].
pub fn remove_clsact_filter(
    netns: BorrowedFd<'_>,
    ifindex: u32,
    direction: Direction,
    had_clsact: bool,
) -> Result<(), DataPlaneError> {
    remove(netns, ifindex, &[direction], had_clsact)
}

fn remove(
    netns: BorrowedFd<'_>,
    ifindex: u32,
    directions: &[Direction],
    had_clsact: bool,
) -> Result<(), DataPlaneError> {
    let failed = |what| move |source| DataPlaneError::TrafficControl { what, ifindex, source };
    netns::within(netns, || {
        let mut removed = Ok(());
        for direction in directions {
            removed = removed.and(remove_ours(ifindex, *direction).map(drop));
        }
        removed.map_err(failed("removing filters"))?;
        if !had_clsact {
            remove_if_unused(ifindex).map_err(failed("removing the clsact qdisc"))?;
        }
        Ok(())
    })
    .map_err(DataPlaneError::Namespace)?
}
