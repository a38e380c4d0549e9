//! Packet filters of the calling thread's network namespace by nfnetlink: nftables (iptables-nft among it) and IP sets; and
//! the tables of iptables-legacy, which only its own tool can read.
//!
//! Left out: counters and quotas, and whatever rules fill by themselves (dynamic sets, elements that time out). Of
//! connection tracking only the settings are looked at, which are kernel parameters.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::socket::SockProtocol;

use super::words::{Form, Known, Names, plain, words};
use crate::netlink::{self, Request, attributes, push_attribute, text};

const NFTABLES: u16 = 10;
const IPSET: u16 = 6;
/// `nfgenmsg`.
const HEADER_LEN: usize = 4;

const NFT_GETTABLE: u16 = 1;
const NFT_GETCHAIN: u16 = 4;
const NFT_GETRULE: u16 = 7;
const NFT_GETSET: u16 = 10;
const NFT_GETSETELEM: u16 = 13;
const NFT_GETOBJ: u16 = 19;
const NFT_GETFLOWTABLE: u16 = 23;

const TABLE: u16 = 1;
const NAME: u16 = 2;
const TABLES: &[Known] = &[(1, "name", Form::Plain), (4, "handle", Form::Plain), (5, "pad", Form::Omitted)];
const CHAINS: &[Known] =
    &[(1, "table", Form::Plain), (2, "handle", Form::Plain), (3, "name", Form::Plain), (8, "counters", Form::Omitted)];
const RULE_EXPRESSIONS: u16 = 4;
const RULES: &[Known] = &[
    (1, "table", Form::Plain),
    (2, "chain", Form::Plain),
    (3, "handle", Form::Plain),
    (RULE_EXPRESSIONS, "expressions", Form::Omitted),
    (6, "after", Form::Plain),
];
/// Expressions whose data is their state.
const STATEFUL: [&str; 3] = ["counter", "quota", "last"];
const SET_FLAGS: u16 = 3;
/// `NFT_SET_TIMEOUT` and `NFT_SET_EVAL`: filled by rules, or emptied by time.
const SET_DYNAMIC: u32 = 0x10 | 0x20;
const SETS: &[Known] = &[(1, "table", Form::Plain), (2, "name", Form::Plain), (22, "count", Form::Omitted)];
const SET_ELEMENTS: u16 = 3;
const ELEMENTS: &[Known] = &[
    (1, "key", Form::Plain),
    (2, "data", Form::Plain),
    (5, "expires", Form::Omitted),
    (7, "state", Form::Omitted),
    (11, "state", Form::Omitted),
];
const OBJECTS: &[Known] = &[(1, "table", Form::Plain), (2, "name", Form::Plain), (4, "state", Form::Omitted)];
const FLOWTABLES: &[Known] = &[(1, "table", Form::Plain), (2, "name", Form::Plain)];

fn list(subsystem: u16, command: u16, attributes: &[(u16, &[u8])]) -> io::Result<Vec<Vec<u8>>> {
    // The family: all of nftables; any for sets.
    let request = Request::new(subsystem << 8 | command, 0, &[0; HEADER_LEN]);
    let request = attributes.iter().fold(request, |request, (kind, value)| request.attribute(*kind, value));
    let mut all = netlink::dump(SockProtocol::NetlinkNetFilter, request)?;
    all.retain(|message| message.len() >= HEADER_LEN);
    Ok(all)
}

/// As [`list`]; a kernel without the subsystem has nothing of it.
fn list_or_none(subsystem: u16, command: u16, attributes: &[(u16, &[u8])]) -> io::Result<Vec<Vec<u8>>> {
    const ABSENT: [i32; 5] = [libc::EINVAL, libc::ENOENT, libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::ENOPROTOOPT];
    match list(subsystem, command, attributes) {
        Err(e) if e.raw_os_error().is_some_and(|code| ABSENT.contains(&code)) => Ok(Vec::new()),
        other => other,
    }
}

