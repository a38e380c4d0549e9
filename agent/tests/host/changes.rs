//! Changes one by one: made, read back, undone.

use std::fs;
use std::time::Duration;

use firedrill_agent::agent::Agent;
use firedrill_agent::host::{process, wait_until};
use firedrill_agent::snapshot::Snapshot;
use firedrill_model::change::Change;
use firedrill_model::facts::Control;
use firedrill_model::receipt::Effect;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{
    Bench, Folder, Group, LONG, Netns, Process, SOON, controlled, eventually, fault, options, plan, read, target, words,
};

pub fn a_group_is_frozen_for_the_fault_and_thawed_after_it() {
    let group = Group::new("frozen");
    let _members = [group.start(&["sleep", "1000"], None), group.start(&["sleep", "1000"], None)];
    let before = Snapshot::take(&[]).expect("a snapshot");
    let bench = Bench::new();
    let injected =
        bench.agent.inject(&bench.resolve(group.spec()), &fault("pause", json!({})), LONG).expect("injected");
    assert!(group.is_frozen());
    let (_, receipt) = bench.agent.receipts().remove(0);
    assert_eq!(receipt.effect, Effect::Effective, "{receipt:?}");
    let ended = bench.agent.revert(injected.id).expect("it was in force");
    assert!(!group.is_frozen());
    assert_eq!(ended.receipt.map(|r| r.effect), Some(Effect::Effective));
    assert!(ended.changes.iter().all(|c| c.error.is_none()), "{:?}", ended.changes);
    assert!(bench.agent.revert(injected.id).is_none(), "it has ended");
    bench.ends_clean(&before, &[], &[&group.path]);
}

pub fn a_group_that_somebody_else_has_frozen_is_refused_and_stays_frozen() {
    let group = Group::new("others");
    let _member = group.start(&["sleep", "1000"], None);
    fs::write(group.directory.join("cgroup.freeze"), "1").expect("frozen");
    let bench = Bench::new();
    let refused =
        bench.agent.inject(&bench.resolve(group.spec()), &fault("pause", json!({})), LONG).expect_err("taken");
    assert!(refused.to_string().contains("somebody else"), "{refused}");
    bench.agent.stop();
    assert_eq!(read(&group.directory.join("cgroup.freeze")).expect("a value"), "1");
}

pub fn a_group_inside_another_frozen_one_is_undone_without_complaint() {
    let outer = Group::new("outer");
    let inner = outer.below("inner");
    let _members = [outer.start(&["sleep", "1000"], None), inner.start(&["sleep", "1000"], None)];
    let bench = Bench::new();
    let pause = fault("pause", json!({}));
    let first = bench.agent.inject(&bench.resolve(inner.spec()), &pause, LONG).expect("the inner one");
    // Another fault of ours would be refused; somebody else is free to.
    fs::write(outer.directory.join("cgroup.freeze"), "1").expect("frozen by somebody else");
    let ended = bench.agent.revert(first.id).expect("in force");
    assert!(ended.changes[0].error.is_none(), "{:?}", ended.changes);
    assert!(inner.is_frozen(), "with the outer one");
    fs::write(outer.directory.join("cgroup.freeze"), "0").expect("thawed by them");
    eventually("both thaw", || !inner.is_frozen() && !outer.is_frozen());
    assert!(bench.agent.stop().left_over.is_empty());
}

pub fn a_lone_process_is_stopped_and_continued() {
    let (process, _) = Process::sleep();
    let bench = Bench::new();
    let injected =
        bench.agent.inject(&bench.resolve(process.spec()), &fault("pause", json!({})), LONG).expect("injected");
    assert_eq!(process.state(), 'T');
    // Somebody continues it: then it was not in force all the time, and the receipt must say so.
    process::signal(&process.identity, Signal::SIGCONT as i32).expect("continued");
    eventually("it runs", || process.state() == 'S');
    let receipt = bench.agent.receipts().remove(0).1;
    assert_eq!(receipt.effect, Effect::None, "{receipt:?}");
    process::signal(&process.identity, Signal::SIGSTOP as i32).expect("stopped");
    bench.agent.revert(injected.id).expect("in force");
    eventually("it runs again", || process.state() == 'S');
    assert!(bench.agent.stop().left_over.is_empty());
}

pub fn a_process_that_is_stopped_already_is_refused() {
    let (process, _) = Process::sleep();
    process::signal(&process.identity, Signal::SIGSTOP as i32).expect("stopped");
    eventually("it is stopped", || process.state() == 'T');
    let bench = Bench::new();
    let refused =
        bench.agent.inject(&bench.resolve(process.spec()), &fault("pause", json!({})), LONG).expect_err("taken");
    assert!(refused.to_string().contains("stopped it already"), "{refused}");
    bench.agent.stop();
    assert_eq!(process.state(), 'T', "what others did stays");
}

