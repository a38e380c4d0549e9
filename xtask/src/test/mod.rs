//! `test`: runs every suite and says in one line how many tests passed, failed and were skipped.

pub mod build;
mod guests;
pub mod outcome;

use std::{
    env, fs,
    process::{Command, ExitCode, Stdio},
    sync::LazyLock,
    time::Instant,
};

use anyhow::{Context as _, Result};

use self::{
    build::{Built, Suite},
    outcome::Outcome,
};
use crate::{cargo, debian, repo, run, setup};

/// A test binary that takes longer is ended and counts as failed (s).
const BINARY_TIMEOUT: &str = "900";

/// Options of `test`; no suite named means all.
#[derive(clap::Args, Default)]
pub struct Args {
    /// Unit tests of every crate; they need nothing
    #[arg(long)]
    unit: bool,
    /// Tests that change this kernel's state in namespaces of their own; they need root
    #[arg(long)]
    privileged: bool,
    /// The agent's tests, and what would harm a host, on stock Debian kernels in QEMU
    #[arg(long)]
    vm: bool,
    /// Drills on real HAProxy, etcd and Redis; they need root
    #[arg(long)]
    services: bool,
    /// Faults on systemd's units, in a container; they need root
    #[arg(long)]
    units: bool,
    /// The whole demo; it needs root
    #[arg(long)]
    demo: bool,
    /// Fail also when a test was skipped for want of something that can be had; the default when CI=true
    #[arg(long)]
    strict: bool,
    /// Skip what would need packages that are not installed, instead of installing them
    #[arg(long)]
    no_install: bool,
}

/// Runs the suites. The last line that it prints is the sum.
pub fn run(args: &Args) -> Result<ExitCode> {
    let sum = suites(args)?;
    Ok(close(&sum, args.strict || is_ci()))
}

/// True in continuous integration.
fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
}

/// Runs the suites and adds up.
pub fn suites(args: &Args) -> Result<Outcome> {
    let all = !(args.unit || args.privileged || args.vm || args.services || args.units || args.demo);
    let install = !args.no_install;
    let built = build::all()?;
    let mut sum = Outcome::default();
    if all || args.unit {
        section("unit tests");
        sum += binaries(&built, Suite::Unit, Right::Same);
        sum += doc_tests();
    }
    if all || args.privileged {
        section("privileged tests");
        sum += with(setup::Group::Tools, install, "privileged tests", || {
            as_root("privileged tests", |right| binaries(&built, Suite::Privileged, right))
        });
    }
    if all || args.services {
        section("services tests");
        sum += with(setup::Group::Services, install, "services tests", || {
            as_root("services tests", |right| binaries(&built, Suite::Services, right))
        });
    }
    if all || args.units {
        section("units tests");
        sum += with(setup::Group::Units, install, "units tests", || match debian::root(install) {
            Ok(()) => as_root("units tests", |right| binaries(&built, Suite::Units, right)),
            Err(error) => Outcome::skip(format!("units tests: {error:#}")),
        });
    }
    if all || args.demo {
        section("demo");
        sum += as_root("demo", |right| {
            let mut outcome = demo(&built, right);
            outcome += binaries(&built, Suite::Demo, right);
            outcome
        });
    }
    if all || args.vm {
        section("VM tests");
        sum += with(setup::Group::Vm, install, "VM tests", || guests::run(&built));
    }
    Ok(sum)
}

