//! Connections that are destroyed: those of the target, of both families, and no others.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use firedrill_agent::host::wait_until;
use firedrill_model::change::{Change, Filter};
use firedrill_model::receipt::{Effect, Measured, Receipt, ResetCount};
use firedrill_model::target::TargetSpec;
use serde_json::json;

use crate::support::{B4, Bench, Folder, Group, LONG, Netns, Pair, Process, SOON, eventually, fault, plan, port};

/// A process that keeps a connection up, and writes down how each of them ended.
pub struct Client {
    process: Process,
    log: PathBuf,
}

impl Client {
    pub fn start(group: &Group, netns: &Netns, address: &str, folder: &Folder) -> Self {
        let this = std::env::current_exe().expect("this binary").display().to_string();
        let log = folder.0.join(format!("client-{}", port()));
        let process = group.start(&[&this, "converse", address, &log.display().to_string()], Some(&netns.name));
        let client = Self { process, log };
        eventually("it is connected", || client.lines().first().is_some_and(|line| line == "connected"));
        client
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(&self.log).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// How its connections ended.
    pub fn ends(&self) -> Vec<String> {
        self.lines().into_iter().filter(|line| line != "connected").collect()
    }

    /// Waits until it is connected again after so many ends.
    pub fn is_back_after(&self, ends: usize) {
        eventually("it is back", || self.ends().len() >= ends && self.lines().last().is_some_and(|l| l == "connected"));
    }
}

/// A server for both families, whose sockets have IPv4 addresses in their IPv6 form.
pub fn server(group: &Group, netns: &Netns, port: u16) -> Process {
    let this = std::env::current_exe().expect("this binary").display().to_string();
    let process = group.start(&[&this, "accept", &format!("[::]:{port}")], Some(&netns.name));
    eventually("it listens", || netns.within(|| TcpStream::connect(("127.0.0.1", port)).is_ok()));
    process
}

fn count(receipt: &Receipt) -> ResetCount {
    match receipt.measured.as_slice() {
        [Measured::Reset(count)] => count.clone(),
        other => panic!("a reset measures a reset, not {other:?}"),
    }
}

/// Injects a reset and ends it; its receipt.
fn reset(bench: &Bench, on: TargetSpec, parameters: serde_json::Value) -> Receipt {
    let injected = bench.agent.inject(&bench.resolve(on), &fault("reset", parameters), LONG).expect("injected");
    bench.agent.revert(injected.id).and_then(|ended| ended.receipt).expect("a receipt")
}

pub fn the_connections_of_a_group_are_destroyed_and_its_neighbours_stay() {
    let (netns, folder, bench) = (Netns::new("n"), Folder::new(), Bench::new());
    let [servers, mine, other] = ["servers", "mine", "other"].map(Group::new);
    let port = port();
    let _server = server(&servers, &netns, port);
    let (v4, v6) = (format!("127.0.0.1:{port}"), format!("[::1]:{port}"));
    // One of them in a group below, which belongs to it.
    let inner = mine.below("inner");
    let four = Client::start(&mine, &netns, &v4, &folder);
    let six = Client::start(&inner, &netns, &v6, &folder);
    let neighbour = Client::start(&other, &netns, &v4, &folder);

    let receipt = reset(&bench, mine.spec(), json!({}));
    assert_eq!(receipt.effect, Effect::Effective, "{}", receipt.says);
    let ResetCount { rounds, matched, destroyed, spared, .. } = count(&receipt);
    assert_eq!((rounds, matched, destroyed, spared), (1, 2, 2, 0), "{}", receipt.says);
    for client in [&four, &six] {
        client.is_back_after(1);
        assert_eq!(client.ends(), ["ConnectionAborted"], "once, by the kernel");
    }
    assert_eq!(neighbour.ends(), [] as [&str; 0]);

    // By one process of several in a group, and by the address of the other side.
    assert_eq!(count(&reset(&bench, neighbour.process.spec(), json!({}))).destroyed, 1);
    neighbour.is_back_after(1);
    assert_eq!((four.ends().len(), six.ends().len()), (1, 1));
    let receipt = reset(&bench, servers.spec(), json!({"peers": ["127.0.0.0/8"], "local_ports": [port]}));
    assert_eq!(count(&receipt).destroyed, 2, "the server's ends of the connections over IPv4: {}", receipt.says);
    four.is_back_after(2);
    assert_eq!(four.ends()[1], "ConnectionReset", "its peer lost the connection");
    assert_eq!(six.ends().len(), 1);
    assert!(bench.agent.stop().left_over.is_empty());
}

pub fn the_connections_of_a_namespace_are_destroyed_again_and_again_until_the_end() {
    let (pair, folder, bench) = (Pair::new(), Folder::new(), Bench::new());
    let [servers, clients] = ["servers", "clients"].map(Group::new);
    let port = port();
    let _servers = [server(&servers, &pair.b, port), server(&servers, &pair.a, port)];
    let four = Client::start(&clients, &pair.a, &format!("{B4}:{port}"), &folder);
    let six = Client::start(&clients, &pair.a, &format!("[fd78::2]:{port}"), &folder);
    let within = Client::start(&clients, &pair.a, &format!("127.0.0.1:{port}"), &folder);

    let mut interface = pair.a.spec();
    interface.interface = Some("va".into());
    let receipt = reset(&bench, interface, json!({"peers": ["fd78::/64"]}));
    assert_eq!((count(&receipt).destroyed, receipt.effect), (1, Effect::Effective), "{}", receipt.says);
    six.is_back_after(1);
    assert_eq!(four.ends().len(), 0);

    // As on the host's own network, where the ports by which it is reached are spared.
    let spared = Change::Reset {
        netns: pair.a.reference(),
        interface: None,
        sockets: None,
        filter: Filter::default(),
        spare: vec![port],
        every: None,
        allow: Vec::new(),
    };
    let injected = bench.agent.apply(&plan(vec![spared]), LONG).expect("applied");
    bench.agent.revert(injected.id);
    assert_eq!((four.ends().len(), six.ends().len()), (0, 1));

    let again = fault("reset", json!({"every": "100ms"}));
    let injected = bench.agent.inject(&bench.resolve(pair.a.spec()), &again, LONG).expect("injected");
    eventually("it was done several times", || four.ends().len() >= 3 && six.ends().len() >= 4);
    let receipt = bench.agent.revert(injected.id).and_then(|ended| ended.receipt).expect("a receipt");
    let ResetCount { rounds, destroyed, matched, .. } = count(&receipt);
    assert!(rounds >= 3 && destroyed >= 6 && destroyed == matched, "{}", receipt.says);
    assert_eq!(receipt.effect, Effect::Effective, "{}", receipt.says);
    assert_eq!(within.ends().len(), 0, "the loopback interface is not among those of a namespace");
    four.is_back_after(3);
    let ends = four.ends().len();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(four.ends().len(), ends, "it is over");
    assert!(bench.agent.stop().left_over.is_empty());
}

pub fn connections_of_the_agent_itself_are_left_and_none_is_no_effect() {
    let (pair, bench) = (Pair::new(), Bench::new());
    let nothing = reset(&bench, pair.a.spec(), json!({}));
    assert_eq!(nothing.effect, Effect::ArmedNoTraffic, "{}", nothing.says);

    let port = port();
    let listener = pair.b.within(|| TcpListener::bind((B4, port)).expect("a listener"));
    let mine = pair.a.within(|| TcpStream::connect((B4, port)).expect("connected"));
    let receipt = reset(&bench, pair.a.spec(), json!({}));
    assert_eq!((receipt.effect, count(&receipt).spared), (Effect::ArmedNoTraffic, 1), "{}", receipt.says);
    assert!(mine.take_error().expect("asked").is_none());
    drop(listener);

    let (alone, _) = Process::sleep();
    let target = bench.resolve(alone.spec());
    drop(alone);
    assert!(wait_until(SOON, || bench.agent.inject(&target, &fault("reset", json!({})), LONG).is_err()), "it is gone");
    assert!(bench.agent.stop().left_over.is_empty());
}
