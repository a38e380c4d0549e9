//! Asks the rules that concern a packet, and does what they say.
//!
//! Which rules those are is said by scopes: that of the namespace, that of the interface, and those of the packet's socket.
//! A packet never meets the rules of any other, however many there are.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT},
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_loop, bpf_redirect,
        generated::{bpf_skb_change_head, bpf_skb_store_bytes},
    },
};
use firedrill_abi::{
    ACTION_DROP, ALWAYS, HEARTBEAT_TIMEOUT_NS, Hook, Line, MAX_HOLDERS, MAX_PEERS, MAX_PORTS, META_LEN,
    MODEL_EVERY_NTH, MODEL_GILBERT_ELLIOTT, MODEL_INDEPENDENT, Meta, Peer, PortRange, Rule, SCOPES_PER_SOCKET,
    STAGE_EGRESS, rule_number,
};

use crate::{
    maps::{COUNTERS, INTERFACES, LINES, NONCE_0, NONCE_1, REFUSED, RULES, SCOPES, STATES, TAPS, WALK},
    packet::Packet,
    skb::{self, Skb, field, set_field},
    sockets, spare,
};

/// `TCX_NEXT`, which is also `TC_ACT_UNSPEC`: go on with the next program.
const NEXT: i32 = -1;

/// An interface that does not exist. A redirect there frees the packet and tells the sender nothing, while
/// `TC_ACT_SHOT` at egress shows as ENOBUFS, and to TCP as local congestion.
const NOWHERE: u32 = i32::MAX as u32;

/// The scopes of a packet: the namespace's, the interface's, its socket's.
const SCOPES_PER_PACKET: usize = 2 + SCOPES_PER_SOCKET;
/// The lists that are walked: those that drop of every scope, then those that hold of every scope.
const LISTS: usize = 2 * SCOPES_PER_PACKET;

/// The walk over the rules of one packet. In a map, as [`Packet`] is and for the same reason.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    lists: [u64; LISTS],
    scopes: [u32; SCOPES_PER_PACKET],
    now_ns: u64,
    spared: u64,
    peer: [u64; 2],
    at: u32,
    bytes: u32,
    protocol: u32,
    local_port: u32,
    peer_port: u32,
    has_ports: u32,
    ifindex: u32,
    flow: u32,
    line_ready: u32,
    dropped: u32,
    held: u32,
    holders: [u32; MAX_HOLDERS],
}

/// The programs at the interfaces.
#[inline(always)]
pub fn run(skb: Skb, stage: u32) -> i32 {
    let egress = stage == STAGE_EGRESS;
    let ifindex = field!(skb, ifindex);
    // SAFETY: the agent replaces entries as a whole.
    let Some(interface) = (unsafe { INTERFACES.get(ifindex) }) else {
        return NEXT;
    };
    // A packet that a line delayed at this hook passes; one that it took at the egress of the loopback interface comes
    // back at the ingress, and still has the ingress rules before it.
    if take_stamp(skb) == stage {
        return NEXT;
    }
    let hook = if egress { interface.egress } else { interface.ingress };
    if hook.namespace | hook.own | hook.sockets == 0 {
        return NEXT;
    }
    // Most packets of a shared interface are of strangers: those are let go before anything else is looked at.
    if egress && hook.namespace | hook.own == 0 && sockets::is_stranger(skb) {
        return NEXT;
    }
    let Some(packet) = Packet::parse(skb, egress) else {
        return NEXT;
    };
    judge(skb, packet, &hook, egress)
}

