//! Targets that go, or are replaced by another of their name, while a fault is being made or in force: what came after
//! is left alone, the receipt says so, and the fault ends in order.

use std::fs;
use std::time::Duration;

use firedrill_agent::agent::Ended;
use firedrill_agent::host::{self, cgroup};
use firedrill_agent::snapshot::Snapshot;
use firedrill_agent::stage;
use firedrill_model::facts::TargetFacts;
use firedrill_model::receipt::{Effect, Receipt};
use firedrill_model::target::TargetSpec;
use serde_json::json;

use crate::support::{B4, Bench, Group, LONG, Netns, Pair, Process, eventually, fault, port};

fn ms(time: Option<Duration>) -> f64 {
    time.map_or(f64::INFINITY, |t| t.as_secs_f64() * 1e3)
}

/// The namespace's `va`.
fn interface(netns: &Netns) -> TargetSpec {
    TargetSpec { interface: Some("va".into()), ..netns.spec() }
}

/// Asserts that a fault ended in order, and what its receipt says.
fn told(ended: Option<Ended>, effect: Effect, words: &str) -> Receipt {
    let ended = ended.expect("in force until now");
    assert!(ended.changes.iter().all(|c| c.error.is_none()), "{:?}", ended.changes);
    let receipt = ended.receipt.expect("a receipt");
    eprintln!("{}: {}", receipt.effect, receipt.says);
    assert_eq!(receipt.effect, effect, "{}", receipt.says);
    assert!(receipt.says.contains(words), "no `{words}` in: {}", receipt.says);
    receipt
}

/// Makes the pair's wire anew, with an index of its own choice or the given one.
fn replace_wire(pair: &Pair, index: Option<u32>) {
    pair.a.must("ip link del va");
    add_wire(pair, ("va", "vb"), index, "10.78.0");
}

fn add_wire(pair: &Pair, (a, b): (&str, &str), index: Option<u32>, network: &str) {
    let index = index.map(|i| format!("index {i}")).unwrap_or_default();
    pair.a.must(&format!("ip link add {a} {index} type veth peer name {b} netns {}", pair.b.name));
    for (netns, dev, n) in [(&pair.a, a, 1), (&pair.b, b, 2)] {
        netns.must(&format!("ip addr add {network}.{n}/24 dev {dev}"));
        netns.must(&format!("ip link set {dev} up"));
    }
}

fn hears(pair: &Pair, address: &str) -> bool {
    pair.a.run(&format!("ping -q -c 1 -W 1 {address}")).status.success()
}

fn replaced_under_a_partition(same_index: bool) {
    let pair = Pair::new();
    let bench = Bench::new();
    let index = same_index.then(|| {
        let line = pair.a.must("ip -o link show va");
        line.split(':').next().and_then(|n| n.trim().parse().ok()).expect("an index")
    });
    let target = bench.resolve(interface(&pair.a));
    let injected = bench.agent.inject(&target, &fault("partition", json!({})), LONG).expect("injected");
    assert!(!hears(&pair, B4), "it has an effect");
    replace_wire(&pair, index);
    eventually("the new one is left alone", || hears(&pair, B4));
    assert!(bench.agent.renew().expect("renewed").is_empty());
    std::thread::sleep(Duration::from_secs(1));
    assert!(hears(&pair, B4), "though the lease was renewed");
    told(bench.agent.revert(injected.id), Effect::None, "interface va was replaced by another, which was left alone");
    let farewell = bench.agent.stop();
    assert_eq!(farewell.left_over, [] as [String; 0]);
}

pub fn an_interface_that_replaces_the_target_is_left_alone_and_the_receipt_says_so() {
    replaced_under_a_partition(false);
}

pub fn one_that_has_even_its_index_is_left_alone_too() {
    replaced_under_a_partition(true);
}

pub fn an_interface_that_is_removed_takes_its_delay_line_along() {
    let pair = Pair::new();
    let bench = Bench::new();
    let target = bench.resolve(interface(&pair.a));
    let latency = fault("latency", json!({"delay": "20ms"}));
    let injected = bench.agent.inject(&target, &latency, LONG).expect("injected");
    assert!(hears(&pair, B4));
    assert!(pair.a.has_tap());
    pair.a.must("ip link del va");
    eventually("its TAP is gone", || !pair.a.has_tap());
    told(bench.agent.revert(injected.id), Effect::Effective, "then interface va was gone");
    assert_eq!(bench.agent.stop().left_over, [] as [String; 0]);
}

