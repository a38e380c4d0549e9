//! Ports that a rule spares, so that a fault on the host's own network leaves the ways to reach the host open.

use crate::{maps::SPARED, packet::Packet};

/// The sets of spared ports that a packet is in, as bits.
#[inline(always)]
pub fn sets(packet: &Packet) -> u64 {
    if packet.has_ports != 0 {
        of(packet.local_port) | of(packet.peer_port)
    } else if packet.fragment != 0 {
        // Its ports were in the first fragment, without which it is worth nothing.
        u64::MAX
    } else {
        0
    }
}

/// The sets that a port is in.
#[inline(always)]
fn of(port: u32) -> u64 {
    // SAFETY: one word, which the agent replaces as a whole.
    unsafe { SPARED.get(port) }.copied().unwrap_or(0)
}
