//! Processes of the tests' own: this binary again, told by its input what to do.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Lines, Read, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use firedrill_agent::dataplane::{DataPlane, Direction, monotonic_ns};
use nix::sched::{CloneFlags, setns};

use crate::support::{Netns, delay_ms};

const NETNS: &str = "FIREDRILL_TEST_NETNS";
const REPLY: &str = "reply: ";

/// Another process in a namespace of the test. It dies with the test.
pub struct Peer {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    pub fn start(netns: &Netns) -> Self {
        Self::start_with(netns, Stdio::inherit())
    }

    /// One that has `inherited` open, where its errors would go.
    pub fn start_with(netns: &Netns, inherited: Stdio) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "child::peer", "--ignored", "--nocapture"])
            .env(NETNS, format!("/proc/{}/fd/{}", std::process::id(), netns.fd().as_raw_fd()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(inherited)
            .spawn()
            .expect("spawn");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut peer = Self { child, input, output };
        assert_eq!(peer.reply(), "ready");
        peer
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn reply(&mut self) -> String {
        loop {
            let line = self.output.next().expect("the peer lives").expect("text");
            // The test harness may have begun the line.
            if let Some((_, reply)) = line.split_once(REPLY) {
                return reply.into();
            }
        }
    }

    /// Gives an order and waits for what it says.
    pub fn ask(&mut self, order: &str) -> String {
        writeln!(self.input, "{order}").expect("the peer lives");
        self.reply()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid() as i32), signal).expect("signal");
    }

    pub fn wait(&mut self) {
        self.child.wait().expect("wait");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A cgroup of the test's own.
pub struct Cgroup {
    pub path: PathBuf,
}

impl Cgroup {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/mounts").expect("/proc/mounts");
        let root = mounts
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|fields| fields[2] == "cgroup2")
            .expect("cgroup v2 is mounted")[1];
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(root).join(format!("fd-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("cgroup");
        Self { path }
    }

    pub fn add(&self, peer: &Peer) {
        fs::write(self.path.join("cgroup.procs"), peer.pid().to_string()).expect("move");
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
        eprintln!("LEFT BEHIND: {}", self.path.display());
    }
}

fn say(reply: &str) {
    println!("{REPLY}{reply}");
}

/// The other process. Orders: `open` (a UDP socket), `send ADDRESS COUNT`, `receive` (bind; says the address), `count`
/// (datagrams that came within 300 ms), `echo` (a TCP server; says the address), `hold` (a data plane with 100 ms).
#[test]
#[ignore = "run by other tests, as a process of its own"]
fn peer() {
    let Ok(netns) = std::env::var(NETNS) else {
        panic!("only for other tests");
    };
    setns(File::open(netns).expect("namespace"), CloneFlags::CLONE_NEWNET).expect("setns");
    say("ready");
    let mut socket: Option<UdpSocket> = None;
    let mut plane = None;
    for line in std::io::stdin().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["open"] => {
                socket = Some(UdpSocket::bind("127.0.0.1:0").expect("bind"));
                say("done");
            }
            ["send", to, count] => {
                let socket = socket.as_ref().expect("open first");
                for _ in 0..count.parse().expect("a number") {
                    socket
                        .send_to(&monotonic_ns().to_ne_bytes(), to.parse::<SocketAddr>().expect("address"))
                        .expect("send");
                    thread::sleep(Duration::from_millis(1));
                }
                say("done");
            }
            ["receive"] => {
                let bound = UdpSocket::bind("127.0.0.1:0").expect("bind");
                bound.set_read_timeout(Some(Duration::from_millis(300))).expect("timeout");
                say(&bound.local_addr().expect("bound").to_string());
                socket = Some(bound);
            }
            ["count"] => {
                let socket = socket.as_ref().expect("receive first");
                let mut bytes = [0; 8];
                let mut count = 0;
                while socket.recv(&mut bytes).is_ok() {
                    count += 1;
                }
                say(&count.to_string());
            }
            ["echo"] => {
                let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
                say(&listener.local_addr().expect("bound").to_string());
                thread::spawn(move || {
                    for stream in listener.incoming() {
                        let mut stream = stream.expect("accept");
                        let mut question = [0; 4];
                        while stream.read_exact(&mut question).is_ok() {
                            stream.write_all(&question).expect("answer");
                        }
                    }
                });
            }
            ["hold"] => plane = Some(hold()),
            _ => panic!("{line}"),
        }
    }
    drop(plane);
}

fn hold() -> DataPlane {
    let own = File::open("/proc/thread-self/ns/net").expect("own namespace");
    let mut plane = DataPlane::open(std::os::fd::AsFd::as_fd(&own)).expect("data plane");
    let va = nix::net::if_::if_nametoindex("va").expect("va");
    plane.attach(va, "va", Direction::Egress).expect("attach");
    plane.delay_line_start(va, Direction::Egress).expect("line");
    plane.add_rule(delay_ms(100, 0)).expect("rule");
    let ids: Vec<String> = plane.link_ids().iter().map(u32::to_string).collect();
    say(&ids.join(" "));
    plane
}
