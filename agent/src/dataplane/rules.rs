//! Rules in force: their numbers, what they did, which hooks they apply to, and which ports they spare.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use firedrill_abi::{Interface, MAX_SPARED, RULES_PER_SCOPE, Rule, Scope};

use super::{
    Action, ActiveRule, Counters, DataPlane, DataPlaneError, Direction, RuleError, RuleId, RuleSpec,
    load::absent_is_fine, map_error, record::Record, rule, shape::Shape,
};
use crate::crash_point;
use crate::sys::bpf::Shared;

impl DataPlane {
    /// Puts a rule in force at every attached hook to which it applies, now and later.
    ///
    /// # Errors
    /// It cannot be expressed, or its target has as many rules as it can.
    pub fn add_rule(&mut self, spec: RuleSpec) -> Result<RuleId, DataPlaneError> {
        let mut encoded = spec.encode()?;
        let full = |what, limit| DataPlaneError::Exhausted { what, limit };
        encoded.spare = self.spares.take(&spec.spare_ports).ok_or_else(|| full("spared ports", MAX_SPARED))?;
        let Some(number) = self.scopes.take(&spec) else {
            self.spares.give_back(encoded.spare);
            return Err(full("packet rules of one target", RULES_PER_SCOPE));
        };
        let record = Arc::new(Record::new(number, spec.expires_ns));
        record.set_shape(shape(&spec.action));
        self.records.begin(Arc::clone(&record));
        let id = RuleId(self.next_rule);
        self.next_rule += 1;
        self.rules.insert(id, ActiveRule { number, spec, encoded, record });
        // Before any packet meets the rule.
        let begun = self.publish_spared().and_then(|()| self.maps.begin_rule(number, encoded));
        if let Err(error) = begun.and_then(|()| self.list(id, true)) {
            // The error that matters is the first one.
            let _ = self.forget(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Changes what a rule in force does, not which packets it is for.
    ///
    /// # Errors
    /// No such rule, numbers out of range, or another kind of action.
    pub fn update_rule(&mut self, id: RuleId, action: Action) -> Result<(), DataPlaneError> {
        let rule = self.rules.get_mut(&id).ok_or(DataPlaneError::NoSuchRule(id.0))?;
        let mut encoded = rule.encoded;
        rule::set_action(&mut encoded, &action)?;
        if (encoded.action, encoded.model) != (rule.encoded.action, rule.encoded.model) {
            return Err(RuleError::KindChanged.into());
        }
        rule.record.set_shape(shape(&action));
        self.maps.write_rule(rule.number, encoded)?;
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
        rule.record.expires_ns.store(expires_ns, Relaxed);
        self.maps.write_rule(rule.number, encoded)?;
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
        let (number, delays) = (rule.number, rule.spec.delays());
        let mut released = Ok(());
        if delays {
            // New packets still go through the line, without delay, so that they stay behind those that it holds. What refuses
            // packets holds none, and does so to its end.
            if rule.spec.action != Action::Hold(Shape::Reject) {
                rule.record.set_shape(Shape::Pass);
            }
            released = self.release(number);
        }
        self.list(id, false)?;
        if delays {
            // Those that came between are on their way now.
            released = released.and(self.release(number));
        }
        let counters = self.counters(id)?;
        self.forget(id)?;
        released.map(|()| Some(counters))
    }

    /// Removes a rule that is not asked any more.
    fn forget(&mut self, id: RuleId) -> Result<(), DataPlaneError> {
        let Some(rule) = self.rules.remove(&id) else {
            return Ok(());
        };
        self.records.end(rule.number);
        self.scopes.give_back(rule.number);
        self.spares.give_back(rule.encoded.spare);
        self.maps.end_rule(rule.number).and(self.publish_spared())
    }

    /// Tells the kernel which ports are spared.
    fn publish_spared(&mut self) -> Result<(), DataPlaneError> {
        let wanted = self.spares.by_port();
        let there = self.maps.spared.iter().collect::<Result<BTreeMap<_, _>, _>>().map_err(map_error("SPARED"))?;
        for port in there.keys().filter(|port| !wanted.contains_key(port)) {
            let removed = crash_point::around("spared.remove", || self.maps.spared.remove(port));
            absent_is_fine(removed).map_err(map_error("SPARED"))?;
        }
        for (port, sets) in wanted.iter().filter(|(port, sets)| there.get(port) != Some(sets)) {
            crash_point::around("spared.write", || self.maps.spared.insert(port, sets, 0))
                .map_err(map_error("SPARED"))?;
        }
        Ok(())
    }

    /// Has the kernel ask a rule, or ask it no longer.
    fn list(&mut self, id: RuleId, on: bool) -> Result<(), DataPlaneError> {
        let rule = self.rules.get(&id).ok_or(DataPlaneError::NoSuchRule(id.0))?;
        let (number, scope) = self.scopes.list(rule.number, &rule.spec, on);
        let written = crash_point::around("scope.write", || {
            if scope == Scope::default() {
                absent_is_fine(self.maps.scopes.remove(&number))
            } else {
                self.maps.scopes.insert(number, Shared(scope), 0)
            }
        });
        written.map_err(map_error("SCOPES"))?;
        self.publish_all()
    }

    /// What a rule has done so far.
    ///
    /// # Errors
    /// No such rule, or the map refuses.
    pub fn counters(&self, id: RuleId) -> Result<Counters, DataPlaneError> {
        let rule = self.rules.get(&id).ok_or(DataPlaneError::NoSuchRule(id.0))?;
        let kernel = self.maps.counters(rule.number)?;
        Ok(Counters {
            matched: kernel.matched,
            bytes: kernel.bytes,
            dropped: kernel.dropped + rule.record.dropped.load(Relaxed),
            diverted: kernel.diverted,
            passed: kernel.passed,
            overflowed: rule.record.overflowed.load(Relaxed),
            lost: rule.record.lost.load(Relaxed),
            acted: rule.record.acted.load(Relaxed),
            resets: rule.record.resets.load(Relaxed),
            limited_bytes: rule.record.limited_bytes.load(Relaxed),
            limited_ns: rule.record.limited_ns.load(Relaxed),
            delays: rule.record.delays.snapshot(),
        })
    }

    /// The rules in force, in the order in which they were added.
    pub fn rules(&self) -> impl Iterator<Item = (RuleId, &RuleSpec)> {
        self.rules.iter().map(|(id, rule)| (*id, &rule.spec))
    }

    pub(super) fn publish_all(&mut self) -> Result<(), DataPlaneError> {
        let mut interfaces: Vec<u32> = self.hooks.keys().map(|(ifindex, _)| *ifindex).collect();
        interfaces.dedup();
        interfaces.into_iter().try_for_each(|ifindex| self.publish(ifindex))
    }

    /// Tells the kernel whom an interface asks and which lines it has; the entry is replaced as a whole, if it has changed.
    pub(super) fn publish(&mut self, ifindex: u32) -> Result<(), DataPlaneError> {
        let attached = self.hooks.keys().any(|(other, _)| *other == ifindex);
        let entry = attached.then(|| Interface {
            egress: self.hook(ifindex, Direction::Egress),
            ingress: self.hook(ifindex, Direction::Ingress),
        });
        if self.published.get(&ifindex) == entry.as_ref() {
            return Ok(());
        }
        // Should the map refuse, what it has is unknown.
        self.published.remove(&ifindex);
        match entry {
            Some(entry) => {
                crash_point::around("interface.write", || self.maps.interfaces.insert(ifindex, Shared(entry), 0))
                    .map_err(map_error("INTERFACES"))?;
                self.published.insert(ifindex, entry);
            }
            None => {
                let removed = crash_point::around("interface.remove", || self.maps.interfaces.remove(&ifindex));
                absent_is_fine(removed).map_err(map_error("INTERFACES"))?;
            }
        }
        Ok(())
    }

    fn hook(&self, ifindex: u32, direction: Direction) -> firedrill_abi::Hook {
        let Some(active) = self.hooks.get(&(ifindex, direction)) else {
            return firedrill_abi::Hook::default();
        };
        let line = active.line.as_ref().map_or(0, |line| line.slot + 1);
        let sparing = u32::from(!self.spares.is_empty());
        firedrill_abi::Hook { line, sparing, ..self.scopes.hook(ifindex, direction) }
    }
}

/// What the lines do with the packets of a rule.
fn shape(action: &Action) -> Shape {
    match action {
        Action::Drop(_) => Shape::Pass,
        Action::Hold(shape) => shape.clone(),
    }
}
