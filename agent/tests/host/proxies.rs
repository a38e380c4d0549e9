//! Connections that a proxy of the agent carries.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use firedrill_agent::host::wait_until;
use firedrill_agent::snapshot::Snapshot;
use firedrill_model::change::Plan;
use firedrill_model::receipt::{Effect, Measured, ProxyCount, Receipt};
use nix::libc;
use serde_json::json;

use crate::calls::Maker;
use crate::crash::Doomed;
use crate::support::{B4, Bench, Folder, Group, LONG, Netns, Pair, SOON, fault, in_guest, port, target};

/// A server that sends back what it gets, and remembers from where connections came.
struct Echo {
    callers: Arc<Mutex<Vec<IpAddr>>>,
}

impl Echo {
    fn new(netns: &Netns, port: u16) -> Self {
        Self::with(netns, port, |stream| {
            let Ok(mut from) = stream.try_clone() else { return };
            let _ = std::io::copy(&mut from, stream);
        })
    }

    /// One that answers in a way of its own.
    fn with(netns: &Netns, port: u16, answer: fn(&mut TcpStream)) -> Self {
        let all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        let listener = netns.within(|| TcpListener::bind(all)).expect("a listener");
        let callers: Arc<Mutex<Vec<IpAddr>>> = Arc::default();
        let seen = Arc::clone(&callers);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let from = stream.peer_addr().map(|from| from.ip().to_canonical());
                seen.lock().expect("sound").extend(from);
                thread::spawn(move || answer(&mut stream));
            }
        });
        Self { callers }
    }

    fn callers(&self) -> Vec<IpAddr> {
        std::mem::take(&mut self.callers.lock().expect("sound"))
    }
}

/// What a conversation was like.
struct Talk {
    peer: String,
    own: IpAddr,
    received: u64,
    first_ms: u64,
    end_ms: u64,
}

fn talk(maker: &Maker, to: &str, bytes: usize) -> Talk {
    let answer = maker.ask(&format!("talk {to} {bytes}"));
    let words: Vec<&str> = answer.split(' ').collect();
    let [peer, own, received, first, end] = words.as_slice() else { panic!("{to}: {answer}") };
    let number = |text: &str| text.parse().expect("a number");
    Talk {
        peer: (*peer).to_owned(),
        own: own.parse::<SocketAddr>().expect("an address").ip().to_canonical(),
        received: number(received),
        first_ms: number(first),
        end_ms: number(end),
    }
}

fn count(receipt: &Receipt) -> ProxyCount {
    let [Measured::Proxy(count)] = receipt.measured.as_slice() else { panic!("{receipt:?}") };
    count.clone()
}

pub fn new_connections_of_a_group_are_late_and_see_their_real_peer_and_those_of_its_neighbour_are_not() {
    let (pair, group, other, port) = (Pair::new(), Group::new("proxied"), Group::new("neighbour"), port());
    let echo = Echo::new(&pair.b, port);
    let (maker, neighbour) = (Maker::new(&group, &pair.a), Maker::new(&other, &pair.a));
    let before = Snapshot::take(&pair.names()).expect("a snapshot");
    let bench = Bench::new();
    let tcp = fault("tcp", json!({"latency": "60ms", "peer_ports": [port.to_string()]}));
    let injected = bench.agent.inject(&bench.resolve(group.spec()), &tcp, LONG).expect("injected");
    let ways = [
        (format!("{B4}:{port}"), "10.78.0.1"),
        (format!("[fd78::2]:{port}"), "fd78::1"),
        (format!("[::ffff:{B4}]:{port}"), "10.78.0.1"),
    ];
    for (to, own) in &ways {
        let own: IpAddr = own.parse().expect("an address");
        let (slow, quick) = (talk(&maker, to, 5000), talk(&neighbour, to, 5000));
        assert!(slow.first_ms >= 120 && slow.received == 5000, "{to}: {} ms, {}", slow.first_ms, slow.received);
        assert!(quick.first_ms < 100 && quick.received == 5000, "{to}: {} ms", quick.first_ms);
        assert_eq!((&slow.peer, slow.own), (to, own), "as without a proxy");
        assert_eq!(echo.callers(), [own, own], "the peer sees the namespace's own address");
    }
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    let counted = count(&receipt);
    assert_eq!((receipt.effect, counted.matched, counted.connections), (Effect::Effective, 3, 3), "{receipt:?}");
    assert_eq!((counted.reset, counted.unreached, counted.bytes), (0, 0, 30_000), "{receipt:?}");
    assert!(counted.mean_delay().is_some_and(|mean| mean.0 >= Duration::from_millis(60)), "{counted:?}");
    assert!(talk(&maker, &ways[0].0, 5000).first_ms < 100);
    bench.ends_clean(&before, &pair.names(), &[&group.path]);
}