/// Prints why tests did not run, then the closing line.
pub fn close(sum: &Outcome, strict: bool) -> ExitCode {
    println!();
    for reason in &sum.unsupported {
        println!("cannot run here: {reason}");
    }
    for reason in &sum.skipped {
        println!("skipped: {reason}");
    }
    let missed = strict && !sum.skipped.is_empty();
    if missed {
        println!("skipped tests are failures here (CI=true or --strict)");
    }
    println!("{sum}");
    if sum.failed > 0 || missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Prints the name of what begins, and how long we have been at it.
pub fn section(name: &str) {
    static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
    println!("\n== {name} (at {} s)", BEGUN.elapsed().as_secs());
}

/// With whose rights a test binary runs.
#[derive(Clone, Copy)]
enum Right {
    Same,
    Sudo,
}

/// Runs a suite when what it needs is installed, or can be.
fn with(group: setup::Group, install: bool, name: &str, suite: impl FnOnce() -> Outcome) -> Outcome {
    match setup::ensure(group, install) {
        Ok(()) => suite(),
        Err(error) => Outcome::skip(format!("{name}: {error:#}")),
    }
}

/// Runs a suite as root: as we are, or through sudo; skipped where there is neither.
fn as_root(name: &str, suite: impl FnOnce(Right) -> Outcome) -> Outcome {
    if repo::is_root() {
        suite(Right::Same)
    } else if run::find("sudo").is_some() {
        println!("{name} need root: their binaries are started with sudo");
        suite(Right::Sudo)
    } else {
        Outcome::skip(format!("{name}: they need root, and there is no sudo; run `cargo xtask test` as root"))
    }
}

/// Runs the binaries of a suite one after another.
fn binaries(built: &Built, suite: Suite, right: Right) -> Outcome {
    let mut sum = Outcome::default();
    for test in built.suite(suite) {
        let label = test.label();
        let mut command = command(right, &built.firedrill);
        command.arg(&test.path).arg("--show-output").current_dir(&test.package);
        if suite != Suite::Unit {
            command.arg("--test-threads=1"); // they measure time, and share one kernel
        }
        sum += counted(&label, &mut command, true);
    }
    sum
}

/// `timeout … env NAME=VALUE …`, to be followed by the program: sudo drops the environment otherwise.
fn command(right: Right, firedrill: &std::path::Path) -> Command {
    let mut command = match right {
        Right::Same => run::command("env", [] as [&str; 0]),
        Right::Sudo => {
            let mut sudo = run::command("sudo", ["env"]);
            sudo.stdin(Stdio::inherit()); // it may ask for a password
            sudo
        }
    };
    command.arg(format!("FIREDRILL_BIN={}", firedrill.display()));
    command.arg(format!("FIREDRILL_ROOT={}", repo::root().display()));
    // Root's home is another one.
    if let Ok(folder) = debian::folder() {
        command.arg(format!("FIREDRILL_DEBIAN={}", folder.display()));
    }
    for name in ["CI", "RUST_BACKTRACE", "PATH"] {
        if let Ok(value) = env::var(name) {
            command.arg(format!("{name}={value}"));
        }
    }
    command.args(["timeout", "--foreground", "--kill-after=10", BINARY_TIMEOUT]);
    command
}

/// Runs one program with its output in a log, which is shown when it fails.
fn counted(label: &str, command: &mut Command, libtest: bool) -> Outcome {
    counted_or_error(label, command, libtest).unwrap_or_else(|error| {
        println!("{label}: {error:#}");
        Outcome::of(false)
    })
}

fn counted_or_error(label: &str, command: &mut Command, libtest: bool) -> Result<Outcome> {
    let folder = repo::target().join("test-logs");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join(format!("{}.log", label.replace(['/', ' '], "-")));
    let log = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let also = log.try_clone().context("cannot share the log")?;
    let begun = Instant::now();
    let status =
        command.stdout(log).stderr(also).status().with_context(|| format!("cannot start `{}`", run::line(command)))?;

    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let mut outcome = if libtest { Outcome::parse(&text) } else { Outcome::of(status.success()) };
    outcome.prefix(label);
    if !status.success() {
        outcome.failed = outcome.failed.max(1); // a crash has no summary
        println!("--- {}\n{text}\n--- {label} ended with {status}", repo::short(&path));
    }
    println!("{label}: {outcome} ({:.1} s)", begun.elapsed().as_secs_f64());
    Ok(outcome)
}

fn doc_tests() -> Outcome {
    let mut command = cargo::cargo(["test", "--quiet", "--workspace", "--doc"]);
    counted("doc tests", &mut command, true)
}

/// Plays the demo as a user would; it judges itself (exit status 0: every drill could be run and judged).
fn demo(built: &Built, right: Right) -> Outcome {
    let folder = repo::target().join("demo");
    if let Err(error) = fs::create_dir_all(&folder) {
        println!("cannot create {}: {error}", folder.display());
        return Outcome::of(false);
    }
    let mut command = command(right, &built.firedrill);
    command.arg(&built.firedrill).arg("demo").current_dir(folder);
    counted("firedrill demo", &mut command, false)
}
