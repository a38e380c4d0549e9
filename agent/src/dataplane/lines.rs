//! Starting and stopping delay lines.

use std::{io, sync::Arc};

use rand::{SeedableRng as _, rngs::StdRng};

use firedrill_abi::{MAX_LINES, REINJECT_INGRESS, STAGE_EGRESS, STAGE_INGRESS, TAP_PREFIX};

use super::{
    ActiveLine, AttachMode, DataPlane, DataPlaneError, Direction, LineInfo, LineTotals, attach, check_interface,
    in_netns, index_of,
    line::{self, Line, LineParts},
    load, map_error,
};
use crate::{
    crash_point,
    sys::{clock::monotonic_ns, mmap::Reentry, tun},
};

impl DataPlane {
    /// Starts the delay line of an attached hook: makes a TAP in the namespace and a thread. On `lo` see the module about
    /// its preconditions.
    ///
    /// # Errors
    /// Nothing is attached there, it has a line already, or the TAP cannot be made.
    pub fn delay_line_start(&mut self, ifindex: u32, direction: Direction) -> Result<LineInfo, DataPlaneError> {
        let hook = self.hooks.get(&(ifindex, direction)).ok_or(DataPlaneError::NotAttached { ifindex, direction })?;
        let name = hook.name.clone();
        let failed = |what| {
            let name = name.clone();
            move |source| DataPlaneError::DelayLine { name, what, source }
        };
        if hook.line.is_some() {
            return Err(failed("starting")(io::Error::other("it has one already")));
        }
        let used =
            self.hooks.values().filter_map(|hook| hook.line.as_ref()).fold(0u64, |used, line| used | 1 << line.slot);
        let slot = (!used).trailing_zeros();
        if slot >= MAX_LINES {
            return Err(DataPlaneError::Exhausted { what: "delay lines", limit: MAX_LINES });
        }
        let (bpf, mode) = (&mut self.bpf, self.mode);
        let (tap, tap_ifindex, reinject, hardware) = in_netns(&self.netns, || {
            let hardware = check_interface(ifindex, &name)?;
            let tap = crash_point::around("line.tap.make", || tun::create_tap(&format!("{TAP_PREFIX}%d")))
                .map_err(failed("making a TAP"))?;
            let tap_ifindex = index_of(&tap.name).map_err(failed("finding the TAP"))?;
            quiet(&tap.name).map_err(failed("switching IPv6 off on the TAP"))?;
            // A filter ends with its TAP at no cost; for a link the kernel would wait for RCU, some 10 ms, before each TAP.
            let mut at_tap =
                |mode| attach::attach(bpf, load::REINJECT, mode, tap_ifindex, &tap.name, Direction::Ingress);
            let (reinject, _) = at_tap(AttachMode::Clsact).or_else(|_| at_tap(mode))?;
            crash_point::around("line.tap.queue", || tun::set_queue_len(&tap.name, line::QUEUE_LEN))
                .map_err(failed("setting the TAP's queue"))?;
            crash_point::around("line.tap.up", || tun::bring_up(&tap.name, line::TAP_MTU))
                .map_err(failed("bringing the TAP up"))?;
            Ok((tap, tap_ifindex, reinject, hardware))
        })?;
        let info = LineInfo { tap_name: tap.name.clone(), tap_ifindex };
        self.maps.reset_refused(slot)?;
        crash_point::around("line.tap.write", || self.maps.taps.insert(tap_ifindex, slot, 0))
            .map_err(map_error("TAPS"))?;
        let forth = way(direction, hardware);
        let parts = LineParts {
            table: Arc::clone(&self.table),
            slot,
            nonce: self.nonce,
            forth,
            back: way_back(direction, hardware),
            records: self.records.clone(),
            chance: StdRng::from_rng(&mut rand::rng()),
        };
        let line = crash_point::around("line.start", || Line::start(tap, parts))?;
        let entry = firedrill_abi::Line {
            heartbeat_ns: monotonic_ns(),
            tap_ifindex,
            target_ifindex: ifindex,
            reinject_flags: forth.flags,
            stage: forth.stage,
            ..firedrill_abi::Line::default()
        };
        crash_point::around("line.on", || self.table.switch_on(slot, &entry));
        if let Some(hook) = self.hooks.get_mut(&(ifindex, direction)) {
            hook.line = Some(ActiveLine { slot, tap_ifindex, line, reinject });
        }
        if let Err(error) = self.publish(ifindex) {
            // Nothing is left half done; the first error is the one that tells.
            let _ = self.delay_line_stop(ifindex, direction);
            return Err(error);
        }
        Ok(info)
    }

