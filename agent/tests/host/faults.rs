//! Network faults end to end: from a target's name to a receipt, and nothing left.

use std::fs;
use std::time::Duration;

use firedrill_agent::host::{self, netns, wait_until};
use firedrill_agent::snapshot::Snapshot;
use firedrill_agent::undo::Undo;
use firedrill_model::change::{Change, Way};
use firedrill_model::receipt::{Effect, Measured, PacketCount, Receipt};
use serde_json::json;

use crate::support::{B4, Bench, Group, LONG, Netns, Pair, Process, SOON, eventually, fault, port};

fn packets(receipt: &Receipt) -> PacketCount {
    let mut counts =
        receipt.measured.iter().filter_map(|m| if let Measured::Packets(count) = m { Some(count) } else { None });
    counts.next().cloned().expect("packets were counted")
}

/// Milliseconds, or more than any test waits.
fn ms(time: Option<Duration>) -> f64 {
    time.map_or(f64::INFINITY, |t| t.as_secs_f64() * 1e3)
}

pub fn thirty_percent_loss_on_a_namespace_are_thirty_percent() {
    let pair = Pair::new();
    let before = Snapshot::take(&pair.names()).expect("a snapshot");
    let bench = Bench::new();
    let loss = fault("loss", json!({"percent": "30%"}));
    let injected = bench.agent.inject(&bench.resolve(pair.a.spec()), &loss, LONG).expect("injected");
    assert!(matches!(bench.agent.receipts()[0].1.effect, Effect::ArmedNoTraffic), "nothing came by yet");
    const SENT: u32 = 400;
    let output = pair.a.run(&format!("ping -q -c {SENT} -i 0.002 -W 1 {B4}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let word_before = |mark: &str| -> u32 {
        let mut words = said.split(mark).next().expect("text").split_whitespace();
        words.next_back().and_then(|w| w.parse().ok()).expect("a number")
    };
    assert!(!said.contains("error"), "the sender sees none: {said}");
    assert_eq!(word_before(" packets transmitted"), SENT);
    let lost = SENT - word_before(" received");
    // Five standard deviations.
    let near = |share: f64, n: f64| (share - 0.3).abs() < 5.0 * (0.3 * 0.7 / n).sqrt();
    assert!(near(f64::from(lost) / f64::from(SENT), f64::from(SENT)), "{lost} of {SENT}");
    let ended = bench.agent.revert(injected.id).expect("in force");
    let receipt = ended.receipt.expect("a receipt");
    eprintln!("{}", receipt.says);
    assert_eq!(receipt.effect, Effect::Effective);
    let how = if host::facts().tcx { "detached" } else { "filters removed" };
    assert!(ended.changes.iter().any(|c| c.note == how), "{:?}", ended.changes);
    let count = packets(&receipt);
    assert!(count.matched >= u64::from(SENT) && count.dropped >= u64::from(lost), "{count:?}, {lost} lost");
    assert!(near(count.dropped as f64 / count.matched as f64, count.matched as f64), "{count:?}");
    let healthy = pair.a.must(&format!("ping -q -c 50 -i 0.002 -W 1 {B4}"));
    assert!(healthy.contains(" 0% packet loss"), "{healthy}");
    bench.ends_clean(&before, &pair.names(), &[]);
}

pub fn fifty_ms_on_one_process_of_a_shared_loopback_leave_its_neighbour_alone() {
    let (group, netns) = (Group::new("shared"), Netns::new("shared"));
    let (slow_port, fast_port) = (port(), port());
    // Both in one group and one namespace: only their sockets tell them apart.
    let slow = group.server(&netns.name, slow_port);
    let _fast = group.server(&netns.name, fast_port);
    netns.wait_for(slow_port);
    netns.wait_for(fast_port);
    let name = std::slice::from_ref(&netns.name);
    let before = Snapshot::take(name).expect("a snapshot");
    let bench = Bench::new();
    let latency = fault("latency", json!({"delay": "50ms"}));
    let injected = bench.agent.inject(&bench.resolve(slow.spec()), &latency, LONG).expect("injected");
    for address in ["127.0.0.1", "::1"] {
        let times = |port| (0..5).map(|_| ms(netns.round_trip(address, port))).collect::<Vec<_>>();
        let (delayed, neighbour) = (times(slow_port), times(fast_port));
        eprintln!("{address}: {delayed:.2?} ms, its neighbour {neighbour:.2?} ms");
        assert!(delayed.iter().all(|time| *time >= 50.0), "{address}: {delayed:?}");
        // A busy machine may be late once, but not each time.
        assert!(delayed.iter().any(|time| *time < 56.0), "{address}: {delayed:?}");
        assert!(neighbour.iter().any(|time| *time < 5.0), "{address}: {neighbour:?}");
    }
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!(receipt.effect, Effect::Effective, "{receipt:?}");
    let count = packets(&receipt);
    assert_eq!((count.matched, count.delayed, count.applied.count), (10, 10, 10), "{count:?}");
    let mean = count.applied.mean().expect("measured").0;
    assert!((Duration::from_millis(48)..Duration::from_millis(80)).contains(&mean), "{mean:?}");
    assert!(ms(netns.round_trip("127.0.0.1", slow_port)) < 20.0);
    bench.ends_clean(&before, name, &[&group.path]);
}

pub fn a_ramp_changes_its_rule_step_by_step_and_never_takes_it_away() {
    let (netns, group) = (Netns::new("n"), Group::new("g"));
    let port = port();
    let server = group.server(&netns.name, port);
    netns.wait_for(port);
    let bench = Bench::new();
    let ramp = json!({"ramp": {"from": "20ms", "to": "100ms", "over": "1s", "steps": 2}});
    let injected = bench
        .agent
        .inject(&bench.resolve(server.spec()), &fault("latency", json!({"delay": ramp})), LONG)
        .expect("injected");
    let steps = || packets(&bench.agent.receipts()[0].1).steps.len();
    let mut trips = Vec::new();
    eventually("both steps were made", || {
        trips.push(ms(netns.round_trip("127.0.0.1", port)));
        steps() == 2
    });
    let last = ms(netns.round_trip("127.0.0.1", port));
    eprintln!("{trips:.1?}, then {last:.1} ms");
    assert!(trips.iter().all(|trip| *trip >= 20.0), "it was in force all the time: {trips:?}");
    assert!(last >= 100.0, "{last}");
    let receipt = bench.agent.revert(injected.id).and_then(|ended| ended.receipt).expect("a receipt");
    assert_eq!(receipt.effect, Effect::Effective, "{}", receipt.says);
    let line = |what: &str| receipt.lines.iter().find(|line| line.what == what).expect("a line").clone();
    assert_eq!((line("steps").applied.as_str(), line("delay after 500ms").requested.as_str()), ("2", "60ms"));
    let first = packets(&receipt).steps[0];
    let mean = first.delays_ns as f64 / first.delays as f64 / 1e6;
    assert!((20.0..100.0).contains(&mean), "not at its greatest from the start: {mean} ms");
    assert!(ms(netns.round_trip("127.0.0.1", port)) < 100.0, "it is over");
    assert!(bench.agent.stop().left_over.is_empty());
}

pub fn a_partitioned_group_hears_nothing_and_its_neighbour_everything() {
    let (cut_off, other, netns) = (Group::new("cut"), Group::new("whole"), Netns::new("parted"));
    let (cut_port, other_port) = (port(), port());
    let _servers = [cut_off.server(&netns.name, cut_port), other.server(&netns.name, other_port)];
    netns.wait_for(cut_port);
    netns.wait_for(other_port);
    let name = std::slice::from_ref(&netns.name);
    let before = Snapshot::take(name).expect("a snapshot");
    let bench = Bench::new();
    let partition = fault("partition", json!({}));
    let injected = bench.agent.inject(&bench.resolve(cut_off.spec()), &partition, LONG).expect("injected");
    for address in ["127.0.0.1", "::1"] {
        assert_eq!(netns.round_trip(address, cut_port), None, "{address}");
        assert!(netns.round_trip(address, other_port).is_some(), "{address}");
    }
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!(receipt.effect, Effect::Effective, "{receipt:?}");
    assert!(netns.round_trip("127.0.0.1", cut_port).is_some(), "healed");
    bench.ends_clean(&before, name, &[&cut_off.path, &other.path]);
}

pub fn two_faults_on_one_namespace_share_what_is_attached() {
    let (pair, group) = (Pair::new(), Group::new("share"));
    let port = port();
    let server = group.server(&pair.a.name, port);
    pair.a.wait_for(port);
    let before = Snapshot::take(&pair.names()).expect("a snapshot");
    let bench = Bench::new();
    let delay = fault("latency", json!({"delay": "20ms"}));
    let first = bench.agent.inject(&bench.resolve(pair.a.spec()), &delay, LONG).expect("the namespace");
    // The second one finds the namespace by a process in it.
    let second = bench.agent.inject(&bench.resolve(server.spec()), &delay, LONG).expect("a process in it");
    let attached = |list: &[firedrill_agent::engine::AppliedChange]| -> Vec<String> {
        let names = list.iter().filter_map(|c| match &c.what {
            Change::Attach { interface, .. } => Some(interface.name.clone()),
            _ => None,
        });
        names.collect()
    };
    assert_eq!((attached(&first.applied), attached(&second.applied)), (vec!["va".into()], vec!["lo".into()]));
    // The shortest of three: a busy machine may be late.
    let round_trip = |ns: &Netns, address: &str| {
        (0..3).map(|_| ms(ns.round_trip(address, port))).min_by(f64::total_cmp).unwrap_or(f64::INFINITY)
    };
    // Through va both rules apply to what the server sends, one after the other.
    let both = round_trip(&pair.b, "10.78.0.1");
    assert!((40.0..100.0).contains(&both), "{both}");
    bench.agent.revert(first.id).expect("in force");
    let one = round_trip(&pair.b, "10.78.0.1");
    assert!((20.0..40.0).contains(&one), "the second still has its line at va: {one}");
    bench.agent.revert(second.id).expect("in force");
    assert!(round_trip(&pair.b, "10.78.0.1") < 15.0);
    bench.ends_clean(&before, &pair.names(), &[&group.path]);
}

pub fn a_second_delay_does_not_take_the_first_ones_tap_for_an_interface() {
    let pair = Pair::new();
    let bench = Bench::new();
    let delay = fault("latency", json!({"delay": "20ms"}));
    bench.agent.inject(&bench.resolve(pair.a.spec()), &delay, LONG).expect("the first");
    assert!(pair.a.has_tap());
    let found = bench.resolve(pair.a.spec());
    let names: Vec<&str> = found.netns.iter().flat_map(|n| &n.interfaces).map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["va"]);
    bench.agent.inject(&found, &fault("loss", json!({"percent": "1%"})), LONG).expect("the second");
    assert!(bench.agent.stop().left_over.is_empty());
    assert!(wait_until(SOON, || !pair.a.has_tap()));
}

