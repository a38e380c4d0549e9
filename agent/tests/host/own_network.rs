//! Faults on the host's own network. In guests only: where these tests are developed, it is the way by which we are there.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use firedrill_agent::snapshot::Snapshot;
use firedrill_model::facts::TargetFacts;
use firedrill_model::receipt::Effect;
use firedrill_model::run::TargetPlan;
use firedrill_model::target::TargetSpec;
use serde_json::json;

use crate::support::{Bench, LONG, Netns, fault, port, target};

/// The host's end and the other end of a veth pair, by family.
const ADDRESSES: [(&str, &str); 2] = [("10.79.0.1", "10.79.0.2"), ("fd79::1", "fd79::2")];
const INTERFACE: &str = "fdown0";
const SSH: u16 = 22;

/// A neighbour of this host: a namespace at the other end of a veth pair whose near end is the host's own.
struct Neighbour(Netns);

impl Neighbour {
    fn new() -> Self {
        let netns = Netns::new("next");
        let here = netns_of_host();
        let near = |command: &str| {
            let output = firedrill_agent::host::netns::within(&here, || {
                let mut words = command.split_whitespace();
                std::process::Command::new(words.next().expect("a command")).args(words).output()
            });
            let output = output.expect("entered").expect("a command");
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        };
        near(&format!("ip link add {INTERFACE} type veth peer name far0 netns {}", netns.name));
        near(&format!("ip link set {INTERFACE} up"));
        netns.must("ip link set far0 up");
        for ((own, far), bits) in ADDRESSES.into_iter().zip([24, 64]) {
            let nodad = if bits == 64 { " nodad" } else { "" };
            near(&format!("ip addr add {own}/{bits} dev {INTERFACE}{nodad}"));
            netns.must(&format!("ip addr add {far}/{bits} dev far0{nodad}"));
            netns.must(&format!("ping -c4 -i0.4 -W2 {own}"));
        }
        Self(netns)
    }
}

impl Drop for Neighbour {
    /// The kernel removes it with its namespace, but not at once, and the next test's has its name.
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["link", "del", INTERFACE]).output();
    }
}

fn netns_of_host() -> firedrill_model::facts::NetnsRef {
    firedrill_agent::host::netns::at("/proc/self/ns/net").expect("our own namespace")
}

/// Where a socket is made.
#[derive(Clone, Copy)]
enum Side<'a> {
    Host,
    Far(&'a Netns),
}

impl Side<'_> {
    fn at<T: Send>(self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            Self::Host => work(),
            Self::Far(netns) => netns.within(work),
        }
    }
}

/// A service, whoever calls it, and a connection between the two.
struct Service<'a> {
    what: String,
    listener: TcpListener,
    caller: Side<'a>,
    near: TcpStream,
    far: TcpStream,
}

impl<'a> Service<'a> {
    fn new(at: Side<'a>, ip: &str, port: u16, caller: Side<'a>) -> Self {
        let address = SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), port);
        let listener = at.at(|| TcpListener::bind(address)).expect("a listener");
        let near = caller.at(|| TcpStream::connect_timeout(&address, PATIENCE)).expect("a connection");
        let (far, _) = listener.accept().expect("the other end");
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        }
        Self { what: format!("{address}"), listener, caller, near, far }
    }

    /// Whether a word gets there and back on the connection that there is.
    fn talks(&mut self) -> bool {
        let mut heard = [0; 4];
        let asked = self.near.write_all(b"ping").and_then(|()| self.far.read_exact(&mut heard));
        let answered = asked.and_then(|()| self.far.write_all(b"pong")).and_then(|()| self.near.read_exact(&mut heard));
        answered.is_ok() && heard == *b"pong"
    }

    /// Whether another connection can be made.
    fn can_be_called(&self) -> bool {
        let address = self.listener.local_addr().expect("bound");
        self.caller.at(|| TcpStream::connect_timeout(&address, PATIENCE)).is_ok()
    }
}

/// Long enough for a retransmission in software emulation.
const PATIENCE: Duration = Duration::from_secs(3);

