//! Which sockets belong to a target that shares its network namespace with others.
//!
//! Scopes are stored in the sockets themselves: they follow a socket through `fork`, descriptor passing and a change of cgroup,
//! accepted sockets inherit them, and they end with the socket.

use core::{ffi::c_void, mem::size_of, ptr};

use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_ancestor_cgroup_id, bpf_loop, bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
            bpf_sk_release, bpf_sk_storage_get,
        },
    },
};

use firedrill_abi::{SCOPES_PER_SOCKET, SocketScopes};

use crate::{
    maps::{CGROUP_TAGS, PROCESS_TAGS, SOCKET_TAGS},
    packet::Packet,
    skb::{self, Skb},
};

/// Levels of the cgroup tree that are looked at, the root excluded.
pub const MAX_CGROUP_DEPTH: u32 = 24;

/// Whether a packet that leaves has a socket of its own that is in no scope: then no rule for sockets is about it.
#[inline(always)]
pub fn is_stranger(skb: Skb) -> bool {
    let sender = skb::socket(skb);
    if sender.is_null() {
        return true;
    }
    // SAFETY: not null, as the verifier sees too.
    let full = unsafe { bpf_sk_fullsock(sender) };
    // A half-open connection has no full socket; its listener is looked for later.
    !full.is_null() && stored(full).is_null()
}

/// The scopes of the socket that sends or will receive the packet, into `scopes`, which is all 0 before.
#[inline(always)]
pub fn scopes(skb: Skb, packet: &Packet, egress: bool, scopes: &mut [u32]) {
    if egress {
        let sender = skb::socket(skb);
        if sender.is_null() {
            return;
        }
        // SAFETY: not null, as the verifier sees too.
        let full = unsafe { bpf_sk_fullsock(sender) };
        if !full.is_null() {
            return of_socket(full, scopes);
        }
        // A half-open connection has no full socket to send its SYN-ACK; its listener has the scopes.
    }
    of_receiver(skb, packet, scopes)
}

/// What is stored in a socket, or null.
#[inline(always)]
fn stored(socket: *mut bpf_sock) -> *mut SocketScopes {
    // SAFETY: a valid socket; without the create flag the value may be null.
    unsafe { bpf_sk_storage_get(SOCKET_TAGS.as_ptr(), socket.cast(), ptr::null_mut(), 0) }.cast()
}

#[inline(always)]
fn of_socket(socket: *mut bpf_sock, scopes: &mut [u32]) {
    let stored = stored(socket);
    if stored.is_null() {
        return;
    }
    for i in 0..SCOPES_PER_SOCKET {
        // SAFETY: not null, so it points to the value of the map.
        scopes[i] = unsafe { (*stored)[i] };
    }
}

#[inline(always)]
fn of_receiver(skb: Skb, packet: &Packet, scopes: &mut [u32]) {
    if packet.has_ports == 0 || !(packet.is_tcp() || packet.is_udp()) {
        return;
    }
    // SAFETY: plain numbers, for which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let len = if packet.v6 != 0 {
        tuple.__bindgen_anon_1.ipv6 = Tuple6 {
            saddr: words(packet.peer),
            daddr: words(packet.local),
            sport: (packet.peer_port as u16).to_be(),
            dport: (packet.local_port as u16).to_be(),
        };
        size_of::<Tuple6>()
    } else {
        tuple.__bindgen_anon_1.ipv4 = Tuple4 {
            saddr: words(packet.peer)[3],
            daddr: words(packet.local)[3],
            sport: (packet.peer_port as u16).to_be(),
            dport: (packet.local_port as u16).to_be(),
        };
        size_of::<Tuple4>()
    };
    let netns = BPF_F_CURRENT_NETNS as u64;
    let socket = if packet.is_tcp() {
        // SAFETY: the tuple is initialised and as long as said.
        unsafe { bpf_sk_lookup_tcp(skb.cast(), &raw mut tuple, len as u32, netns, 0) }
    } else {
        // SAFETY: likewise.
        unsafe { bpf_sk_lookup_udp(skb.cast(), &raw mut tuple, len as u32, netns, 0) }
    };
    if socket.is_null() {
        return;
    }
    of_socket(socket, scopes);
    // SAFETY: the reference that the lookup took, released once.
    unsafe { bpf_sk_release(socket.cast()) };
}

#[inline(always)]
fn words(address: [u64; 2]) -> [u32; 4] {
    [address[0] as u32, (address[0] >> 32) as u32, address[1] as u32, (address[1] >> 32) as u32]
}

/// Tags a socket that is being made, by the cgroup (and the process) that makes it. Never refuses one.
#[inline(always)]
pub fn tag_new(socket: *mut bpf_sock, with_process: bool) -> i32 {
    const ALLOW: i32 = 1;
    // On the stack: at this hook programs of one CPU may interrupt each other.
    let mut scopes: SocketScopes = [0; SCOPES_PER_SOCKET];
    if with_process {
        let process = (bpf_get_current_pid_tgid() >> 32) as u32;
        // SAFETY: read once; a scope that is being removed may still be seen.
        if let Some(own) = unsafe { PROCESS_TAGS.get(process) } {
            add(&mut scopes, own);
        }
    }
    // SAFETY: the callback has the signature that the helper wants, and gets the set, which outlives the loop.
    unsafe {
        bpf_loop(MAX_CGROUP_DEPTH, add_ancestor as *mut _, (&raw mut scopes).cast(), 0);
    }
    if scopes[0] == 0 {
        return ALLOW;
    }
    // SAFETY: the context is the socket; the value is copied in when the storage is new.
    unsafe {
        bpf_sk_storage_get(
            SOCKET_TAGS.as_ptr(),
            socket.cast(),
            (&raw mut scopes).cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    };
    ALLOW
}

/// Adds the scopes of the cgroup at a level below the root, counted from 0. 1 ends the walk. A function of its own, so that
/// the kernel verifies it once and not for every level, which took it half a second.
unsafe extern "C" fn add_ancestor(level: u32, scopes: *mut c_void) -> i64 {
    // SAFETY: takes a number.
    let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32 + 1) };
    if cgroup == 0 {
        return 1;
    }
    // SAFETY: read once; a scope that is being removed may still be seen.
    if let Some(own) = unsafe { CGROUP_TAGS.get(cgroup) } {
        // SAFETY: the set that the loop was given.
        add(unsafe { &mut *scopes.cast::<SocketScopes>() }, own);
    }
    0
}

/// Adds scopes to a set that fills from the front; what finds no place is left out, and the agent's scan tells.
#[inline(never)]
fn add(scopes: &mut SocketScopes, more: &SocketScopes) {
    for new in more {
        if *new == 0 {
            return;
        }
        for place in scopes.iter_mut() {
            if *place == 0 || *place == *new {
                *place = *new;
                break;
            }
        }
    }
}
