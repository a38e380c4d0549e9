//! Rules in force: their slots, what they did, which hooks they apply to, and which ports they spare.

use std::{collections::BTreeMap, sync::atomic::Ordering::Relaxed};

use aya::maps::MapError;
use firedrill_abi::{ACTION_DROP, Hook, Interface, MAX_RULES, MAX_SPARED, Rule};

use super::{
    Action, ActiveRule, Counters, DataPlane, DataPlaneError, Direction, RuleError, RuleId, RuleSpec, map_error, rule,
};
use crate::crash_point;
use crate::sys::bpf::Shared;

impl DataPlane {
    /// Puts a rule in force at every attached hook to which it applies, now and later.
    ///
    /// # Errors
    /// It cannot be expressed, or all rules are taken.
    pub fn add_rule(&mut self, spec: RuleSpec) -> Result<RuleId, DataPlaneError> {
        let encoded = spec.encode()?;
        let used = self.rules.values().fold(0u64, |used, rule| used | 1 << rule.slot);
        let slot = (!used).trailing_zeros();
        if slot >= MAX_RULES {
            return Err(DataPlaneError::Exhausted { what: "packet rules", limit: MAX_RULES });
        }
        self.maps.reset_counters(slot)?;
        self.records[slot as usize].reset(spec.expires_ns);
        self.maps.rules.set(slot, Shared(encoded), 0).map_err(map_error("RULES"))?;
        crash_point::pass("rule.written");
        let id = RuleId(self.next_rule);
        self.next_rule += 1;
        self.rules.insert(id, ActiveRule { slot, spec, encoded });
        // Before any packet meets the rule.
        if let Err(error) = self.publish_spared() {
            self.rules.remove(&id);
            return Err(error);
        }
        self.publish_all()?;
        crash_point::pass("rule.published");
        Ok(id)
    }

    /// Changes what a rule in force does, not which packets it is for.
    ///
    /// # Errors
    /// No such rule, numbers out of range, or another kind of action.
    pub fn update_rule(&mut self, id: RuleId, action: Action) -> Result<(), DataPlaneError> {
        let rule = self.rules.get_mut(&id).ok_or(DataPlaneError::NoSuchRule(id.0))?;
        let mut encoded = rule.encoded;
        rule::set_action(&mut encoded, action)?;
        if encoded.action != rule.encoded.action {
            return Err(RuleError::KindChanged.into());
        }
        self.maps.rules.set(rule.slot, Shared(encoded), 0).map_err(map_error("RULES"))?;
        rule.encoded = encoded;
        rule.spec.action = action;
        Ok(())
    }

    /// Moves the time (`CLOCK_MONOTONIC`, nanoseconds) from which a rule is ignored, and packets are no longer held.
    ///
    /// # Errors
    /// No such rule, or the map refuses.
    pub fn set_expiry(&mut self, id: RuleId, expires_ns: u64) -> Result<(), DataPlaneError> {
        let rule = self.rules.get_mut(&id).ok_or(DataPlaneError::NoSuchRule(id.0))?;
        let encoded = Rule { expires_ns, ..rule.encoded };
        self.records[rule.slot as usize].expires_ns.store(expires_ns, Relaxed);
        self.maps.rules.set(rule.slot, Shared(encoded), 0).map_err(map_error("RULES"))?;
        rule.encoded = encoded;
        rule.spec.expires_ns = expires_ns;
        Ok(())
    }

    /// Ends a rule, after sending on in order what it holds, and gives what it did. `None`: it had ended before.
    ///
    /// # Errors
    /// A map refuses, or a line does not answer; the rule is out of force all the same unless the map refused.
    pub fn remove_rule(&mut self, id: RuleId) -> Result<Option<Counters>, DataPlaneError> {
        let Some(rule) = self.rules.get(&id) else {
            return Ok(None);
        };
        let (slot, delays) = (rule.slot, rule.spec.delays());
        let mut released = Ok(());
        if delays {
            // New packets still go through the line, without delay, so that they stay behind those that it holds.
            let encoded = Rule { delay_ns: 0, jitter_ns: 0, ..rule.encoded };
            self.maps.rules.set(slot, Shared(encoded), 0).map_err(map_error("RULES"))?;
            released = self.release(1 << slot);
        }
        let removed = self.rules.remove(&id);
        if let Err(error) = self.publish_all() {
            self.rules.extend(removed.map(|rule| (id, rule)));
            return Err(error);
        }
        crash_point::pass("rule.withdrawn");
        if delays {
            // Those that came between are on their way now.
            released = released.and(self.release(1 << slot));
        }
        released = released.and(self.publish_spared());
        let counters = self.read_counters(slot)?;
        self.maps.rules.set(slot, Shared(Rule::default()), 0).map_err(map_error("RULES"))?;
        released.map(|()| Some(counters))
    }

