//! TCP connections and listening sockets as the kernel lists them (sock_diag(7), `linux/inet_diag.h`): whose they are, and their end.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use firedrill_model::change::SocketOwner;
use nix::errno::Errno;
use nix::libc::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use nix::sys::socket::SockProtocol;

use super::{cgroup, process};
use crate::crash_point;
use crate::netlink::{self, Request};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// States of the kernel's `net/tcp_states.h` in which a connection carries data at least one way.
const ESTABLISHED: u8 = 1;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE_WAIT: u8 = 8;
/// Those of sockets that wait for others: of TCP, and of UDP.
const LISTEN: u8 = 10;
const UNCONNECTED: u8 = 7;

/// Lengths of `struct inet_diag_msg`, and of the `struct inet_diag_sockid` in it, which begins after four bytes.
const MESSAGE_LEN: usize = 72;
const ID: std::ops::Range<usize> = 4..52;
/// Where the socket's inode number is in the former, and its cookie in the latter.
const INODE_AT: usize = 68;
const COOKIE: std::ops::Range<usize> = 40..48;

/// One end of a TCP connection, or a socket that waits for others; the port of its peer is 0 then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    family: u8,
    id: [u8; 48],
    /// Its own address and port; IPv4 addresses in their own form, also of a socket for both families.
    pub local: SocketAddr,
    /// Those of the other side.
    pub peer: SocketAddr,
    /// Inode number of its socket, by which the descriptors of processes tell it; 0 before it was accepted.
    pub inode: u64,
    /// Id of the cgroup (v2) in which its socket was made; 0 where the kernel (before 5.8) does not tell.
    pub cgroup: u64,
}

impl Connection {
    /// What it is known by: no other socket has it until the next boot.
    pub fn cookie(&self) -> [u8; 8] {
        let mut cookie = [0; 8];
        cookie.copy_from_slice(&self.id[COOKIE]);
        cookie
    }
}

/// What became of a connection that was to be destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// The kernel has ended it.
    Done,
    /// It had ended by itself.
    Gone,
}

/// The established TCP connections of the calling thread's network namespace, half-closed ones included; of one that both
/// ends are here, both.
///
/// # Errors
/// The kernel cannot list them.
pub fn established() -> io::Result<Vec<Connection>> {
    let mut all = list(IPPROTO_TCP, &[ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT])?;
    // A socket that its process has closed has no inode any more. One that was not accepted yet has none either.
    all.retain(|(connection, state)| connection.inode != 0 || *state == ESTABLISHED);
    Ok(all.into_iter().map(|(connection, _)| connection).collect())
}

/// The sockets of an owner in the calling thread's network namespace that wait for others: those that listen (TCP), or when
/// there are none those without a peer (UDP).
///
/// # Errors
/// The kernel cannot list them.
pub fn listening(owner: &Owned) -> io::Result<Vec<Connection>> {
    for (protocol, state) in [(IPPROTO_TCP, LISTEN), (IPPROTO_UDP, UNCONNECTED)] {
        let all = list(protocol, &[state])?.into_iter().map(|(socket, _)| socket);
        let its: Vec<Connection> = all.filter(|socket| owner.holds(socket)).collect();
        if !its.is_empty() {
            return Ok(its);
        }
    }
    Ok(Vec::new())
}

fn list(protocol: i32, states: &[u8]) -> io::Result<Vec<(Connection, u8)>> {
    let states = states.iter().fold(0_u32, |all, state| all | 1 << state);
    let mut all = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let request = Request::new(SOCK_DIAG_BY_FAMILY, 0, &fixed(family as u8, protocol as u8, states, &[0; 48]));
        let sockets = netlink::dump(SockProtocol::NetlinkSockDiag, request)?;
        all.extend(sockets.iter().filter_map(|message| parse(message)));
    }
    Ok(all)
}

/// The cookie of the socket at one end of a connection in the calling thread's network namespace, by which programs know it, too.
///
/// # Errors
/// ENOENT where there is none.
pub fn cookie_of(local: SocketAddr, peer: SocketAddr) -> io::Result<u64> {
    let (local, peer) = (canonical(local), canonical(peer));
    let mut id = [0; 48];
    id[0..2].copy_from_slice(&local.port().to_be_bytes());
    id[2..4].copy_from_slice(&peer.port().to_be_bytes());
    for (at, address) in [(4, local.ip()), (20, peer.ip())] {
        match address {
            IpAddr::V4(v4) => id[at..at + 4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => id[at..at + 16].copy_from_slice(&v6.octets()),
        }
    }
    // `INET_DIAG_NOCOOKIE`: whatever it is.
    id[COOKIE].fill(0xff);
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    let request = Request::new(SOCK_DIAG_BY_FAMILY, 0, &fixed(family as u8, IPPROTO_TCP as u8, u32::MAX, &id));
    let answers = netlink::ask(SockProtocol::NetlinkSockDiag, request)?;
    let found = answers.iter().find_map(|answer| parse(answer)).map(|(connection, _)| connection.cookie());
    found.map(u64::from_ne_bytes).ok_or_else(|| io::Error::from_raw_os_error(Errno::ENOENT as i32))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Destroys a connection of the calling thread's network namespace: both ends are told.
///
/// # Errors
/// The right (CAP_NET_ADMIN) is missing, or the kernel cannot do it.
pub fn destroy(connection: &Connection) -> io::Result<Destroyed> {
    let request = Request::new(SOCK_DESTROY, 0, &fixed(connection.family, IPPROTO_TCP as u8, u32::MAX, &connection.id));
    match crash_point::around("socket.destroy", || netlink::change(SockProtocol::NetlinkSockDiag, request)) {
        Ok(()) => Ok(Destroyed::Done),
        Err(e) if e.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(Destroyed::Gone),
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel was built without CONFIG_INET_DIAG_DESTROY, by which connections are destroyed; a `partition` of \
             their peers is the nearest that it can do",
        )),
        Err(e) => Err(e),
    }
}

