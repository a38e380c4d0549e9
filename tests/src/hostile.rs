//! Input that was made by chance or by malice: what holds whatever the bytes are. Each function panics when it does not.
//!
//! `cargo xtask fuzz` looks for such bytes for as long as it is told to; `tests/hostile.rs` tries ten thousand of each
//! kind, the same ones in every run.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use firedrill_agent::journal::{self, Entry};
use firedrill_agent::undo::Undo;
use firedrill_model::file::{Check, DnsCheck, TcpCheck};
use firedrill_model::log::Run;
use firedrill_model::lower::{Choices, Library};
use firedrill_verifier::judge;
use firedrill_verifier::probe::Asker;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A file of a user's is taken, or refused at a line that it has. What is taken can be planned.
pub fn experiment(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut library = Library::default();
    if let Err(found) = library.add("x.yaml", &text) {
        // As YAML counts them.
        let lines = text.replace("\r\n", "\n").split(['\n', '\r']).count();
        assert!(found.place.line <= lines, "{found}");
        return;
    }
    for finding in library.check() {
        assert!(!finding.to_string().is_empty());
    }
    for name in library.experiments(None) {
        // A refusal is as good as a plan.
        let _ = library.lower(&name, &Choices { seed: 7, force_seed: true, env: &|_| None });
    }
}

/// Any bytes can be read as a journal. One that was written, and then damaged in one place, gives nothing that was not
/// written, and hides nothing: what it lacks is told as unreadable, unless all behind it is lost, too.
///
/// The first bytes say what is written and how it is damaged; all of them are also read as they are.
pub fn journal(bytes: &[u8]) {
    let _ = journal::read(bytes);
    let [entries, at @ .., kind] = bytes.get(..5).unwrap_or_default() else { return };
    let mut written = Vec::new();
    let mut lines = Vec::new();
    for change in 1..=u64::from(entries % 5) {
        let name = String::from_utf8_lossy(bytes.get(5..).unwrap_or_default()).chars().take(20).collect::<String>();
        let undo = Undo::DeleteNetns { name: format!("{name}{change}") };
        let entry = Entry::Intent { change, boot: "boot".into(), what: name, undo };
        lines.push(entry.line().expect("a record"));
        written.push(entry);
        if entries & 0x80 != 0 && change % 2 == 0 {
            lines.push(Entry::Applied { change }.line().expect("a record"));
            lines.push(Entry::Reverted { change }.line().expect("a record"));
        }
    }
    let whole = lines.concat().into_bytes();
    let before = journal::read(&whole);
    assert!(before.unreadable.is_empty(), "{before:?}");
    let at = at.iter().fold(0_usize, |at, byte| at << 8 | usize::from(*byte)) % (whole.len() + 1);
    let mut damaged = whole.clone();
    let is_cut = kind % 4 == 0;
    match kind % 4 {
        0 => damaged.truncate(at),
        1 if at < damaged.len() => damaged[at] ^= kind >> 2 | 1,
        2 => damaged.insert(at, *kind),
        // A lost block of a disk reads as zeros.
        3 => damaged[at..].iter_mut().take(usize::from(kind >> 3) + 1).for_each(|byte| *byte = 0),
        _ => {}
    }
    let after = journal::read(&damaged);
    for open in &after.open {
        let is_it = |entry: &&Entry| {
            matches!(entry, Entry::Intent { change, boot, what, undo }
                if (change, boot, what, undo) == (&open.change, &open.boot, &open.what, &open.undo))
        };
        assert!(written.iter().any(|entry| is_it(&entry)), "nobody wrote {open:?}");
    }
    let lost = before.open.iter().any(|open| !after.open.contains(open));
    assert!(!lost || is_cut || !after.unreadable.is_empty(), "hidden: {:?}", String::from_utf8_lossy(&damaged));
}

/// Whatever stands in a log, it is read or refused, and what is read can be judged and reported.
pub fn log(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(mut run) = Run::parse(&text) else { return };
    // Reports show the judgement of the log, which somebody else may have written, or our own.
    if bytes.len().is_multiple_of(2) {
        run.judgement = Some(judge::run(&run));
    }
    for (name, report) in firedrill::reports(&run).expect("reports") {
        assert!(!report.is_empty(), "{name}");
    }
}

