//! A host for random sequences: it outlives the engine, others change it, too, and it can have the engine die in any call.

use std::fmt;
use std::panic::resume_unwind;

use super::*;

/// Something on the host that has a value, and keeps it when the agent dies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Object {
    /// A kernel parameter: ours are 1 and 2, others write greater values.
    Parameter(u8),
    /// A group: 0 or 1, whoever has frozen it.
    Frozen(u8),
    /// A process: 0 or 1.
    Stopped(u8),
    /// A namespace: 0 or 1.
    Space(u8),
}

impl Object {
    /// The object of a record.
    pub(super) fn of(undo: &Undo) -> Option<Self> {
        let digit = |text: &str| text.bytes().last().map_or(0, |b| b - b'0');
        match undo {
            Undo::Sysctl { key, .. } => Some(Self::Parameter(digit(key))),
            Undo::Thaw { cgroup } => Some(Self::Frozen(digit(&cgroup.path))),
            Undo::Continue { process } => Some(Self::Stopped(process.pid as u8)),
            Undo::DeleteNetns { name } => Some(Self::Space(digit(name))),
            _ => None,
        }
    }
}

/// A change, as a failing sequence shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Thing {
    Set(Object, u8),
    Attach(u8),
    Rule(u8),
}

// Each on one line of a failing sequence.
impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameter(n) => write!(f, "parameter {n}"),
            Self::Frozen(n) => write!(f, "group {n}"),
            Self::Stopped(n) => write!(f, "process {n}"),
            Self::Space(n) => write!(f, "namespace {n}"),
        }
    }
}

impl fmt::Debug for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(object, value) => write!(f, "{object:?} := {value}"),
            Self::Attach(n) => write!(f, "hook {n}"),
            Self::Rule(n) => write!(f, "rule {n}"),
        }
    }
}

impl Thing {
    pub(super) fn change(self) -> Change {
        match self {
            Self::Set(Object::Parameter(n), value) => {
                Change::Sysctl { netns: netns("blue"), key: format!("p{n}"), value: value.to_string() }
            }
            Self::Set(Object::Frozen(n), _) => freeze(n.into()),
            Self::Set(Object::Stopped(n), _) => suspend(n.into()),
            Self::Set(Object::Space(n), _) => Change::Netns { name: format!("n{n}") },
            Self::Attach(n) => attach(n.into()),
            Self::Rule(n) => rule(f64::from(n) + 1.0),
        }
    }

    fn of(change: &Change) -> Option<(Object, u8)> {
        match change {
            Change::Sysctl { key, value, .. } => {
                Some((Object::Parameter(key.as_bytes()[1] - b'0'), value.parse().expect("a number")))
            }
            Change::Freeze { cgroup } => Some((Object::Frozen(cgroup.id as u8), 1)),
            Change::Suspend { process } => Some((Object::Stopped(process.pid as u8), 1)),
            Change::Netns { name } => Some((Object::Space(name.as_bytes()[1] - b'0'), 1)),
            _ => None,
        }
    }
}

/// What an unwinding engine carries: it was killed.
pub(super) struct Killed;

#[derive(Clone, Default)]
pub(super) struct World(pub(super) Arc<Mutex<State>>);

pub(super) struct State {
    pub(super) now: Instant,
    /// Each object's value; 0 where there is none.
    pub(super) values: BTreeMap<Object, u8>,
    /// What they would be without us.
    pub(super) theirs: BTreeMap<Object, u8>,
    /// What lives by the agent's descriptors, and when the kernel ignores it by itself.
    pub(super) held: BTreeMap<u64, Option<Instant>>,
    next: u64,
    /// Objects that cannot be undone for the time being.
    pub(super) stuck: BTreeSet<Object>,
    /// The apply that fails, counted down; and whether it is made in part first.
    pub(super) fails: Option<(u8, bool)>,
    /// How many more points are passed alive.
    pub(super) dies: Option<u8>,
    /// How long each change takes.
    pub(super) slow: Duration,
    /// Who renews while it does.
    pub(super) renewing: Option<Leases>,
    /// When the owner has renewed.
    pub(super) renewals: Vec<Instant>,
    pub(super) journal: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self {
            now: Instant::now(),
            values: BTreeMap::new(),
            theirs: BTreeMap::new(),
            held: BTreeMap::new(),
            next: 0,
            stuck: BTreeSet::new(),
            fails: None,
            dies: None,
            slow: Duration::ZERO,
            renewing: None,
            renewals: Vec::new(),
            journal: PathBuf::new(),
        }
    }
}

impl State {
    pub(super) fn value(&self, object: Object) -> u8 {
        self.values.get(&object).copied().unwrap_or_default()
    }

    pub(super) fn wanted(&self, object: Object) -> u8 {
        self.theirs.get(&object).copied().unwrap_or_default()
    }

    /// What the journal leaves to be undone.
    pub(super) fn open(&self) -> Vec<journal::Outstanding> {
        journal::outstanding(&fs::read(&self.journal).unwrap_or_default())
    }
}

