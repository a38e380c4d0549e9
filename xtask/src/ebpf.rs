//! `build-ebpf`: compiles `ebpf/` and writes the object that the agent embeds.
//!
//! The object is committed, so that building Firedrill needs no eBPF toolchain. It is the same byte for
//! byte on every machine that has the recorded compilers; `--check` proves it.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    build::elf::{Builder, SectionData},
    elf::SHT_STRTAB,
};

use crate::{cargo, repo, run};

/// The target of the in-kernel programs (little-endian BPF).
const BPF: &str = "bpfel-unknown-none";
/// The embedded object, relative to the repository.
const OBJECT: &str = "agent/src/dataplane/firedrill.bpf.o";
/// The compilers that it was built with.
const TOOLCHAIN: &str = "agent/src/dataplane/firedrill.bpf.toolchain";
/// Exit status when the object cannot be compared, because other compilers are installed.
const OTHER_TOOLCHAIN: u8 = 3;

/// Options of `build-ebpf`.
#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; fail when the committed object is not what the source gives
    #[arg(long)]
    pub check: bool,
}

/// Builds, then writes or compares. Exit status 1: stale; 3: other compilers are installed.
pub fn run(args: &Args) -> Result<ExitCode> {
    let toolchain = Toolchain::find()?;
    let now = toolchain.to_string();
    let recorded = fs::read_to_string(repo::root().join(TOOLCHAIN)).ok();
    let same = recorded.as_deref() == Some(now.as_str());

    let built = fs::read(build(&toolchain)?).context("cannot read the object that cargo built")?;
    let stripped = strip(&built).context("cannot strip the object's debug sections")?;
    let path = repo::root().join(OBJECT);

    if !args.check {
        fs::write(&path, &stripped).with_context(|| format!("cannot write {OBJECT}"))?;
        fs::write(repo::root().join(TOOLCHAIN), &now).with_context(|| format!("cannot write {TOOLCHAIN}"))?;
        println!("{OBJECT}: {} bytes ({} before stripping)", stripped.len(), built.len());
        if !same && recorded.is_some() {
            println!("{TOOLCHAIN}: the compilers changed; commit both files");
        }
        return Ok(ExitCode::SUCCESS);
    }

    let committed = fs::read(&path).with_context(|| format!("cannot read {OBJECT}"))?;
    if committed == stripped {
        println!("{OBJECT}: up to date ({} bytes)", stripped.len());
        if !same {
            println!("note: other compilers than {TOOLCHAIN} records gave the same bytes:\n{now}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if same {
        eprintln!(
            "error: {OBJECT} is STALE: the source in ebpf/ gives other bytes ({} committed, {} built).\n\
             Run `cargo xtask build-ebpf` and commit the result.",
            committed.len(),
            stripped.len()
        );
        return Ok(ExitCode::FAILURE);
    }
    eprintln!(
        "error: {OBJECT} CANNOT BE COMPARED: it was built by other compilers, and the bytes differ.\n\
         --- recorded in {TOOLCHAIN}\n{}--- installed here\n{now}\
         This does not say that the object is stale. Either install the recorded versions, or, when they are \
         gone from the mirror, run `cargo xtask build-ebpf`, review the change, and commit both files.",
        recorded.as_deref().unwrap_or("nothing\n")
    );
    Ok(ExitCode::from(OTHER_TOOLCHAIN))
}

/// The compilers that decide the object's bytes.
struct Toolchain {
    /// A rustc with a prebuilt `core` for BPF.
    rustc: PathBuf,
    /// `rustc --version`.
    rustc_version: String,
    /// `bpf-linker --version`.
    linker_version: String,
    /// The LLVM that bpf-linker is linked with: it generates the code.
    llvm: String,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}\n{}\n{}", self.rustc_version, self.linker_version, self.llvm)
    }
}

