//! Random sequences of all that can happen to an engine, with its death at any point among them, and the laws that hold
//! after each step.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

use super::world::{Killed, Object, Thing, World};
use super::*;
use crate::recover;

/// How long a lease lasts here.
const LEASE: Duration = Duration::from_secs(1);

/// A step. Times are in tenths of a second.
#[derive(Clone, Debug)]
enum Step {
    /// A fault, that lasts so long. Each of its changes takes `slow`, while the owner renews or does not.
    Inject {
        changes: Vec<Thing>,
        lasts: u8,
        slow: u8,
        renewing: bool,
    },
    /// The change with this number from now on fails, untouched or made in part.
    FailSoon {
        after: u8,
        partly: bool,
    },
    Revert(u8),
    RevertAll,
    Renew,
    Pass(u8),
    Tick,
    /// It cannot be undone from now on; or again.
    Stick(Object),
    Unstick(Object),
    /// Somebody else writes a value, but never what would look like ours.
    Foreign(Object, u8),
    /// The agent, or a recovery, is killed after so many points.
    DieSoon(u8),
    Die {
        in_a_record: bool,
    },
    /// The next agent begins, by clearing up.
    Restart,
}

fn object() -> impl Strategy<Value = Object> {
    let number = 0..2_u8;
    prop_oneof![
        2 => number.clone().prop_map(Object::Parameter),
        1 => number.clone().prop_map(Object::Frozen),
        1 => number.clone().prop_map(Object::Stopped),
        1 => number.prop_map(Object::Space),
    ]
}

