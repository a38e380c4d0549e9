//! Namespaces of the tests' own, and measurements in them.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use firedrill_agent::dataplane::{Action, DataPlane, Direction, Loss, RuleSpec, monotonic_ns};
use nix::sched::{CloneFlags, setns, unshare};

/// Leaves the test, loudly, when it is not run by root.
macro_rules! needs_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root for network namespaces and eBPF");
            return;
        }
    };
}
pub(crate) use needs_root;

/// A network namespace without a name: it ends with the last descriptor of it.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// A new one, with `lo` up.
    pub fn new() -> Self {
        let file = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare");
            File::open("/proc/thread-self/ns/net").expect("own namespace")
        })
        .join()
        .expect("thread");
        let netns = Self { file };
        netns.ip("link set lo up");
        netns
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Runs `work` on a thread in the namespace. Sockets that it makes stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.file, CloneFlags::CLONE_NEWNET).expect("setns");
                    work()
                })
                .join()
                .expect("work in the namespace")
        })
    }

    /// Runs a command in the namespace.
    pub fn run(&self, command: &str) -> Output {
        let mut words = command.split_whitespace();
        let program = words.next().expect("a command");
        let arguments: Vec<&str> = words.collect();
        self.within(|| Command::new(program).args(arguments).output()).expect("command")
    }

    /// Runs `ip`, which must succeed.
    pub fn ip(&self, arguments: &str) -> String {
        let output = self.run(&format!("ip {arguments}"));
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn ifindex(&self, ifname: &str) -> u32 {
        self.within(|| nix::net::if_::if_nametoindex(ifname)).expect("interface")
    }

    /// What a delay line on `lo` needs.
    pub fn allow_loopback_delay(&self) {
        self.within(|| {
            for setting in ["route_localnet", "accept_local"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/lo/{setting}"), "1").expect("sysctl");
            }
        });
    }

    pub fn data_plane(&self) -> DataPlane {
        DataPlane::open(self.fd()).expect("data plane")
    }

    pub fn udp(&self, address: &str) -> UdpSocket {
        let socket = self.within(|| UdpSocket::bind(address)).expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
        socket
    }

    pub fn listen(&self, address: &str) -> TcpListener {
        self.within(|| TcpListener::bind(address)).expect("listen")
    }

    pub fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)))
    }
}

/// Two namespaces with a veth pair: `va` (10.77.0.1, fd77::1) and `vb` (10.77.0.2, fd77::2).
#[derive(Debug)]
pub struct Pair {
    pub a: Netns,
    pub b: Netns,
}

pub const A4: &str = "10.77.0.1";
pub const B4: &str = "10.77.0.2";
pub const A6: &str = "fd77::1";
pub const B6: &str = "fd77::2";

impl Pair {
    pub fn new() -> Self {
        let (a, b) = (Netns::new(), Netns::new());
        let b_path = format!("/proc/{}/fd/{}", std::process::id(), b.file.as_raw_fd());
        a.ip(&format!("link add va type veth peer name vb netns {b_path}"));
        for (netns, dev, v4, v6) in [(&a, "va", A4, A6), (&b, "vb", B4, B6)] {
            netns.ip(&format!("addr add {v4}/24 dev {dev}"));
            netns.ip(&format!("addr add {v6}/64 dev {dev} nodad"));
            netns.ip(&format!("link set {dev} up"));
        }
        let pair = Self { a, b };
        // Address resolution happens once, before anything is measured.
        for target in [B4, B6] {
            let reachable = (0..30).any(|_| pair.a.run(&format!("ping -c1 -W0.2 {target}")).status.success());
            assert!(reachable, "the veth pair carries {target}");
        }
        pair
    }

