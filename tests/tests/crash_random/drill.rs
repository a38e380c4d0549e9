//! Random drills: several faults at once, on whatever they can act on.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use firedrill_agent::host::{cgroup, process, wait_until};
use firedrill_model::facts::ProcessRef;
use firedrill_model::fault::TABLE;
use firedrill_tests::program::{root, unique};
use firedrill_tests::stage::pair::{self, WEB_PORTS};
use nix::unistd::Pid;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::support::Bench;

/// The targets, as replicas of one component. All of them are the stage's.
const TARGETS: [&str; 6] = ["namespace", "other", "interface", "group", "kept", "process"];

/// The targets that a fault can act on, and its parameters.
fn fault(name: &str, random: &mut StdRng) -> (&'static [&'static str], String) {
    const PACKETS: &[&str] = &["namespace", "other", "interface", "group", "process"];
    let way = *["egress", "ingress", "both"].choose(random).unwrap_or(&"both");
    let number = random.random_range(1..100);
    match name {
        "latency" => (PACKETS, format!("{{delay: {number}ms, jitter: {}ms, direction: {way}}}", number / 2)),
        // Half of them as a ramp, some of whose steps come before the kill.
        "loss" if number % 2 == 0 => {
            let ramp = format!("{{ramp: {{from: 0%, to: {number}%, over: 300ms, steps: 3}}}}");
            (PACKETS, format!("{{percent: {ramp}, direction: {way}}}"))
        }
        "loss" => (PACKETS, format!("{{percent: {number}%, direction: {way}}}")),
        "duplicate" | "corrupt" | "reorder" => (PACKETS, format!("{{percent: {number}%, direction: {way}}}")),
        "bandwidth" => (PACKETS, format!("{{rate: {number}mbit, direction: {way}}}")),
        "partition" => (
            PACKETS,
            ["{}", "{mode: reject}", "{peers: [10.215.0.0/24]}", "{peers: [\"fd00::/16\"]}"][number % 4].into(),
        ),
        "dns" => {
            (PACKETS, ["{names: [\"*\"], answer: nxdomain}", "{names: [\"*.org\"], delay: 50ms}"][number % 2].into())
        }
        "reset" => (PACKETS, ["{}", "{every: 100ms}"][number % 2].into()),
        "connect_fail" | "port_exhaustion" => {
            (&["namespace", "other", "group", "kept", "process"], format!("{{percent: {number}%}}"))
        }
        "tcp" => (&["namespace", "other", "group", "kept", "process"], format!("{{latency: {number}ms}}")),
        "pause" => (&["group", "kept", "process"], "{}".into()),
        "stop" => (&["kept"], "{}".into()),
        "kill" => (&["kept"], ["{}", "{keep: true}"][number % 2].into()),
        new => panic!("say on which of {TARGETS:?}, and with which parameters, the fault `{new}` is drawn"),
    }
}

/// A drill.
pub struct Drill {
    steps: Vec<String>,
    file: PathBuf,
}

impl fmt::Display for Drill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.steps.join(" + "))
    }
}

impl Drill {
    /// Of one to three faults, each on a target of its own, begun one after the other and overlapping.
    pub fn draw(random: &mut StdRng, bench: &Bench) -> Self {
        let mut names: Vec<&str> = TABLE.iter().map(|(name, _)| *name).collect();
        names.shuffle(random);
        names.truncate(random.random_range(1..4));
        let mut free = TARGETS.to_vec();
        let (mut steps, mut text) = (Vec::new(), String::new());
        for name in names {
            let (targets, parameters) = fault(name, random);
            let usable: Vec<&str> = free.iter().copied().filter(|t| targets.contains(t)).collect();
            let Some(target) = usable.choose(random) else { continue };
            free.retain(|t| t != target);
            let at = random.random_range(0..150);
            steps.push(format!("{name} {parameters} of {target}"));
            text.push_str(&format!(
                "  - at: {at}ms\n    target: all/{target}\n    inject: [{{{name}: {parameters}}}]\n    for: 400ms\n"
            ));
        }
        let file = bench.firedrill.folder().path().join("random.yaml");
        fs::write(&file, document(bench, &text)).expect("written");
        Self { steps, file }
    }

    /// Starts the program with it, as the leader of a process group and alone in a control group.
    pub fn start(&self, bench: &Bench) -> Result<Running> {
        let name = unique("fdr");
        let group = cgroup::path_of(&name)?;
        fs::create_dir(&group).with_context(|| format!("cannot make {}", group.display()))?;
        let of_program = bench.firedrill.command(&["run", &self.file.display().to_string(), "--quiet"]);
        let mut command = Command::new("/bin/sh");
        // The shell joins the group and becomes the program.
        command.args(["-c", "echo 0 > \"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs"));
        command.arg(of_program.get_program()).args(of_program.get_args()).current_dir(root());
        command.envs(of_program.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let said = bench.firedrill.folder().path().join("said");
        let (out, err) = (File::create(&said)?, File::options().append(true).open(&said)?);
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0).spawn()?;
        Ok(Running { child, group, said })
    }
}

/// The system that drills are of, and one experiment. There are no probes: nobody would live to judge them.
fn document(bench: &Bench, steps: &str) -> String {
    let group = |name| bench.stage.cgroup(name);
    let (kept, web) = (group(pair::KEPT), group(pair::WEB));
    let (a, b) = (bench.stage.netns("a"), bench.stage.netns("b"));
    let pid = pair::server(&bench.stage, WEB_PORTS[1]).expect("runs");
    let mark = mark(bench).display().to_string();
    format!(
        "kind: System\nname: random\ncomponents:\n  - name: all\n    replicas:\n\
         \x20     - {{name: namespace, netns: {b}}}\n\
         \x20     - {{name: other, netns: {a}}}\n\
         \x20     - {{name: interface, netns: {b}, interface: eth0}}\n\
         \x20     - {{name: group, cgroup: {web}}}\n\
         \x20     - name: kept\n        cgroup: {kept}\n\
         \x20       control: {{stop: [mkdir, {mark}], start: [rm, -rf, {mark}]}}\n\
         \x20     - {{name: process, pid: {pid}}}\n\
         ---\nkind: Experiment\nname: random\nsystem: random\nsteps:\n{steps}expect: {{radius: [all], healed: 1s}}\n"
    )
}

/// What is there as long as the kept replica is stopped.
pub fn mark(bench: &Bench) -> PathBuf {
    bench.firedrill.folder().path().join("stopped")
}

/// The program while it runs.
pub struct Running {
    child: Child,
    group: PathBuf,
    said: PathBuf,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its control group.
    pub fn group(&self) -> &std::path::Path {
        &self.group
    }

    /// Its guardians that live: one, or two while one replaces another.
    pub fn guardians(&self) -> Vec<ProcessRef> {
        process::all().into_iter().map(|stat| stat.process).filter(|process| self.is_guardian(process.pid)).collect()
    }

    /// Whether a living process is one of them.
    pub fn is_guardian(&self, pid: i32) -> bool {
        let directory = self.said.with_file_name("run").display().to_string();
        let line = process::cmdline(pid);
        line.starts_with("firedrill-guardian") && line.contains(&directory)
    }

    /// Whether it has not ended.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, and removes its group.
    pub fn wait(&mut self, patience: Duration) {
        let ended = wait_until(patience, || !self.is_alive());
        assert!(ended, "it did not end: {}", fs::read_to_string(&self.said).unwrap_or_default());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        wait_until(Duration::from_secs(1), || fs::remove_dir(&self.group).is_ok());
    }
}
