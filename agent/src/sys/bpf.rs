//! The shared types as values of aya's maps, and what aya does not ask.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya::Pod;
use firedrill_abi::{CallCounters, CallRule, Caller, Counters, Interface, Line, Original, Rule, Scope};

/// A type of `firedrill_abi` as a map value. (The trait and the types are both foreign, hence the wrapper.)
#[derive(Clone, Copy, Debug, Default)]
#[repr(transparent)]
pub struct Shared<T>(pub T);

// SAFETY: `repr(C)` numbers without padding, as the tests of the crate show; any bytes are a value.
unsafe impl Pod for Shared<Rule> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Counters> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Interface> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Line> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Scope> {}
// SAFETY: as above.
unsafe impl Pod for Shared<CallRule> {}
// SAFETY: as above.
unsafe impl Pod for Shared<CallCounters> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Caller> {}
// SAFETY: as above.
unsafe impl Pod for Shared<Original> {}

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` uses (bpf(2)).
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    program_count: u32,
    _unused: u32,
    program_attach_flags: u64,
}

const BPF_PROG_QUERY: libc::c_int = 16;
/// As many programs as one place can hold: 64 at a cgroup, as many at a tcx hook.
const MOST_PROGRAMS: usize = 64;

/// The ids of the programs that are attached at a place, in the order in which they run. `target` is the descriptor of a
/// cgroup, or the index of an interface of the calling thread's namespace, as the attach type has it.
///
/// # Errors
/// EINVAL for an attach type that the kernel does not know, or CAP_NET_ADMIN is missing.
pub fn attached(target: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MOST_PROGRAMS];
    let mut query = Query {
        target,
        attach_type,
        program_ids: ids.as_mut_ptr() as u64,
        program_count: MOST_PROGRAMS as u32,
        ..Query::default()
    };
    // SAFETY: the kernel writes at most `program_count` ids, and the counts into `query`, whose size is given.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(query.program_count as usize);
    Ok(ids)
}

const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
const BPF_LINK_DETACH: libc::c_int = 34;

/// The parts of `union bpf_attr` that calls on links use (bpf(2)): an id or a descriptor, and no options.
#[repr(C)]
#[derive(Default)]
struct OfLink {
    link: u32,
    _next_id: u32,
    _flags: u32,
}

/// Opens a link in the kernel by its id. It stays there while this is open, whoever attached it.
///
/// # Errors
/// ENOENT when there is none, EPERM without CAP_SYS_ADMIN.
pub fn link(id: u32) -> io::Result<OwnedFd> {
    let of = OfLink { link: id, ..OfLink::default() };
    // SAFETY: the kernel reads `of`, whose size is given; the result is checked.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_GET_FD_BY_ID, &raw const of, size_of::<OfLink>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes a link's program away from where it is attached, whoever else has the link open. Linux 5.9.
///
/// # Errors
/// EOPNOTSUPP for a kind of link that only ends with its descriptors.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let of = OfLink { link: link.as_raw_fd() as u32, ..OfLink::default() };
    // The kernel refuses what follows the descriptor.
    // SAFETY: the kernel reads the beginning of `of`; takes no other memory.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const of, size_of::<u32>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
