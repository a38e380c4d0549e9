//! `firedrill doctor`: what this host can do, what is missing, and how to get it. And what it looks like, to compare
//! before and after.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use firedrill_agent::dataplane::{Support, kernel_support};
use firedrill_agent::journal::Directories;
use firedrill_agent::snapshot::{Line, Snapshot};
use firedrill_agent::target::Protected;
use firedrill_agent::{halt, host, owner, recover};
use firedrill_model::verdict::ExitCode;
use nix::unistd::AccessFlags;
use serde::{Deserialize, Serialize};

use super::UsageError;
use crate::cli::DoctorArgs;
use crate::render::paint::Screen;
use crate::render::say::say;
use crate::render::words::{self, Tone, count};

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    fix: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Good,
    /// Some targets or faults are not to be had.
    Limited,
    /// Nothing works without it.
    Missing,
}

/// A snapshot as it is kept in a file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Version of this format.
    snapshot: u32,
    /// Namespaces that were looked into, and are looked into again.
    namespaces: Vec<String>,
    lines: Vec<Line>,
}

const FORMAT: u32 = 2;
/// What is different must stay so for this long: other programs' short-lived processes and groups are not meant.
const LASTING: Duration = Duration::from_secs(1);

pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    match (&args.snapshot, &args.diff) {
        (Some(file), _) => write_snapshot(file, &args.netns, args.json),
        (None, Some(file)) => compare(file, args.json),
        (None, None) => examine(&args.places.directories(), args.json),
    }
}

fn write_snapshot(file: &Path, netns: &[String], json: bool) -> Result<ExitCode> {
    let known = host::netns::names();
    if let Some(name) = netns.iter().find(|name| !known.contains(name)) {
        return Err(UsageError(format!("there is no network namespace {name} in {}", host::netns::NAMED)).into());
    }
    let namespaces = if netns.is_empty() { known } else { netns.to_vec() };
    let taken = Snapshot::take(&namespaces).context("cannot look at this host; are you root?")?;
    let kept = Kept { snapshot: FORMAT, namespaces, lines: taken.lines().cloned().collect() };
    fs::write(file, serde_json::to_string_pretty(&kept)?)
        .map_err(|e| UsageError(format!("cannot write {}: {e}", file.display())))?;
    let (lines, places) = (kept.lines.len(), kept.namespaces.len());
    if json {
        let file = file.display().to_string();
        say(format_args!("{}", serde_json::json!({ "snapshot": file, "lines": lines, "namespaces": places })))?;
    } else {
        let shown = file.display();
        say(format_args!("{shown}: {lines} lines, of the host and {places} named network namespaces"))?;
    }
    Ok(ExitCode::Held)
}

fn compare(file: &Path, json: bool) -> Result<ExitCode> {
    let unusable = |why: String| UsageError(format!("{} cannot be compared with: {why}", file.display()));
    let text = fs::read_to_string(file).map_err(|e| unusable(e.to_string()))?;
    let kept: Kept = serde_json::from_str(&text).map_err(|e| unusable(format!("it is no snapshot: {e}")))?;
    if kept.snapshot != FORMAT {
        return Err(unusable(format!("its format is {}, and this version writes {FORMAT}", kept.snapshot)).into());
    }
    let before: Snapshot = kept.lines.into_iter().collect();
    let differences = before.lasting_diff(&kept.namespaces, LASTING).context("cannot look at this host")?;
    if json {
        say(format_args!("{}", serde_json::json!({ "differences": differences })))?;
    } else if differences.is_empty() {
        say(format_args!("this host is as it was"))?;
    } else {
        for difference in &differences {
            say(format_args!("{difference}"))?;
        }
    }
    Ok(if differences.is_empty() { ExitCode::Held } else { ExitCode::NotRestored })
}

fn examine(directories: &Directories, json: bool) -> Result<ExitCode> {
    let config = super::config()?;
    let ports: Vec<String> = Protected::new(None, &config.protect).ports().iter().map(u16::to_string).collect();
    let mut findings = look(directories);
    findings.push(Finding {
        what: "caps",
        state: State::Good,
        found: format!("{} ({})", config.caps, config.origin()),
        fix: None,
    });
    findings.push(Finding {
        what: "protected ports",
        state: State::Good,
        found: words::list(&ports, "none"),
        fix: None,
    });
    let worst = findings.iter().any(|f| f.state == State::Missing);
    if json {
        say(format_args!("{}", serde_json::to_string_pretty(&findings)?))?;
    } else {
        let paint = Screen::stdout().paint();
        for f in &findings {
            let (sign, tone) = match f.state {
                State::Good => ("ok     ", Tone::Good),
                State::Limited => ("limited", Tone::Warn),
                State::Missing => ("MISSING", Tone::Bad),
            };
            say(format_args!("{} {:24} {}", paint.tone(tone, sign), f.what, f.found))?;
            if let (Some(fix), true) = (&f.fix, f.state != State::Good) {
                say(format_args!("        {:24} {}", "", fix))?;
            }
        }
    }
    Ok(if worst { ExitCode::Usage } else { ExitCode::Held })
}