/// `struct inet_diag_req_v2`.
fn fixed(family: u8, protocol: u8, states: u32, id: &[u8; 48]) -> Vec<u8> {
    let mut bytes = vec![family, protocol, 0, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(id);
    bytes
}

/// A connection and its state, from `struct inet_diag_msg` and its attributes.
fn parse(message: &[u8]) -> Option<(Connection, u8)> {
    let (head, attributes) = message.split_at_checked(MESSAGE_LEN)?;
    let (family, state, id) = (head[0], head[1], &head[ID]);
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let address = |at: usize| -> Option<IpAddr> {
        if i32::from(family) == AF_INET {
            let bytes: [u8; 4] = id.get(at..at + 4)?.try_into().ok()?;
            return Some(Ipv4Addr::from(bytes).into());
        }
        let bytes: [u8; 16] = id.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(bytes).to_canonical())
    };
    let cgroup = netlink::attributes(attributes).find(|(kind, _)| *kind == INET_DIAG_CGROUP_ID);
    let connection = Connection {
        family,
        id: id.try_into().ok()?,
        local: SocketAddr::new(address(4)?, port(0)),
        peer: SocketAddr::new(address(20)?, port(2)),
        inode: netlink::number(head, INODE_AT).into(),
        cgroup: cgroup.and_then(|(_, id)| Some(u64::from_ne_bytes(id.try_into().ok()?))).unwrap_or_default(),
    };
    Some((connection, state))
}

/// By what the sockets of an owner are known: the groups in which their sockets were made, and who holds them.
#[derive(Debug)]
pub struct Owned {
    groups: HashSet<u64>,
    sockets: HashSet<u64>,
}

impl Owned {
    /// Right now.
    pub fn of(owner: &SocketOwner) -> Self {
        let (groups, holders) = match owner {
            SocketOwner::Cgroup(group) => {
                let tree = cgroup::tree(Path::new(&group.path));
                let ids = tree.iter().filter_map(|directory| Some(fs::metadata(directory).ok()?.ino()));
                (ids.collect(), cgroup::processes(group))
            }
            SocketOwner::Processes(list) => {
                (HashSet::new(), list.iter().filter(|p| process::is_alive(p)).cloned().collect())
            }
        };
        Self { groups, sockets: holders.iter().flat_map(|p| process::sockets(p.pid)).collect() }
    }

    /// Whether a socket is one of them.
    pub fn holds(&self, connection: &Connection) -> bool {
        self.groups.contains(&connection.cgroup) || self.sockets.contains(&connection.inode)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn both_ends_of_a_connection_are_listed_with_addresses_and_inodes_in_either_family() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                println!("UNSUPPORTED: this machine has no {address}");
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
            let (server, _) = listener.accept().expect("accepted");
            let listed = established().expect("listed");
            for end in [&client, &server] {
                let (local, peer) = (end.local_addr().expect("local"), end.peer_addr().expect("peer"));
                let found = listed.iter().find(|c| (c.local, c.peer) == (local, peer)).expect("in the list");
                let link = fs::read_link(format!("/proc/self/fd/{}", end.as_raw_fd())).expect("a socket");
                assert_eq!(link.display().to_string(), format!("socket:[{}]", found.inode));
            }
        }
    }

    #[test]
    fn an_ipv4_connection_of_a_socket_for_both_families_has_ipv4_addresses() {
        let mut message = vec![0; MESSAGE_LEN];
        message[0] = AF_INET6 as u8;
        message[1] = ESTABLISHED;
        message[4..8].copy_from_slice(&[0x1f, 0x90, 0x30, 0x39]);
        message[8..24].copy_from_slice(&Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets());
        message[24..40].copy_from_slice(&Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped().octets());
        message[44..52].copy_from_slice(&[7; 8]);
        message[68..72].copy_from_slice(&99_u32.to_ne_bytes());
        netlink::push_attribute(&mut message, INET_DIAG_CGROUP_ID, &5_u64.to_ne_bytes());
        let (connection, state) = parse(&message).expect("whole");
        assert_eq!((connection.local.to_string().as_str(), state), ("10.0.0.1:8080", ESTABLISHED));
        assert_eq!(connection.peer.to_string(), "10.0.0.2:12345");
        assert_eq!((connection.inode, connection.cgroup, connection.cookie()), (99, 5, [7; 8]));
        assert!(parse(&message[..MESSAGE_LEN - 1]).is_none());
    }
}
