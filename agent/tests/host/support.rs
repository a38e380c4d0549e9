//! Guards for what the tests make: each removes its object when it goes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use firedrill_agent::agent::{Agent, Options};
use firedrill_agent::host::{cgroup, netns, process, wait_until};
use firedrill_agent::journal::Directories;
use firedrill_agent::snapshot::Snapshot;
use firedrill_agent::stage;
use firedrill_model::change::{Change, Plan};
use firedrill_model::config::Config;
use firedrill_model::facts::{Control, NetnsRef, ProcessRef, TargetFacts};
use firedrill_model::fault::Fault;
use firedrill_model::run::TargetPlan;
use firedrill_model::target::TargetSpec;
use serde_json::json;

/// A time that no fault of these tests reaches by itself.
pub const LONG: Duration = Duration::from_secs(60);
/// How long a state may take to show.
pub const SOON: Duration = Duration::from_secs(3);

/// Whether this is a guest in software emulation, where all takes a few times as long.
pub fn in_guest() -> bool {
    std::env::var_os("FIREDRILL_VM").is_some()
}

/// A name that nobody else on this machine uses, short enough for a namespace.
pub fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("fdh-{}-{}-{what}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The options of an agent of these tests: its guardian is this binary.
pub fn options(directories: &Directories, what: &str) -> Options {
    let this = std::env::current_exe().expect("this binary");
    Options {
        directories: directories.clone(),
        guardian: vec![this.into(), "guardian".into()],
        lease: Duration::from_secs(60),
        resolver: |_, host| match host {
            FAR => Ok(vec![B4.parse().expect("an address"), "fd78::2".parse().expect("an address")]),
            _ => Err("it is not in the test's book of names".into()),
        },
        ..Options::new(what)
    }
}

/// Sends every datagram back to where it came from, on both loopback addresses and all others.
pub fn answer(port: &str) -> ExitCode {
    let port: u16 = port.parse().expect("a port");
    let socket = UdpSocket::bind(("::", port)).expect("a socket for both families");
    let mut buffer = [0; 1500];
    loop {
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    }
}

/// Whether we are root; if not, says that these tests do not run.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("SKIPPED: these tests need root for namespaces, control groups and eBPF");
    }
    root
}

/// A folder.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(unique("dir"));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    pub fn directories(&self) -> Directories {
        Directories { run: self.0.join("run"), state: self.0.join("state") }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An agent with a lock and journal of its own.
#[derive(Debug)]
pub struct Bench {
    pub agent: Agent,
    pub folder: Folder,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(Config::default())
    }

    /// On a host with this configuration.
    pub fn with(config: Config) -> Self {
        let folder = Folder::new();
        let options = Options { config, ..options(&folder.directories(), "a test") };
        Self { agent: Agent::start(options).expect("an agent"), folder }
    }

    pub fn resolve(&self, spec: TargetSpec) -> TargetFacts {
        self.agent.resolve(&target(spec)).expect("a target")
    }

    /// Ends everything, and sees that nothing is left in these namespaces or under these names.
    pub fn ends_clean(&self, before: &Snapshot, namespaces: &[String], marks: &[&str]) {
        let farewell = self.agent.stop();
        assert_eq!(farewell.left_over, [] as [String; 0]);
        assert_unchanged(before, namespaces, marks);
        assert!(!self.folder.directories().journal().exists(), "the journal goes when nothing is outstanding");
    }
}

/// Sees that the host is as before, as far as these namespaces and names are concerned. What other agents on this
/// machine do at the same time is their affair.
pub fn assert_unchanged(before: &Snapshot, namespaces: &[String], marks: &[&str]) {
    let mut left = before.lasting_diff(namespaces, SOON).expect("a snapshot");
    left.retain(|difference| {
        let line = &difference.line;
        let ours =
            (difference.appeared && line.what.contains("fdrill_")) || marks.iter().any(|mark| line.what.contains(mark));
        ours || namespaces.contains(&line.place)
    });
    let text: Vec<String> = left.iter().map(ToString::to_string).collect();
    assert!(text.is_empty(), "left behind:\n{}", text.join("\n"));
}

