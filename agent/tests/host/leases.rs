//! Leases on this kernel: what an owner renews stays in force though the engine waits for something slow, and what it does
//! not renew goes quiet by itself and never comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use firedrill_agent::agent::{Agent, Ended};
use firedrill_model::facts::Control;
use serde_json::json;

use crate::support::{
    B4, Folder, Group, LONG, Netns, Pair, controlled, eventually, fault, in_guest, options, read, target, words,
};

/// Short, and yet long against what a busy machine makes of a moment.
fn lease() -> Duration {
    Duration::from_secs(if in_guest() { 8 } else { 2 })
}

fn agent(folder: &Folder) -> Agent {
    let mut options = options(&folder.directories(), "a test of leases");
    options.lease = lease();
    Agent::start(options).expect("an agent")
}

/// A replica whose stop takes twice as long as a lease lasts, and then leaves a file.
fn slow_stop(folder: &Folder) -> Control {
    let script = format!("sleep {}; touch {}/stopped", 2 * lease().as_secs(), folder.0.display());
    Control { stop: words(&["sh", "-c", &script]), start: words(&["true"]) }
}

fn is_stopped(folder: &Folder) -> bool {
    read(&folder.0.join("stopped")).is_ok()
}

impl Netns {
    fn is_cut_off(&self) -> bool {
        !self.run(&format!("ping -q -c1 -W1 {B4}")).status.success()
    }
}

fn says(ended: &Ended) -> &str {
    &ended.receipt.as_ref().expect("a receipt").says
}

pub fn a_rule_stays_in_force_while_another_fault_is_slow_and_the_owner_renews() {
    let (folder, pair, group) = (Folder::new(), Pair::new(), Group::new("slow"));
    let _member = group.start(&["sleep", "1000"], None);
    let agent = agent(&folder);
    let network = agent.resolve(&target(pair.a.spec())).expect("a target");
    let replica = agent.resolve(&controlled(group.spec(), slow_stop(&folder))).expect("a target");
    let lost = agent.inject(&network, &fault("loss", json!({"percent": "100%"})), LONG).expect("injected").id;
    let (over, begun) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(agent.renew().expect("renewed").len(), 0, "nothing lapses");
                std::thread::sleep(lease() / 8);
            }
        });
        let watch = scope.spawn(|| {
            let mut looks = 0;
            while !over.load(Ordering::Relaxed) {
                assert!(pair.a.is_cut_off(), "a packet came through after {:.2?}", begun.elapsed());
                looks += 1;
            }
            looks
        });
        agent.inject(&replica, &fault("stop", json!({})), LONG).expect("injected");
        assert!(begun.elapsed() > lease() + lease() / 2, "it was slow: {:?}", begun.elapsed());
        over.store(true, Ordering::Relaxed);
        assert!(watch.join().expect("watched") > 1);
    });
    let ended = agent.revert(lost).expect("in force");
    assert!(!ended.lapsed && !says(&ended).contains("out of force"), "{ended:?}");
    assert!(agent.stop().left_over.is_empty());
}

pub fn what_a_hung_owner_does_not_renew_goes_quiet_though_the_engine_is_busy_and_never_comes_back() {
    let (folder, pair) = (Folder::new(), Pair::new());
    let (group, frozen) = (Group::new("slow"), Group::new("frozen"));
    let _members = [group.start(&["sleep", "1000"], None), frozen.start(&["sleep", "1000"], None)];
    let agent = agent(&folder);
    let replica = agent.resolve(&controlled(group.spec(), slow_stop(&folder))).expect("a target");
    let network = agent.resolve(&target(pair.a.spec())).expect("a target");
    let paused = agent.resolve(&target(frozen.spec())).expect("a target");
    agent.inject(&paused, &fault("pause", json!({})), LONG).expect("injected");
    agent.inject(&network, &fault("loss", json!({"percent": "100%"})), LONG).expect("injected");
    agent.renew().expect("renewed");
    let last = Instant::now();
    std::thread::scope(|scope| {
        // From here on its owner does nothing but wait, which is no renewal.
        scope.spawn(|| agent.inject(&replica, &fault("stop", json!({})), LONG));
        assert!(pair.a.is_cut_off());
        while pair.a.is_cut_off() {
            assert!(last.elapsed() < 2 * lease(), "the kernel still drops packets");
        }
        assert!(last.elapsed() > lease() - Duration::from_millis(200), "not before its time");
        assert!(!is_stopped(&folder), "the engine is still busy");
    });
    eventually("all is reverted as soon as the engine can", || !frozen.is_frozen());
    let ended = agent.renew().expect("a late renewal");
    assert!(ended.len() >= 2 && ended.iter().all(|e| e.lapsed), "{ended:?}");
    let lost = ended.iter().find(|e| e.receipt.as_ref().is_some_and(|r| r.fault == "loss")).expect("told");
    assert!(says(lost).contains("out of force for"), "{lost:?}");
    agent.renew().expect("renewed");
    assert!(!pair.a.is_cut_off() && !frozen.is_frozen(), "no renewal brings it back");
    assert!(agent.stop().left_over.is_empty());
}
