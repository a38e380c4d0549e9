//! What agents act on in one worker, what they must look like after, and the agents themselves.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use firedrill_agent::crash_point;
use firedrill_agent::snapshot::{Difference, Snapshot};
use firedrill_model::change::Plan;
use firedrill_model::fault::Fault;
use firedrill_model::run::TargetPlan;

use crate::corner::Corner;
use crate::parts::{self, Orders};
use crate::support::{Folder, SOON, in_guest, shelter_of};
use crate::units::Units;

/// What a worker made for its agents to act on.
pub trait Ground {
    /// The sorts of target that it has. Each fault is tried on all that it can act on.
    fn sorts(&self) -> &'static [&'static str];
    /// The target of a sort.
    fn target(&self, sort: &str) -> TargetPlan;
    /// Whether a fault is tried on a sort of target, given the sorts that it was tried on before.
    fn is_tried(&self, fault: &Fault, sort: &str, before: &[&str]) -> bool;
    /// How long a fault is in force before it is reverted: for what takes its time to come.
    fn hold(&self, sort: &str) -> Duration;
    /// One change of each kind that only stages have; `None` where no stage is tried.
    fn stage(&self) -> Option<Plan>;
    /// Starts again what an earlier agent killed.
    fn refresh(&mut self);
    /// Named namespaces that must be as before.
    fn namespaces(&self) -> Vec<String>;
    /// Words of other lines of a snapshot that must be as before.
    fn marks(&self) -> Vec<String>;
    /// What is not as it was and stands in no snapshot.
    fn left(&self) -> Vec<String>;
}

/// A crash point that was passed.
pub struct Point {
    /// How many changes had been made before.
    pub changes: u64,
    pub name: String,
}

/// A worker's own corner of the host.
pub struct World {
    pub folder: Folder,
    pub ground: Box<dyn Ground + Send>,
    before: Snapshot,
}

impl World {
    /// Units where the binary was told to try those, namespaces, groups and processes otherwise.
    pub fn new() -> Self {
        let folder = Folder::new();
        let ground: Box<dyn Ground + Send> =
            if Units::are_wanted() { Box::new(Units::new()) } else { Box::new(Corner::new(&folder)) };
        let before = Snapshot::take(&ground.namespaces()).expect("a snapshot");
        Self { folder, ground, before }
    }

    /// As it was at first, with no trace of the last agent.
    pub fn refresh(&mut self) {
        self.ground.refresh();
        let directories = self.folder.directories();
        // What an owner finds there decides how many points it passes.
        for folder in [directories.run, directories.state] {
            let _ = std::fs::remove_dir_all(folder);
        }
        let _ = std::fs::remove_file(self.record());
    }

    /// Where crash points are recorded.
    fn record(&self) -> PathBuf {
        self.folder.0.join("passed")
    }

    /// The points that `role` has passed since the last refresh.
    pub fn passed(&self, role: &str) -> Vec<Point> {
        let text = std::fs::read_to_string(self.record()).unwrap_or_default();
        let point = |line: &str| {
            let (changes, name) = line.strip_prefix(role)?.strip_prefix(' ')?.split_once(' ')?;
            Some(Point { changes: changes.parse().ok()?, name: name.to_owned() })
        };
        text.lines().filter_map(point).collect()
    }

    /// What an agent does that has nothing to do.
    pub fn orders(&self) -> Orders {
        let directories = self.folder.directories();
        Orders {
            run: directories.run,
            state: directories.state,
            stage: Plan::default(),
            fault: None,
            hold: Duration::ZERO,
        }
    }

    /// Starts an agent with orders, which dies where `at` says (see [`crash_point::AT`]).
    pub fn agent(&self, orders: &Orders, at: &str) -> std::process::Command {
        let mut command = std::process::Command::new(std::env::current_exe().expect("this binary"));
        command.arg("agent").arg(serde_json::to_string(orders).expect("orders"));
        command.env(crash_point::AT, at).env(crash_point::COUNT, self.record());
        command
    }

    /// The guardian of the last agent, if it got as far as to start one.
    pub fn guardian(&self) -> Option<i32> {
        let text = std::fs::read_to_string(parts::guardian_file(&self.folder.directories().run)).ok()?;
        text.parse().ok()
    }

    /// What is not as it was, an agent's own files and group among it; waits a while for what is just going.
    pub fn left(&self) -> Vec<String> {
        let mut left = self.differences();
        let directories = self.folder.directories();
        for path in [directories.journal(), directories.durable()] {
            if path.exists() {
                left.push(format!("file {}", path.display()));
            }
        }
        if let Some(shelter) = self.guardian().map(shelter_of).filter(|shelter| shelter.exists()) {
            left.push(format!("group {}", shelter.display()));
        }
        left
    }

    /// What a fault acts on and is not as it was; waits a while for what is just going.
    pub fn differences(&self) -> Vec<String> {
        let (names, marks) = (self.ground.namespaces(), self.ground.marks());
        let now = || -> Vec<Difference> {
            let mut all = self.before.diff(&Snapshot::take(&names).expect("a snapshot"));
            all.retain(|d| {
                let ours = d.appeared && d.line.what.contains("fdrill_") && !Units::are_wanted();
                ours || names.contains(&d.line.place) || marks.iter().any(|mark| d.line.what.contains(mark))
            });
            all
        };
        // What is just going, and other workers' programs, are gone at a later look.
        let begun = Instant::now();
        let mut difference = now();
        // In a guest the guardian of another worker may be at it for seconds, too.
        let patience = if in_guest() { 5 * SOON } else { SOON };
        while !difference.is_empty() && begun.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(20));
            let still = now();
            difference.retain(|d| still.contains(d));
        }
        let mut left: Vec<String> = difference.iter().map(ToString::to_string).collect();
        left.extend(self.ground.left());
        left
    }
}
