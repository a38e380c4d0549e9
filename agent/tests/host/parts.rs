//! The other parts that this binary plays, chosen by its first argument.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use firedrill_agent::agent::{Agent, Options};
use firedrill_agent::dataplane::AttachMode;
use firedrill_agent::journal::Directories;
use firedrill_model::change::Plan;
use firedrill_model::fault::Fault;
use firedrill_model::run::TargetPlan;
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

use crate::support;

/// What an agent shall hold while it is killed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    pub run: std::path::PathBuf,
    pub state: std::path::PathBuf,
    pub stage: Plan,
    pub faults: Vec<(TargetPlan, Fault)>,
    /// Programs are attached as on kernels before 6.6.
    #[serde(default)]
    pub clsact: bool,
}

/// What an agent says when all of its orders are in force.
pub const ARMED: &str = "armed";

/// Plays a part, when one is asked for.
pub fn play() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["guardian", run, state] => Some(firedrill_agent::guardian::main(run.into(), state.into()).into()),
        ["agent", orders] => Some(agent(orders)),
        ["answer", port] => Some(support::answer(port)),
        ["accept", address] => Some(accept(address)),
        ["converse", address, log] => Some(converse(address, log)),
        ["call", way] => Some(make_calls(way)),
        ["linger"] => Some(linger()),
        _ => None,
    }
}

fn agent(orders: &str) -> ExitCode {
    let orders: Orders = serde_json::from_str(orders).expect("orders");
    let directories = Directories { run: orders.run, state: orders.state };
    let attach = orders.clsact.then_some(AttachMode::Clsact);
    let options = Options { attach, ..support::options(&directories, "a run that is killed") };
    let agent = Agent::start(options).expect("an agent");
    agent.apply(&orders.stage, Duration::from_secs(60)).expect("a stage");
    for (target, fault) in &orders.faults {
        let target = agent.resolve(target).expect("a target");
        agent.inject(&target, fault, Duration::from_secs(60)).expect("a fault");
    }
    println!("{ARMED}");
    io::stdout().flush().expect("heard");
    // Until it is killed, or its standard input is closed because the test has ended.
    let _ = io::stdin().read(&mut [0]);
    ExitCode::SUCCESS
}

/// Sends every byte of every connection back.
fn accept(address: &str) -> ExitCode {
    let listener = TcpListener::bind(address).expect("a listener");
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        std::thread::spawn(move || {
            let mut byte = [0];
            while connection.read_exact(&mut byte).and_then(|()| connection.write_all(&byte)).is_ok() {}
        });
    }
    ExitCode::SUCCESS
}

/// Keeps a connection up on which something is said all the time. Writes down when it is there, and how it ended.
fn converse(address: &str, log: &str) -> ExitCode {
    let mut log = File::options().create(true).append(true).open(log).expect("a log");
    loop {
        let Ok(mut connection) = TcpStream::connect(address) else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        writeln!(log, "connected").expect("written");
        let mut byte = [0];
        loop {
            if let Err(error) = connection.write_all(b"?").and_then(|()| connection.read_exact(&mut byte)) {
                writeln!(log, "{:?}", error.kind()).expect("written");
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Makes the calls that it is asked for on a socket of the file system, and answers with their errors.
fn make_calls(way: &str) -> ExitCode {
    let listener = UnixListener::bind(way).expect("a socket");
    let mut held: Option<TcpStream> = None;
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let mut order = String::new();
        BufReader::new(&stream).read_line(&mut order).expect("an order");
        let words: Vec<&str> = order.split_whitespace().collect();
        let done = match words.as_slice() {
            ["talk", to, bytes] => {
                writeln!(stream, "{}", talk(to, bytes.parse().expect("a number"))).expect("heard");
                continue;
            }
            ["hold", to] => TcpStream::connect(to).and_then(|mut stream| {
                stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0]))?;
                held = Some(stream);
                Ok(())
            }),
            // What a connection that is held gives: bytes, its end (-1), or an error.
            ["held"] => match held.as_mut().map(|stream| stream.read(&mut [0])) {
                Some(Ok(0)) | None => Err(io::Error::other("its end")),
                Some(other) => other.map(drop),
            },
            ["tcp", to] => TcpStream::connect(to).map(drop),
            ["udp", to] => any_port(to).and_then(|socket| socket.connect(to)),
            ["udp-from", port, to] => {
                UdpSocket::bind(format!("127.0.0.1:{port}")).and_then(|socket| socket.connect(to))
            }
            ["send", to] => any_port(to).and_then(|socket| socket.send_to(b"?", to)).map(drop),
            ["bind", at] => TcpListener::bind(at).map(drop),
            ["bind-udp", at] => UdpSocket::bind(at).map(drop),
            _ => continue,
        };
        let error = done.err().map_or(0, |e| e.raw_os_error().unwrap_or(-1));
        writeln!(stream, "{error}").expect("heard");
    }
    ExitCode::SUCCESS
}

/// Sends bytes, and receives until the end. The addresses of its peer and its own, how many bytes came back, how long the
/// first of them took, and when the end had come (milliseconds).
fn talk(to: &str, bytes: usize) -> String {
    let work = || -> io::Result<String> {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(to)?;
        let mut writer = stream.try_clone()?;
        // A connection that has ended at both ends has no names any more.
        let (tell, named) = std::sync::mpsc::channel::<()>();
        let sender = std::thread::spawn(move || {
            // The other side may have had enough.
            let _ = writer.write_all(&vec![7; bytes]);
            let _ = named.recv();
            let _ = writer.shutdown(Shutdown::Write);
        });
        let mut tell = Some(tell);
        let mut buffer = vec![0; 1 << 16];
        let (mut received, mut first, mut names) = (0, None, None);
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(len) => received += len,
            }
            if names.is_none() {
                (first, names) = (Some(begun.elapsed().as_millis()), Some((stream.peer_addr()?, stream.local_addr()?)));
                drop(tell.take());
            }
        }
        drop(tell);
        let _ = sender.join();
        let (peer, own) = names.ok_or_else(|| io::Error::other("nothing came back"))?;
        Ok(format!("{peer} {own} {received} {} {}", first.unwrap_or(0), begun.elapsed().as_millis()))
    };
    work().unwrap_or_else(|error| format!("failed: {error}"))
}

/// A socket for datagrams to an address.
fn any_port(to: &str) -> io::Result<UdpSocket> {
    UdpSocket::bind(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" })
}

/// How long a process of the next part takes to end.
pub const LINGERS: Duration = Duration::from_millis(400);

/// Ends some time after it was told to.
fn linger() -> ExitCode {
    let mut told = SigSet::empty();
    told.add(Signal::SIGTERM);
    told.thread_block().expect("blocked");
    told.wait().expect("told");
    std::thread::sleep(LINGERS);
    ExitCode::SUCCESS
}
