//! Asks the rules of an interface about a packet, and does what they say.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT},
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_loop, bpf_redirect,
        generated::{bpf_skb_change_head, bpf_skb_store_bytes},
    },
};
use firedrill_abi::{
    ACTION_DROP, ALWAYS, HEARTBEAT_TIMEOUT_NS, Hook, Line, MAX_PEERS, MAX_PORTS, META_LEN, Meta, Peer, PortRange, Rule,
    STAGE_EGRESS,
};

use crate::{
    maps::{COUNTERS, INTERFACES, LINES, NONCE_0, NONCE_1, REFUSED, RULES, TAPS, WALK},
    packet::Packet,
    skb::{self, Skb, field, set_field},
    sockets, spare,
};

/// `TCX_NEXT`, which is also `TC_ACT_UNSPEC`: go on with the next program.
const NEXT: i32 = -1;

/// An interface that does not exist. A redirect there frees the packet and tells the sender nothing, while
/// `TC_ACT_SHOT` at egress shows as ENOBUFS, and to TCP as local congestion.
const NOWHERE: u32 = i32::MAX as u32;

/// The walk over the rules of one packet. In a map, as [`Packet`] is and for the same reason.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Walk {
    drops: u64,
    delays: u64,
    now_ns: u64,
    tags: u64,
    peer: [u64; 2],
    delay_ns: u64,
    delayed_by: u64,
    bytes: u32,
    protocol: u32,
    local_port: u32,
    peer_port: u32,
    has_ports: u32,
    line_ready: u32,
    dropped: u32,
    reserved: u32,
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
    let mut hook = if egress { interface.egress } else { interface.ingress };
    if hook.drops | hook.delays == 0 {
        return NEXT;
    }
    let Some(packet) = Packet::parse(skb, egress) else {
        return NEXT;
    };
    spare::leave_out(&mut hook, packet);
    judge(skb, packet, &hook, egress)
}

#[inline(always)]
fn judge(skb: Skb, packet: &Packet, hook: &Hook, egress: bool) -> i32 {
    // SAFETY: takes nothing.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let tags = if hook.tagged == 0 { 0 } else { sockets::tags(skb, packet, egress) };
    let line = if hook.line == 0 { ptr::null_mut() } else { ready_line(hook.line - 1, now_ns) };
    let Some(walk) = WALK.get_ptr_mut(0) else {
        return NEXT;
    };
    // SAFETY: this CPU's entry; see `Packet::parse`.
    let walk = unsafe { &mut *walk };
    *walk = Walk {
        drops: hook.drops,
        delays: hook.delays,
        now_ns,
        tags,
        peer: packet.peer,
        delay_ns: 0,
        delayed_by: 0,
        bytes: field!(skb, len),
        protocol: packet.protocol,
        local_port: packet.local_port,
        peer_port: packet.peer_port,
        has_ports: packet.has_ports,
        line_ready: u32::from(!line.is_null()),
        dropped: 0,
        reserved: 0,
    };
    // SAFETY: the callback has the signature that the helper wants, and does not use the context.
    unsafe {
        bpf_loop(walk.drops.count_ones() + walk.delays.count_ones(), ask as *mut _, ptr::null_mut(), 0);
    }
    if walk.dropped != 0 {
        if egress {
            // SAFETY: takes numbers.
            return unsafe { bpf_redirect(NOWHERE, 0) } as i32;
        }
        return TC_ACT_SHOT as i32;
    }
    if line.is_null() || walk.delayed_by == 0 {
        return NEXT;
    }
    divert(skb, packet, hook.line - 1, line, walk)
}

/// Asks one rule: the lowest of those that drop, then the lowest of those that delay. 1 ends the walk.
unsafe extern "C" fn ask(_index: u32, _context: *mut c_void) -> i64 {
    let Some(walk) = WALK.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's entry, which the caller of the loop does not touch meanwhile.
    let walk = unsafe { &mut *walk };
    let number = if walk.drops != 0 {
        let number = walk.drops.trailing_zeros();
        walk.drops &= walk.drops - 1;
        number
    } else if walk.delays != 0 {
        let number = walk.delays.trailing_zeros();
        walk.delays &= walk.delays - 1;
        number
    } else {
        return 1;
    };
    let Some(rule) = RULES.get(number) else {
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
    // SAFETY: takes nothing.
    if rule.threshold != ALWAYS && unsafe { bpf_get_prandom_u32() } >= rule.threshold {
        return 0;
    }
    if rule.action == ACTION_DROP {
        counters.dropped += 1;
        walk.dropped = 1;
        return 1;
    }
    if walk.line_ready == 0 {
        counters.passed += 1;
        return 0;
    }
    counters.diverted += 1;
    walk.delay_ns += delay(rule);
    walk.delayed_by |= 1 << (number & 63);
    0
}

#[inline(always)]
fn matches(rule: &Rule, walk: &Walk) -> bool {
    if walk.now_ns >= rule.expires_ns
        || (rule.tag_mask != 0 && rule.tag_mask & walk.tags == 0)
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
fn in_peers(peers: &[Peer; MAX_PEERS], address: &[u64; 2]) -> bool {
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
fn in_ports(ports: &[PortRange; MAX_PORTS], port: u32) -> bool {
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

/// The delay of this packet, jitter included.
#[inline(always)]
fn delay(rule: &Rule) -> u64 {
    if rule.jitter_ns == 0 {
        return rule.delay_ns;
    }
    // SAFETY: takes nothing.
    let random = u64::from(unsafe { bpf_get_prandom_u32() });
    // Steps of 1024 ns keep the product below 2^64 for any jitter up to an hour.
    let offset = ((((2 * rule.jitter_ns) >> 10) * random) >> 32) << 10;
    (rule.delay_ns + offset).saturating_sub(rule.jitter_ns)
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
fn divert(skb: Skb, packet: &Packet, slot: u32, line: *mut Line, walk: &Walk) -> i32 {
    let meta = Meta {
        nonce: NONCE_0.load(),
        taken_ns: walk.now_ns,
        delay_ns: walk.delay_ns,
        rules: walk.delayed_by,
        flow: packet.flow(),
        mark: field!(skb, mark),
        priority: field!(skb, priority),
        reserved: 0,
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
