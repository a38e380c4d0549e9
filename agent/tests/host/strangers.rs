//! What others have on a host: eBPF programs that are not ours, and a crossroads of namespaces with queues, filters and
//! address translation, through which traffic flows that no fault is about.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use aya::programs::tc::{SchedClassifier, TcAttachOptions, TcAttachType};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSock, LinkOrder};
use aya::{Ebpf, EbpfLoader};

use crate::support::{Group, Netns, eventually};

/// The name of every program of a stranger.
pub const STRANGER: &str = "stranger";

/// A program of another's; it ends when this goes.
pub struct Stranger {
    _bpf: Ebpf,
}

impl Stranger {
    /// At a tcx hook, before or after all that is there. It lets everything pass to the next.
    pub fn at_interface(netns: &Netns, interface: &str, hook: TcAttachType, order: LinkOrder) -> Self {
        const NEXT: i32 = -1;
        let mut bpf = load("classifier", NEXT);
        netns.within(|| {
            let program: &mut SchedClassifier = bpf.program_mut(STRANGER).expect("it").try_into().expect("of its type");
            program.load().expect("loaded");
            program.attach_with_options(interface, hook, TcAttachOptions::TcxOrder(order)).expect("attached");
        });
        Self { _bpf: bpf }
    }

    /// At a control group, for what its sockets send.
    pub fn at_packets_of(group: &Group) -> Self {
        let mut bpf = load("cgroup_skb/egress", 1);
        let program: &mut CgroupSkb = bpf.program_mut(STRANGER).expect("it").try_into().expect("of its type");
        program.load().expect("loaded");
        let directory = File::open(&group.directory).expect("the group");
        program.attach(directory, CgroupSkbAttachType::Egress, CgroupAttachMode::Single).expect("attached");
        Self { _bpf: bpf }
    }

    /// At a control group, for the sockets that are made in it: where ours is, too.
    pub fn at_sockets_of(group: &Group) -> Self {
        let mut bpf = load("cgroup/sock_create", 1);
        let program: &mut CgroupSock = bpf.program_mut(STRANGER).expect("it").try_into().expect("of its type");
        program.load().expect("loaded");
        let directory = File::open(&group.directory).expect("the group");
        program.attach(directory, CgroupAttachMode::Single).expect("attached");
        Self { _bpf: bpf }
    }
}

fn load(section: &str, answer: i32) -> Ebpf {
    EbpfLoader::new().load(&object(section, answer)).expect("an object")
}

/// A filter of another's for what arrives: a classic program that matches nothing.
pub fn classic_filter(netns: &Netns, interface: &str) {
    let before = format!("filter add dev {interface} ingress protocol all prio 9 bpf bytecode");
    let words = before.split(' ').chain(["1,6 0 0 0", "flowid", "1:1"]);
    let done = netns.within(|| Command::new("tc").args(words).status()).expect("tc");
    assert!(done.success());
}

