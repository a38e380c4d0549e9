//! Which sockets belong to a target that shares its network namespace with others.
//!
//! Tags live in the sockets themselves: they follow a socket through `fork`, descriptor passing and a change of cgroup,
//! accepted sockets inherit them, and they end with the socket.

use core::{mem::size_of, ptr};

use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_ancestor_cgroup_id, bpf_sk_fullsock, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release,
            bpf_sk_storage_get,
        },
    },
};

use crate::{
    maps::{CGROUP_TAGS, PROCESS_TAGS, SOCKET_TAGS},
    packet::Packet,
    skb::{self, Skb},
};

/// Levels of the cgroup tree that are looked at, the root excluded.
const MAX_CGROUP_DEPTH: i32 = 24;

/// The tags of the socket that sends or will receive the packet; 0 when it has none or is not on this host.
#[inline(always)]
pub fn tags(skb: Skb, packet: &Packet, egress: bool) -> u64 {
    if egress {
        let sender = skb::socket(skb);
        if sender.is_null() {
            return 0;
        }
        // SAFETY: not null, as the verifier sees too.
        let full = unsafe { bpf_sk_fullsock(sender) };
        if !full.is_null() {
            return of_socket(full);
        }
        // A half-open connection has no full socket to send its SYN-ACK; its listener has the tags.
    }
    of_receiver(skb, packet)
}

#[inline(always)]
fn of_socket(socket: *mut bpf_sock) -> u64 {
    // SAFETY: a valid socket; without the create flag the value may be null.
    let tags = unsafe { bpf_sk_storage_get(SOCKET_TAGS.as_ptr(), socket.cast(), ptr::null_mut(), 0) }.cast::<u64>();
    if tags.is_null() {
        return 0;
    }
    // SAFETY: not null, so it points to the value of the map.
    unsafe { *tags }
}

#[inline(always)]
fn of_receiver(skb: Skb, packet: &Packet) -> u64 {
    if packet.has_ports == 0 || !(packet.is_tcp() || packet.is_udp()) {
        return 0;
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
        return 0;
    }
    let tags = of_socket(socket);
    // SAFETY: the reference that the lookup took, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    tags
}

#[inline(always)]
fn words(address: [u64; 2]) -> [u32; 4] {
    [address[0] as u32, (address[0] >> 32) as u32, address[1] as u32, (address[1] >> 32) as u32]
}

/// Tags a socket that is being made, by the cgroup (and the process) that makes it. Never refuses one.
#[inline(always)]
pub fn tag_new(socket: *mut bpf_sock, with_process: bool) -> i32 {
    const ALLOW: i32 = 1;
    let mut tags = 0u64;
    if with_process {
        let process = (bpf_get_current_pid_tgid() >> 32) as u32;
        // SAFETY: read once; a tag that is being removed may still be seen.
        if let Some(own) = unsafe { PROCESS_TAGS.get(process) } {
            tags |= *own;
        }
    }
    for level in 1..=MAX_CGROUP_DEPTH {
        // SAFETY: takes a number.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup == 0 {
            break;
        }
        // SAFETY: as above.
        if let Some(own) = unsafe { CGROUP_TAGS.get(cgroup) } {
            tags |= *own;
        }
    }
    if tags == 0 {
        return ALLOW;
    }
    // SAFETY: the context is the socket; the value is copied in when the storage is new.
    let stored = unsafe {
        bpf_sk_storage_get(
            SOCKET_TAGS.as_ptr(),
            socket.cast(),
            (&raw mut tags).cast(),
            BPF_SK_STORAGE_GET_F_CREATE.into(),
        )
    }
    .cast::<u64>();
    if !stored.is_null() {
        // SAFETY: not null, so it points to the value of the map.
        unsafe { *stored |= tags };
    }
    ALLOW
}