fn value(message: &[u8], kind: u16) -> &[u8] {
    attributes(&message[HEADER_LEN..]).find(|(k, _)| *k == kind).map(|(_, value)| value).unwrap_or_default()
}

/// Tables, chains, rules, sets with their elements, objects and flow tables, with handles.
pub(super) fn nftables() -> io::Result<Vec<String>> {
    let none = Names::new();
    let tables = list_or_none(NFTABLES, NFT_GETTABLE, &[])?;
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let mut lines = Vec::new();
    let mut add = |what: &str, message: &[u8], known: &[Known], more: &str| {
        lines.push(format!("{what} family {}{}{more}", message[0], words(&message[HEADER_LEN..], known, &none)));
    };
    tables.iter().for_each(|table| add("table", table, TABLES, ""));
    for (what, command, known) in
        [("chain", NFT_GETCHAIN, CHAINS), ("object", NFT_GETOBJ, OBJECTS), ("flowtable", NFT_GETFLOWTABLE, FLOWTABLES)]
    {
        list_or_none(NFTABLES, command, &[])?.iter().for_each(|found| add(what, found, known, ""));
    }
    for rule in list(NFTABLES, NFT_GETRULE, &[])? {
        add("rule", &rule, RULES, &expressions(value(&rule, RULE_EXPRESSIONS)));
    }
    for set in list(NFTABLES, NFT_GETSET, &[])? {
        add("set", &set, SETS, "");
        let flags = <[u8; 4]>::try_from(value(&set, SET_FLAGS)).map_or(0, u32::from_be_bytes);
        if flags & SET_DYNAMIC != 0 {
            continue;
        }
        for part in elements(&set)? {
            for (_, element) in attributes(value(&part, SET_ELEMENTS)) {
                let (table, name) = (text(value(&set, TABLE)), text(value(&set, NAME)));
                let mut message = vec![part[0]; HEADER_LEN];
                message.extend(element);
                add(&format!("element of {table} {name}"), &message, ELEMENTS, "");
            }
        }
    }
    Ok(lines)
}

fn elements(set: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    // The family must be that of the table.
    let request = Request::new(NFTABLES << 8 | NFT_GETSETELEM, 0, &[set[0], 0, 0, 0]);
    let request = request.attribute(TABLE, value(set, TABLE)).attribute(NAME, value(set, NAME));
    match netlink::dump(SockProtocol::NetlinkNetFilter, request) {
        // Its set has just gone.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        other => other,
    }
}

fn expressions(list: &[u8]) -> String {
    const DATA: u16 = 2;
    let mut line = " does".to_owned();
    for (_, expression) in attributes(list) {
        let name = attributes(expression).find(|(kind, _)| *kind == 1).map(|(_, name)| text(name)).unwrap_or_default();
        let data = attributes(expression).find(|(kind, _)| *kind == DATA).map(|(_, data)| data).unwrap_or_default();
        let shown = if STATEFUL.contains(&name.as_str()) { String::new() } else { format!("({})", plain(data)) };
        line.push_str(&format!(" {name}{shown}"));
    }
    line
}

const IPSET_LIST: u16 = 7;
const IPSET_PROTOCOL: (u16, &[u8]) = (1, &[7]);
const IPSET_DATA: u16 = 7;
const IPSET_ELEMENTS: u16 = 8;
const SETS_OF_IP: &[Known] = &[
    (1, "protocol", Form::Omitted),
    (2, "name", Form::Plain),
    (3, "type", Form::Plain),
    (IPSET_DATA, "data", Form::Omitted),
    (IPSET_ELEMENTS, "elements", Form::Omitted),
];
/// Hash size, elements, references and memory of a set: they follow what is in it.
const SET_OF_IP_GROWS: [u16; 4] = [18, 24, 25, 26];
const ELEMENT_TIMEOUT: u16 = 6;
const ELEMENT_COUNTERS: [u16; 2] = [24, 25];