/// An ELF object with one program, which only gives an answer.
fn object(section: &str, answer: i32) -> Vec<u8> {
    const HEADER: usize = 64;
    let mut names = vec![0];
    let mut name = |text: &str| {
        let at = names.len() as u32;
        names.extend(text.bytes().chain([0]));
        at
    };
    let [strings, symbols, license, code, function] =
        [".strtab", ".symtab", "license", section, STRANGER].map(&mut name);
    let mut program = vec![0xb7, 0, 0, 0]; // r0 = answer
    program.extend(answer.to_le_bytes());
    program.extend([0x95, 0, 0, 0, 0, 0, 0, 0]); // exit
    let mut table = vec![0; 24];
    table.extend(function.to_le_bytes());
    table.extend([0x12, 0, 4, 0]); // a global function in section 4
    table.extend(0_u64.to_le_bytes());
    table.extend((program.len() as u64).to_le_bytes());

    // Name, type, flags, bytes, link, info, size of an entry.
    let sections = [
        (strings, 3_u32, 0_u64, names, 0_u32, 0_u32, 0_u64),
        (symbols, 2, 0, table, 1, 1, 24),
        (license, 1, 3, b"GPL\0".to_vec(), 0, 0, 0),
        (code, 1, 6, program, 0, 0, 0),
    ];
    let mut file = vec![0; HEADER];
    let mut headers = vec![0; HEADER];
    for (name, kind, flags, bytes, link, info, entry) in sections {
        file.resize(file.len().next_multiple_of(8), 0);
        let (at, size) = (file.len() as u64, bytes.len() as u64);
        file.extend(bytes);
        for word in [name, kind] {
            headers.extend(word.to_le_bytes());
        }
        for word in [flags, 0, at, size] {
            headers.extend(word.to_le_bytes());
        }
        for word in [link, info] {
            headers.extend(word.to_le_bytes());
        }
        for word in [8, entry] {
            headers.extend(word.to_le_bytes());
        }
    }
    file.resize(file.len().next_multiple_of(8), 0);
    let start = file.len() as u64;
    file.extend(headers);
    file[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    file[16..20].copy_from_slice(&[1, 0, 247, 0]); // relocatable, BPF
    file[20] = 1;
    file[40..48].copy_from_slice(&start.to_le_bytes());
    file[52] = 64;
    file[58..64].copy_from_slice(&[64, 0, 5, 0, 1, 0]);
    file
}

/// A client, a router that translates its addresses, and a server that knows no way back to it.
pub struct Crossroads {
    pub client: Netns,
    pub router: Netns,
    pub server: Netns,
}

pub const SERVER: &str = "10.86.2.2";
/// The port that faults are about.
pub const VICTIM: u16 = 7001;
const BYSTANDER: u16 = 7000;

impl Crossroads {
    /// With another's queueing disciplines, filters, programs for packets, and address translation at the router.
    pub fn new() -> Self {
        let [client, router, server] = ["client", "router", "server"].map(Netns::new);
        for netns in [&client, &router, &server] {
            // It would take seconds to settle, and nothing here uses it.
            for key in ["all", "default"] {
                let path = format!("/proc/sys/net/ipv6/conf/{key}/disable_ipv6");
                netns.within(|| std::fs::write(path, "1")).expect("switched off");
            }
        }
        router.must(&format!("ip link add rc type veth peer name cr netns {}", client.name));
        router.must(&format!("ip link add rs type veth peer name sr netns {}", server.name));
        router.must("ip link add sink type veth peer name drain");
        for (netns, dev, address) in [
            (&client, "cr", "10.86.1.2"),
            (&router, "rc", "10.86.1.1"),
            (&router, "rs", "10.86.2.1"),
            (&server, "sr", SERVER),
        ] {
            netns.must(&format!("ip addr add {address}/24 dev {dev}"));
            netns.must(&format!("ip link set {dev} up"));
        }
        router.must("ip link set sink up");
        router.must("ip link set drain up");
        client.must("ip route add default via 10.86.1.1");
        router.within(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")).expect("forwarding");

        // The best that this kernel has, and what all have.
        if !router.run("tc qdisc add dev rc root handle 7: netem delay 1ms").status.success() {
            router.must("tc qdisc add dev rc root handle 7: tbf rate 1gbit burst 1mb latency 50ms");
        }
        router.must("tc qdisc add dev rs root handle 1: htb default 10");
        router.must("tc class add dev rs parent 1: classid 1:10 htb rate 1gbit");
        if !router.run("tc qdisc add dev rs parent 1:10 handle 10: fq").status.success() {
            router.must("tc qdisc add dev rs parent 1:10 handle 10: pfifo limit 1000");
        }
        router.must("tc qdisc add dev rs clsact");
        router.must(
            "tc filter add dev rs egress protocol ip prio 7 u32 match ip protocol 17 0xff action mirred egress mirror dev sink",
        );
        classic_filter(&router, "rs");
        let rules = "table ip theirs {
            chain out { type nat hook postrouting priority 100; oifname \"rs\" counter masquerade; }
            chain through { type filter hook forward priority 0; ct state established counter accept; }
        }";
        let file = std::env::temp_dir().join(&router.name);
        std::fs::write(&file, rules).expect("a rule set");
        router.must(&format!("nft -f {}", file.display()));
        let _ = std::fs::remove_file(file);
        Self { client, router, server }
    }

    /// Somebody uses all interfaces of the router, as at one of them from the start.
    pub fn hook_everywhere(&self) {
        for interface in ["rc", "sink", "drain"] {
            self.router.must(&format!("tc qdisc add dev {interface} clsact"));
            classic_filter(&self.router, interface);
        }
    }

    pub fn names(&self) -> [String; 3] {
        [&self.client, &self.router, &self.server].map(|netns| netns.name.clone())
    }

    /// Packets that the router's queues, filters and rules have counted.
    pub fn counted(&self) -> [u64; 4] {
        let number_before = |text: &str, unit: &str| -> u64 {
            let words: Vec<&str> = text.split_whitespace().collect();
            let at = words.iter().position(|word| *word == unit).unwrap_or_else(|| panic!("no {unit} in {text}"));
            words[at - 1].parse().unwrap_or_else(|_| panic!("{text}"))
        };
        let show = |command: &str| self.router.must(command);
        let nft = show("nft list chain ip theirs through");
        let words: Vec<&str> = nft.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "packets").expect("a counter");
        [
            number_before(&show("tc -s qdisc show dev rc root"), "pkt"),
            number_before(&show("tc -s class show dev rs"), "pkt"),
            number_before(&show("tc -s filter show dev rs egress"), "pkt"),
            words[at + 1].parse().expect("a number"),
        ]
    }
}

/// Traffic through the crossroads that no fault is about: numbered datagrams and one connection, both translated.
pub struct Bystanders {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    datagrams: JoinHandle<Passed>,
    connection: JoinHandle<Passed>,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Passed {
    pub rounds: u32,
    pub trouble: Vec<String>,
}

impl Bystanders {
    pub fn start(roads: &Crossroads) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = [BYSTANDER, VICTIM].map(|port| echo(roads, port, &stop));
        let listener = roads.server.within(|| TcpListener::bind((SERVER, BYSTANDER))).expect("listening");
        let answering = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut block = [0; 512];
            while let Ok(len @ 1..) = stream.read(&mut block) {
                if stream.write_all(&block[..len]).is_err() {
                    break;
                }
            }
        });
        let to = SocketAddr::new(SERVER.parse().expect("an address"), BYSTANDER);
        eventually("the way is open", || roads.client.round_trip(SERVER, BYSTANDER).is_some());
        let stream = roads.client.within(|| TcpStream::connect(to)).expect("connected");
        let socket = roads.client.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        socket.connect(to).expect("connected");
        let (ended, also_ended) = (Arc::clone(&stop), Arc::clone(&stop));
        Self {
            datagrams: thread::spawn(move || datagrams(&socket, &ended)),
            connection: thread::spawn(move || connection(stream, &also_ended)),
            threads: threads.into_iter().chain([answering]).collect(),
            stop,
        }
    }

    /// Ends it, and tells how it fared: datagrams, connection.
    pub fn end(self) -> [Passed; 2] {
        self.stop.store(true, Ordering::Relaxed);
        let fared = [self.datagrams, self.connection].map(|thread| thread.join().expect("a thread"));
        for thread in self.threads {
            thread.join().expect("a thread");
        }
        fared
    }
}

