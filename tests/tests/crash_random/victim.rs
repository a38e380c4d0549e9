//! Who is killed, and who cleans up when nobody is left.

use std::fmt;
use std::fs;
use std::time::Duration;

use firedrill_agent::host::process;
use firedrill_model::facts::ProcessRef;
use nix::sys::signal::{Signal, kill, killpg};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::drill::{Drill, Running};
use crate::support::Bench;

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    /// The program.
    Agent,
    /// Everything in the program's process group, as a terminal or a CI job does it.
    ProcessGroup,
    /// Everything in the control group in which it was started.
    ControlGroup,
    /// The guardian.
    Guardian,
    /// Both at once.
    Both,
    /// The program, and the guardian while it cleans up.
    OneAfterTheOther,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Agent => "the program",
            Self::ProcessGroup => "its process group",
            Self::ControlGroup => "its control group",
            Self::Guardian => "its guardian",
            Self::Both => "both",
            Self::OneAfterTheOther => "both in turn",
        })
    }
}

impl Victim {
    /// One of them; half of the time the program alone.
    pub fn draw(random: &mut StdRng) -> Self {
        let others = [
            Self::ProcessGroup,
            Self::ControlGroup,
            Self::Guardian,
            Self::Guardian,
            Self::Both,
            Self::OneAfterTheOther,
        ];
        if random.random() { Self::Agent } else { *others.choose(random).unwrap_or(&Self::Agent) }
    }

    /// Kills it.
    pub fn kill(self, running: &Running, guardians: &[ProcessRef], random: &mut StdRng) {
        let kill_guardians = || {
            for guardian in guardians {
                process::signal(guardian, Signal::SIGKILL as i32).expect("root may");
            }
        };
        // One that has ended is a zombie of ours, and is signalled in vain.
        let kill_agent = || kill(running.pid(), Signal::SIGKILL).expect("not reaped");
        match self {
            Self::Agent => kill_agent(),
            Self::ProcessGroup => killpg(running.pid(), Signal::SIGKILL).expect("not reaped"),
            Self::ControlGroup => kill_group(running),
            Self::Guardian => kill_guardians(),
            Self::Both => {
                kill_guardians();
                kill_agent();
            }
            Self::OneAfterTheOther => {
                kill_agent();
                std::thread::sleep(Duration::from_micros(random.random_range(0..50_000)));
                kill_guardians();
            }
        }
    }

    /// Whether it leaves somebody who could clean up.
    pub fn leaves_somebody(self) -> bool {
        !matches!(self, Self::Both | Self::OneAfterTheOther)
    }
}

/// `cgroup.kill` (Linux 5.14).
fn kill_group(running: &Running) {
    fs::write(running.group().join("cgroup.kill"), "1").expect("a kernel that can");
}

/// Who cleans up when both are dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cleaner {
    /// `firedrill recover`.
    Recover,
    /// `firedrill halt`.
    Halt,
    /// The next run, before it begins.
    NextRun,
}

impl Cleaner {
    /// One of them.
    pub fn draw(random: &mut StdRng) -> Self {
        *[Self::Recover, Self::Halt, Self::NextRun].choose(random).unwrap_or(&Self::Recover)
    }

    /// Has it clean up.
    pub fn clean(self, bench: &Bench, drill: &Drill) {
        let told = |args: &[&str]| {
            let output = bench.firedrill.output(args).expect("started");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(0), "{args:?}: {text}");
        };
        match self {
            Self::Recover => told(&["recover"]),
            Self::Halt => {
                told(&["halt"]);
                told(&["halt", "--clear"]);
            }
            Self::NextRun => {
                drill.start(bench).expect("started").wait(10 * crate::limit());
            }
        }
    }
}