fn thing() -> impl Strategy<Value = Thing> {
    prop_oneof![
        4 => (object(), 1..3_u8).prop_map(|(object, value)| Thing::Set(object, value)),
        1 => (0..2_u8).prop_map(Thing::Attach),
        2 => (0..3_u8).prop_map(Thing::Rule),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let slow = prop_oneof![3 => Just(0), 1 => 2..8_u8];
    prop_oneof![
        8 => (vec(thing(), 1..5), 3..40_u8, slow, any::<bool>())
            .prop_map(|(changes, lasts, slow, renewing)| Step::Inject { changes, lasts, slow, renewing }),
        1 => (0..4_u8, any::<bool>()).prop_map(|(after, partly)| Step::FailSoon { after, partly }),
        3 => any::<u8>().prop_map(Step::Revert),
        1 => Just(Step::RevertAll),
        6 => Just(Step::Renew),
        6 => (1..12_u8).prop_map(Step::Pass),
        6 => Just(Step::Tick),
        1 => object().prop_map(Step::Stick),
        1 => object().prop_map(Step::Unstick),
        3 => (object(), 0..3_u8).prop_map(|(object, value)| Step::Foreign(object, value)),
        2 => (0..12_u8).prop_map(Step::DieSoon),
        1 => any::<bool>().prop_map(|in_a_record| Step::Die { in_a_record }),
        4 => Just(Step::Restart),
    ]
}

fn tenths(number: u8) -> Duration {
    TENTH * number.into()
}

/// A fault that was injected, by what the test knows of it.
struct Known {
    id: FaultId,
    begun: Instant,
    deadline: Instant,
}

/// A host, the agent that lives on it, and what has become of its changes.
struct Drill {
    world: World,
    engine: Option<Engine<World>>,
    places: Directories,
    known: Vec<Known>,
    /// Changes of this engine that were told to be applied; that were told to be reverted; of the latter, that were not.
    applied: BTreeSet<u64>,
    reverted: BTreeSet<u64>,
    failed: BTreeSet<u64>,
}

impl Drop for Drill {
    fn drop(&mut self) {
        if let Some(base) = self.places.run.parent() {
            let _ = fs::remove_dir_all(base);
        }
    }
}

impl Drill {
    fn new() -> Self {
        let (world, places) = (World::default(), directories());
        world.state().journal = places.journal();
        let mut drill = Self {
            world,
            engine: None,
            places,
            known: Vec::new(),
            applied: BTreeSet::new(),
            reverted: BTreeSet::new(),
            failed: BTreeSet::new(),
        };
        drill.restart();
        drill
    }

    /// Runs something that may be killed. `None`: it was.
    fn alive<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(done) => Some(done),
            Err(why) if why.is::<Killed>() => {
                self.die();
                None
            }
            Err(why) => resume_unwind(why),
        }
    }

    fn die(&mut self) {
        self.engine = None;
        self.world.state().held.clear();
    }

    /// What the guardian or the next agent does: at most one of several attempts is killed in the middle.
    fn restart(&mut self) {
        if self.engine.is_some() {
            return;
        }
        let world = self.world.clone();
        let stuck = {
            let state = world.state();
            let is_stuck =
                |open: &journal::Outstanding| Object::of(&open.undo).is_some_and(|o| state.stuck.contains(&o));
            state.open().iter().any(is_stuck)
        };
        let Some(recovery) =
            self.alive(|drill| recover::recover_by(&drill.places, "this boot", |undo| world.revert(undo)))
        else {
            return;
        };
        assert_eq!(!recovery.left.is_empty(), stuck, "what cannot be undone, and nothing else, is told: {recovery:?}");
        if !stuck {
            self.all_is_theirs();
            let again = recover::recover_by(&self.places, "this boot", |undo| panic!("nothing is left: {undo:?}"));
            assert_eq!(again, recover::Recovery::default());
            let journal = Journal::begin(&self.places, "this boot").expect("a journal");
            self.engine = Some(Engine::new(self.world.clone(), journal, LEASE));
            (self.applied, self.reverted, self.failed) = Default::default();
            self.known.clear();
        }
    }

    fn all_is_theirs(&self) {
        let state = self.world.state();
        for object in state.values.keys().chain(state.theirs.keys()) {
            assert_eq!(state.value(*object), state.wanted(*object), "{object:?} is not as others want it");
        }
    }

    fn note(&mut self, changes: Vec<RevertedChange>) {
        for change in changes {
            assert!(self.reverted.insert(change.number), "change {} is reverted twice", change.number);
            if let Some(error) = change.error {
                let engine = self.engine.as_ref().expect("alive");
                assert!(engine.left_over().contains(&error), "not reported: {error}");
                self.failed.insert(change.number);
            }
        }
    }

    fn run(&mut self, step: &Step) {
        if let Step::Foreign(object, value) = *step {
            return self.foreign(object, value);
        }
        let world = self.world.clone();
        match *step {
            Step::FailSoon { after, partly } => world.state().fails = Some((after, partly)),
            Step::Pass(time) => world.state().now += tenths(time),
            Step::Stick(object) => drop(world.state().stuck.insert(object)),
            Step::Unstick(object) => drop(world.state().stuck.remove(&object)),
            Step::DieSoon(points) => world.state().dies = Some(points),
            Step::Restart => self.restart(),
            _ if self.engine.is_none() => {}
            Step::Die { in_a_record } => {
                self.die();
                if in_a_record {
                    let mut text = fs::read(self.places.journal()).expect("a journal");
                    text.extend(b"{\"intent\":{\"change\":99,\"boo");
                    fs::write(self.places.journal(), text).expect("torn");
                }
            }
            _ => drop(self.alive(|drill| drill.engine_does(step))),
        }
    }

    fn engine_does(&mut self, step: &Step) {
        let Some(engine) = &mut self.engine else { return };
        match step {
            Step::Inject { changes, lasts, slow, renewing } => {
                let begun = engine.host.now();
                let renewing = renewing.then(|| engine.leases.clone());
                {
                    let mut state = self.world.state();
                    (state.slow, state.renewing) = (tenths(*slow), renewing);
                }
                let changes: Vec<Change> = changes.iter().map(|thing| thing.change()).collect();
                let outcome = engine.apply(&plan(&changes), tenths(*lasts));
                match outcome {
                    Ok((id, list)) => {
                        let deadline = engine.host.now() + tenths(*lasts);
                        self.applied.extend(list.iter().map(|a| a.number));
                        self.known.push(Known { id, begun, deadline });
                    }
                    Err((_, undone)) => {
                        self.applied.extend(undone.changes.iter().map(|c| c.number));
                        self.note(undone.changes);
                    }
                }
            }
            Step::Revert(which) if !self.known.is_empty() => {
                let id = self.known[usize::from(*which) % self.known.len()].id;
                let done = engine.revert(id);
                assert!(engine.revert(id).changes.is_empty(), "twice is once");
                self.note(done.changes);
            }
            Step::RevertAll => engine.revert_all().into_iter().for_each(|done| self.note(done.changes)),
            Step::Renew => {
                self.world.renew(&engine.leases);
                engine.honour().expect("renewed");
            }
            Step::Tick => {
                let now = engine.host.now();
                let ended = engine.tick();
                let going_on = engine.leases.faults();
                for known in &self.known {
                    let is_over = self.lease_of(known) <= now;
                    assert!(!(is_over && going_on.contains(&known.id)), "{:?} goes on beyond its lease", known.id);
                    let lapsed = ended.iter().any(|done| done.fault == known.id);
                    assert!(is_over || !lapsed, "{:?} ended before its lease", known.id);
                }
                ended.into_iter().for_each(|done| self.note(done.changes));
            }
            _ => {}
        }
    }

    /// Others do not do what cannot be told from our own doing: a flag that is up has no owner's name on it.
    fn foreign(&self, object: Object, value: u8) {
        let mut state = self.world.state();
        let value = match object {
            Object::Parameter(_) => value + 10,
            _ => value.min(1),
        };
        let ours = state.open().iter().any(|open| Object::of(&open.undo) == Some(object));
        if matches!(object, Object::Parameter(_)) || value == 0 || !ours {
            state.values.insert(object, value);
            state.theirs.insert(object, value);
        }
    }

    /// When a fault's lease ends: the law itself, told again from the renewals.
    fn lease_of(&self, fault: &Known) -> Instant {
        let mut ends = fault.begun + LEASE;
        for at in self.world.state().renewals.iter().filter(|at| **at >= fault.begun) {
            if *at < ends && *at < fault.deadline {
                ends = *at + LEASE;
            }
        }
        ends.min(fault.deadline)
    }

    /// The laws that hold between any two steps.
    fn check(&self) {
        let state = self.world.state();
        let open = state.open();
        for object in state.values.keys() {
            let is_recorded = open.iter().any(|open| Object::of(&open.undo) == Some(*object));
            let is_theirs = state.value(*object) == state.wanted(*object);
            assert!(is_theirs || is_recorded, "{object:?} is ours, and the journal does not know it");
        }
        let Some(engine) = &self.engine else {
            assert!(state.held.is_empty());
            return;
        };
        let live: BTreeSet<u64> = engine.live.iter().map(|live| live.number).collect();
        let recorded: BTreeSet<u64> = open.iter().map(|open| open.change).collect();
        assert!(live.is_subset(&recorded), "in force and not recorded: {live:?} of {recorded:?}");
        let unknown: Vec<&journal::Outstanding> =
            open.iter().filter(|open| !live.contains(&open.change) && !self.failed.contains(&open.change)).collect();
        // A change that failed half-way and could not be undone has a record, and is reported, but is not in force.
        let reported = |open: &&journal::Outstanding| {
            let name = format!("{:?}", Object::of(&open.undo).expect("what dies with the agent is undone"));
            engine.left_over().iter().any(|text| text.contains(&name))
        };
        assert!(unknown.iter().all(reported), "recorded, neither in force nor reported: {unknown:?}");
        let gone: BTreeSet<u64> = self.applied.difference(&live).copied().collect();
        assert!(gone.is_subset(&self.reverted), "gone without a word: {gone:?}");
        let held = engine.live.iter().filter_map(|live| live.handle).map(|(number, _)| number);
        assert!(held.eq(state.held.keys().copied()), "held by nobody");
        drop(state);
        for live in &engine.live {
            let Some(expires) = live.handle.and_then(|(number, _)| self.world.state().held[&number]) else { continue };
            let users = self.known.iter().filter(|known| live.users.contains(&known.id));
            let lease = users.map(|known| self.lease_of(known)).max().expect("somebody needs it");
            assert!(expires <= lease, "{} outlives its lease by {:?}", live.what, expires - lease);
            assert!(expires == lease, "{} is out of force {:?} early", live.what, lease - expires);
        }
    }

    /// However it went: once nothing is stuck any more, the host is as others want it.
    fn end(&mut self) {
        {
            let mut state = self.world.state();
            (state.dies, state.fails) = (None, None);
            state.stuck.clear();
        }
        if let Some(engine) = &mut self.engine {
            let ended = engine.revert_all();
            assert!(engine.is_idle());
            ended.into_iter().for_each(|done| self.note(done.changes));
            assert_eq!(self.applied, self.reverted, "each applied change is reverted once");
        }
        self.die();
        self.restart();
        assert!(self.engine.is_some());
        self.all_is_theirs();
    }
}

/// The same sequences in every run, unless `PROPTEST_RNG_SEED` gives others; `PROPTEST_CASES` gives more.
fn config() -> Config {
    let usual = Config { failure_persistence: None, ..Config::default() };
    let is_set = |name| std::env::var_os(name).is_some();
    Config {
        cases: if is_set("PROPTEST_CASES") { usual.cases } else { 400 },
        rng_seed: if is_set("PROPTEST_RNG_SEED") { usual.rng_seed } else { RngSeed::Fixed(0x0066_6972_6564_7269) },
        ..usual
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_every_applied_change_is_reverted_exactly_once_or_reported(steps in vec(step(), 1..40)) {
        let mut drill = Drill::new();
        for step in &steps {
            drill.run(step);
            drill.check();
        }
        drill.end();
    }
}