/// Longer than any disturbance, shorter than a test's patience.
const PATIENCE: Duration = Duration::from_secs(2);

fn echo(roads: &Crossroads, port: u16, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let socket = roads.server.within(|| UdpSocket::bind((SERVER, port))).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut bytes = [0; 64];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((len, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..len], from);
            }
        }
    })
}

/// Each datagram comes back before the next is sent, or is lost.
fn datagrams(socket: &UdpSocket, stop: &AtomicBool) -> Passed {
    let mut passed = Passed::default();
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    while !stop.load(Ordering::Relaxed) {
        let number = passed.rounds.to_ne_bytes();
        let mut back = [0; 8];
        let begun = Instant::now();
        match socket.send(&number).and_then(|_| socket.recv(&mut back)) {
            Ok(4) if back[..4] == number => {}
            Ok(_) => passed.trouble.push(format!("datagram {} came back as {back:?}", passed.rounds)),
            Err(e) => passed.trouble.push(format!("datagram {}: {e} after {:?}", passed.rounds, begun.elapsed())),
        }
        passed.rounds += 1;
        thread::sleep(Duration::from_millis(2));
    }
    passed
}

/// One connection to the end: nothing is lost, repeated or reset.
fn connection(mut stream: TcpStream, stop: &AtomicBool) -> Passed {
    let mut passed = Passed::default();
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    while !stop.load(Ordering::Relaxed) {
        let mut block = [passed.rounds as u8; 512];
        let sent = block;
        match stream.write_all(&sent).and_then(|()| stream.read_exact(&mut block)) {
            Ok(()) if block == sent => {}
            Ok(()) => passed.trouble.push(format!("block {} came back changed", passed.rounds)),
            Err(e) => {
                let what = if e.kind() == ErrorKind::WouldBlock { "nothing came back".into() } else { e.to_string() };
                passed.trouble.push(format!("block {}: {what}", passed.rounds));
                return passed;
            }
        }
        passed.rounds += 1;
        thread::sleep(Duration::from_millis(2));
    }
    passed
}
