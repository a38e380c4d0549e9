//! From names to things on this host, and the refusals.

use std::net::{TcpListener, UdpSocket};

use firedrill_agent::host::process;
use firedrill_agent::target::TargetError;
use firedrill_model::facts::{Control, TargetKind};
use firedrill_model::target::{ProcessSelector, TargetSpec};

use crate::support::{
    Bench, Group, Netns, Pair, Process, controlled, eventually, guardian_of, port, target, unique, words,
};

fn refusal(bench: &Bench, spec: TargetSpec) -> TargetError {
    bench.agent.resolve(&target(spec)).expect_err("refused")
}

fn selector(change: impl FnOnce(&mut ProcessSelector)) -> TargetSpec {
    let mut process = ProcessSelector::default();
    change(&mut process);
    TargetSpec { process: Some(process), ..TargetSpec::default() }
}

fn cgroup(path: &str) -> TargetSpec {
    TargetSpec { cgroup: Some(path.into()), ..TargetSpec::default() }
}

fn pid(pid: i32) -> TargetSpec {
    TargetSpec { pid: Some(pid), ..TargetSpec::default() }
}

fn interface(netns: Option<&str>, interface: &str) -> TargetSpec {
    TargetSpec { netns: netns.map(Into::into), interface: Some(interface.into()), ..TargetSpec::default() }
}

pub fn a_group_is_found_with_its_processes_and_their_namespace() {
    let (group, pair) = (Group::new("found"), Pair::new());
    let inner = group.below("inner");
    let members =
        [group.start(&["sleep", "1000"], Some(&pair.a.name)), inner.start(&["sleep", "1000"], Some(&pair.a.name))];
    let bench = Bench::new();
    for path in [group.path.clone(), format!("/{}/", group.path)] {
        let found = bench.resolve(cgroup(&path));
        assert_eq!(found.kind, TargetKind::Cgroup);
        let mut pids = members.iter().map(Process::pid).collect::<Vec<_>>();
        pids.sort_unstable();
        assert_eq!(found.processes.iter().map(|p| p.pid).collect::<Vec<_>>(), pids);
        let netns = found.netns.expect("a namespace");
        assert_eq!(netns.netns, pair.a.reference(), "by its name, which outlives the processes");
        let names: Vec<&str> = netns.interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(names, ["lo", "va"]);
    }
}

pub fn a_process_is_found_by_what_it_is() {
    let (process, seconds) = Process::sleep();
    let bench = Bench::new();
    let exe = process::exe(process.pid()).expect("a path").display().to_string();
    let specs = [
        pid(process.pid()),
        selector(|s| s.cmdline = Some(format!("sleep {seconds}"))),
        selector(|s| (s.exe, s.cmdline) = (Some(exe.clone()), Some(seconds.clone()))),
        selector(|s| (s.user, s.cmdline) = (Some("root".into()), Some(seconds.clone()))),
        selector(|s| (s.user, s.cmdline) = (Some("0".into()), Some(seconds.clone()))),
    ];
    for spec in specs {
        let found = bench.resolve(spec.clone());
        assert_eq!(found.processes, std::slice::from_ref(&process.identity), "{spec}");
        assert_eq!(found.kind, TargetKind::Process);
    }
    let file = exe.rsplit('/').next().expect("a file").to_owned();
    let found = bench.resolve(selector(|s| (s.exe, s.cmdline) = (Some(file), Some(seconds.clone()))));
    assert_eq!(found.processes, std::slice::from_ref(&process.identity), "by the name of its file alone");
    for spec in [
        selector(|s| (s.user, s.cmdline) = (Some("nobody".into()), Some(seconds.clone()))),
        selector(|s| (s.exe, s.cmdline) = (Some("/other/sleep".into()), Some(seconds.clone()))),
    ] {
        assert!(matches!(refusal(&bench, spec), TargetError::NotFound { .. }));
    }
}

pub fn a_process_is_found_by_the_port_on_which_it_listens() {
    let (group, netns, port) = (Group::new("listens"), Netns::new("listens"), port());
    let server = group.server(&netns.name, port);
    netns.wait_for(port);
    let bench = Bench::new();
    let found = bench.resolve(selector(|s| s.listens_on = Some(port)));
    assert_eq!(found.processes, std::slice::from_ref(&server.identity), "by the table of its own namespace");
    assert_eq!(found.netns.map(|n| n.netns), Some(netns.reference()));

    // The same port in another namespace is another process's, and ours is never found.
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let ours = tcp.local_addr().expect("bound").port();
    assert!(matches!(refusal(&bench, selector(|s| s.listens_on = Some(ours))), TargetError::NotFound { .. }));
    let udp = UdpSocket::bind(("::1", 0)).expect("a socket");
    let ours = udp.local_addr().expect("bound").port();
    assert!(matches!(refusal(&bench, selector(|s| s.listens_on = Some(ours))), TargetError::NotFound { .. }));
}

pub fn a_process_whose_arguments_are_on_our_command_line_too_can_be_told_from_us() {
    // As with `sudo firedrill inject kill --process nginx`: an ancestor has the word on its command line, but is not
    // what is meant.
    let lineage = process::lineage(std::process::id().cast_signed());
    let bench = Bench::new();
    let mut asked = 0;
    for ancestor in &lineage {
        let words = process::cmdline(*ancestor);
        if words.is_empty() {
            continue;
        }
        asked += 1;
        match bench.agent.resolve(&target(selector(|s| s.cmdline = Some(words.clone())))) {
            Ok(found) => assert!(!found.processes.iter().any(|p| lineage.contains(&p.pid)), "{words}: {found:?}"),
            Err(error) => assert!(!error.to_string().contains("ancestors"), "{words}: {error}"),
        }
    }
    assert!(asked > 0);
}

