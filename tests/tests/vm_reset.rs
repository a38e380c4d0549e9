//! The host is reset in the middle of faults, without a chance to write anything. What outlives a reboot is undone after
//! it, once; the rest went with the old boot, and what has its name, number or place now is left alone.
//!
//! A test that resets the guest is run again by the guest's first process; files on its disk tell it which act it is.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use firedrill_agent::host::{cgroup, netns, process};
use firedrill_agent::stage;
use firedrill_tests::needs_guest;
use firedrill_tests::program::Firedrill;
use nix::sys::signal::Signal;

/// A process that pauses alone, and the number that it shall have again after the reset.
const LONE: &str = "4711";

/// A test that is interrupted by a reset of the guest.
struct Play {
    /// On the disk.
    folder: PathBuf,
    /// Where `firedrill` keeps lock and journal: as a rule a reboot empties it.
    run: PathBuf,
}

impl Play {
    /// `None` when it has been played to its end.
    fn new(name: &str, run: &str) -> Option<Self> {
        let folder = PathBuf::from("/disk").join(name);
        fs::create_dir_all(&folder).expect("a folder on the guest's disk");
        let on_disk = fs::read_to_string("/proc/mounts").expect("mounts").contains("/dev/vda /disk ");
        assert!(on_disk, "the guest has no disk");
        let run = if run.starts_with('/') { run.into() } else { folder.join(run) };
        (!folder.join("played").exists()).then_some(Self { folder, run })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The boot in which the first act was played.
    fn first_boot(&self) -> Option<String> {
        Some(self.text("boot")).filter(|boot| !boot.is_empty())
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn played(self) {
        self.write("played", "");
    }

    fn firedrill(&self, program: &Firedrill, args: &[&str]) -> Command {
        let mut command = program.command(args);
        command.env("FIREDRILL_RUN_DIR", &self.run).env("FIREDRILL_STATE_DIR", self.path("state"));
        command
    }

    fn output(&self, program: &Firedrill, args: &[&str]) -> Output {
        self.firedrill(program, args).output().expect("started")
    }

    /// The experiment. Its commands leave marks where the disk is not touched by the first one: a write that is synced
    /// takes others with it.
    fn experiment(&self) -> String {
        let started = self.path("started").display().to_string();
        format!(
            "kind: System\nname: site\ncomponents:\n\
             \x20 - name: web\n    replicas:\n\
             \x20     - {{name: frozen, cgroup: reset-web}}\n\
             \x20     - {{name: lossy, netns: reset-net, interface: lo}}\n\
             \x20     - {{name: lone, process: {{cmdline: \"{LONE}\"}}}}\n\
             \x20     - name: commanded\n\
             \x20       cgroup: reset-commanded\n\
             \x20       control: {{stop: [touch, /run/stopped], start: [sh, -c, \"echo started >> {started}\"]}}\n\
             ---\nkind: Experiment\nname: reset\nsystem: site\nsteps:\n\
             \x20 - {{target: web/frozen, inject: [{{pause: {{}}}}], for: 300s}}\n\
             \x20 - {{target: web/lone, inject: [{{pause: {{}}}}], for: 300s}}\n\
             \x20 - {{target: web/lossy, inject: [{{loss: {{percent: 50%}}}}, {{latency: {{delay: 20ms}}}}], for: 300s}}\n\
             \x20 - {{target: web/commanded, inject: [{{stop: {{}}}}], for: 300s}}\n\
             expect: {{radius: [web], healed: 5s}}\n"
        )
    }

    /// Faults come into force, and the guest is reset. Does not return.
    #[allow(clippy::zombie_processes, reason = "the reset ends it")]
    fn first_act(&self, keep_run_directory: bool) {
        fs::remove_file("/run/stopped").ok();
        let actors = Actors::new(None);
        let program = Firedrill::new().expect("firedrill");
        let file = program.folder().write("reset.yaml", &self.experiment()).expect("written");
        self.write("boot", &boot());
        self.write("lone", &actors.lone.id().to_string());
        nix::unistd::sync();

        let mut run = self.firedrill(&program, &["run", &file.display().to_string(), "--quiet"]);
        let mut run = run.spawn().expect("started");
        let begun = Instant::now();
        while program.steps_in_force() < 4 {
            assert!(run.try_wait().expect("waited").is_none(), "the run has ended");
            assert!(begun.elapsed() < Duration::from_secs(60), "the faults are not in force");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(Path::new("/run/stopped").exists(), "the command has run");
        assert!(actors.is_frozen() && actors.lone_state() == 'T');
        if keep_run_directory {
            nix::unistd::sync();
        }
        // Shows that nothing is written at the end.
        self.write("unsynced", "x");
        reset();
    }

    /// After the reset: `recover` with namesakes of all that was under a fault.
    fn second_act(&self, first_boot: &str) {
        assert_ne!(first_boot, boot(), "the guest was reset");
        assert_eq!(self.text("unsynced"), "", "the reset was a hard one");
        assert_eq!(self.text("started"), "", "nothing was undone before it");
        let journal = fs::read_to_string(self.path("state/journal.ndjson")).expect("the durable journal was synced");
        assert_eq!(journal.lines().count(), 1, "{journal}");

        let lone = self.text("lone").parse().expect("a pid");
        let actors = Actors::new(Some(lone));
        actors.take_away();
        let before = actors.state();
        let program = Firedrill::new().expect("firedrill");
        let status = self.output(&program, &["status"]);
        assert_ne!(status.status.code(), Some(0), "something is outstanding: {}", said(&status));

        let first = self.output(&program, &["recover"]);
        assert_eq!(first.status.code(), Some(0), "{}", said(&first));
        assert!(said(&first).contains("undone by its own command"), "{}", said(&first));
        assert_eq!(self.text("started"), "started\n", "undone once");
        let second = self.output(&program, &["recover"]);
        assert_eq!(second.status.code(), Some(0), "{}", said(&second));
        assert!(said(&second).contains("nothing to undo"), "{}", said(&second));
        assert_eq!(self.text("started"), "started\n", "not twice");
        assert_eq!(actors.state(), before, "the namesakes are as they were");
        assert_eq!(self.output(&program, &["status"]).status.code(), Some(0));
        assert!(!self.path("state/journal.ndjson").exists() && !self.run.join("journal.ndjson").exists());
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot").trim().to_owned()
}

/// Resets the guest as a power failure would, after it was said to whoever started it. Does not return.
fn reset() -> ! {
    // Closing a serial line waits until all of it is written.
    fs::write("/dev/ttyS2", "reset\n").expect("said");
    fs::write("/proc/sysrq-trigger", "b").expect("asked for a reset");
    std::thread::sleep(Duration::from_secs(30));
    panic!("the guest was not reset");
}

/// What the faults act on: a group, a process, a namespace.
struct Actors {
    member: Child,
    commanded: Child,
    lone: Child,
}

/// A process in a new group.
fn member_of(group: &str) -> Child {
    let group = cgroup::path_of(group).expect("cgroup v2");
    fs::create_dir(&group).expect("a group");
    let mut member = Command::new("sleep");
    let member = member.arg("1000").spawn().expect("a process");
    fs::write(group.join("cgroup.procs"), member.id().to_string()).expect("moved");
    member
}

impl Actors {
    /// `lone` gets this number.
    fn new(number: Option<i32>) -> Self {
        let (member, commanded) = (member_of("reset-web"), member_of("reset-commanded"));
        stage::make_netns("reset-net").expect("a namespace");
        let lone = || Command::new("sh").args(["-c", "while :; do sleep 1; done", LONE]).process_group(0).spawn();
        let lone = loop {
            if let Some(number) = number {
                // The next process gets the next number.
                let mut file = File::create("/proc/sys/kernel/ns_last_pid").expect("root");
                write!(file, "{}", number - 1).expect("set");
            }
            let mut child = lone().expect("a process");
            match number {
                Some(number) if child.id().cast_signed() != number => {
                    // Another process was faster.
                    child.kill().and_then(|()| child.wait().map(|_| ())).expect("ended");
                }
                _ => break child,
            }
        };
        Self { member, commanded, lone }
    }

    /// As an administrator of this boot, does to them what the faults of the last one did.
    fn take_away(&self) {
        let group = cgroup::path_of("reset-web").expect("cgroup v2");
        fs::write(group.join("cgroup.freeze"), "1").expect("frozen");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.lone.id().cast_signed()), Signal::SIGSTOP)
            .expect("stopped");
        let reference = netns::named("reset-net").expect("the namespace");
        netns::within(&reference, || {
            let add = Command::new("tc").args(["qdisc", "add", "dev", "lo", "clsact"]).status().expect("tc");
            assert!(add.success());
            fs::write("/proc/sys/net/ipv4/conf/lo/route_localnet", "1").expect("set");
        })
        .expect("entered");
        let begun = Instant::now();
        while !(self.is_frozen() && self.lone_state() == 'T') {
            assert!(begun.elapsed() < Duration::from_secs(5), "frozen and stopped");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn is_frozen(&self) -> bool {
        cgroup::find("reset-web").is_ok_and(|group| cgroup::is_frozen(&group))
    }

    fn lone_state(&self) -> char {
        process::stat(self.lone.id().cast_signed()).map_or('-', |stat| stat.state)
    }

    fn state(&self) -> String {
        let reference = netns::named("reset-net").expect("the namespace");
        let network = netns::within(&reference, || {
            let qdiscs = Command::new("tc").args(["qdisc", "show", "dev", "lo"]).output().expect("tc");
            let parameter = fs::read_to_string("/proc/sys/net/ipv4/conf/lo/route_localnet").expect("a parameter");
            format!("{}{parameter}", said(&qdiscs))
        })
        .expect("entered");
        let member = process::stat(self.member.id().cast_signed()).map_or('-', |stat| stat.state);
        format!("frozen {}, lone {}, member {member}, {network}", self.is_frozen(), self.lone_state())
    }
}

impl Drop for Actors {
    fn drop(&mut self) {
        for child in [&mut self.member, &mut self.commanded, &mut self.lone] {
            let _ = child.kill();
        }
        let group = cgroup::path_of("reset-web").expect("cgroup v2");
        let _ = fs::write(group.join("cgroup.freeze"), "0");
        for child in [&mut self.member, &mut self.commanded, &mut self.lone] {
            let _ = child.wait();
        }
        let _ = stage::remove_cgroup(&group);
        let commanded = cgroup::path_of("reset-commanded").expect("cgroup v2");
        let _ = stage::remove_cgroup(&commanded);
        let _ = stage::delete_netns("reset-net");
    }
}

fn play(name: &str, run: &str) {
    let Some(play) = Play::new(name, run) else { return };
    match play.first_boot() {
        None => play.first_act(!run.starts_with('/')),
        Some(boot) => play.second_act(&boot),
    }
    play.played();
}

/// One test, so that what fails in an early act is told before the next reset.
#[test]
fn after_a_reset_in_mid_fault_a_command_is_undone_once_and_namesakes_are_left_alone() {
    needs_guest!();
    play("reset", "/run/reset");
    // Where `/run` is a folder of the disk, as in some containers, the next boot finds the whole journal.
    play("reset-kept", "run");
}
