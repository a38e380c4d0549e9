//! The shared types as values of aya's maps, and what aya does not ask.

use std::io;

use aya::Pod;
use firedrill_abi::{Counters, Interface, Line, Rule, Scope};

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
