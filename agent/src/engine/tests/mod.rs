//! The laws of the engine, on a host that only remembers.

mod leases;
mod random;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use firedrill_model::change::{Rule, Way};
use firedrill_model::facts::{CgroupRef, Interface, NetnsRef, ProcessRef};
use firedrill_model::units::{Percent, Span};

use super::*;
use crate::journal::{self, Directories};

/// A time that passes only when it is told to.
#[derive(Clone)]
struct Clock(Arc<Mutex<Instant>>);

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Clock {
    fn now(&self) -> Instant {
        *self.0.lock().expect("a clock")
    }

    fn pass(&self, time: Duration) {
        *self.0.lock().expect("a clock") += time;
    }
}

type Expiries = Arc<Mutex<BTreeMap<String, Instant>>>;

struct FakeExpiry(String, Expiries);

impl Expiry for FakeExpiry {
    fn move_to(&self, at: Instant) -> Result<bool, ChangeError> {
        self.1.lock().expect("expiries").insert(self.0.clone(), at);
        Ok(true)
    }
}

/// A host that remembers what is in force, and fails when told to.
#[derive(Default)]
struct FakeHost {
    directories: Option<Directories>,
    /// What was done, in order: `+change` applied, `!change` failed to apply, `-change` undone.
    log: Vec<String>,
    in_force: BTreeSet<String>,
    /// When the kernel ignores each change by itself.
    expiries: Expiries,
    /// Fail the apply with this number, counted from 0 over the host's life.
    fail_apply: Option<usize>,
    /// Changes whose undo fails.
    fail_undo: BTreeSet<String>,
    applies: usize,
    clock: Clock,
    /// How long each change takes.
    slow: Duration,
    /// Whose owner renews all the while, as an engine that waits with patience sees it.
    renewing: Option<Leases>,
    undo_runs: BTreeMap<String, u32>,
}

fn key(undo: &Undo) -> &str {
    match undo {
        Undo::DeleteNetns { name } => name,
        other => panic!("the fake host makes no {other:?}"),
    }
}

impl Host for FakeHost {
    type Handle = String;

    fn prepare(&mut self, change: &Change) -> Result<Undo, ChangeError> {
        if self.in_force.contains(&change.to_string()) {
            return Err(ChangeError::Taken { what: change.to_string(), holder: "an undo that failed".into() });
        }
        Ok(Undo::DeleteNetns { name: change.to_string() })
    }

    fn apply(&mut self, change: &Change, expires: Instant) -> Result<String, ChangeError> {
        let name = change.to_string();
        if let Some(directories) = &self.directories {
            // What the guardian would find, were the agent to die at this very line.
            let open = journal::outstanding(&fs::read(directories.journal()).expect("a journal"));
            assert!(
                open.iter().any(|o| o.what == change.to_string() && key(&o.undo) == name),
                "{name} is made before it is recorded"
            );
        }
        self.wait(self.slow);
        let number = self.applies;
        self.applies += 1;
        if self.fail_apply == Some(number) {
            self.log.push(format!("!{name}"));
            return Err(ChangeError::NoEffect { what: name, seen: "told to fail".into() });
        }
        assert!(self.in_force.insert(name.clone()), "{name} is made a second time");
        self.expiries.lock().expect("expiries").insert(name.clone(), expires);
        self.log.push(format!("+{name}"));
        Ok(name)
    }

    fn measure(&mut self, _: &Change, handle: &mut String) -> Option<Measured> {
        Some(Measured::State { in_force: self.in_force.contains(handle), seen: handle.clone(), held: Span::default() })
    }

    fn expiry(&self, handle: &String) -> Option<Box<dyn Expiry>> {
        Some(Box::new(FakeExpiry(handle.clone(), Arc::clone(&self.expiries))))
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn release(&mut self, _: &Change, handle: String) -> Result<Option<Measured>, ChangeError> {
        assert!(self.in_force.contains(&handle), "{handle} is let go of, but is not in force");
        Ok(None)
    }

    fn undo(&mut self, undo: &Undo) -> Result<String, UndoError> {
        let name = key(undo).to_owned();
        *self.undo_runs.entry(name.clone()).or_default() += 1;
        if self.fail_undo.contains(&name) {
            return Err(UndoError { what: name.clone(), left: name, source: io::Error::other("told to fail") });
        }
        self.in_force.remove(&name);
        self.log.push(format!("-{name}"));
        Ok("undone".into())
    }
}

impl FakeHost {
    /// As the real one waits for something slow: with signs of life.
    fn wait(&self, time: Duration) {
        for _ in 0..10 {
            self.clock.pass(time / 10);
            if let Some(leases) = &self.renewing {
                leases.renew(self.clock.now());
                leases.honour(self.clock.now());
            }
        }
    }

