//! The guardian, and what is left of an agent that was killed: nothing.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use firedrill_agent::agent::{Agent, StartError};
use firedrill_agent::dataplane::AttachMode;
use firedrill_agent::host::{cgroup, process, wait_until};
use firedrill_agent::journal::Directories;
use firedrill_agent::recover;
use firedrill_agent::snapshot::Snapshot;
use firedrill_model::change::{Change, Plan};
use firedrill_model::facts::{Control, ProcessRef};
use firedrill_model::fault::Fault;
use firedrill_model::run::TargetPlan;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::parts::{ARMED, Orders};
use crate::stages::Stage;
use crate::support::{
    B4, Bench, Folder, Group, LONG, Netns, Pair, Process, SOON, assert_unchanged, controlled, eventually, fault,
    guardian_of, options, plan, read, shelter_of, target, words,
};

/// Another process that is an agent, armed with faults.
pub struct Doomed {
    child: Child,
}

impl Doomed {
    pub fn start(directories: &Directories, stage: Plan, faults: Vec<(TargetPlan, Fault)>) -> Self {
        Self::with(&Self::orders(directories, stage, faults))
    }

    fn orders(directories: &Directories, stage: Plan, faults: Vec<(TargetPlan, Fault)>) -> Orders {
        Orders { run: directories.run.clone(), state: directories.state.clone(), stage, faults, clsact: false }
    }

    fn with(orders: &Orders) -> Self {
        let child = Command::new(std::env::current_exe().expect("this binary"))
            .arg("agent")
            .arg(serde_json::to_string(orders).expect("orders"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // As a shell does it: a stop from the terminal has no effect on a group that nobody could continue.
            .process_group(0)
            .spawn()
            .expect("an agent");
        Self { child }
    }

    pub fn identity(&self) -> ProcessRef {
        process::stat(self.child.id().cast_signed()).expect("not reaped yet").process
    }

    /// Whether it has ended, and was reaped.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("its parent").is_some()
    }

    pub fn armed(directories: &Directories, stage: Plan, faults: Vec<(TargetPlan, Fault)>) -> Self {
        let mut doomed = Self::start(directories, stage, faults);
        doomed.wait();
        doomed
    }

    /// As [`Doomed::armed`], attached in a given way.
    pub fn attached(directories: &Directories, faults: Vec<(TargetPlan, Fault)>, mode: AttachMode) -> Self {
        let orders = Self::orders(directories, Plan::default(), faults);
        let mut doomed = Self::with(&Orders { clsact: mode == AttachMode::Clsact, ..orders });
        doomed.wait();
        doomed
    }

    /// Lets it end by itself, and revert.
    pub fn farewell(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("its parent").success());
    }

