//! Network namespaces: how to name, enter and know them.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use firedrill_model::facts::{Interface, NetnsRef};
use nix::net::if_::if_nameindex;

use crate::dataplane;
use crate::sys::tun;

/// Directory of the named namespaces (ip-netns(8)).
pub const NAMED: &str = "/run/netns";

/// The namespace at a path.
///
/// # Errors
/// There is nothing there.
pub fn at(path: &str) -> io::Result<NetnsRef> {
    let meta = fs::metadata(path)?;
    Ok(NetnsRef { path: path.to_owned(), inode: meta.ino() })
}

/// The namespace with a name under `/run/netns`, or at an absolute path.
///
/// # Errors
/// There is none.
pub fn named(name: &str) -> io::Result<NetnsRef> {
    if name.starts_with('/') { at(name) } else { at(&format!("{NAMED}/{name}")) }
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

/// Opens a namespace, if its path still leads to the same one.
///
/// # Errors
/// It is gone, or another one has taken its place.
pub fn open(netns: &NetnsRef) -> io::Result<File> {
    let file = File::open(&netns.path)?;
    if file.metadata()?.ino() != netns.inode {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} is another namespace now", netns.path)));
    }
    Ok(file)
}

/// Runs `work` inside a namespace, on a thread of its own.
///
/// # Errors
/// It cannot be entered; errors of the work itself are in its result.
pub fn within<T: Send>(netns: &NetnsRef, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let file = open(netns)?;
    dataplane::within(file.as_fd(), work)
}

/// The interfaces of a namespace.
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