    /// Stops a delay line: sends on in order what it holds, and removes the TAP. No line there is no error.
    ///
    /// # Errors
    /// The thread did not answer or had failed; the line is gone all the same.
    pub fn delay_line_stop(&mut self, ifindex: u32, direction: Direction) -> Result<LineTotals, DataPlaneError> {
        let Some(mut active) = self.hooks.get_mut(&(ifindex, direction)).and_then(|hook| hook.line.take()) else {
            return Ok(LineTotals::default());
        };
        let tap_name = active.line.tap_name.clone();
        let tap_full = in_netns(&self.netns, || Ok(dropped_by(&tap_name))).unwrap_or(0);
        // What it held went with its TAP; then nothing of it is left to stop.
        let lost = self.has_lost(&tap_name);
        let stopped = crash_point::around("line.stop", || {
            active.line.stop().or_else(|error| if lost { Ok(()) } else { Err(error) })
        });
        let published = self.publish(ifindex);
        let refused = self.maps.refused(active.slot)?;
        let removed = crash_point::around("line.tap.forget", || self.maps.taps.remove(&active.tap_ifindex));
        let removed = load::absent_is_fine(removed).map_err(map_error("TAPS"));
        stopped.and(published).and(removed).map(|()| LineTotals { tap_full, refused })
    }

    /// Whether somebody has removed a TAP: its line's thread has ended then.
    fn has_lost(&self, tap: &str) -> bool {
        in_netns(&self.netns, || Ok(index_of(tap).is_err())).unwrap_or(true)
    }

    /// Sends on what a rule holds, in every line.
    pub(super) fn release(&self, rule: u32) -> Result<(), DataPlaneError> {
        let mut result = Ok(());
        for line in self.hooks.values().filter_map(|hook| hook.line.as_ref()) {
            let released = line.line.release(rule);
            if released.is_err() && self.has_lost(&line.line.tap_name) {
                continue;
            }
            result = result.and(released);
        }
        result
    }
}

/// Where a line sends packets on: at the hook where they were taken, but on the loopback interface always at ingress,
/// since there a packet that is sent a second time gets lost.
fn way(direction: Direction, hardware: u16) -> Reentry {
    let at_ingress = direction == Direction::Ingress || hardware == tun::HARDWARE_LOOPBACK;
    Reentry {
        flags: if at_ingress { REINJECT_INGRESS } else { 0 },
        stage: match direction {
            Direction::Egress => STAGE_EGRESS,
            Direction::Ingress => STAGE_INGRESS,
        },
    }
}

/// Where a line sends answers: they arrive where the packet left, or leave where it arrived, and pass our own hook there. On
/// the loopback interface every answer arrives.
fn way_back(direction: Direction, hardware: u16) -> Reentry {
    let arrives = direction == Direction::Egress || hardware == tun::HARDWARE_LOOPBACK;
    way(if arrives { Direction::Ingress } else { Direction::Egress }, hardware)
}

/// Keeps the kernel from sending anything of its own over a TAP.
fn quiet(tap: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{tap}/disable_ipv6");
    match crash_point::around("line.tap.quiet", || std::fs::write(path, "1")) {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Packets that the TAP had no room for: the twelfth number of its line in /proc/net/dev.
fn dropped_by(tap: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(tap)?.strip_prefix(':'));
    line.and_then(|numbers| numbers.split_whitespace().nth(11)).and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_gets_packets_taken_at_egress_back_at_ingress() {
        let flags = |direction, hardware| way(direction, hardware).flags;
        assert_eq!(flags(Direction::Egress, tun::HARDWARE_ETHERNET), 0);
        assert_eq!(flags(Direction::Ingress, tun::HARDWARE_ETHERNET), REINJECT_INGRESS);
        assert_eq!(flags(Direction::Egress, tun::HARDWARE_LOOPBACK), REINJECT_INGRESS);
    }

    #[test]
    fn answers_go_the_other_way_and_on_the_loopback_they_arrive() {
        let arrives = way(Direction::Ingress, tun::HARDWARE_ETHERNET);
        let leaves = way(Direction::Egress, tun::HARDWARE_ETHERNET);
        assert_eq!(way_back(Direction::Egress, tun::HARDWARE_ETHERNET), arrives);
        assert_eq!(way_back(Direction::Ingress, tun::HARDWARE_ETHERNET), leaves);
        assert_eq!(way_back(Direction::Egress, tun::HARDWARE_LOOPBACK), arrives);
        assert_eq!(way_back(Direction::Ingress, tun::HARDWARE_LOOPBACK), arrives);
    }
}
