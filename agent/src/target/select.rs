//! Choosing processes by what they are.

use std::fs;
use std::path::Path;

use firedrill_model::facts::ProcessRef;
use firedrill_model::file::did_you_mean;
use firedrill_model::target::ProcessSelector;

use super::TargetError;
use crate::host::process::{self, Stat};

/// Processes that meet every condition. Firedrill itself is never among them.
///
/// # Errors
/// There is none; the text names what is similar.
pub fn processes(selector: &ProcessSelector) -> Result<Vec<ProcessRef>, TargetError> {
    let me = std::process::id().cast_signed();
    let all: Vec<Stat> = process::all().into_iter().filter(|s| s.process.pid != me && !s.kernel_thread).collect();
    let mut found: Vec<ProcessRef> = all.iter().filter(|s| matches(selector, s)).map(|s| s.process.clone()).collect();
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
        && selector.listens_on.is_none_or(|port| listens_on(pid, port))
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

/// Whether one of the process's sockets listens (TCP) or is bound (UDP) on the port, by the tables of its own
/// network namespace (proc_pid_net(5)).
fn listens_on(pid: i32, port: u16) -> bool {
    const TCP_LISTEN: &str = "0A";
    const UDP_UNCONNECTED: &str = "07";
    let held = process::sockets(pid);
    [("tcp", TCP_LISTEN), ("tcp6", TCP_LISTEN), ("udp", UDP_UNCONNECTED), ("udp6", UDP_UNCONNECTED)].iter().any(
        |(table, state)| {
            let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
            text.lines().skip(1).any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                let local =
                    fields.get(1).and_then(|a| a.rsplit_once(':')).and_then(|(_, p)| u16::from_str_radix(p, 16).ok());
                let inode = fields.get(9).and_then(|i| i.parse::<u64>().ok());
                local == Some(port) && fields.get(3) == Some(state) && inode.is_some_and(|i| held.contains(&i))
            })
        },
    )
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
    let mut names = names;
    names.sort();
    names.dedup();
    names.truncate(40);
    let help = if names.is_empty() {
        "`ps` and `ss -ltnup` show what runs and listens".to_owned()
    } else {
        did_you_mean(&wanted, names.iter().map(String::as_str))
    };
    TargetError::NotFound { what: "process", wanted, help }
}
