//! `vm-test`: runs the static test binaries on a stock Debian kernel in QEMU.

mod boot;
mod cpio;
pub mod initramfs;
pub mod kernel;
mod modules;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};

use self::kernel::Kernel;
use crate::{
    cargo::Executable,
    repo, setup,
    test::{self, build::Built, outcome::Outcome},
};

/// Options of `vm-test`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    guest: Guest,
    /// A static test binary to run in the guest; without it all tests that are meant for guests
    #[arg(long)]
    bin: Vec<PathBuf>,
    /// Options for every test binary, such as a test's name
    #[arg(last = true)]
    options: Vec<String>,
}

/// The virtual machine.
#[derive(clap::Args, Clone)]
pub struct Guest {
    /// Version of the stock kernel, such as 6.1 or 6.12, or `newest`; on 5.10, which is too old, that this is said
    #[arg(long, default_value = "6.1")]
    pub kernel: String,
    /// KVM is not tried by itself, because it opens and then hangs on some virtual machines
    #[arg(long, value_enum, default_value_t = Accelerator::Tcg)]
    pub accelerator: Accelerator,
    /// Memory in MiB
    #[arg(long = "memory", default_value_t = 1536)]
    pub memory_mib: u32,
    /// Seconds until the guest is ended
    #[arg(long, default_value = "900", value_parser = seconds)]
    pub timeout: Duration,
    /// Whether what the guest says is shown only when something is wrong: two that run at once would mix it
    #[arg(skip)]
    pub quiet: bool,
}

/// How QEMU runs the guest's code.
#[derive(clap::ValueEnum, Clone, Copy)]
pub enum Accelerator {
    /// In software
    Tcg,
    /// With the processor's help
    Kvm,
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

impl Guest {
    /// The guest that the test command uses.
    pub fn with_kernel(kernel: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            accelerator: Accelerator::Tcg,
            memory_mib: 1536,
            timeout: Duration::from_secs(1800),
            quiet: true,
        }
    }
}

/// Runs the command.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(setup::Group::Vm, true)?;
    let outcome = if args.bin.is_empty() {
        run_tests(&args.guest, &test::build::all()?, &args.options)?
    } else {
        let given: Vec<Executable> = args.bin.iter().map(|path| named(path)).collect::<Result<_>>()?;
        let kernel = Kernel::get(&args.guest.kernel)?;
        // Tests of the whole program start them.
        let programs = ["firedrill", "firedrill-stage"].map(|name| repo::binary("debug", name));
        let built: Vec<PathBuf> = programs.into_iter().filter(|path| path.is_file()).collect();
        boot_with(&args.guest, &kernel, &given.iter().collect::<Vec<_>>(), &built, &args.options)?
    };
    println!("{outcome}");
    Ok(if outcome.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn named(path: &std::path::Path) -> Result<Executable> {
    let name = path.file_name().and_then(|name| name.to_str()).context("--bin needs a file")?;
    Ok(Executable {
        name: name.to_owned(),
        kind: "test".to_owned(),
        package: repo::root(),
        test: true,
        path: path.to_path_buf(),
    })
}

/// Runs the tests that are meant for a guest with this kernel, and says how many passed.
pub fn run_tests(guest: &Guest, built: &Built, options: &[String]) -> Result<Outcome> {
    let kernel = Kernel::get(&guest.kernel)?;
    let tests = built.for_guests(kernel.is_too_old());
    run_these(guest, &kernel, built, &tests, options)
}

/// Runs some of the tests for guests, on a kernel that was fetched before.
pub fn run_these(
    guest: &Guest,
    kernel: &Kernel,
    built: &Built,
    tests: &[&Executable],
    options: &[String],
) -> Result<Outcome> {
    boot_with(guest, kernel, tests, &[built.firedrill.clone(), built.stage.clone()], options)
}

/// Packs, boots and counts. `extra` are programs that the tests start; they are put into `/usr/bin`.
fn boot_with(
    guest: &Guest,
    kernel: &Kernel,
    tests: &[&Executable],
    extra: &[PathBuf],
    options: &[String],
) -> Result<Outcome> {
    let folder = guest_folder(&kernel.version)?;
    let initrd = folder.join("initrd.cpio");
    let archive = initramfs::pack(kernel, tests, extra, options)?;
    fs::write(&initrd, &archive).with_context(|| format!("cannot write {}", initrd.display()))?;
    eprintln!("guest: {}, {} MiB of files, {} test binaries", kernel.image.display(), archive.len() >> 20, tests.len());
    let booted = boot::boot(guest, &kernel.version, &kernel.image, &initrd, &folder);
    fs::remove_file(&initrd).with_context(|| format!("cannot remove {}", initrd.display()))?;
    let done = booted?;
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    let mut outcome = Outcome::parse(&done.results);
    if !done.success && outcome.failed == 0 {
        outcome.failed = 1; // a test binary that died without a summary
    }
    if guest.quiet && outcome.failed > 0 {
        println!("--- the guest with Linux {}\n{}\n---", kernel.version, done.results);
    }
    println!("VM with Linux {}: {outcome} ({:.1} s)", kernel.version, done.took.as_secs_f64());
    Ok(outcome)
}

/// A folder of this run's own: several guests may run at the same time.
fn guest_folder(kernel: &str) -> Result<PathBuf> {
    let folder = repo::target().join("vm").join(format!("{kernel}-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}
