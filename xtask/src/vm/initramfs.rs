//! Packs what a guest needs: busybox, dash, ip, tc and its tables, ping, nft, the modules and the static test binaries.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::{cpio::Archive, kernel::Kernel, modules::Modules};
use crate::{cargo::Executable, repo, run};

/// What the tests use; loaded at boot, so that nothing depends on the kernel asking for modules.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "veth",
    "tun",
    "8021q",
    "dummy",
    "ifb",
    "bridge",
    "sch_ingress",
    "sch_netem",
    "sch_fq",
    "sch_htb",
    "sch_tbf",
    "sch_prio",
    "cls_bpf",
    "cls_u32",
    "cls_matchall",
    "act_mirred",
    "act_gact",
    "act_bpf",
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_masq",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "unix_diag",
    "netlink_diag",
];
/// Programs of this machine that go into the guest, with their libraries.
const PROGRAMS: &[&str] = &["ip", "tc", "ss", "ping", "nft", "nsenter", "unshare"];
/// Where distributions keep the tables by which `tc` has netem draw its delays.
const TABLES: &[&str] = &["/usr/lib/x86_64-linux-gnu/tc", "/usr/lib/tc", "/usr/lib64/tc", "/usr/share/tc"];
/// Variables that mean the same in a guest, and their values when they are not set here. The budget is in seconds.
const PASSED_ON: &[(&str, Option<&str>)] = &[
    ("FIREDRILL_CRASH_BUDGET", Some("120")),
    ("FIREDRILL_CRASH_SEED", None),
    ("FIREDRILL_CRASH_ONLY", None),
    ("FIREDRILL_CRASH_ALL", None),
    ("FIREDRILL_RANDOM_SECONDS", None),
    ("FIREDRILL_RANDOM_SEED", None),
];
/// Where the guest finds the tests.
const TESTS: &str = "tests";
/// One example for each fault, in the guest at the same place as in the repository.
const EXAMPLES: &str = "experiments/faults";

/// Returns the archive's bytes. `options` go to every test binary.
pub fn pack(kernel: &Kernel, tests: &[&Executable], extra: &[PathBuf], options: &[String]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["proc", "sys", "dev", "tmp", "run", "root", "var/run", "etc", "mnt", "disk"] {
        archive.folder(folder);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
    archive.file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n");
    archive.file("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n");
    archive.file("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files dns\n");

    programs(&mut archive)?;
    modules(&mut archive, kernel)?;

    let init = repo::root().join("tests/vm/init.sh");
    archive.file("init", 0o755, read(&init)?);
    archive.file("run.sh", 0o755, script(tests, options));
    for test in tests {
        archive.file(&format!("{TESTS}/{}", test.label()), 0o755, static_binary(&test.path)?);
    }
    // The crash points are those of every fault in them.
    let examples = repo::root().join(EXAMPLES);
    for entry in fs::read_dir(&examples).with_context(|| format!("cannot list {}", examples.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", examples.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("an example without a name")?;
        archive.file(&format!("{EXAMPLES}/{name}"), 0o644, read(&path)?);
    }
    for file in extra {
        let name = file.file_name().and_then(|name| name.to_str()).context("a binary without a name")?;
        archive.file(&format!("usr/bin/{name}"), 0o755, static_binary(file)?);
    }
    archive.finish()
}

/// What `tests/vm/init.sh` does: every test binary, one test at a time.
fn script(tests: &[&Executable], options: &[String]) -> String {
    let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
    let mut text = String::new();
    for (name, default) in PASSED_ON {
        if let Some(value) = std::env::var(name).ok().or(default.map(str::to_owned)) {
            text.push_str(&format!("export {name}={}\n", quoted(&value)));
        }
    }
    let options: Vec<String> = options.iter().map(|option| quoted(option)).collect();
    for test in tests {
        text.push_str(&format!("run_test {} {}\n", test.label(), options.join(" ")));
    }
    text
}

/// busybox for everything small; dash as the shell, because busybox's would run its own `ip`, `tc` and `ping`.
fn programs(archive: &mut Archive) -> Result<()> {
    let busybox = find("busybox")?;
    binary(archive, &busybox, "bin/busybox")?;
    binary(archive, &find("dash")?, "bin/sh")?;
    // Tests give it other names, by which busybox would take it for another program.
    binary(archive, &find("sleep")?, "bin/sleep")?;
    for program in PROGRAMS {
        binary(archive, &find(program)?, &format!("usr/sbin/{program}"))?;
    }
    for folder in TABLES {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|extension| extension == "dist") {
                archive.file(&path.display().to_string(), 0o644, read(&path)?);
            }
        }
    }
    for applet in run::output(&mut run::command(&busybox, ["--list"]))?.lines() {
        let path = format!("bin/{applet}");
        if !archive.contains(&path) && !PROGRAMS.contains(&applet) {
            archive.link(&path, "/bin/busybox");
        }
    }
    Ok(())
}

fn find(program: &str) -> Result<PathBuf> {
    run::find(program).with_context(|| format!("{program} is not installed: `cargo xtask setup --vm`"))
}

/// Adds a program, and its libraries at the paths where its loader looks for them.
fn binary(archive: &mut Archive, file: &Path, path: &str) -> Result<()> {
    archive.file(path, 0o755, read(file)?);
    if !is_static(&read(file)?)? {
        for library in run::output(&mut run::command("ldd", [file]))?.split_whitespace() {
            if library.starts_with('/') && !archive.contains(library) {
                archive.file(library, 0o755, read(Path::new(library))?);
            }
        }
    }
    Ok(())
}

fn modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let modules = Modules::open(&kernel.root)?;
    let mut order = String::new();
    for file in modules.closure(MODULES)? {
        let name = file.rsplit('/').next().unwrap_or(&file).split(".ko").next().unwrap_or(&file).to_owned();
        archive.file(&format!("modules/{name}.ko"), 0o644, modules.read(&file)?);
        order.push_str(&format!("/modules/{name}.ko\n"));
    }
    archive.file("modules/order", 0o644, order);
    Ok(())
}

/// The program without what only a debugger needs, which would be most of the guest's files, and of its time to boot.
fn static_binary(file: &Path) -> Result<Vec<u8>> {
    // Several guests are packed at once.
    let thread = std::thread::current().id();
    let smaller = std::env::temp_dir().join(format!("firedrill-strip-{}-{thread:?}", std::process::id()));
    let strip = find("strip")?;
    run::output(run::command(strip, ["--strip-debug", "-o"]).arg(&smaller).arg(file))?;
    let data = read(&smaller);
    fs::remove_file(&smaller).with_context(|| format!("cannot remove {}", smaller.display()))?;
    let data = data?;
    ensure!(
        is_static(&data)?,
        "{} is not static, so it cannot run in the guest: was RUSTFLAGS set? (`+crt-static` is set in .cargo/config.toml)",
        file.display()
    );
    Ok(data)
}

/// True for a program that names no interpreter (dynamic loader).
pub fn is_static(data: &[u8]) -> Result<bool> {
    use object::{
        elf::PT_INTERP,
        read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _},
    };
    let file: ElfFile64 = ElfFile64::parse(data).context("not a 64-bit ELF file")?;
    let endian = file.endian();
    let headers = file.elf_header().program_headers(endian, data).context("no program headers")?;
    Ok(headers.iter().all(|header| header.p_type(endian) != PT_INTERP))
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