    /// What a rule has done so far.
    ///
    /// # Errors
    /// No such rule, or the map refuses.
    pub fn counters(&self, id: RuleId) -> Result<Counters, DataPlaneError> {
        let rule = self.rules.get(&id).ok_or(DataPlaneError::NoSuchRule(id.0))?;
        self.read_counters(rule.slot)
    }

    /// The rules in force, in the order in which they were added.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &RuleSpec)> {
        self.rules.iter().map(|(id, rule)| (*id, &rule.spec))
    }

    fn read_counters(&self, slot: u32) -> Result<Counters, DataPlaneError> {
        let kernel = self.maps.counters(slot)?;
        let record = &self.records[slot as usize];
        Ok(Counters {
            matched: kernel.matched,
            bytes: kernel.bytes,
            dropped: kernel.dropped,
            diverted: kernel.diverted,
            passed: kernel.passed,
            overflowed: record.overflowed.load(Relaxed),
            lost: record.lost.load(Relaxed),
            delays: record.delays.snapshot(),
        })
    }

    pub(super) fn publish_all(&mut self) -> Result<(), DataPlaneError> {
        let mut interfaces: Vec<u32> = self.hooks.keys().map(|(ifindex, _)| *ifindex).collect();
        interfaces.dedup();
        interfaces.into_iter().try_for_each(|ifindex| self.publish(ifindex))
    }

    /// Tells the kernel which rules and lines an interface has; the entry is replaced as a whole.
    pub(super) fn publish(&mut self, ifindex: u32) -> Result<(), DataPlaneError> {
        let entry = Interface {
            egress: self.hook(ifindex, Direction::Egress),
            ingress: self.hook(ifindex, Direction::Ingress),
        };
        let attached = self.hooks.keys().any(|(other, _)| *other == ifindex);
        let result = if attached {
            self.maps.interfaces.insert(ifindex, Shared(entry), 0)
        } else {
            match self.maps.interfaces.remove(&ifindex) {
                Err(MapError::KeyNotFound) => Ok(()),
                result => result,
            }
        };
        result.map_err(map_error("INTERFACES"))
    }

    /// Tells the kernel which rules spare which ports.
    fn publish_spared(&mut self) -> Result<(), DataPlaneError> {
        let mut wanted: BTreeMap<u32, u64> = BTreeMap::new();
        for rule in self.rules.values() {
            for port in &rule.spec.spare_ports {
                *wanted.entry(u32::from(*port)).or_default() |= 1 << rule.slot;
            }
        }
        if wanted.len() > MAX_SPARED as usize {
            return Err(DataPlaneError::Exhausted { what: "spared ports", limit: MAX_SPARED });
        }
        let there = self.maps.spared.iter().collect::<Result<BTreeMap<_, _>, _>>().map_err(map_error("SPARED"))?;
        for port in there.keys().filter(|port| !wanted.contains_key(port)) {
            self.maps.spared.remove(port).map_err(map_error("SPARED"))?;
        }
        for (port, rules) in wanted.iter().filter(|(port, rules)| there.get(port) != Some(rules)) {
            self.maps.spared.insert(port, rules, 0).map_err(map_error("SPARED"))?;
        }
        Ok(())
    }

    fn hook(&self, ifindex: u32, direction: Direction) -> Hook {
        let Some(active) = self.hooks.get(&(ifindex, direction)) else {
            return Hook::default();
        };
        let mut hook = Hook { line: active.line.as_ref().map_or(0, |line| line.slot + 1), ..Hook::default() };
        for rule in self.rules.values().filter(|rule| rule.spec.applies(ifindex, direction)) {
            let bit = 1 << rule.slot;
            if rule.encoded.action == ACTION_DROP {
                hook.drops |= bit;
            } else {
                hook.delays |= bit;
            }
            if rule.encoded.tag_mask != 0 {
                hook.tagged |= bit;
            }
            if !rule.spec.spare_ports.is_empty() {
                hook.sparing |= bit;
            }
        }
        hook
    }
}
