//! Faults on system calls: whose calls fail, and whose do not.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use firedrill_agent::calls::Calls;
use firedrill_agent::dataplane::monotonic_ns;
use firedrill_agent::host::wait_until;
use firedrill_agent::snapshot::Snapshot;
use firedrill_model::change::{Call, CallRule, Caller, Errno, Filter};
use firedrill_model::receipt::{CallCount, Effect, Measured, Receipt};
use firedrill_model::units::Percent;
use nix::libc;
use serde_json::json;

use crate::support::{Bench, Folder, Group, LONG, Netns, Process, SOON, fault, port};

/// A process that makes calls when it is asked to.
pub struct Maker {
    pub process: Process,
    way: PathBuf,
    _folder: Folder,
}

impl Maker {
    pub fn new(group: &Group, netns: &Netns) -> Self {
        let folder = Folder::new();
        let way = folder.0.join("orders");
        let this = std::env::current_exe().expect("this binary").display().to_string();
        let process = group.start(&[&this, "call", &way.display().to_string()], Some(&netns.name));
        assert!(wait_until(SOON, || UnixStream::connect(&way).is_ok()), "a process that listens for orders");
        Self { process, way, _folder: folder }
    }

    /// Has it make a call; the error that it got, 0 for none.
    fn call(&self, what: &str, to: impl ToString) -> i32 {
        self.ask(&format!("{what} {}", to.to_string())).parse().expect("a number")
    }

    /// Its answer to an order.
    pub fn ask(&self, order: &str) -> String {
        let mut stream = UnixStream::connect(&self.way).expect("it listens");
        writeln!(stream, "{order}").expect("asked");
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).expect("answered");
        answer.trim().to_owned()
    }

    /// A call of each sort to a port on the loopback interface, in both families.
    fn calls(&self, port: u16) -> Vec<i32> {
        let at = |host: &str| format!("{host}:{port}");
        let hosts = ["127.0.0.1", "[::1]"];
        let mut errors = vec![self.call("tcp", at("[::ffff:127.0.0.1]"))];
        for host in hosts {
            errors.extend(["tcp", "udp", "send"].map(|what| self.call(what, at(host))));
        }
        errors
    }
}

/// Somebody listens for streams on a port of a namespace, on all addresses.
fn listen(netns: &Netns, port: u16) -> TcpListener {
    netns
        .within(|| TcpListener::bind(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port)))
        .expect("a listener")
}

fn count(receipt: &Receipt) -> CallCount {
    let mut sum = CallCount::default();
    for measured in &receipt.measured {
        let Measured::Calls(count) = measured else { panic!("{measured:?}") };
        sum = CallCount { matched: sum.matched + count.matched, failed: sum.failed + count.failed, ..count.clone() };
    }
    sum
}

const NONE: [i32; 7] = [0; 7];

pub fn connections_of_a_group_fail_with_the_named_error_and_those_of_its_neighbour_do_not() {
    let netns = Netns::new("calls");
    let (group, other) = (Group::new("calls"), Group::new("neighbour"));
    let (inner, port, free) = (group.below("inner"), port(), port());
    let (_a, _b) = (listen(&netns, port), listen(&netns, free));
    let (maker, below, neighbour) =
        (Maker::new(&group, &netns), Maker::new(&inner, &netns), Maker::new(&other, &netns));
    let before = Snapshot::take(std::slice::from_ref(&netns.name)).expect("a snapshot");
    let bench = Bench::new();
    let fail = fault(
        "connect_fail",
        json!({"error": "EHOSTUNREACH", "peers": ["127.0.0.0/8", "::1"], "peer_ports": [port.to_string()]}),
    );
    let injected = bench.agent.inject(&bench.resolve(group.spec()), &fail, LONG).expect("injected");
    assert_eq!(bench.agent.receipts()[0].1.effect, Effect::ArmedNoTraffic, "no call was made yet");
    assert_eq!(maker.calls(port), [libc::EHOSTUNREACH; 7]);
    assert_eq!(below.calls(port), [libc::EHOSTUNREACH; 7], "a group below it is part of it");
    assert_eq!((maker.calls(free), neighbour.calls(port)), (NONE.to_vec(), NONE.to_vec()));
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!(
        (count(&receipt), receipt.effect),
        (CallCount { matched: 14, failed: 14, ..CallCount::default() }, Effect::Effective)
    );
    assert_eq!(maker.calls(port), NONE);
    bench.ends_clean(&before, std::slice::from_ref(&netns.name), &[&group.path]);
}

pub fn connections_of_one_process_fail_and_those_of_another_in_its_group_do_not() {
    let (netns, group, port) = (Netns::new("calls"), Group::new("calls"), port());
    let _listener = listen(&netns, port);
    let (maker, neighbour) = (Maker::new(&group, &netns), Maker::new(&group, &netns));
    let bench = Bench::new();
    let fail = fault("connect_fail", json!({"error": "ETIMEDOUT", "protocol": "tcp"}));
    let injected = bench.agent.inject(&bench.resolve(maker.process.spec()), &fail, LONG).expect("injected");
    let t = libc::ETIMEDOUT;
    assert_eq!((maker.calls(port), neighbour.calls(port)), (vec![t, t, 0, 0, t, 0, 0], NONE.to_vec()));
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!((count(&receipt).failed, maker.calls(port)), (3, NONE.to_vec()));
}