    /// Waits until all is in force.
    fn wait(&mut self) {
        let mut line = String::new();
        let out = self.child.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut line).expect("heard");
        assert_eq!(line.trim(), ARMED);
    }

    pub fn kill(&mut self) -> Instant {
        let at = Instant::now();
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
        at
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A condition, and what it means.
type Check<'a> = (&'static str, Box<dyn Fn() -> bool + 'a>);

pub fn the_host_is_clean_within_a_second_after_the_agent_is_killed() {
    let (folder, pair) = (Folder::new(), Pair::new());
    let (frozen, replica) = (Group::new("frozen"), Group::new("replica"));
    let _members = [frozen.start(&["sleep", "1000"], None), frozen.start(&["sleep", "1000"], None)];
    let _replica = replica.start(&["sleep", "1000"], None);
    let (stopped, _) = Process::sleep();
    let mark = folder.0.join("stopped");
    let path = mark.display().to_string();
    let control = Control { stop: words(&["touch", &path]), start: words(&["rm", &path]) };
    let stage = Stage::new(&folder);
    let mut changes = stage.changes(&["sh", "-c", "sleep 1000 & wait"]);
    let key = "net.ipv4.ip_default_ttl".to_owned();
    changes.push(Change::Sysctl { netns: pair.b.reference(), key, value: "65".into() });
    let ttl = || pair.b.parameter("/proc/sys/net/ipv4/ip_default_ttl");
    let usual_ttl = ttl();
    let directories = folder.directories();
    let marks = [frozen.path.as_str(), &replica.path, &stage.a, &stage.b, &stage.group];

    let before = Snapshot::take(&pair.names()).expect("a snapshot");
    let mut doomed = Doomed::armed(
        &directories,
        plan(changes),
        vec![
            (target(pair.a.spec()), fault("loss", json!({"percent": "100%"}))),
            (target(pair.a.spec()), fault("latency", json!({"delay": "200ms"}))),
            (target(frozen.spec()), fault("pause", json!({}))),
            (target(stopped.spec()), fault("pause", json!({}))),
            (controlled(replica.spec(), control), fault("stop", json!({}))),
        ],
    );
    let guardian = guardian_of(&directories).expect("a guardian");
    let identity = process::stat(guardian).expect("it lives").process;
    assert!(frozen.is_frozen() && stopped.state() == 'T' && mark.exists() && pair.a.has_tap());
    assert!(!stage.is_gone() && ttl() == "65" && directories.journal().exists() && directories.durable().exists());
    assert!(!pair.a.run(&format!("ping -c1 -W1 {B4}")).status.success(), "all is lost");

    let killed = doomed.kill();
    let mut cleared: Vec<(&str, Duration)> = Vec::new();
    let mut checks: Vec<Check<'_>> = vec![
        ("traffic flows", Box::new(|| pair.a.round_trips(1))),
        ("the group is thawed", Box::new(|| !frozen.is_frozen())),
        ("the process runs", Box::new(|| stopped.state() == 'S')),
        ("the replica is started", Box::new(|| !mark.exists())),
        ("the parameter is restored", Box::new(|| ttl() == usual_ttl)),
        ("the TAP is gone", Box::new(|| !pair.a.has_tap())),
        ("the stage is gone", Box::new(|| stage.is_gone())),
        ("the journals are gone", Box::new(|| !directories.journal().exists() && !directories.durable().exists())),
        // Reaped by whoever adopts it.
        ("the guardian is gone", Box::new(|| !process::is_alive(&identity))),
        ("its group is gone", Box::new(|| !shelter_of(guardian).exists())),
    ];
    while !checks.is_empty() && killed.elapsed() < SOON {
        checks.retain(|(what, check)| {
            let clear = check();
            if clear {
                cleared.push((what, killed.elapsed()));
            }
            !clear
        });
        std::thread::sleep(Duration::from_millis(1));
    }
    for (what, time) in &cleared {
        eprintln!("{:6.1} ms after the kill: {what}", time.as_secs_f64() * 1e3);
    }
    let missing: Vec<&str> = checks.iter().map(|(what, _)| *what).collect();
    assert!(missing.is_empty(), "not even after {SOON:?}: {missing:?}");
    let last = cleared.iter().map(|(_, time)| *time).max().expect("checks");
    let limit = Duration::from_secs(if crate::support::in_guest() { 5 } else { 1 });
    assert!(last < limit, "{last:?}");
    assert_unchanged(&before, &pair.names(), &marks);

    // It was all the guardian's work, and it said so; a recovery finds nothing more to do.
    let report = read(&directories.run.join("last-recovery.json")).expect("a report");
    assert!(report.contains("freeze cgroup") && report.contains("\"left\":[]"), "{report}");
    let boot = read("/proc/sys/kernel/random/boot_id".as_ref()).expect("a boot id");
    for _ in 0..2 {
        assert_eq!(recover::recover(&directories, &boot), recover::Recovery::default());
    }
}