pub fn connections_are_slowed_down_closed_late_and_closed_after_so_many_bytes() {
    let (netns, group, port) = (Netns::new("proxied"), Group::new("proxied"), port());
    let _echo = Echo::new(&netns, port);
    let (maker, to) = (Maker::new(&group, &netns), format!("127.0.0.1:{port}"));
    let bench = Bench::new();
    let with = |parameters, bytes| {
        let injected =
            bench.agent.inject(&bench.resolve(group.spec()), &fault("tcp", parameters), LONG).expect("injected");
        let talk = talk(&maker, &to, bytes);
        (talk, bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt"))
    };
    let (slow, receipt) = with(json!({"rate": "800kbit", "direction": "egress"}), 60_000);
    assert!(slow.received == 60_000 && slow.end_ms >= 500, "{} ms", slow.end_ms);
    let rate = count(&receipt).rate().expect("measured").0;
    assert!((600_000..=880_000).contains(&rate) && receipt.effect == Effect::Effective, "{rate} {receipt:?}");
    let (late, receipt) = with(json!({"slow_close": "400ms", "direction": "ingress"}), 10);
    assert!(late.first_ms < 300 && late.end_ms >= 400, "{} {}", late.first_ms, late.end_ms);
    assert_eq!((count(&receipt).late_ends, receipt.effect), (1, Effect::Effective));
    let (cut, receipt) = with(json!({"limit_data": "10KiB", "direction": "ingress"}), 50_000);
    assert!(cut.received <= 10 << 10, "{}", cut.received);
    assert_eq!((count(&receipt).cut, receipt.effect), (1, Effect::Effective));
}

pub fn what_is_open_at_the_end_is_reset_and_what_was_open_before_goes_on() {
    let (netns, group, port) = (Netns::new("proxied"), Group::new("proxied"), port());
    let _echo = Echo::new(&netns, port);
    let (maker, before) = (Maker::new(&group, &netns), Maker::new(&group, &netns));
    let hold = format!("hold 127.0.0.1:{port}");
    let bench = Bench::new();
    assert_eq!(before.ask(&hold), "0");
    let tcp = fault("tcp", json!({"latency": "10ms"}));
    let injected = bench.agent.inject(&bench.resolve(maker.process.spec()), &tcp, LONG).expect("injected");
    assert_eq!(maker.ask(&hold), "0");
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!((count(&receipt).reset, maker.ask("held")), (1, libc::ECONNRESET.to_string()), "{receipt:?}");
    assert_eq!(talk(&maker, &format!("127.0.0.1:{port}"), 10).received, 10);
}

pub fn when_the_agent_is_killed_its_connections_are_reset_and_new_ones_go_straight() {
    let (netns, group, folder, port) = (Netns::new("proxied"), Group::new("proxied"), Folder::new(), port());
    let _echo = Echo::new(&netns, port);
    let maker = Maker::new(&group, &netns);
    let tcp = fault("tcp", json!({"latency": "10ms"}));
    let mut doomed = Doomed::armed(&folder.directories(), Plan::default(), vec![(target(group.spec()), tcp)]);
    assert_eq!(maker.ask(&format!("hold 127.0.0.1:{port}")), "0");
    doomed.kill();
    assert_eq!(maker.ask("held"), libc::ECONNRESET.to_string());
    // The moment in which the kernel takes it apart may cost a connection.
    let to = format!("talk 127.0.0.1:{port} 10");
    assert!(wait_until(SOON, || !maker.ask(&to).starts_with("failed")), "new ones go straight");
    assert_eq!(talk(&maker, &format!("127.0.0.1:{port}"), 10).received, 10);
}

pub fn a_peer_that_cannot_be_reached_resets_the_connection() {
    let (netns, group, port) = (Netns::new("proxied"), Group::new("proxied"), port());
    let maker = Maker::new(&group, &netns);
    let bench = Bench::new();
    let tcp = fault("tcp", json!({"latency": "10ms"}));
    let injected = bench.agent.inject(&bench.resolve(group.spec()), &tcp, LONG).expect("injected");
    assert_eq!(maker.ask(&format!("hold 127.0.0.1:{port}")), libc::ECONNRESET.to_string());
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!((count(&receipt).unreached, receipt.effect), (1, Effect::ArmedNoTraffic), "{receipt:?}");
}

pub fn curl_python_and_redis_cli_are_delayed_and_none_the_wiser() {
    if in_guest() {
        println!("UNSUPPORTED: guests have none of these programs");
        return;
    }
    let (pair, group, web, store) = (Pair::new(), Group::new("store"), port(), port());
    let _web = Echo::with(&pair.b, web, |stream| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
    });
    let redis = ["redis-server", "--port", &store.to_string(), "--bind", B4, "--save", "", "--protected-mode", "no"];
    let _redis = group.start(&redis, Some(&pair.b.name));
    let ping = format!("redis-cli -h {B4} -p {store} ping");
    assert!(wait_until(SOON, || pair.a.run(&ping).status.success()), "a store");
    let bench = Bench::new();
    let tcp = fault("tcp", json!({"latency": "50ms"}));
    let injected = bench.agent.inject(&bench.resolve(pair.a.spec()), &tcp, LONG).expect("injected");
    let told = pair.a.must(&format!("curl -s -w _%{{remote_ip}}_%{{time_total}} http://{B4}:{web}/"));
    let parts: Vec<&str> = told.split('_').collect();
    assert_eq!((parts[0], parts[1]), ("hello", B4), "{told}");
    assert!(parts[2].parse::<f64>().is_ok_and(|seconds| seconds >= 0.1), "{told}");
    let script = format!("import urllib.request as u;print(u.urlopen('http://{B4}:{web}/').read().decode())");
    let python =
        pair.a.within(|| std::process::Command::new("python3").args(["-c", &script]).output()).expect("python");
    assert_eq!(String::from_utf8_lossy(&python.stdout).trim(), "hello", "{python:?}");
    assert_eq!(pair.a.must(&ping).trim(), "PONG");
    let receipt = bench.agent.revert(injected.id).and_then(|e| e.receipt).expect("a receipt");
    assert_eq!((count(&receipt).connections, receipt.effect), (3, Effect::Effective), "{receipt:?}");
}
