//! Killing, and watching what comes back: one thread for each kill in force.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use firedrill_model::change::Victim;
use firedrill_model::facts::ProcessRef;
use firedrill_model::protect::Thing;
use firedrill_model::receipt::KillCount;
use firedrill_model::units::Span;

use crate::host::process::{self, Delivery};
use crate::host::{cgroup, netns, systemd};
use crate::target::Protected;

/// How often successors are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a process may take to end before the receipt says that it did not.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// A kill in force: what was signalled, and the thread that watches for successors.
#[derive(Debug)]
pub struct KillWatch {
    count: Arc<Mutex<KillCount>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Who is not killed, whatever group it is in: looked at right before each signal, for a group gets new members.
#[derive(Debug)]
pub struct Mercy {
    /// What is protected.
    pub protected: Protected,
    /// What of it is not, for this fault.
    pub allow: Vec<Thing>,
}

impl Mercy {
    fn spares(&self, process: &ProcessRef) -> bool {
        self.protected.spares(process, &self.allow)
    }
}

impl KillWatch {
    /// Sends the signal to every victim and begins to watch.
    ///
    /// # Errors
    /// A victim cannot be signalled for lack of the right.
    pub fn begin(victim: &Victim, signal: i32, keep: bool, mercy: Mercy) -> std::io::Result<Self> {
        if let Victim::Cgroup(group) = victim
            && !cgroup::is_same(group)
        {
            let why = "the group is gone, or was made anew since it was resolved";
            return Err(std::io::Error::new(std::io::ErrorKind::NotFound, why));
        }
        let mut victims = members(victim);
        victims.retain(|process| !mercy.spares(process));
        let count = Arc::new(Mutex::new(KillCount::default()));
        let over = Arc::new(AtomicBool::new(false));
        let likenesses = victims.iter().filter_map(|victim| Likeness::of(victim.pid)).collect();
        let sent_at = Instant::now();
        let mut signalled = Vec::new();
        for process in victims {
            if process::signal(&process, signal)? == Delivery::Sent {
                signalled.push(process);
            }
        }
        lock(&count).signalled = signalled.len() as u64;
        let watcher = Watcher {
            victim: victim.clone(),
            likenesses,
            signal,
            keep,
            mercy,
            signalled,
            sent_at,
            count: Arc::clone(&count),
            over: Arc::clone(&over),
        };
        let thread = std::thread::Builder::new().name("fd-kill".into()).spawn(move || watcher.run())?;
        Ok(Self { count, over, thread: Some(thread) })
    }

    /// What has been seen so far.
    pub fn count(&self) -> KillCount {
        lock(&self.count).clone()
    }

    /// Stops watching. What was seen in all.
    pub fn end(&mut self) -> KillCount {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A watcher that panicked has nothing more to add to the count.
            let _ = thread.join();
        }
        self.count()
    }
}

