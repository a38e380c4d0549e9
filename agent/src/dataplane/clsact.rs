//! Attaching on kernels before 6.6, which have no tcx links: a `clsact` qdisc with `cls_bpf` filters, over rtnetlink.
//!
//! Such filters do not end with a descriptor. They are told from others' by the names of our programs; rules expire in
//! the kernel; and [`remove_clsact_filters`] takes them away, from any process.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket},
};

use super::{Direction, error::DataPlaneError, netns};
use crate::crash_point;

/// What the names of our programs start with.
pub const PROGRAM_PREFIX: &str = "fdrill_";

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
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
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const NLA_TYPE_MASK: u16 = 0x3fff;

/// `htons(ETH_P_ALL)`.
const ETH_P_ALL_BE: u32 = 3u16.to_be() as u32;
const HEADER_LEN: usize = 16;
const TCMSG_LEN: usize = 20;

/// A filter at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
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

/// A traffic-control request: header, `tcmsg`, attributes.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: u16, ifindex: u32, parent: u32, handle: u32, info: u32) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        for word in [0, ifindex, handle, parent, info] {
            bytes.extend(word.to_ne_bytes());
        }
        Self { bytes }
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.bytes.extend((value.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        self.bytes
    }
}

/// Sends a request and gives each answer's payload (`tcmsg` and attributes) to `each`.
fn exchange(request: Request, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let netlink = open()?;
    let bytes = request.finish();
    // The requests that list something change nothing.
    let changes = u16::from_ne_bytes([bytes[6], bytes[7]]) & NLM_F_ACK != 0;
    if changes {
        crash_point::pass("tc.before");
    }
    send(netlink.as_raw_fd(), &bytes, MsgFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let len = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..len];
        while let Some((kind, payload, next)) = message(rest) {
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code =
                        payload.get(..4).map_or(0, |code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
                    if changes {
                        crash_point::pass("tc.after");
                    }
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => each(payload),
            }
            rest = next;
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(netlink)
}

fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let header = bytes.get(..HEADER_LEN)?;
    let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let payload = bytes.get(HEADER_LEN..len)?;
    let next = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([header[4], header[5]]), payload, next))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let len = u16::from_ne_bytes([header[0], header[1]]) as usize;
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

fn number(payload: &[u8], at: usize) -> u32 {
    payload.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

/// Whether the interface has a `clsact` qdisc. In the calling thread's namespace, as all that follow.
///
/// # Errors
/// What the kernel says.
pub fn has_clsact(ifindex: u32) -> io::Result<bool> {
    let mut found = false;
    exchange(Request::new(RTM_GETQDISC, NLM_F_DUMP, ifindex, 0, 0, 0), |payload| {
        let ours = number(payload, 4) == ifindex && number(payload, 12) == TC_H_CLSACT;
        let kind = attributes(payload.get(TCMSG_LEN..).unwrap_or_default()).find(|(kind, _)| *kind == TCA_KIND);
        found |= ours && kind.is_some_and(|(_, value)| text(value) == "clsact");
    })?;
    Ok(found)
}

/// Adds a `clsact` qdisc.
///
/// # Errors
/// EEXIST when there is one already, or an `ingress` qdisc.
pub fn add_clsact(ifindex: u32) -> io::Result<()> {
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let request = Request::new(RTM_NEWQDISC, flags, ifindex, TC_H_CLSACT, TC_H_CLSACT_HANDLE, 0);
    exchange(request.attribute(TCA_KIND, b"clsact\0"), |_| {})
}

fn delete_clsact(ifindex: u32) -> io::Result<()> {
    let request = Request::new(RTM_DELQDISC, NLM_F_ACK, ifindex, TC_H_CLSACT, TC_H_CLSACT_HANDLE, 0);
    exchange(request.attribute(TCA_KIND, b"clsact\0"), |_| {})
}

fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => TC_H_MIN_EGRESS,
        Direction::Ingress => TC_H_MIN_INGRESS,
    }
}

