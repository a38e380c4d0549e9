//! A cluster of three etcd members, the first of which leads.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Node, Programs, Service, Stage, Topology, text_of};

/// Its file of experiments.
pub const EXPERIMENTS: &str = "experiments/systems/etcd.yaml";
const MEMBERS: [Node; 3] =
    [Node { name: "etcd-1", subnet: 11 }, Node { name: "etcd-2", subnet: 12 }, Node { name: "etcd-3", subnet: 13 }];

fn peer_url(member: &Node) -> String {
    format!("http://{}:2380", member.address())
}

fn client_url(member: &Node) -> String {
    format!("http://{}:2379", member.address())
}

fn topology(folder: &Path) -> Topology {
    let cluster: Vec<String> = MEMBERS.iter().map(|m| format!("{}={}", m.name, peer_url(m))).collect();
    let service = |member: &Node| {
        let data = folder.join(member.name).display().to_string();
        let words = [
            ("--name", member.name.to_owned()),
            ("--data-dir", data),
            ("--listen-peer-urls", peer_url(member)),
            ("--initial-advertise-peer-urls", peer_url(member)),
            ("--listen-client-urls", client_url(member)),
            ("--advertise-client-urls", client_url(member)),
            ("--initial-cluster", cluster.join(",")),
            ("--initial-cluster-state", "new".into()),
        ];
        let args = words.into_iter().flat_map(|(option, value)| [option.to_owned(), value]);
        Service {
            name: member.name.to_owned(),
            node: member.name,
            command: std::iter::once("etcd".to_owned()).chain(args).collect(),
            restart_after: Duration::from_millis(500),
        }
    };
    let mut nodes = vec![Node { name: "client", subnet: 1 }];
    nodes.extend(MEMBERS);
    Topology { nodes, services: MEMBERS.iter().map(service).collect() }
}

/// Sets it up, and waits until all members are healthy and the first one leads.
///
/// # Errors
/// etcd is not installed, or the members find no quorum.
pub fn raise(programs: &Programs, prefix: &str, folder: &Path) -> Result<Stage> {
    let topology = topology(folder);
    let stage = Stage::raise(programs, prefix, folder, &topology.plan(programs, prefix)?)?;
    stage.wait(Duration::from_secs(30), first_leads)?;
    Ok(stage)
}

/// Makes the first member the leader: experiments name their victims.
fn first_leads(stage: &Stage) -> Result<()> {
    let endpoints = MEMBERS.each_ref().map(client_url);
    let etcdctl = |endpoints: &str, words: &[&str]| {
        let command = [&["etcdctl", "--command-timeout", "2s", "--endpoints", endpoints][..], words].concat();
        text_of(&stage.run("client", &command)?)
    };
    let status: Value = serde_json::from_str(&etcdctl(&endpoints.join(","), &["endpoint", "status", "-w", "json"])?)?;
    let members = status.as_array().context("etcdctl gives no list of members")?;
    ensure!(members.len() == MEMBERS.len(), "{} of {} members answer", members.len(), MEMBERS.len());
    let id = |member: &Value| member["Status"]["header"]["member_id"].as_u64().context("a member without an id");
    let leader = members[0]["Status"]["leader"].as_u64().filter(|leader| *leader != 0).context("nobody leads yet")?;
    let first = members.iter().find(|m| m["Endpoint"] == endpoints[0].as_str()).context("the first does not answer")?;
    if id(first)? != leader {
        let leads = |m: &&Value| id(m).is_ok_and(|id| id == leader);
        let at = members.iter().find(leads).and_then(|m| m["Endpoint"].as_str()).context("the leader is unknown")?;
        etcdctl(at, &["move-leader", &format!("{:x}", id(first)?)])?;
        bail!("the first member did not lead yet");
    }
    etcdctl(&endpoints.join(","), &["put", "drill", "begun"])?;
    Ok(())
}
