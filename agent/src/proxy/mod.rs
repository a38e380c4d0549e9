//! A proxy that carries TCP connections of a target, and delays their bytes, slows them down, or closes them.
//!
//! Programs at connect(2) have the connections go to its listener on the loopback interface of the target's network namespace
//! (see [`crate::calls`]), and remember where they were to go. It runs on a thread of its own in that namespace; its own
//! connections are told by that thread, and go where they are to.
//!
//! When the agent dies the listener goes with it, and new connections go straight to their peers, as the programs look for
//! the listener first. All sockets are set to reset their connection when they are closed in the middle of it (`SO_LINGER` of 0),
//! so established ones get a clean reset.

mod carry;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as Bound};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use firedrill_model::change::Toxics;
use firedrill_model::facts::NetnsRef;
use firedrill_model::receipt::ProxyCount;
use nix::sched::{CloneFlags, setns};
use nix::unistd::gettid;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use self::carry::Counts;
use crate::calls::Originals;
use crate::crash_point;
use crate::host::netns;

/// How often another port is tried when one is taken in one of the two families.
const PORT_TRIES: usize = 16;

/// Where a proxy listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The port, on the loopback addresses of both families.
    pub port: u16,
    /// The thread that listens and makes its own connections.
    pub thread: u32,
}

/// A proxy that runs; it ends when this goes, and its connections are reset.
pub struct Proxy {
    /// Where it listens.
    pub listener: Listener,
    counts: Arc<Counts>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts one in a network namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or nobody can listen in it.
    pub fn begin(namespace: &NetnsRef, toxics: Toxics, originals: Originals) -> io::Result<Self> {
        let namespace = netns::open(namespace)?;
        let counts = Arc::new(Counts::default());
        let (stop, stopped) = oneshot::channel();
        let (tell, told) = mpsc::channel();
        let shared = Arc::clone(&counts);
        let work = move || {
            let bound =
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from).and_then(|()| bind());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let ready = bound.and_then(|bound| Ok((bound, runtime?)));
            match ready {
                Ok((bound, runtime)) => {
                    let listener = Listener { port: bound.port, thread: gettid().as_raw().cast_unsigned() };
                    if tell.send(Ok(listener)).is_ok() {
                        runtime.block_on(serve(bound, &shared, &toxics, &originals, stopped));
                    }
                    // With it go all connections that are still carried.
                }
                // Who waits for it is told.
                Err(error) => drop(tell.send(Err(error))),
            }
        };
        let spawn = || std::thread::Builder::new().name("fd-proxy".into()).spawn(work);
        let thread = crash_point::around("proxy.start", spawn)?;
        let listener = told.recv().map_err(|_| io::Error::other("its thread has ended"))??;
        Ok(Self { listener, counts, stop: Some(stop), thread: Some(thread) })
    }

    /// What it has done so far.
    pub fn count(&self) -> ProxyCount {
        self.counts.read()
    }

    /// Ends it. What it did in all.
    pub fn end(&mut self) -> ProxyCount {
        crash_point::around("proxy.stop", || {
            self.stop = None;
            if let Some(thread) = self.thread.take() {
                // One that panicked has nothing more to add to the count.
                let _ = thread.join();
            }
        });
        self.count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

/// Listeners of both families on one port; where there is no IPv6, of one.
struct Listeners {
    port: u16,
    v4: Bound,
    v6: Option<Bound>,
}

fn bind() -> io::Result<Listeners> {
    let mut last = io::Error::other("no port is free in both families");
    for _ in 0..PORT_TRIES {
        let v4 = Bound::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = v4.local_addr()?.port();
        match Bound::bind((Ipv6Addr::LOCALHOST, port)) {
            Ok(v6) => return Ok(Listeners { port, v4, v6: Some(v6) }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(_) => return Ok(Listeners { port, v4, v6: None }),
        }
    }
    Err(last)
}

/// Carries every connection that comes, until it is stopped.
async fn serve(
    bound: Listeners,
    counts: &Arc<Counts>,
    toxics: &Toxics,
    originals: &Originals,
    mut stopped: oneshot::Receiver<()>,
) {
    let listener = |bound: Bound| bound.set_nonblocking(true).and_then(|()| TcpListener::from_std(bound));
    let Ok(v4) = listener(bound.v4) else { return };
    let v6 = bound.v6.and_then(|v6| listener(v6).ok());
    loop {
        let accepted = tokio::select! {
            accepted = v4.accept() => accepted,
            accepted = accept(v6.as_ref()) => accepted,
            // Told, or whoever would tell has gone.
            _ = &mut stopped => return,
        };
        match accepted {
            Ok((client, _)) => {
                drop(tokio::spawn(carry::carry(client, counts.clone(), toxics.clone(), originals.clone())))
            }
            // Out of descriptors, or a connection that has gone again: the next may do.
            Err(error) => {
                tracing::warn!(%error, "a connection to the proxy");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}
