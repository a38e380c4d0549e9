//! What an agent and the host hold, over its life.

use std::fs;
use std::path::Path;
use std::time::Duration;

use firedrill_agent::host::process;
use firedrill_agent::journal::Directories;
use firedrill_agent::snapshot::{Line, Snapshot};
use serde_json::json;

use crate::world::World;

/// File that takes the figures, as JSON.
const FILE: &str = "FIREDRILL_SOAK_FIGURES";
/// What is measured, and by how much its median may differ between the halves of a life without growing.
const WHAT: [(&str, u64); 7] = [
    ("open files", 0),
    ("eBPF programs, maps and links held", 0),
    ("threads", 0),
    ("child processes", 0),
    ("objects in our namespaces and groups", 0),
    ("files of the journal (bytes)", 0),
    // What the allocator keeps goes up and down; a leak of 1 KiB a cycle shows in 10,000 cycles.
    ("resident memory (KiB)", 4096),
];
/// One part of so many of a life, the first, is not looked at: caches fill.
const PARTS: usize = 5;

/// Samples over time.
#[derive(Default)]
pub struct Measured {
    cycles: Vec<usize>,
    series: [Vec<u64>; WHAT.len()],
}

impl Measured {
    /// Takes a sample while nothing is in force.
    ///
    /// # Errors
    /// Something is left on the host.
    pub fn take(&mut self, cycle: usize, world: &World, directories: &Directories) -> Result<(), String> {
        let left = world.differences();
        if !left.is_empty() {
            return Err(format!("left after cycle {cycle}: {left:?}"));
        }
        let me = std::process::id().cast_signed();
        let values = [
            count("/proc/self/fd"),
            ebpf_held(),
            count("/proc/self/task"),
            process::pids().into_iter().filter(|pid| process::stat(*pid).is_ok_and(|s| s.parent == me)).count() as u64,
            objects(world),
            size(&directories.run) + size(&directories.state),
            resident(),
        ];
        println!("after {cycle} cycles: {values:?}");
        self.cycles.push(cycle);
        for (series, value) in self.series.iter_mut().zip(values) {
            series.push(value);
        }
        Ok(())
    }

    /// Prints and writes the figures. An error when anything grows.
    pub fn finish(&self, cycles: usize, turns: usize, took: Duration) -> Result<(), String> {
        println!("{:38} {:>9} {:>9} {:>9} {:>14}", "", "first", "last", "most", "per 1000 cycles");
        let mut growing = Vec::new();
        let mut rows = Vec::new();
        for ((what, slack), series) in WHAT.iter().zip(&self.series) {
            let from = series.len() / PARTS;
            let (series, at) = (&series[from..], &self.cycles[from..]);
            let (earlier, later) = series.split_at(series.len() / 2);
            let (before, after) = (median(earlier), median(later));
            let most = series.iter().copied().max().unwrap_or(0);
            let slope = slope(at, series) * 1000.0;
            let (first, last) = (series.first().copied().unwrap_or(0), series.last().copied().unwrap_or(0));
            println!("{what:38} {first:9} {last:9} {most:9} {slope:14.2}");
            rows.push(json!({"what": what, "first": first, "last": last, "most": most, "slope": slope}));
            if after > before + slack {
                growing.push(format!("{what}: {before} in the first half, {after} in the second (medians)"));
            }
        }
        if let Some(path) = std::env::var_os(FILE) {
            let figures = json!({"cycles": cycles, "turns": turns, "seconds": took.as_secs_f64(), "rows": rows});
            fs::write(path, figures.to_string()).map_err(|e| format!("the figures cannot be written: {e}"))?;
        }
        if growing.is_empty() { Ok(()) } else { Err(growing.join("\n")) }
    }
}

fn median(values: &[u64]) -> u64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

/// By how much a value grows in each cycle: least squares.
fn slope(cycles: &[usize], values: &[u64]) -> f64 {
    let n = values.len() as f64;
    let (x, y) = (cycles.iter().sum::<usize>() as f64 / n, values.iter().sum::<u64>() as f64 / n);
    let pairs = || cycles.iter().zip(values).map(|(c, v)| (*c as f64 - x, *v as f64 - y));
    let spread: f64 = pairs().map(|(dx, _)| dx * dx).sum();
    if spread > 0.0 { pairs().map(|(dx, dy)| dx * dy).sum::<f64>() / spread } else { 0.0 }
}

/// How many things a snapshot shows in our namespaces and under our names.
fn objects(world: &World) -> u64 {
    let (names, marks) = (world.ground.namespaces(), world.ground.marks());
    let now = Snapshot::take(&names).expect("a snapshot");
    let ours = |line: &&Line| names.contains(&line.place) || marks.iter().any(|mark| line.what.contains(mark));
    now.lines().filter(ours).count() as u64
}

fn count(directory: &str) -> u64 {
    fs::read_dir(directory).map_or(0, |entries| entries.count() as u64)
}

/// Our descriptors of programs, maps and links, as `/proc/PID/fdinfo` tells them.
fn ebpf_held() -> u64 {
    let entries = fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten();
    let texts = entries.map(|entry| fs::read_to_string(entry.path()).unwrap_or_default());
    let is_one =
        |text: &String| text.lines().any(|l| ["prog_id:", "map_id:", "link_id:"].iter().any(|key| l.starts_with(key)));
    texts.filter(is_one).count() as u64
}

/// The size of all files of a folder.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}

/// `VmRSS` (KiB).
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