pub fn an_interface_that_comes_later_is_delayed_as_the_others_of_its_namespace() {
    comes_later(|pair, bench| (bench.resolve(pair.b.spec()), None));
}

pub fn an_interface_that_comes_later_is_delayed_for_a_group_as_the_others() {
    comes_later(|pair, bench| {
        let group = Group::new("later");
        // Sockets tell whose packets they are, so somebody must answer from the group.
        let server = group.server(&pair.b.name, LATER_PORT);
        pair.b.wait_for(LATER_PORT);
        (bench.resolve(group.spec()), Some((server, group)))
    });
}

const LATER_PORT: u16 = 20_999;

fn comes_later(target: impl FnOnce(&Pair, &Bench) -> (TargetFacts, Option<(Process, Group)>)) {
    if !host::facts().tcx {
        println!("UNSUPPORTED: before Linux 6.6 interfaces that come later are left alone");
        return;
    }
    let pair = Pair::new();
    let bench = Bench::new();
    let (target, guards) = target(&pair, &bench);
    let _guards = guards.unwrap_or_else(|| {
        let group = Group::new("plain");
        (group.server(&pair.b.name, LATER_PORT), group)
    });
    pair.b.wait_for(LATER_PORT);
    let before = Snapshot::take(&pair.names()).expect("a snapshot");
    let latency = fault("latency", json!({"delay": "60ms"}));
    let injected = bench.agent.inject(&target, &latency, LONG).expect("injected");
    assert!(ms(pair.a.round_trip(B4, LATER_PORT)) >= 60.0);
    add_wire(&pair, ("vc", "vd"), None, "10.79.0");
    let fresh = "10.79.0.2";
    eventually("it is delayed", || {
        let time = ms(pair.a.round_trip(fresh, LATER_PORT));
        time.is_finite() && time >= 60.0
    });
    let receipt = told(bench.agent.revert(injected.id), Effect::Effective, "packets delayed");
    eprintln!("{:?}", receipt.lines);
    eventually("it is as fast as before", || ms(pair.a.round_trip(fresh, LATER_PORT)) < 30.0);
    pair.a.must("ip link del vc");
    bench.ends_clean(&before, &pair.names(), &[]);
}

pub fn a_group_that_is_made_anew_is_left_alone_by_a_packet_fault() {
    let (group, netns) = (Group::new("anew"), Netns::new("anew"));
    let (first, second) = (port(), port());
    let server = group.server(&netns.name, first);
    netns.wait_for(first);
    let bench = Bench::new();
    let partition = fault("partition", json!({}));
    let injected = bench.agent.inject(&bench.resolve(group.spec()), &partition, LONG).expect("injected");
    assert_eq!(netns.round_trip("127.0.0.1", first), None, "it has an effect");
    drop(server);
    fs::remove_dir(&group.directory).expect("empty");
    fs::create_dir(&group.directory).expect("made anew");
    let _next = group.server(&netns.name, second);
    netns.wait_for(second);
    // Longer than it takes to look again.
    std::thread::sleep(Duration::from_millis(1200));
    assert!(netns.round_trip("127.0.0.1", second).is_some(), "the fault must not follow");
    told(bench.agent.revert(injected.id), Effect::None, "was replaced by another, which was left alone");
    assert_eq!(bench.agent.stop().left_over, [] as [String; 0]);
}

pub fn a_group_that_is_made_anew_is_neither_frozen_nor_thawed() {
    let group = Group::new("anew");
    let sleeper = group.start(&["sleep", "600"], None);
    let bench = Bench::new();
    let pause = fault("pause", json!({}));
    let injected = bench.agent.inject(&bench.resolve(group.spec()), &pause, LONG).expect("injected");
    assert!(group.is_frozen());
    drop(sleeper);
    fs::remove_dir(&group.directory).expect("empty");
    fs::create_dir(&group.directory).expect("made anew");
    let _next = group.start(&["sleep", "600"], None);
    assert!(!group.is_frozen(), "the fault does not follow");
    // Somebody else freezes theirs.
    fs::write(group.directory.join("cgroup.freeze"), "1").expect("frozen");
    eventually("it is frozen", || group.is_frozen());
    told(bench.agent.revert(injected.id), Effect::None, "made anew");
    assert!(group.is_frozen(), "it is theirs");
    assert_eq!(bench.agent.stop().left_over, [] as [String; 0]);
}

