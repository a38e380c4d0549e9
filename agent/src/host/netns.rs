//! Network namespaces: how to name, enter and know them.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use firedrill_model::facts::{Interface, NetnsRef};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nameindex;
use nix::sys::socket::SockaddrStorage;

use super::process;
use crate::dataplane;
use crate::sys::tun;

/// Directory of the named namespaces (ip-netns(8)).
pub const NAMED: &str = "/run/netns";

/// What the host's own namespace is called.
const HOST: &str = "host";

/// The namespace at a path.
///
/// # Errors
/// There is nothing there.
pub fn at(path: &str) -> io::Result<NetnsRef> {
    let meta = fs::metadata(path)?;
    Ok(NetnsRef { path: path.to_owned(), inode: meta.ino() })
}

/// The namespace with a name under `/run/netns`, or at an absolute path. `host`, unless there is one of that name, is our
/// own.
///
/// # Errors
/// There is none.
pub fn named(name: &str) -> io::Result<NetnsRef> {
    if name.starts_with('/') {
        return at(name);
    }
    at(&format!("{NAMED}/{name}")).or_else(|e| if name == HOST { at("/proc/self/ns/net") } else { Err(e) })
}

/// The namespace of a process.
///
/// # Errors
/// The process is gone.
pub fn of_process(pid: i32) -> io::Result<NetnsRef> {
    at(&format!("/proc/{pid}/ns/net"))
}

/// Names under `/run/netns`.
pub fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NAMED) else { return Vec::new() };
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// The same namespace by the path that leads to it longest: our own, its name, or else the path given. A process
/// that is faulted may end, and its `/proc/PID/ns/net` with it.
pub fn lasting(netns: NetnsRef) -> NetnsRef {
    lasting_paths()
        .find(|path| is_at(path, netns.inode))
        .map(|path| NetnsRef { path, inode: netns.inode })
        .unwrap_or(netns)
}

fn lasting_paths() -> impl Iterator<Item = String> {
    std::iter::once("/proc/self/ns/net".to_owned()).chain(names().into_iter().map(|name| format!("{NAMED}/{name}")))
}

fn is_at(path: &str, inode: u64) -> bool {
    fs::metadata(path).is_ok_and(|m| m.ino() == inode)
}

/// Opens a namespace. When its path does not lead to it any more, such as that of a process which has ended, it is
/// looked for by its inode among the named ones and those of other processes.
///
/// # Errors
/// `NotFound`: it is gone. (The kernel gives the inode to no other namespace while any process or mount holds it.)
pub fn open(netns: &NetnsRef) -> io::Result<File> {
    let at = |path: &str| File::open(path).ok().filter(|f| f.metadata().is_ok_and(|m| m.ino() == netns.inode));
    let of_processes = || process::all().into_iter().map(|s| format!("/proc/{}/ns/net", s.process.pid));
    at(&netns.path)
        .or_else(|| lasting_paths().chain(of_processes()).find_map(|path| at(&path)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("the network namespace {} is gone", netns.path)))
}

/// Runs `work` inside a namespace, on a thread of its own.
///
/// # Errors
/// It cannot be entered; errors of the work itself are in its result.
pub fn within<T: Send>(netns: &NetnsRef, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = open(netns)?;
    dataplane::within(file.as_fd(), work)
}

/// The interfaces of a namespace, those of our delay lines left out.
///
/// # Errors
/// It cannot be entered.
pub fn interfaces(netns: &NetnsRef) -> io::Result<Vec<Interface>> {
    within(netns, || -> io::Result<Vec<Interface>> {
        let mut list = Vec::new();
        for entry in if_nameindex()?.iter() {
            let name = entry.name().to_string_lossy().into_owned();
            // An interface may vanish between the list and the question: then it is not there.
            let Ok(hardware) = tun::hardware_type(&name) else { continue };
            // Those of our own delay lines are no part of the namespace.
            if dataplane::is_own_tap(&name) {
                continue;
            }
            list.push(Interface {
                index: entry.index(),
                loopback: hardware == tun::HARDWARE_LOOPBACK,
                ethernet: matches!(hardware, tun::HARDWARE_ETHERNET | tun::HARDWARE_LOOPBACK),
                name,
            });
        }
        list.sort_by_key(|i| i.index);
        Ok(list)
    })?
}

/// The addresses of the calling thread's namespace, each with the name of its interface.
///
/// # Errors
/// The kernel cannot list them.
pub fn addresses() -> io::Result<Vec<(String, IpAddr)>> {
    let ip = |address: &SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    let all = getifaddrs()?.filter_map(|entry| Some((ip(entry.address.as_ref()?)?, entry.interface_name)));
    Ok(all.map(|(ip, name)| (name, ip)).collect())
}
