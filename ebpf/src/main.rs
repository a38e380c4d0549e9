//! The in-kernel programs of Firedrill.
//!
//! - `fdrill_egress`, `fdrill_ingress`: at an interface; drop or divert the packets that a rule matches.
//! - `fdrill_reinject`: at the TAP of a delay line; sends what the agent writes back on its way.
//! - `fdrill_tag_new`, `fdrill_tag_cg`: when a socket is made; tag those of a chosen cgroup (or process).
//! - `fdrill_connect4`, `fdrill_send4`, `fdrill_bind4` and those for IPv6: at the root of the control groups; have calls of
//!   chosen callers fail, or their connections go to a listener of the agent.
//! - `fdrill_peer4`, `fdrill_name4` and those for IPv6: likewise; tell such callers the addresses that they would have.
//!
//! A packet that no rule acts upon gets `TCX_NEXT`, so that programs after ours see it as if we were not there.
#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn)]

mod calls;
mod detour;
mod maps;
mod packet;
mod rules;
mod skb;
mod sockets;
mod spare;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, classifier},
    programs::{SockAddrContext, SockContext, TcContext},
};
use firedrill_abi::{CALL_BIND, CALL_CONNECT, CALL_SEND, STAGE_EGRESS, STAGE_INGRESS};

/// What leaves through an interface.
#[classifier]
pub fn fdrill_egress(ctx: TcContext) -> i32 {
    rules::run(ctx.skb.skb, STAGE_EGRESS)
}

/// What arrives through an interface.
#[classifier]
pub fn fdrill_ingress(ctx: TcContext) -> i32 {
    rules::run(ctx.skb.skb, STAGE_INGRESS)
}

/// What the agent writes back to the TAP of a delay line.
#[classifier]
pub fn fdrill_reinject(ctx: TcContext) -> i32 {
    rules::reinject(ctx.skb.skb)
}

/// A new socket of a process in a tagged cgroup, or of a tagged process.
#[cgroup_sock(sock_create)]
pub fn fdrill_tag_new(ctx: SockContext) -> i32 {
    sockets::tag_new(ctx.sock, true)
}

/// The same without processes, for kernels that do not say here which process it is.
#[cgroup_sock(sock_create)]
pub fn fdrill_tag_cg(ctx: SockContext) -> i32 {
    sockets::tag_new(ctx.sock, false)
}

/// A connect(2) to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn fdrill_connect4(ctx: SockAddrContext) -> i32 {
    calls::run(ctx.sock_addr, CALL_CONNECT, false)
}

/// A connect(2) to an IPv6 address.
#[cgroup_sock_addr(connect6)]
pub fn fdrill_connect6(ctx: SockAddrContext) -> i32 {
    calls::run(ctx.sock_addr, CALL_CONNECT, true)
}

/// A datagram that names its receiver, an IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn fdrill_send4(ctx: SockAddrContext) -> i32 {
    calls::run(ctx.sock_addr, CALL_SEND, false)
}

/// A datagram that names its receiver, an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn fdrill_send6(ctx: SockAddrContext) -> i32 {
    calls::run(ctx.sock_addr, CALL_SEND, true)
}

/// A bind(2) to an IPv4 address.
#[cgroup_sock_addr(bind4)]
pub fn fdrill_bind4(ctx: SockAddrContext) -> i32 {
    calls::run(ctx.sock_addr, CALL_BIND, false)
}

/// A bind(2) to an IPv6 address.
#[cgroup_sock_addr(bind6)]
pub fn fdrill_bind6(ctx: SockAddrContext) -> i32 {
    calls::run(ctx.sock_addr, CALL_BIND, true)
}

/// A getpeername(2) that answers an IPv4 address.
#[cgroup_sock_addr(getpeername4)]
pub fn fdrill_peer4(ctx: SockAddrContext) -> i32 {
    detour::name(ctx.sock_addr, false, true)
}

/// A getpeername(2) that answers an IPv6 address.
#[cgroup_sock_addr(getpeername6)]
pub fn fdrill_peer6(ctx: SockAddrContext) -> i32 {
    detour::name(ctx.sock_addr, true, true)
}

/// A getsockname(2) that answers an IPv4 address.
#[cgroup_sock_addr(getsockname4)]
pub fn fdrill_name4(ctx: SockAddrContext) -> i32 {
    detour::name(ctx.sock_addr, false, false)
}

/// A getsockname(2) that answers an IPv6 address.
#[cgroup_sock_addr(getsockname6)]
pub fn fdrill_name6(ctx: SockAddrContext) -> i32 {
    detour::name(ctx.sock_addr, true, false)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
