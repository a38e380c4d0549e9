//! Two namespaces joined by one wire, with both address families. On `b` run two small web servers in one control
//! group, which share everything but their process, and a third one that is started again when it dies.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use firedrill_agent::host::cgroup as groups;
use firedrill_agent::host::process;
use firedrill_model::change::{Change, Plan, VethEnd};

use super::network::{cgroup, netns};
use super::{Programs, Stage};

/// Names of the two nodes.
pub const NODES: [&str; 2] = ["a", "b"];
/// Their addresses.
pub const V4: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 215, 0, 1), Ipv4Addr::new(10, 215, 0, 2)];
/// Their IPv6 addresses.
pub const V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0x215, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xfd00, 0x215, 0, 0, 0, 0, 0, 2)];
/// Group of the two web servers.
pub const WEB: &str = "web";
/// Their ports.
pub const WEB_PORTS: [u16; 2] = [8080, 8081];
/// Group of the web server that is started again.
pub const KEPT: &str = "kept";
/// Its port.
pub const KEPT_PORT: u16 = 8082;
const KEEPERS: &str = "keepers";

fn plan(programs: &Programs, prefix: &str) -> std::io::Result<Plan> {
    let end = |i: usize| VethEnd {
        netns: netns(prefix, NODES[i]),
        interface: "eth0".into(),
        addresses: vec![(IpAddr::V4(V4[i]), 24), (IpAddr::V6(V6[i]), 64)],
        routes: Vec::new(),
    };
    let mut changes: Vec<Change> = NODES.iter().map(|node| Change::Netns { name: netns(prefix, node) }).collect();
    changes.push(Change::Veth { a: end(0), b: end(1) });
    changes.push(Change::MakeCgroup { path: prefix.to_owned() });
    changes.extend([WEB, KEPT, KEEPERS].map(|name| Change::MakeCgroup { path: cgroup(prefix, name) }));
    let stage = programs.stage.display().to_string();
    let serve = |port: u16| vec![stage.clone(), "serve".into(), port.to_string()];
    let spawn = |group: &str, port: u16, command: Vec<String>| Change::Spawn {
        name: format!("server-{port}"),
        command,
        env: BTreeMap::new(),
        netns: Some(netns(prefix, NODES[1])),
        cgroup: cgroup(prefix, group),
        log: None,
    };
    changes.extend(WEB_PORTS.map(|port| spawn(WEB, port, serve(port))));
    let group = groups::path_of(&cgroup(prefix, KEPT))?.display().to_string();
    let keep = ["keep", "--group", &group, "--after", "300ms", "--"].map(str::to_owned);
    let command = std::iter::once(stage.clone()).chain(keep).chain(serve(KEPT_PORT)).collect();
    changes.push(spawn(KEEPERS, KEPT_PORT, command));
    Ok(Plan { changes, notes: Vec::new() })
}

/// Sets it up, and waits until all servers answer over both families.
///
/// # Errors
/// A right is missing, or a server does not serve.
pub fn raise(programs: &Programs, prefix: &str, folder: &Path) -> Result<Stage> {
    let stage = Stage::raise(programs, prefix, folder, &plan(programs, prefix)?)?;
    stage.wait(Duration::from_secs(10), |stage| {
        for port in WEB_PORTS.into_iter().chain([KEPT_PORT]) {
            for ip in [IpAddr::V4(V4[1]), IpAddr::V6(V6[1])] {
                stage.within(NODES[0], || ask(SocketAddr::new(ip, port), Duration::from_millis(300)))??;
            }
        }
        Ok(())
    })?;
    Ok(stage)
}

/// Process id of the web server on a port.
///
/// # Errors
/// It does not run.
pub fn server(stage: &Stage, port: u16) -> Result<i32> {
    let group = groups::find(&stage.cgroup(WEB))?;
    let port = format!(" {port}");
    let found = groups::processes(&group).into_iter().find(|p| process::cmdline(p.pid).trim_end().ends_with(&port));
    Ok(found.with_context(|| format!("no server on port{port}"))?.pid)
}

/// Asks a server once, on a connection of its own.
///
/// # Errors
/// It does not answer in time.
pub fn ask(server: SocketAddr, patience: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pair\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{server} answers {:?}", answer.lines().next());
    Ok(())
}

/// A web server that answers every request with `hello`, over both families. Ends only with an error.
///
/// # Errors
/// The port is taken.
pub fn serve(port: u16) -> Result<std::convert::Infallible> {
    let listener = TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
    loop {
        // A connection that was lost meanwhile is its client's affair.
        let Ok((stream, _)) = listener.accept() else { continue };
        std::thread::spawn(move || answer(stream));
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (mut request, mut part) = (Vec::new(), [0; 1024]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < 16 * 1024 {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            n => request.extend_from_slice(&part[..n]),
        }
    }
    let body = "hello\n";
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}
