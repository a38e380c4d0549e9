//! Snapshots: whatever changes shows as exactly that, and what changes by itself does not show.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use firedrill_agent::dataplane::{DataPlane, Direction, kernel_support};
use firedrill_agent::snapshot::{Difference, Snapshot};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::Signal;

use crate::support::{B4, Folder, Group, Netns, Pair, Process, SOON, eventually, port, unique};

/// The difference that `work` makes in a namespace and under the names of `marks`: what else happens on this machine is
/// not meant.
fn made_by(netns: Option<&Netns>, marks: &[&str], work: impl FnOnce()) -> Vec<Difference> {
    let names: Vec<String> = netns.iter().map(|n| n.name.clone()).collect();
    let before = Snapshot::take(&names).expect("a snapshot");
    work();
    let mut made = before.diff(&Snapshot::take(&names).expect("a snapshot"));
    made.retain(|d| names.contains(&d.line.place) || marks.iter().any(|mark| d.line.what.contains(mark)));
    made
}

/// Sees that these kinds of lines, and no others, have come (`+`) or gone (`-`), and that `what` is in the first of them.
fn assert_made(made: &[Difference], kinds: &[&str], what: &str) {
    let mut seen: Vec<String> =
        made.iter().map(|d| format!("{}{}", if d.appeared { '+' } else { '-' }, d.line.kind)).collect();
    seen.sort();
    seen.dedup();
    let mut wanted: Vec<String> = kinds.iter().map(ToString::to_string).collect();
    wanted.sort();
    let shown: Vec<String> = made.iter().map(ToString::to_string).collect();
    assert_eq!(seen, wanted, "{shown:#?}");
    let first = made.iter().filter(|d| kinds[0][1..] == *d.line.kind && d.appeared == kinds[0].starts_with('+'));
    assert!(first.clone().any(|d| d.line.what.contains(what)), "no {what} in {shown:#?}");
}

/// A namespace with a veth pair whose ends are both in it, without IPv6, which would take a while to settle.
fn settled() -> Netns {
    let netns = Netns::new("snap");
    for key in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{key}/disable_ipv6");
        netns.within(|| fs::write(path, "1")).expect("switched off");
    }
    netns.must("ip link add d0 type veth peer name d1");
    netns.must("ip link set d0 up");
    netns.must("ip link set d1 up");
    netns.must("ip addr add 10.82.0.1/24 dev d0");
    eventually("the links carry", || {
        let nothing = made_by(Some(&netns), &[], || std::thread::sleep(std::time::Duration::from_millis(100)));
        nothing.is_empty()
    });
    netns
}

