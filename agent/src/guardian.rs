//! The guardian: a small process beside the agent that undoes, when the agent dies, what the kernel does not.
//!
//! It is exec'd before any eBPF descriptor is opened, because an inherited link would keep its fault alive. It
//! has a session and a cgroup of its own, so that what kills the agent's group spares it, and it watches the
//! agent by pidfd.
//!
//! The agent listens to it, too: it answers each sign of life. One that has died, or has not answered for [`DEAF_AFTER`], is
//! replaced: first another one is armed, then the old one is killed. If two of them ever find the agent dead, the owner's
//! lock lets one act, and then there is nothing left for the other.
//!
//! An agent that hangs (stopped, frozen, in a deadlock) is as good as dead, but would go on where it was when it wakes.
//! So it is killed first: after [`HUNG_AFTER`] without a sign of life from the engine's thread, if changes are open.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::unistd::{getppid, read, setsid, write};

use crate::host::{self, cgroup, process};
use crate::journal::Directories;
use crate::owner::{Holder, Owner};
use crate::{aftermath, crash_point, pulse, recover, sys};

/// What the agent writes to let the guardian go in peace.
const FAREWELL: u8 = b'q';
/// What the agent writes while its engine's thread runs.
const BEAT: u8 = b'.';
/// How often it does.
const BEAT_EVERY: Duration = Duration::from_millis(250);
/// An agent that gives no sign of life for so long while changes are open is killed: the time of a lease.
pub const HUNG_AFTER: Duration = Duration::from_secs(5);
/// A guardian that has not answered for so long, by the agent's own waking hours, is replaced.
pub const DEAF_AFTER: Duration = Duration::from_secs(2);
/// How long a guardian may take to begin to watch.
const ARM_PATIENCE: Duration = Duration::from_secs(5);
/// How long one that was killed may take to be gone, before it is left to the kernel.
const DYING: Duration = Duration::from_secs(1);
/// How long a guardian may take to go when it is told to.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
/// What it is called in lists of processes.
const NAME: &str = "firedrill-guardian";
/// What the guardian writes when it watches.
const READY: &str = "ready";
/// The crash point at which a guardian's own work begins; those before it are of its start.
pub const AGENT_DEAD: &str = "guardian.agent.dead";

/// The agent's side of its guardian.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    line: Option<ChildStdin>,
    answers: Option<ChildStdout>,
    silence: Silence,
    looked: Instant,
}

/// What the agent finds of its guardian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// It watches.
    Kept,
    /// It has died.
    Dead,
    /// It does not answer: it is stopped, frozen or stuck.
    Deaf,
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
        let mut command = Command::new(program);
        command.arg0(NAME).args(args).arg(&directories.run).arg(&directories.state);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/");
        let mut child = crash_point::around("guardian.start", || command.spawn())?;
        let (line, answers) = (child.stdin.take(), child.stdout.take());
        // What it does is a change, too.
        let told = crash_point::around("guardian.ready", || {
            answers.as_ref().map_or(Ok(String::new()), |answers| first_line(answers, ARM_PATIENCE))
        });
        let told = told.unwrap_or_else(|e| e.to_string());
        if told.trim() != READY {
            let _ = crash_point::around("guardian.kill", || child.kill());
            let _ = child.wait();
            remove_shelter_of(child.id());
            return Err(io::Error::other(format!("the guardian did not start: {}", told.trim())));
        }
        let line = line.map(|line| sys::descriptor::first_to_close(line.as_fd()).map(ChildStdin::from)).transpose()?;
        if let Some(line) = &line {
            // A guardian that is stopped does not read: the agent must not wait for it.
            fcntl(line, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { child, line, answers, silence: Silence::default(), looked: Instant::now() })
    }

    /// What tells it that the calling thread runs, to be called often; most calls do nothing.
    ///
    /// # Errors
    /// No descriptor is free.
    pub(crate) fn pulse(&self) -> io::Result<impl FnMut() + 'static + use<>> {
        let line: Option<OwnedFd> =
            self.line.as_ref().map(|line| sys::descriptor::first_to_close(line.as_fd())).transpose()?;
        let mut last: Option<Instant> = None;
        Ok(move || {
            if last.is_some_and(|last| last.elapsed() < BEAT_EVERY) {
                return;
            }
            last = Some(Instant::now());
            if let Some(line) = &line {
                // When it is dead, the next renewal tells; when it does not read, there is nobody to tell.
                let _ = write(line, &[BEAT]);
            }
        })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Looks whether it still watches. Call it often.
    pub(crate) fn look(&mut self) -> Watch {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return Watch::Dead;
        }
        self.silence.lasts(self.looked.elapsed());
        self.looked = Instant::now();
        let mut bytes = [0; 512];
        while let Some(answers) = &self.answers
            && matches!(read(answers, &mut bytes), Ok(1..))
        {
            self.silence.is_broken();
        }
        if self.silence.0 >= DEAF_AFTER { Watch::Deaf } else { Watch::Kept }
    }

    /// Ends one that another has replaced.
    pub(crate) fn dismiss_deaf(mut self) {
        // It may have died before.
        let _ = crash_point::around("guardian.kill", || self.child.kill());
        let pid = self.child.id();
        if host::wait_until(DYING, || !matches!(self.child.try_wait(), Ok(None))) {
            remove_shelter_of(pid);
        }
    }

    /// Lets it go: nothing is left for it to do.
    ///
    /// # Errors
    /// It could not be waited for.
    pub fn dismiss(mut self) -> io::Result<()> {
        if let Some(mut line) = self.line.take() {
            // It may have died before: then there is nobody to tell.
            let _ = crash_point::around("guardian.farewell", || line.write_all(&[FAREWELL]));
        }
        // One that is stopped, or drowned in our signs of life, does not hear: nothing is left for it to do.
        let stopped = process::stat(self.pid()).is_ok_and(|stat| process::is_stopped(&stat.process));
        let mut has_left = || !matches!(self.child.try_wait(), Ok(None));
        let leave = || host::wait_until(LEAVE_PATIENCE, &mut has_left);
        if stopped || !crash_point::around("guardian.leave", leave) {
            let _ = crash_point::around("guardian.kill", || self.child.kill());
        }
        let ended = self.child.wait().map(drop);
        remove_shelter_of(self.child.id());
        ended
    }
}

