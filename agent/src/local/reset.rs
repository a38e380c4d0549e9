//! Destroying connections, once or again and again: one thread for each reset in force that recurs.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use firedrill_model::change::{Filter, SocketOwner};
use firedrill_model::facts::{Interface, NetnsRef};
use firedrill_model::protect::Thing;
use firedrill_model::receipt::{Lost, ResetCount};
use firedrill_model::units::{Percent, Span};

use crate::host::connections::{self, Connection, Destroyed, Owned};
use crate::host::{cgroup, netns, process};
use crate::target::Protected;

/// Which connections.
pub struct Aim {
    pub netns: NetnsRef,
    pub interface: Option<Interface>,
    pub sockets: Option<SocketOwner>,
    pub filter: Filter,
    pub spare: Vec<u16>,
    pub protected: Protected,
    pub allow: Vec<Thing>,
}

/// A reset in force: what was destroyed, and the thread that goes on with it.
pub struct Resets {
    count: Arc<Mutex<ResetCount>>,
    /// Dropped to have the thread end.
    goes_on: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Resets {
    /// Destroys what is there now, and again after each `every`.
    ///
    /// # Errors
    /// The first round was not gone through with.
    pub fn begin(aim: Aim, every: Option<Span>) -> io::Result<Self> {
        let count = Arc::new(Mutex::new(ResetCount::default()));
        let flows = RandomState::new();
        aim.round(&flows, &count)?;
        let Some(every) = every else { return Ok(Self { count, goes_on: None, thread: None }) };
        let (goes_on, end) = channel::<()>();
        let shared = Arc::clone(&count);
        let work = move || {
            while end.recv_timeout(every.0) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = aim.round(&flows, &shared) {
                    lock(&shared).failed.get_or_insert(error.to_string());
                }
            }
        };
        let thread = std::thread::Builder::new().name("fd-reset".into()).spawn(work)?;
        Ok(Self { count, goes_on: Some(goes_on), thread: Some(thread) })
    }

    /// What has been destroyed so far.
    pub fn count(&self) -> ResetCount {
        lock(&self.count).clone()
    }

    /// Destroys no more. What was in all.
    pub fn end(&mut self) -> ResetCount {
        self.goes_on = None;
        if let Some(thread) = self.thread.take() {
            // One that panicked has nothing more to add to the count.
            let _ = thread.join();
        }
        self.count()
    }
}

impl Drop for Resets {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(count: &Mutex<ResetCount>) -> MutexGuard<'_, ResetCount> {
    count.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long a connection may take to be gone after the kernel has destroyed it.
const END_PATIENCE: Duration = Duration::from_millis(500);

impl Aim {
    fn round(&self, flows: &RandomState, count: &Mutex<ResetCount>) -> io::Result<()> {
        if let Some(lost) = self.lost() {
            let mut count = lock(count);
            if count.rounds == 0 {
                let why =
                    format!("{lost}; its target was resolved a moment ago, so it has just ended or been replaced");
                return Err(io::Error::new(io::ErrorKind::NotFound, why));
            }
            if !count.lost.contains(&lost) {
                count.lost.push(lost);
            }
            return Ok(());
        }
        let owned = self.sockets.as_ref().map(Owned::of);
        let (matched, spared, left) = netns::within(&self.netns, || -> io::Result<_> {
            let own = Own::of(self.interface.as_ref())?;
            let is_meant = |c: &Connection| {
                self.filter.admits(c.local, c.peer)
                    && owned.as_ref().map_or_else(|| own.is_through(c), |owned| owned.holds(c))
                    && self.filter.flows.is_none_or(|share| is_chosen([c.local, c.peer], share, flows))
            };
            let mut all = connections::established()?;
            all.retain(is_meant);
            // Most rounds of a quiet target end here, and cost no look at the processes of the host.
            let protected = if all.is_empty() { HashSet::new() } else { self.protected_sockets() };
            let is_spared = |c: &Connection| {
                self.spare.iter().any(|port| [c.local.port(), c.peer.port()].contains(port))
                    || protected.contains(&c.inode)
            };
            let (spared, meant): (Vec<_>, Vec<_>) = all.into_iter().partition(is_spared);
            let mut destroyed = HashSet::new();
            for connection in &meant {
                if connections::destroy(connection)? == Destroyed::Done {
                    destroyed.insert(connection.cookie());
                }
            }
            Ok((destroyed.len(), spared.len(), still_there(&destroyed)?))
        })??;
        let mut count = lock(count);
        count.rounds += 1;
        count.matched += matched as u64;
        count.destroyed += (matched - left) as u64;
        count.spared += spared as u64;
        Ok(())
    }

