//! Which rules each scope has, and whom a hook must ask. Pure.

use std::collections::{BTreeMap, BTreeSet};

use firedrill_abi::{Hook, Lists, NAMESPACE_SCOPE, RULES_PER_SCOPE, Scope, rule_number};

use super::{Direction, RuleSpec};

/// The scopes of one data plane. No number is given out twice.
#[derive(Debug)]
pub(super) struct Scopes {
    scopes: BTreeMap<u32, Scope>,
    /// Bits that are taken, whether or not they are listed.
    taken: BTreeMap<u32, u64>,
    interfaces: BTreeMap<u32, u32>,
    /// Scopes of sockets that have rules, by direction.
    sockets: [BTreeSet<u32>; 2],
    /// Of rules for every interface but the loopback. A hook asks one scope of its namespace.
    outer: Option<u32>,
    next: u32,
}

/// The index of the loopback interface in every namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

impl Default for Scopes {
    fn default() -> Self {
        Self {
            scopes: BTreeMap::new(),
            taken: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            sockets: [BTreeSet::new(), BTreeSet::new()],
            outer: None,
            next: NAMESPACE_SCOPE + 1,
        }
    }
}

impl Scopes {
    /// A number for a new scope.
    pub(super) fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// The scope that a rule belongs to: that of its sockets, else of its interface, else of the namespace.
    fn of(&mut self, spec: &RuleSpec) -> u32 {
        match (spec.tag, spec.ifindex) {
            (Some(tag), _) => tag.scope(),
            (None, Some(ifindex)) => match self.interfaces.get(&ifindex) {
                Some(scope) => *scope,
                None => {
                    let scope = self.fresh();
                    self.interfaces.insert(ifindex, scope);
                    scope
                }
            },
            (None, None) if spec.not_loopback => match self.outer {
                Some(scope) => scope,
                None => {
                    let scope = self.fresh();
                    *self.outer.insert(scope)
                }
            },
            (None, None) => NAMESPACE_SCOPE,
        }
    }

    /// Takes a place for a rule, which is not asked yet. `None` when its scope is full.
    pub(super) fn take(&mut self, spec: &RuleSpec) -> Option<u32> {
        let scope = self.of(spec);
        let other = if spec.not_loopback { Some(NAMESPACE_SCOPE) } else { self.outer };
        if (scope == NAMESPACE_SCOPE || Some(scope) == self.outer) && other.is_some_and(|o| self.taken.contains_key(&o))
        {
            return None;
        }
        let taken = self.taken.entry(scope).or_default();
        let bit = (!*taken).trailing_zeros();
        if bit >= RULES_PER_SCOPE {
            return None;
        }
        *taken |= 1 << bit;
        Some(rule_number(scope, bit))
    }

    /// Gives the place of a rule back.
    pub(super) fn give_back(&mut self, rule: u32) {
        let (scope, bit) = place(rule);
        if let Some(taken) = self.taken.get_mut(&scope) {
            *taken &= !(1 << bit);
            if *taken == 0 {
                self.taken.remove(&scope);
                self.interfaces.retain(|_, own| *own != scope);
            }
        }
    }

    /// Has a rule asked from now on, or no longer. Gives its scope as the kernel shall know it.
    pub(super) fn list(&mut self, rule: u32, spec: &RuleSpec, on: bool) -> (u32, Scope) {
        let (number, bit) = place(rule);
        let scope = self.scopes.entry(number).or_default();
        for (direction, lists) in [(Direction::Egress, &mut scope.egress), (Direction::Ingress, &mut scope.ingress)] {
            if spec.looks_at(direction) {
                let list = if spec.delays() { &mut lists.holds } else { &mut lists.drops };
                *list = if on { *list | 1 << bit } else { *list & !(1 << bit) };
            }
        }
        let now = *scope;
        if now == Scope::default() {
            self.scopes.remove(&number);
        }
        if spec.tag.is_some() {
            for (direction, lists) in [(Direction::Egress, now.egress), (Direction::Ingress, now.ingress)] {
                let sockets = &mut self.sockets[direction as usize];
                if lists == Lists::default() {
                    sockets.remove(&number)
                } else {
                    sockets.insert(number)
                };
            }
        }
        (number, now)
    }

