//! A load balancer with three web servers behind it. All four are HAProxy.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Node, Programs, Service, Stage, Topology};

/// Its file of experiments.
pub const EXPERIMENTS: &str = "experiments/systems/haproxy.yaml";
/// The load balancer's configuration.
const BALANCER: &str = include_str!("../../../experiments/systems/haproxy-lb.cfg");
/// A web server's configuration.
const WEB: &str = include_str!("../../../experiments/systems/haproxy-web.cfg");
const PORT: u16 = 8080;

fn topology(folder: &Path) -> Topology {
    let web = ["web-1", "web-2", "web-3"];
    let service = |node: &'static str, configuration: &str| Service {
        name: node.to_owned(),
        node,
        // In the foreground, without a master process.
        command: ["haproxy", "-db", "-f"].map(str::to_owned).into_iter().chain([file(folder, configuration)]).collect(),
        restart_after: Duration::from_millis(500),
    };
    let mut nodes = vec![Node { name: "client", subnet: 1 }, Node { name: "lb", subnet: 2 }];
    nodes.extend(web.iter().zip(11..).map(|(name, subnet)| Node { name, subnet }));
    let mut services: Vec<Service> = web.iter().map(|node| service(node, "haproxy-web.cfg")).collect();
    services.push(service("lb", "haproxy-lb.cfg"));
    Topology { nodes, services }
}

fn file(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

/// Sets it up, and waits until users are served.
///
/// # Errors
/// HAProxy is not installed, or does not serve.
pub fn raise(programs: &Programs, prefix: &str, folder: &Path) -> Result<Stage> {
    fs::create_dir_all(folder)?;
    for (name, text) in [("haproxy-lb.cfg", BALANCER), ("haproxy-web.cfg", WEB)] {
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    let topology = topology(folder);
    let stage = Stage::raise(programs, prefix, folder, &topology.plan(programs, prefix)?)?;
    let front = SocketAddr::from((topology.address("lb"), PORT));
    let mut in_a_row = 0;
    stage.wait(Duration::from_secs(20), |stage| {
        // Twice each server, once all of them are found healthy.
        while in_a_row < 6 {
            if let Err(error) = stage.within("client", || page(front))? {
                in_a_row = 0;
                return Err(error);
            }
            in_a_row += 1;
        }
        Ok(())
    })?;
    Ok(stage)
}

/// Asks for the page as a user does.
fn page(front: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&front, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(16 * 1024).read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "the answer is {:?}", answer.lines().next());
    Ok(())
}