pub fn the_host_is_clean_whenever_the_agent_is_killed() {
    let (folder, pair, frozen) = (Folder::new(), Pair::new(), Group::new("frozen"));
    let _member = frozen.start(&["sleep", "1000"], None);
    let (stopped, _) = Process::sleep();
    let directories = folder.directories();
    let before = Snapshot::take(&pair.names()).expect("a snapshot");
    let mut held = Vec::new();
    // From before it is the owner until all is in force; the last one says so itself.
    let delays = [0, 10, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500].map(|ms| Some(Duration::from_millis(ms)));
    for delay in delays.into_iter().chain([None]) {
        let stage = Stage::new(&folder);
        let faults = vec![
            (target(frozen.spec()), fault("pause", json!({}))),
            (target(pair.a.spec()), fault("latency", json!({"delay": "10ms"}))),
            (target(stopped.spec()), fault("pause", json!({}))),
        ];
        let mut doomed = Doomed::start(&directories, plan(stage.changes(&["sleep", "1000"])), faults);
        match delay {
            Some(delay) => std::thread::sleep(delay),
            None => doomed.wait(),
        }
        let journal = fs::read(directories.journal()).unwrap_or_default();
        doomed.kill();
        held.push(firedrill_agent::journal::outstanding(&journal).len());
        let marks = [frozen.path.as_str(), &stage.a, &stage.b, &stage.group];
        let clean = || {
            let quiet = guardian_of(&directories).is_none() && !directories.journal().exists();
            quiet && stage.is_gone() && !frozen.is_frozen() && stopped.state() == 'S' && !pair.a.has_tap()
        };
        assert!(
            wait_until(SOON, clean),
            "killed after {delay:?} with {held:?} changes open: {}",
            difference(&before, &pair)
        );
        assert_unchanged(&before, &pair.names(), &marks);
    }
    eprintln!("changes open when it was killed: {held:?}");
    assert!(held[0] == 0 && held.last() == Some(&11), "early and late kills: {held:?}");
}

