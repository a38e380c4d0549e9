//! `firedrill doctor`: what this host can do, what is missing, and how to get it. And what it looks like, to compare
//! before and after.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use firedrill_agent::dataplane::kernel_support;
use firedrill_agent::host;
use firedrill_agent::snapshot::{Line, Snapshot};
use firedrill_agent::target::Protected;
use firedrill_model::verdict::ExitCode;
use serde::{Deserialize, Serialize};

use super::UsageError;
use crate::cli::DoctorArgs;
use crate::render::paint::Screen;
use crate::render::say::say;
use crate::render::words::{self, Tone};

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
        (None, None) => examine(args.json),
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

fn examine(json: bool) -> Result<ExitCode> {
    let config = super::config()?;
    let ports: Vec<String> = Protected::new(None, &config.protect).ports().iter().map(u16::to_string).collect();
    let mut findings = look();
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

fn look() -> Vec<Finding> {
    let facts = host::facts();
    let support = kernel_support();
    let root = nix::unistd::Uid::effective().is_root();
    let there = |path: &str| Path::new(path).exists();
    let check = |what, good: bool, bad: State, found: String, fix: &str| Finding {
        what,
        state: if good { State::Good } else { bad },
        found,
        fix: Some(fix.to_owned()),
    };
    let yes = |there: bool, name: &str| if there { name.to_owned() } else { format!("no {name}") };
    vec![
        kernel(facts.kernel.clone(), root),
        check(
            "root",
            root,
            State::Missing,
            if root { "yes".into() } else { "no".into() },
            "run as root: sudo firedrill ...",
        ),
        check(
            "kernel types (BTF)",
            there("/sys/kernel/btf/vmlinux"),
            State::Missing,
            yes(there("/sys/kernel/btf/vmlinux"), "/sys/kernel/btf/vmlinux"),
            "the kernel must be built with CONFIG_DEBUG_INFO_BTF, as all large distributions do",
        ),
        Finding {
            what: "packet programs",
            state: State::Good,
            found: if support.tcx {
                "tcx links, which end with their owner".into()
            } else {
                "clsact filters, journalled and removed by the guardian (tcx needs Linux 6.6)".into()
            },
            fix: None,
        },
        check(
            "latency (TAP)",
            support.tap,
            State::Limited,
            yes(support.tap, "/dev/net/tun"),
            "`modprobe tun`; without it there is no latency fault",
        ),
        check(
            "cgroup v2",
            facts.cgroup_root.is_some(),
            State::Limited,
            facts.cgroup_root.clone().unwrap_or_else(|| "not mounted".into()),
            "mount -t cgroup2 none /sys/fs/cgroup; without it there are no cgroup, unit and process targets",
        ),
        check(
            "systemd",
            facts.systemd,
            State::Limited,
            if facts.systemd { "runs this host".into() } else { "does not run this host".into() },
            "without it there are no unit targets; cgroups and processes work",
        ),
        check(
            "named namespaces",
            there(host::netns::NAMED),
            State::Good,
            format!("{} in {}", host::netns::names().len(), host::netns::NAMED),
            "",
        ),
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
