//! Steps of an experiment: replicas chosen, names turned into targets, faults checked.

use super::Site;
use crate::fault::Fault;
use crate::file::{Component, Experiment, Pick, Place, Replica, Spanned, Step, System, did_you_mean};
use crate::peer::Peer;
use crate::pick;
use crate::run::{PeerPlan, PickPlan, StepPlan, TargetPlan};
use crate::target::StepTarget;

fn component<'a>(system: &'a System, name: &str) -> Option<&'a Component> {
    system.components.iter().map(|c| &c.value).find(|c| c.name.value == name)
}

pub(super) fn lower_picks(site: &mut Site<'_>, experiment: &Experiment, system: &System, seed: u64) -> Vec<PickPlan> {
    let mut picks = Vec::new();
    for (name, pick) in &experiment.pick {
        let Pick { component: wanted, count, percent } = pick;
        let Some(component) = component(system, &wanted.value) else {
            let help = did_you_mean(&wanted.value, system.components.iter().map(|c| c.value.name.value.as_str()));
            site.report(
                Place::of(wanted),
                format!("there is no component `{}` to pick from", wanted.value),
                Some(help),
            );
            continue;
        };
        let replicas: Vec<String> = component.replicas.iter().map(|r| r.value.name()).collect();
        if replicas.is_empty() {
            site.report(Place::of(wanted), format!("`{}` has no replicas to pick from", wanted.value), None);
            continue;
        }
        let wanted_count = match (count, percent) {
            (Some(count), None) => count.value,
            (None, Some(percent)) => percent.of(replicas.len()),
            _ => {
                let help = Some("for example `count: 1` or `percent: 30%`".into());
                site.report(Place::of(wanted), format!("pick `{name}` needs either `count` or `percent`"), help);
                continue;
            }
        };
        if wanted_count == 0 || wanted_count > replicas.len() {
            let place = count.as_ref().map_or(Place::of(wanted), Place::of);
            let message =
                format!("cannot pick {wanted_count} of the {} replicas of `{}`", replicas.len(), wanted.value);
            site.report(place, message, None);
            continue;
        }
        let chosen = pick::choose(&replicas, wanted_count, seed, name);
        picks.push(PickPlan { name: name.clone(), component: wanted.value.clone(), chosen, of: replicas.len() });
    }
    picks
}

pub(super) fn lower_step(
    site: &mut Site<'_>,
    experiment: &Experiment,
    step: &Step,
    system: &System,
    picks: &[PickPlan],
) -> StepPlan {
    let mut faults: Vec<Fault> = Vec::new();
    for fault in &step.inject {
        if let Err(why) = fault.value.check() {
            site.report(Place::of(fault), format!("{}: {why}", fault.value.name()), None);
        }
        faults.push(fault.value.clone());
    }
    if faults.is_empty() {
        site.report(Place::of(&step.target), "this step injects nothing", None);
    }
    if step.lasts.value.0.is_zero() {
        site.report(
            Place::of(&step.lasts),
            "a step of no duration does nothing",
            Some("for example `for: 20s`".into()),
        );
    }
    let mut targets = match &step.target.value {
        StepTarget::Spec(spec) => {
            if let Err(why) = spec.check() {
                site.report(Place::of(&step.target), why, None);
            }
            vec![TargetPlan::of(spec.clone())]
        }
        // A pick that could not be made has been reported already.
        StepTarget::Named(name) if experiment.pick.contains_key(name) && picks.iter().all(|p| p.name != *name) => {
            Vec::new()
        }
        StepTarget::Named(name) => named_targets(site, &step.target, name, system, picks),
    };
    let peers = lower_peers(site, step, system);
    for target in &mut targets {
        target.allow_protected.clone_from(&step.allow_protected);
        target.peers.clone_from(&peers);
    }
    StepPlan { at: step.at, lasts: step.lasts.value, targets, faults }
}

