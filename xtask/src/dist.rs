//! `dist`: a tarball with the static binary and all that belongs to it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};

use crate::{cargo, repo, run, vm::initramfs};

/// What is taken from the repository as it is.
const FILES: [&str; 6] = ["README.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "docs", "experiments"];
/// Shells with completions, and the file names that they expect.
const SHELLS: [(&str, &str); 3] = [("bash", "firedrill"), ("zsh", "_firedrill"), ("fish", "firedrill.fish")];

/// Builds `target/dist/firedrill-VERSION-x86_64-linux.tar.gz`.
pub fn run() -> Result<ExitCode> {
    run::checked(&mut cargo::cargo(["build", "--release", "--locked", "--package", "firedrill"]))?;
    let binary = repo::binary("release", "firedrill");
    let data = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    ensure!(
        initramfs::is_static(&data)?,
        "{} is not static: `+crt-static` of .cargo/config.toml was overridden (is RUSTFLAGS set?)",
        binary.display()
    );

    let name = format!("firedrill-{}-x86_64-linux", env!("CARGO_PKG_VERSION"));
    let dist = repo::target().join("dist");
    let folder = dist.join(&name);
    fill(&folder, &binary)?;
    let tarball = dist.join(format!("{name}.tar.gz"));
    pack(&dist, &name, &tarball)?;
    let size = fs::metadata(&tarball).with_context(|| format!("cannot read {}", tarball.display()))?.len();
    println!("{}: {:.1} MiB", tarball.display(), size as f64 / f64::from(1 << 20));
    Ok(ExitCode::SUCCESS)
}

/// Puts everything into `folder`.
fn fill(folder: &Path, binary: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    let made = |name: &str| -> Result<PathBuf> {
        let path = folder.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(path)
    };
    let program = made("bin")?.join("firedrill");
    fs::copy(binary, &program).with_context(|| format!("cannot write {}", program.display()))?;
    for file in FILES {
        let from = repo::root().join(file);
        ensure!(from.exists(), "{file} is missing in the repository");
        run::checked(run::command("cp", ["-r"]).arg(from).arg(folder))?;
    }
    let man = made("share/man/man1")?;
    run::checked(run::command(binary, ["man"]).arg(&man))?;
    let pages = fs::read_dir(&man).with_context(|| format!("cannot list {}", man.display()))?.count();
    ensure!(pages > 0, "`firedrill man` wrote no pages");
    let completions = made("share/completions")?;
    for (shell, file) in SHELLS {
        let text = run::output(&mut run::command(binary, ["completions", shell]))?;
        ensure!(!text.is_empty(), "`firedrill completions {shell}` wrote nothing");
        let path = completions.join(file);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The same bytes for the same commit: sorted names, the commit's time, nobody's user id.
fn pack(dist: &Path, name: &str, tarball: &Path) -> Result<()> {
    let mut git = run::command("git", ["log", "-1", "--format=%ct"]);
    let time = run::output(git.current_dir(repo::root())).unwrap_or_else(|_| "0".to_owned());
    let mtime = format!("--mtime=@{}", time.trim());
    let mut tar = run::command("tar", ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", &mtime]);
    tar.args(["--use-compress-program", "gzip -9n", "-cf"]).arg(tarball).arg("-C").arg(dist).arg(name);
    run::checked(&mut tar)
}
