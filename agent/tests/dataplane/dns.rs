//! Queries that are answered in place of their server, late or not at all, in both families and on the loopback interface.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use firedrill_agent::dataplane::{Action, DataPlane, Direction, Protocol, RuleSpec, Shape};
use firedrill_model::{
    change::{DnsAnswer, DnsQueries},
    units::{Percent, Span},
};

use crate::support::{B4, B6, Netns, Pair, later, needs_root, slack_ms};

/// What the servers of these tests answer to everything.
const TRUTH: [u8; 4] = [192, 0, 2, 1];

/// A server in a namespace that answers every query with [`TRUTH`], until the test ends.
fn server(netns: &Netns, ip: &str) -> SocketAddr {
    let socket = netns.within(|| UdpSocket::bind((ip, 53))).expect("bind");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let mut answer = bytes[..length].to_vec();
            (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(TRUTH);
            let _ = socket.send_to(&answer, from);
        }
    });
    address
}

fn query(id: u8, name: &str) -> Vec<u8> {
    let mut message = vec![0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The code and the last four bytes of the answer, which are its address if it has one; and how long it took.
fn ask(client: &UdpSocket, id: u8, name: &str) -> std::io::Result<(u8, [u8; 4], Duration)> {
    let begun = Instant::now();
    client.send(&query(id, name))?;
    let mut bytes = [0; 512];
    let length = client.recv(&mut bytes)?;
    assert_eq!(bytes[..2], [0, id], "the answer to this query");
    Ok((bytes[3] & 0x0f, bytes[length - 4..length].try_into().unwrap(), begun.elapsed()))
}

fn client(netns: &Netns, server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = netns.udp(any);
    netns.within(|| client.connect(server)).unwrap();
    client
}

fn with_line(netns: &Netns, interface: &str) -> DataPlane {
    let mut plane = netns.data_plane();
    let index = netns.ifindex(interface);
    plane.attach(index, interface, Direction::Egress).unwrap();
    plane.delay_line_start(index, Direction::Egress).unwrap();
    plane
}

fn rule(names: &[&str], answer: Option<DnsAnswer>, delay: Span) -> RuleSpec {
    let names = names.iter().map(|name| name.parse().unwrap()).collect();
    let shape = Shape::Answer(Arc::new(DnsQueries { names, share: Percent::ALL, answer, delay }));
    let spec = RuleSpec::egress(Action::Hold(shape), later());
    RuleSpec { protocol: Protocol::Udp, peer_ports: vec![53..=53], ..spec }
}

#[test]
fn names_are_answered_in_place_of_their_server_and_others_by_it() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_line(&pair.a, "va");
    for ip in [B4, B6] {
        let client = client(&pair.a, server(&pair.b, ip));
        assert_eq!(ask(&client, 1, "db.example.org").unwrap().1, TRUTH, "{ip}");
        let wrong = DnsAnswer::Addresses(vec!["10.6.6.6".parse().unwrap(), "fd00::66".parse().unwrap()]);
        for (answer, code) in [(DnsAnswer::NxDomain, 3), (DnsAnswer::ServFail, 2), (DnsAnswer::Refused, 5), (wrong, 0)]
        {
            let rule = plane.add_rule(rule(&["*.example.org"], Some(answer), Span::default())).unwrap();
            let (told, address, _) = ask(&client, 2, "DB.Example.org").unwrap();
            assert_eq!(told, code, "{ip}");
            if code == 0 {
                assert_eq!(address, [10, 6, 6, 6], "{ip}");
            }
            for id in 3..10 {
                let (told, address, _) = ask(&client, id, "example.net").unwrap();
                assert_eq!((told, address), (0, TRUTH), "{ip}");
            }
            let counters = plane.remove_rule(rule).unwrap().unwrap();
            assert_eq!((counters.matched, counters.acted, counters.dropped), (8, 1, 0), "{counters:?}");
        }
        assert_eq!(ask(&client, 11, "db.example.org").unwrap().1, TRUTH, "{ip}, afterwards");
    }
}

#[test]
fn late_names_hold_up_no_others_of_the_same_socket() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_line(&pair.a, "va");
    for ip in [B4, B6] {
        let client = client(&pair.a, server(&pair.b, ip));
        for answer in [None, Some(DnsAnswer::NxDomain)] {
            let late = Duration::from_millis(600);
            let code = if answer.is_some() { 3 } else { 0 };
            let rule = plane.add_rule(rule(&["slow.*"], answer, Span(late))).unwrap();
            let begun = Instant::now();
            client.send(&query(1, "slow.example.org")).unwrap();
            // The first answer is that to the second query.
            assert_eq!(ask(&client, 2, "quick.example.org").unwrap().1, TRUTH, "{ip}");
            let mut bytes = [0; 512];
            client.recv(&mut bytes).unwrap();
            assert_eq!((bytes[1], bytes[3] & 0x0f), (1, code), "{ip}");
            assert!(begun.elapsed() >= late, "{ip}: {:?}", begun.elapsed());
            let counters = plane.remove_rule(rule).unwrap().unwrap();
            assert_eq!((counters.matched, counters.acted, counters.delays.count()), (2, 1, 1), "{counters:?}");
        }
    }
}

#[test]
fn other_names_take_as_long_as_without_the_rule() {
    needs_root!();
    let pair = Pair::new();
    let client = client(&pair.a, server(&pair.b, B4));
    let quickest = || (0..100).map(|id| ask(&client, id, "example.net").unwrap().2).min().unwrap();
    let without = quickest();
    let mut plane = with_line(&pair.a, "va");
    plane.add_rule(rule(&["slow.*"], None, Span::from_secs(1))).unwrap();
    let with = quickest();
    let more_ms = with.saturating_sub(without).as_secs_f64() * 1e3;
    assert!(more_ms < slack_ms(), "{with:?} with the rule, {without:?} without");
}

#[test]
fn an_answer_that_never_comes_does_not_come() {
    needs_root!();
    let pair = Pair::new();
    let mut plane = with_line(&pair.a, "va");
    let client = client(&pair.a, server(&pair.b, B4));
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let rule = plane.add_rule(rule(&["*"], Some(DnsAnswer::Timeout), Span::default())).unwrap();
    assert_eq!(ask(&client, 1, "a.b").unwrap_err().kind(), ErrorKind::WouldBlock);
    let counters = plane.remove_rule(rule).unwrap().unwrap();
    assert_eq!((counters.matched, counters.acted, counters.dropped), (1, 0, 1));
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert_eq!(ask(&client, 2, "a.b").unwrap().1, TRUTH, "and it is not late, either");
}

#[test]
fn a_resolver_on_the_loopback_interface_is_answered_for_too() {
    needs_root!();
    let netns = Netns::new();
    netns.allow_loopback_delay();
    let mut plane = with_line(&netns, "lo");
    for ip in ["127.0.0.53", "::1"] {
        let client = client(&netns, server(&netns, ip));
        let rule = plane.add_rule(rule(&["*.internal"], Some(DnsAnswer::NxDomain), Span::default())).unwrap();
        assert_eq!(ask(&client, 1, "db.internal").unwrap().0, 3, "{ip}");
        assert_eq!(ask(&client, 2, "db.example.org").unwrap().1, TRUTH, "{ip}");
        plane.remove_rule(rule).unwrap();
    }
}
