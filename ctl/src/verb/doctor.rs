//! `firedrill doctor`: what this host can do, what is missing, and how to get it.

use std::path::Path;

use anyhow::Result;
use firedrill_agent::dataplane::kernel_support;
use firedrill_agent::host;
use firedrill_model::verdict::ExitCode;
use serde::Serialize;

use crate::cli::JsonArg;
use crate::render::paint::Screen;
use crate::render::words::Tone;

/// The oldest kernel that is tested.
const OLDEST: (u32, u32) = (6, 1);

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    fix: Option<&'static str>,
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

pub fn run(args: &JsonArg) -> Result<ExitCode> {
    let findings = look();
    let worst = findings.iter().any(|f| f.state == State::Missing);
    if args.json {
        anstream::println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        let paint = Screen::stdout().paint();
        for f in &findings {
            let (sign, tone) = match f.state {
                State::Good => ("ok     ", Tone::Good),
                State::Limited => ("limited", Tone::Warn),
                State::Missing => ("MISSING", Tone::Bad),
            };
            anstream::println!("{} {:24} {}", paint.tone(tone, sign), f.what, f.found);
            if let (Some(fix), true) = (f.fix, f.state != State::Good) {
                anstream::println!("        {:24} {}", "", fix);
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
    let check = |what, good: bool, bad: State, found: String, fix| Finding {
        what,
        state: if good { State::Good } else { bad },
        found,
        fix: Some(fix),
    };
    let yes = |there: bool, name: &str| if there { name.to_owned() } else { format!("no {name}") };
    let new_enough = host::release_at_least(&facts.kernel, OLDEST.0, OLDEST.1);
    vec![
        check("kernel", new_enough, State::Missing, facts.kernel.clone(), "Linux 6.1 is the oldest that is supported"),
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
