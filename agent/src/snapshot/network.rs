//! The calling thread's network namespace by rtnetlink(7): links, addresses, routes, rules, neighbours.
//!
//! Left out, because it changes by itself: counters; ages and lifetimes; what the kernel has learnt (neighbours that are
//! not permanent, cached routes, temporary addresses); an address's state while the kernel looks whether somebody
//! else has it; the operational state of a link, which follows its carrier up to a second later; the timers of bridges
//! and bonds; and the routes of IPv6's local table, which follow the addresses with that delay.

use std::io;

use nix::sys::socket::SockProtocol;

use super::words::{Form, Known, Names, address, interface, known_words, words};
use crate::netlink::{self, Request, attributes, number, text};

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_GETRULE: u16 = 34;

/// `ifinfomsg`, and flags that follow the carrier later (`IFF_RUNNING`).
const LINK_LEN: usize = 16;
const IFF_RUNNING: u32 = 0x40;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const LINK: &[Known] = &[
    (1, "address", Form::Address),
    (2, "broadcast", Form::Address),
    (4, "mtu", Form::Number),
    (5, "on", Form::Number),
    (10, "master", Form::Interface),
    (13, "txqueuelen", Form::Number),
    (17, "mode", Form::Number),
    (20, "alias", Form::Plain),
    (27, "group", Form::Number),
    (30, "promiscuity", Form::Number),
    (31, "tx-queues", Form::Number),
    (32, "rx-queues", Form::Number),
    (37, "netns", Form::Number),
    (40, "gso-segments", Form::Number),
    (41, "gso-size", Form::Number),
    (43, "xdp", Form::Plain),
];
/// Their data has timers and counters in it.
const TICKING_LINKS: [&str; 2] = ["bridge", "bond"];

/// `ifaddrmsg`.
const ADDRESS_LEN: usize = 8;
const IFA_F_TEMPORARY: u32 = 0x01;
/// `IFA_F_TENTATIVE` and `IFA_F_OPTIMISTIC`.
const IFA_F_PENDING: u32 = 0x40 | 0x04;
const IFA_FLAGS: u16 = 8;
const ADDRESS: &[Known] = &[
    (1, "address", Form::Address),
    (2, "local", Form::Address),
    (3, "label", Form::Plain),
    (4, "broadcast", Form::Address),
    (6, "ages", Form::Omitted),
    (IFA_FLAGS, "flags", Form::Omitted),
    (9, "metric", Form::Number),
    (11, "protocol", Form::Number),
];

/// `rtmsg`.
const ROUTE_LEN: usize = 12;
const RTM_F_CLONED: u32 = 0x200;
const RTPROT_KERNEL: u8 = 2;
const RT_TABLE_LOCAL: u32 = 255;
const RTA_DST: u16 = 1;
const RTA_TABLE: u16 = 15;
const ROUTE: &[Known] = &[
    (RTA_DST, "to", Form::Omitted),
    (2, "from", Form::Address),
    (3, "iif", Form::Interface),
    (4, "dev", Form::Interface),
    (5, "via", Form::Address),
    (6, "metric", Form::Number),
    (7, "source", Form::Address),
    (8, "metrics", Form::Plain),
    (9, "hops", Form::Plain),
    (12, "ages", Form::Omitted),
    (RTA_TABLE, "table", Form::Number),
    (20, "preference", Form::Number),
    (23, "expires", Form::Omitted),
];

/// `fib_rule_hdr`.
const RULE_LEN: usize = 12;
const RULE: &[Known] = &[
    (1, "to", Form::Address),
    (2, "from", Form::Address),
    (3, "iif", Form::Plain),
    (6, "priority", Form::Number),
    (10, "mark", Form::Number),
    (13, "suppress-group", Form::Plain),
    (14, "suppress-prefix", Form::Plain),
    (15, "table", Form::Number),
    (16, "mask", Form::Number),
    (17, "oif", Form::Plain),
    (21, "protocol", Form::Number),
];

/// `ndmsg`.
const NEIGHBOUR_LEN: usize = 12;
const NUD_PERMANENT: u16 = 0x80;
const NTF_PROXY: u8 = 0x08;
const NEIGHBOUR: &[Known] = &[
    (1, "address", Form::Address),
    (2, "at", Form::Address),
    (3, "ages", Form::Omitted),
    (4, "probes", Form::Omitted),
];

const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

fn list(kind: u16, fixed: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    netlink::dump(SockProtocol::NetlinkRoute, Request::new(kind, 0, fixed))
}

