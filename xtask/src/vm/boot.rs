//! Starts QEMU and waits for the guest's results.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
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

/// What a guest wrote.
pub struct Finished {
    /// All that the tests printed.
    pub results: String,
    /// True when every test binary ended well.
    pub success: bool,
    /// From QEMU's start to its end.
    pub took: Duration,
}

/// Boots, shows the results as they come, and returns them. A panic of the guest, a guest that says no status and
/// a guest that takes too long are errors.
pub fn boot(guest: &Guest, image: &Path, initrd: &Path, folder: &Path) -> Result<Finished> {
    let [console, results, status] = ["console.log", "results.log", "status.log"].map(|name| folder.join(name));
    fs::write(&results, "").with_context(|| format!("cannot write {}", results.display()))?;
    let mut command = qemu(guest, image, initrd)?;
    for log in [&console, &results, &status] {
        command.arg("-serial").arg(format!("file:{}", log.display()));
    }
    let begun = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", run::line(&command)))?;
    let mut shown = 0;
    let ended = loop {
        let ended = child.try_wait().context("cannot wait for QEMU")?;
        shown += show(&results, shown)?;
        match ended {
            Some(ended) => break ended,
            None => thread::sleep(POLL),
        }
    };
    show(&results, shown)?;

    let text = |file: &Path| fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let results = text(&results).context("cannot read the guest's results")?;
    let said = text(&status).unwrap_or_default();
    let took = begun.elapsed();
    let success = match said.trim().strip_prefix("status ") {
        Some("0") => true,
        Some(_) => false,
        None => {
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
    };
    ensure!(ended.success(), "QEMU ended with {ended} although the guest gave a status");
    Ok(Finished { results, success, took })
}

/// `timeout` ends QEMU even when we are killed first.
fn qemu(guest: &Guest, image: &Path, initrd: &Path) -> Result<Command> {
    let program = run::find("qemu-system-x86_64").context("QEMU is not installed: `cargo xtask setup --vm`")?;
    let limit = format!("{}", guest.timeout.as_secs());
    let mut command = run::command("timeout", ["--kill-after=5", &limit]);
    command.arg(program).args(["-nodefaults", "-no-user-config", "-display", "none", "-M", "q35", "-no-reboot"]);
    match guest.accelerator {
        // Threads crashed guests, and so did cmpxchg16b: this is the slow and sure way.
        super::Accelerator::Tcg => command.args(["-accel", "tcg,thread=single", "-cpu", "max,-cx16"]),
        super::Accelerator::Kvm => command.args(["-accel", "kvm", "-cpu", "host"]),
    };
    command.args(["-smp", "2", "-m", &guest.memory_mib.to_string()]);
    command.arg("-kernel").arg(image).arg("-initrd").arg(initrd);
    command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
    Ok(command)
}

/// Copies what came since `from` (bytes) to standard output.
fn show(file: &Path, from: u64) -> Result<u64> {
    let mut new = Vec::new();
    let mut file = fs::File::open(file).context("cannot open the guest's results")?;
    file.seek(SeekFrom::Start(from))
        .and_then(|_| file.read_to_end(&mut new))
        .context("cannot read the guest's results")?;
    std::io::stdout().write_all(&new).context("cannot write to standard output")?;
    Ok(new.len() as u64)
}