pub fn parameters_are_restored_though_the_process_that_named_the_namespace_has_ended() {
    let (group, named) = (Group::new("nameless"), Netns::new("nameless"));
    let (victim, witness) =
        (group.start(&["sleep", "1000"], Some(&named.name)), group.start(&["sleep", "1000"], Some(&named.name)));
    // From here on only its processes lead to it.
    drop(named);
    let namespace = netns::of_process(witness.pid()).expect("the namespace");
    let parameter = || {
        let path = "/proc/sys/net/ipv4/conf/lo/route_localnet";
        netns::within(&namespace, || fs::read_to_string(path)).expect("entered").expect("read").trim().to_owned()
    };
    let bench = Bench::new();
    let found = bench.resolve(victim.spec());
    assert_eq!(found.netns.as_ref().map(|n| n.netns.path.clone()), Some(format!("/proc/{}/ns/net", victim.pid())));
    let latency = fault("latency", json!({"delay": "50ms"}));
    let injected = bench.agent.inject(&found, &latency, LONG).expect("injected");
    assert_eq!(parameter(), "1");
    drop::<Process>(victim);
    let ended = bench.agent.revert(injected.id).expect("in force");
    assert!(ended.changes.iter().all(|c| c.error.is_none()), "{:?}", ended.changes);
    assert_eq!(parameter(), "0");
    assert!(bench.agent.stop().left_over.is_empty());
}

pub fn a_program_that_is_still_attached_is_not_called_gone() {
    let (pair, bench) = (Pair::new(), Bench::new());
    let found = bench.resolve(pair.a.spec());
    let interface = found.netns.as_ref().expect("a namespace").interfaces[0].clone();
    let inverse =
        Undo::Unlinked { netns: pair.a.reference(), index: interface.index, name: interface.name, way: Way::Egress };
    if !bench.agent.host().tcx {
        println!("\nUNSUPPORTED: this kernel has no tcx links");
        return;
    }
    assert_eq!(inverse.revert().expect("nothing is there"), "detached");
    let loss = fault("loss", json!({"percent": "1%"}));
    bench.agent.inject(&found, &loss, LONG).expect("injected");
    let error = inverse.revert().expect_err("it is in force").to_string();
    assert!(error.contains("still there") && error.contains("bpftool"), "{error}");
    assert!(bench.agent.stop().left_over.is_empty());
    assert_eq!(inverse.revert().expect("now it is gone"), "detached");
}
