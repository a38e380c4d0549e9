//! What is left behind, what others see, and what happens when the agent hangs or dies.

use std::time::{Duration, Instant};

use aya::programs::loaded_links;
use firedrill_agent::dataplane::{
    AttachMode, Attachment, DataPlane, Direction, RuleSpec, kernel_support, remove_clsact_filters,
};
use firedrill_agent::sys::bpf::link;
use nix::sys::signal::Signal;

use crate::{
    child::Peer,
    support::{
        A4, B4, Netns, Pair, address, assert_delayed, assert_undelayed, delay_ms, drop_share, needs_root, one_way,
    },
};

fn links() -> Vec<u32> {
    loaded_links().flatten().map(|link| link.id()).collect()
}

fn clean(netns: &Netns, ids: &[u32]) -> bool {
    let links = links();
    !netns.ip("link").contains("fdl") && ids.iter().all(|id| !links.contains(id))
}

#[test]
fn nothing_is_left_of_a_data_plane_that_was_killed() {
    needs_root!();
    let pair = Pair::new();
    let mut peer = Peer::start(&pair.a);
    let ids: Vec<u32> = peer.ask("hold").split_whitespace().map(|id| id.parse().unwrap()).collect();
    // One at the interface; that at the TAP is no link, and without tcx there are none.
    assert_eq!(ids.len(), if kernel_support().tcx { 1 } else { 0 });
    assert!(ids.iter().all(|id| links().contains(id)));
    assert!(pair.a.ip("link").contains("fdl0"));
    let (a, b) = (pair.a.udp(&address(A4, 0).to_string()), pair.b.udp(&address(B4, 0).to_string()));
    assert_delayed(&one_way(&a, &b, 20, Duration::from_millis(1)), 100.0, "before");
    peer.signal(Signal::SIGKILL);
    let start = Instant::now();
    while !clean(&pair.a, &ids) {
        assert!(start.elapsed() < Duration::from_secs(5), "links or a TAP are left");
    }
    eprintln!("clean {:?} after SIGKILL", start.elapsed());
    peer.wait();
    if !kernel_support().tcx {
        remove_clsact_filters(pair.a.fd(), pair.a.ifindex("va"), false).unwrap();
    }
    let after = one_way(&a, &b, 20, Duration::from_millis(1));
    assert_undelayed(&after, "after the kill");
}

#[test]
fn packets_pass_a_data_plane_that_hangs() {
    needs_root!();
    let pair = Pair::new();
    let mut peer = Peer::start(&pair.a);
    peer.ask("hold");
    let (a, b) = (pair.a.udp(&address(A4, 0).to_string()), pair.b.udp(&address(B4, 0).to_string()));
    peer.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(1200));
    let hung = one_way(&a, &b, 20, Duration::from_millis(1));
    assert_undelayed(&hung, "past a hung agent");
    peer.signal(Signal::SIGCONT);
    std::thread::sleep(Duration::from_millis(200));
    assert_delayed(&one_way(&a, &b, 20, Duration::from_millis(1)), 100.0, "when it runs again");
}

#[test]
fn dropping_a_data_plane_restores_the_interface() {
    needs_root!();
    let pair = Pair::new();
    let before = pair.a.ip("-details link");
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    plane.delay_line_start(va, Direction::Ingress).unwrap();
    plane.add_rule(delay_ms(10, 0)).unwrap();
    let ids = plane.link_ids();
    assert_eq!(ids.len(), if kernel_support().tcx { 2 } else { 0 });
    assert_eq!(plane.tap_names().len(), 2);
    plane.shut_down().unwrap();
    plane.shut_down().unwrap();
    assert!(clean(&pair.a, &ids));
    drop(plane);
    assert_eq!(pair.a.ip("-details link"), before);
}

#[test]
fn a_hook_is_free_at_once_although_somebody_else_has_its_link_open() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = pair.a.data_plane();
    let va = pair.a.ifindex("va");
    for _ in 0..2 {
        plane.attach(va, "va", Direction::Egress).unwrap();
        // As whoever lists the links of this host has it for a moment.
        let open: Vec<_> = plane.link_ids().into_iter().map(|id| link(id).unwrap()).collect();
        plane.detach(va, Direction::Egress).unwrap();
        plane.attach(va, "va", Direction::Egress).unwrap();
        plane.detach(va, Direction::Egress).unwrap();
        drop(open);
    }
}

#[test]
fn detaching_twice_and_from_a_vanished_interface_is_no_error() {
    needs_root!();
    let pair = Pair::new();
    let (mut plane, va) = pair.data_plane();
    plane.delay_line_start(va, Direction::Egress).unwrap();
    plane.add_rule(delay_ms(10, 0)).unwrap();
    plane.detach(va, Direction::Ingress).unwrap();
    plane.detach(va, Direction::Ingress).unwrap();
    pair.a.ip("link del va");
    plane.detach(va, Direction::Egress).unwrap();
    assert!(clean(&pair.a, &[]));
}

