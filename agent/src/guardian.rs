//! The guardian: a small process beside the agent that undoes, when the agent dies, what the kernel does not.
//!
//! It is exec'd before any eBPF descriptor is opened, because an inherited link would keep its fault alive. It
//! has a session and a cgroup of its own, so that what kills the agent's group spares it, and it watches the
//! agent by pidfd. Both live or one of them does: if it dies first, the agent says so and reverts.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::unistd::{getppid, setsid};

use crate::host::{self, cgroup, process};
use crate::journal::Directories;
use crate::owner::{Holder, Owner};
use crate::{recover, sys};

/// What the agent writes to let the guardian go in peace.
const FAREWELL: u8 = b'q';
/// What the guardian writes when it watches.
const READY: &str = "ready";

/// The agent's side of its guardian.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    line: Option<ChildStdin>,
}

impl Guardian {
    /// Starts a guardian and waits until it watches. `command` is the program and arguments that end in
    /// [`main`]; the directories are added to them.
    ///
    /// # Errors
    /// It cannot be started, or did not say that it is ready.
    pub fn start(command: &[OsString], directories: &Directories) -> io::Result<Self> {
        let [program, args @ ..] = command else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no guardian command"));
        };
        let mut child = Command::new(program)
            .arg0("firedrill-guardian")
            .args(args)
            .arg(&directories.run)
            .arg(&directories.state)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        let mut answer = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut answer)?;
        }
        if answer.trim() != READY {
            let _ = child.kill();
            let _ = child.wait();
            return Err(io::Error::other(format!("the guardian did not start: {}", answer.trim())));
        }
        let line = child.stdin.take();
        Ok(Self { child, line })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Whether it still watches.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Lets it go: nothing is left for it to do.
    ///
    /// # Errors
    /// It could not be waited for.
    pub fn dismiss(mut self) -> io::Result<()> {
        if let Some(mut line) = self.line.take() {
            // It may have died before: then there is nobody to tell.
            let _ = line.write_all(&[FAREWELL]);
        }
        let ended = self.child.wait().map(drop);
        // One that was killed could not remove its group.
        if let Some(group) = shelter_of(self.child.id()) {
            let _ = fs::remove_dir(group);
        }
        ended
    }
}

/// The guardian process. Returns its exit code when its agent has said farewell, or has died and is cleared up
/// after: 0, or 5 when something could not be undone.
pub fn main(run: PathBuf, state: PathBuf) -> u8 {
    let directories = Directories { run, state };
    match watch(&directories) {
        Ok(code) => code,
        Err(e) => {
            // Standard output is the agent's end of the line: this is what it shows if we never became ready.
            let _ = writeln!(io::stdout(), "{e}");
            5
        }
    }
}

fn watch(directories: &Directories) -> io::Result<u8> {
    let agent = u32::try_from(getppid().as_raw()).map_err(io::Error::other)?;
    let pidfd = sys::sockets::pidfd_open(agent)?;
    // EPERM: it leads its process group, so whoever started it has set it apart already.
    setsid().or_else(|e| if e == nix::Error::EPERM { Ok(nix::unistd::Pid::this()) } else { Err(e) })?;
    let shelter = Shelter::enter();
    // Not swapped out when memory is short. A host may refuse.
    let _ = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE);
    // If the agent died in between, its pid may be somebody else's: the parent tells.
    if u32::try_from(getppid().as_raw()) != Ok(agent) {
        return Ok(after_death(directories, shelter));
    }
    writeln!(io::stdout(), "{READY}")?;
    io::stdout().flush()?;

    let stdin = io::stdin();
    loop {
        let mut watched =
            [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let said = watched[1].revents().is_some_and(|r| !r.is_empty());
        let died = watched[0].revents().is_some_and(|r| !r.is_empty());
        if said {
            let mut byte = [0];
            match stdin.lock().read(&mut byte) {
                Ok(1) if byte[0] == FAREWELL => {
                    shelter.leave();
                    return Ok(0);
                }
                // The line closes when the agent dies; wait until it is wholly gone, descriptors and all.
                _ => {
                    let mut gone = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                    poll(&mut gone, PollTimeout::from(5000_u16))?;
                    return Ok(after_death(directories, shelter));
                }
            }
        }
        if died {
            return Ok(after_death(directories, shelter));
        }
    }
}

/// The agent is dead: become the owner and undo what it left. A new owner that was faster does it instead.
fn after_death(directories: &Directories, shelter: Shelter) -> u8 {
    let begun = Instant::now();
    let holder = Holder { pid: std::process::id(), what: "guardian, clearing up".into(), since: String::new() };
    let Ok(owner) = Owner::take(&directories.run, &holder, Duration::from_secs(5)) else {
        shelter.leave();
        return 0;
    };
    // A service that is started again must not inherit our shelter: it would keep the group for ever, and never be
    // killed when memory is short.
    shelter.leave();
    let recovery = recover::recover(directories, &host::facts().boot_id);
    let report = serde_json::json!({
        "undone": recovery.undone,
        "left": recovery.left,
        "took_ms": begun.elapsed().as_secs_f64() * 1e3,
    });
    // For `firedrill status`; the host is clean whether or not it can be written.
    let _ = fs::write(directories.run.join("last-recovery.json"), report.to_string());
    drop(owner);
    if recovery.left.is_empty() { 0 } else { 5 }
}

/// What protects the guardian from the end of the agent: a cgroup of its own, outside of every target and of the
/// session that started it, and exemption from being killed when memory is short.
struct Shelter {
    directory: Option<PathBuf>,
    oom_score: Option<String>,
}

const OOM_SCORE: &str = "/proc/self/oom_score_adj";
pub(crate) const SHELTER: &str = "firedrill-guardian-";

/// Directory of a guardian's cgroup.
fn shelter_of(pid: u32) -> Option<PathBuf> {
    Some(cgroup::mount_point()?.join(format!("{SHELTER}{pid}")))
}

impl Shelter {
    fn enter() -> Self {
        let entered = shelter_of(std::process::id())
            .filter(|d| fs::create_dir(d).is_ok() && fs::write(d.join("cgroup.procs"), "0").is_ok());
        let oom_score = fs::read_to_string(OOM_SCORE).ok();
        // A host may refuse: then it is as any other process.
        let _ = fs::write(OOM_SCORE, "-1000");
        Self { directory: entered, oom_score }
    }

    fn leave(self) {
        if let Some(before) = self.oom_score {
            let _ = fs::write(OOM_SCORE, before);
        }
        let (Some(directory), Some(root)) = (self.directory, cgroup::mount_point()) else { return };
        // A group with a process in it cannot be removed, so step out first.
        let _ = fs::write(root.join("cgroup.procs"), "0");
        host::wait_until(Duration::from_secs(1), || fs::remove_dir(&directory).is_ok());
    }
}

/// Removes the groups of guardians that were killed. Those of living ones have a process in them.
pub(crate) fn sweep() {
    let Some(Ok(groups)) = cgroup::mount_point().map(fs::read_dir) else { return };
    for group in groups.flatten() {
        let name = group.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(SHELTER)?.parse().ok());
        // A living one may be about to move in.
        if pid.is_some_and(|pid| process::stat(pid).is_err()) {
            let _ = fs::remove_dir(group.path());
        }
    }
}