/// Reads a line of what a process that has just been started says, and makes reading it not wait from then on.
fn first_line(from: &ChildStdout, patience: Duration) -> io::Result<String> {
    fcntl(from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let begun = Instant::now();
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        if begun.elapsed() > patience {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it said nothing for {} s", patience.as_secs()),
            ));
        }
        // A running agent may have to wait, too.
        pulse::beat();
        let mut watched = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, PollTimeout::from(100_u8)) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut byte = [0];
        match read(from, &mut byte) {
            Ok(0) => break,
            Ok(_) => line.push(byte[0]),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

/// One that was killed could not remove its group.
fn remove_shelter_of(pid: u32) {
    if let Some(group) = shelter_of(pid) {
        let _ = crash_point::around("shelter.remove", || fs::remove_dir(group));
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
    let mut shelter = Shelter::enter();
    // Not swapped out when memory is short. A host may refuse.
    let _ = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE);
    // If the agent died in between, its pid may be somebody else's: the parent tells.
    if u32::try_from(getppid().as_raw()) != Ok(agent) {
        return Ok(after_death(directories, shelter, "it was killed"));
    }
    // If it died even before we asked, our parent has been another one from the beginning; but nobody listens.
    if writeln!(io::stdout(), "{READY}").and_then(|()| io::stdout().flush()).is_err() {
        return Ok(after_death(directories, shelter, "it was killed"));
    }
    fcntl(io::stdout(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;

    let stdin = io::stdin();
    let mut silence = Silence::default();
    loop {
        let begun = Instant::now();
        let mut watched =
            [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN), PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, LOOK_EVERY) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        silence.lasts(begun.elapsed());
        let said = watched[1].revents().is_some_and(|r| !r.is_empty());
        let died = watched[0].revents().is_some_and(|r| !r.is_empty());
        if said {
            let mut bytes = [0; 4096];
            match read(&stdin, &mut bytes) {
                Ok(n) if bytes[..n].contains(&FAREWELL) => {
                    shelter.leave();
                    return Ok(0);
                }
                Ok(n) if n > 0 => {
                    silence.is_broken();
                    // An agent that does not read does not miss it.
                    let _ = write(io::stdout(), &[BEAT]);
                }
                Err(nix::Error::EINTR) => {}
                // The line closes first when the agent dies; wait until it is wholly gone, descriptors and all.
                _ => {
                    // That takes the kernel as long as this: both wait for RCU.
                    shelter.leave();
                    let mut gone = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                    poll(&mut gone, PollTimeout::from(5000_u16))?;
                    return Ok(after_death(directories, shelter, "it was killed"));
                }
            }
        }
        if died {
            return Ok(after_death(directories, shelter, "it was killed"));
        }
        // With nothing open there is nothing to revert, and whoever stopped it may have had a reason.
        if silence.is_hang() && !recover::outstanding(directories).is_empty() {
            // ESRCH: it has just died.
            let _ = crash_point::around("agent.kill", || sys::signals::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL));
            // As long as the kernel holds it, it holds the host, too.
            let mut gone = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            while matches!(poll(&mut gone, PollTimeout::NONE), Err(nix::Error::EINTR)) {}
            return Ok(after_death(directories, shelter, "it hung and was killed"));
        }
    }
}

/// How often the guardian looks whether the agent hangs (ms).
const LOOK_EVERY: u16 = 250;

/// How long nothing was heard of the other, by the listener's own waking hours: one that could not run itself, because the
/// machine was busy or suspended, does not blame the other.
#[derive(Debug, Default)]
struct Silence(Duration);

impl Silence {
    /// Another wait is over, of so long.
    fn lasts(&mut self, waited: Duration) {
        self.0 += waited.min(2 * Duration::from_millis(LOOK_EVERY.into()));
    }

    fn is_broken(&mut self) {
        self.0 = Duration::ZERO;
    }

    fn is_hang(&self) -> bool {
        self.0 >= HUNG_AFTER
    }
}

/// The agent is dead: become the owner and undo what it left. A new owner that was faster does it instead.
fn after_death(directories: &Directories, mut shelter: Shelter, why: &str) -> u8 {
    crash_point::pass(AGENT_DEAD);
    let holder = Holder::clearing_up("guardian, clearing up");
    let Ok(owner) = Owner::take(&directories.run, &holder, Duration::from_secs(5)) else {
        shelter.leave();
        return 0;
    };
    // A service that is started again must not inherit our shelter: it would keep the group for ever, and never be
    // killed when memory is short.
    shelter.leave();
    let recovery = aftermath::clear_up(directories, &host::facts().boot_id, &owner, why, "its guardian");
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
        let make = |d: &PathBuf| crash_point::around("shelter.make", || fs::create_dir(d)).is_ok();
        let join = |d: &PathBuf| crash_point::around("shelter.join", || fs::write(d.join("cgroup.procs"), "0")).is_ok();
        let entered = shelter_of(std::process::id()).filter(|d| make(d) && join(d));
        let oom_score = fs::read_to_string(OOM_SCORE).ok();
        // A host may refuse: then it is as any other process.
        let _ = crash_point::around("shelter.oom", || fs::write(OOM_SCORE, "-1000"));
        Self { directory: entered, oom_score }
    }

    /// Doing it twice is nothing.
    fn leave(&mut self) {
        if let Some(before) = self.oom_score.take() {
            let _ = crash_point::around("shelter.oom.leave", || fs::write(OOM_SCORE, before));
        }
        let (Some(directory), Some(root)) = (self.directory.take(), cgroup::mount_point()) else { return };
        // A group with a process in it cannot be removed, so step out first.
        let _ = crash_point::around("shelter.leave", || fs::write(root.join("cgroup.procs"), "0"));
        crash_point::around("shelter.remove", || {
            host::wait_until(Duration::from_secs(1), || fs::remove_dir(&directory).is_ok())
        });
    }
}