fn partitioned(spec: TargetSpec, interface: &str) {
    let next = Neighbour::new();
    let far = Side::Far(&next.0);
    let other = port();
    let here = interface != "lo";
    let services = |port: u16| -> Vec<Service<'_>> {
        let ours = |(own, peer): (&'static str, &'static str)| {
            if here {
                // Called by others, as sshd is; and our own call to another's.
                vec![Service::new(Side::Host, own, port, far), Service::new(far, peer, port, Side::Host)]
            } else {
                vec![Service::new(Side::Host, own, port, Side::Host)]
            }
        };
        let families = if here { ADDRESSES } else { [("127.0.0.1", ""), ("::1", "")] };
        families.into_iter().flat_map(ours).collect()
    };
    let (mut kept, mut cut) = (services(SSH), services(other));
    for service in kept.iter_mut().chain(&mut cut) {
        assert!(service.talks() && service.can_be_called(), "{} before", service.what);
    }
    let before = Snapshot::take(&[]).expect("a snapshot");
    let bench = Bench::new();
    let found = bench.resolve(spec.clone());
    let injected = bench.agent.inject(&found, &fault("partition", json!({})), LONG).expect("injected");
    let said = injected.notes.iter().any(|note| note.contains("port 22") && note.contains("let through"));
    assert!(said, "the plan says so: {:?}", injected.notes);
    for service in &mut kept {
        assert!(service.talks(), "{spec}: the session with {} lives on", service.what);
        assert!(service.can_be_called(), "{spec}: {} can be called", service.what);
    }
    for service in &mut cut {
        assert!(!service.talks(), "{spec}: {} is cut", service.what);
        assert!(!service.can_be_called(), "{spec}: {} cannot be called", service.what);
    }
    let ended = bench.agent.revert(injected.id).expect("in force");
    assert_eq!(ended.receipt.map(|r| r.effect), Some(Effect::Effective));
    for service in kept.iter_mut().chain(&mut cut) {
        assert!(service.can_be_called(), "{spec}: {} is back", service.what);
    }
    assert!(kept.iter_mut().all(Service::talks), "{spec}: the sessions are the same");
    drop((kept, cut));
    bench.ends_clean(&before, &[], &["fdrill", "fdl"]);
}

pub fn a_partition_of_the_hosts_interface_leaves_ssh_alive_both_ways_and_cuts_the_rest() {
    partitioned(TargetSpec { interface: Some(INTERFACE.into()), ..TargetSpec::default() }, INTERFACE);
}

pub fn a_partition_of_the_hosts_whole_network_leaves_ssh_alive_both_ways_and_cuts_the_rest() {
    partitioned(TargetSpec { netns: Some("host".into()), ..TargetSpec::default() }, INTERFACE);
}

pub fn a_partition_of_the_hosts_loopback_leaves_ssh_alive_and_cuts_the_rest() {
    partitioned(TargetSpec { interface: Some("lo".into()), ..TargetSpec::default() }, "lo");
}

pub fn a_delay_on_the_hosts_network_does_not_slow_ssh_and_a_port_that_is_allowed_is_not_spared() {
    let next = Neighbour::new();
    let far = Side::Far(&next.0);
    let (own, peer) = ADDRESSES[0];
    let spec = TargetSpec { interface: Some(INTERFACE.into()), ..TargetSpec::default() };
    let allowing = TargetPlan { allow_protected: vec!["port 22".parse().expect("a thing")], ..target(spec.clone()) };
    let bench = Bench::new();
    let mut services = [Service::new(Side::Host, own, SSH, far), Service::new(far, peer, port(), Side::Host)];
    let mut times = |found: &TargetFacts, lasts| {
        let delay = fault("latency", json!({ "delay": "400ms" }));
        let injected = bench.agent.inject(found, &delay, lasts).expect("injected");
        let time = |service: &mut Service<'_>| {
            let begun = std::time::Instant::now();
            assert!(service.talks(), "{}", service.what);
            begun.elapsed()
        };
        let times = [time(&mut services[0]), time(&mut services[1])];
        bench.agent.revert(injected.id);
        (times, injected.notes)
    };
    let held = Duration::from_millis(400);
    let ([ssh, other], _) = times(&bench.resolve(spec), LONG);
    assert!(ssh < held && other >= held, "spared {ssh:?}, other {other:?}");
    let found = bench.agent.resolve(&allowing).expect("allowed by its name");
    let ([ssh, other], notes) = times(&found, LONG);
    assert!(ssh >= held && other >= held, "allowed {ssh:?}, other {other:?}");
    assert!(notes.iter().any(|note| note.contains("`port 22` is not protected")), "{notes:?}");
}
