//! What faults do to packets, as other programs see it.

mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use firedrill_tests::stage::pair::{self, V4, V6, WEB_PORTS};
use support::{Bench, bench};

/// Runs `ping` on node `a`; what it printed on both outputs.
fn ping(bench: &Bench, args: &[&str]) -> String {
    let output = bench.stage.run("a", &[&["ping"], args].concat()).expect("ping");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A number before a word: `1043 received`.
fn number_before(text: &str, word: &str) -> f64 {
    let before = text.split(word).next().unwrap_or_default();
    before.split_whitespace().next_back().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no {word} in {text}"))
}

/// Least, mean and greatest round-trip time (ms).
fn round_trips(text: &str) -> [f64; 3] {
    let times = text.split(" = ").nth(1).unwrap_or_else(|| panic!("no times in {text}"));
    let mut times = times.split('/').map(|t| t.trim().parse().unwrap_or(f64::NAN));
    [(); 3].map(|()| times.next().unwrap_or(f64::NAN))
}

/// From where the servers are asked, and at which address: over the wire and on loopback, in both families.
const WAYS: [(&str, IpAddr); 4] = [
    ("a", IpAddr::V4(V4[1])),
    ("a", IpAddr::V6(V6[1])),
    ("b", IpAddr::V4(Ipv4Addr::LOCALHOST)),
    ("b", IpAddr::V6(Ipv6Addr::LOCALHOST)),
];

#[test]
fn thirty_percent_loss_is_thirty_percent_and_the_sender_sees_no_error() {
    let Some(bench) = bench() else { return };
    let netns = bench.stage.netns("a");
    let mut loss = bench.start(&["inject", "loss", "--netns", &netns, "--percent", "30%", "--for", "40s", "--json"]);
    for address in [V4[1].to_string(), V6[1].to_string()] {
        let told = ping(&bench, &["-q", "-n", "-i", "0.002", "-c", "1500", "-W", "1", &address]);
        let (sent, received) = (number_before(&told, " packets transmitted"), number_before(&told, " received"));
        assert!(sent > 1490.0 && !told.contains("errors"), "{told}");
        // A binomial share of 1500 stays within four standard deviations in all but 1 of 16 000 cases.
        let lost = (sent - received) / sent;
        assert!((lost - 0.3).abs() < 4.0 * (0.3 * 0.7 / sent).sqrt(), "{lost} of {sent} to {address}: {told}");
        for complaint in ["sendmsg", "No buffer space", "not permitted", "nreachable"] {
            assert!(!told.contains(complaint), "{told}");
        }
    }
    loss.signal(nix::sys::signal::Signal::SIGINT).expect("runs");
    assert_eq!(loss.wait(Duration::from_secs(10)).expect("ends").code(), Some(4));
    let told = ping(&bench, &["-q", "-n", "-i", "0.01", "-c", "50", "-W", "1", &V4[1].to_string()]);
    assert!(told.contains("50 received"), "nothing is lost afterwards: {told}");
}

#[test]
fn fifty_milliseconds_are_fifty_milliseconds_in_both_families() {
    let Some(bench) = bench() else { return };
    let netns = bench.stage.netns("a");
    let _latency = bench.start(&["inject", "latency", "--netns", &netns, "--delay", "50ms", "--for", "40s"]);
    for address in [V4[1].to_string(), V6[1].to_string()] {
        let told = ping(&bench, &["-q", "-n", "-i", "0.02", "-c", "60", "-W", "2", &address]);
        assert!(told.contains("60 received"), "{told}");
        let [least, mean, _] = round_trips(&told);
        // The mean has slack for a busy machine; nothing arrives early.
        assert!((49.9..52.0).contains(&least) && mean < 60.0, "{told}");
    }
}

#[test]
fn latency_ends_with_its_time() {
    let Some(bench) = bench() else { return };
    let netns = bench.stage.netns("a");
    let args = ["inject", "latency", "--netns", &netns, "--delay", "80ms", "--for", "2s"];
    let outcome = {
        let mut latency = bench.start(&[&args[..], &["--json"]].concat());
        // Something for it to act on.
        let told = ping(&bench, &["-q", "-n", "-c", "3", "-i", "0.2", &V4[1].to_string()]);
        assert!(round_trips(&told)[0] > 79.9, "{told}");
        assert_eq!(latency.wait(Duration::from_secs(15)).expect("ends").code(), Some(0), "{}", latency.errors());
        latency.printed()
    };
    let json: serde_json::Value = serde_json::from_str(&outcome).expect("JSON");
    assert_eq!(json["receipts"][0]["effect"], "effective", "{outcome}");
    let told = ping(&bench, &["-q", "-n", "-c", "5", "-i", "0.05", &V4[1].to_string()]);
    assert!(round_trips(&told)[1] < 20.0, "{told}");
}

/// The median time of five requests to a server, from a node.
fn median(bench: &Bench, node: &str, address: IpAddr, port: u16) -> Duration {
    let server = SocketAddr::new(address, port);
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let begun = Instant::now();
            bench.stage.within(node, || pair::ask(server, Duration::from_secs(3))).expect("node").expect("answer");
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[2]
}

#[test]
fn two_processes_of_one_group_are_told_apart_on_the_wire_and_on_loopback() {
    let Some(bench) = bench() else { return };
    let pid = pair::server(&bench.stage, WEB_PORTS[0]).expect("runs").to_string();
    let _latency = bench.start(&["inject", "latency", "--pid", &pid, "--delay", "60ms", "--for", "40s"]);
    for (node, address) in WAYS {
        let (slow, neighbour) =
            (median(&bench, node, address, WEB_PORTS[0]), median(&bench, node, address, WEB_PORTS[1]));
        assert!(slow >= Duration::from_millis(60), "{address} from {node}: {slow:?}");
        assert!(neighbour < Duration::from_millis(40), "the neighbour at {address} from {node}: {neighbour:?}");
    }
}

#[test]
fn a_refused_group_tells_at_once_and_its_neighbour_is_not_meant() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    let args = ["inject", "partition", "--cgroup", &group, "--mode", "reject", "--for", "40s", "--json"];
    let mut partition = bench.start(&args);
    for (node, address) in WAYS {
        let ask = |port| {
            let server = SocketAddr::new(address, port);
            bench.stage.within(node, || pair::ask(server, Duration::from_secs(5))).expect("node")
        };
        for port in WEB_PORTS {
            let refused = ask(port).expect_err("refused");
            let kind = refused.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            assert_eq!(kind, Some(std::io::ErrorKind::ConnectionRefused), "{address} from {node}: {refused}");
        }
        ask(pair::KEPT_PORT).expect("another group of the same namespace is not meant");
    }
    partition.signal(nix::sys::signal::Signal::SIGINT).expect("runs");
    assert_eq!(partition.wait(Duration::from_secs(10)).expect("ends").code(), Some(4));
    let outcome: serde_json::Value = serde_json::from_str(&partition.printed()).expect("JSON");
    assert_eq!(outcome["receipts"][0]["effect"], "effective", "{outcome}");
    assert!(outcome["receipts"][0]["says"].as_str().is_some_and(|says| says.starts_with("all ")), "{outcome}");
}

#[test]
fn a_group_is_cut_off_and_its_neighbour_is_not() {
    let Some(bench) = bench() else { return };
    let group = bench.stage.cgroup(pair::WEB);
    let _partition = bench.start(&["inject", "partition", "--cgroup", &group, "--for", "40s"]);
    for address in [IpAddr::V4(V4[1]), IpAddr::V6(V6[1])] {
        let ask = |port| {
            let server = SocketAddr::new(address, port);
            bench.stage.within("a", || pair::ask(server, Duration::from_millis(700))).expect("node")
        };
        assert!(WEB_PORTS.iter().all(|port| ask(*port).is_err()), "{address}");
        ask(pair::KEPT_PORT).expect("another group of the same namespace is not meant");
    }
}