#[inline(always)]
fn judge(skb: Skb, packet: &Packet, hook: &Hook, egress: bool) -> i32 {
    let Some(walk) = WALK.get_ptr_mut(0) else {
        return NEXT;
    };
    // SAFETY: this CPU's entry; see `Packet::parse`.
    let walk = unsafe { &mut *walk };
    walk.scopes = [hook.namespace, hook.own, 0, 0, 0, 0];
    if hook.sockets != 0 {
        sockets::scopes(skb, packet, egress, &mut walk.scopes[2..]);
    }
    let mut rules = 0;
    for i in 0..SCOPES_PER_PACKET {
        walk.lists[i] = 0;
        walk.lists[SCOPES_PER_PACKET + i] = 0;
        // SAFETY: the agent replaces entries as a whole.
        if walk.scopes[i] != 0
            && let Some(scope) = unsafe { SCOPES.get(walk.scopes[i]) }
        {
            let lists = if egress { scope.egress } else { scope.ingress };
            walk.lists[i] = lists.drops;
            walk.lists[SCOPES_PER_PACKET + i] = lists.holds;
            rules += lists.drops.count_ones() + lists.holds.count_ones();
        }
    }
    if rules == 0 {
        return NEXT;
    }
    // SAFETY: takes nothing.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let line = if hook.line == 0 { ptr::null_mut() } else { ready_line(hook.line - 1, now_ns) };
    walk.now_ns = now_ns;
    walk.spared = if hook.sparing == 0 { 0 } else { spare::sets(packet) };
    walk.peer = packet.peer;
    walk.at = 0;
    walk.bytes = field!(skb, len);
    walk.protocol = packet.protocol;
    walk.local_port = packet.local_port;
    walk.peer_port = packet.peer_port;
    walk.has_ports = packet.has_ports;
    walk.ifindex = field!(skb, ifindex);
    walk.flow = packet.flow();
    walk.line_ready = u32::from(!line.is_null());
    walk.dropped = 0;
    walk.held = 0;
    // SAFETY: the callback has the signature that the helper wants, and does not use the context.
    unsafe {
        bpf_loop(rules + LISTS as u32, ask as *mut _, ptr::null_mut(), 0);
    }
    if walk.dropped != 0 {
        if egress {
            // SAFETY: takes numbers.
            return unsafe { bpf_redirect(NOWHERE, 0) } as i32;
        }
        return TC_ACT_SHOT as i32;
    }
    if line.is_null() || walk.held == 0 {
        return NEXT;
    }
    divert(skb, hook.line - 1, line, walk)
}

/// Asks the next rule, or goes on to the next list. 1 ends the walk.
unsafe extern "C" fn ask(_index: u32, _context: *mut c_void) -> i64 {
    let Some(walk) = WALK.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's entry, which the caller of the loop does not touch meanwhile.
    let walk = unsafe { &mut *walk };
    let at = walk.at as usize;
    if at >= LISTS {
        return 1;
    }
    let list = walk.lists[at];
    if list == 0 {
        walk.at += 1;
        return 0;
    }
    walk.lists[at] = list & (list - 1);
    let scope = walk.scopes[if at < SCOPES_PER_PACKET { at } else { at - SCOPES_PER_PACKET }];
    let number = rule_number(scope, list.trailing_zeros());
    // SAFETY: the agent replaces entries as a whole.
    let Some(rule) = (unsafe { RULES.get(number) }) else {
        return 0;
    };
    if !matches(rule, walk) {
        return 0;
    }
    let Some(counters) = COUNTERS.get_ptr_mut(number) else {
        return 0;
    };
    // SAFETY: this CPU's entry, and programs on it do not interrupt each other at this hook.
    let counters = unsafe { &mut *counters };
    counters.matched += 1;
    counters.bytes += u64::from(walk.bytes);
    if !chooses(rule, number) {
        return 0;
    }
    if rule.action == ACTION_DROP {
        counters.dropped += 1;
        walk.dropped = 1;
        return 1;
    }
    let held = walk.held as usize;
    if walk.line_ready == 0 || held >= MAX_HOLDERS {
        counters.passed += 1;
        return 0;
    }
    counters.diverted += 1;
    walk.holders[held] = number;
    walk.held += 1;
    0
}

