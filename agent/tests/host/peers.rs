//! The other side of packets by name: hosts, and components by where their replicas are reached.

use firedrill_agent::target::TargetError;
use firedrill_model::change::Change;
use firedrill_model::facts::TargetFacts;
use firedrill_model::peer::Peer;
use firedrill_model::receipt::Effect;
use firedrill_model::run::{PeerPlan, TargetPlan};
use firedrill_model::target::TargetSpec;
use serde_json::json;

use crate::resets::{Client, server};
use crate::support::{B4, Bench, FAR, Folder, Group, LONG, Netns, Pair, Process, fault, port, target};

fn component(replicas: &[TargetSpec]) -> PeerPlan {
    PeerPlan { peer: Peer::Component("db".into()), replicas: replicas.to_vec() }
}

/// A target, with what the names of its peers stand for.
fn resolve(bench: &Bench, of: TargetSpec, peer: PeerPlan) -> Result<TargetFacts, TargetError> {
    bench.agent.resolve(&TargetPlan { peers: vec![peer], ..target(of) })
}

pub fn a_component_is_where_its_replicas_listen_and_what_is_beside_them_stays() {
    let (netns, folder, bench) = (Netns::new("n"), Folder::new(), Bench::new());
    let [web, db, cache] = ["web", "db", "cache"].map(Group::new);
    let (of_db, of_cache) = (port(), port());
    let _servers = [server(&db, &netns, of_db), server(&cache, &netns, of_cache)];
    let to_db = Client::start(&web, &netns, &format!("[::1]:{of_db}"), &folder);
    let to_cache = Client::start(&web, &netns, &format!("127.0.0.1:{of_cache}"), &folder);

    let found = resolve(&bench, web.spec(), component(&[db.spec()])).expect("found");
    let told: Vec<String> = found.peers.iter().map(ToString::to_string).collect();
    assert_eq!(told, [format!("component db is 127.0.0.1, ::1, port {of_db}")]);
    let reset = fault("reset", json!({"peers": [{"component": "db"}]}));
    let injected = bench.agent.inject(&found, &reset, LONG).expect("injected");
    assert!(injected.notes.contains(&told[0]), "{:?}", injected.notes);
    let receipt = bench.agent.revert(injected.id).and_then(|ended| ended.receipt).expect("a receipt");
    assert_eq!(receipt.effect, Effect::Effective, "{}", receipt.says);
    to_db.is_back_after(1);
    assert_eq!((to_db.ends().len(), to_cache.ends().len()), (1, 0));

    // Something that nobody can reach is no peer.
    let (silent, _) = Process::sleep();
    let error =
        resolve(&bench, web.spec(), component(&[silent.spec()])).expect_err("it listens on nothing").to_string();
    assert!(error.contains("component db") && error.contains("listens on no port"), "{error}");
    assert!(bench.agent.stop().left_over.is_empty());
}

pub fn a_namespace_and_a_host_are_their_addresses_of_both_families() {
    let (pair, bench) = (Pair::new(), Bench::new());
    let reaches = |address: &str| pair.a.run(&format!("ping -c1 -W1 {address}")).status.success();
    let far = PeerPlan { peer: Peer::Host(FAR.into()), replicas: Vec::new() };
    for (peer, parameter) in [(component(&[pair.b.spec()]), json!({"component": "db"})), (far, json!(FAR))] {
        let found = resolve(&bench, pair.a.spec(), peer).expect("found");
        let partition = fault("partition", json!({"peers": [parameter]}));
        let injected = bench.agent.inject(&found, &partition, LONG).expect("injected");
        let rules: Vec<String> = injected
            .applied
            .iter()
            .filter_map(|change| match &change.what {
                Change::Rule { rule, .. } => Some(rule.filter.to_string()),
                _ => None,
            })
            .collect();
        assert_eq!(rules, [format!("peer {B4}, fd78::2")], "what was looked up is in the plan, and so in the report");
        assert!(!reaches(B4) && !reaches("fd78::2") && reaches("10.78.0.1"));
        bench.agent.revert(injected.id);
        assert!(reaches(B4) && reaches("fd78::2"));
    }
    let nobody = PeerPlan { peer: Peer::Host("nobody.test".into()), replicas: Vec::new() };
    let error = resolve(&bench, pair.a.spec(), nobody).expect_err("nobody has that name").to_string();
    assert!(error.contains("nobody.test") && error.contains("not in the test's book"), "{error}");
    assert!(bench.agent.stop().left_over.is_empty());
}