/// The names of peers in a step's faults, each once.
fn lower_peers(site: &mut Site<'_>, step: &Step, system: &System) -> Vec<PeerPlan> {
    let mut plans: Vec<PeerPlan> = Vec::new();
    for fault in &step.inject {
        for peer in fault.value.peers().iter().filter(|peer| peer.is_name()) {
            if plans.iter().any(|known| known.peer == *peer) {
                continue;
            }
            let mut replicas = Vec::new();
            match peer {
                Peer::Host(name) if component(system, name).is_some() => {
                    let help = format!("write `{{component: {name}}}`; a host of that name must be named in full");
                    site.report(Place::of(fault), format!("`{name}` is a component, not a host"), Some(help));
                }
                Peer::Component(name) => match component(system, name) {
                    Some(found) if found.replicas.is_empty() => {
                        let help = "give it `replicas`, or name addresses".to_owned();
                        site.report(Place::of(fault), format!("the peer `{name}` has no replicas"), Some(help));
                    }
                    Some(found) => replicas.extend(found.replicas.iter().map(|r| r.value.target())),
                    None => {
                        let names = system.components.iter().map(|c| c.value.name.value.as_str());
                        let help = did_you_mean(name, names);
                        site.report(Place::of(fault), format!("there is no component `{name}`"), Some(help));
                    }
                },
                Peer::Host(_) | Peer::Network(_) => {}
            }
            plans.push(PeerPlan { peer: peer.clone(), replicas });
        }
    }
    plans
}

/// The replicas that a name stands for: a pick, a whole component, or `component/replica`.
fn named_targets(
    site: &mut Site<'_>,
    at: &Spanned<StepTarget>,
    name: &str,
    system: &System,
    picks: &[PickPlan],
) -> Vec<TargetPlan> {
    let all = |component: &Component, keep: &dyn Fn(&str) -> bool| -> Vec<TargetPlan> {
        let owner = &component.name.value;
        let replicas = component.replicas.iter().map(|r| &r.value).filter(|r| keep(&r.name()));
        let plan = |r: &Replica| TargetPlan {
            name: format!("{owner}/{}", r.name()),
            component: Some(owner.clone()),
            replicas: component.replicas.len(),
            spec: r.target(),
            control: r.control.clone(),
            allow_protected: Vec::new(),
            peers: Vec::new(),
        };
        replicas.map(plan).collect()
    };
    if let Some(pick) = picks.iter().find(|p| p.name == name) {
        return component(system, &pick.component)
            .map(|c| all(c, &|r| pick.chosen.iter().any(|n| n == r)))
            .unwrap_or_default();
    }
    let found = match name.split_once('/') {
        Some((owner, replica)) => component(system, owner).map(|c| all(c, &|r| r == replica)),
        None => component(system, name).map(|c| all(c, &|_| true)),
    };
    match found {
        Some(targets) if !targets.is_empty() => targets,
        Some(_) => {
            let what = if name.contains('/') { "there is no such replica" } else { "it has no replicas to act on" };
            let known: Vec<String> = replica_names(system);
            let help = did_you_mean(name, known.iter().map(String::as_str));
            site.report(Place::of(at), format!("`{name}`: {what}"), Some(help));
            Vec::new()
        }
        None => {
            let mut known: Vec<String> = picks.iter().map(|p| p.name.clone()).collect();
            known.extend(system.components.iter().map(|c| c.value.name.value.clone()));
            known.extend(replica_names(system));
            let help = did_you_mean(name, known.iter().map(String::as_str));
            site.report(Place::of(at), format!("there is no pick, component or replica `{name}`"), Some(help));
            Vec::new()
        }
    }
}

fn replica_names(system: &System) -> Vec<String> {
    let of =
        |c: &Component| c.replicas.iter().map(|r| format!("{}/{}", c.name.value, r.value.name())).collect::<Vec<_>>();
    system.components.iter().flat_map(|c| of(&c.value)).collect()
}