    /// A TCP stream of so many bytes from `a` to an address of `b` arrives whole and in order.
    pub fn assert_carries_a_stream(&self, to: &str, bytes: u32) {
        let listener = self.b.listen(&address(to, 0).to_string());
        let mut stream = self.a.connect(listener.local_addr().expect("bound")).expect("connected");
        let sent: Vec<u8> = (0..bytes).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let got = thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut got = Vec::new();
                listener.accept().expect("accepted").0.read_to_end(&mut got).expect("read");
                got
            });
            stream.write_all(&sent).expect("sent");
            drop(stream);
            receiver.join().expect("no panic")
        });
        assert!(got == sent, "{} of {bytes} bytes to {to}", got.len());
    }

    /// A data plane in `a`, attached both ways at `va`.
    pub fn data_plane(&self) -> (DataPlane, u32) {
        let mut plane = self.a.data_plane();
        let va = self.a.ifindex("va");
        plane.attach(va, "va", Direction::Egress).expect("attach");
        plane.attach(va, "va", Direction::Ingress).expect("attach");
        (plane, va)
    }
}

/// A time far enough away for any test.
pub fn later() -> u64 {
    monotonic_ns() + 60_000_000_000
}

pub fn drop_share(probability: f64) -> RuleSpec {
    RuleSpec::egress(Action::Drop(Loss::Independent { probability }), later())
}

pub fn delay_ms(delay: u64, jitter: u64) -> RuleSpec {
    let action = Action::delay(Duration::from_millis(delay), Duration::from_millis(jitter));
    RuleSpec::egress(action, later())
}

/// The delays of `count` datagrams on their way; `None` for those that were lost. They are sent every `gap`.
pub fn one_way(from: &UdpSocket, to: &UdpSocket, count: u32, gap: Duration) -> Vec<Option<Duration>> {
    let target = to.local_addr().expect("bound");
    let mut sent = Vec::new();
    let arrived = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut arrived = vec![None; count as usize];
            let mut left = count;
            let mut bytes = [0; 64];
            while left > 0 {
                let Ok((4, _)) = to.recv_from(&mut bytes) else { break };
                let index = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                arrived[index as usize] = Some(Instant::now());
                left -= 1;
            }
            arrived
        });
        for index in 0..count {
            sent.push(Instant::now());
            from.send_to(&index.to_ne_bytes(), target).expect("the sender sees no error");
            if !gap.is_zero() {
                thread::sleep(gap);
            }
        }
        receiver.join().expect("receiver")
    });
    sent.into_iter().zip(arrived).map(|(sent, arrived)| Some(arrived? - sent)).collect()
}

/// The quantile of what arrived, in milliseconds.
pub fn quantile_ms(delays: &[Option<Duration>], q: f64) -> f64 {
    let mut ms: Vec<f64> = delays.iter().flatten().map(|delay| delay.as_secs_f64() * 1e3).collect();
    assert!(!ms.is_empty(), "nothing arrived");
    ms.sort_by(f64::total_cmp);
    ms[((ms.len() - 1) as f64 * q) as usize]
}

/// How much later than due the quickest packet may be, in milliseconds: guests are emulated, one processor at a time, and
/// the host may be busy. Less than the delays of these tests, so that a delay is told from none.
pub fn slack_ms() -> f64 {
    if in_guest() { 45.0 } else { 5.0 }
}

/// Whether this is a guest in software emulation.
pub fn in_guest() -> bool {
    std::env::var_os("FIREDRILL_VM").is_some()
}

/// Every datagram arrived, none early, and the quickest not late: the others may have met a busy machine.
pub fn assert_delayed(delays: &[Option<Duration>], ms: f64, what: &str) {
    assert!(delays.iter().all(Option::is_some), "{what}: lost some of {delays:?}");
    let quickest = quantile_ms(delays, 0.0);
    assert!((ms..ms + slack_ms()).contains(&quickest), "{what}: the quickest took {quickest} ms, {ms} expected");
}

/// Every datagram arrived, and at once.
pub fn assert_undelayed(delays: &[Option<Duration>], what: &str) {
    assert_delayed(delays, 0.0, what);
}

/// A port that no other test of this process uses.
pub fn port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(20_000);
    NEXT.fetch_add(1, Ordering::Relaxed) as u16
}

pub fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().expect("address"), port)
}
