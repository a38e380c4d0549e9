//! Others' queueing disciplines, filters, programs and connections: as they were, and undisturbed.

use std::time::Duration;

use aya::programs::LinkOrder;
use aya::programs::tc::TcAttachType;
use firedrill_agent::agent::{Agent, Options};
use firedrill_agent::dataplane::{AttachMode, kernel_support};
use firedrill_agent::host::wait_until;
use firedrill_agent::snapshot::{Difference, Snapshot};
use firedrill_model::fault::Fault;
use firedrill_model::receipt::Effect;
use serde_json::json;

use crate::crash::Doomed;
use crate::strangers::{Bystanders, Crossroads, SERVER, STRANGER, Stranger, VICTIM, classic_filter};
use crate::support::{
    Bench, Folder, Group, LONG, Netns, Pair, SOON, assert_unchanged, eventually, fault, in_guest, options, port, target,
};

/// The ways of attaching that this kernel has.
fn modes() -> Vec<AttachMode> {
    if kernel_support().tcx { vec![AttachMode::Tcx, AttachMode::Clsact] } else { vec![AttachMode::Clsact] }
}

/// Each network fault, on datagrams to one port only.
fn faults() -> [(&'static str, Fault); 3] {
    let of = |name, mut parameters: serde_json::Value| {
        parameters["protocol"] = json!("udp");
        parameters["peer_ports"] = json!([VICTIM]);
        (name, fault(name, parameters))
    };
    [of("latency", json!({"delay": "60ms"})), of("loss", json!({"percent": "100%"})), of("partition", json!({}))]
}

fn bench(mode: AttachMode) -> Bench {
    let folder = Folder::new();
    let options = Options { attach: Some(mode), ..options(&folder.directories(), "a test") };
    let agent = Agent::start(options).expect("an agent");
    Bench { agent, folder }
}

/// What differs in these namespaces, and of strangers' programs anywhere.
fn difference(before: &Snapshot, names: &[String]) -> Vec<Difference> {
    let mut all = before.diff(&Snapshot::take(names).expect("a snapshot"));
    all.retain(|d| names.contains(&d.line.place) || d.line.what.contains(STRANGER));
    all
}

fn lines(differences: &[Difference]) -> Vec<String> {
    differences.iter().map(ToString::to_string).collect()
}

pub fn what_others_have_on_a_router_is_as_before_and_their_traffic_is_undisturbed() {
    for mode in modes() {
        let roads = Crossroads::new();
        if mode == AttachMode::Clsact {
            roads.hook_everywhere();
        }
        let _theirs: Vec<Stranger> = if kernel_support().tcx {
            [("rs", TcAttachType::Egress), ("rs", TcAttachType::Ingress), ("rc", TcAttachType::Egress)]
                .map(|(interface, hook)| Stranger::at_interface(&roads.router, interface, hook, LinkOrder::first()))
                .into()
        } else {
            Vec::new()
        };
        let bystanders = Bystanders::start(&roads);
        for (name, fault) in faults() {
            comes_and_goes(&roads, mode, name, &fault);
        }
        let [datagrams, connection] = bystanders.end();
        eprintln!("{mode:?}: {} datagrams and {} blocks of one connection passed", datagrams.rounds, connection.rounds);
        assert!(datagrams.trouble.is_empty(), "{mode:?}: {:?}", datagrams.trouble);
        assert!(connection.trouble.is_empty(), "{mode:?}: {:?}", connection.trouble);
        assert!(datagrams.rounds > 100 && connection.rounds > 100);
    }
}

/// One fault on datagrams to the victim's port.
fn comes_and_goes(roads: &Crossroads, mode: AttachMode, name: &str, fault: &Fault) {
    let names = roads.names();
    let before = Snapshot::take(&names).expect("a snapshot");
    let bench = bench(mode);
    let healthy = roads.client.round_trip(SERVER, VICTIM);
    assert!(healthy.is_some_and(|t| t < Duration::from_millis(60)), "{mode:?} {name}: {healthy:?} before");
    let injected = bench.agent.inject(&bench.resolve(roads.router.spec()), fault, LONG).expect("injected");
    let counted = roads.counted();
    let hurt: Vec<_> = (0..3).map(|_| roads.client.round_trip(SERVER, VICTIM)).collect();
    if name == "latency" {
        assert!(hurt.iter().all(|t| t.is_some_and(|t| t >= Duration::from_millis(60))), "{mode:?}: {hurt:?}");
    } else {
        assert_eq!(hurt, [None; 3], "{mode:?} {name}");
    }
    let during = difference(&before, &names);
    assert!(during.iter().any(|d| d.line.what.contains("fdrill_")), "{mode:?} {name}: {:#?}", lines(&during));
    // Their place in the chain is behind ours as long as ours is there; all else is as it was.
    let moved = |d: &Difference| d.line.kind == "tcx program" && d.line.what.contains(STRANGER);
    assert!(during.iter().all(|d| d.appeared || moved(d)), "{mode:?} {name}: {:#?}", lines(&during));
    // A datagram that was lost is waited for before the next is sent.
    eventually("all of theirs count", || roads.counted().iter().zip(counted).all(|(now, then)| *now > then));
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!(receipt.effect, Effect::Effective, "{mode:?} {name}: {receipt:?}");
    bench.ends_clean(&before, &names, &[STRANGER]);
}

/// The kernel stops an interface's queues for a moment when a clsact hook is added or removed: what is sent then is lost.
pub fn a_hook_that_must_be_added_costs_others_no_more_than_a_moment() {
    let roads = Crossroads::new();
    let bystanders = Bystanders::start(&roads);
    for (name, fault) in faults() {
        comes_and_goes(&roads, AttachMode::Clsact, name, &fault);
    }
    let [datagrams, connection] = bystanders.end();
    let lost = datagrams.trouble.len();
    eprintln!("{lost} of {} datagrams were lost while a hook was added or removed", datagrams.rounds);
    // They are sent one after the other, and their way leads through one such interface.
    assert!(lost <= 2 * faults().len(), "{:?}", datagrams.trouble);
    assert!(connection.trouble.is_empty(), "{:?}", connection.trouble);
}

pub fn programs_of_others_at_a_group_are_as_before() {
    let (group, netns) = (Group::new("shared"), Netns::new("shared"));
    let _theirs = [Stranger::at_sockets_of(&group), Stranger::at_packets_of(&group)];
    let port = port();
    let _server = group.server(&netns.name, port);
    netns.wait_for(port);
    let programs = || -> Vec<String> {
        let now = Snapshot::take(&[]).expect("a snapshot");
        let here = now.lines().filter(|l| l.kind == "cgroup program" && l.what.contains(&group.path));
        here.map(|l| l.what.clone()).collect()
    };
    let before = programs();
    assert_eq!(before.len(), 2, "{before:?}");
    for mode in modes() {
        for fault in [fault("latency", json!({"delay": "60ms"})), fault("partition", json!({}))] {
            let bench = bench(mode);
            let injected = bench.agent.inject(&bench.resolve(group.spec()), &fault, LONG).expect("injected");
            let hurt = netns.round_trip("127.0.0.1", port);
            assert!(hurt.is_none_or(|t| t >= Duration::from_millis(60)), "{mode:?}: {hurt:?}");
            assert!(programs().iter().any(|p| p.contains("fdrill_")), "{mode:?}: {:?}", programs());
            // Somebody comes while we are there.
            let late = Stranger::at_sockets_of(&group);
            bench.agent.revert(injected.id).expect("in force");
            let ours = |list: &[String]| list.iter().any(|p| p.contains("fdrill_"));
            assert!(wait_until(SOON, || !ours(&programs())), "{mode:?}: {:?}", programs());
            assert_eq!(programs().len(), 3, "{mode:?}: {:?}", programs());
            assert!(programs()[..].iter().all(|p| p.contains(STRANGER)), "{mode:?}: {:?}", programs());
            drop(late);
            assert!(bench.agent.stop().left_over.is_empty());
            assert!(wait_until(SOON, || programs() == before), "{mode:?}: {:?}, before {before:?}", programs());
            assert!(netns.round_trip("127.0.0.1", port).is_some());
        }
    }
}

/// How a fault ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Revert,
    Kill,
}

