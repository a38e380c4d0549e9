//! Which faults cannot be in force together: those of which one would undo or break the other when it ends, or make its
//! receipt lie.
//!
//! Faults on packets get along with everything: rules add up, and what is frozen or gone has no packets. Two faults on the
//! life of the same processes fight: SIGSTOP does not arrive in a frozen group, a frozen unit cannot stop, a group inside a
//! frozen one cannot be shown to be frozen or thawed, what is killed is not paused any more, and what is down cannot be
//! killed. The one exception: several signals that are sent once each.

use crate::change::{Change, Plan};
use crate::facts::{ProcessRef, TargetFacts};

/// What a fault holds of the life of processes while it is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    units: Vec<String>,
    group: Option<String>,
    processes: Vec<(i32, u64)>,
    sends_one_signal: bool,
}

impl Hold {
    /// What a plan on a target would hold; `None` when it does nothing to the life of processes.
    pub fn of(target: &TargetFacts, plan: &Plan) -> Option<Self> {
        let lives = |c: &&Change| {
            matches!(
                c,
                Change::Freeze { .. }
                    | Change::Suspend { .. }
                    | Change::StopUnit { .. }
                    | Change::Command { .. }
                    | Change::Kill { .. }
            )
        };
        let acting: Vec<&Change> = plan.changes.iter().filter(lives).collect();
        if acting.is_empty() {
            return None;
        }
        let mut units: Vec<String> = target.unit.iter().map(|u| u.name.clone()).collect();
        for change in &acting {
            if let Change::StopUnit { dependents, .. } = change {
                units.extend(dependents.iter().cloned());
            }
        }
        Some(Self {
            units,
            group: target.cgroup.as_ref().map(|c| c.path.trim_end_matches('/').to_owned()),
            processes: target.processes.iter().map(identity).collect(),
            sends_one_signal: acting.iter().all(|c| matches!(c, Change::Kill { keep: false, .. })),
        })
    }

    /// Processes that have come into its group since.
    #[must_use]
    pub fn with(mut self, processes: &[ProcessRef]) -> Self {
        self.processes.extend(processes.iter().map(identity));
        self
    }

    /// Its group's directory.
    pub fn group(&self) -> Option<&str> {
        self.group.as_deref()
    }

    /// Whether the two cannot be in force together. Symmetric.
    pub fn fights(&self, other: &Self) -> bool {
        !(self.sends_one_signal && other.sends_one_signal) && self.overlaps(other)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let nested = match (&self.group, &other.group) {
            (Some(a), Some(b)) => is_inside(a, b) || is_inside(b, a),
            _ => false,
        };
        nested
            || self.units.iter().any(|unit| other.units.contains(unit))
            || self.is_in_unit_of(other)
            || other.is_in_unit_of(self)
            || self.processes.iter().any(|process| other.processes.contains(process))
    }

    /// A unit's group bears its name, also when nothing is known of the group because the unit is down.
    fn is_in_unit_of(&self, other: &Self) -> bool {
        self.group.iter().flat_map(|path| path.split('/')).any(|part| other.units.iter().any(|unit| unit == part))
    }
}

fn identity(process: &ProcessRef) -> (i32, u64) {
    (process.pid, process.started)
}

