//! `setup`: installs on Debian what building the in-kernel programs and the larger tests need.
//!
//! Everything comes from the apt sources and the cargo registry that this machine is configured with. What is
//! there already is left alone, and every command is printed before it runs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{cargo, debian, repo, run};

/// What must be there, how to see that it is, and the Debian package that brings it.
struct Need {
    package: &'static str,
    present: fn() -> bool,
}

const EBPF: &[Need] = &[
    Need { package: "rustc-web", present: || Path::new("/usr/bin/rustc").exists() && llvm().is_some() },
    Need { package: "libstd-rust-web-dev-bpf", present: || Path::new(BPF_CORE).exists() },
];
const SERVICES: &[Need] = &[
    Need { package: "haproxy", present: || found("haproxy") },
    Need { package: "etcd-server", present: || found("etcd") },
    Need { package: "etcd-client", present: || found("etcdctl") },
    Need { package: "redis-server", present: || found("redis-server") },
    Need { package: "redis-sentinel", present: || found("redis-sentinel") },
    Need { package: "redis-tools", present: || found("redis-cli") },
];
const VM: &[Need] = &[
    Need { package: "qemu-system-x86", present: || found("qemu-system-x86_64") },
    Need { package: "busybox-static", present: || found("busybox") },
    Need { package: "e2fsprogs", present: || found("mke2fs") },
    Need { package: "dash", present: || found("dash") },
    Need { package: "binutils", present: || found("strip") },
    Need { package: "kmod", present: || found("depmod") },
    Need { package: "xz-utils", present: || found("xz") },
    Need { package: "zstd", present: || found("zstd") },
];
const UNITS: &[Need] = &[
    Need { package: "systemd-container", present: || found("systemd-nspawn") },
    Need { package: "debootstrap", present: || found("debootstrap") },
];
const TOOLS: &[Need] = &[
    Need { package: "iproute2", present: || found("ip") && found("tc") && found("ss") },
    Need { package: "iputils-ping", present: || found("ping") },
    Need { package: "nftables", present: || found("nft") },
    Need { package: "util-linux", present: || found("nsenter") && found("unshare") },
    Need { package: "procps", present: || found("sysctl") },
    // Victims of the proxy's tests.
    Need { package: "curl", present: || found("curl") },
    Need { package: "python3", present: || found("python3") },
    Need { package: "redis-server", present: || found("redis-server") },
    Need { package: "redis-tools", present: || found("redis-cli") },
];

/// Where Debian's `libstd-rust-web-dev-bpf` puts `core` for BPF.
const BPF_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
/// The linker's version decides the object's bytes: it is pinned, and recorded beside the object.
const BPF_LINKER: &str = "0.13.0";
/// The LLVM that rustc-web and bpf-linker must agree on.
const LLVM: &str = "22";

/// Options of `setup`; none of them means all.
#[derive(clap::Args)]
pub struct Args {
    /// What `build-ebpf` needs: a rustc with core for BPF, bpf-linker
    #[arg(long)]
    ebpf: bool,
    /// The services that the services tests start: HAProxy, etcd, Redis with Sentinel
    #[arg(long)]
    services: bool,
    /// What `vm-test` needs: QEMU, busybox, depmod
    #[arg(long)]
    vm: bool,
    /// What the units tests need: systemd-nspawn, and a small Debian for it
    #[arg(long)]
    units: bool,
}

/// What can be installed together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// For the privileged tests and the demo's.
    Tools,
    /// For `build-ebpf`.
    Ebpf,
    /// For the services tests.
    Services,
    /// For `vm-test`.
    Vm,
    /// For the units tests.
    Units,
}

impl Group {
    fn needs(self) -> [&'static [Need]; 2] {
        let own = match self {
            Self::Tools => &[],
            Self::Ebpf => EBPF,
            Self::Services => SERVICES,
            Self::Vm => VM,
            Self::Units => UNITS,
        };
        [TOOLS, own]
    }
}

/// Installs what is missing.
pub fn run(args: &Args) -> Result<ExitCode> {
    let chosen =
        [(Group::Ebpf, args.ebpf), (Group::Services, args.services), (Group::Vm, args.vm), (Group::Units, args.units)];
    let groups: Vec<Group> = chosen.into_iter().filter(|(_, wanted)| *wanted).map(|(group, _)| group).collect();
    if groups.is_empty() {
        all()?
    } else {
        groups_present(&groups)?
    }
    println!("setup: everything is there");
    Ok(ExitCode::SUCCESS)
}

/// Installs everything that is missing.
pub fn all() -> Result<()> {
    groups_present(&[Group::Ebpf, Group::Services, Group::Vm, Group::Units])
}

fn groups_present(groups: &[Group]) -> Result<()> {
    install(&missing(groups))?;
    if groups.contains(&Group::Ebpf) {
        bpf_linker()?;
    }
    if groups.contains(&Group::Units) {
        debian::root(true)?;
    }
    Ok(())
}

