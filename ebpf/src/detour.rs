//! Has connections go to a listener of the agent on the loopback interface, which carries them on. Their owner is told the
//! addresses that it would have without it.

use core::{mem::size_of, ptr};

use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, bpf_sock_addr, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::generated::{bpf_get_socket_cookie, bpf_sk_lookup_tcp, bpf_sk_release},
};
use firedrill_abi::Original;

use crate::{
    maps::ORIGINALS,
    skb::{field, set_field},
};

/// `SOCK_STREAM`.
const STREAM: u32 = 1;
/// 127.0.0.1 in network order, read as a number.
const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
/// The third word of IPv4 addresses in their IPv6 form.
const MAPPED: u32 = 0xffff_0000;
/// ::1, the same way.
const LAST: u32 = u32::from_ne_bytes([0, 0, 0, 1]);

/// Has a connect go to the listener. If nobody listens, as when the agent has died, it goes on as it is.
#[inline(always)]
pub fn begin(ctx: *mut bpf_sock_addr, v6: bool, peer: [u64; 2], port: u32, listener: u32) {
    if field!(ctx, type_) != STREAM || is_bound_to_device(ctx) {
        return;
    }
    let v4 = peer[0] == 0 && peer[1] as u32 == MAPPED;
    if !listens(ctx, v4, listener) {
        return;
    }
    // SAFETY: takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    let original = Original { peer, local: [0; 2], peer_port: port, local_port: 0 };
    if ORIGINALS.insert(cookie, original, 0).is_err() {
        return;
    }
    let low = if v4 { u64::from(MAPPED) | u64::from(LOOPBACK) << 32 } else { u64::from(LAST) << 32 };
    set(ctx, v6, [0, low], listener);
}

/// Answers getpeername(2), or getsockname(2), of a connection that goes to a listener.
#[inline(always)]
pub fn name(ctx: *mut bpf_sock_addr, v6: bool, peer: bool) -> i32 {
    // SAFETY: takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    // SAFETY: read once; the agent replaces entries as a whole.
    if let Some(original) = unsafe { ORIGINALS.get(cookie) } {
        let (address, port) =
            if peer { (original.peer, original.peer_port) } else { (original.local, original.local_port) };
        if port != 0 {
            set(ctx, v6, address, port);
        }
    }
    1
}

#[inline(always)]
fn is_bound_to_device(ctx: *mut bpf_sock_addr) -> bool {
    // SAFETY: as `field`; the union has one member of this type.
    let socket = unsafe { ptr::read_volatile(&raw const (*ctx).__bindgen_anon_1.sk) };
    // SAFETY: not null, as the verifier sees too.
    !socket.is_null() && unsafe { ptr::read_volatile(&raw const (*socket).bound_dev_if) } != 0
}

/// Whether somebody listens on the port of the loopback interface.
#[inline(always)]
fn listens(ctx: *mut bpf_sock_addr, v4: bool, port: u32) -> bool {
    // SAFETY: plain numbers, for which zero is a value.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let dport = (port as u16).to_be();
    let len = if v4 {
        tuple.__bindgen_anon_1.ipv4 = Tuple4 { saddr: LOOPBACK, daddr: LOOPBACK, sport: 0, dport };
        size_of::<Tuple4>()
    } else {
        let loopback = [0, 0, 0, LAST];
        tuple.__bindgen_anon_1.ipv6 = Tuple6 { saddr: loopback, daddr: loopback, sport: 0, dport };
        size_of::<Tuple6>()
    };
    let netns = BPF_F_CURRENT_NETNS as u64;
    // SAFETY: the tuple is initialised and as long as said.
    let socket = unsafe { bpf_sk_lookup_tcp(ctx.cast(), &raw mut tuple, len as u32, netns, 0) };
    if socket.is_null() {
        return false;
    }
    // SAFETY: the reference that the lookup took, released once.
    unsafe { bpf_sk_release(socket.cast()) };
    true
}

/// Writes an address as rules have it, and a port, into the context of a family.
#[inline(always)]
fn set(ctx: *mut bpf_sock_addr, v6: bool, address: [u64; 2], port: u32) {
    if v6 {
        let words = [address[0] as u32, (address[0] >> 32) as u32, address[1] as u32, (address[1] >> 32) as u32];
        for (at, word) in words.into_iter().enumerate() {
            // SAFETY: as `set_field`; the array has four words.
            unsafe { ptr::write_volatile((&raw mut (*ctx).user_ip6).cast::<u32>().add(at), word) };
        }
    } else {
        set_field!(ctx, user_ip4, (address[1] >> 32) as u32);
    }
    set_field!(ctx, user_port, u32::from((port as u16).to_be()));
}