pub fn what_others_attach_while_a_fault_is_in_force_stays_when_it_ends() {
    for mode in modes() {
        for end in [End::Revert, End::Kill] {
            others_come_meanwhile(mode, end);
        }
    }
}

fn others_come_meanwhile(mode: AttachMode, end: End) {
    let (pair, folder) = (Pair::new(), Folder::new());
    let names = pair.names();
    let before = Snapshot::take(&names).expect("a snapshot");
    let latency = fault("latency", json!({"delay": "20ms", "direction": "both"}));
    let faults = vec![(target(pair.a.spec()), latency)];
    let mut doomed = Doomed::attached(&folder.directories(), faults, mode);

    // If there is a clsact hook now, it is ours: others use it.
    let had_hook = pair.a.must("tc qdisc show dev va").contains("clsact");
    assert_eq!(had_hook, mode == AttachMode::Clsact);
    if !had_hook {
        pair.a.must("tc qdisc add dev va clsact");
    }
    pair.a.must(
        "tc filter add dev va egress protocol ip prio 3 u32 match ip dport 9 0xffff action mirred egress mirror dev lo",
    );
    classic_filter(&pair.a, "va");
    let theirs: Vec<Stranger> = if kernel_support().tcx {
        let orders = [(TcAttachType::Egress, LinkOrder::first()), (TcAttachType::Ingress, LinkOrder::last())];
        orders.map(|(hook, order)| Stranger::at_interface(&pair.a, "va", hook, order)).into()
    } else {
        Vec::new()
    };
    let filters = || -> Vec<String> {
        let text = ["egress", "ingress"].map(|way| pair.a.must(&format!("tc filter show dev va {way}"))).concat();
        text.lines().filter(|l| l.contains("u32") || l.contains("bytecode")).map(str::to_owned).collect()
    };
    let their_filters = filters();
    assert!(their_filters.len() >= 2, "{their_filters:?}");

    match end {
        End::Revert => doomed.farewell(),
        End::Kill => {
            doomed.kill();
        }
    }
    let ours = |d: &Difference| d.line.what.contains("fdrill_") || d.line.what.starts_with("fdl");
    let limit = if in_guest() { 2 * SOON } else { SOON };
    assert!(
        wait_until(limit, || !difference(&before, &names).iter().any(ours)),
        "{mode:?} {end:?}: ours are left: {:#?}",
        lines(&difference(&before, &names))
    );
    let left = difference(&before, &names);
    assert!(left.iter().all(|d| d.appeared), "{mode:?} {end:?}: {:#?}", lines(&left));
    assert_eq!(filters(), their_filters, "{mode:?} {end:?}");
    let of = |kind: &str| left.iter().filter(|d| d.line.kind == kind).count();
    assert_eq!(of("qdisc"), 1, "the hook is theirs now: {:#?}", lines(&left));
    assert_eq!(of("tcx program"), theirs.len(), "{mode:?} {end:?}: {:#?}", lines(&left));
    assert!(pair.a.must(&format!("ping -q -c3 -i0.05 -W2 {}", crate::support::B4)).contains(" 0% packet loss"));
    drop(theirs);
    pair.a.must("tc qdisc del dev va clsact");
    assert_unchanged(&before, &names, &[]);
    assert!(!folder.directories().journal().exists(), "{mode:?} {end:?}");
}