/// Adds a direct-action filter. Its priority is chosen by the kernel: before all that are there.
///
/// # Errors
/// What the kernel says; ENOENT or EINVAL without a `clsact` qdisc.
pub fn add_filter(ifindex: u32, direction: Direction, program: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut options = Request { bytes: Vec::new() }.attribute(TCA_BPF_FD, &(program.as_raw_fd() as u32).to_ne_bytes());
    let mut name_z = name.as_bytes().to_vec();
    name_z.push(0);
    options = options.attribute(TCA_BPF_NAME, &name_z).attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    let request = Request::new(RTM_NEWTFILTER, flags, ifindex, parent(direction), 0, ETH_P_ALL_BE)
        .attribute(TCA_KIND, b"bpf\0")
        .attribute(TCA_OPTIONS, &options.bytes);
    exchange(request, |_| {})
}

/// The filters at a hook; none without a `clsact` qdisc.
///
/// # Errors
/// What the kernel says.
pub fn filters(ifindex: u32, direction: Direction) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    let request = Request::new(RTM_GETTFILTER, NLM_F_DUMP, ifindex, parent(direction), 0, 0);
    let result = exchange(request, |payload| filters.extend(filter(payload)));
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(()) => Ok(filters),
    }
}

/// A filter from a dump; the first entry of each priority has no handle and is not one.
fn filter(payload: &[u8]) -> Option<Filter> {
    let handle = number(payload, 8);
    let info = number(payload, 16);
    let mut filter = Filter {
        priority: (info >> 16) as u16,
        handle,
        protocol: info as u16,
        kind: String::new(),
        name: String::new(),
    };
    for (kind, value) in attributes(payload.get(TCMSG_LEN..)?) {
        match kind {
            TCA_KIND => filter.kind = text(value),
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
    let request = Request::new(RTM_DELTFILTER, NLM_F_ACK, ifindex, parent(direction), filter.handle, info)
        .attribute(TCA_KIND, filter.kind.as_bytes());
    exchange(request, |_| {})
}

/// Removes our filters at one hook; those that are gone already are no error. Gives how many were removed.
///
/// # Errors
/// What the kernel says, after all were tried.
pub fn remove_ours(ifindex: u32, direction: Direction) -> io::Result<usize> {
    let mut removed = 0;
    let mut result = Ok(());
    for filter in filters(ifindex, direction)? {
        if filter.kind != "bpf" || !filter.name.starts_with(PROGRAM_PREFIX) {
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
    let failed = |what| move |source| DataPlaneError::TrafficControl { what, ifindex, source };
    netns::within(netns, || {
        let egress = remove_ours(ifindex, Direction::Egress);
        let ingress = remove_ours(ifindex, Direction::Ingress);
        egress.and(ingress).map_err(failed("removing filters"))?;
        if !had_clsact {
            remove_if_unused(ifindex).map_err(failed("removing the clsact qdisc"))?;
        }
        Ok(())
    })
    .map_err(DataPlaneError::Namespace)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_four_bytes_and_read_back() {
        let request = Request { bytes: Vec::new() }.attribute(1, b"bpf\0").attribute(7, b"abc\0d").attribute(9, &[1]);
        assert_eq!(request.bytes.len() % 4, 0);
        let read: Vec<_> = attributes(&request.bytes).collect();
        assert_eq!(read, [(1, &b"bpf\0"[..]), (7, &b"abc\0d"[..]), (9, &[1][..])]);
    }

    #[test]
    fn a_truncated_message_ends_the_list() {
        assert_eq!(attributes(&[9, 0, 1, 0, 5]).count(), 0);
        assert!(message(&[0; 15]).is_none());
        let mut long = vec![0; 16];
        long[0] = 200;
        assert!(message(&long).is_none());
    }

    #[test]
    fn a_request_knows_its_length() {
        let bytes = Request::new(RTM_NEWQDISC, NLM_F_ACK, 3, TC_H_CLSACT, 0, 0).attribute(1, b"clsact\0").finish();
        assert_eq!(number(&bytes, 0) as usize, bytes.len());
        assert_eq!(number(&bytes, HEADER_LEN + 4), 3);
    }
}
