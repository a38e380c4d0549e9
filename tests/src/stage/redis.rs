//! A Redis master with two replicas, and a Sentinel beside each of the three. The first is the master.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Node, Programs, Service, Stage, Topology, text_of};

/// Its file of experiments.
pub const EXPERIMENTS: &str = "experiments/systems/redis.yaml";
/// Configuration of every Sentinel.
const SENTINEL: &str = include_str!("../../../experiments/systems/sentinel.conf");
const SERVERS: [Node; 3] =
    [Node { name: "redis-1", subnet: 11 }, Node { name: "redis-2", subnet: 12 }, Node { name: "redis-3", subnet: 13 }];

fn topology(folder: &Path) -> Topology {
    let master = SERVERS[0].address().to_string();
    let mut services = Vec::new();
    for server in &SERVERS {
        let data = folder.join(server.name).display().to_string();
        let mut command: Vec<String> =
            ["redis-server", "--port", "6379", "--protected-mode", "no", "--save", ""].map(str::to_owned).into();
        command.extend(["--dir".into(), data]);
        if server.name != SERVERS[0].name {
            command.extend(["--replicaof".into(), master.clone(), "6379".into()]);
        }
        services.push(Service {
            name: server.name.to_owned(),
            node: server.name,
            command,
            restart_after: Duration::from_millis(500),
        });
    }
    for server in &SERVERS {
        let file = folder.join(server.name).join("sentinel.conf").display().to_string();
        services.push(Service {
            name: format!("sentinel-{}", server.name),
            node: server.name,
            command: vec!["redis-sentinel".into(), file],
            restart_after: Duration::from_millis(500),
        });
    }
    let mut nodes = vec![Node { name: "client", subnet: 1 }];
    nodes.extend(SERVERS);
    Topology { nodes, services }
}

/// Sets it up, and waits until every Sentinel knows all replicas and all other Sentinels.
///
/// # Errors
/// Redis is not installed, or the servers do not find each other.
pub fn raise(programs: &Programs, prefix: &str, folder: &Path) -> Result<Stage> {
    for server in &SERVERS {
        let data = folder.join(server.name);
        fs::create_dir_all(&data).with_context(|| format!("cannot make the folder {}", data.display()))?;
        // A Sentinel writes into its file what it learns.
        let text = format!("{SENTINEL}\ndir {}\n", data.display());
        fs::write(data.join("sentinel.conf"), text).context("cannot write sentinel.conf")?;
    }
    let topology = topology(folder);
    let stage = Stage::raise(programs, prefix, folder, &topology.plan(programs, prefix)?)?;
    stage.wait(Duration::from_secs(30), |stage| SERVERS.iter().try_for_each(|server| knows_all(stage, server)))?;
    Ok(stage)
}

fn knows_all(stage: &Stage, server: &Node) -> Result<()> {
    let address = server.address().to_string();
    let ask = ["redis-cli", "-h", &address, "-p", "26379", "--raw", "sentinel", "master", "shop"];
    let answer = text_of(&stage.run("client", &ask)?)?;
    let lines: Vec<&str> = answer.lines().collect();
    let field = |name: &str| lines.chunks(2).find(|pair| pair[0] == name).and_then(|pair| pair.get(1)).copied();
    for (name, wanted) in [("flags", "master"), ("num-slaves", "2"), ("num-other-sentinels", "2")] {
        let seen = field(name);
        ensure!(seen == Some(wanted), "the Sentinel of {}: {name} is {seen:?}, not {wanted}", server.name);
    }
    Ok(())
}
