//! What an agent holds, and how soon the kernel is rid of it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::AsFd as _;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

use aya::programs::loaded_links;
use firedrill_agent::agent::Agent;
use firedrill_agent::dataplane::{Action, DataPlane, Direction, Loss, RuleSpec};
use firedrill_agent::journal::Directories;

use crate::Extent;
use crate::sample::Sample;
use crate::support::{Folder, options};
use crate::table::{Goal, Table};
use crate::world::{DEVICE, World, later};

/// Rules of a target, and targets: 10,000 rules.
const RULES: usize = 50;
const TARGETS: usize = 200;

pub fn measure(world: &World, extent: &Extent, table: &mut Table) {
    table.section(
        "Gone, and held",
        "A process with the programs attached both ways, a delay line and rules. Gone is when the kernel has none of its links \
         and no TAP. Memory is what the process has resident (VmRSS), the programs' own 3 MB on disk included.",
    );
    let killed = Sample::new((0..extent.turns).map(|_| gone_after_a_kill(world)).collect());
    let reverted = Sample::new((0..extent.turns).map(|_| gone_after_shutting_down(world)).collect());
    for (what, ms) in [("after SIGKILL", killed), ("after revert", reverted)] {
        let beside = format!("median {:.1} ms, {} times", ms.median(), ms.len());
        let worst = ms.quantile(1.0);
        table.row(&format!("gone {what}: worst"), worst, &format!("{worst:.1} ms"), &beside, Goal::AtMost(200.0));
    }
    let folder = Folder::new();
    let mut child = Held::start(&["weigh", &folder.0.display().to_string(), &netns(world)]);
    for what in
        ["an agent that has nothing to do", "the same with the data plane of a namespace", "the same with 10,000 rules"]
    {
        let mib = child.line().trim().parse::<f64>().expect("a number") / 1024.0;
        table.row(what, mib, &format!("{mib:.1} MiB"), "resident", Goal::None);
    }
}

fn netns(world: &World) -> String {
    world.pair.a.reference().path
}

/// A data plane as of a fault.
fn plane(netns: &str) -> DataPlane {
    let netns = File::open(netns).expect("the namespace");
    let mut plane = DataPlane::open(netns.as_fd()).expect("a data plane");
    let va = firedrill_agent::dataplane::within(netns.as_fd(), || nix::net::if_::if_nametoindex(DEVICE));
    let va = va.expect("entered").expect("the interface");
    plane.attach_with_line(va, DEVICE, Direction::Egress).expect("attached");
    plane.attach(va, DEVICE, Direction::Ingress).expect("attached");
    let delay = Action::delay(std::time::Duration::from_millis(50), std::time::Duration::ZERO);
    plane.add_rule(RuleSpec::egress(delay, later())).expect("a rule");
    plane
}

/// Milliseconds from a SIGKILL until the kernel is rid of everything.
fn gone_after_a_kill(world: &World) -> f64 {
    let mut child = Held::start(&["hold", &netns(world)]);
    let links = child.line().split_whitespace().map(|id| id.parse().expect("an id")).collect::<Vec<u32>>();
    assert!(!is_gone(world, &links), "the kernel has it now");
    let begun = Instant::now();
    child.0.kill().expect("killed");
    wait(world, &links);
    begun.elapsed().as_secs_f64() * 1e3
}

/// Milliseconds from the beginning of an orderly end until the kernel is rid of everything.
fn gone_after_shutting_down(world: &World) -> f64 {
    let mut plane = plane(&netns(world));
    let links = plane.link_ids();
    let begun = Instant::now();
    plane.shut_down().expect("in order");
    wait(world, &links);
    begun.elapsed().as_secs_f64() * 1e3
}

fn wait(world: &World, links: &[u32]) {
    let begun = Instant::now();
    while !is_gone(world, links) {
        assert!(begun.elapsed().as_secs() < 10, "links or a TAP are left");
    }
}

fn is_gone(world: &World, links: &[u32]) -> bool {
    let tap = world.pair.a.within(|| nix::net::if_::if_nametoindex("fdl0"));
    tap.is_err() && loaded_links().flatten().all(|link| !links.contains(&link.id()))
}

/// Another process; killed when it goes.
struct Held(Child, BufReader<ChildStdout>);

impl Held {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        let mut child =
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a process");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self(child, output)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).expect("a line");
        line
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It ends in order with its input.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Plays one of these processes, when asked to.
pub fn play() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["guardian", run, state] => return Some(firedrill_agent::guardian::main(run.into(), state.into()).into()),
        ["hold", netns] => hold(netns),
        ["weigh", folder, netns] => weigh(folder.as_ref(), netns),
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

fn hold(netns: &str) {
    let plane = plane(netns);
    let ids: Vec<String> = plane.link_ids().iter().map(u32::to_string).collect();
    println!("{}", ids.join(" "));
    until_told();
}

fn weigh(folder: &std::path::Path, netns: &str) {
    let directories = Directories { run: folder.join("run"), state: folder.join("state") };
    let agent = Agent::start(options(&directories, "a benchmark")).expect("an agent");
    println!("{}", resident());
    let mut plane = plane(netns);
    println!("{}", resident());
    let drop = Action::Drop(Loss::Independent { probability: 1.0 });
    for _ in 0..TARGETS {
        let tag = plane.allocate_tag();
        for _ in 0..RULES {
            plane.add_rule(RuleSpec { tag: Some(tag), ..RuleSpec::egress(drop.clone(), later()) }).expect("a rule");
        }
    }
    println!("{}", resident());
    until_told();
    agent.stop();
}

fn until_told() {
    let _ = std::io::stdin().read(&mut [0]);
}

/// `VmRSS` (KiB).
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
