//! Stages: namespaces, links, groups and processes of our own, such as the demo's. Made as changes like any
//! other, so that nothing of them is left when we die.

mod links;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use firedrill_model::facts::ProcessRef;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::crash_point;
use crate::host::{cgroup, netns, process, wait_until};

pub use links::join;

/// Path of a named namespace.
fn netns_path(name: &str) -> PathBuf {
    Path::new(netns::NAMED).join(name)
}

/// Makes a named network namespace, as `ip netns add` does, with its loopback interface up.
///
/// # Errors
/// The name is taken, or CAP_SYS_ADMIN is missing.
pub fn make_netns(name: &str) -> io::Result<()> {
    let path = netns_path(name);
    crash_point::around("netns.directory", || fs::create_dir_all(netns::NAMED))?;
    crash_point::around("netns.file", || OpenOptions::new().write(true).create_new(true).open(&path))?;
    let made = std::thread::scope(|scope| {
        let worker = scope.spawn(|| -> io::Result<()> {
            crash_point::around("netns.unshare", || unshare(CloneFlags::CLONE_NEWNET))?;
            crash_point::around("netns.mount", || {
                mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            })?;
            links::bring_up("lo")
        });
        worker.join().map_err(|_| io::Error::other("the thread that made the namespace failed"))?
    });
    if made.is_err() {
        delete_netns(name)?;
    }
    made
}

/// Deletes a named network namespace; not there is as good.
///
/// # Errors
/// It is in the way in a manner that `umount` cannot solve.
pub fn delete_netns(name: &str) -> io::Result<String> {
    let path = netns_path(name);
    if path.symlink_metadata().is_err() {
        return Ok("gone already".into());
    }
    // EINVAL: not a mount point, because we died between making the file and mounting on it.
    match crash_point::around("netns.unmount", || umount2(&path, MntFlags::MNT_DETACH)) {
        Ok(()) | Err(nix::Error::EINVAL) => {}
        Err(e) => return Err(e.into()),
    }
    crash_point::around("netns.delete", || fs::remove_file(&path))?;
    Ok("deleted".into())
}

/// Makes a group; its parents must be there.
///
/// # Errors
/// It exists, or the right is missing.
pub fn make_cgroup(path: &str) -> io::Result<()> {
    let directory = cgroup::path_of(path)?;
    crash_point::around("cgroup.make", || fs::create_dir(directory))
}

/// Kills what is in a group of ours and removes it with all below it; not there is as good.
///
/// # Errors
/// A process does not end, or the group is not empty after all.
pub fn remove_cgroup(path: &Path) -> io::Result<String> {
    if !path.is_dir() {
        return Ok("gone already".into());
    }
    let group = cgroup::at(path)?;
    let mut killed = 0;
    let mut kill = || {
        // A frozen group must be thawed for its processes to die; cgroup.kill (5.14) does both, and catches forks. The
        // crash points are around all of it.
        if fs::write(path.join("cgroup.kill"), "1").is_err() {
            let _ = cgroup::set_freeze(&group, "0");
            for victim in cgroup::processes(&group) {
                let _ = process::signal(&victim, libc::SIGKILL);
            }
        }
        let left = cgroup::processes(&group).len();
        killed = killed.max(left);
        left == 0
    };
    let empty = crash_point::around("cgroup.kill", || wait_until(Duration::from_secs(5), &mut kill));
    if !empty {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{} still has processes", path.display())));
    }
    for directory in cgroup::tree(path).into_iter().rev() {
        // Zombies keep a group busy until they are reaped.
        let mut last = Ok(());
        crash_point::around("cgroup.remove", || {
            wait_until(Duration::from_secs(2), || {
                last = fs::remove_dir(&directory)
                    .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) });
                last.is_ok()
            })
        });
        last?;
    }
    Ok(if killed == 0 { "removed".into() } else { format!("{killed} processes killed, removed") })
}