pub fn target(spec: TargetSpec) -> TargetPlan {
    TargetPlan::of(spec)
}

pub fn controlled(spec: TargetSpec, control: Control) -> TargetPlan {
    TargetPlan { control: Some(control), ..target(spec) }
}

/// A fault as files write it.
pub fn fault(name: &str, parameters: serde_json::Value) -> Fault {
    serde_json::from_value(json!({ name: parameters })).expect("a fault")
}

pub fn plan(changes: Vec<Change>) -> Plan {
    Plan { changes, notes: Vec::new() }
}

pub fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// A process; ended and reaped when it goes.
#[derive(Debug)]
pub struct Process {
    pub child: Child,
    pub identity: ProcessRef,
}

impl Process {
    /// Starts a program, and waits until it is that program.
    pub fn start(argv: &[&str]) -> Self {
        let child = Command::new(argv[0])
            .args(&argv[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a process");
        let identity = process::stat(child.id().cast_signed()).expect("a process").process;
        Self { child, identity }
    }

    /// A `sleep` that can be told from every other by its argument, which is given as well.
    pub fn sleep() -> (Self, String) {
        let seconds = unique_seconds();
        (Self::start(&["sleep", &seconds]), seconds)
    }

    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    pub fn spec(&self) -> TargetSpec {
        TargetSpec { pid: Some(self.pid()), ..TargetSpec::default() }
    }

    pub fn state(&self) -> char {
        process::stat(self.pid()).map_or('-', |stat| stat.state)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A number of seconds that is on no other command line.
pub fn unique_seconds() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{}.{:04}", 100_000 + std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A control group; its processes are killed and it is removed when it goes.
#[derive(Debug)]
pub struct Group {
    /// Below the mount point.
    pub path: String,
    pub directory: PathBuf,
}

impl Group {
    pub fn new(what: &str) -> Self {
        Self::at(unique(what))
    }

    fn at(path: String) -> Self {
        let directory = cgroup::path_of(&path).expect("cgroup v2");
        fs::create_dir(&directory).expect("a new group");
        Self { path, directory }
    }

    /// A group inside this one.
    pub fn below(&self, name: &str) -> Self {
        Self::at(format!("{}/{name}", self.path))
    }

    pub fn spec(&self) -> TargetSpec {
        TargetSpec { cgroup: Some(self.path.clone()), ..TargetSpec::default() }
    }

    /// Starts a program in it, and in a named namespace.
    pub fn start(&self, argv: &[&str], netns: Option<&str>) -> Process {
        let (command, env) = (words(argv), BTreeMap::new());
        let what = stage::Spawn { command: &command, env: &env, netns, cgroup: &self.path, log: None };
        let (child, identity) = stage::spawn(&what).expect("a process");
        Process { child, identity }
    }

    /// A server in it that answers datagrams on a port.
    pub fn server(&self, netns: &str, port: u16) -> Process {
        let this = std::env::current_exe().expect("this binary").display().to_string();
        self.start(&[&this, "answer", &port.to_string()], Some(netns))
    }

    pub fn is_frozen(&self) -> bool {
        cgroup::is_frozen(&cgroup::at(&self.directory).expect("the group"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.directory.join("cgroup.freeze"), "0");
        let _ = stage::remove_cgroup(&self.directory);
    }
}

/// A named network namespace, with `lo` up.
#[derive(Debug)]
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new(what: &str) -> Self {
        let name = unique(what);
        stage::make_netns(&name).expect("a namespace");
        Self { name }
    }

    pub fn reference(&self) -> NetnsRef {
        netns::named(&self.name).expect("the namespace")
    }

    pub fn spec(&self) -> TargetSpec {
        TargetSpec { netns: Some(self.name.clone()), ..TargetSpec::default() }
    }

    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::within(&self.reference(), work).expect("entered")
    }

    /// Runs a command in it.
    pub fn run(&self, command: &str) -> Output {
        let mut words = command.split_whitespace();
        let program = words.next().expect("a command");
        self.within(|| Command::new(program).args(words).output()).expect("the command")
    }

    /// Runs a command in it that must succeed; its output.
    pub fn must(&self, command: &str) -> String {
        let output = self.run(command);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Time until a server in it answers; `None` when it does not within a while.
    pub fn round_trip(&self, address: &str, port: u16) -> Option<Duration> {
        self.within(|| {
            let any = if address.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(400))).expect("a timeout");
            let begun = Instant::now();
            socket.send_to(b"?", (address, port)).expect("the sender sees no error");
            socket.recv(&mut [0; 8]).ok().map(|_| begun.elapsed())
        })
    }

    /// Waits until a server in it answers.
    pub fn wait_for(&self, port: u16) {
        assert!(wait_until(SOON, || self.round_trip("127.0.0.1", port).is_some()), "a server on port {port}");
    }

    /// A kernel parameter in it.
    pub fn parameter(&self, path: &str) -> String {
        self.within(|| fs::read_to_string(path)).expect("a parameter").trim().to_owned()
    }

    pub fn has_tap(&self) -> bool {
        self.must("ip -br link").lines().any(|line| line.starts_with("fdl"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = stage::delete_netns(&self.name);
    }
}

/// Two namespaces joined by a veth pair: `va` (10.78.0.1, fd78::1) in `a`, `vb` (10.78.0.2, fd78::2) in `b`.
#[derive(Debug)]
pub struct Pair {
    pub a: Netns,
    pub b: Netns,
}

pub const B4: &str = "10.78.0.2";
/// The name under which agents of these tests know the namespace `b` of a pair.
pub const FAR: &str = "far.test";

impl Pair {
    pub fn new() -> Self {
        let (a, b) = (Netns::new("a"), Netns::new("b"));
        a.must(&format!("ip link add va type veth peer name vb netns {}", b.name));
        for (netns, dev, n) in [(&a, "va", 1), (&b, "vb", 2)] {
            netns.must(&format!("ip addr add 10.78.0.{n}/24 dev {dev}"));
            netns.must(&format!("ip addr add fd78::{n}/64 dev {dev} nodad"));
            netns.must(&format!("ip link set {dev} up"));
        }
        let pair = Self { a, b };
        // IPv6 waits for the links to settle, and then a second before it asks again.
        pair.a.must(&format!("ping -c4 -i0.4 -W2 {B4}"));
        pair.a.must("ping -c4 -i0.4 -W2 fd78::2");
        pair
    }

    pub fn names(&self) -> [String; 2] {
        [self.a.name.clone(), self.b.name.clone()]
    }
}

/// The guardian of an agent, by the folder in its arguments.
pub fn guardian_of(directories: &Directories) -> Option<i32> {
    let run = directories.run.display().to_string();
    let is_it = |pid: &i32| {
        let line = process::cmdline(*pid);
        line.starts_with("firedrill-guardian") && line.contains(&run)
    };
    process::all().into_iter().map(|s| s.process.pid).find(is_it)
}

/// Directory of a guardian's control group.
pub fn shelter_of(guardian: i32) -> PathBuf {
    cgroup::path_of(&format!("firedrill-guardian-{guardian}")).expect("cgroup v2")
}

/// Waits, and says what for when it was in vain.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(wait_until(SOON, condition), "in vain: {what}");
}

/// A port that no other test of this process uses.
pub fn port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(21_000);
    NEXT.fetch_add(1, Ordering::Relaxed) as u16
}

/// Reads a small file, or says why it cannot be read.
pub fn read(path: &std::path::Path) -> io::Result<String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned())
}
