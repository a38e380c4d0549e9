//! What the fault on names does to programs that look them up with the system's resolver.

mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use firedrill_tests::needs;
use firedrill_tests::stage::pair::{V4, V6};
use support::{Bench, bench};

/// What the servers answer to every query for A and AAAA.
const TRUTH: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

/// A server at an address of node `b` that knows every name, until the test ends.
fn serve(bench: &Bench, address: IpAddr) {
    let socket = bench.stage.within("b", || UdpSocket::bind((address, 53))).expect("node").expect("port 53");
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let question = bytes[12..length].iter().position(|byte| *byte == 0).map_or(length, |at| 12 + at + 5);
            let is_v4 = bytes[question - 3] == 1;
            let mut answer = bytes[..question].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, if is_v4 { 1 } else { 28 }, 0, 1, 0, 0, 0, 60]);
            match TRUTH[usize::from(!is_v4)].parse().expect("an address") {
                IpAddr::V4(v4) => answer.extend([&[0, 4][..], &v4.octets()].concat()),
                IpAddr::V6(v6) => answer.extend([&[0, 16][..], &v6.octets()].concat()),
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// The addresses that `getaddrinfo` finds on node `a` with this server; nothing when there is no such name.
fn look_up(bench: &Bench, server: IpAddr, name: &str) -> Vec<String> {
    let file = bench.firedrill.folder().path().join("resolv.conf");
    std::fs::write(&file, format!("nameserver {server}\noptions timeout:5 attempts:1\n")).expect("written");
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec getent ahosts \"$1\"";
    let file = file.display().to_string();
    let output = bench.stage.run("a", &["unshare", "--mount", "sh", "-c", script, &file, name]).expect("getent");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8_lossy(&output.stdout);
    let mut found: Vec<String> =
        told.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect();
    found.sort();
    found.dedup();
    found
}

/// Looks names up while those that end in `.internal` have this answer, from servers of both families.
fn under(answer: &str, found: &[&str]) {
    let Some(bench) = able_bench() else { return };
    let servers = [IpAddr::V4(V4[1]), IpAddr::V6(V6[1])];
    for server in servers {
        serve(&bench, server);
        assert_eq!(look_up(&bench, server, "db.internal"), TRUTH, "before");
    }
    let netns = bench.stage.netns("a");
    let args = ["inject", "dns", "--netns", &netns, "--names", "*.internal", "--answer", answer, "--for", "40s"];
    let mut dns = bench.start(&[&args[..], &["--json"]].concat());
    for server in servers {
        assert_eq!(look_up(&bench, server, "db.internal"), found, "{answer} from {server}");
        assert_eq!(look_up(&bench, server, "db.example.org"), TRUTH, "another name");
    }
    dns.signal(nix::sys::signal::Signal::SIGINT).expect("runs");
    assert_eq!(dns.wait(Duration::from_secs(10)).expect("ends").code(), Some(4));
    let outcome: serde_json::Value = serde_json::from_str(&dns.printed()).expect("JSON");
    assert_eq!(outcome["receipts"][0]["effect"], "effective", "{outcome}");
    assert_eq!(look_up(&bench, servers[0], "db.internal"), TRUTH, "afterwards");
}

/// A bench on a machine that has a resolver to try; `None`, after it was said why, on another.
fn able_bench() -> Option<Bench> {
    if let Some(missing) = needs::missing(&["unshare", "getent", "mount"]) {
        println!("SKIPPED: {missing}");
        return None;
    }
    bench()
}

#[test]
fn a_name_that_does_not_exist_is_not_found_and_others_are() {
    under("nxdomain", &[]);
}

#[test]
fn a_name_whose_server_fails_is_not_found_and_others_are() {
    under("servfail", &[]);
}

#[test]
fn a_name_with_wrong_addresses_has_those_of_both_families() {
    under("10.66.0.1,fd66::1", &["10.66.0.1", "fd66::1"]);
}

#[test]
fn late_names_are_found_late() {
    let Some(bench) = able_bench() else { return };
    let server = IpAddr::V4(V4[1]);
    serve(&bench, server);
    let netns = bench.stage.netns("a");
    let args = ["inject", "dns", "--netns", &netns, "--names", "*", "--delay", "700ms", "--for", "40s"];
    let _dns = bench.start(&args);
    let begun = Instant::now();
    assert_eq!(look_up(&bench, server, "db.internal"), TRUTH);
    assert!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
}

/// How a connection to port 53 of node `b` begins while queries for these names are answered.
fn connects_under(names: &str) -> Option<Result<(), ErrorKind>> {
    let bench = bench()?;
    let server = SocketAddr::from((V4[1], 53));
    let _listener = bench.stage.within("b", || TcpListener::bind(server)).expect("node").expect("port 53");
    let netns = bench.stage.netns("a");
    let args = ["inject", "dns", "--netns", &netns, "--names", names, "--answer", "nxdomain", "--for", "40s"];
    let _dns = bench.start(&args);
    let connected = bench.stage.within("a", || TcpStream::connect_timeout(&server, Duration::from_secs(5)));
    Some(connected.expect("node").map(drop).map_err(|error| error.kind()))
}

#[test]
fn over_tcp_servers_are_out_of_reach_only_when_every_name_is_meant() {
    let Some(every) = connects_under("*") else { return };
    assert_eq!(every, Err(ErrorKind::ConnectionRefused));
    assert_eq!(connects_under("*.internal"), Some(Ok(())));
}
