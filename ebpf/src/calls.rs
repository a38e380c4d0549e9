//! Has system calls of chosen callers fail: connect(2), sendto(2) of datagrams, and bind(2). Or has connections go to a listener of
//! the agent.
//!
//! The programs are at the root of the control groups, so that each call is seen once, whatever its caller is in. Calls of
//! everybody without a rule go on at once.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_loop,
        generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_set_retval},
    },
};
use firedrill_abi::{
    CALL_BIND, CALL_CONNECT, CALLER_CGROUP, CALLER_NETNS, CALLER_PROCESS, CallRule, Caller, MAX_CALL_RULES,
};

use crate::{
    detour,
    maps::{CALL_COUNTERS, CALL_RULES, CALLERS},
    rules::{below, in_peers, in_ports},
    skb::field,
    sockets::MAX_CGROUP_DEPTH,
};

/// The call goes on.
const ALLOW: i32 = 1;
/// It ends with the error that was set.
const REFUSE: i32 = 0;

/// The greatest error number (`MAX_ERRNO`).
const MAX_ERRNO: u32 = 4095;

/// A call that has rules. On the stack: at these hooks programs of one CPU may interrupt each other.
struct Call {
    rules: u64,
    now_ns: u64,
    peer: [u64; 2],
    port: u32,
    protocol: u32,
    call: u32,
    has_port: u32,
    errno: u32,
    listener: u32,
    netns: u64,
    thread: u32,
}

/// The programs at the calls. The verifier allows each only the fields of its own family.
#[inline(always)]
pub fn run(ctx: *mut bpf_sock_addr, call: u32, v6: bool) -> i32 {
    let port = u32::from(u16::from_be(field!(ctx, user_port) as u16));
    if call == CALL_BIND && port != 0 {
        return ALLOW;
    }
    // SAFETY: takes the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.cast()) };
    let thread = bpf_get_current_pid_tgid();
    let mut rules = rules_of(CALLER_NETNS, netns) | rules_of(CALLER_PROCESS, thread >> 32);
    // SAFETY: the callback has the signature that the helper wants, and gets the set, which outlives the loop.
    unsafe {
        bpf_loop(MAX_CGROUP_DEPTH, add_ancestor as *mut _, (&raw mut rules).cast(), 0);
    }
    if rules == 0 {
        return ALLOW;
    }
    let mut asked = Call {
        rules,
        // SAFETY: takes nothing.
        now_ns: unsafe { bpf_ktime_get_ns() },
        peer: if call == CALL_BIND { [0; 2] } else { peer(ctx, v6) },
        port,
        protocol: field!(ctx, protocol),
        call,
        has_port: local_port(ctx),
        errno: 0,
        listener: 0,
        netns,
        thread: thread as u32,
    };
    // SAFETY: as above.
    unsafe {
        bpf_loop(MAX_CALL_RULES, ask as *mut _, (&raw mut asked).cast(), 0);
    }
    if asked.errno == 0 {
        if call == CALL_CONNECT && asked.listener != 0 {
            detour::begin(ctx, v6, asked.peer, port, asked.listener);
        }
        return ALLOW;
    }
    // The verifier (from Linux 7.3 on) wants to see that it is an error number.
    let errno = (asked.errno & MAX_ERRNO) as i32;
    // SAFETY: takes a number.
    unsafe { bpf_set_retval(-errno) };
    REFUSE
}

/// The peer as rules have it: sixteen bytes in network order, read as two words.
#[inline(always)]
fn peer(ctx: *mut bpf_sock_addr, v6: bool) -> [u64; 2] {
    if !v6 {
        return [0, 0xffff_0000 | u64::from(field!(ctx, user_ip4)) << 32];
    }
    // SAFETY: as `field`; the array has four words.
    let word = |at: usize| u64::from(unsafe { ptr::read_volatile((&raw const (*ctx).user_ip6).cast::<u32>().add(at)) });
    [word(0) | word(1) << 32, word(2) | word(3) << 32]
}

/// The port that the socket has already, or 0.
#[inline(always)]
fn local_port(ctx: *mut bpf_sock_addr) -> u32 {
    // SAFETY: as `field`; the union has one member of this type.
    let socket = unsafe { ptr::read_volatile(&raw const (*ctx).__bindgen_anon_1.sk) };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: not null, as the verifier sees too.
    unsafe { ptr::read_volatile(&raw const (*socket).src_port) }
}

/// The rules of a caller, as bits.
#[inline(always)]
fn rules_of(kind: u32, id: u64) -> u64 {
    // SAFETY: read once; a rule that is being removed may still be seen.
    unsafe { CALLERS.get(Caller { id, kind, reserved: 0 }) }.copied().unwrap_or(0)
}

/// Adds the rules of the control group at a level below the root, counted from 0. 1 ends the walk.
unsafe extern "C" fn add_ancestor(level: u32, rules: *mut c_void) -> i64 {
    // SAFETY: takes a number.
    let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32 + 1) };
    if cgroup == 0 {
        return 1;
    }
    // SAFETY: the set that the loop was given.
    unsafe { *rules.cast::<u64>() |= rules_of(CALLER_CGROUP, cgroup) };
    0
}

/// Asks a rule, if it is one of the caller's. 1 ends the walk: it has the call fail.
unsafe extern "C" fn ask(number: u32, call: *mut c_void) -> i64 {
    // SAFETY: what the loop was given.
    let call = unsafe { &mut *call.cast::<Call>() };
    if call.rules >> (number & (MAX_CALL_RULES - 1)) & 1 == 0 {
        return 0;
    }
    // SAFETY: the agent replaces entries as a whole.
    let Some(rule) = (unsafe { CALL_RULES.get(number) }) else {
        return 0;
    };
    let Some(counters) = CALL_COUNTERS.get_ptr_mut(number) else {
        return 0;
    };
    if !matches(rule, call) {
        return 0;
    }
    // SAFETY: this CPU's entry. Of two calls that meet in the middle of it one may go uncounted, for which readings allow.
    let counters = unsafe { &mut *counters };
    counters.matched += 1;
    // SAFETY: takes nothing.
    if !below(unsafe { bpf_get_prandom_u32() }, rule.threshold) {
        return 0;
    }
    counters.failed += 1;
    call.errno = rule.errno;
    if rule.errno == 0 && call.listener == 0 {
        call.listener = rule.listener;
    }
    // One that goes elsewhere may still be one that fails.
    i64::from(rule.errno != 0)
}

#[inline(always)]
fn matches(rule: &CallRule, call: &Call) -> bool {
    call.now_ns < rule.expires_ns
        && rule.calls & call.call != 0
        && (rule.netns == 0 || rule.netns == call.netns)
        && (rule.exempt == 0 || rule.exempt != call.thread)
        && (rule.protocol == 0 || rule.protocol == call.protocol)
        && (rule.without_port == 0 || call.has_port == 0)
        && in_ports(&rule.peer_ports, call.port)
        && in_peers(&rule.peers, &call.peer)
}