/// IP sets (ipset(8)), where the kernel has them already: to ask would load the module.
pub(super) fn ipsets() -> io::Result<Vec<String>> {
    if !Path::new("/sys/module/ip_set").exists() {
        return Ok(Vec::new());
    }
    let (mut lines, none) = (Vec::new(), Names::new());
    let without = |bytes: &[u8], left_out: &[u16]| {
        let mut kept = Vec::new();
        for (kind, value) in attributes(bytes).filter(|(kind, _)| !left_out.contains(kind)) {
            push_attribute(&mut kept, kind, value);
        }
        words(&kept, &[], &none)
    };
    for part in list_or_none(IPSET, IPSET_LIST, &[IPSET_PROTOCOL])? {
        let name = text(value(&part, NAME));
        let data = value(&part, IPSET_DATA);
        if !data.is_empty() {
            let known = words(&part[HEADER_LEN..], SETS_OF_IP, &none);
            lines.push(format!("set{known}{}", without(data, &SET_OF_IP_GROWS)));
        }
        for (_, element) in attributes(value(&part, IPSET_ELEMENTS)) {
            if !attributes(element).any(|(kind, _)| kind == ELEMENT_TIMEOUT) {
                lines.push(format!("element of {name}{}", without(element, &ELEMENT_COUNTERS)));
            }
        }
    }
    Ok(lines)
}

/// The tables of iptables-legacy in the words of `iptables-legacy-save`, whose output is meant for programs. Where it is not
/// installed, the names of the tables.
pub(super) fn legacy() -> Vec<String> {
    let families = [("ip", "iptables-legacy-save"), ("ip6", "ip6tables-legacy-save")];
    families.iter().flat_map(|(family, tool)| legacy_family(family, tool)).collect()
}

fn legacy_family(family: &str, tool: &str) -> Vec<String> {
    // /proc/net is the process's own namespace, not the thread's. Without a table the tool would load some.
    let names = fs::read_to_string(format!("/proc/thread-self/net/{family}_tables_names")).unwrap_or_default();
    if names.is_empty() {
        return Vec::new();
    }
    let output = Command::new(tool).stdin(Stdio::null()).stderr(Stdio::null()).output();
    match output.ok().filter(|o| o.status.success()) {
        Some(output) => saved(family, &String::from_utf8_lossy(&output.stdout)),
        None => names.lines().map(|name| format!("{family} table {name}")).collect(),
    }
}

/// The lines of a saved rule set, each with its table and number, without comments (which have the time) and the
/// counters of the chains.
fn saved(family: &str, text: &str) -> Vec<String> {
    let (mut table, mut lines, mut at) = (String::new(), Vec::new(), 0);
    for line in text.lines().filter(|line| !line.starts_with('#') && *line != "COMMIT") {
        match line.strip_prefix('*') {
            Some(name) => (table, at) = (name.to_owned(), 0),
            None => {
                at += 1;
                let end = if line.starts_with(':') { line.rfind(" [").unwrap_or(line.len()) } else { line.len() };
                lines.push(format!("{family} table {table} {at}: {}", &line[..end]));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saved_rule_set_is_told_without_time_and_counters() {
        let text =
            "# Generated on Mon\n*filter\n:INPUT ACCEPT [12:345]\n-A INPUT -p tcp -j DROP\nCOMMIT\n# Completed\n";
        assert_eq!(
            saved("ip", text),
            ["ip table filter 1: :INPUT ACCEPT", "ip table filter 2: -A INPUT -p tcp -j DROP"]
        );
    }

    #[test]
    fn the_state_of_an_expression_is_left_out() {
        let rule = |name: &[u8], data: &[u8]| {
            let (mut expression, mut list) = (Vec::new(), Vec::new());
            push_attribute(&mut expression, 1, name);
            push_attribute(&mut expression, 2, data);
            push_attribute(&mut list, 1, &expression);
            expressions(&list)
        };
        assert_eq!(rule(b"counter\0", &[1; 8]), rule(b"counter\0", &[2; 8]));
        assert_ne!(rule(b"cmp\0", &[1; 8]), rule(b"cmp\0", &[2; 8]));
    }
}
