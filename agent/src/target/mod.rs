//! From a target as people name it to the things on this host that it stands for, or a clear "no" before
//! anything is touched.

mod peers;
mod protect;
mod select;

use std::io;

use firedrill_model::facts::{
    Control, HostFacts, Interface, NetnsFacts, NetnsRef, ProcessRef, ReplicaOf, TargetFacts, TargetKind,
};
use firedrill_model::file::did_you_mean;
use firedrill_model::run::TargetPlan;
use firedrill_model::target::TargetSpec;

use crate::host::{cgroup, netns, process, rights, systemd};

pub use peers::Resolver;
pub use protect::Protected;

/// Why a target cannot be acted on.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing of that name.
    #[error("no {what} matches `{wanted}`; {help}")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// As it was named.
        wanted: String,
        /// What there is that is similar.
        help: String,
    },
    /// There, but nothing runs in it.
    #[error("{0} has no running process")]
    Empty(String),
    /// It must not be touched.
    #[error("{target} is protected: {why}")]
    Protected {
        /// The target.
        target: String,
        /// The reason, and what to name instead.
        why: String,
    },
    /// Its processes live in several network namespaces.
    #[error(
        "the processes of {0} are in several network namespaces; name processes of one, or a namespace (`netns:`) instead"
    )]
    SeveralNamespaces(String),
    /// What the name of a peer stands for cannot be told.
    #[error("the peer {peer} cannot be told: {why}")]
    Peer {
        /// The name.
        peer: String,
        /// The reason.
        why: String,
    },
    /// The host could not be asked.
    #[error("looking for {what}: {source}{}", rights::hint(source))]
    Io {
        /// What was looked for.
        what: String,
        /// The error.
        source: io::Error,
    },
}

/// Finds a target, and what the names of its peers stand for. Pids are looked up now, so this is done when a step begins.
///
/// # Errors
/// Nothing or something protected matched; a name stands for nothing.
pub fn resolve(
    plan: &TargetPlan,
    host: &HostFacts,
    protected: &Protected,
    resolver: Resolver,
) -> Result<TargetFacts, TargetError> {
    let mut found = find(&plan.name, &plan.spec, plan.control.clone(), host)?;
    let replica_of = |component: &String| ReplicaOf { component: component.clone(), replicas: plan.replicas };
    found.replica_of = plan.component.as_ref().map(replica_of);
    let mut found = protected.admit(found, &plan.allow_protected, host)?;
    // Only now: what is protected may not even be looked at closely.
    if matches!(found.kind, TargetKind::Cgroup | TargetKind::Unit | TargetKind::Process) {
        found.netns = shared_namespace(&found.name, &found.processes)?;
    }
    if let Some(network) = &found.netns {
        for peer in &plan.peers {
            found.peers.extend(peers::look_up(peer, &network.netns, host, resolver)?);
        }
    }
    Ok(found)
}

fn find(name: &str, spec: &TargetSpec, control: Option<Control>, host: &HostFacts) -> Result<TargetFacts, TargetError> {
    let base = |kind| TargetFacts {
        name: name.to_owned(),
        kind,
        netns: None,
        cgroup: None,
        unit: None,
        processes: Vec::new(),
        control: control.clone(),
        replica_of: None,
        peers: Vec::new(),
        lifted: Vec::new(),
    };
    if let Some(path) = &spec.cgroup {
        let cgroup = cgroup::find(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => not_found("cgroup", path, &cgroup::all()),
            _ => io_error(&format!("cgroup {path}"), e),
        })?;
        // Before its processes are looked at: they are everybody's.
        protect::refuse_root(name, &cgroup)?;
        let processes = cgroup::processes(&cgroup);
        // A replica with commands of its own may be down when it is looked at: they will start it.
        if processes.is_empty() && control.is_none() {
            return Err(TargetError::Empty(format!("cgroup {path}")));
        }
        return Ok(TargetFacts { cgroup: Some(cgroup), processes, ..base(TargetKind::Cgroup) });
    }
    if let Some(unit) = &spec.unit {
        return find_unit(unit, base(TargetKind::Unit), host);
    }
    if let Some(pid) = spec.pid {
        let alive = process::stat(pid).ok().filter(|s| !matches!(s.state, 'Z' | 'X'));
        let stat = alive.ok_or_else(|| TargetError::NotFound {
            what: "process",
            wanted: pid.to_string(),
            help: "it has ended, or never was; `process: {exe: ..}` finds processes by what they are".into(),
        })?;
        return Ok(TargetFacts { processes: vec![stat.process], ..base(TargetKind::Process) });
    }
    if let Some(selector) = &spec.process {
        return Ok(TargetFacts { processes: select::processes(selector)?, ..base(TargetKind::Process) });
    }
    let namespace = match &spec.netns {
        Some(wanted) => netns::named(wanted).map_err(|_| not_found("network namespace", wanted, &netns::names()))?,
        None => netns::at("/proc/self/ns/net").map_err(|e| io_error("the host's network namespace", e))?,
    };
    let all = interfaces(&namespace)?;
    match &spec.interface {
        Some(wanted) => {
            let names: Vec<String> = all.iter().map(|i| i.name.clone()).collect();
            let one =
                all.into_iter().find(|i| i.name == *wanted).ok_or_else(|| not_found("interface", wanted, &names))?;
            let netns = NetnsFacts { netns: namespace, interfaces: vec![one], spare_ports: Vec::new() };
            Ok(TargetFacts { netns: Some(netns), ..base(TargetKind::Interface) })
        }
        None => {
            let interfaces = all.into_iter().filter(|i| !i.loopback).collect();
            let netns = NetnsFacts { netns: namespace, interfaces, spare_ports: Vec::new() };
            Ok(TargetFacts { netns: Some(netns), ..base(TargetKind::Netns) })
        }
    }
}

