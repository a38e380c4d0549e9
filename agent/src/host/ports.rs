//! Ports: who listens on them, and those by which this host is reached.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use super::{netns, process};

/// The port of SSH.
const SSH: u16 = 22;
/// Names of processes that serve SSH.
const SERVERS: &[&str] = &["sshd", "dropbear"];

/// Sockets that listen (TCP) or are bound and unconnected (UDP) in the namespace of a process, by inode, with their port
/// (proc_pid_net(5)). The kernel walks all of its hash tables for this, which takes milliseconds.
pub fn listening(pid: i32) -> HashMap<u64, u16> {
    const TCP_LISTEN: &str = "0A";
    const UDP_UNCONNECTED: &str = "07";
    let mut sockets = HashMap::new();
    for (table, state) in
        [("tcp", TCP_LISTEN), ("tcp6", TCP_LISTEN), ("udp", UDP_UNCONNECTED), ("udp6", UDP_UNCONNECTED)]
    {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = fields.get(1).and_then(|address| address.rsplit_once(':'));
            let local = local.and_then(|(_, hex)| u16::from_str_radix(hex, 16).ok());
            let inode = fields.get(9).and_then(|inode| inode.parse::<u64>().ok());
            if let (Some(port), Some(inode), Some(&there)) = (local, inode, fields.get(3))
                && there == state
            {
                sockets.insert(inode, port);
            }
        }
    }
    sockets
}

/// Ports by which this host is reached: that of SSH, those on which an SSH server of our namespace listens, that of the
/// session in which we were called, and `more`. In order, each once.
pub fn protected(more: &[u16]) -> Vec<u16> {
    let me = std::process::id().cast_signed();
    let mut ports = BTreeSet::from([SSH]);
    ports.extend(more);
    ports.extend(process::lineage(me).into_iter().filter_map(session));
    let Ok(own) = netns::of_process(me) else { return ports.into_iter().collect() };
    let servers = process::all().into_iter().filter(|s| SERVERS.contains(&s.process.comm.as_str()));
    let mut here = servers.filter(|s| netns::of_process(s.process.pid).is_ok_and(|n| n.inode == own.inode)).peekable();
    if here.peek().is_some() {
        let listening = listening(me);
        for server in here {
            ports.extend(process::sockets(server.process.pid).iter().filter_map(|inode| listening.get(inode)));
        }
    }
    ports.into_iter().collect()
}

/// Our port of the SSH session that a process was started in. With socket activation nobody called `sshd` listens.
fn session(pid: i32) -> Option<u16> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment.split(|byte| *byte == 0).find_map(|entry| of_connection(std::str::from_utf8(entry).ok()?))
}

/// `SSH_CONNECTION=client port server port` (ssh(1)).
fn of_connection(entry: &str) -> Option<u16> {
    entry.strip_prefix("SSH_CONNECTION=")?.split(' ').nth(3)?.parse().ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_and_what_is_asked_for_are_protected_in_order_and_once() {
        let ports = protected(&[9000, 22, 80]);
        assert!(ports.is_sorted() && [22, 80, 9000].iter().all(|p| ports.contains(p)), "{ports:?}");
        assert_eq!(ports.iter().filter(|p| **p == 22).count(), 1);
    }

    #[test]
    fn the_port_of_a_session_is_the_servers() {
        assert_eq!(of_connection("SSH_CONNECTION=10.0.0.9 51234 10.0.0.1 2222"), Some(2222));
        assert_eq!(of_connection("SSH_CONNECTION=fd00::9 51234 fd00::1 22"), Some(22));
        for other in ["SSH_CONNECTION=", "SSH_CONNECTION=a b c d", "SSH_CLIENT=10.0.0.9 51234 22", "PATH=/bin"] {
            assert_eq!(of_connection(other), None, "{other}");
        }
    }

    #[test]
    fn a_listener_is_found_by_its_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = listener.local_addr().expect("bound").port();
        let me = std::process::id().cast_signed();
        let listening = listening(me);
        assert!(process::sockets(me).iter().any(|inode| listening.get(inode) == Some(&port)));
    }
}