fn look(directories: &Directories) -> Vec<Finding> {
    let facts = host::facts();
    let support = kernel_support();
    let root = nix::unistd::Uid::effective().is_root();
    let lacking: Vec<&str> = host::rights::missing_capabilities().iter().map(|(name, _)| *name).collect();
    let btf = Path::new("/sys/kernel/btf/vmlinux").exists();
    let unwritable: Vec<String> =
        [&directories.run, &directories.state].into_iter().filter_map(|d| unwritable(d)).collect();
    let check = |what, good: bool, bad: State, found: &str, fix: &str| Finding {
        what,
        state: if good { State::Good } else { bad },
        found: found.to_owned(),
        fix: Some(fix.to_owned()),
    };
    let (free, found, fix) = in_the_way(directories);
    let packets = match support {
        Support { real_time: true, .. } => "not on a kernel for real time (PREEMPT_RT)",
        _ if !root => AS_ROOT,
        Support { tcx: true, .. } => "tcx links, which end with their owner",
        Support { .. } => "clsact filters, journalled and removed by the guardian (tcx needs Linux 6.6)",
    };
    vec![
        kernel(facts.kernel.clone(), root),
        check("root", root, State::Missing, if root { "yes" } else { "no" }, "run as root: sudo firedrill ..."),
        check(
            "capabilities",
            lacking.is_empty() || !root,
            State::Missing,
            &match (root, lacking.is_empty()) {
                (false, _) => AS_ROOT.to_owned(),
                (true, true) => "all that faults need".to_owned(),
                (true, false) => format!("lacks {}", lacking.join(", ")),
            },
            "root in a container is not enough: run on the host itself, or in a container with `--privileged --pid=host \
             --network=host`",
        ),
        check(
            "own folders",
            unwritable.is_empty() || !root,
            State::Missing,
            &match (root, unwritable.is_empty()) {
                (false, _) => AS_ROOT.to_owned(),
                (true, true) => "can be written".to_owned(),
                (true, false) => unwritable.join("; "),
            },
            "faults are recorded there before they begin; mount it writable",
        ),
        check("this host", free, State::Limited, &found, fix),
        check(
            "kernel types (BTF)",
            btf,
            State::Missing,
            if btf { "/sys/kernel/btf/vmlinux" } else { "no /sys/kernel/btf/vmlinux" },
            "the kernel must be built with CONFIG_DEBUG_INFO_BTF, as all large distributions do",
        ),
        check(
            "packet programs",
            !support.real_time,
            State::Limited,
            packets,
            "without them there are no faults on packets; boot a distribution's usual kernel",
        ),
        check(
            "latency (TAP)",
            support.tap,
            State::Limited,
            if support.tap { "/dev/net/tun" } else { "no /dev/net/tun" },
            "`modprobe tun`; without it there is no latency fault",
        ),
        check(
            "cgroup v2",
            facts.cgroup_root.is_some(),
            State::Limited,
            facts.cgroup_root.as_deref().unwrap_or("not mounted"),
            "mount -t cgroup2 none /sys/fs/cgroup; without it there are no cgroup, unit and process targets",
        ),
        check(
            "systemd",
            facts.systemd,
            State::Limited,
            if facts.systemd { "runs this host" } else { "does not run this host" },
            "without it there are no unit targets; cgroups and processes work",
        ),
        Finding {
            what: "named namespaces",
            state: State::Good,
            found: format!("{} in {}", host::netns::names().len(), host::netns::NAMED),
            fix: None,
        },
    ]
}

fn kernel(release: String, root: bool) -> Finding {
    let (state, fix) = match host::kernel::check(&release) {
        Err(error) if root => (State::Missing, Some(error.to_string())),
        Err(_) => (State::Limited, Some("whether this kernel has bpf_loop can only be asked as root".to_owned())),
        Ok(()) if host::kernel::is_tested(&release) => (State::Good, None),
        Ok(()) => {
            let (major, minor) = host::kernel::OLDEST_TESTED;
            (State::Limited, Some(format!("it may work, but {major}.{minor} is the oldest Linux that is tested")))
        }
    };
    Finding { what: "kernel", state, found: release, fix }
}

/// What only root can find out.
const AS_ROOT: &str = "to be seen as root only";

/// Whether a fault could begin now; if not, what is in its way, and what to do.
fn in_the_way(directories: &Directories) -> (bool, String, &'static str) {
    if let Some(holder) = owner::current(&directories.run) {
        let found = format!("busy: process {} ({})", holder.pid, holder.what);
        return (false, found, "wait for it, or end it: sudo firedrill halt; `firedrill status` shows what it does");
    }
    if let Err(halted) = halt::check(&directories.run) {
        return (false, format!("halted: {}", halted.0), "when it is all right to go on: sudo firedrill halt --clear");
    }
    match recover::outstanding(directories).len() {
        0 => (true, "free".to_owned(), ""),
        n => (
            false,
            format!("{} left by a run that was killed", count(n, "change", "changes")),
            "sudo firedrill recover undoes them; `firedrill status` shows them",
        ),
    }
}

/// Why nothing could be written in a folder, or in the nearest one above it that is there.
fn unwritable(folder: &Path) -> Option<String> {
    let there = folder.ancestors().find(|path| path.exists())?;
    let refused = nix::unistd::access(there, AccessFlags::W_OK | AccessFlags::X_OK).err()?;
    Some(format!("{}: {}", there.display(), refused.desc()))
}
