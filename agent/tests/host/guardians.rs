//! A guardian that dies or hangs is replaced while the faults go on; without one nothing stays in force.

use std::fs;
use std::time::Duration;

use firedrill_agent::agent::Agent;
use firedrill_agent::guardian::DEAF_AFTER;
use firedrill_agent::host::{process, wait_until};
use firedrill_agent::journal::Directories;
use firedrill_agent::snapshot::Snapshot;
use firedrill_model::change::Plan;
use firedrill_model::facts::ProcessRef;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::crash::Doomed;
use crate::support::{
    Folder, Group, LONG, Pair, assert_unchanged, eventually, fault, guardian_of, in_guest, options, shelter_of, target,
};

/// How long it may take until the agent has noticed and another one watches.
fn patience() -> Duration {
    DEAF_AFTER + Duration::from_secs(if in_guest() { 30 } else { 8 })
}

fn identity(directories: &Directories) -> ProcessRef {
    process::stat(guardian_of(directories).expect("a guardian")).expect("it lives").process
}

fn signal(process: &ProcessRef, signal: Signal) {
    process::signal(process, signal as i32).expect("signalled");
}

pub fn a_guardian_that_is_killed_is_replaced_by_one_that_reverts() {
    is_replaced(|guardian| signal(guardian, Signal::SIGKILL));
}

pub fn a_guardian_that_is_stopped_is_replaced_by_one_that_reverts() {
    is_replaced(|guardian| signal(guardian, Signal::SIGSTOP));
}

pub fn a_guardian_that_is_frozen_is_replaced_by_one_that_reverts() {
    is_replaced(|guardian| fs::write(shelter_of(guardian.pid).join("cgroup.freeze"), "1").expect("frozen"));
}

fn is_replaced(by: fn(&ProcessRef)) {
    let (folder, pair, frozen) = (Folder::new(), Pair::new(), Group::new("guarded"));
    let _member = frozen.start(&["sleep", "1000"], None);
    let directories = folder.directories();
    let before = Snapshot::take(&pair.names()).expect("a snapshot");
    let faults = vec![
        (target(frozen.spec()), fault("pause", json!({}))),
        (target(pair.a.spec()), fault("latency", json!({"delay": "20ms"}))),
    ];
    let doomed = Doomed::armed(&directories, Plan::default(), faults);
    let first = identity(&directories);
    by(&first);
    let begun = std::time::Instant::now();
    let replaced = || !process::is_alive(&first) && guardian_of(&directories).is_some();
    assert!(wait_until(patience(), replaced), "in vain: another guardian");
    eprintln!("replaced after {:.2?}", begun.elapsed());
    assert!(frozen.is_frozen() && pair.a.has_tap(), "the faults went on");
    let second = identity(&directories);
    let open = fs::read_dir(format!("/proc/{}/fd", second.pid)).expect("alive");
    let links: Vec<String> =
        open.filter_map(|e| Some(fs::read_link(e.ok()?.path()).ok()?.display().to_string())).collect();
    let ours = |link: &&String| ["bpf", "tun", "owner", "journal"].iter().any(|word| link.contains(word));
    assert_eq!(links.iter().find(ours), None, "it holds nothing of its agent's: {links:?}");
    eventually("the group of the first is gone", || !shelter_of(first.pid).exists());

    drop(doomed);
    let clean = || !frozen.is_frozen() && !pair.a.has_tap() && !directories.journal().exists();
    eventually("the second one has reverted", clean);
    eventually("and has gone", || !process::is_alive(&second) && !shelter_of(second.pid).exists());
    assert_unchanged(&before, &pair.names(), &[&frozen.path]);
}

pub fn without_a_guardian_that_can_be_had_an_agent_keeps_no_fault() {
    let (folder, group) = (Folder::new(), Group::new("unguarded"));
    let _member = group.start(&["sleep", "1000"], None);
    let directories = folder.directories();
    let mut options = options(&directories, "a test");
    // One guardian is all that there is.
    let once = format!("mkdir {}/taken || exit 1; exec \"$@\"", folder.0.display());
    options.guardian.splice(0..0, ["sh".into(), "-c".into(), once.into(), "firedrill-guardian".into()]);
    let agent = Agent::start(options).expect("an agent");
    let found = agent.resolve(&target(group.spec())).expect("a target");
    agent.inject(&found, &fault("pause", json!({})), LONG).expect("injected");
    let run = directories.run.display().to_string();
    let is_it = |pid: &i32| {
        let line = process::cmdline(*pid);
        line.contains(" guardian ") && line.contains(&run) && !line.contains("mkdir")
    };
    let guardian = process::all().into_iter().map(|s| s.process).find(|p| is_it(&p.pid)).expect("a guardian");
    signal(&guardian, Signal::SIGKILL);
    eventually("it is thawed, though nobody asked for anything", || !group.is_frozen());
    let why = agent.renew().expect_err("whoever holds faults must know");
    assert!(why.contains("guardian has died") && why.contains("another one could not be started"), "{why}");
    let refused = agent.inject(&found, &fault("pause", json!({})), LONG).expect_err("nothing new is begun").to_string();
    assert!(refused.contains("no fault stays in force"), "{refused}");
    let ended = agent.revert_all();
    assert!(ended.len() == 1 && ended[0].lapsed, "its end is told once: {ended:?}");
    assert!(agent.stop().left_over.is_empty());
    assert!(!shelter_of(guardian.pid).exists(), "the group of a guardian that was killed is removed for it");
}
