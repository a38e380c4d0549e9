//! Laws that hold for every fault in the table, whatever it is. A new fault is tested by them through its example.

use std::path::{Path, PathBuf};

use super::samples::{self, HOST_NETNS};
use super::{Fault, TABLE};
use crate::change::{Change, Plan, SocketOwner, Way};
use crate::facts::{FactsSnapshot, TargetKind};
use crate::lower::{Choices, Library, Lowered};
use crate::receipt::{
    CallCount, DelayHistogram, Effect, KillCount, Lost, Measured, PacketCount, ProxyCount, ResetCount,
};
use crate::units::Span;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments/faults")
}

/// The examples of a fault, lowered.
fn examples(name: &str) -> Vec<Lowered> {
    let path = folder().join(format!("{name}.yaml"));
    let text =
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name} needs an example: {}: {e}", path.display()));
    let mut library = Library::default();
    library.add(&path.display().to_string(), &text).unwrap_or_else(|e| panic!("{e}"));
    let findings = library.check();
    assert!(findings.is_empty(), "{}", findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n"));
    let experiments = library.experiments(None);
    assert!(!experiments.is_empty(), "{name}.yaml holds no experiment");
    let choices = Choices { seed: 1, force_seed: false, env: &|_| None };
    experiments.iter().map(|e| library.lower(e, &choices).unwrap_or_else(|e| panic!("{e:?}"))).collect()
}

/// Every fault of the table, with the parameters that its example gives it and, where it takes them, without any.
fn all() -> Vec<Fault> {
    let mut faults = Vec::new();
    for (name, _) in TABLE {
        let of_example: Vec<Fault> = examples(name)
            .into_iter()
            .flat_map(|e| e.plan.steps)
            .flat_map(|s| s.faults)
            .filter(|f| f.name() == *name)
            .collect();
        assert!(!of_example.is_empty(), "{name}.yaml does not inject {name}");
        faults.extend(of_example);
        let bare = serde_json::from_value::<Fault>(serde_json::json!({ *name: {} }));
        faults.extend(bare.ok().filter(|fault| fault.check().is_ok()));
    }
    faults
}

fn plans() -> Vec<(Fault, FactsSnapshot, Plan)> {
    let mut plans = Vec::new();
    for fault in all() {
        for facts in samples::usable() {
            if let Ok(plan) = fault.plan(&facts) {
                plans.push((fault.clone(), facts, plan));
            }
        }
    }
    plans
}

fn acts_on_packets(fault: &Fault) -> bool {
    fault.plan(&samples::blue()).is_ok_and(|p| p.changes.iter().any(|c| matches!(c, Change::Rule { .. })))
}

#[test]
fn every_fault_has_an_example_that_checks_and_lowers() {
    for (name, summary) in TABLE {
        for lowered in examples(name) {
            assert!(!lowered.plan.probes.is_empty(), "{name}.yaml shows no probe, so it would judge nothing");
        }
        assert!(!summary.trim().is_empty(), "{name} has no summary");
    }
}

#[test]
fn every_example_belongs_to_a_fault() {
    for entry in std::fs::read_dir(folder()).expect("the folder is there") {
        let name = entry.expect("readable").file_name().into_string().expect("plain text");
        let stem = name.strip_suffix(".yaml").unwrap_or_else(|| panic!("{name} is not an example"));
        assert!(TABLE.iter().any(|(fault, _)| *fault == stem), "{name}: there is no such fault");
    }
}

#[test]
fn every_fault_acts_on_some_target_and_says_why_it_cannot_act_on_the_others() {
    for fault in all() {
        assert_eq!(fault.check(), Ok(()), "{fault:?}");
        assert!(!fault.describe().is_empty());
        let (mut acted, mut refused) = (0, 0);
        for facts in samples::usable().into_iter().chain(samples::unusable()) {
            match fault.plan(&facts) {
                Ok(plan) => {
                    assert!(!plan.changes.is_empty(), "{} plans nothing on {}", fault.name(), facts.target.name);
                    acted += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(fault.name()) && text.contains(&facts.target.name), "{text}");
                    assert!(error.why.len() > 20, "no reason: {text}");
                    refused += 1;
                }
            }
        }
        assert!(acted > 0 && refused > 0, "{}: {acted} planned, {refused} refused", fault.name());
    }
}