/// For each address family; a family that the kernel does not have has none.
fn of_families(kind: u16, len: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    for family in FAMILIES {
        let mut fixed = vec![0; len];
        fixed[0] = family;
        match list(kind, &fixed) {
            Ok(found) => all.extend(found),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

fn rest(message: &[u8], len: usize) -> &[u8] {
    message.get(len..).unwrap_or_default()
}

fn value(message: &[u8], len: usize, kind: u16) -> Option<&[u8]> {
    attributes(rest(message, len)).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// The links, and their names by index.
pub(super) fn links() -> io::Result<(Vec<String>, Names)> {
    let all = list(RTM_GETLINK, &[0; LINK_LEN])?;
    let name = |link: &[u8]| value(link, LINK_LEN, IFLA_IFNAME).map(text).unwrap_or_default();
    let names: Names = all.iter().map(|link| (number(link, 4), name(link))).collect();
    let lines = all.iter().map(|link| {
        let kind = value(link, LINK_LEN, IFLA_LINKINFO).map(link_kind).unwrap_or_default();
        let (index, flags) = (number(link, 4), number(link, 8) & !IFF_RUNNING);
        let known = known_words(rest(link, LINK_LEN), LINK, &names);
        format!("{} index {index} flags {flags:#x}{kind}{known}", name(link))
    });
    Ok((lines.collect(), names))
}

fn link_kind(info: &[u8]) -> String {
    let of = |kind| attributes(info).find(|(k, _)| *k == kind).map(|(_, value)| value);
    let Some(kind) = of(IFLA_INFO_KIND).map(text) else { return String::new() };
    match of(IFLA_INFO_DATA) {
        Some(data) if !TICKING_LINKS.contains(&kind.as_str()) => {
            format!(" kind {kind} ({})", words(data, &[], &Names::new()).trim())
        }
        _ => format!(" kind {kind}"),
    }
}

pub(super) fn addresses(names: &Names) -> io::Result<Vec<String>> {
    let line = |a: &Vec<u8>| {
        let flags = value(a, ADDRESS_LEN, IFA_FLAGS).map_or(u32::from(a[2]), |v| number(v, 0));
        let (prefix, scope, dev) = (a[1], a[3], interface(number(a, 4), names));
        let known = words(rest(a, ADDRESS_LEN), ADDRESS, names);
        (flags & IFA_F_TEMPORARY == 0)
            .then(|| format!("{dev} prefix {prefix} scope {scope} flags {:#x}{known}", flags & !IFA_F_PENDING))
    };
    let all = of_families(RTM_GETADDR, ADDRESS_LEN)?;
    Ok(all.iter().filter(|a| a.len() >= ADDRESS_LEN).filter_map(line).collect())
}

pub(super) fn routes(names: &Names) -> io::Result<Vec<String>> {
    let line = |r: &Vec<u8>| {
        let (family, prefix, tos, protocol, scope, kind) = (r[0], r[1], r[3], r[5], r[6], r[7]);
        let flags = number(r, 8);
        let table = value(r, ROUTE_LEN, RTA_TABLE).map_or(u32::from(r[4]), |v| number(v, 0));
        let follows = i32::from(family) == libc::AF_INET6 && table == RT_TABLE_LOCAL && protocol == RTPROT_KERNEL;
        let to = value(r, ROUTE_LEN, RTA_DST).map_or_else(|| "default".into(), |a| format!("{}/{prefix}", address(a)));
        let known = words(rest(r, ROUTE_LEN), ROUTE, names);
        (!follows && flags & RTM_F_CLONED == 0).then(|| {
            let v = if i32::from(family) == libc::AF_INET6 { 6 } else { 4 };
            format!("IPv{v} {to} type {kind} protocol {protocol} scope {scope} tos {tos} flags {flags:#x}{known}")
        })
    };
    let all = of_families(RTM_GETROUTE, ROUTE_LEN)?;
    Ok(all.iter().filter(|r| r.len() >= ROUTE_LEN).filter_map(line).collect())
}

pub(super) fn rules(names: &Names) -> io::Result<Vec<String>> {
    let line = |r: &Vec<u8>| {
        let v = if i32::from(r[0]) == libc::AF_INET6 { 6 } else { 4 };
        let (action, flags) = (r[7], number(r, 8));
        format!(
            "IPv{v} action {action} flags {flags:#x} to /{} from /{} tos {}{}",
            r[1],
            r[2],
            r[3],
            words(rest(r, RULE_LEN), RULE, names)
        )
    };
    Ok(of_families(RTM_GETRULE, RULE_LEN)?.iter().filter(|r| r.len() >= RULE_LEN).map(line).collect())
}

/// Those that somebody has set.
pub(super) fn neighbours(names: &Names) -> io::Result<Vec<String>> {
    let mut all = of_families(RTM_GETNEIGH, NEIGHBOUR_LEN)?;
    for family in FAMILIES {
        // Proxy entries are a list of their own.
        let mut fixed = [0; NEIGHBOUR_LEN];
        (fixed[0], fixed[10]) = (family, NTF_PROXY);
        all.extend(list(RTM_GETNEIGH, &fixed).unwrap_or_default());
    }
    let line = |n: &Vec<u8>| {
        let (state, flags) = (u16::from_ne_bytes([n[8], n[9]]), n[10]);
        let dev = interface(number(n, 4), names);
        let set = state & NUD_PERMANENT != 0 || flags & NTF_PROXY != 0;
        set.then(|| {
            format!("{dev} state {state:#x} flags {flags:#x}{}", words(rest(n, NEIGHBOUR_LEN), NEIGHBOUR, names))
        })
    };
    Ok(all.iter().filter(|n| n.len() >= NEIGHBOUR_LEN).filter_map(line).collect())
}