/// Whether the rule acts upon this packet, of all that it matches.
#[inline(always)]
fn chooses(rule: &Rule, number: u32) -> bool {
    if rule.model == MODEL_INDEPENDENT && rule.threshold == ALWAYS {
        return true;
    }
    // SAFETY: takes nothing.
    let drawn = unsafe { bpf_get_prandom_u32() };
    if rule.model != MODEL_GILBERT_ELLIOTT && rule.model != MODEL_EVERY_NTH {
        return drawn < rule.threshold;
    }
    let Some(state) = STATES.get_ptr_mut(number) else {
        return false;
    };
    // SAFETY: an entry of the map. Two CPUs that are here at once may lose a step, as two packets at once have no order.
    let before = unsafe { ptr::read_volatile(state) };
    let (after, chosen) = if rule.model == MODEL_EVERY_NTH {
        let count = before + 1;
        if count >= rule.chain[0] { (0, true) } else { (count, false) }
    } else {
        // The state decides about this packet, then the chain moves on.
        let (threshold, leave) =
            if before == 0 { (rule.threshold, rule.chain[0]) } else { (rule.chain[2], rule.chain[1]) };
        // SAFETY: takes nothing.
        let moves = below(unsafe { bpf_get_prandom_u32() }, leave);
        (if moves { before ^ 1 } else { before }, below(drawn, threshold))
    };
    // SAFETY: as above.
    unsafe { ptr::write_volatile(state, after) };
    chosen
}

/// Whether a draw falls below a threshold, of which the greatest stands for certainty.
#[inline(always)]
pub fn below(drawn: u32, threshold: u32) -> bool {
    threshold == ALWAYS || drawn < threshold
}

#[inline(always)]
fn matches(rule: &Rule, walk: &Walk) -> bool {
    if walk.now_ns >= rule.expires_ns
        || rule.spare & walk.spared != 0
        || (rule.ifindex != 0 && rule.ifindex != walk.ifindex)
        || (rule.flows != ALWAYS && mix(walk.flow ^ rule.flow_seed) >= rule.flows)
        || (rule.protocol != 0 && rule.protocol != walk.protocol)
    {
        return false;
    }
    if rule.needs_ports != 0
        && (walk.has_ports == 0
            || !in_ports(&rule.local_ports, walk.local_port)
            || !in_ports(&rule.peer_ports, walk.peer_port))
    {
        return false;
    }
    in_peers(&rule.peers, &walk.peer)
}

/// Whether the address is in one of the networks. Volatile loads, here and below, keep the optimiser from merging the
/// comparisons: the verifier follows a chain of early ends in one pass, and a merged one in two for each comparison.
#[inline(always)]
pub fn in_peers(peers: &[Peer; MAX_PEERS], address: &[u64; 2]) -> bool {
    for peer in peers {
        // SAFETY: a reference into the map.
        let peer = unsafe { ptr::read_volatile(peer) };
        let wrong = ((address[0] ^ peer.address[0]) & peer.mask[0]) | ((address[1] ^ peer.address[1]) & peer.mask[1]);
        if wrong == 0 {
            return true;
        }
    }
    false
}

/// Whether the port is in one of the ranges.
#[inline(always)]
pub fn in_ports(ports: &[PortRange; MAX_PORTS], port: u32) -> bool {
    for range in ports {
        // SAFETY: a reference into the map.
        let range = unsafe { ptr::read_volatile(range) };
        // One comparison for both ends.
        let (first, last) = (u32::from(range.first), u32::from(range.last));
        if port.wrapping_sub(first) <= last - first {
            return true;
        }
    }
    false
}

/// Spreads the number of a flow (the finaliser of MurmurHash3).
#[inline(always)]
fn mix(flow: u32) -> u32 {
    let flow = (flow ^ (flow >> 16)).wrapping_mul(0x85eb_ca6b);
    let flow = (flow ^ (flow >> 13)).wrapping_mul(0xc2b2_ae35);
    flow ^ (flow >> 16)
}

