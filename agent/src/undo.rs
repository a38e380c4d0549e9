//! Inverses: how each change is undone, from nothing but its record. The engine, the guardian and `recover`
//! run the same code.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use firedrill_model::change::Way;
use firedrill_model::facts::{CgroupRef, NetnsRef, ProcessRef, masked};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::host::{cgroup, hooks, netns, process, systemd, wait_until};
use crate::{crash_point, dataplane, stage, sys, sysctl};

/// The inverse of a change, with the old value that it restores. Recorded before the change is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Undo {
    /// The kernel undoes it when the agent's descriptors close; there is nothing to do.
    DiesWithAgent,
    /// Likewise a program that is linked to an interface; but that is looked at.
    Unlinked {
        /// Namespace of the interface.
        netns: NetnsRef,
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
        /// Which way packets pass.
        way: Way,
    },
    /// It cannot be undone; the text says why that is all right.
    Irreversible(String),
    /// Our packet filter on one interface, before kernels had links for it.
    Clsact {
        /// Namespace of the interface.
        netns: NetnsRef,
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
        /// Which way packets pass; records of earlier versions were for both.
        #[serde(default)]
        way: Option<Way>,
        /// Whether the clsact hook was there before us, and so must stay.
        had_clsact: bool,
    },
    /// A kernel parameter.
    Sysctl {
        /// The namespace.
        netns: NetnsRef,
        /// Dotted key.
        key: String,
        /// The value to restore.
        old: String,
        /// The value that we wrote: if another is found, somebody else has changed it since, and it stays.
        ours: String,
    },
    /// Thaw a group.
    Thaw {
        /// The group.
        cgroup: CgroupRef,
    },
    /// Continue a stopped process.
    Continue {
        /// The process.
        process: ProcessRef,
    },
    /// Start a unit's triggers again, then the unit and those that depend on it.
    StartUnit {
        /// The unit.
        unit: String,
        /// Triggers that were stopped.
        triggers: Vec<String>,
        /// Units that systemd stopped with it.
        #[serde(default)]
        dependents: Vec<String>,
    },
    /// Start a unit for which systemd has given up, because it was killed as often as it came back.
    Revive {
        /// The unit.
        unit: String,
    },
    /// Run the user's command.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
        /// Directory in which it runs: that of the run, wherever it is undone from.
        directory: PathBuf,
    },
    /// Remove a network namespace of ours.
    DeleteNetns {
        /// Its name.
        name: String,
    },
    /// Kill what is in a group of ours, and remove it and the groups below it.
    RemoveCgroup {
        /// Its directory.
        path: PathBuf,
    },
}

/// Why an inverse failed, and what is left on the host.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}; left: {left}")]
pub struct UndoError {
    /// What was tried.
    pub what: String,
    /// What is left to do by hand.
    pub left: String,
    /// The error.
    pub source: io::Error,
}

/// The longest that a user's own undo command may take.
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

impl Undo {
    /// Whether the change outlives a reboot, so that its record must, too.
    pub fn outlives_reboot(&self) -> bool {
        matches!(self, Self::Command { .. })
    }

    /// Undoes the change. Doing it twice, or when it was never done, is harmless. The text says what was found
    /// and done.
    ///
    /// # Errors
    /// What failed, and what is left.
    pub fn revert(&self) -> Result<String, UndoError> {
        let fail = |what: String, left: String| move |source: io::Error| UndoError { what, left, source };
        match self {
            Self::DiesWithAgent => Ok("gone with the agent's descriptors".into()),
            Self::Unlinked { netns, index, name, way } => unlinked(netns, *index, name, *way).map_err(fail(
                format!("detaching from {name} {way}"),
                format!("our program; `bpftool net show dev {name}` shows it, and the end of this process removes it"),
            )),
            Self::Irreversible(why) => Ok(why.clone()),
            Self::Clsact { netns, index, name, way, had_clsact } => {
                let Ok(file) = netns::open(netns) else { return Ok("its namespace is gone".into()) };
                let removed = match way {
                    Some(way) => dataplane::remove_clsact_filter(file.as_fd(), *index, (*way).into(), *had_clsact),
                    None => dataplane::remove_clsact_filters(file.as_fd(), *index, *had_clsact),
                };
                removed.map(|()| "filters removed".into()).map_err(|e| {
                    fail(format!("removing our filters from {name}"), format!("`tc filter show dev {name}`"))(
                        io::Error::other(e),
                    )
                })
            }
            Self::Sysctl { netns, key, old, ours } => match sysctl::restore(netns, key, old, ours) {
                Ok(note) => Ok(note),
                Err(e) => Err(fail(format!("restoring {key}"), format!("`sysctl -w {key}={old}`"))(e)),
            },
            Self::Thaw { cgroup } => thaw(cgroup)
                .map_err(fail(format!("thawing {}", cgroup.path), format!("`echo 0 > {}/cgroup.freeze`", cgroup.path))),
            Self::Continue { process } => {
                let sent = process::signal(process, libc::SIGCONT);
                sent.map(|d| {
                    if d == process::Delivery::Sent { "continued".into() } else { "it has ended meanwhile".into() }
                })
                .map_err(fail(format!("continuing process {}", process.pid), format!("`kill -CONT {}`", process.pid)))
            }
            Self::StartUnit { unit, triggers, dependents } => {
                // A socket is refused while its service runs, and the service wants the socket: triggers first.
                let all = triggers.iter().chain([unit]).chain(dependents);
                // All are tried: a socket that is refused does not keep the unit down.
                let failed: Vec<(&str, io::Error)> =
                    all.filter_map(|name| Some((name.as_str(), systemd::start(name).err()?))).collect();
                let names = failed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" ");
                match failed.into_iter().next() {
                    None => Ok("started".into()),
                    Some((_, e)) => Err(fail(format!("starting {names}"), format!("`systemctl start {names}`"))(e)),
                }
            }
            Self::Revive { unit } => {
                let by_hand = format!("`systemctl reset-failed {unit}`, then `systemctl start {unit}`");
                systemd::revive(unit).map_err(fail(format!("giving {unit} back to systemd"), by_hand))
            }
            Self::Command { argv, directory } => {
                // Its arguments may be secret, and this gets into logs.
                let shown = masked(argv).join(" ");
                command(argv, directory, COMMAND_PATIENCE).map(|()| "undone by its own command".into()).map_err(fail(
                    format!("running `{shown}`"),
                    format!("run it by hand, as `control:` of your system file has it: `{shown}`"),
                ))
            }
            Self::DeleteNetns { name } => stage::delete_netns(name)
                .map_err(fail(format!("deleting network namespace {name}"), format!("`ip netns delete {name}`"))),
            Self::RemoveCgroup { path } => stage::remove_cgroup(path)
                .map_err(fail(format!("removing cgroup {}", path.display()), format!("`rmdir {}`", path.display()))),
        }
    }
}

