//! Ports that a rule spares, so that a fault on the host's own network leaves the ways to reach the host open.

use firedrill_abi::Hook;

use crate::{maps::SPARED, packet::Packet};

/// Takes the rules that spare this packet out of those that are asked about it. A hook whose rules spare nothing pays for
/// one comparison.
#[inline(always)]
pub fn leave_out(hook: &mut Hook, packet: &Packet) {
    if hook.sparing == 0 {
        return;
    }
    let spared = if packet.has_ports != 0 {
        by(packet.local_port) | by(packet.peer_port)
    } else if packet.fragment != 0 {
        // Its ports were in the first fragment, without which it is worth nothing.
        hook.sparing
    } else {
        0
    };
    hook.drops &= !spared;
    hook.delays &= !spared;
}

/// The rules that spare a port.
#[inline(always)]
fn by(port: u32) -> u64 {
    // SAFETY: one word, which the agent replaces as a whole.
    unsafe { SPARED.get(port) }.copied().unwrap_or(0)
}
