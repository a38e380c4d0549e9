//! `quickstart`: checks what the demo needs, builds the release binary and plays the demo.

use std::{
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{cargo, repo, run};

/// The oldest kernel that the in-kernel programs load on.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// `CAP_NET_ADMIN`, `CAP_SYS_ADMIN`, `CAP_BPF` (include/uapi/linux/capability.h).
const CAPABILITIES: [u32; 3] = [12, 21, 39];

/// Options of `quickstart`.
#[derive(clap::Args)]
pub struct Args {
    /// Only say what is missing
    #[arg(long)]
    check: bool,
    /// Options for `firedrill demo`
    #[arg(last = true)]
    options: Vec<String>,
}

/// Checks, builds, runs. The exit status is the demo's.
pub fn run(args: &Args) -> Result<ExitCode> {
    let rights = Rights::find();
    let problems = problems(&Host::read(), &rights);
    for problem in &problems {
        eprintln!("missing: {problem}");
    }
    if !problems.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    println!("quickstart: this machine has what the demo needs");
    if args.check {
        return Ok(ExitCode::SUCCESS);
    }

    println!("quickstart: building firedrill (release); the first time takes some minutes");
    run::checked(&mut cargo::cargo(["build", "--release", "--package", "firedrill"]))?;
    let binary = repo::binary("release", "firedrill");
    let mut command = match rights {
        Rights::Own => Command::new(&binary),
        Rights::Sudo | Rights::None => {
            println!("quickstart: faults need root; only the demo itself is started with sudo");
            let mut sudo = Command::new("sudo");
            sudo.arg(&binary);
            sudo
        }
    };
    command.arg("demo").args(&args.options).stdin(Stdio::inherit());
    eprintln!("$ {}", run::line(&command));
    let status = command.status().with_context(|| format!("cannot start `{}`", run::line(&command)))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// How the demo can get the rights that it needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rights {
    Own,
    Sudo,
    None,
}

impl Rights {
    fn find() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        if repo::is_root() || has_capabilities(&status) {
            Self::Own
        } else if run::find("sudo").is_some() {
            Self::Sudo
        } else {
            Self::None
        }
    }
}

fn has_capabilities(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .is_some_and(|bits| CAPABILITIES.iter().all(|bit| bits & (1 << bit) != 0))
}

/// What the checks look at.
struct Host {
    platform: String,
    release: String,
    mounts: String,
    tun: bool,
    btf: bool,
}

impl Host {
    fn read() -> Self {
        Self {
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            release: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            mounts: fs::read_to_string("/proc/mounts").unwrap_or_default(),
            tun: Path::new("/dev/net/tun").exists(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        }
    }
}

/// What is missing and how to get it, one line each.
fn problems(host: &Host, rights: &Rights) -> Vec<String> {
    let mut problems = Vec::new();
    if host.platform != "linux x86_64" {
        problems.push(format!("Linux on x86_64 (this is {})", host.platform));
    }
    if kernel(&host.release).is_none_or(|version| version < OLDEST_KERNEL) {
        let (major, minor) = OLDEST_KERNEL;
        problems.push(format!(
            "a kernel from {major}.{minor} on (this is {}); Debian 12 has 6.1: apt-get install linux-image-amd64, then reboot",
            host.release
        ));
    }
    if !host.mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        problems.push(
            "cgroup v2: mount -t cgroup2 none /sys/fs/cgroup (or boot with systemd.unified_cgroup_hierarchy=1)".into(),
        );
    }
    if !host.tun {
        problems.push("/dev/net/tun, for delays: modprobe tun".into());
    }
    if !host.btf {
        problems.push("/sys/kernel/btf/vmlinux: a kernel built with CONFIG_DEBUG_INFO_BTF, such as Debian's".into());
    }
    if *rights == Rights::None {
        problems.push("root, or CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_BPF: run as root, or install sudo".into());
    }
    problems
}

fn kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|sign: char| !sign.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Host {
        Host {
            platform: "linux x86_64".into(),
            release: "6.1.0-50-amd64".into(),
            mounts: "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0".into(),
            tun: true,
            btf: true,
        }
    }

    #[test]
    fn a_machine_with_everything_has_no_problems() {
        assert_eq!(problems(&good(), &Rights::Own), Vec::<String>::new());
        assert_eq!(problems(&good(), &Rights::Sudo), Vec::<String>::new());
    }

    #[test]
    fn each_missing_thing_is_named() {
        let host = Host {
            release: "5.10.0-9-amd64".into(),
            mounts: "tmpfs /sys/fs/cgroup tmpfs rw 0 0".into(),
            tun: false,
            btf: false,
            ..good()
        };
        let text = problems(&host, &Rights::None).join("\n");
        for word in ["5.10.0", "cgroup v2", "/dev/net/tun", "btf", "root"] {
            assert!(text.contains(word), "{word}: {text}");
        }
    }

    #[test]
    fn capabilities_are_read_from_the_effective_set() {
        assert!(has_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!has_capabilities("CapPrm:\t000001ffffffffff\nCapEff:\t0000000000001000\n"));
    }
}