pub fn what_changes_in_a_namespace_is_in_its_diff_and_nothing_else() {
    let netns = settled();
    // A command, the kinds of lines that it makes or removes, words of the first kind, and the command that undoes it.
    let cases: [(&str, &[&str], &str, &str); 14] = [
        (
            "ip link set d0 mtu 1400",
            &["+interface", "-interface", "+parameter", "-parameter"],
            "mtu 1400",
            "ip link set d0 mtu 1500",
        ),
        (
            "ip link set d0 txqueuelen 77",
            &["+interface", "-interface"],
            "txqueuelen 77",
            "ip link set d0 txqueuelen 1000",
        ),
        ("ip link set d0 promisc on", &["+interface", "-interface"], "promiscuity 1", "ip link set d0 promisc off"),
        (
            "ip addr add 10.82.9.1/32 dev d0",
            &["+address", "+route"],
            "d0 prefix 32 scope 0 flags 0x80 address 10.82.9.1",
            "ip addr del 10.82.9.1/32 dev d0",
        ),
        (
            "ip route add 10.83.0.0/16 via 10.82.0.2 metric 7",
            &["+route"],
            "IPv4 10.83.0.0/16",
            "ip route del 10.83.0.0/16",
        ),
        ("ip route add blackhole 10.84.0.0/16", &["+route"], "type 6", "ip route del blackhole 10.84.0.0/16"),
        ("ip rule add from 10.85.0.0/16 table 99", &["+rule"], "from 10.85.0.0", "ip rule del table 99"),
        (
            "ip neigh add 10.82.0.9 lladdr 02:00:00:00:00:09 dev d0 nud permanent",
            &["+neighbour"],
            "address 10.82.0.9 at 02:00:00:00:00:09",
            "ip neigh del 10.82.0.9 dev d0",
        ),
        (
            "ip neigh add proxy 10.82.0.8 dev d0",
            &["+neighbour"],
            "address 10.82.0.8",
            "ip neigh del proxy 10.82.0.8 dev d0",
        ),
        (
            "sysctl -qw net.ipv4.ip_default_ttl=65",
            &["+parameter", "-parameter"],
            "ip_default_ttl = 65",
            "sysctl -qw net.ipv4.ip_default_ttl=64",
        ),
        ("tc qdisc add dev d0 root handle 1: htb default 10", &["+qdisc", "-qdisc"], "d0 htb 1:0 parent root", ""),
        ("tc class add dev d0 parent 1: classid 1:10 htb rate 1mbit", &["+class"], "d0 htb 1:10", ""),
        ("tc class change dev d0 classid 1:10 htb rate 2mbit", &["+class", "-class"], "d0 htb 1:10", ""),
        (
            "tc filter add dev d0 parent 1: protocol ip prio 5 u32 match ip dport 80 0xffff flowid 1:10",
            &["+filter"],
            "d0 1:0 u32",
            "tc qdisc del dev d0 root",
        ),
    ];
    let untouched = Snapshot::take(std::slice::from_ref(&netns.name)).expect("a snapshot");
    for (command, kinds, what, undo) in cases {
        let made = made_by(Some(&netns), &[], || drop(netns.must(command)));
        assert_made(&made, kinds, what);
        if !undo.is_empty() {
            netns.must(undo);
        }
    }
    // Foreign filters at the hook that ours use before Linux 6.6.
    let clsact = made_by(Some(&netns), &[], || drop(netns.must("tc qdisc add dev d0 clsact")));
    assert_made(&clsact, &["+qdisc"], "d0 clsact ffff:0");
    let mirror =
        "tc filter add dev d0 egress protocol ip u32 match ip dport 80 0xffff action mirred egress mirror dev d1";
    let made = made_by(Some(&netns), &[], || drop(netns.must(mirror)));
    assert_made(&made, &["+filter"], "action mirred");
    netns.must("tc qdisc del dev d0 clsact");
    crate::support::assert_unchanged(&untouched, std::slice::from_ref(&netns.name), &[]);

    let name = unique("new");
    let made = made_by(None, &[&name], || drop(Command::new("ip").args(["netns", "add", &name]).status()));
    let gone = made_by(None, &[&name], || drop(Command::new("ip").args(["netns", "delete", &name]).status()));
    assert_made(&made, &["+network namespace", "+mount"], &name);
    assert_made(&gone, &["-network namespace", "-mount"], &name);
}

