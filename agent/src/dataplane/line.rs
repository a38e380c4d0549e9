//! The thread of a delay line: reads packets from the TAP, holds them, writes them back when they are due.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering::Relaxed,
        mpsc::{self, Receiver, Sender, TryRecvError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use firedrill_abi::Meta;
use nix::{
    poll::{PollFd, PollFlags},
    sys::{
        eventfd::{EfdFlags, EventFd},
        time::TimeSpec,
    },
};

use rand::{Rng as _, rngs::StdRng};

use super::{
    answer::{Answer, Kind},
    error::DataPlaneError,
    frame,
    queue::{Held, Queue},
    record::{Record, Records},
    wire,
};
use crate::sys::{
    clock::monotonic_ns,
    mmap::{LineTable, Reentry},
    thread::{own_descriptors, set_nice},
    tun::Tap,
};

/// What one line holds at most; more passes undelayed and is counted.
const LIMIT_BYTES: usize = 256 << 20;
/// Nice value of the thread.
const NICE: i32 = -20;
/// Packets read, or written, before the other side has its turn.
const BATCH: usize = 64;
/// Packets that the TAP keeps for the thread; more are lost, so this covers 0.2 s of the fastest rate measured.
pub(super) const QUEUE_LEN: i32 = 50_000;
/// The largest that a TAP takes.
pub(super) const TAP_MTU: i32 = 65_521;
/// The heartbeat is at most so old while the thread sleeps: a tenth of the kernel's time-out.
const LONGEST_SLEEP_NS: u64 = 100_000_000;
/// Programs that saw the line on may still be running for so long after it was switched off.
const GRACE: Duration = Duration::from_millis(2);
/// How long a command may take: releasing a full queue takes some 300 ms.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

enum Command {
    /// Send on at once what a rule holds.
    Release { rule: u32, done: Sender<()> },
    /// From now on hold nothing, and send on what is held.
    Drain { done: Sender<()> },
    /// The kernel sends no more: send on what is still in the TAP, and end.
    End,
}

/// What the thread needs.
pub(super) struct LineParts {
    /// Where heartbeats and marks go.
    pub table: Arc<LineTable>,
    /// Which entry of the table.
    pub slot: u32,
    /// Knows our frames.
    pub nonce: u64,
    /// How packets go on, and how answers go back.
    pub forth: Reentry,
    /// The latter.
    pub back: Reentry,
    /// Where results go.
    pub records: Records,
    /// What is left to chance. Seeded before: where the C library has no `getrandom`, the seed comes from a descriptor.
    pub chance: StdRng,
}

/// A running line.
#[derive(Debug)]
pub(super) struct Line {
    pub tap_name: String,
    slot: u32,
    table: Arc<LineTable>,
    commands: Sender<Command>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Line {
    /// Starts the thread. The line is not switched on yet, but its heart beats.
    ///
    /// The thread has descriptors of its own, the TAP among them, which ends with it: when the agent is killed, the TAPs of
    /// its lines go side by side, and for each the kernel waits for RCU, some 10 ms and more.
    pub(super) fn start(tap: Tap, parts: LineParts) -> Result<Self, DataPlaneError> {
        let tap_name = tap.name.clone();
        let failed = |what| {
            let name = tap_name.clone();
            move |source: io::Error| DataPlaneError::DelayLine { name, what, source }
        };
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(io::Error::from)
            .map_err(failed("eventfd"))?;
        let (commands, receiver) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let (slot, table) = (parts.slot, Arc::clone(&parts.table));
        table.beat(slot, monotonic_ns());
        let (shared, name) = ([tap.file.as_raw_fd(), wake.as_raw_fd()], tap_name.clone());
        let thread = thread::Builder::new()
            .name(format!("fd-{tap_name}"))
            .spawn(move || match own_descriptors(shared) {
                Ok([file, wake]) => {
                    let _ = started.send(Ok(()));
                    let tap = Tap { file: file.into(), name };
                    run_guarded(tap, parts, receiver, wake.into());
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(failed("thread"))?;
        // Until here ours have to be open, from here on the TAP is the thread's alone.
        start.recv().map_err(io::Error::other).flatten().map_err(failed("descriptors of its thread"))?;
        drop(tap);
        Ok(Self { tap_name, slot, table, commands, wake, thread: Some(thread) })
    }

    /// Sends on what a rule holds, in order, and waits until it is done.
    pub(super) fn release(&self, rule: u32) -> Result<(), DataPlaneError> {
        let (done, waiting) = mpsc::channel();
        self.command(Command::Release { rule, done }, &waiting)
    }

    /// Sends on what is held, in order, ends the thread and with it the TAP. Idempotent.
    pub(super) fn stop(&mut self) -> Result<(), DataPlaneError> {
        let Some(thread) = self.thread.take() else {
            return Ok(());
        };
        let (done, waiting) = mpsc::channel();
        // While it drains packets still come through the line, behind those that it held.
        let drained = self.command(Command::Drain { done }, &waiting);
        self.table.switch_off(self.slot);
        thread::sleep(GRACE);
        // When the thread has ended already there is nobody to tell, and `join` says why.
        let _ = self.commands.send(Command::End);
        let _ = self.wake.write(1);
        thread.join().map_err(|_| self.ended("it panicked"))?;
        drained
    }

    fn command(&self, command: Command, done: &Receiver<()>) -> Result<(), DataPlaneError> {
        self.commands.send(command).map_err(|_| self.ended("it no longer takes commands"))?;
        self.wake.write(1).map_err(|errno| self.ended(errno.desc()))?;
        done.recv_timeout(COMMAND_TIMEOUT).map_err(|_| self.ended("it did not answer within 5 s"))
    }

    fn ended(&self, reason: &str) -> DataPlaneError {
        DataPlaneError::LineEnded { tap: self.tap_name.clone(), reason: reason.into() }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            tracing::warn!(%error, "delay line did not end in order");
        }
    }
}

/// Runs the worker and, however it ends, first switches the line off: a line without a reader would lose packets.
fn run_guarded(tap: Tap, parts: LineParts, commands: Receiver<Command>, wake: File) {
    let (slot, table) = (parts.slot, Arc::clone(&parts.table));
    let name = tap.name.clone();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut worker = Worker::new(tap, parts, commands, wake);
        let result = worker.run();
        worker.table.switch_off(worker.slot);
        result
    }));
    table.switch_off(slot);
    match result {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(tap = name, %error, "delay line failed; packets pass undelayed"),
        Err(_) => tracing::error!(tap = name, "delay line panicked; packets pass undelayed"),
    }
}

struct Worker {
    tap: Tap,
    table: Arc<LineTable>,
    slot: u32,
    nonce: u64,
    forth: Reentry,
    back: Reentry,
    records: Records,
    /// Those that were looked up before; the rest are behind a lock.
    known: HashMap<u32, Arc<Record>>,
    chance: StdRng,
    queue: Queue,
    commands: Receiver<Command>,
    /// An eventfd.
    wake: File,
    draining: bool,
    buffer: Box<[u8]>,
}

impl Worker {
    fn new(tap: Tap, parts: LineParts, commands: Receiver<Command>, wake: File) -> Self {
        Self {
            tap,
            table: parts.table,
            slot: parts.slot,
            nonce: parts.nonce,
            forth: parts.forth,
            back: parts.back,
            records: parts.records,
            known: HashMap::new(),
            chance: parts.chance,
            queue: Queue::new(LIMIT_BYTES),
            commands,
            wake,
            draining: false,
            buffer: vec![0; frame::READ_LEN].into(),
        }
    }

    fn run(&mut self) -> io::Result<()> {
        // The default of 50 us would be most of the error of a delay.
        let _ = nix::sys::prctl::set_timerslack(1);
        // Best effort: on a busy machine the delays are longer without it. Real-time priority could starve the target.
        let _ = set_nice(NICE);
        loop {
            let now_ns = monotonic_ns();
            self.table.beat(self.slot, now_ns);
            self.release_expired(now_ns);
            let wrote = self.write_due(now_ns);
            let read = self.read_batch()?;
            match self.commands.try_recv() {
                Ok(Command::Release { rule, done }) => {
                    // Packets of the rule that are still in the TAP are older than the command.
                    self.read_backlog()?;
                    self.release(|record| record.number == rule);
                    self.known.remove(&rule);
                    let _ = done.send(());
                    continue;
                }
                Ok(Command::Drain { done }) => {
                    // What is held is older than what is still in the TAP.
                    self.release(|_| true);
                    self.draining = true;
                    self.read_backlog()?;
                    let _ = done.send(());
                    continue;
                }
                Ok(Command::End) | Err(TryRecvError::Disconnected) => {
                    self.release(|_| true);
                    self.draining = true;
                    return self.read_backlog();
                }
                Err(TryRecvError::Empty) => {}
            }
            if wrote < BATCH && read < BATCH {
                self.sleep()?;
            }
        }
    }

    /// Sleeps until something is due, something arrives, or the heart must beat.
    fn sleep(&self) -> io::Result<()> {
        let now_ns = monotonic_ns();
        let due_ns = self.queue.next_due_ns().unwrap_or(u64::MAX).min(self.next_expiry_ns());
        let wait_ns = due_ns.saturating_sub(now_ns).min(LONGEST_SLEEP_NS);
        if wait_ns == 0 {
            return Ok(());
        }
        let mut fds =
            [PollFd::new(self.tap.file.as_fd(), PollFlags::POLLIN), PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        match nix::poll::ppoll(&mut fds, Some(TimeSpec::from_duration(Duration::from_nanos(wait_ns))), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        if fds[1].any() == Some(true) {
            let _ = nix::unistd::read(&self.wake, &mut [0; 8]);
        }
        Ok(())
    }

    fn next_expiry_ns(&self) -> u64 {
        self.queue.rules().map(|record| record.expires_ns.load(Relaxed)).min().unwrap_or(u64::MAX)
    }

    /// A rule that has expired holds nothing any more.
    fn release_expired(&mut self, now_ns: u64) {
        if self.queue.rules().any(|record| record.is_over(now_ns)) {
            self.release(|record| record.is_over(now_ns));
        }
    }

    fn release(&mut self, wanted: impl Fn(&Record) -> bool) {
        for packet in self.queue.release(wanted) {
            self.send(&packet);
            self.table.beat(self.slot, monotonic_ns());
        }
    }

    fn write_due(&mut self, now_ns: u64) -> usize {
        for done in 0..BATCH {
            let Some(packet) = self.queue.pop_due(now_ns) else {
                return done;
            };
            self.send(&packet);
        }
        BATCH
    }

    /// Reads what the TAP had when it was called; bounded, since more may come all the time.
    fn read_backlog(&mut self) -> io::Result<()> {
        for _ in 0..QUEUE_LEN as usize / BATCH {
            self.table.beat(self.slot, monotonic_ns());
            if self.read_batch()? < BATCH {
                break;
            }
        }
        Ok(())
    }

    fn read_batch(&mut self) -> io::Result<usize> {
        for done in 0..BATCH {
            let len = match nix::unistd::read(&self.tap.file, &mut self.buffer) {
                Ok(len) => len,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(done),
                Err(errno) => return Err(errno.into()),
            };
            // Taken out for the time of the call: the frame lies in it.
            let mut buffer = std::mem::take(&mut self.buffer);
            if let Some((meta, frame)) = frame::decode(&mut buffer[..len], self.nonce) {
                self.take(&meta, frame);
            }
            self.buffer = buffer;
        }
        Ok(BATCH)
    }

    /// Does with a frame what its rules say.
    fn take(&mut self, meta: &Meta, frame: &[u8]) {
        let numbers = meta.holders.iter().take(meta.held as usize);
        // A rule that has ended meanwhile holds nothing.
        let holders: Vec<Arc<Record>> = numbers.filter_map(|number| self.find(*number)).collect();
        // Most rules do the same to a burst as to a packet; cutting costs time.
        if holders.iter().any(|holder| holder.shaper().shape().needs_packets()) {
            for mut packet in wire::segments(frame) {
                self.shape(meta, holders.clone(), &mut packet);
            }
        } else {
            self.shape(meta, holders, &mut frame.to_vec());
        }
    }

    /// Holds a packet as its rules say, changed as they say, or sends it on.
    fn shape(&mut self, meta: &Meta, holders: Vec<Arc<Record>>, frame: &mut [u8]) {
        let (mut due_ns, mut twice, mut out_of_order, mut queued) = (meta.taken_ns, false, false, false);
        let mut answer: Option<Answer> = None;
        let bytes = wire::link_len(frame) as u64;
        // Those that are about this packet.
        let mut concerned = Vec::with_capacity(holders.len());
        let mut untouched = false;
        for holder in holders {
            let fate = {
                let mut shaper = holder.shaper();
                let answered = shaper.answer(frame, &mut self.chance);
                answered.unwrap_or_else(|| shaper.decide(due_ns, bytes, meta.flow, &mut self.chance))
            };
            if fate.untouched {
                untouched = true;
                continue;
            }
            if fate.dropped && !self.draining {
                holder.dropped.fetch_add(1, Relaxed);
                return;
            }
            let chance = &mut self.chance;
            let damaged = fate
                .damage
                .is_some_and(|(bits, fix)| wire::damage(frame, bits, fix, |below| chance.random_range(0..below)));
            let answered = fate.answer.as_ref().map(|answer| answer.kind);
            if answered == Some(Kind::Reset) {
                holder.resets.fetch_add(1, Relaxed);
            }
            if answered.is_some() || fate.twice || damaged || fate.queued || (fate.out_of_order && fate.wait_ns > 0) {
                holder.acted.fetch_add(1, Relaxed);
            }
            due_ns = due_ns.saturating_add(fate.wait_ns);
            twice |= fate.twice;
            out_of_order |= fate.out_of_order;
            queued |= fate.queued;
            // Of several answers the sender gets the first; the others were true, too.
            answer = answer.or(fate.answer);
            concerned.push(holder);
        }
        // A packet whose rules have ended keeps its place behind others, which one that no rule ever meant need not.
        if untouched && concerned.is_empty() {
            self.write(&Held::new(meta, concerned, frame));
            return;
        }
        for _ in 0..if twice { 2 } else { 1 } {
            let mut packet = match &answer {
                Some(answer) => Held::answer(meta, concerned.clone(), &answer.frame),
                None => Held::new(meta, concerned.clone(), frame),
            };
            (packet.due_ns, packet.out_of_order, packet.queued) = (due_ns, out_of_order, queued);
            self.hold(packet);
        }
    }

    fn hold(&mut self, packet: Held) {
        if self.draining {
            self.send(&packet);
        } else if let Err(packet) = self.queue.push(packet) {
            for holder in &packet.holders {
                holder.overflowed.fetch_add(1, Relaxed);
            }
            self.write(&packet);
        }
    }

    fn find(&mut self, number: u32) -> Option<Arc<Record>> {
        if let Some(known) = self.known.get(&number) {
            return Some(Arc::clone(known));
        }
        let record = self.records.get(number)?;
        self.known.insert(number, Arc::clone(&record));
        Some(record)
    }

    /// Writes a packet back, and records how long it was held.
    fn send(&self, packet: &Held) {
        if self.write(packet) {
            let now_ns = monotonic_ns();
            let bytes = wire::link_len(&packet.frame) as u64;
            for holder in &packet.holders {
                holder.delays.record(now_ns.saturating_sub(packet.taken_ns));
                holder.sent(now_ns, bytes, packet.queued);
            }
        }
    }

    /// The program at the TAP runs inside the `write`, hence the order.
    fn write(&self, packet: &Held) -> bool {
        let way = if packet.back { self.back } else { self.forth };
        self.table.next_packet(self.slot, packet.mark, packet.priority, way);
        let written = nix::unistd::write(&self.tap.file, &packet.frame).is_ok();
        if !written {
            for holder in &packet.holders {
                holder.lost.fetch_add(1, Relaxed);
            }
        }
        written
    }
}
