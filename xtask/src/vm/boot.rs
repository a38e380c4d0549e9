//! Starts QEMU and waits for the guest's results.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::Guest;
use crate::run;

/// How often new results are shown.
const POLL: Duration = Duration::from_millis(100);
/// Lines of the console that are shown when a guest fails.
const CONSOLE_TAIL: usize = 60;

/// How often a guest may be started because it reset itself.
const LIVES: u32 = 4;

/// What a guest wrote.
pub struct Finished {
    /// All that the tests printed.
    pub results: String,
    /// True when every test binary ended well.
    pub success: bool,
    /// From QEMU's start to its end, all lives together.
    pub took: Duration,
}

/// Boots, shows the results as they come, and returns them. A guest that says that it resets itself is booted again
/// with the same disk. A panic of the guest, a guest that says no status and one that takes too long are errors.
pub fn boot(guest: &Guest, version: &str, image: &Path, initrd: &Path, folder: &Path) -> Result<Finished> {
    let disk = disk(folder)?;
    let mut done = Finished { results: String::new(), success: false, took: Duration::ZERO };
    for life in 1..=LIVES {
        let mut command = qemu(guest, version, image, initrd)?;
        command.arg("-drive").arg(format!("file={},format=raw,if=virtio", disk.display()));
        let lived = live(guest, command, &folder.join(life.to_string()))?;
        done.results.push_str(&lived.results);
        done.results.push('\n');
        done.took += lived.took;
        match lived.said.as_str() {
            "reset" => {}
            status => {
                done.success = status == "status 0";
                return Ok(done);
            }
        }
    }
    bail!("the guest with kernel {} reset itself {LIVES} times: {}", guest.kernel, folder.display());
}

/// An empty file system for what must outlive a reset of the guest. The kernels have ext3 built in.
fn disk(folder: &Path) -> Result<PathBuf> {
    const BYTES: u64 = 64 << 20;
    let disk = folder.join("disk.ext3");
    let file = fs::File::create(&disk).with_context(|| format!("cannot create {}", disk.display()))?;
    file.set_len(BYTES).with_context(|| format!("cannot enlarge {}", disk.display()))?;
    let program = run::find("mke2fs").context("mke2fs is not installed: `cargo xtask setup --vm`")?;
    run::output(run::command(program, ["-q", "-F", "-t", "ext3"]).arg(&disk))?;
    Ok(disk)
}

/// What a guest did from power on to its end.
struct Lived {
    results: String,
    /// Its last words: `status N`, or `reset`.
    said: String,
    took: Duration,
}

fn live(guest: &Guest, mut command: Command, folder: &Path) -> Result<Lived> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let [console, results, status] = ["console.log", "results.log", "status.log"].map(|name| folder.join(name));
    fs::write(&results, "").with_context(|| format!("cannot write {}", results.display()))?;
    for log in [&console, &results, &status] {
        command.arg("-serial").arg(format!("file:{}", log.display()));
    }
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", run::line(&command)))?;
    let mut shown = 0;
    let ended = loop {
        let ended = child.try_wait().context("cannot wait for QEMU")?;
        shown += show(&results, shown, guest.quiet)?;
        match ended {
            Some(ended) => break ended,
            None => thread::sleep(POLL),
        }
    };
    show(&results, shown, guest.quiet)?;

    let text = |file: &Path| fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let results = text(&results).context("cannot read the guest's results")?;
    let said = text(&status).unwrap_or_default().trim().to_owned();
    if said != "reset" && !said.starts_with("status ") {
        let log = text(&console).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!(
            "--- the end of the guest's console\n{}",
            lines[lines.len().saturating_sub(CONSOLE_TAIL)..].join("\n")
        );
        let why = match ended.code() {
            Some(124 | 137) => format!("took longer than {} s", guest.timeout.as_secs()),
            _ if log.contains("Kernel panic") => "panicked".to_owned(),
            _ => format!("ended without a status (QEMU: {ended})"),
        };
        bail!("the guest with kernel {} {why}; its console is {}", guest.kernel, console.display());
    }
    ensure!(ended.success(), "QEMU ended with {ended} although the guest said `{said}`");
    Ok(Lived { results, said, took: begun.elapsed() })
}

/// `timeout` ends QEMU even when we are killed first.
/// The processor that a kernel gets. Without cmpxchg16b (`-cx16`) Linux 7.3 has no memory for the storage of sockets, and
/// with it 6.12 was seen to crash as it booted.
fn processor(version: &str) -> &'static str {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    if major.is_some_and(|major| major >= 7) { "max" } else { "max,-cx16" }
}

fn qemu(guest: &Guest, version: &str, image: &Path, initrd: &Path) -> Result<Command> {
    let program = run::find("qemu-system-x86_64").context("QEMU is not installed: `cargo xtask setup --vm`")?;
    let limit = format!("{}", guest.timeout.as_secs());
    let mut command = run::command("timeout", ["--kill-after=5", &limit]);
    command.arg(program).args(["-nodefaults", "-no-user-config", "-display", "none", "-M", "q35", "-no-reboot"]);
    match guest.accelerator {
        // Threads crashed guests: this is the slow and sure way.
        super::Accelerator::Tcg => command.args(["-accel", "tcg,thread=single", "-cpu", processor(version)]),
        super::Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
    };
    command.args(["-smp", "2", "-m", &guest.memory_mib.to_string()]);
    command.arg("-kernel").arg(image).arg("-initrd").arg(initrd);
    // Tests that would harm a host look for the last word.
    command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off firedrill.guest=1"]);
    Ok(command)
}

/// Copies what came since `from` (bytes) to standard output.
fn show(file: &Path, from: u64, quiet: bool) -> Result<u64> {
    let mut new = Vec::new();
    let mut file = fs::File::open(file).context("cannot open the guest's results")?;
    file.seek(SeekFrom::Start(from))
        .and_then(|_| file.read_to_end(&mut new))
        .context("cannot read the guest's results")?;
    if !quiet {
        std::io::stdout().write_all(&new).context("cannot write to standard output")?;
    }
    Ok(new.len() as u64)
}