fn difference(before: &Snapshot, pair: &Pair) -> String {
    let now = Snapshot::take(&pair.names()).expect("a snapshot");
    before.diff(&now).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

pub fn what_an_agent_and_its_guardian_leave_when_both_are_killed_is_undone_by_the_next_agent() {
    let (folder, frozen) = (Folder::new(), Group::new("orphaned"));
    let _member = frozen.start(&["sleep", "1000"], None);
    let directories = folder.directories();
    let stage = Stage::new(&folder);
    let faults = vec![(target(frozen.spec()), fault("pause", json!({})))];
    let mut doomed = Doomed::armed(&directories, plan(stage.changes(&["sleep", "1000"])), faults);
    let guardian = guardian_of(&directories).expect("a guardian");
    let identity = process::stat(guardian).expect("it lives").process;
    // Stopped first, so that it does not notice.
    process::signal(&doomed.identity(), Signal::SIGSTOP as i32).expect("stopped");
    process::signal(&identity, Signal::SIGKILL as i32).expect("killed");
    doomed.kill();
    assert!(frozen.is_frozen() && !stage.is_gone(), "nobody was there to undo it");
    assert_eq!(recover::outstanding(&directories).len(), 7);
    eventually("it is reaped", || process::stat(guardian).is_err());
    let agent = Agent::start(options(&directories, "the next")).expect("an agent");
    assert!(!frozen.is_frozen() && stage.is_gone());
    assert!(agent.recovery().undone.iter().any(|(what, _)| what.contains("freeze")), "{:?}", agent.recovery());
    assert!(!shelter_of(guardian).exists(), "nor is the group of that guardian left");
    assert!(agent.stop().left_over.is_empty());
}

impl Netns {
    /// Whether a ping goes through within a moment.
    fn round_trips(&self, seconds: u32) -> bool {
        self.run(&format!("ping -q -c1 -W{seconds} {B4}")).status.success()
    }
}

pub fn the_guardian_lives_apart_from_its_agent_and_holds_nothing_of_its() {
    let (pair, bench) = (Pair::new(), Bench::new());
    bench
        .agent
        .inject(&bench.resolve(pair.a.spec()), &fault("loss", json!({"percent": "1%"})), LONG)
        .expect("injected");
    let guardian = guardian_of(&bench.folder.directories()).expect("a guardian");
    let stat = fs::read_to_string(format!("/proc/{guardian}/stat")).expect("alive");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    assert_eq!(fields[3], guardian.to_string(), "a session of its own, so that no terminal's signal reaches it");
    assert_eq!(cgroup::of_process(guardian), Some(format!("/firedrill-guardian-{guardian}")));
    let open = fs::read_dir(format!("/proc/{guardian}/fd")).expect("alive");
    let links: Vec<String> =
        open.filter_map(|e| Some(fs::read_link(e.ok()?.path()).ok()?.display().to_string())).collect();
    assert!(!links.is_empty());
    assert!(links.iter().all(|l| !l.contains("bpf") && !l.contains("tun") && !l.contains("owner")), "{links:?}");
}

pub fn an_agent_that_says_farewell_leaves_no_process_group_or_journal() {
    let group = Group::new("farewell");
    let _member = group.start(&["sleep", "1000"], None);
    let bench = Bench::new();
    bench.agent.inject(&bench.resolve(group.spec()), &fault("pause", json!({})), LONG).expect("injected");
    let guardian = guardian_of(&bench.folder.directories()).expect("a guardian");
    let farewell = bench.agent.stop();
    assert_eq!(farewell.ended.len(), 1);
    assert!(!group.is_frozen());
    assert!(process::stat(guardian).is_err(), "not even a zombie");
    assert!(!shelter_of(guardian).exists());
    assert!(!bench.folder.directories().journal().exists());
    assert!(bench.agent.renew().is_err() && bench.agent.receipts().is_empty(), "a stopped agent does nothing");
}

pub fn a_dropped_agent_reverts_everything() {
    let (folder, group) = (Folder::new(), Group::new("dropped"));
    let _member = group.start(&["sleep", "1000"], None);
    let agent = Agent::start(options(&folder.directories(), "a test")).expect("an agent");
    let found = agent.resolve(&target(group.spec())).expect("a target");
    agent.inject(&found, &fault("pause", json!({})), LONG).expect("injected");
    let second = agent.clone();
    drop(agent);
    assert!(group.is_frozen(), "a handle is left");
    drop(second);
    assert!(!group.is_frozen());
    assert!(guardian_of(&folder.directories()).is_none());
}

pub fn a_second_agent_is_refused_with_the_name_of_the_first() {
    let bench = Bench::new();
    let directories = bench.folder.directories();
    match Agent::start(options(&directories, "another")) {
        Err(StartError::Owner(error)) => {
            let text = error.to_string();
            assert!(text.contains("`a test`") && text.contains(&std::process::id().to_string()), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(bench.agent.renew().is_ok(), "the first is not disturbed");
    bench.agent.stop();
    Agent::start(options(&directories, "another")).expect("free again");
}

pub fn a_service_that_is_started_again_after_a_crash_is_not_in_the_guardians_group() {
    let (folder, group) = (Folder::new(), Group::new("service"));
    let _member = group.start(&["sleep", "1000"], None);
    let pidfile = folder.0.join("pid");
    let start = format!("sleep 1000 & echo $! > {}", pidfile.display());
    let control = Control { stop: words(&["true"]), start: words(&["sh", "-c", &start]) };
    let directories = folder.directories();
    let faults = vec![(controlled(group.spec(), control), fault("stop", json!({})))];
    let mut doomed = Doomed::armed(&directories, Plan::default(), faults);
    let guardian = guardian_of(&directories).expect("a guardian");
    let identity = process::stat(guardian).expect("it lives").process;
    doomed.kill();
    eventually("the guardian has gone", || !process::is_alive(&identity));
    let pid: i32 = read(&pidfile).expect("started").parse().expect("a pid");
    let service = process::stat(pid).expect("it runs").process;
    let score = read(format!("/proc/{pid}/oom_score_adj").as_ref()).expect("a score");
    let cgroup_of = cgroup::of_process(pid);
    process::signal(&service, Signal::SIGKILL as i32).expect("killed");
    assert!(!cgroup_of.expect("a group").contains("guardian"));
    assert_eq!(score, read("/proc/self/oom_score_adj".as_ref()).expect("ours"), "nor spared when memory is short");
    assert!(!shelter_of(guardian).exists(), "which can be removed therefore");
}