/// Whatever of ours somebody takes away while a fault is in force: the end is clean, and the receipt says so.
pub fn what_somebody_takes_away_of_ours_is_told_and_the_end_is_clean() {
    let pair = Pair::new();
    let names = pair.names();
    let before = Snapshot::take(&names).expect("a snapshot");
    for (name, command) in [("loss", "tc qdisc del dev va clsact"), ("latency", "tc qdisc del dev va clsact")] {
        let bench = bench(AttachMode::Clsact);
        let parameters = if name == "loss" { json!({"percent": "100%"}) } else { json!({"delay": "20ms"}) };
        let found = bench.resolve(pair.a.spec());
        let injected = bench.agent.inject(&found, &fault(name, parameters), LONG).expect("injected");
        pair.a.run(&format!("ping -q -c2 -i0.1 -W1 {}", crate::support::B4));
        assert_eq!(bench.agent.receipts()[0].1.effect, Effect::Effective, "{:?}", bench.agent.receipts());
        pair.a.must(command);
        let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
        assert_eq!(receipt.effect, Effect::None, "{name}: {receipt:?}");
        assert!(receipt.says.contains("somebody removed our program from va egress"), "{}", receipt.says);
        bench.ends_clean(&before, &names, &[]);
    }
    // The TAP of a delay line: what it holds is lost, and after a second all passes.
    for mode in modes() {
        let bench = bench(mode);
        let found = bench.resolve(pair.a.spec());
        let delay = fault("latency", json!({"delay": "20ms"}));
        let injected = bench.agent.inject(&found, &delay, LONG).expect("injected");
        pair.a.must("ip link del fdl0");
        let passes = || pair.a.run(&format!("ping -q -c1 -W1 {}", crate::support::B4)).status.success();
        assert!(wait_until(SOON, passes), "{mode:?}: a line without its TAP lets everything pass");
        let ended = bench.agent.revert(injected.id).expect("in force");
        let receipt = ended.receipt.expect("a receipt");
        eprintln!("{mode:?}: {}", receipt.says);
        assert_ne!(receipt.effect, Effect::Effective, "{mode:?}: {receipt:?}");
        bench.ends_clean(&before, &names, &[]);
    }
}

/// Two faults at the two directions of one interface share its clsact hook: neither takes it from the other.
pub fn a_fault_leaves_the_other_direction_and_the_hook_to_another_one() {
    let pair = Pair::new();
    let names = pair.names();
    let before = Snapshot::take(&names).expect("a snapshot");
    let bench = bench(AttachMode::Clsact);
    let loss = |way| fault("loss", json!({"percent": "100%", "direction": way, "protocol": "icmp"}));
    let found = bench.resolve(pair.a.spec());
    let first = bench.agent.inject(&found, &loss("egress"), LONG).expect("injected");
    let second = bench.agent.inject(&found, &loss("ingress"), LONG).expect("injected");
    let passes = || pair.a.run(&format!("ping -q -c1 -W1 {}", crate::support::B4)).status.success();
    assert!(!passes());
    bench.agent.revert(first.id).expect("in force");
    assert!(!passes(), "what arrives is still lost");
    let receipt = bench.agent.revert(second.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!(receipt.effect, Effect::Effective, "{receipt:?}");
    assert!(passes());
    bench.ends_clean(&before, &names, &[]);
}