    /// What it is for and is no longer there.
    fn lost(&self) -> Option<Lost> {
        let lost = |what: String, replaced| Some(Lost { what, replaced });
        match &self.sockets {
            Some(owner @ SocketOwner::Cgroup(group)) if !cgroup::is_same(group) => {
                lost(owner.to_string(), Path::new(&group.path).exists())
            }
            Some(owner @ SocketOwner::Processes(list)) if !list.iter().any(process::is_alive) => {
                lost(owner.to_string(), false)
            }
            None if netns::open(&self.netns).is_err() => lost(format!("network namespace {}", self.netns.path), false),
            _ => None,
        }
    }

    /// Inodes of the sockets that are left alone because of who holds them, whichever namespace that lives in: our own
    /// probes have threads in others.
    fn protected_sockets(&self) -> HashSet<u64> {
        let all = process::all().into_iter().map(|stat| stat.process);
        let spared = all.filter(|process| self.protected.spares(process, &self.allow));
        spared.flat_map(|process| process::sockets(process.pid)).collect()
    }
}

/// How many of some connections are there in spite of their end; waits a while for what is just going.
fn still_there(destroyed: &HashSet<[u8; 8]>) -> io::Result<usize> {
    let mut left = destroyed.len();
    let begun = std::time::Instant::now();
    while left > 0 {
        left = connections::established()?.iter().filter(|c| destroyed.contains(&c.cookie())).count();
        if left == 0 || begun.elapsed() > END_PATIENCE {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(left)
}

/// Whether a connection is among the chosen share: by a hash of its ends, which is the same for both of them and for as
/// long as the fault lasts.
fn is_chosen(mut ends: [SocketAddr; 2], share: Percent, flows: &RandomState) -> bool {
    ends.sort_unstable();
    let hash = flows.hash_one(ends);
    // The upper 53 bits, as many as a fraction holds.
    ((hash >> 11) as f64) / ((1_u64 << 53) as f64) < share.fraction()
}

/// The addresses of a namespace, or of one of its interfaces.
struct Own {
    all: HashSet<IpAddr>,
    of_interface: Option<HashSet<IpAddr>>,
}

impl Own {
    /// Those of the calling thread's namespace.
    fn of(interface: Option<&Interface>) -> io::Result<Self> {
        let named = netns::addresses()?;
        let of = |name: &str| named.iter().filter(|(of, _)| of == name).map(|(_, ip)| *ip).collect();
        let of_interface = interface.map(|i| of(&i.name));
        Ok(Self { of_interface, all: named.iter().map(|(_, ip)| *ip).collect() })
    }

    /// Whether a connection leads through an interface other than `lo`, and through the one that is meant.
    fn is_through(&self, connection: &Connection) -> bool {
        let (local, peer) = (connection.local.ip(), connection.peer.ip());
        let within = peer.is_loopback() || self.all.contains(&peer);
        let on_loopback = self.of_interface.as_ref().is_some_and(|own| own.iter().any(IpAddr::is_loopback));
        let its =
            self.of_interface.as_ref().is_none_or(|own| own.contains(&local) || on_loopback && local.is_loopback());
        its && (on_loopback || !within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_connections_is_chosen_for_good_and_with_both_ends() {
        let flows = RandomState::new();
        let share = Percent::new(30.0).expect("a share");
        let server = SocketAddr::from(([10, 0, 0, 1], 80));
        let chosen = |port: u16| {
            let client = SocketAddr::from(([10, 0, 0, 2], port));
            let one = is_chosen([client, server], share, &flows);
            assert_eq!(one, is_chosen([server, client], share, &flows));
            one
        };
        let count = (10_000..20_000).filter(|port| chosen(*port)).count();
        // Six standard deviations of 10,000 draws: sqrt(0.3 * 0.7 * 10,000) is 46.
        assert!((2725..=3275).contains(&count), "{count}");
        assert!((10_000..10_100).all(|port| chosen(port) == chosen(port)));
        assert!(is_chosen([server, server], Percent::ALL, &flows));
    }
}