pub fn packet_filters_are_in_the_diff_and_what_they_count_is_not() {
    let netns = Netns::new("nft");
    let nft = |words: &str| {
        let output = netns.within(|| Command::new("nft").arg(words).output()).expect("nft");
        assert!(output.status.success(), "nft {words}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let cases = [
        ("add table ip shop", "table family 2 name shop"),
        ("add chain ip shop in { type filter hook input priority 0 ; policy accept ; }", "chain family 2 table shop"),
        ("add rule ip shop in udp dport 9 counter drop", "payload("),
        ("add set ip shop known { type ipv4_addr ; }", "set family 2 table shop name known"),
        ("add element ip shop known { 10.1.2.3 }", "element of shop known"),
        ("add counter ip shop visits", "object family 2 table shop name visits"),
    ];
    for (command, what) in cases {
        let made = made_by(Some(&netns), &[], || nft(command));
        // What something is used by is told of it, too.
        let new: Vec<Difference> = made.into_iter().filter(|d| d.appeared && d.line.what.contains(what)).collect();
        assert_made(&new, &["+nftables"], what);
    }
    let counted = made_by(Some(&netns), &[], || {
        let socket = netns.within(|| std::net::UdpSocket::bind("127.0.0.1:0")).expect("a socket");
        for _ in 0..5 {
            socket.send_to(b"x", "127.0.0.1:9").expect("sent");
        }
    });
    assert_eq!(counted, []);
    let output = netns.must("nft list ruleset");
    assert!(output.contains("counter packets 5"), "the rule has counted: {output}");
    let gone = made_by(Some(&netns), &[], || nft("delete table ip shop"));
    assert!(gone.len() >= 6 && gone.iter().all(|d| !d.appeared && d.line.kind == "nftables"), "{gone:#?}");
}

pub fn an_ip_set_and_its_elements_are_in_the_diff() {
    const CREATE: u16 = 2;
    const ADD: u16 = 9;
    const NESTED: u16 = 0x8000;
    let netns = Netns::new("set");
    // ipset(8) is not everywhere: its messages are.
    let ask = |command: u16, attributes: &[(u16, &[u8])]| -> i32 {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&(6 << 8 | command).to_ne_bytes());
        bytes[6..8].copy_from_slice(&0x605_u16.to_ne_bytes());
        bytes.extend([2, 0, 0, 0]);
        for (kind, value) in attributes {
            bytes.extend((value.len() as u16 + 4).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(*value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        netns.within(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER).expect("netlink");
            socket.bind_auto().expect("bound");
            socket.send_to(&bytes, &SocketAddr::new(0, 0), 0).expect("sent");
            let (answer, _) = socket.recv_from_full().expect("an answer");
            i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]])
        })
    };
    let name: (u16, &[u8]) = (2, b"guests\0");
    let create = || ask(CREATE, &[(1, &[6]), name, (3, b"hash:ip\0"), (4, &[0]), (5, &[2]), (7 | NESTED, &[])]);
    let mut refused = 0;
    let made = made_by(Some(&netns), &[], || refused = create());
    if refused != 0 {
        println!("\nUNSUPPORTED: this kernel has no IP sets ({})", std::io::Error::from_raw_os_error(-refused));
        return;
    }
    assert_made(&made, &["+IP set"], "set name guests type hash:ip");
    // An address: inside data, inside IP, IPv4.
    let address = [16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0x40, 10, 1, 2, 3];
    let made = made_by(Some(&netns), &[], || {
        assert_eq!(ask(ADD, &[(1, &[6]), name, (7 | NESTED, &address[4..])]), 0);
    });
    assert_made(&made, &["+IP set"], "element of guests");
    assert!(made[0].line.what.contains("0a010203"), "{made:?}");
}

pub fn programs_and_links_are_in_the_diff_while_they_are_held() {
    let (netns, group) = (settled(), Group::new("tagged"));
    let namespace = netns.reference();
    let index = netns.within(|| nix::net::if_::if_nametoindex("d0")).expect("d0");
    let mut plane = None;
    let made = made_by(Some(&netns), &["fdrill_", "AGENT"], || {
        let file = File::open(&namespace.path).expect("the namespace");
        let mut opened = DataPlane::open(file.as_fd()).expect("loaded");
        opened.attach(index, "d0", Direction::Egress).expect("attached");
        plane = Some(opened);
    });
    let has =
        |kind: &str, what: &str| made.iter().any(|d| d.appeared && d.line.kind == kind && d.line.what.contains(what));
    assert!(has("eBPF program", "fdrill_egress"), "{made:#?}");
    if kernel_support().tcx {
        assert!(has("tcx program", "d0 egress 1: ") && has("eBPF link", "fdrill_egress"), "{made:#?}");
    } else {
        assert!(has("qdisc", "d0 clsact") && has("filter", "fdrill_egress"), "{made:#?}");
    }
    let mut plane = plane.expect("opened");
    let made = made_by(None, &[&group.path], || {
        let tag = plane.allocate_tag();
        plane.tag_cgroup(tag, &group.directory).expect("tagged");
    });
    assert_made(&made, &["+cgroup program"], "sock_create 1: ");
    let map_count = || {
        let now = Snapshot::take(&[]).expect("a snapshot");
        now.lines().filter(|l| l.kind == "eBPF map").count()
    };
    assert!(map_count() > 0, "a data plane has maps");
}

pub fn groups_with_their_settings_and_states_are_in_the_diff() {
    let (outer, mark) = (Group::new("outer"), unique("inner"));
    let inner = format!("{}/{mark}", outer.path);
    let directory = outer.directory.join(&mark);
    let made = made_by(None, &[&inner], || fs::create_dir(&directory).expect("a group"));
    assert_made(&made, &["+cgroup", "+cgroup setting"], &inner);
    let set = |file: &str, value: &str| fs::write(directory.join(file), value).expect("set");
    let made = made_by(None, &[&inner], || set("cgroup.max.descendants", "7"));
    assert_made(&made, &["+cgroup setting", "-cgroup setting"], "cgroup.max.descendants = 7");
    assert_eq!(made.len(), 2, "{made:#?}");
    let made = made_by(None, &[&inner], || set("cgroup.freeze", "1"));
    assert_made(&made, &["+frozen cgroup"], &inner);
    set("cgroup.freeze", "0");
    let gone = made_by(None, &[&inner], || fs::remove_dir(&directory).expect("removed"));
    assert_made(&gone, &["-cgroup", "-cgroup setting"], &inner);

    // Where the controllers have hierarchies of their own.
    let old = PathBuf::from("/sys/fs/cgroup/cpu").join(&mark);
    if old.parent().is_some_and(|p| p.join("cpu.cfs_quota_us").exists()) {
        fs::create_dir(&old).expect("a group");
        let made = made_by(None, &[&mark], || fs::write(old.join("cpu.cfs_quota_us"), "50000").expect("set"));
        fs::remove_dir(&old).expect("removed");
        assert_made(&made, &["+cgroup setting", "-cgroup setting"], "cpu.cfs_quota_us = 50000");
    }
}