fn is_inside(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Victim;
    use crate::facts::CgroupRef;
    use crate::fault::Fault;
    use crate::fault::samples;

    fn fault(json: &str) -> Fault {
        serde_json::from_str(json).expect("a fault")
    }

    fn life() -> Vec<Fault> {
        ["{\"pause\": {}}", "{\"stop\": {}}", "{\"kill\": {}}", "{\"kill\": {\"keep\": true}}"].map(fault).into()
    }

    fn on_group(path: &str, pids: &[i32]) -> TargetFacts {
        let mut target = samples::controlled().target;
        target.cgroup = Some(CgroupRef { path: format!("/sys/fs/cgroup/{path}"), id: 1 });
        target.processes = pids.iter().map(|pid| samples::process(*pid)).collect();
        target
    }

    fn on_processes(pids: &[i32]) -> TargetFacts {
        let mut target = samples::processes().target;
        target.processes = pids.iter().map(|pid| samples::process(*pid)).collect();
        target
    }

    fn hold(fault: &Fault, target: &TargetFacts) -> Option<Hold> {
        let facts = crate::facts::FactsSnapshot { host: samples::host(), target: target.clone() };
        Hold::of(target, &fault.plan(&facts).ok()?)
    }

    /// Targets of every sort, some of which hold others.
    fn targets() -> Vec<TargetFacts> {
        let mut all = vec![
            on_group("shop", &[101, 102, 103]),
            on_group("shop/web-1", &[101]),
            on_group("shop/web-10", &[103]),
            on_group("system.slice/nginx.service", &[7]),
            on_processes(&[101]),
            on_processes(&[102, 7]),
            on_processes(&[900]),
        ];
        all.extend(samples::usable().into_iter().map(|s| s.target));
        all.push(samples::stopped_unit().target);
        all
    }

    fn holds() -> Vec<Hold> {
        let all = targets();
        life()
            .iter()
            .flat_map(|fault| all.iter().filter_map(|target| hold(fault, target)).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn a_fight_is_mutual_and_every_fault_on_life_fights_with_itself_but_for_one_signal() {
        let holds = holds();
        assert!(holds.len() > 20, "{}", holds.len());
        for a in &holds {
            assert_eq!(a.fights(a), !a.sends_one_signal);
            for b in &holds {
                assert_eq!(a.fights(b), b.fights(a), "{a:?} and {b:?}");
            }
        }
    }

    #[test]
    fn what_holds_nothing_in_common_does_not_fight() {
        let apart = [on_group("shop/web-1", &[101]), on_group("shop/web-10", &[103]), on_processes(&[900])];
        for (i, a) in apart.iter().enumerate() {
            for b in &apart[i + 1..] {
                for (f, g) in life().iter().flat_map(|f| life().into_iter().map(move |g| (f.clone(), g))) {
                    if let (Some(a), Some(b)) = (hold(&f, a), hold(&g, b)) {
                        assert!(!a.fights(&b), "{a:?} and {b:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn groups_fight_with_those_inside_them_and_with_their_processes() {
        let pause = fault("{\"pause\": {}}");
        let on = |target: &TargetFacts| hold(&pause, target).expect("a hold");
        let (shop, web) = (on(&on_group("shop", &[101])), on(&on_group("shop/web-1", &[104])));
        assert!(shop.fights(&web), "a group inside a frozen one");
        assert!(shop.fights(&on(&on_processes(&[101]))), "a process inside a frozen group");
        let newcomer = on(&on_processes(&[555]));
        assert!(!shop.fights(&newcomer));
        assert!(shop.with(&[samples::process(555)]).fights(&newcomer), "one that came later");
        let unit = on(&samples::unit().target);
        assert!(unit.fights(&on(&on_group("system.slice/nginx.service", &[7]))), "a unit by its name in a path");
    }

    #[test]
    fn one_signal_gets_along_with_another_and_with_nothing_else() {
        let target = on_group("shop/web-1", &[101]);
        let once = hold(&fault("{\"kill\": {\"signal\": \"TERM\"}}"), &target).expect("a hold");
        assert!(!once.fights(&once));
        for other in ["{\"kill\": {\"keep\": true}}", "{\"pause\": {}}", "{\"stop\": {}}"] {
            assert!(once.fights(&hold(&fault(other), &target).expect("a hold")), "{other}");
        }
    }

    #[test]
    fn faults_on_packets_hold_nothing() {
        for json in ["{\"latency\": {\"delay\": \"10ms\"}}", "{\"partition\": {}}", "{\"loss\": {\"percent\": \"1%\"}}"]
        {
            assert_eq!(hold(&fault(json), &samples::shared_cgroup().target), None, "{json}");
        }
        let stage = Plan { changes: vec![Change::MakeCgroup { path: "x".into() }], notes: vec![] };
        assert_eq!(Hold::of(&samples::shared_cgroup().target, &stage), None);
    }

    #[test]
    fn a_kill_that_goes_on_is_not_one_signal() {
        let target = on_processes(&[1000]);
        let victim = Victim::Processes { processes: target.processes.clone() };
        let kill = |keep| Plan {
            changes: vec![Change::Kill { victim: victim.clone(), signal: 9, keep, allow: vec![] }],
            notes: vec![],
        };
        let (once, on) = (Hold::of(&target, &kill(false)), Hold::of(&target, &kill(true)));
        assert!(once.zip(on).is_some_and(|(once, on)| once.fights(&on) && on.fights(&on)));
    }
}