impl Toolchain {
    fn find() -> Result<Self> {
        let rustc = env::var_os("EBPF_RUSTC").map_or_else(|| PathBuf::from("/usr/bin/rustc"), PathBuf::from);
        let setup = "run `cargo xtask setup --ebpf`";
        ensure!(
            rustc.exists(),
            "no compiler for BPF: {} does not exist; {setup} (Debian: apt-get install --no-install-recommends \
             rustc-web libstd-rust-web-dev-bpf), or set EBPF_RUSTC",
            rustc.display()
        );
        let core = run::output(&mut run::command(&rustc, ["--print", "target-libdir", "--target", BPF]))?;
        ensure!(
            Path::new(core.trim()).is_dir(),
            "{} has no prebuilt `core` for {BPF} ({} does not exist); {setup} (Debian: apt-get install \
             --no-install-recommends libstd-rust-web-dev-bpf)",
            rustc.display(),
            core.trim()
        );
        let rustc_version = run::output(&mut run::command(&rustc, ["--version"]))?.trim().to_owned();
        let linker = run::find("bpf-linker").with_context(|| format!("bpf-linker is not installed; {setup}"))?;
        let linker_version = run::output(&mut run::command(&linker, ["--version"]))
            .with_context(|| format!("bpf-linker does not start (was its libLLVM removed?); {setup}"))?
            .trim()
            .to_owned();
        let llvm = linked_llvm(&linker)?;
        // LLVM copies source lines into .BTF.ext where it can open the file: core's readable sources change the object.
        let release = rustc_version.split_whitespace().nth(1).unwrap_or_default();
        let sources = format!("/usr/src/rustc-{release}/library");
        if Path::new(&sources).exists() {
            bail!("{sources} exists, which changes the object: `apt-get remove rust-web-src`");
        }
        Ok(Self { rustc, rustc_version, linker_version, llvm })
    }
}

/// The file name of the libLLVM that the linker loads, without rustup's suffix: `libLLVM.so.22.1`.
fn linked_llvm(linker: &Path) -> Result<String> {
    let libraries = run::output(&mut run::command("ldd", [linker]))?;
    Ok(libraries
        .split_whitespace()
        .find(|word| word.starts_with("libLLVM"))
        .map_or("LLVM linked statically", |name| name.split('-').next().unwrap_or(name))
        .to_owned())
}

/// Runs cargo in `ebpf/` and returns the path of the object with its debug sections.
fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    let root = repo::root().canonicalize().context("cannot resolve the repository's path")?;
    let target = repo::target().join("ebpf");
    let mut command = cargo::cargo(["build", "--release", "--locked", "--message-format=json-render-diagnostics"]);
    command
        .args(["--target", BPF, "--target-dir"])
        .arg(&target)
        .current_dir(root.join("ebpf"))
        .env("RUSTC", &toolchain.rustc)
        // Only for aya-ebpf's use of `asm_experimental_arch`.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf")
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&root, &repo::cargo_home()?, &target).join("\x1f"))
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    linker_on_path(&mut command)?;
    let built = cargo::executables(&mut command)?;
    let [object] = built.as_slice() else {
        bail!("ebpf/ must have exactly one binary, cargo built {}", built.len());
    };
    Ok(object.path.clone())
}

/// Flags that make the object the same in every folder. The crate's own files stay *relative*, so that LLVM can
/// still open them at link time (it runs in `ebpf/`) and the verifier's log shows lines of Rust.
fn flags(root: &Path, cargo_home: &Path, target: &Path) -> Vec<String> {
    let remap = |from: PathBuf, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    vec![
        "--cfg=bpf_target_arch=\"x86_64\"".into(),
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        remap(root.into(), ".."),
        remap(root.join("ebpf"), "."),
        remap(cargo_home.join("registry/src"), "/crates"),
        remap(target.into(), "/target"),
    ]
}

/// rustc starts `bpf-linker` by name: make sure that the one we found is the one it finds.
fn linker_on_path(command: &mut Command) -> Result<()> {
    let linker = run::find("bpf-linker").context("bpf-linker is not installed")?;
    let folder = linker.parent().context("bpf-linker has no folder")?.to_path_buf();
    let path = env::var_os("PATH").unwrap_or_default();
    let joined =
        env::join_paths(std::iter::once(folder).chain(env::split_paths(&path))).context("PATH cannot be extended")?;
    command.env("PATH", joined);
    Ok(())
}

/// Drops DWARF and keeps `.BTF` and `.BTF.ext`, which is all that the kernel and the loader read.
fn strip(data: &[u8]) -> Result<Vec<u8>> {
    let mut elf = Builder::read(data)?;
    for section in &mut elf.sections {
        let name = section.name.to_string();
        if name.starts_with(".debug_") || name.starts_with(".rel.debug_") {
            section.delete = true;
        }
    }
    // LLVM puts section and symbol names into one .strtab; the builder wants a separate .shstrtab.
    if !elf.sections.iter().any(|section| matches!(section.data, SectionData::SectionString)) {
        let names = elf.sections.add();
        names.name = b".shstrtab"[..].into();
        names.sh_type = SHT_STRTAB;
        names.sh_addralign = 1;
        names.data = SectionData::SectionString;
    }
    let mut out = Vec::new();
    elf.write(&mut out)?;
    Ok(out)
}