pub fn a_stopped_process_is_in_the_diff() {
    let (sleeper, _) = Process::sleep();
    let line = format!("{} (", sleeper.pid());
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(sleeper.pid()), signal).expect("signalled");
    let made = made_by(None, &[&line], || {
        signal(Signal::SIGSTOP);
        eventually("it stops", || sleeper.state() == 'T');
    });
    assert_made(&made, &["+stopped process"], "sleep");
}

/// An eBPF file system of a test's own.
struct Pins(Folder);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = umount(&self.0.0);
    }
}

pub fn mounts_and_pins_are_in_the_diff() {
    let pins = Pins(Folder::new());
    let path = pins.0.0.display().to_string();
    let made = made_by(None, &[&path], || {
        mount(Some("bpf"), &pins.0.0, Some("bpf"), MsFlags::empty(), None::<&str>).expect("mounted");
    });
    // Some kernels put files of their own into it.
    let mounted: Vec<Difference> = made.into_iter().filter(|d| d.line.kind != "eBPF pin").collect();
    assert_made(&mounted, &["+mount"], "bpf");
    let made = made_by(None, &[&path], || fs::create_dir(pins.0.0.join("kept")).expect("made"));
    assert_made(&made, &["+eBPF pin"], "kept");
}

pub fn a_journal_that_outlives_its_run_in_a_process_is_in_the_diff() {
    let folder = Folder::new();
    let journal = folder.0.join("journal.ndjson");
    File::create(&journal).expect("a journal");
    let mut child = None;
    let made = made_by(None, &[&folder.0.display().to_string()], || {
        let open = File::open(&journal).expect("open");
        child = Command::new("sleep").arg("1000").stdin(Stdio::from(open)).spawn().ok();
    });
    let mut child = child.expect("a process");
    child.kill().expect("killed");
    child.wait().expect("reaped");
    assert_made(&made, &["+open file"], "journal.ndjson in");
}

pub fn traffic_makes_no_difference() {
    let (pair, group) = (Pair::new(), Group::new("busy"));
    pair.a.must("tc qdisc add dev va root handle 1: htb default 10");
    pair.a.must("tc class add dev va parent 1: classid 1:10 htb rate 100mbit");
    pair.a.must("tc qdisc add dev va clsact");
    pair.a.must("tc filter add dev va egress protocol ip u32 match u32 0 0 action mirred egress mirror dev lo");
    let port = port();
    let _server = group.server(&pair.b.name, port);
    pair.b.wait_for(port);
    let names = pair.names();
    let before = Snapshot::take(&names).expect("a snapshot");
    // Neighbours are learnt, queues and filters count, and the times of an action change.
    pair.a.must("ip neigh flush all");
    pair.a.must(&format!("ping -q -c5 -i0.3 {B4}"));
    assert!((0..50).all(|_| pair.a.round_trip(B4, port).is_some()));
    let mut made = before.diff(&Snapshot::take(&names).expect("a snapshot"));
    made.retain(|d| names.contains(&d.line.place));
    assert_eq!(made, []);
    assert!(pair.a.must("tc -s class show dev va").contains("pkt"), "traffic went through the class");
}

pub fn a_snapshot_is_quick() {
    let pair = Pair::new();
    let mut times: Vec<_> = (0..9)
        .map(|_| {
            let begun = Instant::now();
            Snapshot::take(std::slice::from_ref(&pair.a.name)).expect("a snapshot");
            begun.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("a snapshot of this host and one namespace: median {:?}, worst {:?}", times[4], times[8]);
    assert!(times[4] < SOON, "{times:?}");
}
