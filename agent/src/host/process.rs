//! Processes, known by pid and start time, and signalled through pidfds.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use firedrill_model::facts::ProcessRef;
use nix::libc;

use crate::{crash_point, sys};

/// What `/proc/PID/stat` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The process.
    pub process: ProcessRef,
    /// One letter: `R`, `S`, `D`, `T` (stopped), `Z` (zombie) …
    pub state: char,
    /// Its parent.
    pub parent: i32,
    /// Kernel threads have this flag (`PF_KTHREAD`).
    pub kernel_thread: bool,
}

/// Reads `/proc/PID/stat` (proc_pid_stat(5)).
///
/// # Errors
/// There is no such process.
pub fn stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(pid, &text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: {text}")))
}

fn parse_stat(pid: i32, text: &str) -> Option<Stat> {
    // The name is in parentheses and may itself hold spaces and parentheses.
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let fields: Vec<&str> = text.get(close + 2..)?.split_whitespace().collect();
    let flags: u64 = fields.get(6)?.parse().ok()?;
    Some(Stat {
        process: ProcessRef { pid, started: fields.get(19)?.parse().ok()?, comm: text[open + 1..close].to_owned() },
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        kernel_thread: flags & 0x0020_0000 != 0,
    })
}

/// The pid of every process that there is, zombies among them.
pub fn pids() -> BTreeSet<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Every process that there is, zombies left out, by pid.
pub fn all() -> Vec<Stat> {
    pids().into_iter().filter_map(|pid| stat(pid).ok()).filter(|s| s.state != 'Z').collect()
}

/// Whether both are the same process; its name may have changed meanwhile, by exec(2) or prctl(2).
pub fn is_same(a: &ProcessRef, b: &ProcessRef) -> bool {
    (a.pid, a.started) == (b.pid, b.started)
}

/// Whether this very process, not a later one with its pid, is alive. A zombie is not.
pub fn is_alive(process: &ProcessRef) -> bool {
    stat(process.pid).is_ok_and(|s| s.process.started == process.started && !matches!(s.state, 'Z' | 'X'))
}

/// Whether it is stopped by a signal.
pub fn is_stopped(process: &ProcessRef) -> bool {
    stat(process.pid).is_ok_and(|s| s.process.started == process.started && matches!(s.state, 'T' | 't'))
}

/// What became of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It was sent to this very process.
    Sent,
    /// The process was gone already.
    Gone,
}

/// Sends a signal to this very process: the pidfd is opened first and the start time compared after, so that a
/// reused pid can never be hit.
///
/// # Errors
/// The right to signal it is missing.
pub fn signal(process: &ProcessRef, signal: i32) -> io::Result<Delivery> {
    let gone = |e: &io::Error| e.raw_os_error() == Some(libc::ESRCH);
    let pid = u32::try_from(process.pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let fd = match sys::sockets::pidfd_open(pid) {
        Ok(fd) => fd,
        Err(e) if gone(&e) => return Ok(Delivery::Gone),
        Err(e) => return Err(e),
    };
    if !is_alive(process) {
        return Ok(Delivery::Gone);
    }
    match crash_point::around("process.signal", || sys::signals::pidfd_send_signal(fd.as_fd(), signal)) {
        Ok(()) => Ok(Delivery::Sent),
        Err(e) if gone(&e) => Ok(Delivery::Gone),
        Err(e) => Err(e),
    }
}

/// The process and all its ancestors, itself first.
pub fn lineage(pid: i32) -> Vec<i32> {
    let mut line = vec![pid];
    let mut at = pid;
    while let Ok(s) = stat(at) {
        if s.parent <= 0 || line.contains(&s.parent) {
            break;
        }
        line.push(s.parent);
        at = s.parent;
    }
    line
}

/// Path of its executable; `None` for kernel threads and processes that are gone.
pub fn exe(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// Its command line, arguments joined by spaces.
pub fn cmdline(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).split('\0').filter(|s| !s.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The user it runs as.
pub fn uid(pid: i32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}")).ok().map(|m| m.uid())
}

/// Inodes of the sockets that it holds.
pub fn sockets(pid: i32) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    entries
        .filter_map(|e| fs::read_link(e.ok()?.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_is_read_whole() {
        let text = "42 (tmux: (x) y) S 7 42 42 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 98765 1 2 3";
        let stat = parse_stat(42, text).expect("well-formed");
        assert_eq!(stat.process, ProcessRef { pid: 42, started: 98765, comm: "tmux: (x) y".into() });
        assert_eq!((stat.state, stat.parent, stat.kernel_thread), ('S', 7, false));
    }

    #[test]
    fn a_process_with_another_start_time_is_not_signalled() {
        let me = stat(std::process::id().cast_signed()).expect("this process").process;
        assert!(is_alive(&me));
        let other = ProcessRef { started: me.started + 1, ..me };
        assert!(!is_alive(&other));
        // SIGKILL to a stranger with our pid: if identity were not checked, this test would not live to tell.
        assert_eq!(signal(&other, libc::SIGKILL).expect("no error"), Delivery::Gone);
    }

    #[test]
    fn the_lineage_of_a_process_begins_with_itself() {
        let me = std::process::id().cast_signed();
        assert_eq!(lineage(me).first(), Some(&me));
        assert!(lineage(me).len() > 1);
    }
}
