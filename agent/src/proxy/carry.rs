//! One connection of the proxy: to its peer, and what is done to its bytes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use firedrill_model::change::Toxics;
use firedrill_model::receipt::ProxyCount;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until};

use crate::calls::Originals;
use crate::host::connections;
use crate::sys::sockets::set_socket_option;

/// Bytes that are read at once.
const PIECE: usize = 16 << 10;
/// Pieces of one way that may wait; then its sender has to.
const WAITING: usize = 1024;
/// What a rate lets pass at once is what it lets pass in this time.
const TICK: Duration = Duration::from_millis(10);

/// What a proxy has done.
#[derive(Debug, Default)]
pub(super) struct Counts {
    connections: AtomicU64,
    unreached: AtomicU64,
    reset: AtomicU64,
    bytes: AtomicU64,
    delayed: AtomicU64,
    delay_ns: AtomicU64,
    limited_bytes: AtomicU64,
    limited_ns: AtomicU64,
    late_ends: AtomicU64,
    cut: AtomicU64,
}

impl Counts {
    pub(super) fn read(&self) -> ProxyCount {
        ProxyCount {
            connections: self.connections.load(Relaxed),
            unreached: self.unreached.load(Relaxed),
            reset: self.reset.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            delayed: self.delayed.load(Relaxed),
            delay_ns: self.delay_ns.load(Relaxed),
            limited_bytes: self.limited_bytes.load(Relaxed),
            limited_ns: self.limited_ns.load(Relaxed),
            late_ends: self.late_ends.load(Relaxed),
            cut: self.cut.load(Relaxed),
            ..ProxyCount::default()
        }
    }
}

/// Counts a connection as reset unless it has come to an end; and forgets where it was to go.
struct Open {
    cookie: u64,
    counts: Arc<Counts>,
    originals: Originals,
    ended: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.ended {
            self.counts.reset.fetch_add(1, Relaxed);
        }
        self.originals.forget(self.cookie);
    }
}

/// Why one way of a connection is over.
enum End {
    /// Its sender has ended it.
    Whole,
    /// As many bytes as may pass have passed.
    Cut,
}

/// Carries a connection to where it was to go.
pub(super) async fn carry(mut client: TcpStream, counts: Arc<Counts>, toxics: Toxics, originals: Originals) {
    // A connection that is closed in the middle is reset.
    let Ok((cookie, peer)) = whence(&client, &originals) else { return reset_when_closed(&client, true) };
    counts.connections.fetch_add(1, Relaxed);
    let mut open = Open { cookie, counts: counts.clone(), originals, ended: false };
    reset_when_closed(&client, true);
    let Ok(mut server) = TcpStream::connect(peer).await else {
        counts.unreached.fetch_add(1, Relaxed);
        open.ended = true;
        return;
    };
    reset_when_closed(&server, true);
    for stream in [&client, &server] {
        // What is passed on was written by somebody who had decided when.
        let _ = stream.set_nodelay(true);
    }
    if let Ok(local) = server.local_addr() {
        open.originals.set_local(cookie, local);
    }
    let none = Toxics::default();
    let done = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        tokio::try_join!(
            way(from_client, to_server, if toxics.sent { &toxics } else { &none }, &counts),
            way(from_server, to_client, if toxics.received { &toxics } else { &none }, &counts),
        )
    };
    match done {
        Ok(_) => {}
        Err(Broken::Cut) => drop(counts.cut.fetch_add(1, Relaxed)),
        // One side was reset, so the other one is.
        Err(Broken::Failed) => {
            open.ended = true;
            return;
        }
    }
    open.ended = true;
    // What has been written still arrives.
    reset_when_closed(&client, false);
    reset_when_closed(&server, false);
}

/// The socket from which a connection comes, and where it was to go.
fn whence(client: &TcpStream, originals: &Originals) -> io::Result<(u64, SocketAddr)> {
    let cookie = connections::cookie_of(client.peer_addr()?, client.local_addr()?)?;
    let peer = originals.peer(cookie).ok_or_else(|| io::Error::other("nobody was sent here"))?;
    Ok((cookie, peer))
}

