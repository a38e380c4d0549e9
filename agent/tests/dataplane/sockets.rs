//! Faults on the sockets of a cgroup or a process that shares its namespace: the neighbour must not move.

use std::{
    io::{Read, Write},
    net::{SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use firedrill_agent::dataplane::{DataPlane, Direction, RuleSpec, Tag, monotonic_ns};

use crate::{
    child::{Cgroup, Peer},
    support::{Netns, delay_ms, drop_share, needs_root, slack_ms},
};

/// A namespace whose loopback is under a data plane, and where two other processes live.
struct Street {
    netns: Netns,
    plane: DataPlane,
    target: Peer,
    neighbour: Peer,
}

impl Street {
    fn new() -> Self {
        let netns = Netns::new();
        netns.allow_loopback_delay();
        let mut plane = netns.data_plane();
        let lo = netns.ifindex("lo");
        plane.attach(lo, "lo", Direction::Egress).unwrap();
        plane.attach(lo, "lo", Direction::Ingress).unwrap();
        plane.delay_line_start(lo, Direction::Egress).unwrap();
        let (target, neighbour) = (Peer::start(&netns), Peer::start(&netns));
        Self { netns, plane, target, neighbour }
    }

    fn delay(&mut self, tag: Tag) {
        self.plane.add_rule(RuleSpec { tag: Some(tag), ..delay_ms(50, 0) }).unwrap();
    }

    /// The target's datagrams take 50 ms, the neighbour's do not.
    fn only_the_target_is_slow(&mut self) {
        let receiver = self.netns.udp("127.0.0.1:0");
        let slow = on_the_way_ms(&mut self.target, &receiver);
        let quick = on_the_way_ms(&mut self.neighbour, &receiver);
        assert!((50.0..50.0 + slack_ms()).contains(&slow), "the target: {slow} ms");
        assert!(quick < slack_ms(), "the neighbour: {quick} ms");
    }
}

/// The time on the way of what a peer sends: the least, which other load on the machine does not move.
fn on_the_way_ms(peer: &mut Peer, receiver: &UdpSocket) -> f64 {
    const COUNT: usize = 30;
    let target = receiver.local_addr().unwrap();
    let mut ms = Vec::new();
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| peer.ask(&format!("send {target} {COUNT}")));
        let mut bytes = [0; 8];
        for _ in 0..COUNT {
            receiver.recv(&mut bytes).expect("nothing is lost");
            ms.push((monotonic_ns() - u64::from_ne_bytes(bytes)) as f64 / 1e6);
        }
        sending.join().unwrap();
    });
    ms.into_iter().fold(f64::MAX, f64::min)
}