/// The line in a slot, or null when it is off or its thread hangs. (Not an `Option`: the optimiser would leave the pointer
/// of `None` unset, which the verifier refuses.)
#[inline(always)]
fn ready_line(slot: u32, now_ns: u64) -> *mut Line {
    let Some(line) = LINES.get_ptr_mut(slot) else {
        return ptr::null_mut();
    };
    // SAFETY: an entry of the map; the agent writes whole words.
    let tap = unsafe { ptr::read_volatile(&raw const (*line).tap_ifindex) };
    // SAFETY: likewise.
    let heartbeat_ns = unsafe { ptr::read_volatile(&raw const (*line).heartbeat_ns) };
    // Signed: the heartbeat may be newer than `now_ns`, which was read before it.
    let age_ns = now_ns.wrapping_sub(heartbeat_ns) as i64;
    if tap == 0 || age_ns >= HEARTBEAT_TIMEOUT_NS as i64 {
        return ptr::null_mut();
    }
    line
}

/// Sends the packet to the TAP of the line.
#[inline(always)]
fn divert(skb: Skb, slot: u32, line: *mut Line, walk: &Walk) -> i32 {
    let meta = Meta {
        nonce: NONCE_0.load(),
        taken_ns: walk.now_ns,
        flow: walk.flow,
        mark: field!(skb, mark),
        priority: field!(skb, priority),
        held: walk.held,
        holders: walk.holders,
    };
    // SAFETY: takes the context and numbers.
    if unsafe { bpf_skb_change_head(skb, META_LEN, 0) } != 0 {
        if let Some(refused) = REFUSED.get_ptr_mut(slot) {
            // SAFETY: this CPU's entry.
            unsafe { *refused += 1 };
        }
        return NEXT;
    }
    // SAFETY: the header has room for it now.
    if unsafe { bpf_skb_store_bytes(skb, 0, (&raw const meta).cast(), META_LEN, 0) } != 0 {
        return TC_ACT_SHOT as i32;
    }
    // SAFETY: an entry of the map; takes numbers.
    unsafe { bpf_redirect((*line).tap_ifindex, 0) as i32 }
}

/// The program at the TAP: what the agent writes back.
#[inline(always)]
pub fn reinject(skb: Skb) -> i32 {
    let ifindex = field!(skb, ifindex);
    // SAFETY: the agent replaces entries as a whole.
    let Some(slot) = (unsafe { TAPS.get(ifindex) }) else {
        return TC_ACT_SHOT as i32;
    };
    let Some(line) = LINES.get_ptr_mut(*slot) else {
        return TC_ACT_SHOT as i32;
    };
    // SAFETY: an entry of the map. The agent set mark and priority before the `write` in which this runs.
    let line = unsafe { ptr::read_volatile(line) };
    set_field!(skb, mark, line.mark);
    set_field!(skb, priority, line.priority);
    stamp(skb, line.stage);
    // SAFETY: takes numbers.
    let verdict = unsafe { bpf_redirect(line.target_ifindex, u64::from(line.reinject_flags)) };
    if verdict == i64::from(TC_ACT_REDIRECT) { verdict as i32 } else { TC_ACT_SHOT as i32 }
}

/// Writes the nonce and the stage into the control buffer, which survives the redirect: so no bit of the mark, which
/// belongs to others, is needed to know the packet again.
#[inline(always)]
fn stamp(skb: Skb, stage: u32) {
    let (low, high) = (NONCE_0.load(), NONCE_1.load());
    skb::set_cb(skb, 0, low as u32);
    skb::set_cb(skb, 1, (low >> 32) as u32);
    skb::set_cb(skb, 2, high as u32);
    skb::set_cb(skb, 3, (high >> 32) as u32);
    skb::set_cb(skb, 4, stage);
}

/// The stage of a stamped packet, and clears the stamp; 0 for any other packet.
#[inline(always)]
fn take_stamp(skb: Skb) -> u32 {
    let (low, high) = (NONCE_0.load(), NONCE_1.load());
    if skb::cb(skb, 0) != low as u32
        || skb::cb(skb, 1) != (low >> 32) as u32
        || skb::cb(skb, 2) != high as u32
        || skb::cb(skb, 3) != (high >> 32) as u32
    {
        return 0;
    }
    let stage = skb::cb(skb, 4);
    for word in 0..5 {
        skb::set_cb(skb, word, 0);
    }
    stage
}