/// Installs a group where it is missing, or says what is.
pub fn ensure(group: Group, may_install: bool) -> Result<()> {
    let missing = missing(&[group]);
    if may_install {
        return install(&missing);
    }
    ensure!(missing.is_empty(), "not installed: {}; run `cargo xtask setup`", missing.join(", "));
    Ok(())
}

/// The packages that are missing, each once.
fn missing(groups: &[Group]) -> Vec<&'static str> {
    let mut packages = Vec::new();
    for need in groups.iter().flat_map(|group| group.needs()).flatten() {
        if !packages.contains(&need.package) && !(need.present)() {
            packages.push(need.package);
        }
    }
    packages
}

fn found(program: &str) -> bool {
    run::find(program).is_some()
}

/// Debian's libLLVM of the right version.
fn llvm() -> Option<PathBuf> {
    let wanted = format!("libLLVM.so.{LLVM}");
    fs::read_dir("/usr/lib/x86_64-linux-gnu")
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&wanted))
        .map(|entry| entry.path())
}

/// Installs packages without what they merely recommend, and without starting services.
fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    ensure!(
        found("apt-get"),
        "missing: {} (Debian's names); there is no apt-get here to install them",
        packages.join(", ")
    );
    println!(
        "missing: {}; they are installed now (`cargo xtask test --no-install` skips instead)",
        packages.join(", ")
    );
    let policy = NoServiceStarts::new(Path::new("/usr/sbin/policy-rc.d"))
        .with_context(|| format!("cannot keep apt from starting services; run yourself: {command}"))?;
    run::checked(&mut root(&["apt-get", "-q", "update"])?)?;
    let mut words = vec!["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "install"];
    words.push("--no-install-recommends");
    words.extend(packages);
    let done = run::checked(&mut root(&words)?);
    drop(policy);
    done.with_context(|| format!("cannot install {}", packages.join(", ")))
}

/// A command run as root: directly, or through sudo.
pub fn root(words: &[&str]) -> Result<Command> {
    if repo::is_root() {
        return Ok(run::command(words[0], &words[1..]));
    }
    if !found("sudo") {
        bail!("this needs root, and sudo is not installed; run as root: {}", words.join(" "));
    }
    let mut command = run::command("sudo", words);
    command.stdin(std::process::Stdio::inherit()); // sudo may ask for a password
    Ok(command)
}

/// Debian starts a daemon as soon as its package is installed, unless `policy-rc.d` forbids it. The tests start
/// their own, in their own namespaces: a second one on this host is not wanted.
struct NoServiceStarts<'a> {
    path: Option<&'a Path>,
}

impl<'a> NoServiceStarts<'a> {
    fn new(path: &'a Path) -> Result<Self> {
        if path.exists() {
            return Ok(Self { path: None }); // the machine has its own policy
        }
        let script = "printf '#!/bin/sh\\nexit 101\\n' > \"$1\" && chmod 755 \"$1\"";
        let text = path.to_string_lossy();
        run::checked(&mut root(&["sh", "-c", script, "policy", &text])?)?;
        Ok(Self { path: Some(path) })
    }
}

impl Drop for NoServiceStarts<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path {
            let removed = root(&["rm", "-f", &path.to_string_lossy()]).and_then(|mut rm| run::checked(&mut rm));
            if let Err(error) = removed {
                eprintln!(
                    "warning: {} is left, it keeps services from starting: remove it ({error:#})",
                    path.display()
                );
            }
        }
    }
}

/// Installs bpf-linker against Debian's libLLVM, so that the object does not depend on which rustup is here.
fn bpf_linker() -> Result<()> {
    if let Some(linker) = run::find("bpf-linker") {
        let version = run::output(&mut run::command(&linker, ["--version"])).unwrap_or_default();
        if version.trim().ends_with(BPF_LINKER) {
            return Ok(());
        }
        println!("{} is {:?}, wanted {BPF_LINKER}", linker.display(), version.trim());
    }
    let llvm = llvm().with_context(|| format!("libLLVM {LLVM} is missing, although rustc-web is installed"))?;
    // llvm-sys looks for PREFIX/lib/libLLVM.so, which only the large -dev package has: links do as well.
    let prefix = repo::cache()?.join("llvm");
    let folder = prefix.join("lib");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for name in ["libLLVM.so", llvm.file_name().and_then(|name| name.to_str()).unwrap_or_default()] {
        let link = folder.join(name);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
        }
        std::os::unix::fs::symlink(&llvm, &link).with_context(|| format!("cannot create {}", link.display()))?;
    }
    let mut command = cargo::cargo(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force"]);
    command.args(["--no-default-features", "--features", &format!("llvm-{LLVM}")]);
    run::checked(command.env("LLVM_PREFIX", prefix))
}