pub fn a_replica_is_stopped_and_started_by_its_own_commands() {
    let (group, folder) = (Group::new("replica"), Folder::new());
    let _member = group.start(&["sleep", "1000"], None);
    let mark = folder.0.join("stopped").display().to_string();
    let control = Control { stop: words(&["touch", &mark]), start: words(&["rm", &mark]) };
    let bench = Bench::new();
    let found = bench.agent.resolve(&controlled(group.spec(), control)).expect("a target");
    let injected = bench.agent.inject(&found, &fault("stop", json!({})), LONG).expect("injected");
    assert!(fs::exists(&mark).expect("looked"), "stopped");
    assert_eq!(bench.agent.receipts()[0].1.effect, Effect::Effective);
    let ended = bench.agent.revert(injected.id).expect("in force");
    assert!(!fs::exists(&mark).expect("looked"), "started again");
    assert!(ended.changes[0].error.is_none(), "{:?}", ended.changes);
    assert!(bench.agent.stop().left_over.is_empty());
}

pub fn a_daemon_that_a_command_leaves_behind_may_go_on_complaining() {
    let folder = Folder::new();
    let alive = folder.0.join("alive").display().to_string();
    // Writes to its standard error long after the command that started it has ended.
    let daemon = format!("(sleep 0.3; echo complaint >&2; echo complaint >&2; touch {alive}) & exit 0");
    let change = Change::Command { run: words(&["sh", "-c", &daemon]), undo: words(&["true"]) };
    let bench = Bench::new();
    bench.agent.apply(&plan(vec![change]), LONG).expect("applied");
    eventually("it is not killed by its own complaint", || fs::exists(&alive).expect("looked"));
    bench.agent.stop();
}

pub fn a_command_that_fails_is_undone_and_tells_why() {
    let folder = Folder::new();
    let mark = folder.0.join("undone").display().to_string();
    let run = words(&["sh", "-c", "echo no such replica >&2; exit 4"]);
    let change = Change::Command { run, undo: words(&["touch", &mark]) };
    let bench = Bench::new();
    let failed = bench.agent.apply(&plan(vec![change]), LONG).expect_err("it failed");
    assert!(failed.to_string().contains("no such replica"), "{failed}");
    assert!(fs::exists(&mark).expect("looked"), "it may have stopped half of it");
    assert!(bench.agent.stop().left_over.is_empty());
}

const KEY: &str = "net.ipv4.conf.lo.route_localnet";
const PATH: &str = "/proc/sys/net/ipv4/conf/lo/route_localnet";

pub fn a_kernel_parameter_gets_its_old_value_back() {
    let netns = Netns::new("sysctl");
    let change = Change::Sysctl { netns: netns.reference(), key: KEY.into(), value: "1".into() };
    let before = Snapshot::take(std::slice::from_ref(&netns.name)).expect("a snapshot");
    let bench = Bench::new();
    bench.agent.apply(&plan(vec![change]), LONG).expect("applied");
    assert_eq!(netns.parameter(PATH), "1");
    bench.ends_clean(&before, std::slice::from_ref(&netns.name), &[]);
    assert_eq!(netns.parameter(PATH), "0");
}

pub fn a_kernel_parameter_that_somebody_else_has_changed_since_is_left_so() {
    let netns = Netns::new("sysctl");
    let key = "net.ipv4.ip_default_ttl";
    let path = "/proc/sys/net/ipv4/ip_default_ttl";
    let change = Change::Sysctl { netns: netns.reference(), key: key.into(), value: "65".into() };
    let bench = Bench::new();
    let injected = bench.agent.apply(&plan(vec![change]), LONG).expect("applied");
    netns.within(|| fs::write(path, "66")).expect("changed by somebody else");
    let ended = bench.agent.revert(injected.id).expect("in force");
    assert_eq!(netns.parameter(path), "66");
    assert!(ended.changes[0].note.contains("somebody else"), "{:?}", ended.changes);
    assert!(bench.agent.stop().left_over.is_empty(), "it is theirs, not left over");
}

pub fn a_fault_that_is_not_renewed_ends_by_itself() {
    let (folder, group) = (Folder::new(), Group::new("lapsed"));
    let _member = group.start(&["sleep", "1000"], None);
    let mut options = options(&folder.directories(), "a test");
    options.lease = Duration::from_millis(300);
    let agent = Agent::start(options).expect("an agent");
    let found = agent.resolve(&target(group.spec())).expect("a target");
    agent.inject(&found, &fault("pause", json!({})), LONG).expect("injected");
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(100));
        assert!(agent.renew().expect("renewed").is_empty());
    }
    assert!(group.is_frozen());
    assert!(wait_until(SOON, || !group.is_frozen()), "nobody has renewed it");
    let ended = agent.renew().expect("renewed");
    assert!(ended.len() == 1 && ended[0].lapsed && ended[0].receipt.is_some(), "{ended:?}");
    assert!(agent.renew().expect("renewed").is_empty(), "told once");
}