/// Whatever a server answers to a probe is good or bad, and said in a few words. The first byte says to which probe.
pub fn answer(bytes: &[u8]) {
    let [probe, answer @ ..] = bytes else { return };
    thread_local!(static SERVERS: RefCell<Option<Servers>> = const { RefCell::new(None) });
    SERVERS.with_borrow_mut(|servers| {
        let servers = servers.get_or_insert_with(Servers::start);
        let told = servers.ask(usize::from(*probe), answer);
        if let Err(why) = told {
            assert!(!why.is_empty() && why.len() < 200, "{why}");
            assert!(!why.contains("timed out"), "the server has closed the connection: {why}");
        }
    });
}

/// Servers on the loopback interface that answer what they are told to, and the probes that ask them.
struct Servers {
    answer: Arc<Mutex<Vec<u8>>>,
    probes: Vec<Asker>,
    runtime: tokio::runtime::Runtime,
}

/// The end of a DNS answer that says SERVFAIL: a server that is heard by nobody must not make the test wait.
const NO_ANSWER: [u8; 10] = [0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0];

impl Servers {
    fn start() -> Self {
        let answer = Arc::new(Mutex::new(Vec::new()));
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let (tcp_address, udp_address) = (tcp.local_addr().expect("a port"), udp.local_addr().expect("a port"));
        let given = Arc::clone(&answer);
        std::thread::spawn(move || {
            for stream in tcp.incoming() {
                let Ok(mut stream) = stream else { continue };
                // Probes write before they read.
                let _ = stream.read(&mut [0; 1024]);
                let bytes = given.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let _ = stream.write_all(&bytes);
            }
        });
        let given = Arc::clone(&answer);
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((_, from)) = udp.recv_from(&mut question) {
                let bytes = given.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let _ = udp.send_to(&[&question[..2], &bytes].concat(), from);
                let _ = udp.send_to(&[&question[..2], &NO_ANSWER].concat(), from);
            }
        });
        let http = |more: serde_json::Value| {
            let mut check = serde_json::json!({"url": format!("http://{tcp_address}/")});
            check.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            Check::Http(serde_json::from_value(check).expect("a check"))
        };
        let dns = |record: &str| {
            let server = Some(udp_address.to_string());
            Check::Dns(DnsCheck { name: "a.b".into(), record: record.into(), server, expect: Some("10.0.0.1".into()) })
        };
        let checks = [
            http(serde_json::json!({"contains": "ok"})),
            http(serde_json::json!({"json": {"/a/0": 1}})),
            Check::Tcp(TcpCheck {
                address: tcp_address.to_string(),
                send: Some("PING\r\n".into()),
                expect: Some("PONG".into()),
            }),
            dns("A"),
            dns("TXT"),
            dns("SRV"),
        ];
        let probes = checks.iter().map(|check| Asker::new(check, None).expect("a probe")).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { answer, probes, runtime }
    }

    fn ask(&self, probe: usize, answer: &[u8]) -> Result<(), String> {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer.to_vec();
        self.runtime.block_on(self.probes[probe % self.probes.len()].ask(Duration::from_secs(20)))
    }
}

/// A seed, damaged in some places as `number` says.
pub fn damaged(seed: &[u8], number: u64) -> Vec<u8> {
    const PIECES: [&[u8]; 16] = [
        b"",
        b"{",
        b"}",
        b"[",
        b"\"",
        b"\n",
        b"\t",
        b"-1",
        b"0",
        b"1e308",
        b"99999999999999999999",
        b"null",
        b"\0",
        b"\xff",
        b"\xc3\xbc",
        b"<b>&",
    ];
    let mut rng = StdRng::seed_from_u64(number);
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..4) {
        let at = rng.random_range(0..=bytes.len());
        let end = (at + rng.random_range(0..12)).min(bytes.len());
        match rng.random_range(0..6) {
            0 => drop(bytes.drain(at..end)),
            1 => {
                let copy = bytes[at..end].to_vec();
                let to = rng.random_range(0..=bytes.len());
                drop(bytes.splice(to..to, copy));
            }
            2 => bytes.truncate(at),
            // A digit for a digit, a letter for a letter: what still has its form, and means something else.
            3 | 4 => {
                if let Some(byte) = bytes.get_mut(at).filter(|byte| byte.is_ascii_alphanumeric()) {
                    let of: &[u8] = if byte.is_ascii_digit() { b"0123456789" } else { b"abehimnstwx" };
                    *byte = of[rng.random_range(0..of.len())];
                }
            }
            _ => drop(bytes.splice(at..end, PIECES[rng.random_range(0..PIECES.len())].iter().copied())),
        }
    }
    bytes
}
