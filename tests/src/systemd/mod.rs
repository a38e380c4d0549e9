//! A small Debian that systemd runs, in a container (systemd-nspawn) on this kernel: real units, a network of its own,
//! its own control groups. It writes nothing to its files on disk and goes away with its owner, also when that is killed.
//!
//! The root folder is `$FIREDRILL_DEBIAN`, or what `cargo xtask setup --units` has made in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use firedrill_agent::host::cgroup;

use crate::needs;
use crate::program::{Folder, Outcome, binary, unique};

/// The web server that most units run.
const SERVER: &str = include_str!("server.py");
/// Where the container sees the test's folder.
const INSIDE: &str = "/srv/test";
/// Where systemd finds the test's units (systemd.unit(5)).
const UNITS: &str = "/usr/local/lib/systemd/system";
/// What the names of containers and of their control groups begin with; the owner's pid follows.
const PREFIX: &str = "firedrill-units-";
/// The longest that a boot may take; 0.6 s were measured on a quiet machine.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);
/// Joins the group whose `cgroup.procs` is the first argument, and becomes the program that the others name.
const JOIN: &str = "echo 0 > \"$1\" && shift && exec \"$@\"";
/// Units that would only look at this machine's hardware, or change its kernel's parameters.
const MASKED: [&str; 4] =
    ["systemd-sysctl.service", "systemd-modules-load.service", "sys-kernel-debug.mount", "dev-hugepages.mount"];

/// A unit that serves web pages on a port of 127.0.0.1. `more` is added to its `[Service]` section.
pub fn web(port: u16, more: &str) -> String {
    format!("[Service]\nExecStart=/usr/bin/python3 {INSIDE}/server.py {port}\n{more}\n")
}

/// Why no container can be booted here; `None` when one can.
pub fn missing() -> Option<String> {
    needs::missing(&["systemd-nspawn", "setpriv", "nsenter"]).or_else(|| {
        let root = root();
        (!root.join("usr/lib/systemd/systemd").is_file())
            .then(|| format!("there is no small Debian in {}; cargo xtask setup --units makes it", root.display()))
    })
}

