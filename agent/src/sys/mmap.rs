//! The map of delay lines, mapped into memory: the agent stores to it without a system call for each packet.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

use firedrill_abi::{Line, MAX_LINES};

/// Where a packet re-enters the stack, as [`Line`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reentry {
    /// [`Line::reinject_flags`].
    pub flags: u32,
    /// [`Line::stage`].
    pub stage: u32,
}

/// The memory of the map, shared with the kernel's programs.
#[derive(Debug)]
pub struct LineTable {
    first: NonNull<Line>,
}

// SAFETY: all access goes through atomics.
unsafe impl Send for LineTable {}
// SAFETY: as above.
unsafe impl Sync for LineTable {}

const LEN: usize = size_of::<Line>() * MAX_LINES as usize;

impl LineTable {
    /// Maps an array of [`MAX_LINES`] lines that was made with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// What `mmap` says: EINVAL when the map is another one.
    pub fn map(map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: a new shared mapping of a descriptor that we borrow; the result is checked.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), LEN, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, map.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(at.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { first })
    }

    fn line(&self, slot: u32) -> *mut Line {
        assert!(slot < MAX_LINES, "slots are handed out below MAX_LINES");
        // SAFETY: inside the mapping, by the assertion.
        unsafe { self.first.as_ptr().add(slot as usize) }
    }

    fn word(&self, field: *mut u32) -> &AtomicU32 {
        // SAFETY: a field of the mapping, aligned, alive as long as `self`; the kernel reads and writes whole words.
        unsafe { AtomicU32::from_ptr(field) }
    }

    /// Says that the thread of the line runs. `now_ns`: `CLOCK_MONOTONIC`.
    pub fn beat(&self, slot: u32, now_ns: u64) {
        let line = self.line(slot);
        // SAFETY: the address of a field; not read.
        let field = unsafe { &raw mut (*line).heartbeat_ns };
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(field) }.store(now_ns, Ordering::Relaxed);
    }

    /// Sets the mark and priority that the next packet written to the line's TAP gets back, and where it goes. Only for the
    /// line's own thread, between whose writes nobody else's come.
    pub fn next_packet(&self, slot: u32, mark: u32, priority: u32, way: Reentry) {
        let line = self.line(slot);
        // SAFETY: the address of a field; not read.
        let mark_field = unsafe { &raw mut (*line).mark };
        // SAFETY: likewise.
        let priority_field = unsafe { &raw mut (*line).priority };
        // SAFETY: likewise.
        let flags = unsafe { &raw mut (*line).reinject_flags };
        // SAFETY: likewise.
        let stage = unsafe { &raw mut (*line).stage };
        self.word(mark_field).store(mark, Ordering::Relaxed);
        self.word(priority_field).store(priority, Ordering::Relaxed);
        self.word(flags).store(way.flags, Ordering::Relaxed);
        self.word(stage).store(way.stage, Ordering::Relaxed);
    }

    /// Configures a line and, last, switches it on.
    pub fn switch_on(&self, slot: u32, line: &Line) {
        let entry = self.line(slot);
        // SAFETY: the address of a field; not read.
        let target = unsafe { &raw mut (*entry).target_ifindex };
        // SAFETY: likewise.
        let flags = unsafe { &raw mut (*entry).reinject_flags };
        // SAFETY: likewise.
        let stage = unsafe { &raw mut (*entry).stage };
        // SAFETY: likewise.
        let tap = unsafe { &raw mut (*entry).tap_ifindex };
        self.beat(slot, line.heartbeat_ns);
        self.word(target).store(line.target_ifindex, Ordering::Relaxed);
        self.word(flags).store(line.reinject_flags, Ordering::Relaxed);
        self.word(stage).store(line.stage, Ordering::Relaxed);
        fence(Ordering::Release);
        self.word(tap).store(line.tap_ifindex, Ordering::Release);
    }

    /// Switches a line off: from now on packets pass it by. What it holds is still sent on.
    pub fn switch_off(&self, slot: u32) {
        let entry = self.line(slot);
        // SAFETY: the address of a field; not read.
        let tap = unsafe { &raw mut (*entry).tap_ifindex };
        self.word(tap).store(0, Ordering::Release);
    }
}

impl Drop for LineTable {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`, of this length, unmapped once.
        unsafe { libc::munmap(self.first.as_ptr().cast(), LEN) };
    }
}
