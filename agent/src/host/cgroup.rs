//! Control groups of the v2 hierarchy, wherever it is mounted.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use firedrill_model::facts::{CgroupRef, ProcessRef};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::process;
use crate::crash_point;

/// Where the v2 hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` in hybrid mode.
pub fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (_, path, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// A group by its path below the mount point.
///
/// # Errors
/// No v2 hierarchy is mounted, or there is no such group.
pub fn find(path: &str) -> io::Result<CgroupRef> {
    at(&path_of(path)?)
}

/// Directory of a group by its path below the mount point; it need not exist.
///
/// # Errors
/// No v2 hierarchy is mounted, or the path leads out of it.
pub fn path_of(path: &str) -> io::Result<PathBuf> {
    let root =
        mount_point().ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "no cgroup v2 hierarchy is mounted"))?;
    let below = Path::new(path.trim_matches('/'));
    if below.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("`{path}` is not a path below {}", root.display()),
        ));
    }
    Ok(root.join(below.components().collect::<PathBuf>()))
}

/// Whether it is the root of the hierarchy, which holds every process of the host.
pub fn is_root(cgroup: &CgroupRef) -> bool {
    mount_point().and_then(|root| at(&root).ok()).is_some_and(|root| root.id == cgroup.id)
}

/// Whether a group above it is frozen or asked to be.
pub fn has_frozen_ancestor(cgroup: &CgroupRef) -> bool {
    let value = |d: &Path| fs::read_to_string(d.join("cgroup.freeze")).unwrap_or_default();
    Path::new(&cgroup.path).ancestors().skip(1).any(|above| value(above).trim() == "1")
}

/// A group by its directory.
///
/// # Errors
/// There is no such directory.
pub fn at(directory: &Path) -> io::Result<CgroupRef> {
    let meta = fs::metadata(directory)?;
    Ok(CgroupRef { path: directory.display().to_string(), id: meta.ino() })
}

/// Whether the path still names the same group.
pub fn is_same(cgroup: &CgroupRef) -> bool {
    fs::metadata(&cgroup.path).is_ok_and(|m| m.ino() == cgroup.id)
}

/// Path of a process's group below the mount point: the `0::` line of `/proc/PID/cgroup`.
pub fn of_process(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|l| l.strip_prefix("0::")).map(str::to_owned)
}

/// All processes of a group and of the groups below it; none when it is gone, whatever has its path now.
pub fn processes(cgroup: &CgroupRef) -> Vec<ProcessRef> {
    let mut found = Vec::new();
    if !is_same(cgroup) {
        return found;
    }
    for directory in tree(Path::new(&cgroup.path)) {
        let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        let stats = pids.lines().filter_map(|l| l.parse().ok()).filter_map(|pid| process::stat(pid).ok());
        found.extend(stats.filter(|s| s.state != 'Z').map(|s| s.process));
    }
    found.sort_by_key(|p| p.pid);
    found
}

/// The group's directory and all below it, parents first.
pub fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut list = vec![directory.to_owned()];
    let mut next = 0;
    while next < list.len() {
        if let Ok(entries) = fs::read_dir(&list[next]) {
            let mut below: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
            below.sort();
            list.extend(below);
        }
        next += 1;
    }
    list
}

/// Paths of all groups below the mount point.
pub fn all() -> Vec<String> {
    let Some(root) = mount_point() else { return Vec::new() };
    let below = |p: PathBuf| p.strip_prefix(&root).ok().map(|p| p.display().to_string());
    tree(&root).into_iter().filter_map(below).filter(|p| !p.is_empty()).collect()
}

/// A file of this very group: one that has its path by now is not opened.
fn open(cgroup: &CgroupRef, name: &str, flags: OFlag) -> io::Result<File> {
    let directory = nix::fcntl::open(Path::new(&cgroup.path), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let directory = File::from(directory);
    if directory.metadata()?.ino() != cgroup.id {
        let why = format!("{} is another group than it was: it was removed and made anew", cgroup.path);
        return Err(io::Error::new(io::ErrorKind::NotFound, why));
    }
    Ok(File::from(openat(&directory, name, flags | OFlag::O_CLOEXEC, Mode::empty())?))
}

fn read(cgroup: &CgroupRef, name: &str) -> io::Result<String> {
    let mut text = String::new();
    open(cgroup, name, OFlag::O_RDONLY)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Whether the group is wholly frozen (`frozen 1` in `cgroup.events`), not only asked to be.
pub fn is_frozen(cgroup: &CgroupRef) -> bool {
    let events = read(cgroup, "cgroup.events").unwrap_or_default();
    events.lines().any(|l| l == "frozen 1")
}

/// The value that was asked for: content of `cgroup.freeze`.
///
/// # Errors
/// There is no such group, or it is the root, which cannot be frozen.
pub fn freeze_value(cgroup: &CgroupRef) -> io::Result<String> {
    Ok(read(cgroup, "cgroup.freeze")?.trim().to_owned())
}

/// Asks for a freeze (`1`) or a thaw (`0`).
///
/// # Errors
/// As [`freeze_value`], or no right to write.
pub fn set_freeze(cgroup: &CgroupRef, value: &str) -> io::Result<()> {
    let mut file = open(cgroup, "cgroup.freeze", OFlag::O_WRONLY)?;
    crash_point::around("cgroup.freeze", || file.write_all(value.as_bytes()))
}