/// Connects to a peer's server, and gives the time of a question and its answer.
fn answer_ms(netns: &Netns, server: &str) -> f64 {
    let mut stream = netns.connect(server.parse::<SocketAddr>().unwrap()).unwrap();
    let mut best = f64::MAX;
    for _ in 0..3 {
        let start = Instant::now();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    best
}

#[test]
fn new_sockets_of_a_cgroup_are_slow_and_the_neighbour_is_not() {
    needs_root!();
    let cgroup = Cgroup::new();
    let mut street = Street::new();
    cgroup.add(&street.target);
    let tag = street.plane.allocate_tag();
    street.plane.tag_cgroup(tag, &cgroup.path).unwrap();
    street.delay(tag);
    street.target.ask("open");
    street.neighbour.ask("open");
    street.only_the_target_is_slow();
}

#[test]
fn existing_sockets_are_found_by_a_scan_and_only_once() {
    needs_root!();
    let mut street = Street::new();
    street.target.ask("open");
    street.neighbour.ask("open");
    let tag = street.plane.allocate_tag();
    street.delay(tag);
    let pid = street.target.pid();
    let first = street.plane.rescan(tag, &[pid]).unwrap();
    assert_eq!((first.tagged, first.sockets), (1, 1));
    street.only_the_target_is_slow();
    let second = street.plane.rescan(tag, &[pid]).unwrap();
    assert_eq!((second.tagged, second.sockets), (0, 1));
    street.target.ask("open");
    assert_eq!(street.plane.rescan(tag, &[pid]).unwrap().tagged, 1, "a later socket is found by the next scan");
    street.only_the_target_is_slow();
    assert_eq!(street.plane.rescan(tag, &[u32::MAX / 2]).unwrap().sockets, 0, "a process that has ended has none");
}

#[test]
fn two_processes_of_one_cgroup_can_be_told_apart() {
    needs_root!();
    let cgroup = Cgroup::new();
    let mut street = Street::new();
    cgroup.add(&street.target);
    cgroup.add(&street.neighbour);
    if !street.plane.tags_new_sockets_of_processes() {
        eprintln!("UNSUPPORTED: this kernel does not say which process makes a socket");
        return;
    }
    let tag = street.plane.allocate_tag();
    let pid = street.target.pid();
    street.plane.tag_process(tag, pid, &cgroup.path).unwrap();
    street.delay(tag);
    street.target.ask("open");
    street.neighbour.ask("open");
    street.only_the_target_is_slow();
    street.plane.release_tag(tag).unwrap();
    street.plane.release_tag(tag).unwrap();
    street.target.ask("open");
    let receiver = street.netns.udp("127.0.0.1:0");
    assert!(on_the_way_ms(&mut street.target, &receiver) < slack_ms(), "a new socket after the end has no tag");
}

#[test]
fn accepted_connections_inherit_from_the_listener() {
    needs_root!();
    let cgroup = Cgroup::new();
    let mut street = Street::new();
    cgroup.add(&street.target);
    let tag = street.plane.allocate_tag();
    // One listener is there before, one comes after.
    let existing = street.target.ask("echo");
    street.plane.rescan(tag, &[street.target.pid()]).unwrap();
    street.plane.tag_cgroup(tag, &cgroup.path).unwrap();
    let new = street.target.ask("echo");
    let other = street.neighbour.ask("echo");
    street.delay(tag);
    for server in [&existing, &new] {
        let ms = answer_ms(&street.netns, server);
        assert!((50.0..50.0 + slack_ms()).contains(&ms), "{ms}: the answers are slow, the questions are not");
    }
    let ms = answer_ms(&street.netns, &other);
    assert!(ms < slack_ms(), "{ms}");
}

#[test]
fn an_established_connection_of_a_process_becomes_slow() {
    needs_root!();
    let mut street = Street::new();
    let server = street.target.ask("echo");
    let mut stream = street.netns.connect(server.parse().unwrap()).unwrap();
    let mut ask = || {
        let start = Instant::now();
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
        start.elapsed()
    };
    assert!(ask() < Duration::from_millis(20));
    let tag = street.plane.allocate_tag();
    let found = street.plane.rescan(tag, &[street.target.pid()]).unwrap();
    assert_eq!(found.tagged, 2, "the listener and the connection");
    street.delay(tag);
    assert!(ask() >= Duration::from_millis(50));
}

#[test]
fn a_listener_that_a_process_shares_with_others_is_spared() {
    needs_root!();
    let cgroup = Cgroup::new();
    let netns = Netns::new();
    let mut plane = netns.data_plane();
    let listener = netns.listen("127.0.0.1:0");
    let peer = Peer::start_with(&netns, OwnedFd::from(listener.try_clone().unwrap()).into());
    cgroup.add(&peer);
    let scan = |plane: &mut DataPlane, tag| plane.rescan(tag, &[peer.pid()]).unwrap();
    let process = plane.allocate_tag();
    plane.tag_process(process, peer.pid(), &cgroup.path).unwrap();
    let spared = scan(&mut plane, process);
    assert_eq!((spared.tagged, spared.shared_listeners), (0, 1), "this process has it open, too");
    let whole = plane.allocate_tag();
    plane.tag_cgroup(whole, &cgroup.path).unwrap();
    let found = scan(&mut plane, whole);
    assert_eq!((found.tagged, found.shared_listeners), (1, 0), "a unit's listener may come from its manager");
    drop(listener);
    let other = plane.allocate_tag();
    assert_eq!(scan(&mut plane, other).tagged, 1, "nobody else has it any more");
}

#[test]
fn what_arrives_for_a_tagged_socket_can_be_dropped_and_the_neighbours_is_not() {
    needs_root!();
    let cgroup = Cgroup::new();
    let mut street = Street::new();
    cgroup.add(&street.target);
    let tag = street.plane.allocate_tag();
    street.plane.tag_cgroup(tag, &cgroup.path).unwrap();
    let spec = RuleSpec { egress: false, ingress: true, tag: Some(tag), ..drop_share(1.0) };
    let rule = street.plane.add_rule(spec).unwrap();
    let (target, neighbour) = (street.target.ask("receive"), street.neighbour.ask("receive"));
    let sender = street.netns.udp("127.0.0.1:0");
    for _ in 0..20 {
        sender.send_to(b"12345678", &target).unwrap();
        sender.send_to(b"12345678", &neighbour).unwrap();
    }
    assert_eq!(street.target.ask("count"), "0");
    assert_eq!(street.neighbour.ask("count"), "20");
    assert_eq!(street.plane.counters(rule).unwrap().dropped, 20);
    let server = street.target.ask("echo").parse().unwrap();
    let result = street.netns.within(|| std::net::TcpStream::connect_timeout(&server, Duration::from_millis(300)));
    assert!(result.is_err(), "a new connection does not come through either");
}

#[test]
fn tags_do_not_run_out_and_none_is_given_twice() {
    needs_root!();
    let netns = Netns::new();
    let mut plane = netns.data_plane();
    let mut given = std::collections::HashSet::new();
    for _ in 0..1000 {
        let tag = plane.allocate_tag();
        assert!(given.insert(tag), "{tag:?} a second time");
        plane.release_tag(tag).unwrap();
    }
}