    fn expires(&self, change: &Change) -> Instant {
        self.expiries.lock().expect("expiries")[&change.to_string()]
    }
}

fn directories() -> Directories {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let base: PathBuf = std::env::temp_dir().join(format!("firedrill-engine-{}-{number}", std::process::id()));
    Directories { run: base.join("run"), state: base.join("state") }
}

/// An engine, and the folder of its journal, which goes with it.
struct Bench {
    engine: Engine<FakeHost>,
    directories: Directories,
}

const TENTH: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(3600);
const LONG: Duration = Duration::from_secs(3600);

impl Bench {
    fn new(ttl: Duration) -> Self {
        let directories = directories();
        let journal = Journal::begin(&directories, "this boot").expect("a journal");
        let host = FakeHost { directories: Some(directories.clone()), ..FakeHost::default() };
        Self { engine: Engine::new(host, journal, ttl), directories }
    }

    fn outstanding(&self) -> BTreeSet<String> {
        let bytes = fs::read(self.directories.journal()).expect("a journal");
        journal::outstanding(&bytes).iter().map(|o| o.what.to_string()).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.engine.host().clock.pass(time);
    }

    fn now(&mut self) -> Instant {
        self.engine.host().clock.now()
    }

    fn renew(&mut self) {
        let now = self.now();
        self.engine.leases().renew(now);
        self.engine.honour().expect("renews");
    }

    /// From now on the owner renews also while a change is slow.
    fn renew_meanwhile(&mut self) {
        let leases = self.engine.leases().clone();
        self.engine.host().renewing = Some(leases);
    }