/// What another's program after ours sees: a second data plane, attached first, counts it.
fn the_next_program_sees_what_passes(mode: AttachMode) {
    let pair = Pair::new();
    let va = pair.a.ifindex("va");
    let udp = |spec: RuleSpec| RuleSpec { protocol: firedrill_agent::dataplane::Protocol::Udp, ..spec };
    let mut theirs = DataPlane::open_with(pair.a.fd(), mode).unwrap();
    theirs.attach(va, "va", Direction::Egress).unwrap();
    let seen = theirs.add_rule(udp(drop_share(0.0))).unwrap();
    let mut ours = DataPlane::open_with(pair.a.fd(), mode).unwrap();
    ours.attach(va, "va", Direction::Egress).unwrap();
    ours.delay_line_start(va, Direction::Egress).unwrap();
    let (a, b) = (pair.a.udp(&address(A4, 0).to_string()), pair.b.udp(&address(B4, 0).to_string()));
    one_way(&a, &b, 10, Duration::from_millis(1));
    assert_eq!(theirs.counters(seen).unwrap().matched, 10, "without a rule of ours");
    let delay = ours.add_rule(udp(delay_ms(5, 0))).unwrap();
    one_way(&a, &b, 10, Duration::from_millis(1));
    assert_eq!(theirs.counters(seen).unwrap().matched, 20, "a delayed packet is seen once, when it leaves");
    ours.remove_rule(delay).unwrap();
    ours.add_rule(udp(drop_share(1.0))).unwrap();
    b.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    one_way(&a, &b, 10, Duration::from_millis(1));
    assert_eq!(theirs.counters(seen).unwrap().matched, 20, "a lost packet is not");
}

#[test]
fn programs_after_ours_see_what_we_let_pass() {
    needs_root!();
    if !kernel_support().tcx {
        eprintln!("UNSUPPORTED: needs tcx (Linux 6.6)");
        return;
    }
    the_next_program_sees_what_passes(AttachMode::Tcx);
}

#[test]
fn filters_after_ours_see_what_we_let_pass() {
    needs_root!();
    let pair = Pair::new();
    let va = pair.a.ifindex("va");
    pair.a.run("tc qdisc add dev va clsact");
    // Of another's: mirrors what it sees to a device where it can be counted.
    pair.a.ip("link add sink type veth peer name drain");
    pair.a.ip("link set sink up");
    pair.a.ip("link set drain up");
    let add = pair.a.run(
        "tc filter add dev va egress protocol ip u32 match ip protocol 17 0xff action mirred egress mirror dev sink",
    );
    assert!(add.status.success(), "{}", String::from_utf8_lossy(&add.stderr));
    let mut plane = DataPlane::open_with(pair.a.fd(), AttachMode::Clsact).unwrap();
    let attached = plane.attach(va, "va", Direction::Egress).unwrap();
    assert_eq!(attached, Attachment::Clsact { created_qdisc: false });
    let (a, b) = (pair.a.udp(&address(A4, 0).to_string()), pair.b.udp(&address(B4, 0).to_string()));
    let seen = || {
        let text = String::from_utf8_lossy(&pair.a.run("tc -s filter show dev va egress").stdout).into_owned();
        let packets = text.split_whitespace().zip(text.split_whitespace().skip(1)).find(|(_, unit)| *unit == "pkt");
        packets.and_then(|(count, _)| count.parse::<u32>().ok()).unwrap_or_else(|| panic!("{text}"))
    };
    one_way(&a, &b, 10, Duration::from_millis(1));
    assert_eq!(seen(), 10);
    plane.add_rule(drop_share(1.0)).unwrap();
    b.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(one_way(&a, &b, 10, Duration::from_millis(1)).iter().all(Option::is_none));
    assert_eq!(seen(), 10, "ours comes first");
    drop(plane);
    let left = String::from_utf8_lossy(&pair.a.run("tc filter show dev va egress").stdout).into_owned();
    assert!(left.contains("u32") && !left.contains("fdrill"), "{left}");
    assert!(String::from_utf8_lossy(&pair.a.run("tc qdisc show dev va").stdout).contains("clsact"));
}

#[test]
fn the_old_way_of_attaching_loses_and_delays_as_well() {
    needs_root!();
    let pair = Pair::new();
    let va = pair.a.ifindex("va");
    let mut plane = DataPlane::open_with(pair.a.fd(), AttachMode::Clsact).unwrap();
    let attached = plane.attach(va, "va", Direction::Egress).unwrap();
    assert_eq!(attached, Attachment::Clsact { created_qdisc: true });
    assert_eq!(plane.attach(va, "va", Direction::Ingress).unwrap(), Attachment::Clsact { created_qdisc: false });
    plane.delay_line_start(va, Direction::Egress).unwrap();
    plane.delay_line_start(va, Direction::Ingress).unwrap();
    let (a, b) = (pair.a.udp(&address(A4, 0).to_string()), pair.b.udp(&address(B4, 0).to_string()));
    let rule = plane.add_rule(RuleSpec { ingress: true, ..delay_ms(20, 0) }).unwrap();
    for (from, to) in [(&a, &b), (&b, &a)] {
        assert_delayed(&one_way(from, to, 50, Duration::from_millis(1)), 20.0, "a filter");
    }
    plane.remove_rule(rule).unwrap();
    plane.add_rule(drop_share(1.0)).unwrap();
    b.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(one_way(&a, &b, 10, Duration::ZERO).iter().all(Option::is_none));
    plane.detach(va, Direction::Egress).unwrap();
    let qdiscs = || String::from_utf8_lossy(&pair.a.run("tc qdisc show dev va").stdout).into_owned();
    assert!(qdiscs().contains("clsact"), "ingress still needs it");
    plane.detach(va, Direction::Ingress).unwrap();
    assert!(!qdiscs().contains("clsact"), "it was ours");
}