#[test]
fn no_fault_acts_on_a_target_without_processes_or_interfaces() {
    for fault in all() {
        for facts in samples::unusable() {
            assert!(fault.plan(&facts).is_err(), "{} acts on {}", fault.name(), facts.target.name);
        }
    }
}

#[test]
fn on_the_hosts_own_network_every_rule_spares_the_ports_by_which_it_is_reached_and_the_plan_says_so() {
    let packet_faults: Vec<_> = all().into_iter().filter(acts_on_packets).collect();
    assert!(packet_faults.len() >= 3);
    for fault in packet_faults {
        let plan = fault.plan(&samples::whole_host()).expect("planned");
        let rules: Vec<_> = plan.changes.iter().filter(|c| matches!(c, Change::Rule { .. })).collect();
        assert!(!rules.is_empty());
        for change in rules {
            assert!(matches!(change, Change::Rule { rule, .. } if rule.spare == [22, 2222]), "{change}");
            assert!(change.to_string().contains("but those of port 22, 2222"), "{change}");
        }
        assert!(
            plan.notes.iter().any(|note| note.contains("port 22, 2222") && note.contains("let through")),
            "{plan:?}"
        );
    }
}

#[test]
fn an_owner_that_is_not_known_is_never_taken_for_the_whole_namespace() {
    for fault in all() {
        let mut no_cgroup = samples::shared_cgroup();
        no_cgroup.target.cgroup = None;
        let mut no_process = samples::processes();
        no_process.target.processes.clear();
        for facts in [no_cgroup, no_process] {
            assert!(fault.plan(&facts).is_err(), "{} acts on {:?}", fault.name(), facts.target);
        }
    }
}