fn find_unit(wanted: &str, base: TargetFacts, host: &HostFacts) -> Result<TargetFacts, TargetError> {
    if !host.systemd {
        return Err(TargetError::NotFound {
            what: "unit",
            wanted: wanted.to_owned(),
            help: "systemd does not run this host; name a cgroup, pid or process instead".into(),
        });
    }
    let unit = systemd::with_neighbours(wanted).map_err(|e| io_error(&format!("unit {wanted}"), e))?;
    if unit.load == "not-found" || unit.load.is_empty() {
        let full = systemd::full_name(wanted);
        // Without the suffix that all have in common, which would make everything similar.
        let stem = |name: &str| name.strip_suffix(".service").unwrap_or(name).to_owned();
        let known: Vec<String> = systemd::services().iter().map(|name| stem(name)).collect();
        return Err(match not_found("unit", &stem(&full), &known) {
            TargetError::NotFound { what, help, .. } => TargetError::NotFound { what, wanted: full, help },
            other => other,
        });
    }
    let mut target = TargetFacts { unit: unit.facts, ..base };
    // A unit without processes, such as a socket, has a name for its group, and no group.
    let found = (!unit.cgroup.is_empty()).then(|| cgroup::find(&unit.cgroup));
    let found = found.transpose().or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(e) });
    if let Some(cgroup) = found.map_err(|e| io_error(&format!("cgroup {} of unit {wanted}", unit.cgroup), e))? {
        target.processes = cgroup::processes(&cgroup);
        target.cgroup = Some(cgroup);
    }
    Ok(target)
}

/// The one namespace in which all of the processes live, with all its interfaces.
fn shared_namespace(name: &str, processes: &[ProcessRef]) -> Result<Option<NetnsFacts>, TargetError> {
    let mut found: Option<NetnsRef> = None;
    for process in processes {
        let netns = match netns::of_process(process.pid) {
            Ok(netns) => netns,
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                return Err(io_error(&format!("the network namespace of process {}", process.pid), e));
            }
            // A process that ends just now has no say.
            Err(_) => continue,
        };
        match &found {
            Some(first) if first.inode != netns.inode => return Err(TargetError::SeveralNamespaces(name.to_owned())),
            Some(_) => {}
            None => found = Some(netns),
        }
    }
    let Some(netns) = found.map(netns::lasting) else { return Ok(None) };
    let interfaces = interfaces(&netns)?;
    Ok(Some(NetnsFacts { netns, interfaces, spare_ports: Vec::new() }))
}

fn interfaces(namespace: &NetnsRef) -> Result<Vec<Interface>, TargetError> {
    netns::interfaces(namespace).map_err(|e| io_error(&format!("interfaces of {}", namespace.path), e))
}

fn not_found(what: &'static str, wanted: &str, known: &[String]) -> TargetError {
    let mut names: Vec<&str> = known.iter().map(String::as_str).collect();
    // The whole list of a big host helps nobody.
    let many = names.len() > 12;
    let near = firedrill_model::file::closest(wanted, names.iter().copied());
    let help = match (near, many) {
        (None, true) => {
            names.truncate(12);
            format!("there are {}, such as {}", known.len(), names.join(", "))
        }
        _ => did_you_mean(wanted, names),
    };
    TargetError::NotFound { what, wanted: wanted.to_owned(), help }
}

fn io_error(what: &str, source: io::Error) -> TargetError {
    TargetError::Io { what: what.to_owned(), source }
}