pub fn a_namespace_is_all_of_its_interfaces_but_the_loopback() {
    let pair = Pair::new();
    let bench = Bench::new();
    let names = |spec| -> Vec<String> {
        bench.resolve(spec).netns.expect("a namespace").interfaces.into_iter().map(|i| i.name).collect()
    };
    assert_eq!(names(pair.a.spec()), ["va"]);
    let path = TargetSpec { netns: Some(format!("/run/netns/{}", pair.a.name)), ..TargetSpec::default() };
    assert_eq!(names(path), ["va"]);
    assert_eq!(names(interface(Some(&pair.b.name), "vb")), ["vb"]);
    assert_eq!(names(interface(Some(&pair.b.name), "lo")), ["lo"], "of a namespace that is not the host's");
}

pub fn what_is_not_there_is_an_error_that_names_what_is_similar() {
    let (group, pair) = (Group::new("similar"), Pair::new());
    let _member = group.start(&["sleep", "1000"], None);
    let (process, _) = Process::sleep();
    let bench = Bench::new();
    let nearly = |name: &str| format!("{}x", name);
    let cases = [
        (cgroup(&nearly(&group.path)), group.path.clone()),
        (TargetSpec { netns: Some(nearly(&pair.a.name)), ..TargetSpec::default() }, pair.a.name.clone()),
        (interface(Some(&pair.a.name), "vaa"), "va".into()),
        (selector(|s| s.exe = Some("sleeep".into())), "sleep".into()),
    ];
    for (spec, near) in cases {
        let error = refusal(&bench, spec.clone()).to_string();
        assert!(error.contains(&format!("`{near}`")) || error.contains(&near), "{spec}: {error}");
        assert!(matches!(refusal(&bench, spec), TargetError::NotFound { .. }));
    }
    let gone = process.pid();
    drop(process);
    let error = refusal(&bench, pid(gone)).to_string();
    assert!(error.contains("has ended"), "{error}");
    let error = refusal(&bench, TargetSpec { unit: Some(unique("unit")), ..TargetSpec::default() }).to_string();
    assert!(error.contains("no unit matches"), "{error}");
    assert!(refusal(&bench, cgroup("../..")).to_string().contains("no cgroup matches"));
}

pub fn what_keeps_the_host_alive_is_refused() {
    let bench = Bench::new();
    let me = std::process::id().cast_signed();
    let guardian = guardian_of(&bench.folder.directories()).expect("a guardian");
    let mut protected = process::lineage(me);
    protected.extend([1, guardian]);
    for pid_of in protected {
        let error = refusal(&bench, pid(pid_of));
        assert!(matches!(error, TargetError::Protected { .. }), "{pid_of}: {error}");
    }
    let shelter = cgroup(&format!("firedrill-guardian-{guardian}"));
    assert!(matches!(refusal(&bench, shelter), TargetError::Protected { .. }), "the guardian's group");
    let run = bench.folder.directories().run.display().to_string();
    let guardians = selector(|s| s.cmdline = Some(run));
    assert!(matches!(refusal(&bench, guardians), TargetError::Protected { .. }), "the guardian by its arguments");
    // Kernel threads are children of the second process (kthreadd), where they can be seen at all.
    if let Some(kernel) = process::all().into_iter().find(|s| s.kernel_thread) {
        assert!(matches!(refusal(&bench, pid(kernel.process.pid)), TargetError::Protected { .. }));
    }
}

pub fn the_root_group_is_refused_however_it_is_spelled() {
    let bench = Bench::new();
    for path in ["/", "", ".", "./", "//"] {
        let error = refusal(&bench, cgroup(path));
        assert!(matches!(error, TargetError::Protected { .. }), "`{path}`: {error}");
        assert!(error.to_string().contains("root cgroup"), "`{path}`: {error}");
    }
}

pub fn a_group_whose_processes_are_in_several_namespaces_is_refused() {
    let (group, pair) = (Group::new("several"), Pair::new());
    let _members =
        [group.start(&["sleep", "1000"], Some(&pair.a.name)), group.start(&["sleep", "1000"], Some(&pair.b.name))];
    let bench = Bench::new();
    let error = refusal(&bench, group.spec());
    assert!(matches!(error, TargetError::SeveralNamespaces(_)), "{error}");
}

pub fn a_group_without_processes_is_an_error_unless_commands_can_start_it() {
    let group = Group::new("empty");
    let bench = Bench::new();
    assert!(matches!(refusal(&bench, group.spec()), TargetError::Empty(_)));
    let control = Control { stop: words(&["true"]), start: words(&["true"]) };
    let found = bench.agent.resolve(&controlled(group.spec(), control)).expect("commands will start it");
    assert!(found.processes.is_empty() && found.netns.is_none() && found.control.is_some());
}

pub fn a_process_that_has_ended_but_was_not_reaped_is_not_there() {
    let process = Process::start(&["true"]);
    eventually("it is a zombie", || process.state() == 'Z');
    let bench = Bench::new();
    assert!(matches!(refusal(&bench, pid(process.pid())), TargetError::NotFound { .. }));
}