#[test]
fn on_a_shared_network_every_rule_is_bound_to_the_sockets_of_the_target() {
    let mut seen = 0;
    for (fault, facts, plan) in plans() {
        let shared = facts.target.netns.as_ref().is_some_and(|n| n.netns.inode == HOST_NETNS);
        for change in plan.changes {
            let Change::Rule { rule, .. } = change else { continue };
            match facts.target.kind {
                TargetKind::Cgroup | TargetKind::Unit => {
                    let cgroup = facts.target.cgroup.clone().expect("sample");
                    assert_eq!(rule.sockets, Some(SocketOwner::Cgroup(cgroup)), "{}", fault.name());
                }
                TargetKind::Process => {
                    let processes = facts.target.processes.clone();
                    assert_eq!(rule.sockets, Some(SocketOwner::Processes(processes)), "{}", fault.name());
                }
                TargetKind::Netns | TargetKind::Interface => {
                    assert_eq!(!rule.spare.is_empty(), shared, "{}: the host stays within reach", fault.name());
                    let one = facts.target.kind == TargetKind::Interface;
                    assert_eq!(rule.interface.is_some(), one, "{}: a namespace is all of its interfaces", fault.name());
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn planning_is_deterministic() {
    for (fault, facts, plan) in plans() {
        assert_eq!(fault.plan(&facts), Ok(plan));
    }
}

#[test]
fn every_rule_comes_after_what_it_rests_on() {
    let mut rules = 0;
    for (fault, facts, plan) in plans() {
        let what = format!("{} on {}", fault.name(), facts.target.name);
        for (i, change) in plan.changes.iter().enumerate() {
            let Change::Rule { netns, rule } = change else { continue };
            rules += 1;
            let (before, after) = plan.changes.split_at(i);
            if let Some(owner) = &rule.sockets {
                assert!(
                    before.contains(&Change::Tag { netns: netns.clone(), sockets: owner.clone() }),
                    "{what}: no tag"
                );
            }
            let delays = rule.action.needs_line();
            let on = |list: &[Change], way: Way| -> Vec<String> {
                let attached = list.iter().filter_map(|c| match c {
                    Change::Attach { interface, direction, netns: at } if *direction == way && at == netns => {
                        Some(interface)
                    }
                    _ => None,
                });
                attached.filter(|i| rule.interface.as_ref().is_none_or(|r| r == *i)).map(|i| i.name.clone()).collect()
            };
            for way in &rule.ways {
                assert!(!on(before, *way).is_empty(), "{what}: no program is attached {way}");
                assert!(on(after, *way).is_empty(), "{what}: a program is attached after its rule");
                for name in on(before, *way) {
                    let line = before.iter().any(|c| {
                        matches!(c, Change::DelayLine { interface, direction, .. } if interface.name == name && direction == way)
                    });
                    assert_eq!(line, delays, "{what}: delay line of {name}");
                }
            }
        }
    }
    assert!(rules > 0);
}

#[test]
fn no_measurement_is_never_an_effect() {
    for fault in all() {
        let receipt = fault.receipt("x", Vec::new());
        assert_eq!(receipt.effect, Effect::None, "{}: {}", fault.name(), receipt.says);
        assert!(!receipt.says.is_empty());
    }
}

#[test]
fn measurements_of_nothing_are_never_an_effect() {
    let nothing = [
        Measured::Packets(PacketCount::default()),
        Measured::Calls(CallCount::default()),
        Measured::Proxy(ProxyCount::default()),
        Measured::Kill(KillCount::default()),
        Measured::Reset(ResetCount::default()),
        Measured::State { in_force: false, seen: "running".into(), held: Span::default() },
    ];
    for fault in all() {
        for measured in &nothing {
            assert_ne!(
                fault.receipt("x", vec![measured.clone()]).effect,
                Effect::Effective,
                "{} {measured:?}",
                fault.name()
            );
        }
        assert_ne!(fault.receipt("x", nothing.to_vec()).effect, Effect::Effective, "{}", fault.name());
    }
}

#[test]
fn a_fault_that_was_measured_at_work_is_effective() {
    let applied = DelayHistogram {
        count: 900,
        sum_ns: 90_000_000_000,
        min_ns: 1,
        max_ns: 200_000_000,
        buckets: vec![(1 << 26, 900)],
    };
    let at_work = vec![
        Measured::Packets(PacketCount {
            matched: 900,
            dropped: 900,
            delayed: 900,
            bypassed: 0,
            bytes: 90_000,
            acted: 900,
            resets: 900,
            limited_bytes: 90_000,
            limited_ns: 1_000_000,
            applied,
            lost: Vec::new(),
            steps: Vec::new(),
        }),
        Measured::Proxy(ProxyCount {
            matched: 9,
            connections: 9,
            delayed: 9,
            delay_ns: 9_000_000_000,
            limited_bytes: 9_000,
            limited_ns: 1_000_000,
            late_ends: 9,
            cut: 9,
            ..ProxyCount::default()
        }),
        Measured::Calls(CallCount { matched: 900, failed: 900, ..CallCount::default() }),
        Measured::Kill(KillCount { signalled: 2, gone: 2, ..KillCount::default() }),
        Measured::Reset(ResetCount { rounds: 1, matched: 3, destroyed: 3, ..ResetCount::default() }),
        Measured::State { in_force: true, seen: "as asked".into(), held: Span::from_secs(5) },
    ];
    for fault in all() {
        let receipt = fault.receipt("x", at_work.clone());
        assert_eq!(receipt.effect, Effect::Effective, "{}: {}", fault.name(), receipt.says);
        assert!(!receipt.lines.is_empty(), "{} shows nothing requested and applied", fault.name());
        assert_eq!(receipt.measured, at_work);
    }
}

#[test]
fn one_state_that_did_not_hold_spoils_the_receipt() {
    let state = |in_force| Measured::State { in_force, seen: format!("{in_force}"), held: Span::from_secs(5) };
    for fault in all().into_iter().filter(|f| f.receipt("x", vec![state(true)]).effect == Effect::Effective) {
        assert_eq!(fault.receipt("x", vec![state(true), state(false)]).effect, Effect::None, "{}", fault.name());
    }
}

#[test]
fn a_target_that_went_is_told_and_one_that_was_replaced_spoils_the_receipt() {
    let faults = [r#"{"partition":{}}"#, r#"{"loss":{"percent":"100%"}}"#];
    let read = |fault: &str, replaced| {
        let fault: Fault = serde_json::from_str(fault).expect("a fault");
        let lost = vec![Lost { what: "interface eth0".into(), replaced }];
        let count = PacketCount { matched: 9, dropped: 9, lost, ..PacketCount::default() };
        fault.receipt("x", vec![Measured::Packets(count)])
    };
    for fault in faults {
        let (gone, replaced) = (read(fault, false), read(fault, true));
        assert_eq!(
            (gone.effect, replaced.effect),
            (Effect::Effective, Effect::None),
            "{} {}",
            gone.says,
            replaced.says
        );
        assert!(gone.says.contains("then interface eth0 was gone"), "{}", gone.says);
        assert!(replaced.says.contains("another, which was left alone"), "{}", replaced.says);
    }
}

#[test]
fn packets_that_were_mostly_not_delayed_are_no_latency() {
    let fault: Fault = serde_json::from_str(r#"{"latency": {"delay": "50ms"}}"#).expect("valid");
    let count = |bypassed, longest: u64| PacketCount {
        matched: 100,
        delayed: 100 - bypassed,
        bypassed,
        applied: DelayHistogram {
            count: 100 - bypassed,
            sum_ns: longest * (100 - bypassed),
            min_ns: longest,
            max_ns: longest,
            buckets: Vec::new(),
        },
        ..PacketCount::default()
    };
    let effect = |bypassed, longest| fault.receipt("x", vec![Measured::Packets(count(bypassed, longest))]).effect;
    assert_eq!(effect(10, 50_100_000), Effect::Effective);
    assert_eq!(effect(90, 50_100_000), Effect::None);
    assert_eq!(effect(0, 20_000_000), Effect::None, "all left when the fault ended, before their time");
}

#[test]
fn a_loss_that_dropped_nothing_is_only_called_none_when_chance_cannot_explain_it() {
    let fault: Fault = serde_json::from_str(r#"{"loss": {"percent": "10%"}}"#).expect("valid");
    let of =
        |matched| fault.receipt("x", vec![Measured::Packets(PacketCount { matched, ..PacketCount::default() })]).effect;
    // 0.9^28 = 5.2 %, 0.9^29 = 4.7 %.
    assert_eq!((of(0), of(28), of(29)), (Effect::ArmedNoTraffic, Effect::ArmedNoTraffic, Effect::None));
}

#[test]
fn every_fault_reads_back_from_yaml_and_json_as_it_was_written() {
    for fault in all() {
        let yaml = serde_saphyr::to_string(&fault).expect("a fault is plain data");
        assert_eq!(serde_saphyr::from_str::<Fault>(&yaml).unwrap_or_else(|e| panic!("{yaml}: {e}")), fault);
        let json = serde_json::to_string(&fault).expect("a fault is plain data");
        assert_eq!(serde_json::from_str::<Fault>(&json).expect("just written"), fault);
    }
}

#[test]
fn plans_survive_the_log() {
    for (_, _, plan) in plans() {
        let json = serde_json::to_string(&plan).expect("a plan is plain data");
        assert_eq!(serde_json::from_str::<Plan>(&json).expect("just written"), plan);
    }
}

#[test]
fn every_parameter_of_every_fault_is_described_in_its_schema() {
    for (name, _) in TABLE {
        let schema = Fault::schema(name).expect("in the table");
        assert_eq!(
            schema.get("additionalProperties"),
            Some(&serde_json::Value::Bool(false)),
            "{name} takes unknown keys"
        );
        let empty = serde_json::Map::new();
        for (key, property) in schema.get("properties").and_then(|p| p.as_object()).unwrap_or(&empty) {
            let text = property.get("description").and_then(|d| d.as_str()).unwrap_or_default();
            assert!(text.len() > 10, "{name}.{key} is not described: {property}");
        }
    }
    assert!(Fault::schema("no-such-fault").is_none());
}

#[test]
fn every_fault_with_peers_gives_them_to_be_looked_up() {
    for fault in all() {
        let mut written = serde_json::to_value(&fault).expect("plain data");
        let Some(peers) = written[fault.name()].get_mut("peers") else { continue };
        *peers = serde_json::json!(["10.0.0.0/8", "db.example.org", {"component": "db"}]);
        let fault: Fault = serde_json::from_value(written).expect("a fault");
        assert_eq!(fault.peers().len(), 3, "{}", fault.name());
        let error = fault.plan(&samples::blue()).expect_err("nobody has looked them up").to_string();
        assert!(error.contains("db.example.org"), "{error}");
    }
}

#[test]
fn every_planned_change_prints_one_line_that_names_its_object() {
    for (fault, _, plan) in plans() {
        for change in plan.changes {
            let line = change.to_string();
            assert!(!line.contains('\n') && line.len() > 10, "{}: {line}", fault.name());
        }
    }
}

#[test]
fn an_ipv6_network_that_would_match_ipv4_as_well_is_refused() {
    let partition = |peer: &str| -> Fault {
        serde_json::from_value(serde_json::json!({ "partition": { "peers": [peer] } })).expect("valid")
    };
    for wide in ["::/0", "::/64", "::/80"] {
        assert!(partition(wide).check().is_err_and(|why| why.contains("IPv4")), "{wide}");
    }
    for fine in ["0.0.0.0/0", "2000::/3", "fc00::/7", "::1", "::ffff:10.0.0.0/104"] {
        assert_eq!(partition(fine).check(), Ok(()), "{fine}");
    }
}

#[test]
fn more_peers_or_ports_than_a_rule_holds_are_refused_with_the_limit() {
    let with = |key: &str, n: usize| -> Fault {
        let items: Vec<String> =
            (1..=n).map(|i| if key == "peers" { format!("10.0.0.{i}") } else { i.to_string() }).collect();
        serde_json::from_value(serde_json::json!({ "partition": { key: items } })).expect("valid")
    };
    for (key, most) in [("peers", 8), ("local_ports", 4), ("peer_ports", 4)] {
        assert_eq!(with(key, most).check(), Ok(()), "{key}");
        assert!(with(key, most + 1).check().is_err_and(|why| why.contains(&most.to_string())), "{key}");
    }
}

#[test]
fn a_packet_fault_whose_program_was_removed_has_no_effect_and_says_why() {
    let fault: Fault = serde_json::from_value(serde_json::json!({"loss": {"percent": "100%"}})).expect("a fault");
    let packets = Measured::Packets(PacketCount { matched: 9, dropped: 9, ..PacketCount::default() });
    let hook = |in_force| Measured::State { in_force, seen: "somebody removed it".into(), held: Span::default() };
    assert_eq!(fault.receipt("t", vec![hook(true), packets.clone()]).effect, Effect::Effective);
    let removed = fault.receipt("t", vec![hook(false), packets]);
    assert_eq!(removed.effect, Effect::None);
    assert!(removed.says.contains("somebody removed it") && removed.says.contains("9 of 9"), "{}", removed.says);
}