    /// Whom to ask at a hook; without its line, and not knowing of spared ports.
    pub(super) fn hook(&self, ifindex: u32, direction: Direction) -> Hook {
        let with_rules = |scope: u32| {
            let lists = self.scopes.get(&scope).map(|s| match direction {
                Direction::Egress => s.egress,
                Direction::Ingress => s.ingress,
            });
            if lists.is_some_and(|lists| lists != Lists::default()) { scope } else { 0 }
        };
        Hook {
            namespace: match self.outer.map_or(0, with_rules) {
                outer if outer != 0 && ifindex != LOOPBACK => outer,
                _ => with_rules(NAMESPACE_SCOPE),
            },
            own: self.interfaces.get(&ifindex).map_or(0, |own| with_rules(*own)),
            sockets: u32::from(!self.sockets[direction as usize].is_empty()),
            ..Hook::default()
        }
    }
}

/// Scope and bit of a rule's number.
fn place(rule: u32) -> (u32, u32) {
    (rule / RULES_PER_SCOPE, rule % RULES_PER_SCOPE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Action, rule::Loss};
    use super::*;

    fn drop_all() -> RuleSpec {
        RuleSpec::egress(Action::Drop(Loss::Independent { probability: 1.0 }), 1)
    }

    #[test]
    fn a_scope_holds_so_many_rules_and_others_are_not_touched_by_that() {
        let mut scopes = Scopes::default();
        let numbers: Vec<u32> = (0..RULES_PER_SCOPE).map_while(|_| scopes.take(&drop_all())).collect();
        assert_eq!(numbers, (64..128).collect::<Vec<_>>());
        assert_eq!(scopes.take(&drop_all()), None);
        let of_interface = RuleSpec { ifindex: Some(7), ..drop_all() };
        assert_eq!(scopes.take(&of_interface), Some(128));
        scopes.give_back(70);
        assert_eq!(scopes.take(&drop_all()), Some(70));
    }

    #[test]
    fn a_hook_asks_only_scopes_that_have_rules_for_its_direction() {
        let mut scopes = Scopes::default();
        let spec = RuleSpec { ifindex: Some(7), ..drop_all() };
        let rule = scopes.take(&spec).unwrap();
        assert_eq!(scopes.hook(7, Direction::Egress), Hook::default(), "not listed yet");
        let (scope, lists) = scopes.list(rule, &spec, true);
        assert_eq!(lists.egress, Lists { drops: 1, holds: 0 });
        assert_eq!(scopes.hook(7, Direction::Egress), Hook { own: scope, ..Hook::default() });
        assert_eq!(scopes.hook(7, Direction::Ingress), Hook::default());
        assert_eq!(scopes.hook(8, Direction::Egress), Hook::default());
        assert_eq!(scopes.list(rule, &spec, false), (scope, Scope::default()));
        assert_eq!(scopes.hook(7, Direction::Egress), Hook::default());
    }

    #[test]
    fn a_rule_for_every_interface_but_the_loopback_is_not_asked_there() {
        let mut scopes = Scopes::default();
        let spec = RuleSpec { not_loopback: true, ..drop_all() };
        let rule = scopes.take(&spec).unwrap();
        let (scope, _) = scopes.list(rule, &spec, true);
        assert_eq!(scopes.hook(7, Direction::Egress).namespace, scope);
        assert_eq!(scopes.hook(LOOPBACK, Direction::Egress), Hook::default());
        assert_eq!(scopes.take(&drop_all()), None, "a hook can ask only one of the two");
        scopes.list(rule, &spec, false);
        scopes.give_back(rule);
        assert!(scopes.take(&drop_all()).is_some());
    }

    #[test]
    fn rules_that_hold_are_listed_apart_and_both_ways_when_asked() {
        let mut scopes = Scopes::default();
        let action = Action::delay(Duration::from_millis(1), Duration::ZERO);
        let spec = RuleSpec { ingress: true, ..RuleSpec::egress(action, 1) };
        let rule = scopes.take(&spec).unwrap();
        let (scope, lists) = scopes.list(rule, &spec, true);
        let held = Lists { drops: 0, holds: 1 };
        assert_eq!((scope, lists), (NAMESPACE_SCOPE, Scope { egress: held, ingress: held }));
        assert_eq!(scopes.hook(3, Direction::Ingress).namespace, NAMESPACE_SCOPE);
    }
}
