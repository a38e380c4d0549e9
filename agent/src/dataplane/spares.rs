//! The sets of ports that rules spare. Pure.

use std::collections::BTreeMap;

use firedrill_abi::MAX_SPARED;

/// Each set is a bit, and there for as long as a rule has it.
#[derive(Debug, Default)]
pub(super) struct Spares {
    sets: BTreeMap<u32, Set>,
}

#[derive(Debug)]
struct Set {
    ports: Vec<u16>,
    rules: usize,
}

impl Spares {
    /// The bit of a set of ports, 0 for an empty one; `None` when there are too many sets or ports.
    pub(super) fn take(&mut self, ports: &[u16]) -> Option<u64> {
        if ports.is_empty() {
            return Some(0);
        }
        let mut ports = ports.to_vec();
        ports.sort_unstable();
        ports.dedup();
        if let Some((bit, set)) = self.sets.iter_mut().find(|(_, set)| set.ports == ports) {
            set.rules += 1;
            return Some(1 << bit);
        }
        let bit = (0..u64::BITS).find(|bit| !self.sets.contains_key(bit))?;
        self.sets.insert(bit, Set { ports, rules: 1 });
        if self.by_port().len() > MAX_SPARED as usize {
            self.sets.remove(&bit);
            return None;
        }
        Some(1 << bit)
    }

    /// Ends one use of a set.
    pub(super) fn give_back(&mut self, mask: u64) {
        let bit = mask.trailing_zeros();
        if let Some(set) = self.sets.get_mut(&bit) {
            set.rules -= 1;
            if set.rules == 0 {
                self.sets.remove(&bit);
            }
        }
    }

    /// Whether no port is spared.
    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// Each spared port and the sets that it is in.
    pub(super) fn by_port(&self) -> BTreeMap<u32, u64> {
        let mut ports: BTreeMap<u32, u64> = BTreeMap::new();
        for (bit, set) in &self.sets {
            for port in &set.ports {
                *ports.entry(u32::from(*port)).or_default() |= 1 << bit;
            }
        }
        ports
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_share_a_bit_until_the_last_rule_gives_it_back() {
        let mut spares = Spares::default();
        assert_eq!(spares.take(&[]), Some(0));
        let ssh = spares.take(&[22, 2222]).unwrap();
        assert_eq!(spares.take(&[2222, 22, 22]), Some(ssh));
        let other = spares.take(&[22]).unwrap();
        assert_ne!(ssh, other);
        assert_eq!(spares.by_port(), BTreeMap::from([(22, ssh | other), (2222, ssh)]));
        spares.give_back(ssh);
        spares.give_back(other);
        assert_eq!(spares.by_port(), BTreeMap::from([(22, ssh), (2222, ssh)]));
        spares.give_back(ssh);
        assert!(spares.is_empty());
        spares.give_back(0);
    }

    #[test]
    fn more_ports_than_fit_are_refused_and_leave_nothing() {
        let mut spares = Spares::default();
        let many: Vec<u16> = (1..=MAX_SPARED as u16 + 1).collect();
        assert_eq!(spares.take(&many), None);
        assert!(spares.is_empty());
        for port in 0..64 {
            assert!(spares.take(&[port]).is_some());
        }
        assert_eq!(spares.take(&[64]), None, "all bits are taken");
    }
}