impl World {
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Somewhere in the middle of a call.
    fn point(&self) {
        let mut state = self.state();
        match state.dies.as_mut() {
            Some(0) => {
                state.dies = None;
                drop(state);
                resume_unwind(Box::new(Killed));
            }
            Some(left) => *left -= 1,
            None => {}
        }
    }

    pub(super) fn renew(&self, leases: &Leases) {
        let mut state = self.state();
        let now = state.now;
        state.renewals.push(now);
        leases.renew(now);
    }

    /// Waits with signs of life.
    fn wait(&self) {
        let (slow, renewing) = {
            let state = self.state();
            (state.slow, state.renewing.clone())
        };
        for _ in 0..4 {
            self.state().now += slow / 4;
            if let Some(leases) = &renewing {
                self.renew(leases);
                let now = self.state().now;
                leases.honour(now);
            }
        }
    }

    pub(super) fn revert(&self, undo: &Undo) -> Result<String, UndoError> {
        self.point();
        if let Some(object) = Object::of(undo) {
            let mut state = self.state();
            if state.stuck.contains(&object) {
                let what = format!("{object:?}");
                return Err(UndoError { left: what.clone(), what, source: io::Error::other("told to fail") });
            }
            match undo {
                Undo::Sysctl { old, ours, .. } => {
                    if state.value(object).to_string() == *ours {
                        state.values.insert(object, old.parse().expect("a number"));
                    }
                }
                _ => drop(state.values.insert(object, 0)),
            }
        }
        self.point();
        Ok("undone".into())
    }
}

struct Moves(u64, World);

impl Expiry for Moves {
    fn move_to(&self, at: Instant) -> Result<bool, ChangeError> {
        if let Some(expires) = self.1.state().held.get_mut(&self.0) {
            *expires = Some(at);
        }
        Ok(true)
    }
}

/// What is held of a change: its number among what lives by descriptors, and whether it expires.
type Held = Option<(u64, bool)>;

impl Host for World {
    type Handle = Held;

    fn prepare(&mut self, change: &Change) -> Result<Undo, ChangeError> {
        let state = self.state();
        let taken = || ChangeError::Taken { what: change.to_string(), holder: "somebody".into() };
        let is_free = |object| if state.value(object) == 0 { Ok(()) } else { Err(taken()) };
        Ok(match (change, Thing::of(change)) {
            (Change::Sysctl { netns, key, value }, Some((object, _))) => {
                let old = state.value(object).to_string();
                Undo::Sysctl { netns: netns.clone(), key: key.clone(), old, ours: value.clone() }
            }
            (Change::Freeze { cgroup }, Some((object, _))) => {
                is_free(object).map(|()| Undo::Thaw { cgroup: cgroup.clone() })?
            }
            (Change::Suspend { process }, Some((object, _))) => {
                is_free(object).map(|()| Undo::Continue { process: process.clone() })?
            }
            (Change::Netns { name }, Some((object, _))) => {
                is_free(object).map(|()| Undo::DeleteNetns { name: name.clone() })?
            }
            _ => Undo::DiesWithAgent,
        })
    }

    fn apply(&mut self, change: &Change, expires: Instant) -> Result<Held, ChangeError> {
        let recorded = self.state().open().iter().any(|open| open.what == change.to_string());
        assert!(recorded, "{change} is made before it is recorded");
        self.point();
        self.wait();
        let mut state = self.state();
        let fails = match state.fails.as_mut() {
            Some((0, partly)) => Some(*partly),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        if let Some((object, value)) = Thing::of(change).filter(|_| fails != Some(false)) {
            state.values.insert(object, value);
        }
        if fails.is_some() {
            state.fails = None;
            return Err(ChangeError::NoEffect { what: change.to_string(), seen: "told to fail".into() });
        }
        let held = Thing::of(change).is_none().then(|| {
            state.next += 1;
            let is_rule = matches!(change, Change::Rule { .. });
            let number = state.next;
            state.held.insert(number, is_rule.then_some(expires));
            (number, is_rule)
        });
        drop(state);
        self.point();
        Ok(held)
    }

    fn measure(&mut self, _: &Change, _: &mut Held) -> Option<Measured> {
        None
    }

    fn expiry(&self, held: &Held) -> Option<Box<dyn Expiry>> {
        let (number, _) = held.filter(|(_, is_rule)| *is_rule)?;
        Some(Box::new(Moves(number, self.clone())))
    }

    fn release(&mut self, _: &Change, held: Held) -> Result<Option<Measured>, ChangeError> {
        self.point();
        if let Some((number, _)) = held {
            assert!(self.state().held.remove(&number).is_some(), "it is let go of twice");
        }
        Ok(None)
    }

    fn undo(&mut self, undo: &Undo) -> Result<String, UndoError> {
        self.revert(undo)
    }

    fn now(&self) -> Instant {
        self.state().now
    }
}