    fn apply(&mut self, changes: &[Change]) -> FaultId {
        self.engine.apply(&plan(changes), LONG).map_err(|(e, _)| e).expect("applies").0
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(base) = self.directories.run.parent() {
            let _ = fs::remove_dir_all(base);
        }
    }
}

fn plan(changes: &[Change]) -> Plan {
    Plan { changes: changes.to_vec(), notes: Vec::new() }
}

fn netns(path: &str) -> NetnsRef {
    NetnsRef { path: path.into(), inode: 7 }
}

fn interface(index: u32) -> Interface {
    Interface { index, name: format!("eth{index}"), loopback: false, ethernet: true }
}

fn attach(index: u32) -> Change {
    Change::Attach { netns: netns("/run/netns/blue"), interface: interface(index), direction: Way::Egress }
}

fn line(index: u32) -> Change {
    Change::DelayLine { netns: netns("/run/netns/blue"), interface: interface(index), direction: Way::Egress }
}

fn tag(path: &str) -> Change {
    let cgroup = CgroupRef { path: path.into(), id: 1 };
    Change::Tag { netns: netns("/run/netns/blue"), sockets: firedrill_model::change::SocketOwner::Cgroup(cgroup) }
}

fn sysctl(value: &str) -> Change {
    Change::Sysctl { netns: netns("/run/netns/blue"), key: "net.a".into(), value: value.into() }
}

/// A rule; `percent` tells one from another.
fn rule(percent: f64) -> Change {
    let action = firedrill_model::change::Action::drop_share(Percent::new(percent).expect("a share"));
    let rule = Rule {
        interface: None,
        sockets: None,
        ways: vec![Way::Egress],
        filter: Default::default(),
        spare: vec![],
        action,
        then: vec![],
    };
    Change::Rule { netns: netns("/run/netns/blue"), rule }
}

fn freeze(id: u64) -> Change {
    Change::Freeze { cgroup: CgroupRef { path: format!("/cg/{id}"), id } }
}

fn suspend(pid: i32) -> Change {
    Change::Suspend { process: ProcessRef { pid, started: 1, comm: "sleep".into() } }
}

fn five() -> Vec<Change> {
    vec![tag("/cg/a"), sysctl("1"), attach(1), line(1), rule(30.0)]
}

#[test]
fn each_change_is_recorded_before_it_is_made_and_settled_after_it_is_undone() {
    let mut bench = Bench::new(TTL);
    // FakeHost::apply looks into the journal each time.
    let id = bench.apply(&five());
    assert_eq!(bench.outstanding().len(), 5);
    assert_eq!(bench.engine.host().in_force.len(), 5);
    let reverted = bench.engine.revert(id);
    assert_eq!(reverted.changes.len(), 5);
    assert!(bench.outstanding().is_empty());
    bench.engine.end_journal().expect("ends");
    assert!(!bench.directories.journal().exists());
}

#[test]
fn a_failure_at_any_change_undoes_those_before_it_in_reverse_and_makes_none_after_it() {
    let changes = five();
    for at in 0..changes.len() {
        let mut bench = Bench::new(TTL);
        bench.engine.host().fail_apply = Some(at);
        let (error, reverted) = bench.engine.apply(&plan(&changes), LONG).expect_err("told to fail");
        assert!(error.to_string().contains("told to fail"), "{error}");
        let mut expected: Vec<String> = changes[..at].iter().map(|c| format!("+{c}")).collect();
        // The one that failed may have been made in part, so it is undone, too.
        expected.extend([format!("!{}", changes[at]), format!("-{}", changes[at])]);
        expected.extend(changes[..at].iter().rev().map(|c| format!("-{c}")));
        assert_eq!(bench.engine.host().log, expected, "failure at {at}");
        assert_eq!(reverted.changes.len(), at);
        assert!(bench.engine.is_idle() && bench.engine.left_over().is_empty() && bench.outstanding().is_empty());
        assert!(bench.engine.tick().is_empty(), "a fault that was not injected cannot lapse");
    }
}

#[test]
fn a_change_that_somebody_else_has_just_made_is_not_undone() {
    struct Late(FakeHost);
    impl Host for Late {
        type Handle = String;
        fn prepare(&mut self, change: &Change) -> Result<Undo, ChangeError> {
            self.0.prepare(change)
        }
        fn apply(&mut self, change: &Change, _: Instant) -> Result<String, ChangeError> {
            Err(ChangeError::Taken { what: change.to_string(), holder: "somebody else".into() })
        }
        fn measure(&mut self, _: &Change, _: &mut String) -> Option<Measured> {
            None
        }
        fn expiry(&self, _: &String) -> Option<Box<dyn Expiry>> {
            None
        }
        fn release(&mut self, _: &Change, _: String) -> Result<Option<Measured>, ChangeError> {
            Ok(None)
        }
        fn undo(&mut self, undo: &Undo) -> Result<String, UndoError> {
            self.0.undo(undo)
        }
    }
    let directories = directories();
    let journal = Journal::begin(&directories, "this boot").expect("a journal");
    let mut engine = Engine::new(Late(FakeHost::default()), journal, TTL);
    let change = Change::Netns { name: "blue".into() };
    let (error, _) = engine.apply(&plan(&[change]), LONG).expect_err("taken");
    assert!(error.to_string().contains("somebody else"), "{error}");
    assert!(engine.host().0.undo_runs.is_empty(), "undoing would delete the namespace of somebody else");
    engine.end_journal().expect("ends");
    assert!(!directories.journal().exists(), "and nothing is outstanding");
    let _ = fs::remove_dir_all(directories.run.parent().expect("a base"));
}

#[test]
fn what_fails_to_be_undone_is_reported_and_stays_recorded_while_all_the_others_are_undone() {
    let mut bench = Bench::new(TTL);
    let changes = five();
    let stuck = changes[2].to_string();
    bench.engine.host().fail_undo.insert(stuck.clone());
    let id = bench.apply(&changes);
    let reverted = bench.engine.revert(id);
    assert_eq!(reverted.changes.iter().filter(|c| c.error.is_some()).count(), 1);
    assert_eq!(bench.engine.host().in_force, BTreeSet::from([stuck.clone()]));
    assert_eq!(bench.outstanding(), BTreeSet::from([stuck.clone()]));
    assert_eq!(bench.engine.left_over().len(), 1);
    assert!(bench.engine.left_over()[0].contains(&stuck));
    bench.engine.end_journal().expect("ends");
    assert!(bench.directories.journal().exists(), "recovery must find it");
}

#[test]
fn reverting_a_fault_twice_or_one_that_never_was_is_nothing() {
    let mut bench = Bench::new(TTL);
    let id = bench.apply(&five());
    assert_eq!(bench.engine.revert(id).changes.len(), 5);
    assert_eq!(bench.engine.revert(id).changes, []);
    assert_eq!(bench.engine.revert(FaultId(99)).changes, []);
    assert!(bench.engine.revert_all().is_empty());
    assert!(bench.engine.host().undo_runs.values().all(|n| *n == 1));
}

#[test]
fn what_two_faults_need_is_made_once_and_goes_with_the_last() {
    for shared in [attach(1), line(1), tag("/cg/a"), sysctl("1")] {
        let mut bench = Bench::new(TTL);
        let first = bench.apply(&[shared.clone(), rule(10.0)]);
        let (second, applied) =
            bench.engine.apply(&plan(&[shared.clone(), rule(20.0)]), LONG).map_err(|e| e.0).expect("shares");
        assert_eq!(applied.len(), 1, "only the rule is new");
        assert_eq!(bench.engine.revert(first).changes.len(), 1, "only its own rule");
        assert!(bench.engine.host().in_force.contains(&shared.to_string()));
        assert_eq!(bench.engine.revert(second).changes.len(), 2);
        assert!(bench.engine.is_idle());
        assert_eq!(bench.engine.host().undo_runs[&shared.to_string()], 1);
    }
}

#[test]
fn one_namespace_is_the_same_by_its_name_and_by_a_process_in_it() {
    let mut bench = Bench::new(TTL);
    let by_process =
        Change::Attach { netns: netns("/proc/42/ns/net"), interface: interface(1), direction: Way::Egress };
    bench.apply(&[attach(1)]);
    let (_, applied) = bench.engine.apply(&plan(&[by_process]), LONG).map_err(|e| e.0).expect("shares");
    assert_eq!(applied, []);
    let elsewhere = NetnsRef { path: "/run/netns/blue".into(), inode: 8 };
    let elsewhere = Change::Attach { netns: elsewhere, interface: interface(2), direction: Way::Egress };
    assert_eq!(bench.engine.apply(&plan(&[elsewhere]), LONG).map_err(|e| e.0).expect("another").1.len(), 1);
}

#[test]
fn an_object_under_a_fault_is_refused_to_a_second_one_with_the_name_of_the_first() {
    let pairs = [
        (freeze(1), freeze(1)),
        (suspend(5), suspend(5)),
        (sysctl("1"), sysctl("0")),
        (
            Change::StopUnit { unit: "a.service".into(), triggers: vec!["a.socket".into()], dependents: Vec::new() },
            Change::StopUnit { unit: "a.service".into(), triggers: Vec::new(), dependents: Vec::new() },
        ),
        (Change::Netns { name: "x".into() }, Change::Netns { name: "x".into() }),
    ];
    for (held, wanted) in pairs {
        let mut bench = Bench::new(TTL);
        let first = bench.apply(std::slice::from_ref(&held));
        let (error, reverted) = bench.engine.apply(&plan(&[rule(1.0), wanted.clone()]), LONG).expect_err("taken");
        assert!(error.to_string().contains(&held.to_string()), "{error}");
        assert_eq!(reverted.changes.len(), 1, "the rule before it");
        assert!(bench.engine.host().in_force.contains(&held.to_string()), "the first fault is untouched");
        bench.engine.revert(first);
        assert!(bench.engine.apply(&plan(&[wanted]), LONG).is_ok(), "free again");
    }
}

#[test]
fn two_rules_alike_are_two_rules() {
    let mut bench = Bench::new(TTL);
    let (_, applied) = bench.engine.apply(&plan(&[rule(1.0), rule(2.0)]), LONG).map_err(|e| e.0).expect("applies");
    assert_eq!(applied.len(), 2);
    assert_eq!(bench.engine.revert_all().len(), 1);
}

#[test]
fn measurements_come_in_the_order_of_the_plan_and_once_more_at_the_end() {
    let mut bench = Bench::new(TTL);
    let id = bench.apply(&five());
    let seen = |list: Vec<Measured>| -> Vec<String> {
        list.into_iter().map(|m| if let Measured::State { seen, .. } = m { seen } else { String::new() }).collect()
    };
    let expected: Vec<String> = five().iter().map(Change::to_string).collect();
    assert_eq!(seen(bench.engine.measure(id)), expected);
    let reverted = bench.engine.revert(id);
    assert!(reverted.measured.iter().all(|m| matches!(m, Measured::State { in_force: true, .. })), "before it ended");
    assert_eq!(seen(reverted.measured), expected);
    assert!(bench.engine.measure(id).is_empty());
}

#[test]
fn all_faults_end_youngest_first() {
    let mut bench = Bench::new(TTL);
    let ids = [bench.apply(&[freeze(1)]), bench.apply(&[freeze(2)]), bench.apply(&[freeze(3)])];
    let ended: Vec<FaultId> = bench.engine.revert_all().iter().map(|r| r.fault).collect();
    assert_eq!(ended, [ids[2], ids[1], ids[0]]);
}

#[test]
fn when_the_journal_cannot_be_written_nothing_is_done() {
    let directories = directories();
    drop(Journal::begin(&directories, "this boot").expect("a journal"));
    // Every write to it fails with ENOSPC.
    let _ = fs::remove_file(directories.journal());
    std::os::unix::fs::symlink("/dev/full", directories.journal()).expect("a link");
    let journal = Journal::begin(&directories, "this boot").expect("opens");
    let mut engine = Engine::new(FakeHost::default(), journal, TTL);
    let (error, _) = engine.apply(&plan(&five()), LONG).expect_err("no journal");
    assert!(error.to_string().contains("without a record nothing is changed"), "{error}");
    assert!(engine.host().log.is_empty() && engine.is_idle());
    let _ = fs::remove_dir_all(directories.run.parent().expect("a base"));
}
