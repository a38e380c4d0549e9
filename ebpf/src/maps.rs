//! The maps, all written by the agent but for the counters, the chains and the scopes of sockets.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE},
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray, PerCpuHashMap},
};
use firedrill_abi::{
    CallCounters, CallRule, Caller, Counters, Interface, Line, MAX_CALL_RULES, MAX_CALLERS, MAX_INTERFACES, MAX_LINES,
    MAX_ORIGINALS, MAX_RULES, MAX_SCOPES, MAX_SPARED, MAX_TAGGED, Original, Rule, Scope, SocketScopes,
};

use crate::{packet::Packet, rules::Walk};

/// The rules, by number. As this and the next three are not allocated before they are used, room for many costs nothing.
#[map]
pub static RULES: HashMap<u32, Rule> = HashMap::with_max_entries(MAX_RULES, BPF_F_NO_PREALLOC);

/// What each rule did.
#[map]
pub static COUNTERS: PerCpuHashMap<u32, Counters> = PerCpuHashMap::with_max_entries(MAX_RULES, BPF_F_NO_PREALLOC);

/// Where the chain of a rule is, or how far it has counted; for rules that need it.
#[map]
pub static STATES: HashMap<u32, u32> = HashMap::with_max_entries(MAX_RULES, BPF_F_NO_PREALLOC);

/// The rules of each scope.
#[map]
pub static SCOPES: HashMap<u32, Scope> = HashMap::with_max_entries(MAX_SCOPES, BPF_F_NO_PREALLOC);

/// Interface index to its hooks.
#[map]
pub static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(MAX_INTERFACES, 0);

/// Port to the sets of spared ports that it is in, as bits.
#[map]
pub static SPARED: HashMap<u32, u64> = HashMap::with_max_entries(MAX_SPARED, 0);

/// The delay lines; mapped into the agent's memory.
#[map]
pub static LINES: Array<Line> = Array::with_max_entries(MAX_LINES, BPF_F_MMAPABLE);

/// The packet that a program on this CPU looks at.
#[map]
pub static PACKET: PerCpuArray<Packet> = PerCpuArray::with_max_entries(1, 0);

/// How far it is through the rules.
#[map]
pub static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

/// For each line, the packets that could not be given a header and passed undelayed.
#[map]
pub static REFUSED: PerCpuArray<u64> = PerCpuArray::with_max_entries(MAX_LINES, 0);

/// Interface index of a TAP to the slot of its line.
#[map]
pub static TAPS: HashMap<u32, u32> = HashMap::with_max_entries(MAX_LINES, 0);

/// Cgroup id to the scopes of sockets that are made in it.
#[map]
pub static CGROUP_TAGS: HashMap<u64, SocketScopes> = HashMap::with_max_entries(MAX_TAGGED, 0);

/// Process (thread group, as the initial PID namespace numbers it) to the scopes of the sockets that it makes.
#[map]
pub static PROCESS_TAGS: HashMap<u32, SocketScopes> = HashMap::with_max_entries(MAX_TAGGED, 0);

/// `BPF_F_NO_PREALLOC | BPF_F_CLONE`: a socket that is accepted inherits the scopes of the listener.
const SOCKET_TAGS_FLAGS: usize = 0x201;

/// A socket storage map as BTF describes it. aya's own type lacks `BPF_F_CLONE`.
#[repr(C)]
pub struct SocketTags {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SocketScopes,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; SOCKET_TAGS_FLAGS],
}

// SAFETY: the fields only carry types for BTF; the loader replaces the whole, and nothing reads them.
unsafe impl Sync for SocketTags {}

impl SocketTags {
    /// The map, as helpers take it.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Rules on calls, by number.
#[map]
pub static CALL_RULES: HashMap<u32, CallRule> = HashMap::with_max_entries(MAX_CALL_RULES, BPF_F_NO_PREALLOC);

/// What each of them did.
#[map]
pub static CALL_COUNTERS: PerCpuArray<CallCounters> = PerCpuArray::with_max_entries(MAX_CALL_RULES, 0);

/// The rules of each caller, as bits.
#[map]
pub static CALLERS: HashMap<Caller, u64> = HashMap::with_max_entries(MAX_CALLERS, BPF_F_NO_PREALLOC);

/// Where connections to listeners of the agent were to go, by the cookie of the socket.
#[map]
pub static ORIGINALS: HashMap<u64, Original> = HashMap::with_max_entries(MAX_ORIGINALS, BPF_F_NO_PREALLOC);

/// The scopes of a socket.
#[btf_map]
pub static SOCKET_TAGS: SocketTags = SocketTags {
    r#type: core::ptr::null(),
    key: core::ptr::null(),
    value: core::ptr::null(),
    max_entries: core::ptr::null(),
    map_flags: core::ptr::null(),
};

/// Two random words that no other data plane has; set at load.
#[unsafe(no_mangle)]
pub static NONCE_0: Global<u64> = Global::new(0);
/// The second of them.
#[unsafe(no_mangle)]
pub static NONCE_1: Global<u64> = Global::new(0);