/// The root folder: `$FIREDRILL_DEBIAN`, or the newest in the cache.
fn root() -> PathBuf {
    if let Some(root) = std::env::var_os("FIREDRILL_DEBIAN") {
        return root.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || std::env::home_dir().unwrap_or_default().join(".cache");
    let all = cache.unwrap_or_else(home).join("firedrill/debian");
    let finished = |path: &PathBuf| path.extension().is_none();
    let found = fs::read_dir(&all).into_iter().flatten().flatten().map(|entry| entry.path()).filter(finished).max();
    found.unwrap_or(all)
}

/// A container in which systemd runs; ended when it is dropped.
#[derive(Debug)]
pub struct Machine {
    nspawn: Child,
    init: u32,
    groups: Vec<PathBuf>,
    folder: Folder,
}

impl Machine {
    /// Boots a container with these units (name and text), and starts none of them.
    ///
    /// # Errors
    /// Something that [`missing`] knows is missing, or it does not boot.
    pub fn boot(units: &[(&str, &str)]) -> Result<Self> {
        let folder = Folder::new()?;
        folder.write("server.py", SERVER)?;
        let directory = folder.path().join("units");
        fs::create_dir(&directory)?;
        for (name, text) in units {
            fs::write(directory.join(name), text).with_context(|| format!("cannot write the unit {name}"))?;
        }
        let hierarchy = cgroup::mount_point().context("no cgroup v2 hierarchy is mounted")?;
        sweep(&[hierarchy.clone(), hierarchy.join("../systemd")]);
        let name = unique(PREFIX);
        let group = hierarchy.join(&name);
        fs::create_dir(&group).with_context(|| format!("cannot make the cgroup {}", group.display()))?;
        // On a hybrid host nspawn makes the group in systemd's own hierarchy, too.
        let groups = vec![group.clone(), hierarchy.join("../systemd").join(&name)];
        let log = fs::File::create(folder.path().join("console.log"))?;
        let mut nspawn = Command::new("/bin/sh")
            .args(["-c", JOIN, "sh"])
            .arg(group.join("cgroup.procs"))
            // It ends when this thread does, and takes the container with it.
            .args(["setpriv", "--pdeathsig", "TERM", "systemd-nspawn", "--kill-signal=SIGKILL"])
            .args(["--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no", "--console=read-only"])
            .args([
                "--link-journal=no",
                "--resolv-conf=off",
                "--timezone=off",
                "--volatile=overlay",
                "--private-network",
            ])
            .args([
                "--capability=CAP_BPF,CAP_PERFMON,CAP_IPC_LOCK,CAP_NET_ADMIN",
                "--system-call-filter=bpf pidfd_getfd",
            ])
            .arg(format!("--machine={name}"))
            .arg(format!("--directory={}", root().display()))
            .arg(format!("--bind-ro={}:{INSIDE}", folder.path().display()))
            .arg(format!("--bind-ro={}:{UNITS}", directory.display()))
            .arg(format!(
                "--bind-ro={}:/usr/local/bin/firedrill",
                binary().context("firedrill is not built")?.display()
            ))
            .arg("--bind=/dev/net/tun")
            .arg("systemd.unit=basic.target")
            .args(MASKED.map(|unit| format!("systemd.mask={unit}")))
            .env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start systemd-nspawn")?;
        let init = init_of(&mut nspawn);
        let mut machine = Self { nspawn, init: init.as_ref().copied().unwrap_or(0), groups, folder };
        let booted = init.and_then(|_| machine.wait_for_boot());
        booted.with_context(|| {
            let console = fs::read_to_string(machine.folder.path().join("console.log")).unwrap_or_default();
            format!("the container does not boot; its console: {console}")
        })?;
        Ok(machine)
    }

    fn wait_for_boot(&mut self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let said = self.command(&["systemctl", "is-system-running"]).output()?;
            match String::from_utf8_lossy(&said.stdout).trim() {
                "running" | "degraded" => return Ok(()),
                _ if begun.elapsed() < BOOT_PATIENCE => std::thread::sleep(Duration::from_millis(50)),
                state => bail!("it is {state:?} after {BOOT_PATIENCE:?}"),
            }
        }
    }

    /// A folder that the container sees (read-only) as `/srv/test`.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Has the container see a file or folder of this machine as `/srv/test/NAME`, by copying it.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn bring(&self, name: &str, from: &Path) -> Result<()> {
        let to = self.folder.path().join(name);
        if from.is_dir() {
            fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
            for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
                let entry = entry?;
                let name = format!("{name}/{}", entry.file_name().to_string_lossy());
                self.bring(&name, &entry.path())?;
            }
            return Ok(());
        }
        fs::copy(from, &to).map(drop).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    }

    /// The path inside of a file of [`Self::folder`].
    pub fn inside(name: &str) -> String {
        Path::new(INSIDE).join(name).display().to_string()
    }

    /// A program to be run inside.
    pub fn command(&self, argv: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]);
        command.arg("--").args(argv).stdin(Stdio::null()).current_dir("/");
        command
    }

    /// Runs a program inside, and gives what it printed.
    ///
    /// # Errors
    /// It fails.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let done = self.command(argv).output().context("cannot start nsenter")?;
        let said = String::from_utf8_lossy(&done.stdout).trim().to_owned();
        ensure!(done.status.success(), "{argv:?}: {said} {}", String::from_utf8_lossy(&done.stderr));
        Ok(said)
    }

    /// Starts units and waits until they are up.
    ///
    /// # Errors
    /// One cannot be started.
    pub fn start(&self, units: &[&str]) -> Result<()> {
        self.run(&[&["systemctl", "start"], units].concat()).map(drop)
    }

    /// A property of a unit, as `systemctl show` prints it.
    ///
    /// # Errors
    /// systemd does not answer.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        self.run(&["systemctl", "show", "--value", "--property", name, unit])
    }

    /// The `ActiveState` of a unit.
    ///
    /// # Panics
    /// systemd does not answer.
    pub fn state(&self, unit: &str) -> String {
        self.property(unit, "ActiveState").expect("systemd answers")
    }

    /// Waits until a unit is in a state, and says how long that took.
    ///
    /// # Errors
    /// It is not within `patience`.
    pub fn wait_for(&self, unit: &str, state: &str, patience: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            if self.property(unit, "ActiveState")? == state {
                return Ok(begun.elapsed());
            }
            ensure!(begun.elapsed() < patience, "{unit} is {}, not {state}, after {patience:?}", self.state(unit));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs `firedrill` inside to its end, as a unit of its own, with `--json`.
    ///
    /// # Errors
    /// It cannot be started, or prints something else.
    pub fn drill(&self, args: &[&str]) -> Result<Outcome> {
        let unit = format!("--unit={}", unique("drill-"));
        let front = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", &unit, "firedrill"];
        let done = self.command(&[&front, args, &["--json"]].concat()).output().context("cannot start nsenter")?;
        let errors = String::from_utf8_lossy(&done.stderr).into_owned();
        let code = done.status.code().with_context(|| format!("it was killed: {}", done.status))?;
        let json = serde_json::from_slice(&done.stdout)
            .with_context(|| format!("{code}: {}; {errors}", String::from_utf8_lossy(&done.stdout)))?;
        Ok(Outcome { code, json, errors })
    }

    /// Starts `firedrill` inside as the unit `drill.service`, and does not wait for it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn drill_in_background(&self, args: &[&str]) -> Result<()> {
        let front = ["systemd-run", "--quiet", "--collect", "--unit=drill.service", "firedrill"];
        self.run(&[&front, args].concat()).map(drop)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It kills the container, and removes what it has made for it.
        let _ = Command::new("kill").arg(self.nspawn.id().to_string()).status();
        let begun = Instant::now();
        while matches!(self.nspawn.try_wait(), Ok(None)) && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Should it not: the container outlives a nspawn that is merely killed.
        for group in &self.groups {
            let _ = fs::write(group.join("cgroup.kill"), "1");
        }
        let _ = self.nspawn.wait();
        // A group can be removed some time after its last process has ended.
        let begun = Instant::now();
        while self.groups.iter().any(|group| group.exists()) && begun.elapsed() < Duration::from_secs(5) {
            self.groups.iter().for_each(|group| remove(group));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes an empty control group and those below it, as far as that goes.
fn remove(group: &Path) {
    for directory in cgroup::tree(group).into_iter().rev() {
        let _ = fs::remove_dir(directory);
    }
}

/// Removes the groups of owners that were killed; their containers have ended with them.
fn sweep(hierarchies: &[PathBuf]) {
    let groups = hierarchies.iter().filter_map(|hierarchy| fs::read_dir(hierarchy).ok()).flatten().flatten();
    for group in groups {
        let name = group.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('x').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&group.path());
        }
    }
}

/// The container's process 1, as this host numbers it.
fn init_of(nspawn: &mut Child) -> Result<u32> {
    let begun = Instant::now();
    let children = format!("/proc/{0}/task/{0}/children", nspawn.id());
    loop {
        let pids = fs::read_to_string(&children).unwrap_or_default();
        // Before it becomes systemd it is nspawn, which sets the container up.
        let is_systemd =
            |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|n| n.trim() == "systemd");
        if let Some(init) = pids.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_systemd) {
            return Ok(init);
        }
        if let Some(status) = nspawn.try_wait()? {
            bail!("systemd-nspawn ended with {status}");
        }
        ensure!(begun.elapsed() < BOOT_PATIENCE, "no systemd below systemd-nspawn after {BOOT_PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