impl Drop for KillWatch {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(count: &Mutex<KillCount>) -> std::sync::MutexGuard<'_, KillCount> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The processes of a victim right now.
fn members(victim: &Victim) -> Vec<ProcessRef> {
    match victim {
        // What comes back may have made the group anew.
        Victim::Cgroup(group) => {
            cgroup::at(std::path::Path::new(&group.path)).map(|now| cgroup::processes(&now)).unwrap_or_default()
        }
        // A restarted unit may have its group made anew under the same path.
        Victim::Unit { unit, cgroup: planned } => match cgroup::at(std::path::Path::new(&planned.path)) {
            Ok(group) => cgroup::processes(&group),
            Err(_) => {
                match systemd::show(unit).ok().filter(|u| !u.cgroup.is_empty()).map(|u| cgroup::find(&u.cgroup)) {
                    Some(Ok(group)) => cgroup::processes(&group),
                    _ => Vec::new(),
                }
            }
        },
        Victim::Processes { processes } => processes.iter().filter(|p| process::is_alive(p)).cloned().collect(),
    }
}

/// What a lone process is known by, so that its successor can be: program, arguments and network namespace.
#[derive(Debug, PartialEq, Eq)]
struct Likeness {
    exe: PathBuf,
    cmdline: String,
    netns: u64,
}

impl Likeness {
    /// That of a running process.
    fn of(pid: i32) -> Option<Self> {
        let netns = netns::of_process(pid).ok()?.inode;
        Some(Self { exe: process::exe(pid)?, cmdline: process::cmdline(pid), netns })
    }
}

struct Watcher {
    victim: Victim,
    likenesses: Vec<Likeness>,
    signal: i32,
    keep: bool,
    mercy: Mercy,
    signalled: Vec<ProcessRef>,
    sent_at: Instant,
    count: Arc<Mutex<KillCount>>,
    over: Arc<AtomicBool>,
}

impl Watcher {
    fn run(self) {
        let mut waiting = self.signalled.clone();
        let mut first_end: Option<Instant> = None;
        let mut killed_again: Vec<ProcessRef> = Vec::new();
        let mut known = Known::default();
        while !self.over.load(Ordering::Relaxed) {
            waiting.retain(|process| {
                if process::is_alive(process) && self.sent_at.elapsed() < END_PATIENCE {
                    return true;
                }
                if !process::is_alive(process) {
                    first_end.get_or_insert_with(Instant::now);
                    let mut count = lock(&self.count);
                    count.gone += 1;
                    count.slowest_end = Some(Span(rounded(self.sent_at.elapsed())));
                }
                false
            });
            // Once the downtime is known, only `keep` has a reason to look on.
            if let Some(since) = first_end.filter(|_| self.keep || lock(&self.count).downtime.is_none()) {
                let mut successors = self.successors(&mut known);
                // One that takes its time to end is not another one.
                successors.retain(|process| !holds(&killed_again, process) && !self.mercy.spares(process));
                if !successors.is_empty() {
                    lock(&self.count).downtime.get_or_insert_with(|| Span(rounded(since.elapsed())));
                }
                for process in successors.into_iter().filter(|_| self.keep) {
                    if process::signal(&process, self.signal).is_ok_and(|d| d == Delivery::Sent) {
                        lock(&self.count).again += 1;
                    }
                    killed_again.push(process);
                }
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Processes that have taken the victims' place.
    fn successors(&self, known: &mut Known) -> Vec<ProcessRef> {
        match &self.victim {
            Victim::Processes { .. } => {
                let last = self.signalled.iter().map(|p| p.started).max().unwrap_or(0);
                known.look(|process| {
                    process.started >= last
                        && !holds(&self.signalled, process)
                        && Likeness::of(process.pid).is_some_and(|it| self.likenesses.contains(&it))
                })
            }
            _ => members(&self.victim).into_iter().filter(|p| !holds(&self.signalled, p)).collect(),
        }
    }
}

fn holds(list: &[ProcessRef], process: &ProcessRef) -> bool {
    list.iter().any(|one| process::is_same(one, process))
}

/// Pids that were looked at and are something else, so that each look costs one listing of /proc, not a reading of
/// every process on the host.
#[derive(Default)]
struct Known {
    strangers: HashMap<i32, u32>,
}

impl Known {
    /// A new process looks like the one that forked it until it has become its own program: looked at again, this
    /// many times (half a second).
    const LOOKS: u32 = 100;

    fn look(&mut self, is_wanted: impl Fn(&ProcessRef) -> bool) -> Vec<ProcessRef> {
        let mut found = Vec::new();
        let pids = process::pids();
        self.strangers.retain(|pid, _| pids.contains(pid));
        for pid in pids {
            let looks = self.strangers.entry(pid).or_default();
            if *looks >= Self::LOOKS {
                continue;
            }
            match process::stat(pid) {
                Ok(stat) if stat.state != 'Z' && is_wanted(&stat.process) => found.push(stat.process),
                _ => *looks += 1,
            }
        }
        found
    }
}

/// Whole milliseconds: the watch is no finer.
fn rounded(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