/// Waits until the kernel has taken our program away, which it does some time after the last descriptor is closed.
fn unlinked(netns: &NetnsRef, index: u32, interface: &str, way: Way) -> io::Result<String> {
    let mut last = Ok(0);
    let gone = wait_until(Duration::from_secs(2), || {
        // One that goes away while it is asked about is an error for that moment.
        last = hooks::ours(netns, index, interface, way);
        matches!(last, Ok(0))
    });
    let left = last?;
    if gone { Ok("detached".into()) } else { Err(io::Error::other(format!("{left} of our programs are still there"))) }
}

fn thaw(group: &CgroupRef) -> io::Result<String> {
    if !cgroup::is_same(group) {
        return Ok("the group is gone".into());
    }
    if cgroup::freeze_value(group)? == "0" && !cgroup::is_frozen(group) {
        return Ok("not frozen".into());
    }
    cgroup::set_freeze(group, "0")?;
    // A group above that is frozen too thaws this one with itself.
    let held = || cgroup::has_frozen_ancestor(group);
    wait_until(Duration::from_secs(2), || !cgroup::is_frozen(group) || held())
        .then(|| if held() { "thawed, but a group above it is frozen".to_owned() } else { "thawed".to_owned() })
        .ok_or_else(|| io::Error::new(io::ErrorKind::TimedOut, "still frozen"))
}

/// Runs a program in `directory` to its end, its output thrown away unless it fails.
///
/// # Errors
/// It cannot be started, fails, or takes longer than `patience`.
pub fn command(argv: &[String], directory: &Path, patience: Duration) -> io::Result<()> {
    let [program, args @ ..] = argv else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    // A file in memory, not a pipe: a daemon that the command leaves behind may go on writing to it, and would be
    // killed by SIGPIPE, or stall.
    let mut errors =
        File::from(memfd_create("firedrill-command", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    let mut command = Command::new(program);
    command.args(args).current_dir(directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    // If we die in the middle of it, its inverse is run at once, and must come after it.
    let mut child = crash_point::around("command.start", || sys::child::end_with_us(&mut command).spawn())?;
    let begun = Instant::now();
    // What it does is a change, too.
    let status = crash_point::around("command.work", || -> io::Result<_> {
        loop {
            crate::pulse::beat();
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if begun.elapsed() > patience {
                child.kill()?;
                child.wait()?;
                let why = format!("took longer than {} s", patience.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    })?;
    // From here on what is written to it is refused, so that it does not grow. A kernel that cannot do this only
    // wastes memory.
    let _ = fcntl(&errors, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE));
    if status.success() {
        return Ok(());
    }
    let why = first_line(&mut errors);
    Err(io::Error::other(format!("{status}{}{why}", if why.is_empty() { "" } else { ": " })))
}

fn first_line(file: &mut File) -> String {
    let mut buffer = [0; 512];
    // The reason is a courtesy: without it the exit status still tells that it failed.
    let n = file.rewind().and_then(|()| file.read(&mut buffer)).unwrap_or(0);
    String::from_utf8_lossy(&buffer[..n]).lines().next().unwrap_or_default().to_owned()
}