/// What to start, and where.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Program and arguments.
    pub command: &'a [String],
    /// Environment added to our own.
    pub env: &'a std::collections::BTreeMap<String, String>,
    /// Named network namespace.
    pub netns: Option<&'a str>,
    /// Group below the cgroup v2 mount point.
    pub cgroup: &'a str,
    /// File that takes its output.
    pub log: Option<&'a Path>,
}

/// Starts a process inside a group and a namespace of ours: it is in both before its first instruction. It is in
/// a process group of its own, so that Ctrl-C reaches us alone.
///
/// # Errors
/// The program, the group or the namespace is not there.
pub fn spawn(what: &Spawn<'_>) -> io::Result<(Child, ProcessRef)> {
    let [program, args @ ..] = what.command else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"));
    };
    let procs = cgroup::path_of(what.cgroup)?.join("cgroup.procs");
    if !procs.exists() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no cgroup {}", what.cgroup)));
    }
    let namespace = what.netns.map(|name| File::open(netns_path(name))).transpose()?;
    let output = match what.log {
        Some(path) => {
            Stdio::from(crash_point::around("spawn.log", || OpenOptions::new().create(true).append(true).open(path))?)
        }
        None => Stdio::null(),
    };
    let errors = match what.log {
        Some(path) => Stdio::from(OpenOptions::new().append(true).open(path)?),
        None => Stdio::null(),
    };
    // The shell joins the group and then becomes the program; nothing of ours is interpolated into its script.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", JOIN, "sh"]).arg(&procs).arg(program).args(args);
    command.envs(what.env).stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    let child = std::thread::scope(|scope| {
        let worker = scope.spawn(move || -> io::Result<Child> {
            if let Some(namespace) = &namespace {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            }
            crash_point::around("spawn.start", || command.spawn())
        });
        worker.join().map_err(|_| io::Error::other("the thread that starts processes failed"))?
    })?;
    let mut starting = Starting(Some(child));
    let child = starting.0.as_mut().ok_or_else(|| io::Error::other("it is gone"))?;
    let pid = child.id().cast_signed();
    let identity = process::stat(pid)?.process;
    // Until it is in the group, removing the group would not end it. And until the shell has become the program, it
    // may still fail to.
    let mut ended = None;
    let running = crash_point::around("spawn.join", || {
        wait_until(Duration::from_secs(2), || {
            ended = child.try_wait().ok().flatten();
            // A process that is just ending has no command line any more.
            let line = process::cmdline(pid);
            ended.is_some() || (is_in(pid, what.cgroup) && !line.is_empty() && !line.contains(JOIN))
        })
    });
    match ended.and_then(|status| status.code()) {
        // 126 and 127 are the shell's own (POSIX, Shell Command Language 2.8.2).
        Some(127) => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no program `{program}`"))),
        Some(126) => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("`{program}` cannot be executed"))),
        Some(125) => Err(io::Error::other(format!("it could not join cgroup {}", what.cgroup))),
        _ if !running => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("`{program}` did not start in cgroup {}", what.cgroup)))
        }
        // Its name is not the shell's any more.
        _ => {
            let identity = process::stat(pid).map_or(identity, |stat| stat.process);
            starting.0.take().map(|child| (child, identity)).ok_or_else(|| io::Error::other("it is gone"))
        }
    }
}

/// Joins the group named by the first argument, and becomes the program named by the others.
const JOIN: &str = "echo 0 > \"$1\" || exit 125; shift; exec \"$@\"";

fn is_in(pid: i32, group: &str) -> bool {
    let here = |path: String| cgroup::path_of(&path).ok();
    cgroup::of_process(pid).and_then(here) == cgroup::path_of(group).ok()
}

/// Ends and reaps a process that did not get through its start.
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself: as good.
            let _ = crash_point::around("spawn.kill", || child.kill());
            let _ = child.wait();
        }
    }
}
