//! The program in a mount namespace of its own, where its folders may be full or read-only without anybody's harm.
#![allow(dead_code, reason = "every test file uses some of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use firedrill_agent::host::cgroup;
use firedrill_agent::stage;
use firedrill_tests::needs;
use firedrill_tests::program::{Firedrill, unique};

/// Something to pause: a group with one process.
pub struct Group {
    pub name: String,
    directory: PathBuf,
    sleeper: Child,
}

impl Group {
    pub fn new() -> Self {
        let name = unique("fde");
        let directory = cgroup::path_of(&name).expect("cgroup v2");
        fs::create_dir(&directory).expect("a group");
        let sleeper = Command::new("sleep").arg("600").spawn().expect("a process");
        fs::write(directory.join("cgroup.procs"), sleeper.id().to_string()).expect("moved");
        Self { name, directory, sleeper }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn is_frozen(&self) -> bool {
        fs::read_to_string(self.directory.join("cgroup.events")).is_ok_and(|events| events.contains("frozen 1"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.directory.join("cgroup.freeze"), "0");
        let _ = self.sleeper.kill();
        let _ = self.sleeper.wait();
        let _ = stage::remove_cgroup(&self.directory);
    }
}

/// The program, and the process that keeps its mount namespace.
pub struct Private {
    pub firedrill: Firedrill,
    pub group: Group,
    keeper: Child,
}

/// One; `None`, after it was said why, when this machine cannot have one.
pub fn private() -> Option<Private> {
    if let Some(missing) = needs::missing(&["unshare", "nsenter", "mount", "sh", "awk", "setpriv", "prlimit"]) {
        println!("SKIPPED: {missing}");
        return None;
    }
    let firedrill = Firedrill::new().expect("firedrill");
    for folder in ["run", "state"] {
        fs::create_dir_all(firedrill.folder().path().join(folder)).expect("a folder");
    }
    let mut keeper = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", "echo apart; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a mount namespace");
    let mut word = [0; 5];
    std::io::Read::read_exact(keeper.stdout.as_mut().expect("piped"), &mut word).expect("it is apart");
    Some(Private { firedrill, group: Group::new(), keeper })
}

impl Private {
    /// Runs a script there, in the folder of the test.
    pub fn tries(&self, script: &str) -> bool {
        let script = format!("cd {} && {script}", self.folder());
        self.within().args(["sh", "-c", &script]).status().expect("a shell").success()
    }

    /// Runs a script there that must succeed.
    pub fn must(&self, script: &str) {
        assert!(self.tries(script), "{script}");
    }

    fn within(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.keeper.id()));
        command
    }

    pub fn folder(&self) -> String {
        self.firedrill.folder().path().display().to_string()
    }

    /// The program there, behind some other program such as `prlimit`.
    pub fn behind(&self, before: &[&str], args: &[&str]) -> Command {
        let plain = self.firedrill.command(args);
        let mut command = self.within();
        command.args(before).arg(plain.get_program()).args(plain.get_args()).stdin(Stdio::null());
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.behind(&[], args)
    }

    /// Runs the program there to its end.
    pub fn run(&self, args: &[&str]) -> Said {
        Said::of(self.command(args).output().expect("firedrill"))
    }

    /// Pauses the group for so long.
    pub fn pause<'a>(&'a self, lasts: &'a str) -> [&'a str; 6] {
        ["inject", "pause", "--cgroup", &self.group.name, "--for", lasts]
    }

    /// Starts to pause the group, and waits until it is frozen.
    pub fn begin(&self, lasts: &str) -> Running {
        let mut command = self.command(&self.pause(lasts));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("firedrill");
        let running = Running(Some(child));
        self.until("it is frozen", || self.group.is_frozen());
        running
    }

    pub fn until(&self, what: &str, condition: impl FnMut() -> bool) {
        until(what, condition);
    }
}

/// Waits for something that must come.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// The program while it runs; killed when it is dropped.
pub struct Running(Option<Child>);

impl Running {
    pub fn pid(&self) -> i32 {
        self.0.as_ref().expect("runs").id().cast_signed()
    }

    pub fn kill(&mut self) {
        let child = self.0.as_mut().expect("runs");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    /// Waits for its end.
    pub fn end(mut self) -> Said {
        Said::of(self.0.take().expect("runs").wait_with_output().expect("it ends"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the program said and came to.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    /// Both outputs, lines joined: they are broken where the terminal ends.
    pub text: String,
}

impl Said {
    pub fn of(output: Output) -> Self {
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Self { code: output.status.code().unwrap_or(-1), text }
    }

    /// Asserts exit code and words.
    #[track_caller]
    pub fn expect(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.text);
        for word in words {
            assert!(self.text.contains(word), "no `{word}` in: {}", self.text);
        }
    }
}