#[test]
fn filters_of_a_dead_agent_are_removed_and_those_of_others_are_not() {
    needs_root!();
    let pair = Pair::new();
    let va = pair.a.ifindex("va");
    let mut plane = DataPlane::open_with(pair.a.fd(), AttachMode::Clsact).unwrap();
    plane.attach(va, "va", Direction::Egress).unwrap();
    plane.attach(va, "va", Direction::Ingress).unwrap();
    plane.add_rule(drop_share(1.0)).unwrap();
    // An agent that dies runs no destructor; this leaves what it would leave.
    std::mem::forget(plane);
    let filters =
        |hook| String::from_utf8_lossy(&pair.a.run(&format!("tc filter show dev va {hook}")).stdout).into_owned();
    assert!(filters("egress").contains("fdrill_egress"));
    let theirs =
        "tc filter add dev va ingress protocol ip u32 match ip protocol 17 0xff action mirred egress mirror dev lo";
    let added = pair.a.run(theirs);
    assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    for _ in 0..2 {
        remove_clsact_filters(pair.a.fd(), va, false).unwrap();
        assert!(!filters("egress").contains("fdrill"), "{}", filters("egress"));
        assert!(!filters("ingress").contains("fdrill"));
        assert!(filters("ingress").contains("u32"), "another's filter stays, and so does the qdisc");
    }
    pair.a.run("tc filter del dev va ingress");
    remove_clsact_filters(pair.a.fd(), va, true).unwrap();
    assert!(
        String::from_utf8_lossy(&pair.a.run("tc qdisc show dev va").stdout).contains("clsact"),
        "it was there before"
    );
    remove_clsact_filters(pair.a.fd(), va, false).unwrap();
    assert!(!String::from_utf8_lossy(&pair.a.run("tc qdisc show dev va").stdout).contains("clsact"));
    remove_clsact_filters(pair.a.fd(), 9999, false).unwrap();
    let (a, b) = (pair.a.udp(&address(A4, 0).to_string()), pair.b.udp(&address(B4, 0).to_string()));
    assert!(one_way(&a, &b, 10, Duration::ZERO).iter().all(Option::is_some));
}

#[test]
fn ours_comes_before_filters_with_a_low_number_or_is_refused() {
    needs_root!();
    let pair = Pair::new();
    let va = pair.a.ifindex("va");
    let tc = |words: &str| {
        let done = pair.a.run(&format!("tc {words}"));
        assert!(done.status.success(), "tc {words}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    };
    let theirs = |priority: u16| {
        format!(
            "filter add dev va egress protocol ip pref {priority} u32 match u32 0 0 action mirred egress mirror dev lo"
        )
    };
    // Theirs ends the search: what comes after it sees nothing.
    tc("qdisc add dev va clsact");
    tc(&theirs(3));
    let mut plane = DataPlane::open_with(pair.a.fd(), AttachMode::Clsact).unwrap();
    plane.attach(va, "va", Direction::Egress).unwrap();
    let rule = plane.add_rule(drop_share(1.0)).unwrap();
    let (a, b) = (pair.a.udp(&address(A4, 0).to_string()), pair.b.udp(&address(B4, 0).to_string()));
    b.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    one_way(&a, &b, 5, Duration::ZERO);
    assert!(plane.counters(rule).unwrap().dropped >= 5, "{}", tc("filter show dev va egress"));
    drop(plane);
    let shown = tc("filter show dev va egress");
    assert!(shown.contains("pref 3 u32") && !shown.contains("fdrill_"), "{shown}");

    tc("filter del dev va egress pref 3");
    tc(&theirs(1));
    let mut plane = DataPlane::open_with(pair.a.fd(), AttachMode::Clsact).unwrap();
    let refused = plane.attach(va, "va", Direction::Egress).unwrap_err();
    let why = format!("{refused}: {}", std::error::Error::source(&refused).unwrap());
    assert!(why.contains("u32") && why.contains("pref 2"), "{why}");
    plane.attach(va, "va", Direction::Ingress).unwrap();
    drop(plane);
    assert!(tc("filter show dev va egress").contains("pref 1 u32"));
    assert!(!tc("filter show dev va ingress").contains("fdrill_"));
}