pub fn a_target_that_goes_between_plan_and_apply_is_an_error_and_nothing_is_done() {
    let before = Snapshot::take(&[]).expect("a snapshot");
    let bench = Bench::new();
    let refused = |target: &TargetFacts, name: &str, parameters: serde_json::Value| {
        let error = bench.agent.inject(target, &fault(name, parameters), LONG).expect_err("it is gone").to_string();
        eprintln!("{error}");
        assert!(error.contains("gone") || error.contains("removed or replaced"), "{error}");
    };
    let loss = || json!({"percent": "10%"});

    let (process, _) = Process::sleep();
    let target = bench.resolve(process.spec());
    drop(process);
    refused(&target, "pause", json!({}));
    refused(&target, "loss", loss());

    let group = Group::new("gone");
    let sleeper = group.start(&["sleep", "600"], None);
    let target = bench.resolve(group.spec());
    drop(sleeper);
    fs::remove_dir(&group.directory).expect("empty");
    refused(&target, "pause", json!({}));
    refused(&target, "loss", loss());
    fs::create_dir(&group.directory).expect("another");
    let _other = group.start(&["sleep", "600"], None);
    refused(&target, "pause", json!({}));
    refused(&target, "loss", loss());
    refused(&target, "kill", json!({}));
    assert!(!group.is_frozen() && cgroup::processes(&cgroup::at(&group.directory).expect("there")).len() == 1);

    let pair = Pair::new();
    let target = bench.resolve(interface(&pair.a));
    replace_wire(&pair, None);
    refused(&target, "loss", loss());
    let target = bench.resolve(interface(&pair.a));
    stage::delete_netns(&pair.a.name).expect("deleted");
    refused(&target, "loss", loss());
    bench.ends_clean(&before, &[], &[]);
}

pub fn a_namespace_that_is_deleted_under_a_fault_does_not_block_its_end() {
    let pair = Pair::new();
    let bench = Bench::new();
    let latency = fault("latency", json!({"delay": "20ms"}));
    let injected = bench.agent.inject(&bench.resolve(pair.a.spec()), &latency, LONG).expect("injected");
    assert!(hears(&pair, B4));
    stage::delete_netns(&pair.a.name).expect("deleted");
    told(bench.agent.revert(injected.id), Effect::Effective, "");
    assert_eq!(bench.agent.stop().left_over, [] as [String; 0]);
}

pub fn the_rule_too_many_is_an_error_with_the_limit_and_the_others_go_on() {
    let pair = Pair::new();
    let before = Snapshot::take(&pair.names()).expect("a snapshot");
    let bench = Bench::new();
    let target = bench.resolve(pair.a.spec());
    // A loss of the packets to an address of nobody, so that all of them can be in force.
    let loss = fault("loss", json!({"percent": "100%", "peers": ["192.0.2.1"]}));
    let mut held = 0;
    let error = loop {
        match bench.agent.inject(&target, &loss, LONG) {
            Ok(_) => held += 1,
            Err(error) => break error.to_string(),
        }
        assert!(held <= 64, "no limit was met");
    };
    eprintln!("{error}");
    assert_eq!(held, 64);
    assert!(error.contains("64") && error.contains("end a fault"), "{error}");
    assert_eq!(bench.agent.receipts().len(), 64, "the others are in force");
    assert!(hears(&pair, B4));
    bench.ends_clean(&before, &pair.names(), &[]);
}

pub fn a_namespace_with_more_interfaces_than_delay_lines_is_an_error_with_the_limit_and_nothing_is_done() {
    let netns = Netns::new("many");
    for n in 0..17 {
        netns.must(&format!("ip link add d{n} type veth peer name e{n}"));
    }
    let before = Snapshot::take(std::slice::from_ref(&netns.name)).expect("a snapshot");
    let bench = Bench::new();
    let latency = fault("latency", json!({"delay": "20ms"}));
    let error = bench.agent.inject(&bench.resolve(netns.spec()), &latency, LONG).expect_err("too many").to_string();
    eprintln!("{error}");
    assert!(error.contains("32 delay lines"), "{error}");
    assert!(!netns.has_tap(), "nothing is left half done");
    let loss = fault("loss", json!({"percent": "10%"}));
    bench.agent.inject(&bench.resolve(netns.spec()), &loss, LONG).expect("what needs no line is in force");
    bench.ends_clean(&before, std::slice::from_ref(&netns.name), &[]);
}