/// Whether closing the socket resets its connection, or lets what was written arrive.
fn reset_when_closed(stream: &TcpStream, reset: bool) {
    // `struct linger`: on or off, seconds. Without it the connection ends in order, which is no worse.
    let linger = [i32::from(reset).to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
    let _ = set_socket_option(stream.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &linger);
}

/// What ends both ways of a connection at once.
enum Broken {
    /// As many bytes as may pass have passed.
    Cut,
    /// One side is gone.
    Failed,
}

/// A piece that waits, or the end.
struct Piece {
    read: Instant,
    bytes: Vec<u8>,
    end: bool,
}

async fn way(from: ReadHalf<'_>, to: WriteHalf<'_>, toxics: &Toxics, counts: &Counts) -> Result<(), Broken> {
    let (queue, waiting) = channel(WAITING);
    let (read, written) = tokio::join!(read(from, queue), write(to, waiting, toxics, counts));
    match (written, read) {
        (Ok(End::Cut), _) => Err(Broken::Cut),
        (Ok(End::Whole), Ok(())) => Ok(()),
        _ => Err(Broken::Failed),
    }
}

/// Reads until the end, or until nobody writes any more.
async fn read(mut from: ReadHalf<'_>, queue: Sender<Piece>) -> io::Result<()> {
    loop {
        let mut bytes = vec![0; PIECE];
        let len = tokio::select! {
            len = from.read(&mut bytes) => len?,
            () = queue.closed() => return Ok(()),
        };
        bytes.truncate(len);
        let piece = Piece { read: Instant::now(), bytes, end: len == 0 };
        if queue.send(piece).await.is_err() || len == 0 {
            return Ok(());
        }
    }
}

/// Writes each piece when it is due.
async fn write(mut to: WriteHalf<'_>, mut queue: Receiver<Piece>, toxics: &Toxics, counts: &Counts) -> io::Result<End> {
    let mut left = toxics.limit_data.map(|size| size.0);
    let mut free = Instant::now();
    // When the part before left, and its length.
    let mut last: Option<(Instant, u64)> = None;
    while let Some(Piece { read, mut bytes, end }) = queue.recv().await {
        if let Some(latency) = toxics.latency {
            sleep_until(read + latency.0).await;
            if !end {
                counts.delayed.fetch_add(1, Relaxed);
                counts.delay_ns.fetch_add(nanoseconds(read.elapsed()), Relaxed);
            }
        }
        if end {
            if let Some(late) = toxics.slow_close {
                sleep_until(Instant::now() + late.0).await;
                counts.late_ends.fetch_add(1, Relaxed);
            }
            to.shutdown().await?;
            return Ok(End::Whole);
        }
        if let Some(left) = &mut left {
            bytes.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= bytes.len() as u64;
        }
        match toxics.rate {
            // No crash points here and below: these are the target's own bytes.
            None => to.write_all(&bytes).await?,
            Some(rate) => {
                let at_once = (rate.0 as f64 / 8.0 * TICK.as_secs_f64()).max(1.0) as usize;
                for part in bytes.chunks(at_once) {
                    let waits = free > Instant::now();
                    sleep_until(free).await;
                    let now = Instant::now();
                    if let Some((sent, len)) = last.replace((now, part.len() as u64)).filter(|_| waits) {
                        counts.limited_bytes.fetch_add(len, Relaxed);
                        counts.limited_ns.fetch_add(nanoseconds(now - sent), Relaxed);
                    }
                    // No crash point, either.
                    to.write_all(part).await?;
                    // Who comes late may catch up on a little.
                    let takes = Duration::from_secs_f64(part.len() as f64 * 8.0 / rate.0 as f64);
                    free = free.max(now - TICK) + takes;
                }
            }
        }
        counts.bytes.fetch_add(bytes.len() as u64, Relaxed);
        if left == Some(0) {
            return Ok(End::Cut);
        }
    }
    // The reader has failed.
    Err(io::ErrorKind::ConnectionReset.into())
}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