pub fn connections_in_a_namespace_fail_and_those_in_another_do_not() {
    let (netns, other, group, port) = (Netns::new("calls"), Netns::new("other"), Group::new("calls"), port());
    netns.must("ip link add ve0 type veth peer name ve1");
    let _listeners = (listen(&netns, port), listen(&other, port));
    let (maker, neighbour) = (Maker::new(&group, &netns), Maker::new(&group, &other));
    let bench = Bench::new();
    let injected =
        bench.agent.inject(&bench.resolve(netns.spec()), &fault("connect_fail", json!({})), LONG).expect("injected");
    assert_eq!((maker.calls(port), neighbour.calls(port)), (vec![libc::ECONNREFUSED; 7], NONE.to_vec()));
    bench.agent.revert(injected.id).expect("reverted");
    assert_eq!(maker.calls(port), NONE);
}

pub fn a_share_of_the_connections_fails_and_two_rules_do_not_count_for_each_other() {
    let (netns, group, ports) = (Netns::new("calls"), Group::new("calls"), [port(), port()]);
    let _listeners = ports.map(|port| listen(&netns, port));
    let maker = Maker::new(&group, &netns);
    let bench = Bench::new();
    let inject = |percent: &str, port: u16| {
        let fail = fault("connect_fail", json!({"percent": percent, "peer_ports": [port.to_string()]}));
        bench.agent.inject(&bench.resolve(group.spec()), &fail, LONG).expect("injected")
    };
    let (some, all) = (inject("30%", ports[0]), inject("100%", ports[1]));
    const CALLS: u64 = 600;
    // Datagrams: they leave nothing behind that would fill a queue.
    let failed = (0..CALLS).filter(|_| maker.call("udp", format!("127.0.0.1:{}", ports[0])) != 0).count() as f64;
    // Five standard deviations.
    assert!((failed / CALLS as f64 - 0.3).abs() < 5.0 * (0.3 * 0.7 / CALLS as f64).sqrt(), "{failed} of {CALLS}");
    assert_eq!(maker.calls(ports[1]), [libc::ECONNREFUSED; 7]);
    let receipt = |id| count(&bench.agent.revert(id).and_then(|e| e.receipt).expect("a receipt"));
    assert_eq!((receipt(some.id).failed as f64, receipt(all.id).failed), (failed, 7));
}

pub fn without_a_free_port_neither_connect_nor_bind_succeeds_but_what_has_a_port_does() {
    let (netns, group, port) = (Netns::new("calls"), Group::new("calls"), port());
    let _listener = listen(&netns, port);
    let (maker, to) = (Maker::new(&group, &netns), format!("127.0.0.1:{port}"));
    let bench = Bench::new();
    let exhausted = fault("port_exhaustion", json!({}));
    let injected = bench.agent.inject(&bench.resolve(group.spec()), &exhausted, LONG).expect("injected");
    assert_eq!(
        (maker.call("tcp", &to), maker.call("tcp", format!("[::1]:{port}"))),
        (libc::EADDRNOTAVAIL, libc::EADDRNOTAVAIL)
    );
    for any in ["127.0.0.1:0", "[::1]:0"] {
        assert_eq!(
            (maker.call("bind", any), maker.call("bind-udp", any)),
            (libc::EADDRINUSE, libc::EADDRINUSE),
            "{any}"
        );
    }
    let named = crate::support::port();
    assert_eq!(maker.call("bind", format!("127.0.0.1:{named}")), 0, "a port of its own choice");
    assert_eq!(maker.call("udp-from", format!("{named} {to}")), 0, "a socket with a port needs no other");
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!((count(&receipt).failed, receipt.effect), (6, Effect::Effective), "{receipt:?}");
    assert_eq!((maker.call("tcp", &to), maker.call("bind", "127.0.0.1:0")), (0, 0));
}

pub fn a_rule_on_calls_that_is_not_renewed_is_ignored_by_the_kernel() {
    let (netns, group, port) = (Netns::new("calls"), Group::new("calls"), port());
    let _listener = listen(&netns, port);
    let (maker, to) = (Maker::new(&group, &netns), format!("127.0.0.1:{port}"));
    let rule = CallRule {
        calls: vec![Call::Connect],
        filter: Filter::default(),
        without_port: false,
        share: Percent::ALL,
        error: Errno::Eacces,
    };
    let mut calls = Calls::default();
    let in_a_while = || monotonic_ns() + 60_000_000_000;
    let number = calls.add(&Caller::Netns(netns.reference()), &rule, in_a_while()).expect("in force");
    assert_eq!(maker.call("tcp", &to), libc::EACCES);
    calls.set_expiry(number, monotonic_ns()).expect("moved");
    assert_eq!(maker.call("tcp", &to), 0);
    calls.set_expiry(number, in_a_while()).expect("moved");
    assert_eq!(maker.call("tcp", &to), libc::EACCES);
    drop(calls);
    assert!(wait_until(Duration::from_secs(2), || maker.call("tcp", &to) == 0), "it ends with its holder");
}