/// Removes the groups of guardians that were killed, and ends those of this run directory that are stopped: their agent
/// is dead, and the caller has done their work. The groups of living ones have a process in them.
pub(crate) fn sweep(run: &Path) {
    let Some(Ok(groups)) = cgroup::mount_point().map(fs::read_dir) else { return };
    for group in groups.flatten() {
        let name = group.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.strip_prefix(SHELTER)?.parse().ok()) else { continue };
        // A living one may be about to move in. One that is dead may not have been reaped yet, or its number may be
        // another's by now.
        let Some(stat) = process::stat(pid).ok().filter(|_| process::cmdline(pid).starts_with(NAME)) else {
            let _ = crash_point::around("shelter.sweep", || fs::remove_dir(group.path()));
            continue;
        };
        if process::is_stopped(&stat.process) && is_guardian_of(pid, run) {
            let _ = process::signal(&stat.process, libc::SIGKILL);
            crash_point::around("shelter.sweep", || {
                host::wait_until(Duration::from_secs(1), || fs::remove_dir(group.path()).is_ok())
            });
        }
    }
}

/// Whether a process is the guardian of this run directory: a group's name is only a pid, which may be another's by now.
fn is_guardian_of(pid: i32, run: &Path) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let mut words = line.split(|byte| *byte == 0);
    words.next() == Some(NAME.as_bytes()) && words.any(|word| word == run.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_seconds_of_silence_are_a_hang_unless_the_listener_slept_itself() {
        let mut silence = Silence::default();
        for _ in 0..19 {
            silence.lasts(Duration::from_millis(250));
        }
        assert!(!silence.is_hang());
        silence.lasts(Duration::from_millis(250));
        assert!(silence.is_hang());
        silence.is_broken();
        silence.lasts(Duration::from_secs(3600));
        assert!(!silence.is_hang(), "an hour in which the guardian did not run counts as one look");
    }
}
