//! Choosing processes by what they are.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use firedrill_model::facts::ProcessRef;
use firedrill_model::target::ProcessSelector;

use super::TargetError;
use crate::host::process::{self, Stat};
use crate::host::{netns, ports};

/// Processes that meet every condition. Firedrill itself is never among them.
///
/// # Errors
/// There is none; the text names what is similar.
pub fn processes(selector: &ProcessSelector) -> Result<Vec<ProcessRef>, TargetError> {
    let me = std::process::id().cast_signed();
    let all: Vec<Stat> = process::all().into_iter().filter(|s| s.process.pid != me && !s.kernel_thread).collect();
    let mut listeners = selector.listens_on.map(Listeners::new);
    let mut found: Vec<ProcessRef> = all
        .iter()
        .filter(|s| matches(selector, s) && listeners.as_mut().is_none_or(|l| l.have(s.process.pid)))
        .map(|s| s.process.clone())
        .collect();
    if selector.cmdline.is_some() {
        // `sudo firedrill inject .. --process nginx` has "nginx" on its command line, too.
        let ours = process::lineage(me);
        found.retain(|process| !ours.contains(&process.pid));
    }
    if found.is_empty() { Err(nothing(selector, &all)) } else { Ok(found) }
}

fn matches(selector: &ProcessSelector, stat: &Stat) -> bool {
    let pid = stat.process.pid;
    selector.exe.as_ref().is_none_or(|wanted| exe_matches(wanted, pid))
        && selector.cmdline.as_ref().is_none_or(|wanted| process::cmdline(pid).contains(wanted.as_str()))
        && selector.user.as_ref().is_none_or(|wanted| process::uid(pid).is_some() && process::uid(pid) == uid(wanted))
}

/// A path must be the whole path; a bare name must be the file's name.
fn exe_matches(wanted: &str, pid: i32) -> bool {
    let Some(path) = process::exe(pid) else { return false };
    // The kernel marks the path of a replaced executable.
    let path = path.display().to_string();
    let path = path.trim_end_matches(" (deleted)");
    if wanted.starts_with('/') {
        path == wanted
    } else {
        Path::new(path).file_name().is_some_and(|name| name.to_string_lossy() == wanted)
    }
}

/// A user's number, from a number or a name in /etc/passwd.
fn uid(user: &str) -> Option<u32> {
    user.parse().ok().or_else(|| {
        let passwd = fs::read_to_string("/etc/passwd").ok()?;
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == user).then(|| fields.nth(1)?.parse().ok())?
        })
    })
}

/// The sockets that listen (TCP) or are bound (UDP) on a port, by network namespace. The tables are read once for each
/// namespace: the kernel walks all of its hash tables for that, which takes milliseconds.
struct Listeners {
    port: u16,
    by_netns: HashMap<u64, HashSet<u64>>,
}

impl Listeners {
    fn new(port: u16) -> Self {
        Self { port, by_netns: HashMap::new() }
    }

    /// Whether a process holds one of them.
    fn have(&mut self, pid: i32) -> bool {
        let held = process::sockets(pid);
        let Ok(netns) = netns::of_process(pid) else { return false };
        if held.is_empty() {
            return false;
        }
        let port = self.port;
        let listening = self.by_netns.entry(netns.inode).or_insert_with(|| listening(pid, port));
        held.iter().any(|inode| listening.contains(inode))
    }
}

/// Inodes of the sockets that listen on a port in the namespace of a process.
fn listening(pid: i32, port: u16) -> HashSet<u64> {
    ports::listening(pid).into_iter().filter(|(_, there)| *there == port).map(|(inode, _)| inode).collect()
}

fn nothing(selector: &ProcessSelector, all: &[Stat]) -> TargetError {
    let (wanted, names): (String, Vec<String>) = match (&selector.exe, &selector.cmdline, &selector.user) {
        (Some(exe), ..) => {
            let name = |s: &Stat| Some(process::exe(s.process.pid)?.file_name()?.to_string_lossy().into_owned());
            (exe.rsplit('/').next().unwrap_or(exe).to_owned(), all.iter().filter_map(name).collect())
        }
        (_, Some(cmdline), _) => (cmdline.clone(), all.iter().map(|s| s.process.comm.clone()).collect()),
        (_, _, Some(user)) => (user.clone(), Vec::new()),
        _ => (selector.listens_on.map(|p| format!("port {p}")).unwrap_or_default(), Vec::new()),
    };
    if names.is_empty() {
        let help = "`ps` and `ss -ltnup` show what runs and listens".to_owned();
        return TargetError::NotFound { what: "process", wanted, help };
    }
    let mut names = names;
    names.sort();
    names.dedup();
    super::not_found("process", &wanted, &names)
}
