//! Plain netlink (netlink(7)): requests, dumps and attributes as bytes, for what has no types of its own here.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
/// Fail when it is there already.
pub const NLM_F_EXCL: u16 = 0x200;
/// Make it when it is not there.
pub const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_TYPE_MASK: u16 = 0x3fff;

const HEADER_LEN: usize = 16;
/// How often a list that changed while it was read is read again.
const DUMP_TRIES: usize = 10;

/// A request: header, the fixed part of its kind, attributes.
#[derive(Clone, Debug)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of a kind, with its fixed part.
    pub fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(fixed);
        Self { bytes }
    }

    /// Adds an attribute.
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        push_attribute(&mut self.bytes, kind, value);
        self
    }

    fn finish(mut self, flags: u16) -> Vec<u8> {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes
    }
}

/// Adds an attribute to others, such as those inside another attribute.
pub fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend((value.len() as u16 + 4).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Asks for a change and waits until it is made. In the calling thread's network namespace, as [`dump`].
///
/// # Errors
/// What the kernel says.
pub fn change(protocol: SockProtocol, request: Request) -> io::Result<()> {
    exchange(protocol, &request.finish(NLM_F_ACK), |_| {}).map(drop)
}

/// The payloads (fixed part and attributes) of all answers to a request that lists something. A list that changes
/// while it is read is read again.
///
/// # Errors
/// What the kernel says.
pub fn dump(protocol: SockProtocol, request: Request) -> io::Result<Vec<Vec<u8>>> {
    let bytes = request.finish(NLM_F_DUMP);
    for _ in 0..DUMP_TRIES {
        let mut list = Vec::new();
        if exchange(protocol, &bytes, |payload| list.push(payload.to_vec()))? == List::Whole {
            return Ok(list);
        }
    }
    Err(io::Error::other(format!("netlink: the list changed {DUMP_TRIES} times while it was read")))
}

/// The payloads of the answers to a request about one thing, which is not changed.
///
/// # Errors
/// What the kernel says: ENOENT where there is no such thing.
pub fn ask(protocol: SockProtocol, request: Request) -> io::Result<Vec<Vec<u8>>> {
    let mut answers = Vec::new();
    exchange(protocol, &request.finish(NLM_F_ACK), |payload| answers.push(payload.to_vec()))?;
    Ok(answers)
}

#[derive(PartialEq, Eq)]
enum List {
    Whole,
    Torn,
}

fn exchange(protocol: SockProtocol, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<List> {
    let netlink = open(protocol)?;
    // The crash points are around the calls of `change`: all else only asks.
    send(netlink.as_raw_fd(), request, MsgFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    let mut list = List::Whole;
    loop {
        let len = match recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(nix::Error::EINTR) => continue,
            other => other?,
        };
        let mut rest = &buffer[..len];
        while let Some((kind, flags, payload, next)) = message(rest) {
            if flags & NLM_F_DUMP_INTR != 0 {
                list = List::Torn;
            }
            match kind {
                NLMSG_DONE | NLMSG_ERROR => {
                    let code = number(payload, 0).cast_signed();
                    return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(list) };
                }
                _ => each(payload),
            }
            rest = next;
        }
    }
}

fn open(protocol: SockProtocol) -> io::Result<OwnedFd> {
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    bind(netlink.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    Ok(netlink)
}

/// Kind, flags and payload of the first message, and what follows it.
fn message(bytes: &[u8]) -> Option<(u16, u16, &[u8], &[u8])> {
    let header = bytes.get(..HEADER_LEN)?;
    let len = number(header, 0) as usize;
    let payload = bytes.get(HEADER_LEN..len)?;
    let next = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    Some((half(4), half(6), payload, next))
}

/// Kinds and values of attributes, without their flags. Ends at the first that is cut off.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let len = u16::from_ne_bytes([header[0], header[1]]) as usize;
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A text that ends with NUL.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A number of four bytes, in this machine's order; 0 beyond the end.
pub fn number(payload: &[u8], at: usize) -> u32 {
    payload.get(at..at + 4).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_four_bytes_and_read_back() {
        let request = Request::new(1, 0, &[]).attribute(1, b"bpf\0").attribute(7, b"abc\0d").attribute(9, &[1]);
        assert_eq!(request.bytes.len() % 4, 0);
        let read: Vec<_> = attributes(&request.bytes[HEADER_LEN..]).collect();
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
    fn a_request_knows_its_length_and_flags() {
        let bytes = Request::new(36, NLM_F_EXCL, &[0; 20]).attribute(1, b"clsact\0").finish(NLM_F_ACK);
        assert_eq!(number(&bytes, 0) as usize, bytes.len());
        assert_eq!(u16::from_ne_bytes([bytes[6], bytes[7]]), NLM_F_REQUEST | NLM_F_EXCL | NLM_F_ACK);
    }
}
